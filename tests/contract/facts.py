"""The promises of every `SandboxStore` about facts, pauses and cooling; see `suite`."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from broker_common.core import schema
from broker_common.core.errors import InvalidInput
from broker_common.core.facts import Change, Fact, FactKind, PoolFact, PoolFactKind, allocated
from broker_common.core.lease import begin, candidate_of, end, extend, warn
from broker_common.core.policy import Policy, RecyclePolicy
from broker_common.core.pool import lift_quarantine, mark_stale, quarantine, remove, restore, update_account
from broker_common.core.sandbox import DeletionReason, Sandbox, Status, next_version
from broker_common.core.store import COMMIT_AT_ONCE, CandidateGone, ClaimHeld, Conflict, Pause, Pauses, SandboxPage
from broker_common.core.wipe import (
    account_gone,
    begin_attempt,
    cancel_attempt,
    confirm_wipe,
    contradict,
    fail_attempt,
    finish_cooling,
    reject_deletion,
    retry_deletion,
)
from tests.contract.suite import add_all, ending, fresh_token, take
from tests.fakes import BY, START, add_of, change_of, make_account, make_claim, make_sandbox, removal_of, walk_ring

if TYPE_CHECKING:
    from collections.abc import Mapping

    from broker_common.core.store import SandboxStore

NOW = START + 60
POLICY = Policy()
PENDING = make_sandbox(
    "7", status=Status.PENDING_DELETION, dirty=True, deletion_requested_at=START, next_attempt_at=START
)
TRIED = begin_attempt(PENDING, attempt_id="a", by=BY, now=START, policy=POLICY).result
COOLED = confirm_wipe(TRIED, accepted_only=False, order=5, by=BY, now=START, policy=replace(POLICY, cool_down_sec=30))
COOLING = COOLED.result
HELD = make_sandbox("7", status=Status.ALLOCATED)
LATER = START + 9 * 3600
STALE = make_sandbox("7", status=Status.STALE)
FAILED = make_sandbox("7", status=Status.DELETION_FAILED, dirty=True)


def told(change: Change | None) -> Change:
    assert change is not None
    return change


def wiped(policy: RecyclePolicy) -> Change:
    return confirm_wipe(
        TRIED, accepted_only=False, order=5, by=BY, now=NOW, policy=replace(POLICY, recycle=policy, cool_down_sec=0)
    )


CHANGES: Mapping[str, Change] = {
    "updated": told(update_account(STALE, make_account("7", name="other"), by=BY, now=NOW)),
    "another account": told(update_account(STALE, make_account("7", external_id="uuid-x"), by=BY, now=NOW)),
    "extended": extend(HELD, expires_at=LATER, by=BY, now=NOW),
    "told to end soon": warn(HELD, by=BY, now=NOW, policy=POLICY),
    "marked": end(HELD, reason=DeletionReason.MARKED, by=BY, now=NOW),
    "released": end(HELD, reason=DeletionReason.RELEASED, by=BY, now=NOW),
    "expired": end(HELD, reason=DeletionReason.EXPIRED, by=BY, now=NOW),
    "quarantined while held": quarantine(HELD, reason="smells", by=BY, now=NOW),
    "let go again": told(lift_quarantine(replace(HELD, quarantine="smells"), by=BY, now=NOW)),
    "attempt taken": begin_attempt(PENDING, attempt_id="a", by=BY, now=NOW, policy=POLICY),
    "attempt given back": cancel_attempt(TRIED, error="busy", now=NOW),
    "wipe failed": fail_attempt(
        TRIED, error="no", outcome_unknown=True, retry_at=NOW + 9, by=BY, now=NOW, policy=POLICY
    ),
    "wipe rejected": reject_deletion(TRIED, error="no", by=BY, now=NOW),
    "wiped to the pool": wiped(RecyclePolicy.REUSE),
    "wiped to rest": COOLED,
    "wiped to be confirmed": wiped(RecyclePolicy.CONFIRM),
    "wiped for good": wiped(RecyclePolicy.RETIRE),
    "rested": finish_cooling(COOLING, order=5, by=BY, now=NOW),
    "gone": account_gone(TRIED, by=BY, now=NOW, policy=POLICY),
    "seen again": contradict(replace(STALE, dirty=True), retry_at=NOW, by=BY, now=NOW, policy=POLICY),
    "retried": retry_deletion(FAILED, by=BY, now=NOW),
    "stale": mark_stale(make_sandbox("7"), by=BY, now=NOW, last_seen=None),
    "quarantined": quarantine(make_sandbox("7"), reason="smells", by=BY, now=NOW),
    "restored": restore(STALE, make_account("7"), order=5, by=BY, now=NOW),
    "restored dirty": restore(replace(STALE, dirty=True), make_account("7", name="x"), order=5, by=BY, now=NOW),
    "made a tombstone": remove(FAILED, by=BY, now=NOW, policy=POLICY),
    "removed": remove(STALE, by=BY, now=NOW, policy=POLICY),
    "tombstone removed": remove(make_sandbox("7", status=Status.DELETED), by=BY, now=NOW, policy=POLICY),
}


def history(store: SandboxStore, sandbox_id: str, *, limit: int = 100) -> list[Fact]:
    """Return all facts of a sandbox, newest first."""
    page = store.read_history(sandbox_id, limit=limit, cursor=None)
    facts = [*page.facts]
    while page.cursor is not None:
        page = store.read_history(sandbox_id, limit=limit, cursor=page.cursor)
        assert len(page.facts) <= limit
        facts += page.facts
    return facts


def feed(
    store: SandboxStore, *, limit: int = 100, since: int = 0, cursor: str | None = None, newest_first: bool = False
) -> tuple[list[Fact | PoolFact], str]:
    """Return all facts from `since` or a cursor on, and the cursor of the end."""
    facts: list[Fact | PoolFact] = []
    while True:
        page = store.read_feed(since=since, cursor=cursor, limit=limit, newest_first=newest_first)
        assert len(page.facts) <= limit
        facts += page.facts
        cursor = page.cursor
        if page.is_last:
            return facts, cursor


def position(fact: Fact | PoolFact) -> int:
    return fact.version if isinstance(fact, Fact) else fact.at * 1000


def pool_fact(fact_id: str, at: int = START) -> PoolFact:
    return PoolFact(
        kind=PoolFactKind.PAUSED, fact_id=fact_id, at=at, principal="op", request_id="r", details={"operation": "sync"}
    )


def all_of(store: SandboxStore, status: Status | None) -> list[Sandbox]:
    pages: list[SandboxPage] = [store.list_sandboxes(status, limit=2, cursor=None)]
    while (cursor := pages[-1].cursor) is not None:
        pages.append(store.list_sandboxes(status, limit=2, cursor=cursor))
    return [each for page in pages for each in page.sandboxes]


class FactContract:
    """The promises of every store about facts, to a single caller."""

    # -- a change and its fact

    @pytest.mark.parametrize("name", CHANGES)
    def test_each_change_is_told_once_also_when_it_is_sent_again(self, store: SandboxStore, name: str) -> None:
        change = CHANGES[name]
        assert change.before is not None
        added = add_of(change.before)
        store.commit(added)
        store.commit(change)
        store.commit(change)
        assert store.get("7") == change.after
        assert history(store, "7") == [fact for fact in (change.fact, added.fact) if fact]

    def test_an_allocation_is_told_once_also_when_it_is_sent_again(self, store: SandboxStore) -> None:
        sandbox = make_sandbox("7")
        added = add_of(sandbox)
        store.commit(added)
        candidate, claim, token = candidate_of(sandbox), make_claim(sandbox, track_name="intro"), fresh_token()
        for each in (token, token, fresh_token()):
            store.allocate(candidate, claim, by=BY, token=each)
        assert store.get("7") == begin(sandbox, claim.lease, by=BY).after
        assert history(store, "7") == [allocated(candidate, claim, by=BY), added.fact]

    def test_an_addition_is_told_once_also_when_it_is_sent_again(self, store: SandboxStore) -> None:
        added = add_of(make_sandbox("7"))
        store.commit(added)
        store.commit(added)
        assert history(store, "7") == [added.fact]

    @pytest.mark.parametrize("name", CHANGES)
    def test_a_change_that_does_not_hold_is_not_told(self, store: SandboxStore, name: str) -> None:
        change = CHANGES[name]
        assert change.before is not None
        current = replace(change.before, version=change.before.version + 1)
        store.commit(add_of(current))
        with pytest.raises(Conflict):
            store.commit(change)
        assert store.get("7") == current
        assert history(store, "7") == [add_of(current).fact]

    def test_an_addition_that_does_not_hold_is_not_told(self, store: SandboxStore) -> None:
        store.commit(add_of(make_sandbox("7")))
        for late in (make_sandbox("7", version=2), make_sandbox("8", external_id="uuid-7")):
            with pytest.raises(Conflict):
                store.commit(add_of(late))
        assert history(store, "7") == [add_of(make_sandbox("7")).fact]
        assert history(store, "8") == []

    def test_an_allocation_that_does_not_hold_is_not_told(self, store: SandboxStore) -> None:
        first, second = make_sandbox("7"), make_sandbox("8")
        add_all(store, first, second)
        _, claim = take(store, first)
        mine = store.allocate(candidate_of(second), make_claim(second), by=BY, token=fresh_token())
        theirs = store.allocate(candidate_of(first), make_claim(first, "track-2"), by=BY, token=fresh_token())
        assert mine == ClaimHeld(claim)
        assert isinstance(theirs, CandidateGone)
        assert [fact.kind for fact in history(store, "7")] == [FactKind.ALLOCATED, FactKind.ADDED]
        assert [fact.kind for fact in history(store, "8")] == [FactKind.ADDED]

    def test_to_remove_what_is_absent_succeeds_and_is_not_told(self, store: SandboxStore) -> None:
        store.commit(removal_of(make_sandbox("7")))
        assert history(store, "7") == []
        assert store.read_removed(["7"]) == {}

    def test_each_of_several_that_are_added_at_once_is_told_or_none(self, store: SandboxStore) -> None:
        many = [add_of(make_sandbox(f"sbx-{number}")) for number in range(COMMIT_AT_ONCE)]
        store.commit(*many)
        with pytest.raises(Conflict):
            store.commit(add_of(make_sandbox("other")), many[0])
        facts, _ = feed(store)
        assert sorted(facts, key=_by_sandbox) == sorted((each.fact for each in many if each.fact), key=_by_sandbox)

    def test_a_lease_that_ends_without_its_claim_or_beside_another_s_is_told_once(self, store: SandboxStore) -> None:
        missing, beside = make_sandbox("7", status=Status.ALLOCATED), make_sandbox("8", status=Status.ALLOCATED)
        other = make_sandbox("other")
        add_all(store, missing, beside, other)
        store.commit(ending(missing))
        _, claim = take(store, other)
        store.commit(ending(beside))
        assert store.get_claim("track-1", "track-1") == claim
        for each in ("7", "8"):
            assert [fact.kind for fact in history(store, each)] == [FactKind.MARKED, FactKind.ADDED]

    def test_a_sandbox_leaves_an_account_that_is_recorded_for_another_and_is_told_once(
        self, store: SandboxStore
    ) -> None:
        for sandbox_id in ("changes", "goes"):
            sandbox = make_sandbox(sandbox_id)
            store.commit(add_of(sandbox))
            store.record_accounts(make_sandbox("ghost", external_id=f"uuid-of-{sandbox_id}"))
            read = replace(sandbox, external_id=f"uuid-of-{sandbox_id}")
            if sandbox_id == "goes":
                store.commit(removal_of(read))
            else:
                store.commit(change_of(read, make_sandbox(sandbox_id, version=2, external_id="uuid-new")))
            assert len(history(store, sandbox_id)) == 2
        changed = store.get("changes")
        assert changed is not None
        assert changed.external_id == "uuid-new"
        assert store.get("goes") is None

    # -- history

    @pytest.mark.parametrize("limit", [1, 2, 3, 100])
    def test_a_history_is_read_newest_first_page_by_page_also_of_what_was_removed(
        self, store: SandboxStore, limit: int
    ) -> None:
        changes = life(store, "7")
        add_all(store, make_sandbox("77"), make_sandbox("8"))
        expected = [change.fact for change in reversed(changes) if change.fact]
        assert len(expected) > 3
        assert history(store, "7", limit=limit) == expected
        assert store.get("7") is None

    def test_a_cursor_that_no_history_of_that_sandbox_gave_is_refused(self, store: SandboxStore) -> None:
        life(store, "7")
        cursor = store.read_history("7", limit=1, cursor=None).cursor
        of_feed = store.read_feed(since=0, cursor=None, limit=1).cursor
        assert cursor is not None
        for bad in ("", "nonsense", "é", "=" * 8, cursor[: len(cursor) // 2], "A" + cursor, of_feed):
            with pytest.raises(InvalidInput, match="cursor"):
                store.read_history("7", limit=1, cursor=bad)
        with pytest.raises(InvalidInput, match="cursor"):
            store.read_history("8", limit=1, cursor=cursor)

    def test_the_version_at_which_a_record_was_removed_is_kept(self, store: SandboxStore) -> None:
        first = make_sandbox("7")
        store.commit(add_of(first))
        add_all(store, make_sandbox("8"))
        assert store.read_removed(["7", "8", "9"]) == {}
        store.commit(removal_of(first))
        version = next_version(first.version, first.updated_at)
        assert store.read_removed(["7", "8", "9", "7"]) == {"7": version}
        again = make_sandbox("7", version=version + 5)
        store.commit(add_of(again))
        store.commit(removal_of(again))
        assert store.read_removed(["7"]) == {"7": version + 6}
        assert store.read_removed([]) == {}

    # -- the feed

    def test_facts_at_the_same_place_are_each_read_once(self, store: SandboxStore) -> None:
        many = [add_of(make_sandbox(f"sbx-{number}", version=START * 1000)) for number in range(25)]
        store.commit(*many)
        facts, _ = feed(store, limit=3)
        assert sorted(facts, key=_by_sandbox) == sorted((each.fact for each in many if each.fact), key=_by_sandbox)

    @pytest.mark.many_calls
    @pytest.mark.parametrize("limit", [1, 4, 100])
    def test_a_feed_has_every_fact_in_order(self, store: SandboxStore, limit: int) -> None:
        changes = [change for number in range(6) for change in life(store, f"sbx-{number}", began=START + number)]
        pauses = [pool_fact(f"pause-{number}", at=START + 20 * number) for number in range(6)]
        for each in pauses:
            store.record(each)
        expected = [*(change.fact for change in changes if change.fact), *pauses]
        facts, _ = feed(store, limit=limit)
        assert sorted(map(position, facts)) == list(map(position, facts))
        assert sorted(facts, key=repr) == sorted(expected, key=repr)

    def test_a_feed_begins_with_the_second_that_is_asked_for(self, store: SandboxStore) -> None:
        add_all(store, *[make_sandbox(f"sbx-{at}", version=at * 1000) for at in range(START, START + 9)])
        store.record(pool_fact("early", at=START + 3))
        store.record(pool_fact("late", at=START + 4))
        facts, _ = feed(store, since=START + 4, limit=2)
        assert sorted(each.fact_id if isinstance(each, PoolFact) else each.sandbox_id for each in facts) == [
            "late",
            *(f"sbx-{at}" for at in range(START + 4, START + 9)),
        ]
        assert feed(store, since=2**60)[0] == []

    @pytest.mark.many_calls
    @pytest.mark.parametrize("limit", [1, 4, 100])
    def test_a_feed_can_have_every_fact_the_newest_first(self, store: SandboxStore, limit: int) -> None:
        for number in range(6):
            life(store, f"sbx-{number}", began=START + number)
            store.record(pool_fact(f"pause-{number}", at=START + 20 * number))
        expected, _ = feed(store)
        facts, _ = feed(store, limit=limit, newest_first=True)
        assert sorted(map(position, facts), reverse=True) == list(map(position, facts))
        assert sorted(facts, key=repr) == sorted(expected, key=repr)
        since = expected[len(expected) // 2].at
        facts, _ = feed(store, since=since, limit=limit, newest_first=True)
        assert sorted(facts, key=repr) == sorted((each for each in expected if each.at >= since), key=repr)

    def test_the_cursor_of_the_newest_facts_reads_older_ones_alone(self, store: SandboxStore) -> None:
        add_all(store, *[make_sandbox(f"sbx-{at}", version=at * 1000) for at in range(START, START + 6)])
        page = store.read_feed(since=0, cursor=None, limit=4, newest_first=True)
        add_all(store, make_sandbox("later", version=(START + 9) * 1000))
        facts, cursor = feed(store, cursor=page.cursor, newest_first=True)
        assert list(map(position, facts)) == [(START + 1) * 1000, START * 1000]
        assert feed(store, cursor=cursor, newest_first=True)[0] == []

    def test_the_cursor_of_a_feed_s_end_reads_what_is_told_later(self, store: SandboxStore) -> None:
        facts, cursor = feed(store)
        assert facts == []
        for number in range(6):
            added = add_of(make_sandbox(f"sbx-{number}", version=(START + number) * 1000))
            store.commit(added)
            facts, cursor = feed(store, cursor=cursor)
            assert facts == [added.fact]
        assert feed(store, cursor=cursor)[0] == []

    def test_a_page_says_whether_it_is_the_last(self, store: SandboxStore) -> None:
        add_all(store, *[make_sandbox(f"sbx-{number}") for number in range(4)])
        first = store.read_feed(since=0, cursor=None, limit=3)
        assert (len(first.facts), first.is_last) == (3, False)
        second = store.read_feed(since=0, cursor=first.cursor, limit=3)
        assert (len(second.facts), second.is_last) == (1, True)

    def test_a_cursor_that_no_feed_gave_is_refused(self, store: SandboxStore) -> None:
        life(store, "7")
        cursor = store.read_feed(since=0, cursor=None, limit=1).cursor
        of_history = store.read_history("7", limit=1, cursor=None).cursor
        assert of_history is not None
        backwards = store.read_feed(since=0, cursor=None, limit=1, newest_first=True).cursor
        for bad in ("", "nonsense", "é", "=" * 8, cursor[: len(cursor) // 2], "A" + cursor, of_history):
            for newest_first in (False, True):
                with pytest.raises(InvalidInput, match="cursor"):
                    store.read_feed(since=0, cursor=bad, limit=1, newest_first=newest_first)
        for other, newest_first in ((backwards, False), (cursor, True)):
            with pytest.raises(InvalidInput, match="cursor"):
                store.read_feed(since=0, cursor=other, limit=1, newest_first=newest_first)

    # -- facts of the pool

    def test_a_fact_of_the_pool_is_kept_once_however_often_it_is_written(self, store: SandboxStore) -> None:
        store.record(pool_fact("one"))
        store.record(pool_fact("one"))
        store.record(pool_fact("two"))
        facts, _ = feed(store)
        assert sorted(facts, key=repr) == [pool_fact("one"), pool_fact("two")]

    def test_a_pause_is_told_once_also_when_it_is_sent_again(self, store: SandboxStore) -> None:
        paused = Pauses(sync=Pause(by="op", since=START))
        for _ in range(2):
            assert store.set_pauses(Pauses(), paused, pool_fact("one")) == paused
        assert store.read_pauses() == paused
        assert feed(store)[0] == [pool_fact("one")]

    def test_who_pauses_or_resumes_second_meets_a_conflict_and_is_not_told(self, store: SandboxStore) -> None:
        mine, theirs = Pauses(sync=Pause(by="op", since=START)), Pauses(sync=Pause(by="admin", since=START))
        store.set_pauses(Pauses(), mine, pool_fact("mine"))
        with pytest.raises(Conflict):
            store.set_pauses(Pauses(), theirs, pool_fact("theirs"))
        with pytest.raises(Conflict):
            store.set_pauses(Pauses(), replace(theirs, expire=Pause(by="admin")), pool_fact("theirs"))
        assert store.read_pauses() == mine
        assert store.set_pauses(mine, Pauses(), pool_fact("over")) == Pauses()
        assert {fact.fact_id for fact in feed(store)[0] if isinstance(fact, PoolFact)} == {"mine", "over"}

    # -- the upgrade

    def test_a_new_table_starts_with_its_upgrade_finished_and_finishing_it_again_changes_nothing(
        self, store: SandboxStore
    ) -> None:
        before = store.ping()
        assert before.upgraded == schema.UPGRADE
        store.finish_upgrade()
        store.finish_upgrade()
        assert replace(store.ping(), time=None) == replace(before, time=None)

    # -- cooling

    def test_a_cooling_sandbox_waits_but_not_for_deletion(self, store: SandboxStore) -> None:
        ready_at = START + 30
        cooling = [replace(COOLING, sandbox_id=f"cool-{number}", external_id=f"uuid-{number}") for number in range(5)]
        waiting = make_sandbox(
            "waiting", status=Status.PENDING_DELETION, dirty=True, deletion_requested_at=START + 5, status_order=START
        )
        add_all(store, *cooling)
        assert store.oldest_pending_deletion() is None
        add_all(store, waiting)
        assert store.oldest_pending_deletion() == START + 5
        assert list(store.read_due(Status.PENDING_DELETION, until=ready_at - 1)) == ["waiting"]
        everyone = sorted([*(each.sandbox_id for each in cooling), "waiting"])
        assert sorted(store.read_due(Status.PENDING_DELETION, until=ready_at)) == everyone
        for status in (Status.PENDING_DELETION, None):
            assert sorted(each.sandbox_id for each in all_of(store, status)) == everyone
        assert store.count() == dict.fromkeys(Status, 0) | {Status.PENDING_DELETION: 6}
        assert sorted(each.sandbox_id for each in store.read_all().sandboxes) == everyone
        assert store.has_sandboxes()

    def test_a_sandbox_cools_and_comes_back(self, store: SandboxStore) -> None:
        store.commit(add_of(TRIED))
        store.commit(COOLED)
        assert store.get("7") == COOLING
        store.commit(finish_cooling(COOLING, order=5, by=BY, now=NOW))
        assert list(store.read_due(Status.PENDING_DELETION, until=2**50)) == []
        assert [each.sandbox_id for each in walk_ring(store, limit=5)] == ["7"]
        assert [fact.kind for fact in history(store, "7")] == [FactKind.AVAILABLE, FactKind.WIPED, FactKind.ADDED]


def life(store: SandboxStore, sandbox_id: str, *, began: int = START) -> list[Change]:
    """Let a sandbox live from its addition to its removal; return every change."""
    changes: list[Change] = []

    def commit(change: Change) -> Change:
        store.commit(change)
        changes.append(change)
        return change

    added = commit(add_of(make_sandbox(sandbox_id, version=began * 1000, updated_at=began))).result
    claim = make_claim(added, f"track-of-{sandbox_id}", allocated_at=began)
    store.allocate(candidate_of(added), claim, by=BY, token=fresh_token())
    changes.append(begin(added, claim.lease, by=BY))
    commit(extend(changes[-1].result, expires_at=claim.lease.expires_at + 60, by=BY, now=began + 5))
    ended = commit(end(changes[-1].result, reason=DeletionReason.MARKED, by=BY, now=began + 10)).result
    tried = commit(begin_attempt(ended, attempt_id="a", by=BY, now=began + 20, policy=POLICY)).result
    wipe = confirm_wipe(
        tried,
        accepted_only=False,
        order=5,
        by=BY,
        now=began + 30,
        policy=replace(POLICY, recycle=RecyclePolicy.CONFIRM),
    )
    commit(remove(commit(wipe).result, by=BY, now=began + 40, policy=POLICY))
    return changes


def _by_sandbox(fact: Fact | PoolFact) -> str:
    return repr(fact)
