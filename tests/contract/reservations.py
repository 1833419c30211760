"""What every store promises of reservations: their records, and the counters that follow each sandbox."""

from __future__ import annotations

from dataclasses import replace
from itertools import count
from typing import TYPE_CHECKING, Any

import pytest

from broker_common.core.errors import InvalidInput
from broker_common.core.facts import PoolFact, PoolFactKind
from broker_common.core.lease import candidate_of
from broker_common.core.pool import give_up_reserved, mark_stale, quarantine, set_aside, update_account
from broker_common.core.reservation import Reservation, ReservationStage
from broker_common.core.sandbox import ORDER_LIMIT, Sandbox, Status
from broker_common.core.store import (
    Allocated,
    CandidateGone,
    ClaimHeld,
    Conflict,
    Position,
    ReservationFull,
    ReservationShut,
    Watermark,
)
from tests.fakes import (
    BY,
    START,
    StoreWrapper,
    add_of,
    make_account,
    make_claim,
    make_reservation,
    make_sandbox,
    walk_ring,
)

if TYPE_CHECKING:
    from broker_common.core.facts import Change
    from broker_common.core.store import SandboxStore

_tokens = count()
END = START + 10**9
"""DynamoDB Local removes what is kept for 90 days after an end that is long ago."""


def book(store: SandboxStore, reservation_id: str = "res-1", **changes: Any) -> Reservation:
    """Book a reservation that is open now, and return it."""
    reservation = make_reservation(reservation_id, **changes)
    store.write_reservation(None, reservation, version=store.read_reservations().version)
    return reservation


def stored(store: SandboxStore, reservation_id: str = "res-1") -> Reservation:
    found = store.read_reservation(reservation_id)
    assert found is not None
    return found


def counters(store: SandboxStore, reservation_id: str = "res-1") -> tuple[int, int]:
    found = stored(store, reservation_id)
    return found.set_aside, found.drawn


def new(store: SandboxStore, sandbox_id: str = "sbx-1", **changes: Any) -> Sandbox:
    sandbox = make_sandbox(sandbox_id, **changes)
    store.commit(add_of(sandbox))
    return sandbox


def aside(sandbox: Sandbox, reservation_id: str = "res-1", *, now: int = START, order: int = 5) -> Change:
    return set_aside(sandbox, reservation_id=reservation_id, order=order, by=BY, now=now)


def reserve(store: SandboxStore, sandbox_id: str = "sbx-1", reservation_id: str = "res-1", **when: int) -> Sandbox:
    """Add a sandbox, set it aside, and return its record."""
    change = aside(new(store, sandbox_id), reservation_id, **when)
    store.commit(change)
    return change.result


def returning(sandbox: Sandbox, *, now: int = START + 5) -> Change:
    return give_up_reserved(sandbox, order=9, by=BY, now=now)


def draw(store: SandboxStore, sandbox: Sandbox, track_id: str = "track-1", *, at: int = START, **claim: Any) -> object:
    candidate = candidate_of(sandbox)
    wanted = make_claim(sandbox, track_id, allocated_at=at, **claim)
    return store.allocate(candidate, wanted, by=BY, token=f"draw-{next(_tokens)}")


def ended_fact(fact_id: str = "fact-1") -> PoolFact:
    return PoolFact(kind=PoolFactKind.RESERVATION_ENDED, fact_id=fact_id, at=START, principal="somebody")


def end_of(reservation: Reservation, **changes: Any) -> Reservation:
    return replace(reservation, **{"stage": ReservationStage.ENDED, "ended_at": END, **changes})


class ReservationContract:
    """The promises about reservations."""

    # -- their records

    def test_there_are_no_reservations_before_the_first(self, store: SandboxStore) -> None:
        assert (store.read_reservations().version, store.read_reservations().reservations) == (0, ())
        assert store.read_reservation("res-1") is None
        assert store.list_archived(limit=5, cursor=None).reservations == ()

    @pytest.mark.parametrize("is_full", [True, False])
    def test_every_field_of_a_reservation_survives_storage(self, store: SandboxStore, is_full: bool) -> None:
        reservation = make_reservation(track_names=(), created_by="ann")
        if is_full:
            reservation = make_reservation(
                prefix="lab-",
                track_names=("lab-é", 'a"b', "c"),
                customer="acme",
                lead_sec=1200,
                hold_sec=0,
                note="for Tuesday",
                version=7,
                request_hash="abc",
            )
        store.write_reservation(None, reservation, version=0)
        assert store.read_reservation("res-1") == reservation
        assert store.read_reservations().reservations == (reservation,)

    def test_each_write_of_a_reservation_needs_the_version_of_all_bookings(self, store: SandboxStore) -> None:
        first = book(store)
        assert store.read_reservations().version == 1
        with pytest.raises(Conflict):
            store.write_reservation(None, make_reservation("res-2"), version=0)
        longer = replace(first, ends_at=first.ends_at + 60, version=2)
        with pytest.raises(Conflict):
            store.write_reservation(first, longer, version=0)
        assert store.read_reservations().reservations == (first,)
        store.write_reservation(first, longer, version=1)
        assert (store.read_reservations().version, stored(store)) == (2, longer)
        assert store.read_booked() == store.read_reservations().reservations

    def test_a_booking_that_is_sent_again_succeeds_and_books_once(self, store: SandboxStore) -> None:
        reservation = book(store)
        store.write_reservation(None, reservation, version=0)
        assert store.read_reservations().reservations == (reservation,)
        assert store.read_reservations().version == 1

    def test_a_change_of_what_another_has_changed_is_a_conflict(self, store: SandboxStore) -> None:
        first = book(store)
        store.write_reservation(first, replace(first, note="a", version=2), version=1)
        with pytest.raises(Conflict):
            store.write_reservation(first, replace(first, note="b", version=2), version=2)
        assert stored(store).note == "a"

    def test_a_change_keeps_the_counters_and_clears_fields(self, store: SandboxStore) -> None:
        first = book(store, note="a", hold_sec=5, count=4, prefix="lab")
        reserve(store)
        after = replace(first, note=None, hold_sec=None, prefix="", count=2, name="Other", version=2)
        store.write_reservation(first, after, version=1)
        assert stored(store) == replace(after, set_aside=1)
        assert stored(store).lacking == 1

    def test_a_count_never_falls_below_what_is_set_aside_and_drawn(self, store: SandboxStore) -> None:
        first = book(store, count=3)
        assert draw(store, reserve(store, "sbx-1")) == Allocated()
        reserve(store, "sbx-2")
        with pytest.raises(Conflict):
            store.write_reservation(first, replace(first, count=1, version=2), version=1)
        store.write_reservation(first, replace(first, count=2, version=2), version=1)
        with pytest.raises(ReservationFull):
            reserve(store, "sbx-3")
        assert counters(store) == (1, 1)

    def test_a_larger_count_lets_more_be_set_aside(self, store: SandboxStore) -> None:
        first = book(store, count=1)
        reserve(store, "sbx-1")
        store.write_reservation(first, replace(first, count=2, version=2), version=1)
        reserve(store, "sbx-2")
        assert counters(store) == (2, 0)

    def test_an_end_is_written_with_its_fact_or_not_at_all(self, store: SandboxStore) -> None:
        first = book(store)
        with pytest.raises(Conflict):
            store.write_reservation(first, end_of(first), version=0, fact=ended_fact("never"))
        store.write_reservation(first, end_of(first), version=1, fact=ended_fact())
        assert store.read_feed(since=0, cursor=None, limit=9).facts == (ended_fact(),)
        assert stored(store).stage is ReservationStage.ENDED

    def test_its_start_is_told_once(self, store: SandboxStore) -> None:
        opened = replace(book(store), opened_at=START)
        told = replace(ended_fact(), kind=PoolFactKind.RESERVATION_OPEN)
        store.mark_opened(opened, told)
        with pytest.raises(Conflict):
            store.mark_opened(opened, replace(told, fact_id="fact-2", kind=PoolFactKind.RESERVATION_SHORT))
        assert store.read_feed(since=0, cursor=None, limit=9).facts == (told,)
        assert stored(store).opened_at == START

    def test_a_start_that_is_moved_is_told_again(self, store: SandboxStore) -> None:
        first = book(store)
        told = replace(ended_fact(), kind=PoolFactKind.RESERVATION_OPEN)
        store.mark_opened(replace(first, opened_at=START), told)
        moved = replace(first, starts_at=first.starts_at + 900, version=2)
        with pytest.raises(Conflict):
            store.write_reservation(first, moved, version=1)
        store.write_reservation(replace(first, opened_at=START), moved, version=1)
        assert stored(store).opened_at is None
        with pytest.raises(Conflict):
            store.mark_opened(replace(first, opened_at=START), replace(told, fact_id="fact-2"))
        store.mark_opened(replace(moved, opened_at=START + 900), replace(told, fact_id="fact-3"))
        assert stored(store).opened_at == START + 900

    def test_the_start_of_one_that_has_ended_is_not_told(self, store: SandboxStore) -> None:
        first = book(store)
        store.write_reservation(first, end_of(first), version=1)
        with pytest.raises(Conflict):
            store.mark_opened(replace(first, opened_at=START), ended_fact())

    # -- the archive

    def test_one_that_has_ended_is_archived_once_nothing_is_set_aside_for_it(self, store: SandboxStore) -> None:
        first = book(store)
        sandbox = reserve(store)
        with pytest.raises(Conflict):
            store.archive_reservation(stored(store))
        store.write_reservation(first, end_of(first), version=1)
        with pytest.raises(Conflict):
            store.archive_reservation(stored(store))
        store.commit(returning(sandbox))
        ended = stored(store)
        store.archive_reservation(ended)
        store.archive_reservation(ended)
        assert store.read_reservations().reservations == ()
        assert store.read_reservation("res-1") == ended
        assert store.list_archived(limit=5, cursor=None).reservations == (ended,)

    def test_the_archive_is_listed_by_pages_and_the_last_that_ended_is_first(self, store: SandboxStore) -> None:
        for number in range(5):
            reservation = book(store, f"res-{number}")
            version = store.read_reservations().version
            store.write_reservation(reservation, end_of(reservation, ended_at=END + number), version=version)
            store.archive_reservation(stored(store, f"res-{number}"))
        found: list[Reservation] = []
        cursor: str | None = None
        while True:
            page = store.list_archived(limit=2, cursor=cursor)
            assert len(page.reservations) <= 2
            found += page.reservations
            cursor = page.cursor
            if cursor is None:
                break
        assert [each.reservation_id for each in found] == [f"res-{number}" for number in (4, 3, 2, 1, 0)]

    def test_a_cursor_of_something_else_is_refused(self, store: SandboxStore) -> None:
        for bad in ("", "nonsense", "é", "W10="):
            with pytest.raises(InvalidInput, match="cursor"):
                store.list_archived(limit=2, cursor=bad)

    def test_a_reservation_is_no_sandbox(self, store: SandboxStore) -> None:
        first = book(store)
        store.write_reservation(first, end_of(first), version=1)
        store.archive_reservation(stored(store))
        book(store, "res-2")
        assert store.list_sandboxes(None, limit=5, cursor=None).sandboxes == ()
        assert store.read_all().sandboxes == ()
        assert not store.has_sandboxes()
        assert sum(store.count().values()) == 0

    def test_many_reservations_do_not_hide_the_last_sync_from_a_ping(self, store: SandboxStore) -> None:
        store.write_watermark(Watermark(START, 5))
        for number in range(12):
            book(store, f"res-{number}", note="x" * 100_000)
        assert store.ping().synced_at == START

    # -- setting aside

    def test_setting_aside_counts_and_moves_the_sandbox_to_the_reservation_s_ring(self, store: SandboxStore) -> None:
        book(store)
        sandbox = reserve(store)
        assert store.get("sbx-1") == sandbox
        assert (sandbox.status, sandbox.reservation_id) == (Status.RESERVED, "res-1")
        assert counters(store) == (1, 0)
        assert walk_ring(store, limit=5) == []
        assert walk_ring(store, limit=5, reservation_id="res-1") == [candidate_of(sandbox)]
        assert walk_ring(store, limit=5, reservation_id="res-2") == []

    def test_setting_aside_that_is_sent_again_is_counted_once(self, store: SandboxStore) -> None:
        book(store)
        change = aside(new(store))
        store.commit(change)
        store.commit(change)
        assert counters(store) == (1, 0)

    def test_no_more_is_set_aside_than_the_count(self, store: SandboxStore) -> None:
        book(store, count=2)
        reserve(store, "sbx-1")
        assert draw(store, reserve(store, "sbx-2")) == Allocated()
        sandbox = new(store, "sbx-3")
        with pytest.raises(ReservationFull):
            store.commit(aside(sandbox))
        assert store.get("sbx-3") == sandbox
        assert counters(store) == (1, 1)

    @pytest.mark.parametrize("now", [START - 301, START + 600 + 7200])
    def test_nothing_is_set_aside_before_or_after_its_time(self, store: SandboxStore, now: int) -> None:
        book(store)
        with pytest.raises(ReservationFull):
            reserve(store, now=now)
        assert counters(store) == (0, 0)

    @pytest.mark.parametrize("name", ["lab-1", "l" * 101, "l" * 128, "l" * 300], ids=len)
    def test_a_name_that_starts_with_the_prefix_is_set_aside_and_no_other(self, store: SandboxStore, name: str) -> None:
        for number, prefix in enumerate(["l", name[:100], name[:128]]):
            book(store, f"res-{number}", count=1, prefix=prefix)
            store.commit(aside(new(store, f"sbx-{number}", name=name), f"res-{number}"))
        for number, prefix in enumerate(["x", name[1:128] + "x", name[:99] + "x"]):
            book(store, f"not-{number}", count=1, prefix=prefix)
            with pytest.raises(ReservationFull):
                store.commit(aside(new(store, f"other-{number}", name=name), f"not-{number}"))

    def test_nothing_is_set_aside_by_the_prefix_that_a_reservation_had(self, store: SandboxStore) -> None:
        first = book(store, prefix="lab")
        reserve(store, "sbx-1")
        store.write_reservation(first, replace(first, prefix="other", version=2), version=1)
        with pytest.raises(ReservationFull):
            reserve(store, "sbx-2")
        assert counters(store) == (1, 0)

    def test_nothing_is_set_aside_after_the_hold(self, store: SandboxStore) -> None:
        book(store, hold_sec=60)
        reserve(store, "sbx-1", now=START + 659)
        with pytest.raises(ReservationFull):
            reserve(store, "sbx-2", now=START + 660)

    def test_nothing_is_set_aside_for_one_that_has_ended_or_does_not_exist(self, store: SandboxStore) -> None:
        first = book(store)
        store.write_reservation(first, end_of(first), version=1)
        with pytest.raises(ReservationFull):
            reserve(store, "sbx-1")
        with pytest.raises(ReservationFull):
            reserve(store, "sbx-2", "res-9")
        assert store.count()[Status.AVAILABLE] == 2

    def test_a_sandbox_that_has_changed_is_not_set_aside_and_nothing_is_counted(self, store: SandboxStore) -> None:
        book(store)
        sandbox = new(store)
        stale = mark_stale(sandbox, by=BY, now=START, last_seen=None)
        store.commit(stale)
        with pytest.raises(Conflict) as conflict:
            store.commit(aside(sandbox))
        assert not isinstance(conflict.value, ReservationFull)
        assert conflict.value.current == stale.result
        assert counters(store) == (0, 0)

    def test_a_new_sandbox_may_be_added_as_reserved(self, store: SandboxStore) -> None:
        book(store, count=1)
        first, second = (
            make_sandbox(name, status=Status.RESERVED, updated_at=START, version=START * 1000) for name in ("a", "b")
        )
        store.commit(add_of(first))
        with pytest.raises(ReservationFull):
            store.commit(add_of(second))
        assert (store.get("a"), store.get("b")) == (first, None)
        assert counters(store) == (1, 0)

    # -- what is returned, and what is lost

    def test_returning_counts_back_and_moves_the_sandbox_to_the_common_ring(self, store: SandboxStore) -> None:
        book(store, count=1)
        sandbox = reserve(store)
        change = returning(sandbox)
        store.commit(change)
        store.commit(change)
        assert counters(store) == (0, 0)
        assert walk_ring(store, limit=5) == [candidate_of(change.result)]
        assert walk_ring(store, limit=5, reservation_id="res-1") == []
        reserve(store, "sbx-2")
        assert counters(store) == (1, 0)

    @pytest.mark.parametrize("loss", ["stale", "quarantine"])
    def test_losing_counts_back(self, store: SandboxStore, loss: str) -> None:
        book(store)
        sandbox = reserve(store)
        lost = {
            "stale": mark_stale(sandbox, by=BY, now=START + 5, last_seen=None),
            "quarantine": quarantine(sandbox, reason="broken", by=BY, now=START + 5),
        }[loss]
        store.commit(lost)
        assert store.get("sbx-1") == lost.result
        assert counters(store) == (0, 0)

    def test_a_description_that_changes_leaves_the_counters(self, store: SandboxStore) -> None:
        book(store)
        sandbox = reserve(store)
        renamed = update_account(sandbox, make_account("sbx-1", name="other", external_id="new"), by=BY, now=START + 5)
        store.commit(renamed)
        assert store.get("sbx-1") == renamed.result
        assert counters(store) == (1, 0)

    def test_a_reservation_whose_record_is_gone_does_not_keep_its_sandbox(self, store: SandboxStore) -> None:
        book(store)
        sandbox = reserve(store)
        below: Any = store
        while isinstance(below, StoreWrapper):
            below = below.inner
        below.lose_reservation("res-1")
        store.commit(returning(sandbox))
        assert store.count()[Status.AVAILABLE] == 1

    # -- drawing

    def test_a_draw_writes_claim_sandbox_and_counters(self, store: SandboxStore) -> None:
        book(store)
        sandbox = reserve(store)
        assert draw(store, sandbox) == Allocated()
        held, claim = store.get("sbx-1"), store.get_claim("track-1", "track-1")
        assert held is not None
        assert held.lease is not None
        assert claim is not None
        assert held.lease.reservation_id == claim.lease.reservation_id == "res-1"
        assert (held.status, held.reservation_id) == (Status.ALLOCATED, None)
        assert counters(store) == (0, 1)

    def test_a_draw_that_is_sent_again_is_counted_once(self, store: SandboxStore) -> None:
        book(store)
        sandbox = reserve(store)
        candidate, claim = candidate_of(sandbox), make_claim(sandbox)
        token = f"same-{next(_tokens)}"  # the tables of other tests are on the same engine
        for _ in range(2):
            # Moto does not know tokens: there the second one finds its own claim.
            assert store.allocate(candidate, claim, by=BY, token=token) in {Allocated(), ClaimHeld(claim)}
        assert counters(store) == (0, 1)

    @pytest.mark.parametrize("at", [START - 1, START + 600 + 7200])
    def test_nothing_is_drawn_before_or_after_its_time(self, store: SandboxStore, at: int) -> None:
        book(store)
        sandbox = reserve(store)
        assert draw(store, sandbox, at=at) == ReservationShut()
        assert store.get("sbx-1") == sandbox
        assert store.get_claim("track-1", "track-1") is None
        assert counters(store) == (1, 0)

    def test_nothing_is_drawn_from_one_that_was_cancelled(self, store: SandboxStore) -> None:
        first = book(store)
        sandbox = reserve(store)
        store.write_reservation(first, end_of(first, stage=ReservationStage.CANCELLED), version=1)
        assert draw(store, sandbox) == ReservationShut()
        assert counters(store) == (1, 0)

    def test_a_reserved_sandbox_is_gone_to_who_takes_it_for_available(self, store: SandboxStore) -> None:
        book(store)
        sandbox = reserve(store)
        candidate = replace(candidate_of(sandbox), reservation_id=None)
        claim = make_claim(sandbox, reservation_id=None)
        assert store.allocate(candidate, claim, by=BY, token="taken") == CandidateGone(sandbox)
        assert store.get("sbx-1") == sandbox

    def test_a_reserved_sandbox_is_gone_to_who_draws_from_another_reservation(self, store: SandboxStore) -> None:
        book(store)
        book(store, "res-2")
        sandbox = reserve(store)
        candidate = replace(candidate_of(sandbox), reservation_id="res-2")
        claim = make_claim(sandbox, reservation_id="res-2")
        assert store.allocate(candidate, claim, by=BY, token="taken") == CandidateGone(sandbox)
        assert (counters(store, "res-1"), counters(store, "res-2")) == ((1, 0), (0, 0))

    # -- reading

    def test_a_ring_is_walked_from_anywhere_by_pages_of_any_length(self, store: SandboxStore) -> None:
        book(store, count=9)
        orders = [0, 1, 5, 5, ORDER_LIMIT // 2, ORDER_LIMIT - 1]
        reserved = {candidate_of(reserve(store, f"sbx-{number}", order=order)) for number, order in enumerate(orders)}
        for limit in (1, 2, 100):
            for start in (0, 3, store.positions // 2, store.positions - 1):
                assert set(walk_ring(store, limit=limit, start=start, reservation_id="res-1")) == reserved

    def test_a_ring_s_prefix_leaves_other_names_out(self, store: SandboxStore) -> None:
        book(store)
        reserve(store, "sbx-1")
        page = store.read_candidates(Position(0), limit=5, prefix="other", reservation_id="res-1")
        assert page.candidates == ()

    def test_reserved_sandboxes_are_counted_listed_and_read(self, store: SandboxStore) -> None:
        book(store)
        book(store, "res-2")
        reserved = [reserve(store, "sbx-1"), reserve(store, "sbx-2", "res-2")]
        free = new(store, "sbx-3")
        assert store.count()[Status.RESERVED] == 2
        assert {each.sandbox_id: each for each in store.read_all().sandboxes} == {
            each.sandbox_id: each for each in [*reserved, free]
        }
        for status, expected in ((Status.RESERVED, reserved), (None, [*reserved, free])):
            page = store.list_sandboxes(status, limit=9, cursor=None)
            found = [*page.sandboxes]
            while page.cursor is not None:
                page = store.list_sandboxes(status, limit=9, cursor=page.cursor)
                found += page.sandboxes
            assert sorted(found, key=lambda each: each.sandbox_id) == expected

    def test_a_listing_goes_on_after_a_reservation_is_over(self, store: SandboxStore) -> None:
        book(store)
        book(store, "res-2")
        reserve(store, "sbx-1")
        second = reserve(store, "sbx-2")
        third = reserve(store, "sbx-3", "res-2")
        page = store.list_sandboxes(Status.RESERVED, limit=1, cursor=None)
        store.commit(returning(second))
        rest = store.list_sandboxes(Status.RESERVED, limit=9, cursor=page.cursor)
        assert third in rest.sandboxes
