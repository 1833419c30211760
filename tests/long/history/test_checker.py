"""The checker on small histories written by hand: it finds each broken promise, and nothing in correct ones."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import pytest

from broker_common.core.facts import Fact, FactKind
from broker_common.core.sandbox import Status
from tests.long.history.checker import Promise, check
from tests.long.history.record import (
    Account,
    Call,
    ClaimRow,
    Delete,
    Fault,
    History,
    JobRun,
    Kind,
    PlaceRow,
    ReservationRow,
    Row,
    Scan,
    Terms,
)
from tests.long.history.report import describe, summarize

if TYPE_CHECKING:
    from pathlib import Path

T = 1_750_000_000
LAB, BUFFER = 3600, 60


def external_id(sandbox_id: str) -> str:
    return f"identity/accounts/{sandbox_id}"


def allocated(track_id: str, sandbox_id: str, lease_id: str, at: float, **changes: Any) -> Call:
    """Return an allocate from `at` to `at + 0.1`."""
    body = {
        "sandbox_id": sandbox_id,
        "name": f"lab-{sandbox_id}",
        "external_id": external_id(sandbox_id),
        "lease_id": lease_id,
        "allocated_at": T + int(at),
        "expires_at": T + int(at) + LAB,
    }
    call = Call(
        kind=Kind.ALLOCATE,
        track_id=track_id,
        key=track_id,
        began=T + at,
        ended=T + at + 0.1,
        status=201,
        body=body,
        patience=20,
    )
    return replace(call, **changes)


def refused(track_id: str, at: float, **changes: Any) -> Call:
    return allocated(track_id, "", "", at, **{"status": 409, "body": {"error": {}}} | changes)


def marked(track_id: str, sandbox_id: str, lease: str, at: float, **changes: Any) -> Call:
    call = Call(
        kind=Kind.MARK,
        track_id=track_id,
        sandbox_id=sandbox_id,
        began=T + at,
        ended=T + at + 0.1,
        status=200,
        body={"lease_id": lease, "status": "pending_deletion"},
        patience=20,
    )
    return replace(call, **changes)


def read(
    track_id: str, sandbox_id: str, lease_id: str, at: float, *, holder: str | None = None, **changes: Any
) -> Call:
    call = allocated(track_id, sandbox_id, lease_id, 0)
    body = {**call.body, "status": "allocated", "allocated_to_track": holder or track_id}
    of_read = replace(call, kind=Kind.READ, key="", sandbox_id=sandbox_id, body=body, status=200)
    return replace(of_read, **{"began": T + at, "ended": T + at + 0.1} | changes)


def wiped(sandbox_id: str, at: float, **changes: Any) -> Delete:
    delete = Delete(external_id=external_id(sandbox_id), began=T + at, ended=T + at + 0.2, answer=200, applied=True)
    return replace(delete, **changes)


def account_of(sandbox_id: str) -> Account:
    return Account(sandbox_id=sandbox_id, external_id=external_id(sandbox_id))


def free(sandbox_id: str, version: int = 1, **changes: Any) -> Row:
    row = Row(
        sandbox_id=sandbox_id,
        external_id=external_id(sandbox_id),
        name=f"lab-{sandbox_id}",
        status="available",
        version=version,
    )
    return replace(row, **changes)


def held(track_id: str, sandbox_id: str, lease_id: str, at: float, version: int = 2) -> tuple[Row, ClaimRow]:
    """Return a record and its claim after `allocated` with the same arguments."""
    row = free(
        sandbox_id,
        version,
        status="allocated",
        dirty=True,
        lease_id=lease_id,
        track_id=track_id,
        key=track_id,
        allocated_at=T + int(at),
        expires_at=T + int(at) + LAB,
    )
    return row, ClaimRow(track_id=track_id, key=track_id, lease_id=lease_id, sandbox_id=sandbox_id)


def place(track_id: str, number: int, back_by: float, *, prefix: str = "") -> PlaceRow:
    return PlaceRow(place_id=f"{number:08}", track_id=track_id, key=track_id, prefix=prefix, back_by=T + int(back_by))


def told_to_wait(track_id: str, at: float, joined_at: float = 0, kept_until: float = 600, **changes: Any) -> Call:
    body = {"state": "waiting", "joined_at": T + int(joined_at), "place_kept_until": T + int(kept_until)}
    return refused(track_id, at, **{"status": 202, "body": body, "wait_sec": 0} | changes)


def scan(at: float, *records: Row | ClaimRow | PlaceRow | ReservationRow) -> Scan:
    return Scan(
        began=T + at,
        ended=T + at + 0.01,
        rows=tuple(each for each in records if isinstance(each, Row)),
        claims=tuple(each for each in records if isinstance(each, ClaimRow)),
        places=tuple(each for each in records if isinstance(each, PlaceRow)),
        reservations=tuple(each for each in records if isinstance(each, ReservationRow)),
    )


def history(*seen: Call | Scan | Delete | Fault | Account | Fact | JobRun, drained: bool = False) -> History:
    """Return a history; with facts, these are complete."""
    feed = tuple(each for each in seen if isinstance(each, Fact))
    return History(
        terms=Terms(lab_sec=LAB, max_lab_sec=2 * LAB, buffer_sec=BUFFER, seed=0, drained=drained, is_told=bool(feed)),
        calls=tuple(each for each in seen if isinstance(each, Call)),
        scans=tuple(each for each in seen if isinstance(each, Scan)),
        deletes=tuple(each for each in seen if isinstance(each, Delete)),
        faults=tuple(each for each in seen if isinstance(each, Fault)),
        accounts=tuple(each for each in seen if isinstance(each, Account)),
        reserve_runs=tuple(each for each in seen if isinstance(each, JobRun)),
        feed=feed,
        pasts=tuple(each for number, each in reversed([*enumerate(feed)]) if each not in feed[:number]),
    )


def broken(*seen: Call | Scan | Delete | Fault | Account | Fact | JobRun, drained: bool = False) -> set[Promise]:
    return check(history(*seen, drained=drained)).broken


ANN_ALLOCATES, BOB_ALLOCATES = allocated("ann", "s1", "l1", 0), allocated("bob", "s1", "l2", 5)
ANN_MARKS, S1_WIPED = marked("ann", "s1", "l1", 2), wiped("s1", 3)


# -- 1: one holder


def test_two_tracks_that_hold_one_sandbox_at_once_are_seen() -> None:
    assert Promise.ONE_HOLDER in broken(ANN_ALLOCATES, BOB_ALLOCATES)


def test_a_track_may_follow_another_once_that_gave_back_and_a_wipe_was_confirmed() -> None:
    assert not broken(ANN_ALLOCATES, ANN_MARKS, S1_WIPED, BOB_ALLOCATES)


def test_a_mark_without_an_answer_may_have_ended_a_lease_at_any_time_later() -> None:
    lost = marked("ann", "s1", "l1", 2, status=None, body={})
    assert not broken(
        ANN_ALLOCATES,
        lost,
        Fault(name="kill", began=T, ended=T + 9, refuses_calls=True),
        S1_WIPED,
        BOB_ALLOCATES,
    )


def test_a_mark_that_was_refused_has_not_ended_a_lease() -> None:
    wrong = marked("ann", "s1", "l1", 2, status=409, body={"error": {}}, lease_id="another")
    assert Promise.ONE_HOLDER in broken(ANN_ALLOCATES, wrong, S1_WIPED, BOB_ALLOCATES)


def test_a_lease_seen_again_after_a_mark_was_sent_had_not_ended_before() -> None:
    lost = marked("ann", "s1", "l1", 2, status=503, body={"error": {}})
    fault = Fault(name="store", began=T, ended=T + 9, refuses_calls=True)
    again = allocated("ann", "s1", "l1", 8, status=200, replayed=True, body=ANN_ALLOCATES.body)
    seen = (ANN_ALLOCATES, lost, fault, S1_WIPED, BOB_ALLOCATES)
    assert not broken(*seen)
    assert Promise.ONE_HOLDER in broken(*seen, again)


def test_a_lease_lasts_until_its_expiry_and_buffer_and_may_end_then() -> None:
    over = float(LAB + BUFFER)
    assert Promise.ONE_HOLDER in broken(ANN_ALLOCATES, wiped("s1", over - 9), allocated("bob", "s1", "l2", over - 5))
    assert not broken(ANN_ALLOCATES, wiped("s1", over), allocated("bob", "s1", "l2", over + 1))


def test_a_sandbox_shown_as_held_to_another_track_is_seen() -> None:
    assert Promise.ONE_HOLDER in broken(read("bob", "s1", "l1", 5, holder="ann"))


def test_a_lease_that_two_tracks_were_given_is_seen() -> None:
    assert Promise.ONE_HOLDER in broken(ANN_ALLOCATES, allocated("bob", "s1", "l1", 0))


# -- 2: one sandbox for each (track, key)


def test_two_sandboxes_under_one_key_are_seen() -> None:
    first, second = ANN_ALLOCATES, allocated("ann", "s2", "l2", 1)
    assert Promise.ONE_SANDBOX in broken(first, second)
    assert Promise.ONE_SANDBOX not in broken(first, replace(second, key="other"))


def test_a_key_is_free_again_once_its_allocation_ended() -> None:
    assert not broken(ANN_ALLOCATES, ANN_MARKS, allocated("ann", "s2", "l2", 2.05))


# -- 3: honest refusals


def test_a_refusal_while_a_matching_sandbox_was_available_all_the_time_is_seen() -> None:
    scans = (scan(0, free("s1")), scan(9, free("s1")))
    assert Promise.HONEST_REFUSAL in broken(*scans, refused("ann", 5))
    assert Promise.HONEST_REFUSAL in broken(*scans, refused("ann", 5, prefix="lab-"))
    assert not broken(*scans, refused("ann", 5, prefix="gpu-"))


def test_a_refusal_is_honest_if_the_sandbox_was_free_for_less_than_a_second_before_or_changed() -> None:
    assert not broken(scan(4.5, free("s1")), scan(9, free("s1")), refused("ann", 5))
    assert not broken(scan(0, free("s1")), scan(9, free("s1", version=3)), refused("ann", 5))
    assert not broken(scan(0, free("s1")), scan(5.05, free("s1")), refused("ann", 5))


def test_a_refusal_of_a_track_that_holds_one_is_seen() -> None:
    first, refusal = ANN_ALLOCATES, refused("ann", 5)
    assert Promise.HONEST_REFUSAL in broken(first, refusal)
    assert not broken(first, replace(refusal, key="other"))
    assert not broken(first, refusal, marked("ann", "s1", "l1", 5.05))


# -- 4: claims and sandboxes agree


def test_a_lease_that_was_ended_by_nobody_who_may_is_seen() -> None:
    pending = free("s1", 3, status="pending_deletion", dirty=True)
    assert Promise.CLAIMS_AGREE in broken(ANN_ALLOCATES, scan(5, pending))
    assert not broken(ANN_ALLOCATES, marked("ann", "s1", "l1", 4.9), scan(5, pending))


def test_a_lease_without_its_claim_is_seen() -> None:
    row, claim = held("ann", "s1", "l1", 0)
    assert not broken(ANN_ALLOCATES, scan(5, row, claim))
    assert Promise.CLAIMS_AGREE in broken(ANN_ALLOCATES, scan(5, row), scan(6, row, claim))


def test_a_claim_that_outlives_its_allocation_is_seen_in_the_midst_of_a_run() -> None:
    row, claim = held("ann", "s1", "l1", 0)
    pending = free("s1", 3, status="pending_deletion", dirty=True)
    seen = (marked("ann", "s1", "l1", 4), scan(3, row, claim), scan(5, pending, claim))
    assert Promise.CLAIMS_AGREE in broken(*seen, scan(6, pending, claim), scan(7, pending))
    # Within one scan the claim may have been read before the end, and the record after it.
    assert not broken(*seen, scan(6, pending))


def test_an_allocation_without_a_claim_is_seen_in_the_midst_of_a_run() -> None:
    row, claim = held("ann", "s1", "l1", 0)
    assert Promise.CLAIMS_AGREE in broken(scan(3, row), scan(5, row), scan(7, row, claim))
    assert not broken(scan(3, row), scan(7, row, claim))


def test_a_holder_that_is_answered_as_if_it_were_none_is_seen() -> None:
    forbidden: dict[str, Any] = {"status": 403, "body": {"error": {}}}
    assert Promise.CLAIMS_AGREE in broken(ANN_ALLOCATES, read("ann", "s1", "l1", 5, **forbidden))
    assert Promise.CLAIMS_AGREE in broken(ANN_ALLOCATES, marked("ann", "s1", "l1", 5, **forbidden))
    empty = Call(kind=Kind.LIST, track_id="ann", began=T + 5, ended=T + 5.1, status=200, body={"sandboxes": []})
    assert Promise.CLAIMS_AGREE in broken(ANN_ALLOCATES, empty)
    assert not broken(ANN_ALLOCATES, read("ann", "s1", "l1", 5), read("bob", "s1", "l1", 5, **forbidden))


def test_a_lease_shown_as_held_after_its_mark_was_answered_is_seen() -> None:
    replay = allocated("ann", "s1", "l1", 5, status=200, replayed=True, body=ANN_ALLOCATES.body)
    assert Promise.CLAIMS_AGREE in broken(ANN_ALLOCATES, ANN_MARKS, replay)
    assert not broken(ANN_ALLOCATES, marked("ann", "s1", "l1", 5.05), replay)


def test_a_claim_that_is_left_over_at_rest_is_seen() -> None:
    row, claim = held("ann", "s1", "l1", 0)
    assert Promise.CLAIMS_AGREE in broken(scan(9, free("s1"), claim))
    assert Promise.CLAIMS_AGREE in broken(scan(9, row))
    assert not broken(scan(9, row, claim))
    assert Promise.CLAIMS_AGREE in broken(scan(9, row, claim), drained=True)


# -- 5: wiped in the end


def test_a_sandbox_given_out_again_without_a_confirmed_wipe_is_seen() -> None:
    assert Promise.WIPED_IN_THE_END in broken(ANN_ALLOCATES, ANN_MARKS, BOB_ALLOCATES)
    assert Promise.WIPED_IN_THE_END in broken(ANN_ALLOCATES, ANN_MARKS, BOB_ALLOCATES, wiped("s1", 3, answer=None))
    assert Promise.WIPED_IN_THE_END in broken(
        ANN_ALLOCATES, ANN_MARKS, BOB_ALLOCATES, wiped("s1", 3, answer=500, applied=False)
    )
    assert Promise.WIPED_IN_THE_END in broken(ANN_ALLOCATES, ANN_MARKS, BOB_ALLOCATES, wiped("s1", 6))
    assert Promise.WIPED_IN_THE_END in broken(ANN_ALLOCATES, ANN_MARKS, BOB_ALLOCATES, wiped("s2", 3))


def test_a_dirty_sandbox_that_is_available_is_seen() -> None:
    assert Promise.WIPED_IN_THE_END in broken(scan(5, free("s1", dirty=True)))
    assert Promise.WIPED_IN_THE_END in broken(ANN_ALLOCATES, ANN_MARKS, scan(5, free("s1", 4)))
    assert not broken(ANN_ALLOCATES, ANN_MARKS, S1_WIPED, scan(5, free("s1", 4)))


def test_an_accepted_mark_that_is_not_carried_out_is_seen() -> None:
    account = account_of("s1")
    waiting = free("s1", 3, status="pending_deletion", dirty=True)
    given_up = free("s1", 3, status="deletion_failed", dirty=True)
    assert Promise.WIPED_IN_THE_END in broken(ANN_ALLOCATES, ANN_MARKS, account, scan(99, waiting), drained=True)
    assert not broken(ANN_ALLOCATES, ANN_MARKS, account, scan(99, given_up), drained=True)
    assert not broken(ANN_ALLOCATES, ANN_MARKS, account, S1_WIPED, scan(99, free("s1", 4)), drained=True)


def test_a_lost_sandbox_is_seen() -> None:
    account = account_of("s1")
    assert Promise.WIPED_IN_THE_END in broken(account, scan(9), drained=True)
    assert Promise.WIPED_IN_THE_END in broken(scan(9, free("s1")), drained=True)
    assert Promise.WIPED_IN_THE_END in broken(account, scan(9, free("s1", status="stale")), drained=True)
    assert not broken(account, scan(9, free("s1")), drained=True)


# -- 6: no delete in use


def test_a_delete_that_begins_while_its_sandbox_is_held_is_seen() -> None:
    assert Promise.NO_DELETE_IN_USE in broken(ANN_ALLOCATES, wiped("s1", 5))
    assert not broken(ANN_ALLOCATES, wiped("s1", 5), marked("ann", "s1", "l1", 4.9))
    assert not broken(ANN_ALLOCATES, wiped("s2", 5))


def test_a_delete_that_begins_while_its_sandbox_is_available_is_seen() -> None:
    assert Promise.NO_DELETE_IN_USE in broken(scan(0, free("s1")), scan(9, free("s1")), wiped("s1", 5))
    assert not broken(scan(0, free("s1")), scan(9, free("s1", version=5)), wiped("s1", 5))


# -- 7: the store alone


@pytest.mark.parametrize("status", [400, 401, 404, 429, 500, 502])
def test_an_answer_that_no_track_should_get_is_seen(status: int) -> None:
    assert broken(refused("ann", 5, status=status)) == {Promise.STORE_ALONE}


@pytest.mark.parametrize("status", [503, None])
def test_only_a_fault_of_store_or_api_at_that_time_explains_a_call_that_was_not_served(status: int | None) -> None:
    unserved = refused("ann", 5, status=status)
    of_store = Fault(name="store", began=T + 3, ended=T + 4, refuses_calls=True)
    assert broken(unserved) == {Promise.STORE_ALONE}
    assert broken(unserved, replace(of_store, refuses_calls=False)) == {Promise.STORE_ALONE}
    assert broken(unserved, replace(of_store, began=T - 90, ended=T - 80)) == {Promise.STORE_ALONE}
    assert not broken(unserved, of_store)


def test_a_caller_that_did_not_wait_is_no_witness() -> None:
    assert not broken(refused("ann", 5, status=None, patience=0.03))


def test_a_replay_says_so_and_nothing_else_does() -> None:
    assert broken(allocated("ann", "s1", "l1", 0, status=200)) == {Promise.STORE_ALONE}
    assert broken(allocated("ann", "s1", "l1", 0, replayed=True)) == {Promise.STORE_ALONE}


# -- 8: turn


def while_waiting(*places: PlaceRow, since: float = 0, until: float = 12, free_from: float = 2) -> list[Scan]:
    """Return a scan of every second, with these places, and the sandbox s1 free from a time on until it is taken at 10."""
    stale = free("s1", status="stale")
    seen = []
    for at in range(int(since), int(until)):
        row = stale if at < free_from else free("s1", 2)
        taken = held("new", "s1", "l1", 10, version=3) if at > 10 else (row,)
        seen.append(scan(at, *taken, *places))
    return seen


TAKES = allocated("new", "s1", "l1", 10.2)


def test_a_sandbox_that_goes_to_a_newcomer_while_it_is_due_to_a_place_is_seen() -> None:
    assert broken(*while_waiting(place("ann", 1, 60)), TAKES) == {Promise.TURN}


def test_a_sandbox_that_goes_to_a_place_further_behind_is_seen() -> None:
    places = place("ann", 1, 60), place("new", 2, 60)
    scans = while_waiting(*places)
    scans[-1] = scan(11, *held("new", "s1", "l1", 10, version=3), places[0])
    assert broken(*scans, TAKES) == {Promise.TURN}


def test_the_first_place_may_take_it() -> None:
    places = place("new", 1, 60), place("ann", 2, 60)
    scans = while_waiting(*places)
    scans[-1] = scan(11, *held("new", "s1", "l1", 10, version=3), places[1])
    assert not broken(*scans, TAKES)


@pytest.mark.parametrize(
    "ahead",
    [
        place("late", 1, 4),
        place("other", 1, 60, prefix="gpu-"),
    ],
)
def test_a_newcomer_may_take_what_no_place_of_a_track_that_is_back_wants(ahead: PlaceRow) -> None:
    assert not broken(*while_waiting(ahead), TAKES)


def test_a_newcomer_may_take_a_sandbox_if_another_one_was_free_for_the_place() -> None:
    scans = [replace(each, rows=(*each.rows, free("s2"))) for each in while_waiting(place("ann", 1, 60))]
    assert not broken(*scans, TAKES)


def test_a_place_that_was_new_within_the_window_may_be_overtaken() -> None:
    scans = [each if each.began >= T + 8 else replace(each, places=()) for each in while_waiting(place("ann", 1, 60))]
    assert not broken(*scans, TAKES)


def test_a_newcomer_that_is_refused_for_a_track_that_is_gone_is_seen() -> None:
    scans = while_waiting(place("gone", 1, 0), until=11)
    assert broken(*scans, refused("new", 9.5)) == {Promise.TURN, Promise.HONEST_REFUSAL}
    assert broken(*scans, told_to_wait("new", 9.5)) == {Promise.TURN, Promise.HONEST_REFUSAL}


@pytest.mark.parametrize("back_by", [4, 60])
def test_a_newcomer_may_be_refused_for_a_track_that_is_not_surely_gone(back_by: float) -> None:
    scans = while_waiting(place("ann", 1, back_by), until=11)
    assert not broken(*scans, refused("new", 9))


def test_a_newcomer_may_be_refused_for_a_track_that_is_just_joining() -> None:
    joins = told_to_wait("ann", 7.6, joined_at=8, ended=T + 8.5)
    assert not broken(*while_waiting(until=11, free_from=7), refused("new", 9), joins)
    assert broken(*while_waiting(until=11, free_from=7), refused("new", 9)) == {Promise.HONEST_REFUSAL}


def test_a_track_that_comes_back_in_time_and_is_told_another_place_is_seen() -> None:
    assert broken(told_to_wait("ann", 0), told_to_wait("ann", 3, joined_at=3)) == {Promise.TURN}


def test_a_track_that_comes_back_too_late_or_gave_up_may_have_another_place() -> None:
    first, again = told_to_wait("ann", 0, kept_until=600), told_to_wait("ann", 700, joined_at=700)
    assert not broken(first, again)
    gives_up = replace(first, kind=Kind.GIVE_UP, status=204, body={}, began=T + 1, ended=T + 1.1)
    assert not broken(first, gives_up, told_to_wait("ann", 3, joined_at=3))
    copy = replace(gives_up, began=T + 2.9, ended=T + 3.05)
    assert not broken(first, copy, told_to_wait("ann", 3, joined_at=3))


def test_a_track_with_a_place_and_a_claim_or_with_two_places_is_seen() -> None:
    records = held("ann", "s1", "l1", 0)
    claimed = [scan(at, *records) for at in (1, 2, 3)]
    claimed[1] = scan(2, *records, place("ann", 1, 5))
    assert broken(ANN_ALLOCATES, *claimed) == {Promise.CLAIMS_AGREE}
    assert broken(scan(1, place("ann", 1, 5), place("ann", 2, 5))) == {Promise.CLAIMS_AGREE}


def test_a_track_that_waits_although_it_holds_a_sandbox_is_seen() -> None:
    assert Promise.HONEST_REFUSAL in broken(ANN_ALLOCATES, told_to_wait("ann", 1))


# -- 10: facts


def fact(kind: FactKind, version: int, at: int, before: Status | None, after: Status | None, **changes: Any) -> Fact:
    told = Fact(
        kind=kind, sandbox_id="s1", version=version, at=T + at, principal="p", status_before=before, status=after
    )
    return replace(told, **changes)


OF_LEASE: dict[str, Any] = {"lease_id": "l1", "track_id": "ann"}
ADDED = fact(FactKind.ADDED, 1, 0, None, Status.AVAILABLE)
ALLOCATED = fact(
    FactKind.ALLOCATED,
    2,
    2,
    Status.AVAILABLE,
    Status.ALLOCATED,
    **OF_LEASE,
    details={"expires_at": T + 2 + LAB},
)
MARKED = fact(FactKind.MARKED, 3, 4, Status.ALLOCATED, Status.PENDING_DELETION, **OF_LEASE)
WIPED = fact(FactKind.WIPED, 4, 5, Status.PENDING_DELETION, Status.AVAILABLE, **OF_LEASE)
LIFE = (ADDED, ALLOCATED, MARKED, WIPED)
ASKED = (refused("bob", 0), allocated("ann", "s1", "l1", 2.5))
GIVEN_BACK = marked("ann", "s1", "l1", 4.5)
AFTERWARDS = (wiped("s1", 5.5), scan(9, free("s1", 4, last_lease_id="l1")))
LIVED = (*ASKED, GIVEN_BACK, *AFTERWARDS)


def test_a_life_that_is_told_in_full_keeps_the_promise_also_if_the_feed_repeats_itself() -> None:
    assert not broken(*LIVED, *LIFE)
    assert not broken(*LIVED, *LIFE, *LIFE[2:])
    assert check(history(*LIVED, *LIFE)).examined[Promise.FACTS]["facts"] == len(LIFE)


@pytest.mark.parametrize("lost", LIFE, ids=lambda each: each.kind)
def test_a_lost_fact_is_seen(lost: Fact) -> None:
    assert broken(*LIVED, *(each for each in LIFE if each is not lost)) == {Promise.FACTS}


def test_facts_of_one_sandbox_in_another_order_are_seen() -> None:
    assert broken(*LIVED, ADDED, MARKED, ALLOCATED, WIPED) == {Promise.FACTS}


def test_a_fact_of_a_change_that_did_not_hold_is_seen() -> None:
    again = fact(FactKind.EXPIRED, 4, 5, Status.ALLOCATED, Status.PENDING_DELETION, **OF_LEASE)
    assert broken(*LIVED, *LIFE[:3], again, replace(WIPED, version=5)) == {Promise.FACTS, Promise.LATEST_END}


def test_a_fact_that_is_told_in_two_ways_is_seen() -> None:
    assert broken(*LIVED, *LIFE, replace(WIPED, principal="q")) == {Promise.FACTS}


def test_a_record_that_a_scan_shows_elsewhere_than_its_facts_say_is_seen() -> None:
    row, claim = held("ann", "s1", "l1", 2.5)
    assert not broken(*ASKED, scan(3, row, claim), GIVEN_BACK, *AFTERWARDS, *LIFE)
    stale = scan(1, free("s1", 1, status="stale"))
    assert broken(*ASKED, stale, GIVEN_BACK, *AFTERWARDS, *LIFE) == {Promise.FACTS}


def test_a_record_without_facts_and_facts_without_a_record_are_seen() -> None:
    alone = scan(9, free("s1", 4, last_lease_id="l1"), free("s2"))
    assert broken(*LIVED, alone, *LIFE) == {Promise.FACTS}
    assert broken(*LIVED, scan(9.5), *LIFE) == {Promise.FACTS}
    removed = fact(FactKind.STALE, 5, 6, Status.AVAILABLE, Status.STALE, **OF_LEASE)
    gone = replace(removed, kind=FactKind.REMOVED, version=6, status_before=Status.STALE, status=None)
    assert not broken(*LIVED, scan(9.5), *LIFE, removed, gone)


@pytest.mark.parametrize("changes", [{"track_id": "eve"}, {"details": {"expires_at": T}}, {"lease_id": "l2"}])
def test_an_allocation_that_is_told_as_another_one_is_seen(changes: dict[str, Any]) -> None:
    assert broken(*LIVED, ADDED, replace(ALLOCATED, **changes), MARKED, WIPED) == {Promise.FACTS}


def test_an_allocation_that_nobody_asked_for_is_seen() -> None:
    assert broken(ASKED[0], GIVEN_BACK, *AFTERWARDS, *LIFE) == {Promise.FACTS}
    unanswered = replace(ASKED[1], status=None, body={}, patience=0)
    assert not broken(ASKED[0], unanswered, GIVEN_BACK, *AFTERWARDS, *LIFE)
    of_another = replace(ASKED[1], body={**ASKED[1].body, "lease_id": "l2", "sandbox_id": "s2"})
    assert Promise.FACTS in broken(ASKED[0], of_another, GIVEN_BACK, *AFTERWARDS, *LIFE)
    later = replace(unanswered, began=T + 20, ended=T + 21)
    assert broken(ASKED[0], later, GIVEN_BACK, *AFTERWARDS, *LIFE) == {Promise.FACTS}


def test_an_ending_that_nobody_asked_for_is_seen() -> None:
    assert Promise.FACTS in broken(*ASKED, *AFTERWARDS, *LIFE)
    released = replace(MARKED, kind=FactKind.RELEASED)
    assert broken(*LIVED, ADDED, ALLOCATED, released, WIPED) == {Promise.FACTS}


def test_an_expiry_before_its_time_is_seen() -> None:
    expired = replace(MARKED, kind=FactKind.EXPIRED)
    unanswered = replace(GIVEN_BACK, status=None, body={}, patience=0)
    told = (ADDED, ALLOCATED, expired, WIPED)
    assert broken(*ASKED, unanswered, *AFTERWARDS, *told) == {Promise.FACTS, Promise.LATEST_END}


def test_a_mark_that_was_answered_first_is_told_as_a_mark_unless_another_end_may_have_come_before() -> None:
    released = replace(MARKED, kind=FactKind.RELEASED)
    release = Call(kind=Kind.RELEASE, sandbox_id="s1", lease_id="l1", began=T + 4, ended=T + 4.1, status=None)
    told = (ADDED, ALLOCATED, released, WIPED)
    assert not broken(*LIVED, release, *told)
    too_late = replace(release, began=T + 4.7, ended=T + 4.8)
    assert broken(*LIVED, too_late, *told) == {Promise.FACTS}


def test_a_history_that_differs_from_the_feed_is_seen() -> None:
    told = history(*LIVED, *LIFE)
    assert check(replace(told, pasts=told.pasts[1:])).broken == {Promise.FACTS}
    assert check(replace(told, pasts=told.pasts[::-1])).broken == {Promise.FACTS}


def test_of_a_run_whose_facts_were_not_read_the_promise_says_nothing() -> None:
    verdict = check(history(*LIVED))
    assert not verdict.violations
    assert not sum(verdict.examined[Promise.FACTS].values())
    assert (
        "10. each change has exactly one fact, and none is lost or made up: kept\n     looked at nothing"
        in describe(verdict)
    )


# -- and what is made of it


def test_a_verdict_shows_what_breaks_a_promise_and_what_was_looked_at() -> None:
    verdict = check(history(ANN_ALLOCATES, BOB_ALLOCATES))
    text = describe(verdict)
    assert "1. a sandbox has at most one holder: BROKEN once" in text
    assert "sandbox s1 had two holders at once" in text
    assert "lease_id='l2'" in text
    assert "6. the provider is never asked to delete what is available or allocated: kept" in text


def test_a_history_is_read_from_its_file_as_it_was_written(tmp_path: Path) -> None:
    row, claim = held("ann", "s1", "l1", 0)
    kept = history(
        ANN_ALLOCATES,
        marked("ann", "s1", "l1", 2, status=None, body={}),
        scan(1, row, claim),
        S1_WIPED,
        Fault(name="kill", began=T, ended=T + 1, refuses_calls=True),
        account_of("s1"),
        *LIFE,
    )
    kept.save(tmp_path / "history.jsonl")
    assert History.load(tmp_path / "history.jsonl") == kept
    assert "calls 2, leases 1" in summarize(kept)


# -- extensions

LATER = T + 2 + LAB + 600


def extended(at: float, until: int = LATER, **changes: Any) -> Call:
    """Return an extension of ann's lease from `at` to `at + 0.1`."""
    call = Call(
        kind=Kind.EXTEND,
        track_id="ann",
        sandbox_id="s1",
        lease_id="l1",
        until=until,
        began=T + at,
        ended=T + at + 0.1,
        status=200,
        body={"sandbox_id": "s1", "lease_id": "l1", "expires_at": until},
        patience=20,
    )
    return replace(call, **changes)


TOLD_LATER = fact(
    FactKind.EXTENDED,
    3,
    3,
    Status.ALLOCATED,
    Status.ALLOCATED,
    **OF_LEASE,
    details={"expires_at": LATER, "expires_at_before": T + 2 + LAB},
)
LONGER_LIFE = (ADDED, ALLOCATED, TOLD_LATER, replace(MARKED, version=4), replace(WIPED, version=5))
AFTER_MORE = (wiped("s1", 5.5), scan(9, free("s1", 5, last_lease_id="l1")))


def replayed(at: float, expires_at: int) -> Call:
    first = allocated("ann", "s1", "l1", 2.5)
    body = {**first.body, "expires_at": expires_at}
    return replace(first, began=T + at, ended=T + at + 0.1, status=200, replayed=True, body=body)


def test_an_extension_that_holds_breaks_nothing() -> None:
    said = (*ASKED, extended(3), replayed(3.5, LATER), extended(3.7, T, body=extended(3).body))
    assert not broken(*said, GIVEN_BACK, *AFTER_MORE, *LONGER_LIFE)
    lost = extended(3, status=None, body={}, patience=0)
    assert not broken(*ASKED, lost, GIVEN_BACK, *AFTER_MORE, *LONGER_LIFE)


def test_an_end_that_is_told_and_then_an_earlier_one_are_seen() -> None:
    assert broken(*ASKED, extended(3), replayed(3.5, T + 2 + LAB)) == {Promise.LATEST_END}
    assert broken(*ASKED, extended(3, body={**extended(3).body, "expires_at": LATER - 1})) == {Promise.LATEST_END}


def test_an_end_beyond_the_limit_is_seen() -> None:
    assert not broken(*ASKED, replayed(3, T + 2 + 2 * LAB))
    assert broken(*ASKED, replayed(3, T + 2 + 2 * LAB + 1)) == {Promise.LATEST_END}


def test_a_holder_that_is_refused_an_extension_is_seen() -> None:
    refusal = extended(3, status=409, body={"error": {"code": "ALLOCATION_ENDED"}})
    assert broken(*ASKED, refusal, GIVEN_BACK) == {Promise.CLAIMS_AGREE}


def test_an_extension_that_is_not_told_or_that_nobody_asked_for_is_seen() -> None:
    assert broken(*ASKED, extended(3), GIVEN_BACK, *AFTERWARDS, *LIFE) == {Promise.FACTS}
    assert broken(*ASKED, GIVEN_BACK, *AFTER_MORE, *LONGER_LIFE) == {Promise.FACTS}
    assert broken(*ASKED, extended(3, LATER - 1), GIVEN_BACK, *AFTER_MORE, *LONGER_LIFE) == {Promise.FACTS}


def test_an_expiry_before_the_latest_end_is_seen() -> None:
    expired = replace(LONGER_LIFE[3], kind=FactKind.EXPIRED, at=T + 2 + LAB + BUFFER)
    told = (*LONGER_LIFE[:3], expired, replace(WIPED, version=5, at=T + 2 + LAB + BUFFER + 1))
    gone = (wiped("s1", LAB + BUFFER + 4), scan(LAB + BUFFER + 9, free("s1", 5, last_lease_id="l1")))
    assert Promise.LATEST_END in broken(*ASKED, extended(3), *gone, *told)


# -- 9: set aside

R1 = {"reservation_id": "r1"}
CLASS_LIFE = (
    ADDED,
    fact(FactKind.RESERVED, 2, 1, Status.AVAILABLE, Status.RESERVED, details=R1),
    replace(ALLOCATED, version=3, status_before=Status.RESERVED, details={"expires_at": T + 2 + LAB, **R1}),
    replace(MARKED, version=4),
    replace(WIPED, version=5),
)
DRAWN = allocated("ann", "s1", "l1", 2.5, track_name="lab")
CLASS_GIVEN_BACK = (GIVEN_BACK, wiped("s1", 5.5), scan(9, free("s1", 5, last_lease_id="l1")))
ASIDE = free("s1", 2, status="reserved", reservation_id="r1")


def reservation(**changes: Any) -> ReservationRow:
    """Return a reservation for one track of a lab."""
    row = ReservationRow(
        reservation_id="r1",
        version=1,
        stage="booked",
        count=1,
        starts_at=T,
        ends_at=T + 100,
        track_names=("lab",),
        set_aside=0,
        drawn=0,
    )
    return replace(row, **changes)


def booked(at: float, kind: Kind = Kind.BOOK, **changes: Any) -> Call:
    """Return an operator's call whose answer shows the reservation."""
    body = {**asdict(reservation()), "state": "open", **changes}
    return Call(kind=kind, began=T + at, ended=T + at + 0.1, status=200 + (kind is Kind.BOOK), body=body)


def aside(at: float, *records: Row | ClaimRow | ReservationRow) -> Scan:
    return replace(scan(at, *records), ended=T + at)


def run_at(at: float) -> JobRun:
    return JobRun(began=T + at, ended=T + at + 0.5)


def drawing(*before: Call | Scan, draw: Call = DRAWN, life: tuple[Fact, ...] = CLASS_LIFE) -> set[Promise]:
    return broken(refused("bob", -1), *before, draw, *CLASS_GIVEN_BACK, *life)


def test_a_draw_by_a_track_of_the_lab_or_by_one_that_names_the_reservation_is_sound() -> None:
    named = replace(DRAWN, track_name="", reservation_id="r1")
    assert not drawing(booked(0))
    assert not drawing(booked(0), draw=named)
    assert not drawing(scan(0, free("s1"), reservation()))
    assert check(history(booked(0), DRAWN, *CLASS_LIFE)).examined[Promise.SET_ASIDE]["draws"] == 1


def test_a_draw_by_a_track_of_another_lab_is_seen() -> None:
    assert drawing(booked(0), draw=replace(DRAWN, track_name="other")) == {Promise.SET_ASIDE}
    assert drawing(booked(0), draw=replace(DRAWN, reservation_id="r2", track_name="")) == {Promise.SET_ASIDE}


def test_a_draw_outside_the_time_of_its_reservation_is_seen() -> None:
    assert not drawing(booked(0, ends_at=T + 3))
    assert drawing(booked(0, ends_at=T + 2)) == {Promise.SET_ASIDE}
    assert not drawing(booked(0, starts_at=T + 602))
    assert drawing(booked(0, starts_at=T + 603)) == {Promise.SET_ASIDE}
    assert drawing() == {Promise.SET_ASIDE}, "nobody booked it"


def test_a_draw_by_a_request_that_came_after_a_cancel_or_a_change_is_seen() -> None:
    cancelled = booked(2, Kind.CANCEL, version=2, state="cancelled")
    assert drawing(booked(0), cancelled) == {Promise.SET_ASIDE}
    assert drawing(booked(0), booked(2, Kind.CHANGE, version=2, ends_at=T + 2)) == {Promise.SET_ASIDE}
    at_once = replace(cancelled, began=T + 2.45, ended=T + 2.55)
    assert not drawing(booked(0), at_once)
    assert drawing(booked(0), at_once, draw=replace(DRAWN, began=T + 2.6, ended=T + 2.7)) == {Promise.SET_ASIDE}


def test_a_sandbox_that_is_set_aside_and_goes_to_another_is_seen() -> None:
    stolen = replace(CLASS_LIFE[2], details={"expires_at": T + 2 + LAB})
    assert Promise.SET_ASIDE in drawing(booked(0), life=(*CLASS_LIFE[:2], stolen, *CLASS_LIFE[3:]))
    other = replace(CLASS_LIFE[1], details={"reservation_id": "r2"})
    assert Promise.SET_ASIDE in drawing(booked(0), life=(ADDED, other, *CLASS_LIFE[2:]))


def test_a_reservation_that_has_more_than_was_booked_is_seen() -> None:
    drawn = reservation(set_aside=1, drawn=1)
    assert broken(scan(5, ASIDE, drawn), scan(6, ASIDE, drawn)) == {Promise.SET_ASIDE}
    assert not broken(scan(5, ASIDE, replace(drawn, count=2)), scan(6, ASIDE, replace(drawn, count=2)))


def test_counters_that_differ_from_what_is_set_aside_are_seen_in_a_scan_of_one_moment_and_at_the_end() -> None:
    right, wrong = reservation(set_aside=1), reservation()
    assert not broken(scan(5, ASIDE, wrong), scan(6, ASIDE, right))
    assert broken(aside(5, ASIDE, wrong), scan(6, ASIDE, right)) == {Promise.SET_ASIDE}
    assert broken(scan(5, ASIDE, right), scan(6, ASIDE, wrong)) == {Promise.SET_ASIDE}
    assert broken(scan(5, ASIDE, right), scan(6, free("s1", 3), right)) == {Promise.SET_ASIDE}


def test_a_reservation_that_is_drawn_from_after_its_end_is_seen() -> None:
    over = reservation(stage="cancelled", version=2)
    assert not broken(scan(5, reservation()), scan(6, replace(over, drawn=1)))
    assert broken(scan(5, over), scan(6, replace(over, drawn=1))) == {Promise.SET_ASIDE}


def test_a_sandbox_that_is_set_aside_after_two_runs_since_the_end_is_seen() -> None:
    kept = reservation(set_aside=1)
    scans = (scan(90, ASIDE, kept), scan(200, ASIDE, kept))
    assert not broken(*scans, run_at(98), run_at(110))
    assert broken(*scans, run_at(110), run_at(120)) == {Promise.SET_ASIDE}
    assert not broken(*scans, run_at(110), run_at(199.9))
    cancelled = booked(80, Kind.CANCEL, version=2, state="cancelled")
    assert broken(*scans, cancelled, run_at(92), run_at(95)) == {Promise.SET_ASIDE}


def test_a_sandbox_that_is_set_aside_for_ever_is_seen() -> None:
    kept = scan(200, ASIDE, reservation(set_aside=1))
    assert Promise.SET_ASIDE in broken(account_of("s1"), kept, drained=True)
    assert not broken(account_of("s1"), kept)


def test_a_refusal_is_honest_if_the_reservation_that_it_names_is_not_open() -> None:
    scans = (scan(0, free("s1")), scan(9, free("s1")))
    shut = refused("ann", 5, reservation_id="r1", body={"error": {"code": "RESERVATION_NOT_OPEN"}})
    assert not broken(*scans, shut)
