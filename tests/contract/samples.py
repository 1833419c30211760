"""The promises of every `SandboxStore` about samples, about leases that end soon, and about the pool's level."""

from __future__ import annotations

import uuid
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from broker_common.core.facts import PoolFact, PoolFactKind
from broker_common.core.lease import begin, candidate_of, claim_on, end, extend, warn
from broker_common.core.policy import Policy
from broker_common.core.samples import MINUTE_SEC, PoolLevel, Sample, minute_of
from broker_common.core.sandbox import DeletionReason, Sandbox, Status
from broker_common.core.store import Allocated, Conflict
from broker_common.core.telemetry import AllocateOutcome
from tests.fakes import BY, START, add_of, make_claim, make_sandbox

if TYPE_CHECKING:
    from broker_common.core.store import SandboxStore

DAY_SEC = 24 * 3600
NOON = 10**11 - 10**11 % DAY_SEC + DAY_SEC // 2
"""A noon so far away that no engine removes a sample while a test runs."""
COUNTED: dict[Status, int] = {
    status: 10 + number for number, status in enumerate(Status) if status is not Status.DELETED
}
HOUR = 3600


def sample(at: int = NOON, *, waiting: int = 3) -> Sample:
    """Return the counts of a minute."""
    return Sample(at=at, by_status=COUNTED, waiting=waiting)


def read_all(store: SandboxStore, since: int = NOON - 2 * DAY_SEC, until: int = NOON + 2 * DAY_SEC) -> list[Sample]:
    """Return the samples of a time."""
    return list(store.read_samples(since=since, until=until))


def level_fact(fact_id: str = "fact-1") -> PoolFact:
    """Return the fact that the pool is low."""
    return PoolFact(kind=PoolFactKind.LOW, fact_id=fact_id, at=START, principal="job:watch", details={"available": 1})


def hold(store: SandboxStore, sandbox_id: str, *, expires_at: int, track_id: str | None = None) -> Sandbox:
    """Have a track hold a new sandbox until `expires_at`, and return its record."""
    free = make_sandbox(sandbox_id)
    claim = make_claim(free, track_id or f"track-{sandbox_id}", expires_at=expires_at)
    store.commit(add_of(free))
    assert store.allocate(candidate_of(free), claim, by=BY, token=str(uuid.uuid4())) == Allocated()
    return begin(free, claim.lease, by=BY).result


class SampleContract:
    """The promises of every store to a single caller, about the records of the job `watch`."""

    # -- samples

    def test_there_are_no_samples_at_first(self, store: SandboxStore) -> None:
        assert read_all(store) == read_all(store, NOON, NOON + HOUR) == []

    def test_a_sample_has_what_was_counted_and_what_was_added_in_either_order(self, store: SandboxStore) -> None:
        added = {AllocateOutcome.SUCCESS: 5, AllocateOutcome.WAITING: 2}
        store.write_sample(sample())
        store.add_allocates(NOON, added)
        store.add_allocates(NOON + MINUTE_SEC, added)
        store.write_sample(sample(NOON + MINUTE_SEC))
        expected = [replace(sample(at), allocates=added) for at in (NOON, NOON + MINUTE_SEC)]
        assert read_all(store) == read_all(store, NOON, NOON + HOUR) == expected

    def test_the_allocates_of_several_processes_add_up(self, store: SandboxStore) -> None:
        store.add_allocates(NOON, {AllocateOutcome.SUCCESS: 5})
        store.add_allocates(NOON, {AllocateOutcome.SUCCESS: 2, AllocateOutcome.ERROR: 1})
        (found,) = read_all(store)
        assert found == Sample(at=NOON, allocates={AllocateOutcome.SUCCESS: 7, AllocateOutcome.ERROR: 1})

    def test_a_first_count_of_a_minute_replaces_the_first_and_keeps_its_allocates(self, store: SandboxStore) -> None:
        store.write_sample(sample(waiting=3))
        store.add_allocates(NOON, {AllocateOutcome.SUCCESS: 5})
        store.write_sample(sample(waiting=4))
        assert read_all(store) == [replace(sample(waiting=4), allocates={AllocateOutcome.SUCCESS: 5})]

    @pytest.mark.parametrize("minutes", [100, 101])
    def test_samples_are_read_in_order_from_the_first_moment_to_before_the_last(
        self, store: SandboxStore, minutes: int
    ) -> None:
        since = minute_of(NOON + DAY_SEC // 2 - HOUR)  # an hour before midnight
        until = since + minutes * MINUTE_SEC
        for at in (until, until - MINUTE_SEC, since + HOUR, since + HOUR - MINUTE_SEC, since, since - MINUTE_SEC):
            store.write_sample(sample(at))
        inside = [since, since + HOUR - MINUTE_SEC, since + HOUR, until - MINUTE_SEC]
        assert [each.at for each in read_all(store, since, until)] == inside
        assert [each.at for each in read_all(store, since + 1, until)] == inside[1:]
        assert [each.at for each in read_all(store, since, until + 1)] == [*inside, until]
        assert [each.at for each in read_all(store, since - 1, until)] == inside

    # -- leases that end soon

    def test_only_leases_that_end_in_time_are_found_with_their_versions(self, store: SandboxStore) -> None:
        held = [hold(store, str(number), expires_at=START + number) for number in range(1, 5)]
        store.commit(add_of(make_sandbox("free")))
        assert dict(store.read_ending(until=START)) == {}
        assert dict(store.read_ending(until=START + 3)) == {each.sandbox_id: each.version for each in held[:3]}
        store.commit(end(held[0], reason=DeletionReason.MARKED, by=BY, now=START))
        store.commit(extend(held[1], expires_at=START + 9, by=BY, now=START))
        assert dict(store.read_ending(until=START + 3)) == {held[2].sandbox_id: held[2].version}

    def test_a_warning_is_kept_with_the_lease_and_leaves_its_claim_and_its_end_as_they_are(
        self, store: SandboxStore
    ) -> None:
        held = hold(store, "1", expires_at=START + HOUR)
        assert held.lease is not None
        warning = warn(held, by=BY, now=START + 1, policy=Policy())
        for _ in range(2):  # its answer may be lost
            store.commit(warning)
        stored = store.get("1")
        assert stored == warning.after
        assert stored is not None
        assert stored.lease == replace(held.lease, warned_for=START + HOUR)
        assert store.get_claim("track-1", "track-1") == claim_on(held, held.lease)
        assert dict(store.read_ending(until=START + HOUR)) == {"1": stored.version}
        newest = store.read_history("1", limit=1, cursor=None).facts[0]
        assert newest == warning.fact

    def test_a_warning_of_a_record_that_has_changed_meanwhile_is_refused(self, store: SandboxStore) -> None:
        held = hold(store, "1", expires_at=START + HOUR)
        longer = extend(held, expires_at=START + 2 * HOUR, by=BY, now=START + 1)
        store.commit(longer)
        with pytest.raises(Conflict) as caught:
            store.commit(warn(held, by=BY, now=START + 2, policy=Policy()))
        assert caught.value.current == longer.after

    def test_a_lease_with_a_warning_is_extended_with_its_claim_and_ended(self, store: SandboxStore) -> None:
        store.commit(warn(hold(store, "1", expires_at=START + HOUR), by=BY, now=START + 1, policy=Policy()))
        store.commit(warn(hold(store, "2", expires_at=START + HOUR), by=BY, now=START + 1, policy=Policy()))
        first = store.get("1")
        assert first is not None
        longer = extend(first, expires_at=START + 2 * HOUR, by=BY, now=START + 2)
        store.commit(longer)
        assert store.get("1") == longer.after
        claim = store.get_claim("track-1", "track-1")
        assert claim is not None
        assert (claim.lease.expires_at, claim.lease.warned_for) == (START + 2 * HOUR, None)
        other = store.get("2")
        assert other is not None
        store.commit(end(other, reason=DeletionReason.MARKED, by=BY, now=START + 2))
        assert store.get_claim("track-2", "track-2") is None

    # -- the level

    def test_a_new_pool_has_told_nothing(self, store: SandboxStore) -> None:
        assert store.read_level() == PoolLevel()

    def test_the_level_and_its_fact_are_written_together_once(self, store: SandboxStore) -> None:
        low = PoolLevel(is_low=True, counted_at=START)
        for _ in range(2):  # its answer may be lost
            store.write_level(PoolLevel(), low, level_fact())
        assert store.read_level() == low
        with pytest.raises(Conflict):
            store.write_level(PoolLevel(), replace(low, counted_at=START + 1), level_fact("fact-2"))
        recovered = PoolLevel(is_low=False, counted_at=START + 2)
        store.write_level(low, recovered, level_fact("fact-3"))
        assert store.read_level() == recovered
        told = [fact for fact in store.read_feed(since=0, cursor=None, limit=10).facts if isinstance(fact, PoolFact)]
        assert sorted(fact.fact_id for fact in told) == ["fact-1", "fact-3"]
