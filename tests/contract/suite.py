"""The promises of every `SandboxStore`, as tests. Each store has a subclass with a fixture `store`, which is empty."""

from __future__ import annotations

import base64
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import count
from threading import Barrier
from typing import TYPE_CHECKING, Any, TypeVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from broker_common.core.errors import InvalidInput, StoreUnavailable, UnreadableRecord
from broker_common.core.flat import flatten, sandbox_of
from broker_common.core.lease import begin, candidate_of, claim_on, end, extend
from broker_common.core.pool import mark_stale, quarantine, set_aside
from broker_common.core.samples import PoolLevel
from broker_common.core.sandbox import ORDER_LIMIT, Candidate, Claim, DeletionReason, Sandbox, Status
from broker_common.core.store import (
    COMMIT_AT_ONCE,
    AllocateAnswer,
    Allocated,
    CandidateGone,
    ClaimHeld,
    Conflict,
    Contended,
    CountRecord,
    Pause,
    Pauses,
    Pool,
    PoolCount,
    Position,
    ReservationFull,
    Unreadable,
    Watermark,
)
from broker_common.core.telemetry import AllocateOutcome
from broker_common.core.wipe import retry_deletion
from tests.contract.reservations import ReservationContract
from tests.contract.samples import NOON, SampleContract, level_fact, read_all
from tests.contract.webhooks import WebhookContract
from tests.fakes import (
    BY,
    SPOILED,
    START,
    StoreWrapper,
    add_of,
    change_of,
    make_claim,
    make_reservation,
    make_sandbox,
    removal_of,
    walk_ring,
)

Answer = TypeVar("Answer")

if TYPE_CHECKING:
    from collections.abc import Callable

    from broker_common.core.facts import Change
    from broker_common.core.reservation import Reservation
    from broker_common.core.store import SandboxStore

SHARED_STORE = settings(
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.differing_executors],
)
"""For tests whose examples leave the store unchanged. The class of each store runs the same test."""

COUNT = PoolCount(
    by_status={status: 10**number for number, status in enumerate(Status)},
    oldest_pending_deletion=START - 90,
    began_at=START,
    counted_by="ann",
    waiting=7,
    longest_waiting_since=START - 600,
    returns=(START - 1, START + 60),
)
_tokens = count()
PRINTABLE = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=40)
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
TIMES = st.integers(0, 2**40)


ALONE = tuple(status for status in Status if status is not Status.RESERVED)
"""The statuses of a sandbox that can be added without a reservation."""
FREE_STATUSES = tuple(status for status in ALONE if status is not Status.ALLOCATED)


@st.composite
def sandboxes(draw: st.DrawFn, statuses: tuple[Status, ...] = ALONE) -> Sandbox:
    """Draw a record with an id of its own; each field may be set or missing."""
    status = draw(st.sampled_from(statuses))
    has_last = draw(st.booleans())
    always = status is Status.ALLOCATED
    lease_id, last_lease_id = draw(PRINTABLE), draw(PRINTABLE)
    return sandbox_of(
        {
            "sandbox_id": f"{draw(PRINTABLE)}-{next(_tokens)}",
            "name": draw(ANY_TEXT),
            "external_id": draw(PRINTABLE),
            "status": status,
            "status_order": draw(st.integers(0, ORDER_LIMIT - 1)),
            "version": draw(st.integers(1, 2**45)),
            "created_at": draw(TIMES),
            "updated_at": draw(TIMES),
            "dirty": status is not Status.AVAILABLE and draw(st.booleans()),
            "sfdc_account_id": draw(st.none() | ANY_TEXT),
            "lease_id": lease_id if always else None,
            "allocated_to_track": draw(PRINTABLE) if always else None,
            "idempotency_key": draw(PRINTABLE) if always else None,
            "track_name": draw(st.none() | ANY_TEXT),
            "customer": draw(st.none() | ANY_TEXT),
            "customer_lease_id": draw(st.sampled_from([lease_id, last_lease_id, "another"])),
            "allocated_at": draw(TIMES if always else st.none() | TIMES),
            "expires_at": draw(TIMES if always else st.none() | TIMES),
            "last_track_id": draw(PRINTABLE) if has_last else None,
            "last_lease_id": last_lease_id if has_last else None,
            "deletion_requested_at": draw(st.none() | TIMES),
            "deletion_reason": draw(st.none() | st.sampled_from(DeletionReason)),
            "deletion_retry_count": draw(st.integers(0, 1000)),
            "deletion_last_error": draw(st.none() | ANY_TEXT),
            "next_attempt_at": draw(st.none() | TIMES),
            "attempt_id": draw(st.none() | PRINTABLE),
            "outcome_unknown": draw(st.booleans()),
            "gone_at": draw(st.none() | TIMES),
            "ready_at": draw(st.none() | TIMES),
            "quarantine_reason": draw(st.none() | ANY_TEXT),
            "stale_since": draw(st.none() | TIMES),
            "last_synced": draw(st.none() | TIMES),
            "warned_for": draw(st.none() | TIMES) if always else None,
        }
    )


def bare(store: SandboxStore) -> Any:
    """Return the store that has `spoil` and `spoil_claim`, below all wrappers."""
    return bare(store.inner) if isinstance(store, StoreWrapper) else store


def fresh_token() -> str:
    return f"token-{next(_tokens)}"


def add_many(store: SandboxStore, count: int) -> list[Sandbox]:
    """Add available sandboxes, and return them."""
    return [add_new(store, f"sbx-{number}") for number in range(count)]


def add_all(store: SandboxStore, *sandboxes: Sandbox) -> None:
    """Add sandboxes; book the reservations that they are set aside for, if they do not exist."""
    for reservation_id in {each.reservation_id for each in sandboxes} - {None}:
        if store.read_reservation(reservation_id or "") is None:
            book(store, make_reservation(reservation_id or "", count=100, lead_sec=24 * 3600))
    for sandbox in sandboxes:
        store.commit(add_of(sandbox))


def book(store: SandboxStore, *reservations: Reservation) -> None:
    for each in reservations:
        store.write_reservation(None, each, version=store.read_reservations().version)


def take(store: SandboxStore, sandbox: Sandbox, track_id: str = "track-1", **claim: object) -> tuple[Sandbox, Claim]:
    """Allocate an available sandbox; return its record and claim."""
    wanted = make_claim(sandbox, track_id, **claim)
    assert store.allocate(candidate_of(sandbox), wanted, by=BY, token=fresh_token()) == Allocated()
    return held_under(sandbox, wanted), wanted


def add_new(store: SandboxStore, sandbox_id: str = "2009521", **changes: Any) -> Sandbox:
    """Add a sandbox, available unless it is given another status, and return it."""
    sandbox = make_sandbox(sandbox_id, **changes)
    store.commit(add_of(sandbox))
    return sandbox


def refused(store: SandboxStore, *changes: Change) -> Sandbox | None:
    """Return the record that a conflict shows when these changes are made."""
    with pytest.raises(Conflict) as conflict:
        store.commit(*changes)
    return conflict.value.current


def held_under(sandbox: Sandbox, claim: Claim) -> Sandbox:
    return begin(sandbox, claim.lease, by=BY).result


def extending(sandbox: Sandbox, *, by_sec: int = 60) -> Change:
    assert sandbox.lease
    return extend(sandbox, expires_at=sandbox.lease.expires_at + by_sec, by=BY, now=START + 60)


def ending(sandbox: Sandbox) -> Change:
    return end(sandbox, reason=DeletionReason.MARKED, by=BY, now=START + 60)


def ended(sandbox: Sandbox) -> Sandbox:
    return ending(sandbox).result


class StoreContract(ReservationContract, WebhookContract, SampleContract):
    """The promises of every store to a single caller."""

    # -- single records

    def test_an_unknown_sandbox_reads_as_nothing(self, store: SandboxStore) -> None:
        assert store.get("nobody") is None

    @given(sandbox=sandboxes())
    @settings(SHARED_STORE, max_examples=40)
    def test_every_field_of_a_sandbox_survives_storage_with_its_type(
        self, store: SandboxStore, sandbox: Sandbox
    ) -> None:
        store.commit(add_of(sandbox))
        found = store.get(sandbox.sandbox_id)
        assert found is not None
        assert found == sandbox
        assert list(map(type, flatten(found).values())) == list(map(type, flatten(sandbox).values()))
        assert store.read_all().sandboxes == (sandbox,)
        store.commit(removal_of(sandbox))
        assert store.get(sandbox.sandbox_id) is None

    @given(before=sandboxes(FREE_STATUSES), after=sandboxes(FREE_STATUSES))
    @settings(SHARED_STORE, max_examples=40)
    def test_an_update_sets_changes_and_clears_every_field(
        self, store: SandboxStore, before: Sandbox, after: Sandbox
    ) -> None:
        after = replace(after, sandbox_id=before.sandbox_id, version=before.version + 1)
        store.commit(add_of(before))
        store.commit(change_of(before, after))
        assert store.get(before.sandbox_id) == after
        store.commit(removal_of(after))

    def test_adding_what_has_a_record_is_a_conflict_that_shows_it(self, store: SandboxStore) -> None:
        first = add_new(store, version=7)
        assert refused(store, add_of(replace(first, version=8))) == first
        assert store.get(first.sandbox_id) == first

    def test_a_tombstone_keeps_its_id_from_being_added_again(self, store: SandboxStore) -> None:
        tombstone = add_new(store, status=Status.DELETED, dirty=True)
        assert refused(store, add_of(make_sandbox(version=9))) == tombstone

    @pytest.mark.parametrize("earlier", [{"version": 2}, {"status": Status.AVAILABLE}], ids=["version", "status"])
    def test_an_update_of_what_has_changed_is_a_conflict_that_shows_it(
        self, store: SandboxStore, earlier: dict[str, Any]
    ) -> None:
        sandbox = add_new(store, version=3, status=Status.STALE)
        read_earlier = replace(sandbox, **earlier)
        assert refused(store, change_of(read_earlier, replace(read_earlier, version=4, name="late"))) == sandbox
        assert store.get(sandbox.sandbox_id) == sandbox

    def test_an_update_of_a_removed_record_is_a_conflict_with_nothing_to_show(self, store: SandboxStore) -> None:
        sandbox = make_sandbox()
        assert refused(store, change_of(sandbox, replace(sandbox, version=2))) is None
        assert store.get(sandbox.sandbox_id) is None

    def test_an_update_that_is_sent_again_after_a_third_writer_is_a_conflict(self, store: SandboxStore) -> None:
        sandbox = make_sandbox()
        changed = quarantine(sandbox, reason="smells", by=BY, now=START).result
        retried = retry_deletion(changed, by=BY, now=START).result
        store.commit(add_of(sandbox))
        store.commit(change_of(sandbox, changed))
        store.commit(change_of(changed, retried))
        assert refused(store, change_of(sandbox, changed)) == retried

    def test_a_removed_record_is_gone_and_removing_it_again_succeeds(self, store: SandboxStore) -> None:
        sandbox = add_new(store)
        store.commit(removal_of(sandbox))
        store.commit(removal_of(sandbox))
        assert store.get(sandbox.sandbox_id) is None
        assert walk_ring(store, limit=10) == []

    @pytest.mark.parametrize("other", [{"version": 2}, {"status": Status.STALE}], ids=["version", "status"])
    def test_removing_what_has_changed_is_a_conflict_that_shows_it(
        self, store: SandboxStore, other: dict[str, Any]
    ) -> None:
        sandbox = add_new(store, **other)
        assert refused(store, removal_of(make_sandbox())) == sandbox
        assert store.get(sandbox.sandbox_id) == sandbox

    @pytest.mark.many_calls
    def test_read_all_yields_tombstones_and_goes_past_a_page_but_no_claims(self, store: SandboxStore) -> None:
        records = [
            make_sandbox(f"sbx-{number}", status=status)
            for number, status in enumerate([Status.STALE, Status.DELETED, Status.DELETION_FAILED] * 34)
        ]
        free = make_sandbox("free")
        add_all(store, *records, free)
        held, _ = take(store, free)
        store.write_watermark(Watermark(START, 1))
        store.set_pauses(Pauses(), Pauses(sync=Pause(by="op", since=START)))
        assert {each.sandbox_id: each for each in store.read_all().sandboxes} == {
            each.sandbox_id: each for each in [*records, held]
        }

    def test_what_is_known_at_the_version_of_the_index_is_returned_as_it_is(self, store: SandboxStore) -> None:
        same, older, gone = make_sandbox("same", version=5), make_sandbox("older", version=5), make_sandbox("gone")
        add_all(store, same, older)
        known = [replace(same, name="as known"), replace(older, name="as known", version=4), gone]
        pool = store.read_all(known=known, with_accounts=False)
        assert {each.sandbox_id: each for each in pool.sandboxes} == {"same": known[0], "older": older}

    # -- accounts

    def test_an_account_has_one_sandbox_however_its_id_is_spelt(self, store: SandboxStore) -> None:
        store.commit(add_of(make_sandbox("first", external_id="uuid-0a")))
        for external_id in ("uuid-0a", "UUID-0A"):
            assert refused(store, add_of(make_sandbox("second", external_id=external_id))) is None
        assert store.get("second") is None
        assert store.read_all().accounts == {"uuid-0a": "first"}

    def test_several_sandboxes_are_added_at_once_with_their_accounts(self, store: SandboxStore) -> None:
        many = [make_sandbox(f"sbx-{number}") for number in range(COMMIT_AT_ONCE)]
        store.commit(*map(add_of, many))
        pool = store.read_all()
        assert sorted(pool.sandboxes, key=_by_id) == sorted(many, key=_by_id)
        assert pool.accounts == {f"uuid-sbx-{number}": f"sbx-{number}" for number in range(COMMIT_AT_ONCE)}
        assert len(walk_ring(store, limit=100)) == COMMIT_AT_ONCE

    @pytest.mark.parametrize(
        "held", [make_sandbox("b"), make_sandbox("x", external_id="uuid-b")], ids=["id", "account"]
    )
    def test_several_sandboxes_are_all_added_or_none(self, store: SandboxStore, held: Sandbox) -> None:
        store.commit(add_of(held))
        with pytest.raises(Conflict):
            store.commit(add_of(make_sandbox("a")), add_of(make_sandbox("b", version=9)), add_of(make_sandbox("c")))
        assert store.read_all() == Pool((held,), {"uuid-b": held.sandbox_id})

    def test_a_change_of_account_takes_the_account_and_leaves_the_other(self, store: SandboxStore) -> None:
        before = make_sandbox(external_id="uuid-0a")
        after = replace(before, external_id="uuid-0b", version=2)
        store.commit(add_of(before))
        store.commit(change_of(before, after))
        store.commit(change_of(before, after))
        assert store.read_all() == Pool((after,), {"uuid-0b": after.sandbox_id})
        assert refused(store, change_of(before, replace(before, external_id="uuid-0c", version=2))) == after
        assert store.read_all() == Pool((after,), {"uuid-0b": after.sandbox_id})

    def test_another_spelling_of_its_account_keeps_a_sandbox_its_account(self, store: SandboxStore) -> None:
        before = make_sandbox(external_id="uuid-0a")
        after = replace(before, external_id="UUID-0A", version=2)
        store.commit(add_of(before))
        store.commit(change_of(before, after))
        assert store.read_all() == Pool((after,), {"uuid-0a": after.sandbox_id})

    def test_a_change_to_the_account_of_another_sandbox_is_a_conflict(self, store: SandboxStore) -> None:
        first, second = add_new(store, "first"), add_new(store, "second")
        with pytest.raises(Conflict):
            store.commit(change_of(second, replace(second, external_id=first.external_id, version=2)))
        assert store.get("second") == second
        assert store.read_all().accounts == {"uuid-first": "first", "uuid-second": "second"}

    def test_a_removed_sandbox_leaves_its_account_to_others(self, store: SandboxStore) -> None:
        first = make_sandbox("first", external_id="uuid-0a")
        second = make_sandbox("second", external_id="uuid-0a")
        store.commit(add_of(first))
        store.commit(removal_of(first))
        assert store.read_all() == Pool((), {})
        store.commit(add_of(second))
        assert store.read_all() == Pool((second,), {"uuid-0a": "second"})

    def test_an_account_is_recorded_once_and_never_for_a_second_sandbox(self, store: SandboxStore) -> None:
        first, second = add_new(store, "first"), add_new(store, "second")
        store.record_accounts(first)
        store.record_accounts(first, second)
        twin = replace(second, external_id=first.external_id)
        for wanted in ([twin], [second, twin]):
            with pytest.raises(Conflict):
                store.record_accounts(*wanted)
        assert store.read_all().accounts == {"uuid-first": "first", "uuid-second": "second"}

    def test_the_record_of_an_account_whose_sandbox_is_gone_or_has_another_keeps_nobody_out(
        self, store: SandboxStore
    ) -> None:
        moved = add_new(store, "moved")
        store.record_accounts(make_sandbox("ghost", external_id="uuid-0a"))
        store.record_accounts(make_sandbox("ghost", external_id="uuid-0c"))
        store.record_accounts(replace(moved, external_id="uuid-0b"))
        first, second = make_sandbox("first", external_id="uuid-0a"), make_sandbox("second", external_id="uuid-0b")
        add_all(store, first, second)
        store.record_accounts(replace(moved, external_id="uuid-0c"))
        assert store.read_all().accounts == {
            "uuid-0a": "first",
            "uuid-0b": "second",
            "uuid-moved": "moved",
        }

    def test_a_sandbox_is_removed_though_another_has_its_account(self, store: SandboxStore) -> None:
        store.record_accounts(make_sandbox("other", external_id="uuid-0a"))
        sandbox = add_new(store, external_id="uuid-0b")
        store.record_accounts(make_sandbox("other", external_id="uuid-0d"))
        store.commit(removal_of(replace(sandbox, external_id="uuid-0d")))
        assert store.read_all().sandboxes == ()
        store.commit(add_of(make_sandbox("other", external_id="uuid-0d")))
        assert store.read_all().accounts == {"uuid-0d": "other"}

    # -- the ring

    @pytest.mark.many_calls
    @pytest.mark.parametrize("limit", [1, 3, 1000])
    def test_a_walk_from_the_start_yields_every_available_sandbox_exactly_once(
        self, store: SandboxStore, limit: int
    ) -> None:
        free = add_many(store, 25)
        found = walk_ring(store, limit=limit)
        assert sorted(found, key=_by_id) == sorted((candidate_of(each) for each in free), key=_by_id)

    @pytest.mark.many_calls
    @pytest.mark.parametrize("share", [0.0, 0.1, 0.4, 0.77, 0.999999])
    def test_a_walk_from_anywhere_misses_no_available_sandbox(self, store: SandboxStore, share: float) -> None:
        free = add_many(store, 25)
        found = walk_ring(store, limit=4, start=int(share * (store.positions - 1)))
        assert {each.sandbox_id for each in found} == {each.sandbox_id for each in free}

    @pytest.mark.parametrize("limit", [1, 2, 5])
    def test_sandboxes_at_the_same_place_are_each_yielded_once(self, store: SandboxStore, limit: int) -> None:
        free = [make_sandbox(f"sbx-{number}", status_order=12345) for number in range(20)]
        add_all(store, *free)
        found = [each.sandbox_id for each in walk_ring(store, limit=limit)]
        assert sorted(found) == sorted(each.sandbox_id for each in free)

    def test_the_first_and_the_last_place_of_the_ring_are_part_of_it(self, store: SandboxStore) -> None:
        free = [
            make_sandbox(f"sbx-{number}", status_order=order)
            for number, order in enumerate([0, 1, ORDER_LIMIT - 2, ORDER_LIMIT - 1] * 4)
        ]
        add_all(store, *free)
        found = [each.sandbox_id for each in walk_ring(store, limit=2)]
        assert sorted(found) == sorted(each.sandbox_id for each in free)

    def test_a_single_sandbox_is_found_from_any_part_of_the_ring(self, store: SandboxStore) -> None:
        store.commit(add_of(make_sandbox()))
        for part in range(16):
            found = walk_ring(store, limit=10, start=part * store.positions // 16)
            assert {each.sandbox_id for each in found} == {make_sandbox().sandbox_id}

    def test_an_empty_ring_is_walked_in_few_pages(self, store: SandboxStore) -> None:
        position, travelled, pages = Position(store.positions // 3), 0, 0
        while travelled < store.positions:
            page = store.read_candidates(position, limit=10, prefix="")
            assert page.candidates == ()
            assert 0 <= page.next.at < store.positions
            position, travelled, pages = page.next, travelled + page.distance, pages + 1
        assert pages <= 64

    @pytest.mark.many_calls
    def test_a_page_looks_at_no_more_than_its_limit(self, store: SandboxStore) -> None:
        add_all(store, *[make_sandbox(f"sbx-{number}") for number in range(40)])
        position, travelled = Position(0), 0
        while travelled < store.positions:
            page = store.read_candidates(position, limit=3, prefix="")
            assert len(page.candidates) <= 3
            position, travelled = page.next, travelled + page.distance

    @pytest.mark.many_calls
    def test_a_prefix_leaves_other_names_out_though_pages_become_empty(self, store: SandboxStore) -> None:
        others = [make_sandbox(f"sbx-{number}") for number in range(40)]
        wanted = [make_sandbox(f"gpu-{number}", name=f"gpu-lab-{number}") for number in range(3)]
        add_all(store, *others, *wanted)
        found = [each.sandbox_id for each in walk_ring(store, limit=2, prefix="gpu-")]
        assert sorted(found) == ["gpu-0", "gpu-1", "gpu-2"]

    def test_a_prefix_is_taken_literally(self, store: SandboxStore) -> None:
        add_all(store, make_sandbox("a", name="x%1"), make_sandbox("b", name="xx1"), make_sandbox("c", name="X%1"))
        assert [each.sandbox_id for each in walk_ring(store, limit=9, prefix="x%")] == ["a"]

    def test_only_available_sandboxes_are_in_the_ring(self, store: SandboxStore) -> None:
        add_all(store, *[make_sandbox(str(status), status=status) for status in Status])
        assert [each.sandbox_id for each in walk_ring(store, limit=10)] == ["available"]

    def test_a_sandbox_leaves_the_ring_and_returns_to_it_with_its_status(self, store: SandboxStore) -> None:
        sandbox = add_new(store)
        stale = mark_stale(sandbox, by=BY, now=START, last_seen=None).result
        store.commit(change_of(sandbox, stale))
        assert walk_ring(store, limit=10) == []
        back = replace(stale, status=Status.AVAILABLE, status_order=77, version=stale.version + 1)
        store.commit(change_of(stale, back))
        assert walk_ring(store, limit=10) == [candidate_of(back)]

    def test_a_candidate_shows_an_account_id_that_is_set(self, store: SandboxStore) -> None:
        store.commit(add_of(make_sandbox(sfdc_account_id="001X", version=5)))
        assert walk_ring(store, limit=1)[0] == candidate_of(make_sandbox(sfdc_account_id="001X", version=5))

    # -- allocating

    def test_allocating_writes_the_claim_and_the_sandbox(self, store: SandboxStore) -> None:
        sandbox = make_sandbox(
            deletion_requested_at=5,
            deletion_reason=DeletionReason.MARKED,
            deletion_last_error="once",
            last_track_id="earlier",
            last_lease_id="earlier-lease",
        )
        store.commit(add_of(sandbox))
        held, claim = take(store, sandbox, track_name="intro", sfdc_account_id="001X")
        assert store.get(sandbox.sandbox_id) == held
        assert held.dirty
        assert store.get_claim("track-1", "track-1") == claim
        assert walk_ring(store, limit=10) == []

    def test_a_claim_that_is_held_is_returned_and_the_candidate_left_alone(self, store: SandboxStore) -> None:
        first, second = add_new(store, "first"), add_new(store, "second")
        _, claim = take(store, first)
        answer = store.allocate(candidate_of(second), make_claim(second), by=BY, token=fresh_token())
        assert answer == ClaimHeld(claim)
        assert store.get("second") == second

    def test_a_held_claim_is_reported_before_a_lost_candidate(self, store: SandboxStore) -> None:
        first = add_new(store, "first")
        _, claim = take(store, first)
        gone = candidate_of(make_sandbox("gone"))
        assert store.allocate(gone, make_claim(gone), by=BY, token=fresh_token()) == ClaimHeld(claim)

    def test_a_candidate_at_another_version_is_gone_and_no_claim_is_written(self, store: SandboxStore) -> None:
        sandbox = add_new(store, version=2, name="renamed")
        shown = replace(candidate_of(sandbox), version=1)
        assert store.allocate(shown, make_claim(shown), by=BY, token=fresh_token()) == CandidateGone(sandbox)
        assert store.get_claim("track-1", "track-1") is None
        assert store.get(sandbox.sandbox_id) == sandbox

    @pytest.mark.parametrize("status", [status for status in ALONE if status is not Status.AVAILABLE])
    def test_a_candidate_in_any_other_status_is_gone(self, store: SandboxStore, status: Status) -> None:
        sandbox = add_new(store, status=status)
        shown = candidate_of(sandbox)
        assert store.allocate(shown, make_claim(shown), by=BY, token=fresh_token()) == CandidateGone(sandbox)
        assert store.get_claim("track-1", "track-1") is None

    def test_a_candidate_without_a_record_is_gone(self, store: SandboxStore) -> None:
        shown = candidate_of(make_sandbox())
        assert store.allocate(shown, make_claim(shown), by=BY, token=fresh_token()) == CandidateGone(None)
        assert store.get_claim("track-1", "track-1") is None
        assert store.get(shown.sandbox_id) is None

    def test_the_same_request_under_its_token_is_applied_once(self, store: SandboxStore) -> None:
        sandbox = add_new(store)
        candidate, claim = candidate_of(sandbox), make_claim(sandbox)
        token = fresh_token()
        assert store.allocate(candidate, claim, by=BY, token=token) == Allocated()
        assert store.allocate(candidate, claim, by=BY, token=token) in {Allocated(), ClaimHeld(claim)}
        assert store.get(sandbox.sandbox_id) == held_under(sandbox, claim)

    def test_the_same_request_under_another_token_shows_its_own_claim(self, store: SandboxStore) -> None:
        sandbox = add_new(store)
        _, claim = take(store, sandbox)
        assert store.allocate(candidate_of(sandbox), claim, by=BY, token=fresh_token()) == ClaimHeld(claim)

    @given(
        names=st.tuples(PRINTABLE, PRINTABLE),
        track_name=st.none() | ANY_TEXT,
        sfdc_account_id=st.none() | ANY_TEXT,
    )
    @settings(SHARED_STORE, max_examples=25)
    def test_every_field_of_a_claim_survives_storage(
        self, store: SandboxStore, names: tuple[str, str], track_name: str | None, sfdc_account_id: str | None
    ) -> None:
        sandbox = add_new(store, f"sbx-{next(_tokens)}", sfdc_account_id=sfdc_account_id)
        track_id, key = names
        held, claim = take(store, sandbox, track_id, idempotency_key=key, track_name=track_name)
        assert store.get_claim(track_id, key) == claim
        assert store.read_claims(track_id) == [claim]
        store.commit(ending(held))
        store.commit(removal_of(ended(held)))
        assert store.read_claims(track_id) == []

    def test_claims_of_tracks_with_odd_names_never_mix(self, store: SandboxStore) -> None:
        names = [
            ("a", "b"),
            ("a", "CLAIM#b"),
            ("a#CLAIM", "b"),
            ("a#CLAIM#b", "b"),
            ("a b", "~"),
            ("A", "b"),
            ("a", "B"),
        ]
        claims = {}
        for number, (track_id, key) in enumerate(names):
            sandbox = add_new(store, f"sbx-{number}")
            _, claims[track_id, key] = take(store, sandbox, track_id, idempotency_key=key)
        for (track_id, key), claim in claims.items():
            assert store.get_claim(track_id, key) == claim
            mine = sorted(store.read_claims(track_id), key=lambda each: each.lease.idempotency_key)
            assert mine == sorted(
                (each for (owner, _), each in claims.items() if owner == track_id),
                key=lambda each: each.lease.idempotency_key,
            )

    # -- ending an allocation

    def test_ending_an_allocation_writes_the_sandbox_and_deletes_the_claim(self, store: SandboxStore) -> None:
        held, _ = take(store, add_new(store))
        store.commit(ending(held))
        assert store.get(held.sandbox_id) == ended(held)
        assert store.get_claim("track-1", "track-1") is None

    def test_a_track_is_free_to_claim_again_after_its_allocation_ended(self, store: SandboxStore) -> None:
        first, second = add_new(store, "first"), add_new(store, "second")
        held, _ = take(store, first)
        store.commit(ending(held))
        _, claim = take(store, second)
        assert store.get_claim("track-1", "track-1") == claim

    def test_a_missing_claim_does_not_keep_an_allocation_from_ending(self, store: SandboxStore) -> None:
        held = held_under(make_sandbox(), make_claim(make_sandbox()))
        store.commit(add_of(held))
        store.commit(ending(held))
        assert store.get(held.sandbox_id) == ended(held)

    def test_the_claim_of_another_lease_outlives_the_end_of_an_allocation(self, store: SandboxStore) -> None:
        orphan = held_under(make_sandbox("orphan"), make_claim(make_sandbox("orphan")))
        other = make_sandbox("other")
        add_all(store, orphan, other)
        _, claim = take(store, other)
        store.commit(ending(orphan))
        assert store.get("orphan") == ended(orphan)
        assert store.get_claim("track-1", "track-1") == claim

    def test_an_allocation_that_another_ended_is_a_conflict_that_shows_it(self, store: SandboxStore) -> None:
        held, _ = take(store, add_new(store))
        theirs = end(held, reason=DeletionReason.EXPIRED, by=BY, now=START + 1).result
        store.commit(change_of(held, theirs))
        assert refused(store, ending(held)) == theirs

    def test_the_end_of_one_lease_never_ends_the_next(self, store: SandboxStore) -> None:
        held, _ = take(store, add_new(store))
        waiting = ended(held)
        store.commit(change_of(held, waiting))
        free = replace(waiting, status=Status.AVAILABLE, dirty=False, version=waiting.version + 1)
        store.commit(change_of(waiting, free))
        again, claim = take(store, free, lease_id="next-lease")
        assert refused(store, ending(held)) == again
        assert store.get_claim("track-1", "track-1") == claim

    def test_the_end_of_an_allocation_that_is_sent_again_succeeds(self, store: SandboxStore) -> None:
        held, _ = take(store, add_new(store))
        store.commit(ending(held))
        store.commit(ending(held))
        assert store.get(held.sandbox_id) == ended(held)

    # -- extending a lease

    def test_extending_a_lease_writes_the_sandbox_and_its_claim(self, store: SandboxStore) -> None:
        held, claim = take(store, add_new(store))
        longer = extending(held)
        store.commit(longer)
        assert store.get(held.sandbox_id) == longer.result
        lease = replace(claim.lease, expires_at=claim.lease.expires_at + 60)
        assert store.get_claim("track-1", "track-1") == claim_on(held, lease)
        assert store.read_claims("track-1") == [claim_on(held, lease)]

    def test_an_extended_lease_is_due_at_its_new_end(self, store: SandboxStore) -> None:
        held, claim = take(store, add_new(store))
        store.commit(extending(held))
        assert list(store.read_due(Status.ALLOCATED, until=claim.lease.expires_at)) == []
        assert list(store.read_due(Status.ALLOCATED, until=claim.lease.expires_at + 60)) == [held.sandbox_id]

    def test_an_extension_that_is_sent_again_succeeds(self, store: SandboxStore) -> None:
        held, _ = take(store, add_new(store))
        for _ in range(2):
            store.commit(extending(held))
        assert store.get(held.sandbox_id) == extending(held).result

    @pytest.mark.parametrize("theirs", ["ended", "extended further"])
    def test_an_extension_of_what_has_changed_is_a_conflict_that_shows_it(
        self, store: SandboxStore, theirs: str
    ) -> None:
        held, _ = take(store, add_new(store))
        first = ending(held) if theirs == "ended" else extending(held, by_sec=120)
        store.commit(first)
        claims = store.read_claims("track-1")
        assert refused(store, extending(held)) == first.result == store.get(held.sandbox_id)
        assert store.read_claims("track-1") == claims

    def test_an_extension_never_changes_the_next_lease(self, store: SandboxStore) -> None:
        held, _ = take(store, add_new(store))
        waiting = ended(held)
        store.commit(change_of(held, waiting))
        free = replace(waiting, status=Status.AVAILABLE, dirty=False, version=waiting.version + 1)
        store.commit(change_of(waiting, free))
        again, claim = take(store, free, lease_id="next-lease")
        assert refused(store, extending(held)) == again
        assert store.get_claim("track-1", "track-1") == claim

    def test_a_missing_claim_does_not_keep_a_lease_from_being_extended_and_stays_missing(
        self, store: SandboxStore
    ) -> None:
        held = held_under(make_sandbox(), make_claim(make_sandbox()))
        store.commit(add_of(held))
        store.commit(extending(held))
        assert store.get(held.sandbox_id) == extending(held).result
        assert store.get_claim("track-1", "track-1") is None

    def test_the_claim_of_another_lease_is_left_alone_by_an_extension(self, store: SandboxStore) -> None:
        orphan = held_under(make_sandbox("orphan"), make_claim(make_sandbox("orphan")))
        other = make_sandbox("other")
        add_all(store, orphan, other)
        _, claim = take(store, other)
        store.commit(extending(orphan))
        assert store.get("orphan") == extending(orphan).result
        assert store.get_claim("track-1", "track-1") == claim

    def test_an_extended_lease_ends_with_its_claim(self, store: SandboxStore) -> None:
        held, _ = take(store, add_new(store))
        longer = extending(held).result
        store.commit(extending(held))
        store.commit(ending(longer))
        assert store.get(held.sandbox_id) == ended(longer)
        assert store.get_claim("track-1", "track-1") is None

    def test_ending_the_allocation_of_a_removed_record_is_a_conflict_with_nothing_to_show(
        self, store: SandboxStore
    ) -> None:
        held = held_under(make_sandbox(), make_claim(make_sandbox()))
        assert refused(store, ending(held)) is None
        assert store.get(held.sandbox_id) is None

    # -- what is due, lists, counts

    @pytest.mark.many_calls
    def test_what_is_due_is_read_up_to_and_with_the_limit_of_one_status(self, store: SandboxStore) -> None:
        add_all(
            store,
            *[
                make_sandbox(f"{status}-{order}", status=status, status_order=order)
                for status in ALONE
                for order in (0, 99, 100, 101, ORDER_LIMIT - 1)
            ],
        )
        for status in ALONE:
            assert sorted(store.read_due(status, until=100)) == sorted(f"{status}-{order}" for order in (0, 99, 100))
            assert len(list(store.read_due(status, until=ORDER_LIMIT))) == 5

    def test_what_is_due_follows_the_order_of_the_record(self, store: SandboxStore) -> None:
        sandbox = add_new(store)
        held, claim = take(store, sandbox)
        assert list(store.read_due(Status.ALLOCATED, until=claim.lease.expires_at - 1)) == []
        assert list(store.read_due(Status.ALLOCATED, until=claim.lease.expires_at)) == [sandbox.sandbox_id]
        store.commit(ending(held))
        assert list(store.read_due(Status.ALLOCATED, until=ORDER_LIMIT)) == []
        assert list(store.read_due(Status.PENDING_DELETION, until=ended(held).status_order)) == [sandbox.sandbox_id]

    @pytest.mark.many_calls
    @pytest.mark.parametrize("limit", [1, 7, 100])
    @pytest.mark.parametrize("status", [None, Status.STALE, Status.AVAILABLE, Status.RESERVED])
    def test_pages_of_a_listing_hold_each_sandbox_once(
        self, store: SandboxStore, status: Status | None, limit: int
    ) -> None:
        records = [make_sandbox(f"sbx-{number}", status=status) for number, status in enumerate(list(Status) * 4)]
        add_all(store, *records)
        found: list[Sandbox] = []
        cursor = None
        while True:
            page = store.list_sandboxes(status, limit=limit, cursor=cursor)
            assert len(page.sandboxes) <= limit
            found += page.sandboxes
            cursor = page.cursor
            if cursor is None:
                break
        expected = [each for each in records if status in {None, each.status}]
        assert sorted(found, key=_by_id) == sorted(expected, key=_by_id)

    def test_a_cursor_that_no_listing_of_that_status_gave_is_refused(self, store: SandboxStore) -> None:
        add_all(store, *[make_sandbox(f"sbx-{number}", status=Status.STALE) for number in range(12)])
        cursor = store.list_sandboxes(Status.STALE, limit=2, cursor=None).cursor
        assert cursor is not None
        forged = base64.urlsafe_b64encode(b'{"PK": {"S": "POOL"}}').decode()
        for bad in ["", "nonsense", "é", "=" * 8, cursor[: len(cursor) // 2], "A" + cursor, cursor + "A" * 5, forged]:
            with pytest.raises(InvalidInput, match="cursor"):
                store.list_sandboxes(Status.STALE, limit=2, cursor=bad)
        for status in (None, Status.AVAILABLE):
            with pytest.raises(InvalidInput, match="cursor"):
                store.list_sandboxes(status, limit=2, cursor=cursor)

    def test_counts_hold_every_status(self, store: SandboxStore) -> None:
        assert store.count() == dict.fromkeys(Status, 0)
        add_all(store, *[make_sandbox(f"stale-{number}", status=Status.STALE) for number in range(9)])
        add_all(store, make_sandbox("free"), make_sandbox("gone", status=Status.DELETED))
        expected = dict.fromkeys(Status, 0) | {Status.STALE: 9, Status.AVAILABLE: 1, Status.DELETED: 1}
        assert store.count() == expected

    @pytest.mark.many_calls
    @pytest.mark.parametrize("limit", [1, 5, 8, 40, 100])
    def test_those_that_are_due_next_are_read_in_the_order_of_one_status(self, store: SandboxStore, limit: int) -> None:
        orders = [START + 7 * number % 60 for number in range(40)]
        for number, order in enumerate(orders):
            add_new(store, f"sbx-{number}", status=Status.PENDING_DELETION, status_order=order)
        add_new(store, "stale", status=Status.STALE, status_order=1)
        assert list(store.read_next_due(Status.PENDING_DELETION, limit=limit)) == sorted(orders)[:limit]
        assert list(store.read_next_due(Status.ALLOCATED, limit=limit)) == []

    def test_the_oldest_pending_deletion_is_the_one_that_was_asked_for_first(self, store: SandboxStore) -> None:
        assert store.oldest_pending_deletion() is None
        for number, asked_at in enumerate((300, 100, 200)):
            pending = make_sandbox(
                f"sbx-{number}", status=Status.PENDING_DELETION, dirty=True, deletion_requested_at=asked_at
            )
            add_all(store, pending)
        add_all(store, make_sandbox("done", deletion_requested_at=50))
        assert store.oldest_pending_deletion() == 100

    # -- records that cannot be read

    def test_an_unreadable_record_is_read_by_nobody_and_listed_as_such(self, store: SandboxStore) -> None:
        bad, good = make_sandbox("bad", status=Status.STALE), make_sandbox("good", status=Status.STALE)
        add_all(store, bad, good)
        bare(store).spoil("bad")
        with pytest.raises(UnreadableRecord) as raised:
            store.get("bad")
        assert (raised.value.sandbox_id, raised.value.reason) == ("bad", SPOILED)
        assert store.read_all().sandboxes == (good,)
        for status in (Status.STALE, None):
            pages = [store.list_sandboxes(status, limit=10, cursor=None)]
            while pages[-1].cursor:
                pages.append(store.list_sandboxes(status, limit=10, cursor=pages[-1].cursor))
            assert [each for page in pages for each in page.sandboxes] == [good]
            assert [each for page in pages for each in page.unreadable] == [Unreadable("bad", SPOILED)]
        assert sorted(store.read_due(Status.STALE, until=START)) == ["bad", "good"]
        assert store.count()[Status.STALE] == 2

    def test_a_candidate_whose_record_cannot_be_read_is_gone_and_left_as_it_is(self, store: SandboxStore) -> None:
        sandbox = add_new(store)
        bare(store).spoil(sandbox.sandbox_id)
        shown = candidate_of(sandbox)
        assert store.allocate(shown, make_claim(shown), by=BY, token=fresh_token()) == CandidateGone(None)
        assert store.get_claim("track-1", "track-1") is None
        assert store.count()[Status.AVAILABLE] == 1

    def test_a_write_that_meets_an_unreadable_record_says_so(self, store: SandboxStore) -> None:
        held, _ = take(store, add_new(store))
        bare(store).spoil(held.sandbox_id)
        earlier = replace(held, version=held.version - 1)
        stale = make_sandbox(status=Status.STALE, version=earlier.version)
        writes: list[Callable[[], None]] = [
            lambda: store.commit(add_of(make_sandbox(version=9))),
            lambda: store.commit(change_of(stale, replace(stale, version=9))),
            lambda: store.commit(removal_of(stale)),
            lambda: store.commit(ending(earlier)),
            lambda: store.commit(extending(earlier)),
        ]
        for write in writes:
            with pytest.raises(UnreadableRecord):
                write()
        assert store.get_claim("track-1", "track-1") is not None

    def test_an_unreadable_claim_is_its_own_track_s_trouble(self, store: SandboxStore) -> None:
        first, second = add_new(store, "first"), add_new(store, "second")
        take(store, first)
        bare(store).spoil_claim("track-1", "track-1")
        reads: list[Callable[[], object]] = [
            lambda: store.get_claim("track-1", "track-1"),
            lambda: store.read_claims("track-1"),
            lambda: store.allocate(candidate_of(second), make_claim(second), by=BY, token=fresh_token()),
        ]
        for read in reads:
            with pytest.raises(UnreadableRecord) as raised:
                read()
            assert raised.value.track_id == "track-1"
        assert store.get("second") == second
        assert store.read_claims("track-2") == []
        take(store, second, "track-2")

    # -- the pool's own records

    def test_there_is_no_watermark_before_the_first(self, store: SandboxStore) -> None:
        assert store.read_watermark() is None

    def test_a_watermark_only_moves_forward(self, store: SandboxStore) -> None:
        store.write_watermark(Watermark(START, 10))
        store.write_watermark(Watermark(START - 1, 99))
        assert store.read_watermark() == Watermark(START, 10)
        for later in (
            Watermark(START + 1, 5),
            Watermark(START + 1, 5, accounts_checked_at=START),
            Watermark(START + 1, 5),
        ):
            store.write_watermark(later)
            assert store.read_watermark() == later

    def test_nothing_is_paused_at_first(self, store: SandboxStore) -> None:
        assert store.read_pauses() == Pauses()

    def test_setting_a_pause_leaves_the_others(self, store: SandboxStore) -> None:
        mine, theirs = Pause(by="op", since=START), Pause(by="admin", since=START + 1)
        first = store.set_pauses(Pauses(), Pauses(sync=mine, expire=mine))
        assert first == Pauses(sync=mine, expire=mine)
        second = store.set_pauses(first, Pauses(allocate=theirs, expire=mine))
        assert second == Pauses(allocate=theirs, expire=mine)
        assert store.set_pauses(Pauses(), Pauses(cleanup=theirs)) == replace(second, cleanup=theirs)
        assert store.read_pauses() == replace(second, cleanup=theirs)

    def test_there_are_no_counts_before_the_first(self, store: SandboxStore) -> None:
        assert store.read_counts() == CountRecord()

    def test_counts_are_written_whole_and_only_over_those_that_were_read(self, store: SandboxStore) -> None:
        taken = CountRecord(turn="one", counter="ann", counting_until=START + 7)
        counted = replace(taken, turn="two", count=COUNT)
        nothing = replace(COUNT, oldest_pending_deletion=None, waiting=0, longest_waiting_since=None, returns=())
        newer = replace(counted, turn="three", count=nothing)
        before = None
        for record in (taken, counted, newer):
            store.write_counts(record, instead_of=before)
            store.write_counts(record, instead_of=before)  # its first answer may have been lost
            assert store.read_counts() == record
            before = record.turn
        for old in (None, "one", "two"):
            with pytest.raises(Conflict):
                store.write_counts(replace(taken, turn="late"), instead_of=old)
        assert store.read_counts() == newer

    def test_counts_are_no_sandbox(self, store: SandboxStore) -> None:
        store.write_counts(CountRecord(turn="one", count=COUNT, counter="ann"), instead_of=None)
        assert not store.has_sandboxes()
        assert store.read_all() == Pool((), {})
        assert store.list_sandboxes(None, limit=5, cursor=None).sandboxes == ()
        assert set(store.count().values()) == {0}
        assert store.read_feed(since=0, cursor=None, limit=5).facts == ()
        assert store.read_pauses() == Pauses()
        assert store.ping().synced_at is None

    def test_a_ping_tells_the_time_or_nothing(self, store: SandboxStore) -> None:
        told = store.ping().time
        assert told is None or (type(told) is int and told > 1_500_000_000)

    def test_a_table_has_an_identity_which_only_who_names_it_replaces(self, store: SandboxStore) -> None:
        first = store.ping().identity
        assert first is not None
        for instead_of in (None, "another"):
            with pytest.raises(Conflict):
                store.identify("new", instead_of=instead_of)
        assert store.ping().identity == first
        store.identify("new", instead_of=first)
        store.identify("new", instead_of=first)
        assert (store.ping().identity, store.ping().is_restored) == ("new", False)

    def test_a_ping_reports_a_sync_that_succeeded_after_the_table_was_accepted(self, store: SandboxStore) -> None:
        assert store.ping().synced_at is None
        store.write_watermark(Watermark(START, 5))
        assert store.ping().synced_at == START
        store.identify("new", instead_of=store.ping().identity, last_foreign_sync=START)
        assert store.ping().synced_at is None
        store.write_watermark(Watermark(START + 1, 5))
        assert store.ping().synced_at == START + 1

    @pytest.mark.parametrize("status", Status)
    def test_a_store_has_sandboxes_from_its_first_record_of_any_status_on(
        self, store: SandboxStore, status: Status
    ) -> None:
        assert not store.has_sandboxes()
        add_all(store, make_sandbox(status=status))
        assert store.has_sandboxes()


class ConcurrentStoreContract(StoreContract):
    """The promises of a store to many callers at once."""

    def test_of_many_tracks_that_want_one_sandbox_one_gets_it(self, store: SandboxStore) -> None:
        free = add_many(store, 6)
        requests = [
            (candidate_of(each), make_claim(each, f"track-{number}", idempotency_key=each.sandbox_id))
            for each in free
            for number in range(8)
        ]
        answers = at_once([partial(settle, store, candidate, claim) for candidate, claim in requests])
        for sandbox in free:
            mine = [
                (claim, answer)
                for (candidate, claim), answer in zip(requests, answers, strict=True)
                if candidate.sandbox_id == sandbox.sandbox_id
            ]
            winners = [claim for claim, answer in mine if answer == Allocated()]
            assert len(winners) == 1
            held = held_under(sandbox, winners[0])
            assert store.get(sandbox.sandbox_id) == held
            assert [answer for _, answer in mine if answer != Allocated()] == [CandidateGone(held)] * 7
        assert sum(len(store.read_claims(f"track-{number}")) for number in range(8)) == len(free)

    def test_of_many_that_set_aside_for_one_reservation_only_as_many_do_as_it_lacks(self, store: SandboxStore) -> None:
        book(store, make_reservation(count=3))
        free = add_many(store, 8)

        def reserve(sandbox: Sandbox) -> Sandbox | None:
            change = set_aside(sandbox, reservation_id="res-1", order=7, by=BY, now=START)
            while True:
                try:
                    store.commit(change)
                except ReservationFull:
                    return None
                except StoreUnavailable:
                    continue
                return change.result

        reserved = [each for each in at_once([partial(reserve, each) for each in free]) if each is not None]
        assert len(reserved) == 3
        claims = [make_claim(each, f"track-{number}") for number, each in enumerate(reserved)]
        drawn = at_once(
            [partial(settle, store, candidate_of(each), claim) for each, claim in zip(reserved, claims, strict=True)]
        )
        assert drawn == [Allocated()] * 3
        reservation = store.read_reservation("res-1")
        assert reservation is not None
        assert (reservation.set_aside, reservation.drawn) == (0, 3)

    def test_of_many_bookings_by_one_version_one_is_written(self, store: SandboxStore) -> None:
        def write(number: int) -> bool:
            try:
                store.write_reservation(None, make_reservation(f"res-{number}"), version=0)
            except Conflict:
                return False
            return True

        assert at_once([partial(write, number) for number in range(8)]).count(True) == 1
        assert len(store.read_reservations().reservations) == 1

    def test_of_many_copies_of_a_request_one_gets_a_sandbox_and_the_others_see_its_claim(
        self, store: SandboxStore
    ) -> None:
        free = add_many(store, 12)
        answers = at_once([partial(settle, store, candidate_of(each), make_claim(each)) for each in free])
        claim = store.get_claim("track-1", "track-1")
        assert claim is not None
        assert answers.count(Allocated()) == 1
        assert answers.count(ClaimHeld(claim)) == len(free) - 1
        assert len(walk_ring(store, limit=100)) == len(free) - 1

    def test_of_many_that_end_an_allocation_one_does(self, store: SandboxStore) -> None:
        held, _ = take(store, add_new(store))

        def give_back(now: int) -> Sandbox | None:
            mine = end(held, reason=DeletionReason.MARKED, by=BY, now=now)
            try:
                store.commit(mine)
            except Conflict as conflict:
                return conflict.current
            return mine.result

        after = at_once([partial(give_back, now) for now in range(START, START + 12)])
        assert set(after) == {store.get(held.sandbox_id)}
        assert store.get_claim("track-1", "track-1") is None

    def test_of_many_that_extend_and_end_one_version_of_a_lease_one_does_and_the_claim_agrees(
        self, store: SandboxStore
    ) -> None:
        held, _ = take(store, add_new(store))

        def write(number: int) -> Sandbox | None:
            mine = extending(held, by_sec=number) if number % 3 else ending(held)
            try:
                store.commit(mine)
            except Conflict as conflict:
                return conflict.current
            return mine.result

        after = at_once([partial(write, number) for number in range(12)])
        record = store.get(held.sandbox_id)
        assert record is not None
        assert set(after) == {record}
        claim = store.get_claim("track-1", "track-1")
        assert (claim and claim.lease) == record.lease

    def test_of_many_that_add_one_account_one_does(self, store: SandboxStore) -> None:
        def add(number: int) -> bool:
            others = [make_sandbox(f"other-{number}")] if number % 2 else []
            try:
                store.commit(*map(add_of, [make_sandbox(f"sbx-{number}", external_id="uuid-0a"), *others]))
            except Conflict:
                return False
            return True

        added = at_once([partial(add, number) for number in range(12)])
        assert added.count(True) == 1
        pool = store.read_all()
        assert [each.sandbox_id for each in pool.sandboxes if each.external_id == "uuid-0a"] == [
            pool.accounts["uuid-0a"]
        ]

    def test_of_many_that_take_the_right_to_count_one_gets_it(self, store: SandboxStore) -> None:
        def take_right(counter: str) -> str | None:
            try:
                store.write_counts(CountRecord(turn=f"turn-{counter}", counter=counter), instead_of=None)
            except Conflict:
                return None
            return counter

        names = [f"counter-{number}" for number in range(8)]
        winners = {each for each in at_once([partial(take_right, name) for name in names]) if each}
        assert winners == {store.read_counts().counter}

    def test_of_many_updates_of_one_version_one_is_written(self, store: SandboxStore) -> None:
        sandbox = add_new(store)

        def rename(name: str) -> str | None:
            try:
                store.commit(change_of(sandbox, replace(sandbox, version=2, name=name)))
            except Conflict:
                return None
            return name

        names = at_once([partial(rename, f"lab-{number}") for number in range(12)])
        winners = [name for name in names if name]
        assert len(winners) == 1
        assert store.get(sandbox.sandbox_id) == replace(sandbox, version=2, name=winners[0])

    def test_allocates_that_many_processes_add_at_once_are_all_counted(self, store: SandboxStore) -> None:
        at_once([partial(store.add_allocates, NOON, {AllocateOutcome.SUCCESS: number}) for number in range(1, 13)])
        (found,) = read_all(store)
        assert found.allocates == {AllocateOutcome.SUCCESS: 78}

    def test_one_of_many_runs_tells_that_the_pool_is_low(self, store: SandboxStore) -> None:
        def tell(number: int) -> bool:
            try:
                store.write_level(PoolLevel(), PoolLevel(is_low=True, counted_at=number), level_fact(f"fact-{number}"))
            except Conflict:
                return False
            return True

        assert at_once([partial(tell, number) for number in range(1, 13)]).count(True) == 1
        assert len(store.read_feed(since=0, cursor=None, limit=100).facts) == 1


def at_once(calls: list[Callable[[], Answer]]) -> list[Answer]:
    """Make all calls at the same moment, each in its own thread; return their answers in order."""
    barrier = Barrier(len(calls))

    def start(call: Callable[[], Answer]) -> Answer:
        barrier.wait(30)
        return call()

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(start, calls))


def settle(store: SandboxStore, candidate: Candidate, claim: Claim, *, place_id: str | None = None) -> AllocateAnswer:
    """Allocate, again after each `Contended`."""
    for _ in range(1000):
        answer = store.allocate(candidate, claim, by=BY, token=fresh_token(), place_id=place_id)
        if not isinstance(answer, Contended):
            return answer
    pytest.fail("the records stayed contended")


def _by_id(each: Sandbox | Candidate) -> str:
    return each.sandbox_id
