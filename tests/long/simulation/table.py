"""A simulated DynamoDB table behind the store's port: latency, a lagging index, and partitions with limits.

What is written and what conditions decide is `MemoryStore`'s; this file adds when that happens, and what it is charged.
Sources, all of the Amazon DynamoDB Developer Guide: "Best practices for designing and using partition keys" (1,000 write
and 3,000 read units a second a partition; 300 seconds of unused capacity are kept for bursts), "Global secondary
indexes" (a changed key is a delete and a put), "Understanding GSI write throttling and back pressure" (an index that
cannot keep up throttles the table's writes), "Transactions: how it works" (two units an item; two transactions on one
item conflict). The index is charged once in a transaction, too: measured on AWS in github.com/nubo-db/dynoxide/pull/188.
"""

from __future__ import annotations

import zlib
from bisect import bisect_left, bisect_right, insort
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from math import ceil, inf
from typing import TYPE_CHECKING, TypeVar

from broker_common.core.deadline import Backoff
from broker_common.core.errors import StoreUnavailable
from broker_common.core.lease import candidate_of
from broker_common.core.sandbox import ORDER_LIMIT, Candidate, Claim, Sandbox, Status
from broker_common.core.store import AllocateAnswer, CandidatePage, Contended, JoinAnswer, Pauses, Position
from tests.fakes import MemoryStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from random import Random

    from broker_common.core.facts import Change
    from broker_common.core.line import Place
    from broker_common.core.principals import Actor
    from tests.scheduler.schedule import Schedule

Answer = TypeVar("Answer")

WRITE_UNITS, READ_UNITS = 1000, 3000
"""The units that a partition serves per second."""
BURST_SEC = 300
"""The seconds of unused capacity that a partition saves."""
INDEX_BYTES = 200
"""The size of an item of the index: its keys and projected attributes."""
PLACE_BYTES = 400
"""The size of an item of the line."""
CLIENT_TIMEOUT = 1.0
"""The time that a request must have left for another try of the store (`services.STORE_TIMEOUT_SEC`)."""


class Throttled(Exception):
    """A partition has no unit left. Nothing was written."""


@dataclass(slots=True)
class Bucket:
    """The units of one kind that a partition has left. Saved units may be spent at once."""

    rate: float
    left: float
    refilled_at: float = 0.0
    spent: float = 0.0

    def has(self, units: float, now: float) -> bool:
        self.left = min(self.left + (now - self.refilled_at) * self.rate, self.rate * BURST_SEC)
        self.refilled_at = now
        return self.left >= units

    def spend(self, units: float) -> None:
        self.left -= units
        self.spent += units


@dataclass(frozen=True, slots=True, kw_only=True)
class TableConditions:
    """The layout and state of the table. Times are in seconds."""

    shards: int = 4
    partitions: int = 40
    """The partitions of the table itself, over which its keys spread by hash."""
    available_splits: int = 1
    """Partitions into which each `available#<shard>` was split for heat, by its random sort key."""
    saved_seconds: float = 1.0
    """The idle time before the run, in which each partition has saved units."""
    latency: tuple[float, float] = (0.005, 0.015)
    lag: tuple[float, float] = (0.005, 0.05)
    long_lag: tuple[float, float] = (0.2, 2.0)
    long_lag_share: float = 0.001


@dataclass(slots=True)
class _Shown:
    """The index's entry of an available sandbox, and its time."""

    candidate: Candidate
    since: float = field(default=float("-inf"))


class SimulatedStore(MemoryStore):
    """A `SandboxStore` whose calls take simulated time and are throttled as DynamoDB would.

    `sent` counts the calls by method, with those that were throttled or met another transaction.
    """

    def __init__(self, schedule: Schedule, rng: Random, conditions: TableConditions) -> None:
        super().__init__(schedule.time, shards=conditions.shards)
        self.sent: Counter[str] = Counter()
        self.throttled: Counter[str] = Counter()
        """The refused writes and reads by partition."""
        self._schedule = schedule
        self._time = schedule.time
        self._rng = rng
        self._conditions = conditions
        self.contended: Counter[str] = Counter()
        """The transactions that met another one, by the key of the item."""
        self._rings: defaultdict[int | str, list[tuple[int, str]]] = defaultdict(list)
        """The places of the free sandboxes, by the segment of the ring, or by the reservation that they are for."""
        self._shown: dict[tuple[int, str], _Shown] = {}
        self._indexed_at: dict[str, float] = {}
        """The time at which the index has the last write of each sandbox."""
        self._in_transaction: set[str] = set()
        self._writes: dict[str, Bucket] = {}
        self._reads: dict[str, Bucket] = {}

    def seed(self, *sandboxes: Sandbox) -> None:
        """Store records, long enough ago for the index to have them."""
        super().seed(*sandboxes)
        for sandbox in sandboxes:
            if sandbox.is_free:
                entry = (sandbox.status_order, sandbox.sandbox_id)
                self._rings[self._ring(sandbox)].append(entry)
                self._shown[entry] = _Shown(candidate_of(sandbox))
        for ring in self._rings.values():
            ring.sort()

    def heat(self) -> dict[str, float]:
        """Return the used write units of each partition of the index."""
        return {name: bucket.spent for name, bucket in self._writes.items() if not name.startswith("table#")}

    def shows_since(self, moment: float) -> bool:
        """Tell whether the index has shown an available sandbox from `moment` until now."""
        return any(self._records[each.sandbox_id].status is Status.AVAILABLE for each in self.shown(since=moment))

    def shown(self, *, since: float = inf) -> list[Candidate]:
        """Return the sandboxes that the index shows as free, and has shown from `since` on."""
        return [each.candidate for each in self._shown.values() if each.since <= since]

    def read_candidates(
        self, position: Position, *, limit: int, prefix: str, reservation_id: str | None = None
    ) -> CandidatePage:
        segment, at = divmod(position.at, ORDER_LIMIT)
        scale, ends_at = 1, (segment + 1) * ORDER_LIMIT
        if reservation_id is not None:
            segment, at, scale, ends_at = 0, position.at // self._shards, self._shards, self.positions

        def look() -> CandidatePage:
            ring = self._rings[segment if reservation_id is None else reservation_id]
            first = bisect_left(ring, (at, "")) if position.after is None else bisect_right(ring, (at, position.after))
            page = ring[first : first + limit]
            if len(page) == limit:
                place = segment * ORDER_LIMIT + page[-1][0] * scale
                read_on, distance = Position(place, page[-1][1]), place - position.at
            else:
                read_on, distance = Position(ends_at % self.positions), ends_at - position.at
            self._read_bucket(partition).spend(_read_units(len(page) * INDEX_BYTES) / 2)
            found = [self._shown[entry].candidate for entry in page]
            return CandidatePage(tuple(each for each in found if each.name.startswith(prefix)), read_on, distance)

        partition = _reserved(reservation_id) if reservation_id else self._available(segment, at)
        return self._read("read_candidates", partition, look)

    def get_claim(self, track_id: str, idempotency_key: str) -> Claim | None:
        return self._read(
            "get_claim",
            self._table_partition(track_id),
            lambda: super(SimulatedStore, self).get_claim(track_id, idempotency_key),
        )

    def read_pauses(self) -> Pauses:
        return self._read("read_pauses", self._table_partition("POOL"), super().read_pauses)

    def allocate(
        self, candidate: Candidate, claim: Claim, *, by: Actor, token: str, place_id: str | None = None
    ) -> AllocateAnswer:
        self.sent["allocate"] += 1
        keys = [candidate.sandbox_id, candidate.sandbox_id, claim.lease.track_id]
        if place_id is not None:
            keys.append(f"LINE/{place_id}")
        if candidate.reservation_id is not None:
            keys.append(reservation_key(candidate.reservation_id))
        try:
            return self._transact(
                tuple(keys),
                lambda: super(SimulatedStore, self).allocate(candidate, claim, by=by, token=token, place_id=place_id),
            )
        except Throttled:
            return Contended()

    def read_line(self, *, limit: int | None = None) -> list[Place]:
        def look() -> list[Place]:
            places = super(SimulatedStore, self).read_line(limit=limit)
            self._read_bucket(partition).spend(_read_units(len(places) * PLACE_BYTES) - 1)
            return places

        partition = self._table_partition("LINE")
        return self._read("read_line", partition, look)

    def read_place(self, track_id: str, idempotency_key: str) -> Place | None:
        return self._read(
            "read_place",
            self._table_partition(track_id),
            lambda: super(SimulatedStore, self).read_place(track_id, idempotency_key),
        )

    def join(self, place: Place) -> JoinAnswer:
        keys = (f"LINE/{place.place_id}", place.track_id)
        return self._retry("join", lambda: self._transact(keys, lambda: super(SimulatedStore, self).join(place)))

    def renew(self, place: Place) -> bool:
        key = f"LINE/{place.place_id}"

        def write() -> bool:
            travel = self._latency() / 2
            self._time.sleep(travel)
            self._demand(key not in self._in_transaction, "conflict")
            self._charge_table((key,), units=1)
            was_there = super(SimulatedStore, self).renew(place)
            self._time.sleep(travel)
            return was_there

        return self._retry("renew", write)

    def leave(self, place: Place, *, unless_renewed: bool = False) -> bool:
        keys = (f"LINE/{place.place_id}", place.track_id)

        def write() -> bool:
            return super(SimulatedStore, self).leave(place, unless_renewed=unless_renewed)

        return self._retry("leave", lambda: self._transact(keys, write))

    def _retry(self, method: str, write: Callable[[], Answer]) -> Answer:
        """Write as `DynamoStore` does: when throttled, again after a pause, within the deadline."""
        backoff = Backoff(self._time, self._rng, base=0.025, limit=1.0, tries=6)
        while True:
            self.sent[method] += 1
            try:
                return write()
            except Throttled:
                backoff.pause(StoreUnavailable("DynamoDB is busy"), need=CLIENT_TIMEOUT)

    def commit(self, *changes: Change) -> None:
        """Implement the port. It waits for capacity without limit, as no figure measures it.

        Only a change of a reservation's counters is given up as `DynamoStore` gives it up. A fact is in the partition
        of its sandbox.
        """
        (change,) = changes
        if change.fact is None:
            self._insist("take", lambda: self._write_one(change))
            return
        keys = [change.sandbox_id, change.sandbox_id]
        if change.before and change.before.lease:
            keys.append(change.before.lease.track_id)
        counted = {each.reservation_id for each in (change.before, change.after) if each and each.reservation_id}
        if counted:
            keys += map(reservation_key, counted)
            self._retry("commit", lambda: self._transact(tuple(keys), lambda: self._write_all(change)))
        else:
            self._insist("commit", lambda: self._transact(tuple(keys), lambda: self._write_all(change)))

    def _write_all(self, change: Change) -> None:
        super().commit(change)

    def _write(self, change: Change) -> None:
        self._charge_index(change)
        super()._write(change)

    def _write_one(self, change: Change) -> None:
        travel = self._latency() / 2
        self._time.sleep(travel)
        self._demand(change.sandbox_id not in self._in_transaction, change.sandbox_id)
        self._charge_table((change.sandbox_id,), units=1)
        super().commit(change)
        self._time.sleep(travel)

    def _transact(self, keys: tuple[str, ...], act: Callable[[], Answer]) -> Answer:
        """Decide a transaction within its latency. Until its end no other may touch the same items."""
        latency = self._latency()
        decided, ended = sorted((self._rng.uniform(0, latency), self._rng.uniform(0, latency)))
        self._time.sleep(decided)
        try:
            self.contended.update(self._in_transaction.intersection(keys))
            self._demand(self._in_transaction.isdisjoint(keys), "conflict")
            self._charge_table(keys, units=2)
            answer = act()
        except Throttled:
            self._time.sleep(latency - decided)
            raise
        self._in_transaction.update(keys)
        self._time.sleep(ended - decided)
        self._in_transaction.difference_update(keys)
        self._time.sleep(latency - ended)
        return answer

    def _insist(self, method: str, write: Callable[[], None]) -> None:
        while True:
            self.sent[method] += 1
            try:
                return write()
            except Throttled:
                self._time.sleep(self._rng.uniform(0.2, 1.0))

    def _read(self, method: str, partition: str, look: Callable[[], Answer]) -> Answer:
        """Read as `DynamoStore` does: when the partition is throttled, again after a pause, within the deadline."""
        backoff = Backoff(self._time, self._rng, base=0.025, limit=1.0, tries=6)
        while True:
            self.sent[method] += 1
            travel = self._latency() / 2
            self._time.sleep(travel)
            if self._read_bucket(partition).has(1, self._time.monotonic()):
                answer = look()
                self._time.sleep(travel)
                return answer
            self.throttled[partition] += 1
            backoff.pause(StoreUnavailable("DynamoDB is busy"), need=CLIENT_TIMEOUT)

    def _charge_table(self, keys: Iterable[str], *, units: int) -> None:
        self._spend(_units(map(self._table_partition, keys), units))

    def _charge_index(self, change: Change) -> None:
        """Charge a change to the index. Raises `Throttled` before anything is written or charged."""
        self._spend(_units(self._index_places(change), 1))

    def _index_places(self, change: Change) -> list[str]:
        """Return the partitions of the index to which a change writes.

        The sandbox's entry is deleted and put again if its key changes; a fact is put.
        """
        before, after = change.before, change.after
        places = [self._index_partition(each) for each in (before, after) if each]
        if before and after and (before.status, before.status_order) == (after.status, after.status_order):
            places.pop()
        if change.fact is not None:
            places.append(f"fact#{self._segment(change.sandbox_id)}")
        return places

    def _charge(self, key: str, units: int, places: Iterable[str]) -> None:
        """Charge a write of one item to the table, and to these partitions of the index."""
        self._spend(_units([self._table_partition(key)], units) + _units(places, 1))

    def _spend(self, units: Counter[str]) -> None:
        now = self._time.monotonic()
        for partition, needed in units.items():
            self._demand(self._write_bucket(partition).has(needed, now), partition)
        for partition, needed in units.items():
            self._write_bucket(partition).spend(needed)

    def _demand(self, goes: bool, partition: str) -> None:
        if not goes:
            self.throttled[partition] += 1
            raise Throttled

    def _place(self, sandbox_id: str, sandbox: Sandbox | None) -> None:
        """Write a record. The index follows later."""
        before = self._records.get(sandbox_id)
        super()._place(sandbox_id, sandbox)
        if before is None:
            return
        conditions = self._conditions
        lag = conditions.long_lag if self._rng.random() < conditions.long_lag_share else conditions.lag
        now = self._time.monotonic()
        at = max(now + self._rng.uniform(*lag), self._indexed_at.get(sandbox_id, 0.0))
        self._indexed_at[sandbox_id] = at
        self._schedule.start(lambda: self._show(before, sandbox), after=at - now)

    def _show(self, before: Sandbox, after: Sandbox | None) -> None:
        if before.is_free:
            entry, ring = (before.status_order, before.sandbox_id), self._rings[self._ring(before)]
            del ring[bisect_left(ring, entry)], self._shown[entry]
        if after and after.is_free:
            entry = (after.status_order, after.sandbox_id)
            insort(self._rings[self._ring(after)], entry)
            self._shown[entry] = _Shown(candidate_of(after), self._time.monotonic())

    def _ring(self, sandbox: Sandbox) -> int | str:
        return sandbox.reservation_id or self._segment(sandbox.sandbox_id)

    def _index_partition(self, sandbox: Sandbox) -> str:
        if sandbox.reservation_id is not None:
            return _reserved(sandbox.reservation_id)
        shard = self._segment(sandbox.sandbox_id)
        if sandbox.status is Status.AVAILABLE:
            return self._available(shard, sandbox.status_order)
        return f"{sandbox.status}#{shard}"

    def _available(self, shard: int, order: int) -> str:
        splits = self._conditions.available_splits
        return f"{Status.AVAILABLE}#{shard}" + (f"/{order * splits // ORDER_LIMIT}" if splits > 1 else "")

    def _table_partition(self, key: str) -> str:
        """Return the partition of an item: its partition key is the part of its key before a slash."""
        return f"table#{zlib.crc32(key.partition('/')[0].encode()) % self._conditions.partitions}"

    def _write_bucket(self, partition: str) -> Bucket:
        if partition not in self._writes:
            self._writes[partition] = Bucket(WRITE_UNITS, WRITE_UNITS * self._conditions.saved_seconds)
        return self._writes[partition]

    def _read_bucket(self, partition: str) -> Bucket:
        if partition not in self._reads:
            self._reads[partition] = Bucket(READ_UNITS, READ_UNITS * self._conditions.saved_seconds)
        return self._reads[partition]

    def _latency(self) -> float:
        return self._rng.uniform(*self._conditions.latency)


def reservation_key(reservation_id: str) -> str:
    """Return the key of the item that has a reservation's counters."""
    return f"RESERVATION#{reservation_id}"


def _reserved(reservation_id: str) -> str:
    return f"{Status.RESERVED}#{reservation_id}"


def _read_units(size: int) -> int:
    return max(1, ceil(size / 4096))


def _units(partitions: Iterable[str], units: int) -> Counter[str]:
    total: Counter[str] = Counter()
    for partition in partitions:
        total[partition] += units
    return total
