"""What happened, as operators read it: a sandbox's history, and the feed of all facts."""

from __future__ import annotations

import base64
from dataclasses import replace
from random import Random

import pytest

from broker_common.core.clock_check import MAX_DIFFERENCE_SEC
from broker_common.core.errors import ClockWrong, InvalidInput, SandboxNotFound, UpgradeUnfinished
from broker_common.core.facts import Fact, FactKind, PoolFactKind
from broker_common.core.guard import MAX_AGE_SEC
from broker_common.core.history import READ_AGAIN_SEC, Feed
from broker_common.core.sandbox import Sandbox, Status
from broker_common.core.schema import Upgrade
from broker_common.core.store import COMMIT_AT_ONCE, FactPage
from tests.fakes import BY, START, FakeClock, StoreWrapper, make_account, make_sandbox
from tests.lifecycle import check_history
from tests.world import World


def use_and_wipe(world: World, track_id: str = "track-1") -> str:
    """Have a track take a sandbox and give it back, and have it wiped; returns its id."""
    world.clock.advance(1)
    sandbox_id = world.allocate(track_id).claim.sandbox_id
    world.leases.mark_for_deletion(track_id=track_id, sandbox_id=sandbox_id, by=BY)
    world.cleaner.delete_sandbox(sandbox_id, by=BY)
    return sandbox_id


def kinds(feed: Feed) -> list[str]:
    return [fact.kind for fact in feed.facts]


@pytest.fixture
def busy(plain: World) -> World:
    """Give a world in which three tracks have used a sandbox, and an operator paused the sync."""
    plain.pool(3)
    for number in range(3):
        use_and_wipe(plain, f"track-{number}")
    plain.clock.advance(1)
    plain.pauses.set({"sync": True}, by=BY)
    return plain


# -- of one sandbox


def test_a_history_has_the_facts_of_its_sandbox_newest_first(plain: World) -> None:
    plain.pool(1)
    use_and_wipe(plain)
    page = plain.history.of_sandbox("sbx-0", limit=10, cursor=None)
    assert [fact.kind for fact in page.facts] == [FactKind.WIPED, FactKind.MARKED, FactKind.ALLOCATED]
    assert page.cursor is None
    check_history(reversed(page.facts))


def test_a_history_is_read_page_by_page_each_fact_once(plain: World) -> None:
    plain.pool(1)
    for number in range(3):
        use_and_wipe(plain, f"track-{number}")
    whole = plain.history.of_sandbox("sbx-0", limit=100, cursor=None).facts
    assert len(whole) == 9
    found: list[Fact] = []
    cursor = None
    for size in (4, 4, 1):
        page = plain.history.of_sandbox("sbx-0", limit=4, cursor=cursor)
        assert len(page.facts) == size
        found += page.facts
        cursor = page.cursor
    assert (tuple(found), cursor) == (whole, None)


def test_a_history_that_goes_on_while_it_is_read_is_read_to_its_beginning(plain: World) -> None:
    plain.pool(1)
    use_and_wipe(plain)
    first = plain.history.of_sandbox("sbx-0", limit=2, cursor=None)
    use_and_wipe(plain)
    rest = plain.history.of_sandbox("sbx-0", limit=2, cursor=first.cursor)
    assert [fact.kind for fact in rest.facts] == [FactKind.ALLOCATED]
    assert rest.cursor is None


def test_a_sandbox_without_facts_has_an_empty_history_and_one_without_a_record_is_not_found(plain: World) -> None:
    plain.memory.seed(make_sandbox("old"))
    assert plain.history.of_sandbox("old", limit=5, cursor=None).facts == ()
    with pytest.raises(SandboxNotFound, match="nobody"):
        plain.history.of_sandbox("nobody", limit=5, cursor=None)


def test_facts_that_are_kept_no_longer_end_a_history_that_is_being_read(plain: World) -> None:
    plain.memory.seed(make_sandbox("old", status=Status.STALE, dirty=True))
    plain.purger.bulk_delete(Status.STALE, by=BY)
    plain.sync([make_account("other")])
    first = plain.history.of_sandbox("old", limit=1, cursor=None)
    assert first.cursor is not None
    plain.memory.facts.clear()
    assert plain.history.of_sandbox("old", limit=1, cursor=first.cursor).facts == ()


class Sparse(StoreWrapper):
    """A store whose first page of a history has nothing on it."""

    def read_history(self, sandbox_id: str, *, limit: int, cursor: str | None) -> FactPage:
        return FactPage((), None if cursor else "more")


def test_an_empty_page_that_is_not_the_last_one_does_not_say_that_there_is_no_sandbox() -> None:
    world = World(wrap=Sparse)
    assert world.history.of_sandbox("old", limit=1, cursor=None) == FactPage((), "more")


def test_a_cursor_of_another_history_is_refused(plain: World) -> None:
    plain.pool(1)
    use_and_wipe(plain)
    cursor = plain.history.of_sandbox("sbx-0", limit=1, cursor=None).cursor
    for sandbox_id, given in (("sbx-1", cursor), ("sbx-0", "!"), ("sbx-0", base64.b64encode(b"[]").decode())):
        with pytest.raises(InvalidInput, match="cursor"):
            plain.history.of_sandbox(sandbox_id, limit=1, cursor=given)


# -- the feed


def test_the_feed_has_all_facts_in_the_order_of_time(busy: World) -> None:
    feed = busy.history.feed(limit=100)
    assert kinds(feed) == [FactKind.ALLOCATED, FactKind.MARKED, FactKind.WIPED] * 3 + [PoolFactKind.PAUSED]
    assert [fact.at for fact in feed.facts] == sorted(fact.at for fact in feed.facts)
    assert feed.is_last


def test_a_page_in_the_middle_goes_on_exactly_where_it_ended(busy: World) -> None:
    whole = busy.history.feed(limit=100).facts
    feed = busy.history.feed(limit=4)
    found = list(feed.facts)
    while not feed.is_last:
        feed = busy.history.feed(after=feed.cursor, limit=4)
        found += feed.facts
    assert tuple(found) == whole


def test_the_end_of_the_feed_reads_the_last_minutes_again_and_nothing_before_them(busy: World) -> None:
    busy.clock.advance(READ_AGAIN_SEC)
    assert READ_AGAIN_SEC >= 120
    busy.pauses.set({"sync": False}, by=BY)
    end = busy.history.feed(limit=100)
    assert end.is_last
    again = busy.history.feed(after=end.cursor, limit=100)
    # What happened so long ago to the second is read again, what is a second older is not.
    assert [(fact.kind, fact.at) for fact in again.facts] == [
        (PoolFactKind.PAUSED, START + 4),
        (PoolFactKind.RESUMED, START + 4 + READ_AGAIN_SEC),
    ]


def test_a_reader_who_waits_at_the_end_for_long_misses_nothing(busy: World) -> None:
    end = busy.history.feed(limit=100)
    busy.clock.advance(10 * READ_AGAIN_SEC)
    busy.pauses.set({"sync": False}, by=BY)
    assert kinds(busy.history.feed(after=end.cursor, limit=100))[-1] == PoolFactKind.RESUMED


def test_a_feed_can_begin_at_a_time(busy: World) -> None:
    assert kinds(busy.history.feed(since=START + 3, limit=100)) == [
        FactKind.ALLOCATED,
        FactKind.MARKED,
        FactKind.WIPED,
        PoolFactKind.PAUSED,
    ]
    nothing = busy.history.feed(since=START + 5, limit=100)
    assert (nothing.facts, nothing.is_last) == ((), True)


def test_a_feed_that_began_at_a_time_does_not_go_back_before_it(busy: World) -> None:
    end = busy.history.feed(since=START + 3, limit=100)
    assert len(busy.history.feed(after=end.cursor, limit=100).facts) == 4


def test_a_cursor_holds_with_any_time_that_is_given_with_it(busy: World) -> None:
    middle = busy.history.feed(limit=9)
    assert kinds(busy.history.feed(after=middle.cursor, since=START + 9999, limit=9)) == [PoolFactKind.PAUSED]


def test_a_feed_can_be_held_to_one_kind(busy: World) -> None:
    assert kinds(busy.history.feed(kind=FactKind.MARKED, limit=100)) == [FactKind.MARKED] * 3
    assert kinds(busy.history.feed(kind=PoolFactKind.PAUSED, limit=100)) == [PoolFactKind.PAUSED]


def test_a_feed_can_be_held_to_one_track_and_then_tells_nothing_of_the_pool(busy: World) -> None:
    feed = busy.history.feed(track_id="track-1", limit=100)
    assert kinds(feed) == [FactKind.ALLOCATED, FactKind.MARKED, FactKind.WIPED]
    assert {fact.track_id for fact in feed.facts if isinstance(fact, Fact)} == {"track-1"}
    assert kinds(busy.history.feed(track_id="track-1", kind=FactKind.WIPED, limit=100)) == [FactKind.WIPED]


def test_a_page_from_which_everything_was_left_out_is_not_the_end(busy: World) -> None:
    first = busy.history.feed(kind=PoolFactKind.PAUSED, limit=4)
    assert (first.facts, first.is_last) == ((), False)
    second = busy.history.feed(kind=PoolFactKind.PAUSED, after=first.cursor, limit=100)
    assert (kinds(second), second.is_last) == ([PoolFactKind.PAUSED], True)


@pytest.mark.parametrize(
    "cursor",
    [
        "",
        "f",
        "c",
        "x1",
        "f-1",
        "f1.5",
        "f1e3",
        "f٣",
        f"f{2**63}{2**63}",
        "c!",
        "f 1",
        "1",
        "cW10=",
        "c1.2",
        "c1.2.",
        "c1.2.W10=",
        "c1.x.W10=",
        "f1\n",
    ],
)
def test_a_cursor_that_no_feed_gave_is_refused(busy: World, cursor: str) -> None:
    with pytest.raises(InvalidInput):
        busy.history.feed(after=cursor, limit=5)


@pytest.mark.parametrize("limit", [1, 4, 100])
def test_the_newest_facts_lead_back_to_the_oldest(busy: World, limit: int) -> None:
    whole = busy.history.feed(limit=100).facts
    page = busy.history.newest(limit=limit)
    found = [*page.facts]
    busy.pauses.set({"sync": False}, by=BY)
    while not page.is_last:
        page = busy.history.newest(after=page.cursor, limit=limit)
        found += page.facts
    assert tuple(reversed(found)) == whole
    assert busy.history.newest(after=page.cursor, limit=limit).facts == ()


def test_the_newest_facts_can_be_held_to_a_time_a_kind_and_a_track(busy: World) -> None:
    since = busy.history.newest(since=START + 3, limit=100)
    assert (since.facts[::-1], since.is_last) == (busy.history.feed(since=START + 3, limit=100).facts, True)
    assert kinds(busy.history.newest(kind=FactKind.MARKED, limit=100)) == [FactKind.MARKED] * 3
    wiped = busy.history.newest(track_id="track-1", kind=FactKind.WIPED, limit=100)
    assert kinds(wiped) == [FactKind.WIPED]
    assert busy.history.newest(kind=FactKind.ALLOCATED, limit=1).facts == ()


def test_no_order_of_the_feed_takes_a_cursor_of_the_other(busy: World) -> None:
    newest, oldest = busy.history.newest(limit=1).cursor, busy.history.feed(limit=1).cursor
    with pytest.raises(InvalidInput, match="after"):
        busy.history.feed(after=newest, limit=1)
    for cursor in (oldest, "b", "bnonsense"):
        with pytest.raises(InvalidInput):
            busy.history.newest(after=cursor, limit=1)


def test_a_history_s_cursor_is_none_of_a_feed(busy: World) -> None:
    sandbox_id = next(fact.sandbox_id for fact in busy.memory.facts if isinstance(fact, Fact))
    cursor = busy.history.of_sandbox(sandbox_id, limit=1, cursor=None).cursor
    with pytest.raises(InvalidInput):
        busy.history.feed(after=f"c{START}.0.{cursor}", limit=5)


def test_a_round_that_is_resumed_long_after_it_began_still_finds_what_showed_up_late(busy: World) -> None:
    middle = busy.history.feed(limit=9)
    late = replace(
        next(fact for fact in busy.memory.facts if isinstance(fact, Fact)), version=START * 1000 + 1, at=START
    )
    busy.memory.facts.append(late)
    busy.clock.advance(READ_AGAIN_SEC - 10)
    end = busy.history.feed(after=middle.cursor, limit=100)
    assert end.is_last
    assert late in busy.history.feed(after=end.cursor, limit=100).facts


def test_a_cursor_of_a_clock_that_was_ahead_does_not_lead_past_what_happens_next(busy: World) -> None:
    feed = busy.history.feed(after=f"f{START + 100_000}", limit=100)
    busy.pauses.set({"sync": False}, by=BY)
    assert kinds(busy.history.feed(after=feed.cursor, limit=100)) == [PoolFactKind.PAUSED, PoolFactKind.RESUMED]


def test_a_feed_is_not_read_by_a_wrong_clock(busy: World) -> None:
    table_time = busy.clock.now()
    wrong = FakeClock(table_time + MAX_DIFFERENCE_SEC + 1)
    late = World(clock=wrong, memory=busy.memory)
    with pytest.raises(ClockWrong):
        late.history.feed(limit=5)


def test_a_follower_sees_all_that_a_long_sync_writes(plain: World) -> None:
    plain.provider.accounts = [make_account(f"new-{number}") for number in range(500)]
    seen: set[str] = set()
    after: str | None = None

    def poll() -> None:
        nonlocal after
        while True:
            feed = plain.history.feed(after=after, limit=1000)
            seen.update(fact.sandbox_id for fact in feed.facts if isinstance(fact, Fact))
            after = feed.cursor
            if feed.is_last:
                return

    written = 0

    def slow(_before: Sandbox | None, _after: Sandbox | None) -> None:
        nonlocal written
        written += 1
        if written % COMMIT_AT_ONCE == 1 and written > 1:
            plain.clock.advance(60)
            poll()

    plain.memory.on_write = slow
    plain.sync()
    poll()
    assert len(seen) == 500


@pytest.mark.parametrize("seed", range(5))
def test_each_fact_is_read_at_least_once_and_in_order_for_its_sandbox_while_others_are_written(seed: int) -> None:
    rng, world = Random(seed), World(seed=seed)
    world.pool(4)
    read: dict[str, list[Fact]] = {}
    after = None
    feed = None
    writes = 60
    while writes or feed is None or not feed.is_last:
        if writes and rng.random() < 0.7:
            writes -= 1
            use_and_wipe(world, f"track-{writes}")
            world.clock.advance(rng.choice([0, 1, 30, 200]))
            feed = None
            continue
        feed = world.history.feed(after=after, limit=rng.randint(1, 7))
        after = feed.cursor
        for fact in feed.facts:
            if isinstance(fact, Fact):
                read.setdefault(fact.sandbox_id, []).append(fact)
    named = {(fact.sandbox_id, fact.version, fact.kind) for facts in read.values() for fact in facts}
    written = {(fact.sandbox_id, fact.version, fact.kind) for fact in world.memory.facts if isinstance(fact, Fact)}
    assert named == written
    for facts in read.values():
        firsts = list({fact.version: fact for fact in facts}.values())
        check_history(firsts)


def test_the_version_of_a_record_that_is_added_again_follows_on_so_that_its_history_stays_in_order(
    plain: World,
) -> None:
    plain.sync([make_account("1"), make_account("2")])
    for _ in range(3):
        plain.sync([make_account("2")], force=True)
        plain.purger.bulk_delete(Status.STALE, by=BY)
        plain.sync([make_account("1"), make_account("2")])
    facts = plain.history.of_sandbox("1", limit=100, cursor=None).facts
    assert [fact.kind for fact in reversed(facts)] == [
        FactKind.ADDED,
        *[FactKind.STALE, FactKind.REMOVED, FactKind.ADDED] * 3,
    ]
    check_history(reversed(facts))
    assert facts[0].version == plain.record("1").version


# -- while processes of an older release may run


def test_nothing_is_told_while_a_release_that_writes_no_facts_may_run(busy: World) -> None:
    busy.memory.upgraded = 0
    busy.start()
    with pytest.raises(UpgradeUnfinished, match="broker upgrade finish"):
        busy.history.feed(limit=5)
    with pytest.raises(UpgradeUnfinished, match="broker upgrade finish"):
        busy.history.newest(limit=5)
    with pytest.raises(UpgradeUnfinished, match="broker upgrade finish"):
        busy.history.of_sandbox("sbx-0", limit=5, cursor=None)


def test_facts_are_told_while_only_a_later_upgrade_is_unfinished(busy: World) -> None:
    busy.memory.upgraded = Upgrade.FACTS
    busy.start()
    assert busy.history.feed(limit=5).facts


def test_a_finished_upgrade_is_known_within_seconds(busy: World) -> None:
    busy.memory.upgraded = 0
    busy.start()
    with pytest.raises(UpgradeUnfinished):
        busy.history.feed(limit=5)
    busy.memory.finish_upgrade()
    busy.clock.advance(MAX_AGE_SEC)
    assert busy.history.feed(limit=5).facts
