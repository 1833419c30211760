"""Usage: which line a change writes, and what a report makes of lines."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from datetime import UTC, datetime
from statistics import median_low
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_common.core import usage
from broker_common.core.allocation import Allocation
from broker_common.core.errors import InvalidInput
from broker_common.core.flat import flatten, sandbox_of
from broker_common.core.lease import end
from broker_common.core.policy import Policy
from broker_common.core.sandbox import DeletionReason, Status
from broker_common.core.usage import (
    Grouping,
    Usage,
    UsageLine,
    UsageRow,
    WipedLease,
    ended_by,
    percentile,
    summarize,
    wiped_by,
)
from broker_common.core.utc import DAY_SEC, day_of, days_between
from broker_common.core.waiting import Waiting
from broker_common.core.wipe import begin_attempt, confirm_wipe
from tests.fakes import BY, START, FakeClock, MemoryStore, add_of, changed, make_reservation, make_sandbox
from tests.world import World

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

HOUR = 3600
MIDNIGHT = START - START % DAY_SEC
HELD = make_sandbox("7", status=Status.ALLOCATED, track_name="intro", customer="acme", customer_lease_id="lease-1")
ENDED = end(HELD, reason=DeletionReason.RELEASED, by=BY, now=START + 60)
LINE = UsageLine(
    lease_id="lease-1",
    track_name="intro",
    customer="acme",
    allocated_at=START,
    ended_at=START + 60,
    ending=DeletionReason.RELEASED,
)
VALUES = st.lists(st.integers(0, 10**6), min_size=1, max_size=300)


def make_line(length: int, *, wiped_in: int | None = None, ended_at: int = START, **changes: Any) -> UsageLine:
    wiped_at = None if wiped_in is None else ended_at + wiped_in
    times = {"allocated_at": ended_at - length, "ended_at": ended_at, "wiped_at": wiped_at}
    return UsageLine(**{"lease_id": "lease", "ending": DeletionReason.MARKED, **times, **changes})


def report(
    lines: Sequence[UsageLine], by: Grouping = Grouping.TRACK_NAME
) -> tuple[dict[str | None, UsageRow], UsageRow]:
    """Return the rows of a report by their group, and the total."""
    made = summarize(iter(lines), since=0, until=1, by=by)
    return {row.group: row for row in made.rows}, made.total


def make_usage(store: MemoryStore, *, now: int = START, kept_days: int = 90) -> Usage:
    return Usage(records=store, clock=FakeClock(now), kept_days=kept_days)


def fault_of(since: int, until: int | None, **options: Any) -> dict[str, Any]:
    """Return by its field why a report is refused."""
    with pytest.raises(InvalidInput) as refused:
        make_usage(MemoryStore(), **options).report(since=since, until=until, by=Grouping.DAY)
    assert refused.value.details
    (name, (problem,)) = next(iter(refused.value.details.items()))
    assert refused.value.message == f"{name}: {problem}"
    return dict(refused.value.details)


# -- lines


def test_the_end_of_a_lease_writes_all_that_is_known_of_it() -> None:
    assert ended_by(ENDED) == LINE
    assert wiped_by(ENDED) is None


def test_a_change_that_ends_no_lease_writes_no_line() -> None:
    tried = begin_attempt(ENDED.result, attempt_id="a", by=BY, now=START + 70, policy=Policy())
    for change in (add_of(make_sandbox()), tried):
        assert (ended_by(change), wiped_by(change)) == (None, None)


def test_a_wipe_names_the_lease_before_it() -> None:
    policy = Policy()
    tried = begin_attempt(ENDED.result, attempt_id="a", by=BY, now=START + 70, policy=policy).result
    wiped = confirm_wipe(tried, accepted_only=True, order=1, by=BY, now=START + 90, policy=policy)
    assert wiped_by(wiped) == WipedLease(lease_id="lease-1", ended_at=START + 60, wiped_at=START + 90)
    assert ended_by(wiped) is None
    nobody_s = replace(wiped, before=changed(tried, last_lease_id=None, last_track_id=None))
    undated = replace(wiped, before=changed(tried, deletion_requested_at=None))
    assert (wiped_by(nobody_s), wiped_by(undated)) == (None, None)


def test_the_customer_of_a_principal_reaches_the_line_of_its_lease() -> None:
    world = World()
    world.memory.seed(make_sandbox("sbx-0"))
    allocated = world.allocate(track_name="intro", customer="acme")
    world.mark()
    (line,) = world.memory.usage.values()
    assert (line.lease_id, line.customer, line.track_name) == (allocated.claim.lease.lease_id, "acme", "intro")
    (told, *_) = world.memory.facts
    assert told.details["customer"] == "acme"


def test_who_waited_in_line_and_who_draws_from_a_reservation_are_customers_too() -> None:
    world = World()
    world.memory.reservations["res-1"] = make_reservation(set_aside=1)
    world.memory.seed(make_sandbox("sbx-0", status=Status.RESERVED))
    drawn = world.allocate("track-1", track_name="lab-1", customer="acme")
    assert (drawn.claim.lease.reservation_id, drawn.claim.lease.customer) == ("res-1", "acme")
    assert isinstance(world.wait("track-2", customer="other"), Waiting)
    world.memory.seed(make_sandbox("sbx-1"))
    world.clock.advance(3)
    served = world.wait("track-2", customer="other")
    assert isinstance(served, Allocation)
    assert served.claim.lease.customer == "other"


@pytest.mark.parametrize("named", ["lease-0", None])
@pytest.mark.parametrize("status", [Status.ALLOCATED, Status.PENDING_DELETION])
def test_a_customer_that_a_record_has_of_another_lease_is_not_known(status: Status, named: str | None) -> None:
    flat = flatten(HELD if status is Status.ALLOCATED else ENDED.result)
    found = sandbox_of(flat | {"customer_lease_id": named}).latest_lease
    assert found is not None
    assert found.customer is None
    known = sandbox_of(flat).latest_lease
    assert known is not None
    assert known.customer == "acme"


# -- days


@given(since=st.integers(0, 2**33), length=st.integers(1, 40 * DAY_SEC))
def test_the_days_between_two_times_are_those_of_every_moment(since: int, length: int) -> None:
    moments = {*range(since, since + length, DAY_SEC // 2), since + length - 1}
    expected = sorted({datetime.fromtimestamp(each, UTC).date().isoformat() for each in moments})
    assert list(days_between(since, since + length)) == expected


def test_a_lease_belongs_whole_to_the_day_of_its_end() -> None:
    rows, total = report([make_line(HOUR, ended_at=MIDNIGHT), make_line(HOUR, ended_at=MIDNIGHT - 1)], Grouping.DAY)
    assert {group: row.sandbox_hours for group, row in rows.items()} == {"2025-06-14": 1.0, "2025-06-15": 1.0}
    assert list(rows) == ["2025-06-14", "2025-06-15"]
    assert total.leases == 2


# -- percentiles


@given(values=VALUES)
def test_a_median_is_that_of_the_standard_library(values: list[int]) -> None:
    assert percentile(sorted(values), 50) == median_low(values)


@given(values=VALUES, percent=st.integers(1, 100))
def test_a_percentile_is_the_lowest_value_that_enough_others_do_not_exceed(values: list[int], percent: int) -> None:
    enough = [each for each in values if 100 * sum(other <= each for other in values) >= percent * len(values)]
    assert percentile(sorted(values), percent) == min(enough)


def test_nothing_has_no_percentile() -> None:
    assert percentile([], 95) is None


# -- reports


def test_a_row_says_how_many_leases_there_were_how_long_and_how_they_ended() -> None:
    lines = [make_line(60 * number, wiped_in=number, track_name="intro") for number in range(1, 21)]
    lines += [
        make_line(HOUR, track_name="other", ending=DeletionReason.RELEASED),
        make_line(3 * HOUR, track_name="other", ending=DeletionReason.EXPIRED),
    ]
    rows, total = report(lines)
    assert rows["intro"] == UsageRow(
        group="intro",
        leases=20,
        sandbox_hours=3.5,
        marked=20,
        released=0,
        expired=0,
        lease_median_sec=600,
        lease_p95_sec=19 * 60,
        wipes=20,
        wipe_median_sec=10,
        wipe_p95_sec=19,
    )
    other = rows["other"]
    assert (other.leases, other.sandbox_hours) == (2, 4.0)
    assert (other.marked, other.released, other.expired) == (0, 1, 1)
    assert (other.wipes, other.wipe_median_sec, other.wipe_p95_sec) == (0, None, None)
    assert (total.group, total.leases, total.sandbox_hours, total.wipes) == (None, 22, 7.5, 20)
    assert (total.lease_median_sec, total.lease_p95_sec) == (660, HOUR)


def test_what_is_not_known_has_a_row_and_the_most_used_comes_first() -> None:
    lines = [
        make_line(HOUR),
        make_line(2 * HOUR, customer="acme"),
        make_line(3 * HOUR, customer="lab"),
        make_line(HOUR),
    ]
    rows, _ = report(lines, Grouping.CUSTOMER)
    assert list(rows) == ["lab", None, "acme"]
    assert [row.leases for row in rows.values()] == [1, 2, 1]
    assert list(report(lines)[0]) == [None]


def test_a_report_on_nothing_has_a_total() -> None:
    rows, total = report([])
    assert (rows, total.leases, total.sandbox_hours, total.lease_median_sec) == ({}, 0, 0.0, None)


def test_clocks_that_differ_make_no_negative_length() -> None:
    _, total = report([make_line(-5, wiped_in=-3)])
    assert (total.sandbox_hours, total.lease_median_sec, total.wipe_median_sec) == (0.0, 0, 0)


@pytest.mark.parametrize(("limit", "field"), [("MOST_LEASES", "from"), ("MOST_ROWS", "by")])
def test_a_report_has_bounds_and_says_which_was_met(monkeypatch: pytest.MonkeyPatch, limit: str, field: str) -> None:
    monkeypatch.setattr(usage, limit, 3)
    lines = [make_line(1, track_name=f"lab-{number}") for number in range(4)]
    assert report(lines[:3])[1].leases == 3
    with pytest.raises(InvalidInput, match=rf"^{field}: .* 3 ") as refused:
        report(lines)
    assert refused.value.details is not None
    assert list(refused.value.details) == [field]


def test_a_report_keeps_no_line() -> None:
    def many() -> Iterator[UsageLine]:
        for number in range(50_000):
            yield make_line(number % 5000, wiped_in=number % 60, track_name=f"lab-{number % 20}")

    tracemalloc.start()
    try:
        summarize(many(), since=0, until=1, by=Grouping.TRACK_NAME)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 50_000 * 100


# -- which time


def test_the_leases_of_a_time_count_up_to_now_if_no_end_is_given() -> None:
    store = MemoryStore()
    ends = (START - 5, START - 4, START - 1, START)
    store.usage = {str(at): make_line(HOUR, ended_at=at) for at in ends}
    made = make_usage(store).report(since=START - 4, until=None, by=Grouping.DAY)
    assert (made.since, made.until, made.by, made.total.leases) == (START - 4, START, Grouping.DAY, 2)
    assert make_usage(store).report(since=START - 5, until=START - 4, by=Grouping.DAY).total.leases == 1


def test_a_report_on_a_customer_counts_its_leases_alone() -> None:
    store = MemoryStore()
    customers = ("acme", "other", None)
    store.usage = {str(each): make_line(HOUR, ended_at=START - 1, customer=each) for each in customers}
    made = make_usage(store).report(since=START - 4, until=None, by=Grouping.CUSTOMER, customer="acme")
    assert [(row.group, row.leases) for row in made.rows] == [("acme", 1)]
    assert made.total.leases == 1


def test_a_report_begins_at_the_earliest_with_the_first_day_that_is_kept_whole() -> None:
    earliest = MIDNIGHT - 30 * DAY_SEC
    assert make_usage(MemoryStore(), kept_days=30).report(since=earliest, until=None, by=Grouping.DAY).rows == ()
    told = fault_of(earliest - 1, None, kept_days=30)["from"][0]
    assert f"{earliest} ({day_of(earliest)} 00:00 UTC)" in told
    # `--since 30d` by a clock that is a little behind is not refused.
    at_midnight = make_usage(MemoryStore(), now=MIDNIGHT + 60, kept_days=30)
    assert at_midnight.report(since=MIDNIGHT - 30 * DAY_SEC, until=None, by=Grouping.DAY).rows == ()


@pytest.mark.parametrize(("since", "until"), [(START, START), (START - 1, START - 2), (START, None)])
def test_a_time_that_has_no_length_is_refused(since: int, until: int | None) -> None:
    assert fault_of(since, until).keys() == {"from"}


def test_a_time_in_the_future_is_refused_unless_clocks_may_differ_so_much() -> None:
    assert fault_of(START, START + 61).keys() == {"to"}
    assert make_usage(MemoryStore()).report(since=START, until=START + 60, by=Grouping.DAY).rows == ()
