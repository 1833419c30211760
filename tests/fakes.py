"""Test doubles of the core's ports: a clock, a recorder, a provider, and stores with and without faults.

`MemoryStore` keeps the whole contract of `SandboxStore`. `LaggingStore` shows old states of the index. `LosingStore` lets
another writer come first. `FlakyStore` fails calls and loses answers. One wrapper may contain another.
"""

from __future__ import annotations

import threading
import zlib
from bisect import bisect_left
from collections import Counter, defaultdict, deque
from contextlib import contextmanager, suppress
from contextvars import Context
from dataclasses import dataclass, replace
from enum import Enum
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, TypeVar

from broker_common.core.errors import OutcomeUnknown, QueueUnavailable, StoreUnavailable, UnreadableRecord
from broker_common.core.facts import Change, Fact, FactKind, PoolFact, change
from broker_common.core.flat import claim_of, flatten, sandbox_of
from broker_common.core.lease import begin, candidate_of, claim_on, end
from broker_common.core.ports import (
    AccountListing,
    InactiveAccount,
    KnownTable,
    ServicesRemoval,
    SkippedAccount,
    WipeAnswer,
)
from broker_common.core.principals import Actor
from broker_common.core.reservation import Reservation, ReservationStage, is_same
from broker_common.core.samples import PoolLevel, Sample
from broker_common.core.sandbox import FREE, ORDER_LIMIT, Account, Candidate, Claim, DeletionReason, Sandbox, Status
from broker_common.core.schema import UPGRADE
from broker_common.core.store import (
    COMMIT_AT_ONCE,
    PAUSABLE,
    AllocateAnswer,
    Allocated,
    CandidateGone,
    CandidatePage,
    ClaimHeld,
    Conflict,
    Contended,
    CountRecord,
    FactPage,
    FeedPage,
    JoinAnswer,
    Joined,
    OpenReservations,
    Pauses,
    PlaceHeld,
    Pool,
    Position,
    ReservationFull,
    ReservationPage,
    ReservationShut,
    SandboxPage,
    TableState,
    Unreadable,
    Watermark,
)
from broker_common.core.telemetry import ServicesOutcome
from broker_common.core.usage import UsageLine, ended_by, wiped_by
from tests.memory_cursors import read_cursor, write_cursor
from tests.memory_webhooks import MemoryWebhooks, WebhooksWrapper

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager
    from random import Random

    from broker_common.core.line import Place
    from broker_common.core.ports import Clock
    from broker_common.core.store import SandboxStore
    from broker_common.core.telemetry import AllocateOutcome, Event

Answer = TypeVar("Answer")
Kind = TypeVar("Kind")

START = 1_750_000_000
"""The Unix time at which a `FakeClock` starts."""
SPOILED = "created_at is missing"
"""The reason why a record cannot be read after `spoil`."""

BY = Actor(principal="somebody", request_id="request-1")
"""The actor of a change in tests for which the actor does not matter."""

LEASE: Mapping[str, Any] = {
    "lease_id": "lease-1",
    "allocated_to_track": "track-1",
    "idempotency_key": "track-1",
    "allocated_at": START,
    "expires_at": START + 4 * 3600,
}
"""The fields that every allocated record has."""


class FakeClock:
    """Time that passes only by `advance` and `sleep`."""

    def __init__(self, start: int = START) -> None:
        self._start = start
        self._passed = 0.0
        self._lock = threading.Lock()
        self._looks: threading.Semaphore | None = None

    def now(self) -> int:
        return self._start + int(self._passed)

    def monotonic(self) -> float:
        if self._looks is not None:
            self._looks.release()
        return self._passed

    def count_looks(self) -> threading.Semaphore:
        """Return a semaphore that each later call of `monotonic` releases: a waiting thread checks its deadline first."""
        self._looks = threading.Semaphore(0)
        return self._looks

    def sleep(self, seconds: float) -> None:
        self.advance(seconds)

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        with self._lock:
            self._passed += seconds


class RecordingRecorder:
    """Keeps all events."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def record(self, event: Event) -> None:
        self.events.append(event)

    def of(self, kind: type[Kind]) -> list[Kind]:
        """Return the events of one kind, in order."""
        return [event for event in self.events if isinstance(event, kind)]


def make_account(sandbox_id: str = "2009521", **changes: Any) -> Account:
    """Return an account as the provider lists it."""
    account = Account(sandbox_id=sandbox_id, external_id=f"uuid-{sandbox_id}", name=f"lab-{sandbox_id}")
    return replace(account, **changes)


def make_sandbox(sandbox_id: str = "2009521", *, status: Status = Status.AVAILABLE, **changes: Any) -> Sandbox:
    """Return a valid record; `changes` are fields by their flat names.

    The `status_order` of an available sandbox depends on its id, which spreads them over the ring.
    """
    spread = int.from_bytes(zlib.crc32(sandbox_id.encode()).to_bytes(4, "big") * 2, "big") % ORDER_LIMIT
    flat: dict[str, Any] = {
        "sandbox_id": sandbox_id,
        "name": f"lab-{sandbox_id}",
        "external_id": f"uuid-{sandbox_id}",
        "status": status,
        "status_order": spread if status in FREE else START,
        "version": 1,
        "created_at": START - 3600,
        "updated_at": START - 3600,
        "last_synced": START - 3600,
    }
    if status is Status.ALLOCATED:
        flat |= {"dirty": True, **LEASE}
    if status is Status.RESERVED:
        flat["reservation_id"] = "res-1"
    return sandbox_of(flat | changes)


def changed(sandbox: Sandbox, **changes: Any) -> Sandbox:
    """Return a copy of a record; `changes` are fields by their flat names."""
    return sandbox_of({**flatten(sandbox), **changes})


def flat(sandbox: Sandbox) -> Any:
    """Return an object that has the fields of a record by their flat names."""
    return SimpleNamespace(**flatten(sandbox))


def add_of(sandbox: Sandbox, by: Actor = BY) -> Change:
    """Return the change that adds a record."""
    return change(None, sandbox, FactKind.ADDED, by=by, now=sandbox.updated_at)


def change_of(before: Sandbox, after: Sandbox, by: Actor = BY) -> Change:
    """Return a change between any two records, with a fact."""
    return change(before, after, FactKind.UPDATED, by=by, now=after.updated_at)


def removal_of(before: Sandbox, by: Actor = BY) -> Change:
    """Return the change that removes a record."""
    return change(before, None, FactKind.REMOVED, by=by, now=before.updated_at)


def make_claim(sandbox: Sandbox | Candidate, track_id: str = "track-1", **changes: Any) -> Claim:
    """Return a claim on a sandbox, for four hours from the start of the fake clock."""
    flat: dict[str, Any] = {
        "track_id": track_id,
        "idempotency_key": track_id,
        "sandbox_id": sandbox.sandbox_id,
        "lease_id": f"lease-{track_id}-{sandbox.sandbox_id}-{sandbox.version}",
        "allocated_at": START,
        "expires_at": START + 4 * 3600,
        "name": sandbox.name,
        "external_id": sandbox.external_id,
        "sfdc_account_id": sandbox.sfdc_account_id,
        "reservation_id": sandbox.reservation_id,
    }
    return claim_of(flat | changes)


def make_reservation(reservation_id: str = "res-1", **changes: Any) -> Reservation:
    """Return a reservation of three sandboxes, which has just opened and lasts for two hours."""
    values: dict[str, Any] = {
        "reservation_id": reservation_id,
        "name": "Class",
        "count": 3,
        "starts_at": START + 600,
        "ends_at": START + 600 + 7200,
        "track_names": ("lab-1",),
        "created_at": START - 3600,
        "created_by": "somebody",
    }
    return Reservation(**{**values, **changes})


def kind_of(*changes: Change) -> str:
    """Return the kind of a commit: `add`, `remove`, `end_allocation`, or `update` for all others."""
    first = changes[0]
    if first.before is None:
        return "add"
    if first.after is None:
        return "remove"
    return "end_allocation" if first.before.lease and not first.after.lease else "update"


def _name_of(fact: Fact) -> tuple[str, int, str]:
    return fact.sandbox_id, fact.version, fact.kind


def _lease_id(sandbox: Sandbox) -> str | None:
    return sandbox.lease.lease_id if sandbox.lease else None


def walk_ring(
    store: SandboxStore, *, limit: int, prefix: str = "", start: int = 0, reservation_id: str | None = None
) -> list[Candidate]:
    """Read the whole ring of available or reserved sandboxes once, page by page, from `start`."""
    found: list[Candidate] = []
    position, travelled = Position(start), 0
    while travelled < store.positions:
        page = store.read_candidates(position, limit=limit, prefix=prefix, reservation_id=reservation_id)
        found += page.candidates
        position, travelled = page.next, travelled + page.distance
    return found


class _Called:
    """A context of one call: it holds the store's lock, and counts the call.

    A class, because a generator took a tenth of the time of the tests that make millions of calls.
    """

    __slots__ = ("_calls", "_lock", "_method")

    def __init__(self, lock: threading.RLock, calls: Counter[str], method: str) -> None:
        self._lock = lock
        self._calls = calls
        self._method = method

    def __enter__(self) -> None:
        self._lock.acquire()
        self._calls[self._method] += 1

    def __exit__(self, *_: object) -> None:
        self._lock.release()


class MemoryStore(MemoryWebhooks):
    """A `SandboxStore` in memory. One lock makes each call atomic.

    `calls` counts the calls of each method by its name.
    """

    def __init__(self, clock: Clock | None = None, *, shards: int = 4) -> None:
        """Keep the ring in `shards` segments; `ping` returns the time of `clock`."""
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.on_write: Callable[[Sandbox | None, Sandbox | None], None] = lambda _before, _after: None
        """Called within each write of a sandbox, with the record before and after; it may raise to refuse the write."""
        self._clock = clock
        self._shards = shards
        self._lock = threading.RLock()
        self._records: dict[str, Sandbox] = {}
        self._claims: dict[tuple[str, str], Claim] = {}
        self._accounts: dict[str, str] = {}
        self._tokens: dict[str, tuple[Candidate, Claim, str | None]] = {}
        self._line: dict[str, Place] = {}
        self.reservations: dict[str, Reservation] = {}
        """Those that were not archived."""
        self._archive: dict[str, Reservation] = {}
        self.bookings_version = 0
        self._watermark: Watermark | None = None
        self._pauses = Pauses()
        self._counts = CountRecord()
        self.samples: dict[int, Sample] = {}
        """The samples by their minutes."""
        self._level = PoolLevel()
        self.facts: list[Fact | PoolFact] = []
        """All facts in the order of their writes."""
        self._fact_names: set[tuple[str, int, str]] = set()
        self._removed: dict[str, int] = {}
        self.usage: dict[str, UsageLine] = {}
        """The line of each ended lease, by its id."""
        self.upgraded: int = UPGRADE
        self.identity: str | None = "the-table"
        self.is_restored = False
        self.last_foreign_sync = -1
        self._spoiled: set[str] = set()
        self._spoiled_claims: set[tuple[str, str]] = set()
        self._spoiled_places: set[str] = set()

    def spoil(self, sandbox_id: str) -> None:
        """Make a record unreadable, as a person or a later release may; the index still shows it as before."""
        self._spoiled.add(sandbox_id)

    def spoil_claim(self, track_id: str, idempotency_key: str) -> None:
        """Make a claim unreadable."""
        self._spoiled_claims.add((track_id, idempotency_key))

    def spoil_place(self, place_id: str) -> None:
        """Make a place unreadable."""
        self._spoiled_places.add(place_id)

    def seed(self, *sandboxes: Sandbox) -> None:
        """Write records over existing ones, and the claim of each allocated one."""
        with self._lock:
            for sandbox in sandboxes:
                self._place(sandbox.sandbox_id, sandbox)
                self._accounts.setdefault(sandbox.account_key, sandbox.sandbox_id)
                if sandbox.lease:
                    self._claims[sandbox.lease.track_id, sandbox.lease.idempotency_key] = claim_on(
                        sandbox, replace(sandbox.lease, warned_for=None)
                    )

    def lose_reservation(self, reservation_id: str) -> None:
        """Remove the record of a reservation, as a person may."""
        del self.reservations[reservation_id]

    def forget_accounts(self) -> None:
        """Remove the records of all accounts: a table of an earlier release has none."""
        self._accounts.clear()

    def dump(self) -> tuple[dict[str, Sandbox], dict[tuple[str, str], Claim]]:
        """Return all records by id and all claims by (track, key), as of one moment."""
        with self._lock:
            return dict(self._records), dict(self._claims)

    @property
    def positions(self) -> int:
        return self._shards * ORDER_LIMIT

    def get(self, sandbox_id: str) -> Sandbox | None:
        with self._called("get"):
            self._refuse_spoiled(sandbox_id)
            return self._records.get(sandbox_id)

    def get_claim(self, track_id: str, idempotency_key: str) -> Claim | None:
        with self._called("get_claim"):
            return self._claim(track_id, idempotency_key)

    def read_claims(self, track_id: str) -> list[Claim]:
        with self._called("read_claims"):
            found = [self._claim(*key) for key in self._claims if key[0] == track_id]
            return [claim for claim in found if claim]

    def read_candidates(
        self, position: Position, *, limit: int, prefix: str, reservation_id: str | None = None
    ) -> CandidatePage:
        with self._called("read_candidates"):
            segment, at = divmod(position.at, ORDER_LIMIT)
            scale, end = 1, (segment + 1) * ORDER_LIMIT
            if reservation_id is not None:
                segment, at, scale, end = 0, position.at // self._shards, self._shards, self.positions
            onwards = sorted(
                (sandbox.status_order, sandbox.sandbox_id, sandbox)
                for sandbox in self._index().values()
                if sandbox.is_free
                and sandbox.reservation_id == reservation_id
                and (reservation_id is not None or self._segment(sandbox.sandbox_id) == segment)
                and (
                    sandbox.status_order > at
                    or (sandbox.status_order == at and (position.after is None or sandbox.sandbox_id > position.after))
                )
            )
        page = [sandbox for _, _, sandbox in onwards[:limit]]
        if len(page) == limit:
            place = segment * ORDER_LIMIT + page[-1].status_order * scale
            read_on, distance = Position(place, page[-1].sandbox_id), place - position.at
        else:
            read_on, distance = Position(end % self.positions), end - position.at
        matching = tuple(candidate_of(sandbox) for sandbox in page if sandbox.name.startswith(prefix))
        return CandidatePage(matching, read_on, distance)

    def allocate(
        self, candidate: Candidate, claim: Claim, *, by: Actor, token: str, place_id: str | None = None
    ) -> AllocateAnswer:
        with self._called("allocate"):
            if token in self._tokens:
                assert self._tokens[token] == (candidate, claim, place_id), "a token belongs to one request"
                return Allocated()
            key = (claim.lease.track_id, claim.lease.idempotency_key)
            held = self._claim(*key)
            if held is not None:
                return ClaimHeld(held)
            waiting = self._waiting(*key)
            if waiting is not None and waiting.place_id != place_id:
                return PlaceHeld(waiting.place_id)
            is_spoiled = candidate.sandbox_id in self._spoiled
            sandbox = None if is_spoiled else self._records.get(candidate.sandbox_id)
            shown = (sandbox.version, sandbox.reservation_id) if sandbox is not None and sandbox.is_free else None
            if sandbox is None or shown != (candidate.version, candidate.reservation_id):
                return CandidateGone(sandbox)
            allocation = begin(sandbox, claim.lease, by=by)
            # A planted bug may write an earlier record over this one, so that its fact is there already.
            is_known = allocation.fact is not None and _name_of(allocation.fact) in self._fact_names
            if is_known or not self._draw(candidate, claim.lease.allocated_at):
                return CandidateGone(None) if is_known else ReservationShut()
            self._write(allocation)
            self._tokens[token] = (candidate, claim, place_id)
            self._claims[key] = claim
            if waiting is not None:
                del self._line[waiting.place_id]
            return Allocated()

    def read_line(self, *, limit: int | None = None) -> list[Place]:
        with self._called("read_line"):
            return [self._line[place_id] for place_id in sorted(self._line.keys() - self._spoiled_places)[:limit]]

    def read_place(self, track_id: str, idempotency_key: str) -> Place | None:
        with self._called("read_place"):
            place = self._waiting(track_id, idempotency_key)
            if place is not None and place.place_id in self._spoiled_places:
                raise UnreadableRecord(f"place {place.place_id!r}", SPOILED, track_id=track_id)
            return place

    def read_places(self, track_id: str) -> list[Place]:
        with self._called("read_places"):
            readable = sorted(self._line.keys() - self._spoiled_places)
            return [place for place in map(self._line.__getitem__, readable) if place.track_id == track_id]

    def join(self, place: Place) -> JoinAnswer:
        with self._called("join"):
            held = self._claim(place.track_id, place.idempotency_key)
            if held is not None:
                return ClaimHeld(held)
            waiting = self._waiting(place.track_id, place.idempotency_key)
            if waiting is not None:
                return PlaceHeld(waiting.place_id)
            self._line[place.place_id] = place
            return Joined()

    def renew(self, place: Place) -> bool:
        with self._called("renew"):
            known = self._line.get(place.place_id)
            if known is not None:
                wish = replace(known.wish, reservations=place.wish.reservations)
                self._line[place.place_id] = replace(known, back_by=place.back_by, wish=wish)
            return known is not None

    def leave(self, place: Place, *, unless_renewed: bool = False) -> bool:
        with self._called("leave"):
            known = self._line.get(place.place_id)
            if known is None or (unless_renewed and known.back_by != place.back_by):
                return False
            del self._line[place.place_id]
            return True

    def _waiting(self, track_id: str, idempotency_key: str) -> Place | None:
        """Return the place of a (track, key)."""
        owners = (each for each in self._line.values() if each.track_id == track_id)
        return next((each for each in owners if each.idempotency_key == idempotency_key), None)

    def commit(self, *changes: Change) -> None:
        assert 0 < len(changes) <= COMMIT_AT_ONCE
        assert len(changes) == 1 or all(each.before is None for each in changes), "a commit of many changes only adds"
        assert len(changes) == 1 or not any(each.result.reservation_id for each in changes), "and reserves nothing"
        with self._called(kind_of(*changes)):
            for each in changes:
                self._check(each, alone=len(changes) == 1)
            for each in changes:
                self._commit(each)

    def _check(self, change: Change, *, alone: bool) -> None:
        """Raise `Conflict` if a change does not start from the stored record."""
        before, after = change.before, change.after
        current = self._records.get(change.sandbox_id)
        if before is None:
            if current is not None and not (alone and current == after):
                self._refuse_spoiled(change.sandbox_id)
                raise Conflict(f"sandbox {change.sandbox_id} has a record", current=current)
            self._check_account(change.result)
            if current is None:
                self._check_reservation(change)
            return
        if current == after:
            return
        if current is None or (current.status, current.version) != (before.status, before.version):
            self._refuse_spoiled(before.sandbox_id)
            raise Conflict(f"sandbox {before.sandbox_id} has changed", current=current)
        assert after is None or _lease_id(after) in {None, _lease_id(before)}, "a lease begins by `allocate`"
        if after is not None and after.account_key != before.account_key:
            self._check_account(after)
        self._check_reservation(change)

    def _check_reservation(self, change: Change) -> None:
        """Raise `ReservationFull` if a change sets a sandbox aside for a reservation that may not have it."""
        was = change.before.reservation_id if change.before else None
        wanted = change.after.reservation_id if change.after else None
        assert was == wanted or None in {was, wanted}, "a sandbox leaves one reservation before the next"
        if wanted is None or wanted == was:
            return
        reservation = self.reservations.get(wanted)
        at = change.result.updated_at
        if reservation is None or not reservation.needs_at(change.result.name, at) or reservation.lacking <= 0:
            raise ReservationFull("the reservation lacks no sandbox", current=change.before)

    def _follow_reservation(self, change: Change) -> None:
        """Count a change in the reservation that it enters or leaves."""
        was = change.before.reservation_id if change.before else None
        becomes = change.after.reservation_id if change.after else None
        if was == becomes:
            return
        reservation = self.reservations.get(becomes or was or "")
        if reservation is not None and (becomes or reservation.set_aside):
            self._count(reservation, set_aside=1 if becomes else -1)

    def _draw(self, candidate: Candidate, at: int) -> bool:
        """Draw a sandbox from its reservation, if it has one. Return False if the reservation is not open."""
        if candidate.reservation_id is None:
            return True
        reservation = self.reservations.get(candidate.reservation_id)
        if reservation is None or not reservation.set_aside or not reservation.is_open_at(at):
            return False
        self._count(reservation, set_aside=-1, drawn=1)
        return True

    def _count(self, reservation: Reservation, *, set_aside: int, drawn: int = 0) -> None:
        self.reservations[reservation.reservation_id] = replace(
            reservation, set_aside=reservation.set_aside + set_aside, drawn=reservation.drawn + drawn
        )

    def _commit(self, change: Change) -> None:
        before, after = change.before, change.after
        if self._records.get(change.sandbox_id) == after:
            return
        if before is not None and (after is None or after.account_key != before.account_key):
            self._leave_account(before)
        if after is not None and (before is None or after.account_key != before.account_key):
            self._accounts[after.account_key] = after.sandbox_id
        self._follow_reservation(change)
        self._write(change)
        lease = before.lease if before else None
        becomes = after.lease if after else None
        if lease is not None and lease != becomes:
            claim = self._claims.get((lease.track_id, lease.idempotency_key))
            if claim is not None and claim.lease.lease_id == lease.lease_id:
                if becomes is None:
                    del self._claims[lease.track_id, lease.idempotency_key]
                else:
                    longer = replace(claim.lease, expires_at=becomes.expires_at)
                    self._claims[lease.track_id, lease.idempotency_key] = replace(claim, lease=longer)

    def _write(self, change: Change) -> None:
        self._check_fact(change)
        self._put(change.sandbox_id, change.after)
        if change.fact is not None:
            self._keep(change.fact)
            if change.after is None:
                self._removed[change.sandbox_id] = change.fact.version
        ended, wiped = ended_by(change), wiped_by(change)
        if ended is not None:
            self.usage[ended.lease_id] = ended
        line = self.usage.get(wiped.lease_id) if wiped is not None else None
        if wiped is not None and line is not None and line.wiped_at is None:
            self.usage[wiped.lease_id] = replace(line, wiped_at=wiped.wiped_at)

    def read_usage(self, *, since: int, until: int) -> Iterator[UsageLine]:
        with self._called("read_usage"):
            return iter([line for line in self.usage.values() if since <= line.ended_at < until])

    def _check_fact(self, change: Change) -> None:
        """Fail if a change has no fact, or a fact that was written before."""
        before, after, fact = change.before, change.after, change.fact
        seen = (before.status, before.lease) if before else None
        becomes = (after.status, after.lease) if after else None
        assert fact or seen == becomes, "a change of status, holder or expiry has its fact"
        if fact is not None:
            name = _name_of(fact)
            assert name not in self._fact_names, "a change has one fact"
            assert after is None or fact.version == after.version, "a fact has the version of its record"
            self._fact_names.add(name)

    def record_accounts(self, *sandboxes: Sandbox) -> None:
        assert 0 < len(sandboxes) <= COMMIT_AT_ONCE
        with self._called("record_accounts"):
            for sandbox in sandboxes:
                self._check_account(sandbox)
            self._accounts |= {sandbox.account_key: sandbox.sandbox_id for sandbox in sandboxes}

    def read_all(self, *, with_accounts: bool = True, consistent: bool = False, known: Sequence[Sandbox] = ()) -> Pool:
        with self._called("read_all"):
            index = self._index()
            shown = self._records if consistent else index
            kept = {
                each.sandbox_id: each
                for each in known
                if each.version == getattr(index.get(each.sandbox_id), "version", None)
            }
            readable = [
                kept.get(each, shown[each]) for each in self._met() if each in shown and each not in self._spoiled
            ]
            keys = {record.account_key for record in readable} & self._accounts.keys() if with_accounts else ()
            unreadable = tuple(Unreadable(each, SPOILED) for each in sorted(self._spoiled & self._records.keys()))
            return Pool(tuple(readable), {key: self._accounts[key] for key in keys}, unreadable)

    def read_reservations(self) -> OpenReservations:
        with self._called("read_reservations"):
            return OpenReservations(self.bookings_version, tuple(self.reservations.values()))

    def read_booked(self) -> tuple[Reservation, ...]:
        with self._called("read_booked"):
            return tuple(self.reservations.values())

    def read_reservation(self, reservation_id: str) -> Reservation | None:
        with self._called("read_reservation"):
            return self.reservations.get(reservation_id) or self._archive.get(reservation_id)

    def write_reservation(
        self, before: Reservation | None, after: Reservation, *, version: int, fact: PoolFact | None = None
    ) -> None:
        with self._called("write_reservation"):
            stored = self.reservations.get(after.reservation_id)
            known = stored or self._archive.get(after.reservation_id)
            if known is not None and is_same(known, after):
                return
            if version != self.bookings_version:
                raise Conflict("the reservations were changed by another writer", current=None)
            if before is None:
                if stored is not None:
                    raise Conflict("the reservation exists", current=None)
                self.reservations[after.reservation_id] = after
            else:
                if stored is None or not is_same(stored, before):
                    raise Conflict("the reservation was changed by another writer", current=None)
                is_moved = after.starts_at != before.starts_at
                if is_moved and stored.opened_at != before.opened_at:
                    raise Conflict("the reservation has begun", current=None)
                opened_at = after.opened_at if is_moved else stored.opened_at
                counted = replace(after, set_aside=stored.set_aside, drawn=stored.drawn, opened_at=opened_at)
                if counted.count < stored.count and counted.lacking < 0:
                    raise Conflict("more sandboxes are set aside", current=None)
                self.reservations[after.reservation_id] = counted
            self.bookings_version += 1
            self._keep(*[fact] if fact is not None else [])

    def mark_opened(self, reservation: Reservation, fact: PoolFact) -> None:
        with self._called("mark_opened"):
            stored = self.reservations.get(reservation.reservation_id)
            if stored is None or stored.opened_at is not None or stored.stage is not ReservationStage.BOOKED:
                raise Conflict("the reservation has begun already", current=None)
            if stored.version != reservation.version:
                raise Conflict("the reservation has begun already", current=None)
            self.reservations[reservation.reservation_id] = replace(stored, opened_at=reservation.opened_at)
            self._keep(fact)

    def archive_reservation(self, reservation: Reservation) -> None:
        with self._called("archive_reservation"):
            stored = self.reservations.get(reservation.reservation_id)
            if stored is None:
                return
            if stored.set_aside or stored.stage is ReservationStage.BOOKED:
                raise Conflict("sandboxes are set aside for the reservation", current=None)
            self._archive[reservation.reservation_id] = self.reservations.pop(reservation.reservation_id)

    def list_archived(self, *, limit: int, cursor: str | None) -> ReservationPage:
        with self._called("list_archived"):
            ordered = sorted(self._archive.values(), key=lambda each: (-(each.ended_at or 0), each.reservation_id))
            first = read_cursor("archived", cursor, default=0)
            more = write_cursor("archived", first + limit) if len(ordered) > first + limit else None
            return ReservationPage(tuple(ordered[first : first + limit]), more)

    def read_removed(self, sandbox_ids: Sequence[str]) -> Mapping[str, int]:
        with self._called("read_removed"):
            return {each: self._removed[each] for each in sandbox_ids if each in self._removed}

    def read_history(self, sandbox_id: str, *, limit: int, cursor: str | None) -> FactPage:
        with self._called("read_history"):
            told = [fact for fact in self.facts if isinstance(fact, Fact) and fact.sandbox_id == sandbox_id]
            before = read_cursor(f"history of {sandbox_id}", cursor, default=2**63)
            rest = sorted((fact for fact in told if fact.version < before), key=lambda fact: -fact.version)
            page = tuple(rest[:limit])
            more = write_cursor(f"history of {sandbox_id}", page[-1].version) if len(rest) > limit else None
            return FactPage(page, more)

    def read_feed(self, *, since: int, cursor: str | None, limit: int, newest_first: bool = False) -> FeedPage:
        with self._called("read_feed"):
            told = sorted(self.facts, key=lambda fact: fact.version if isinstance(fact, Fact) else fact.at * 1000)
            orders = [fact.version if isinstance(fact, Fact) else fact.at * 1000 for fact in told]
            begin = bisect_left(orders, since * 1000)
            if newest_first:
                floor, end = map(int, read_cursor("newest", cursor, default=f"{begin} {len(told)}").split())
                at = max(floor, end - limit)
                return FeedPage(tuple(reversed(told[at:end])), write_cursor("newest", f"{floor} {at}"), at == floor)
            first = read_cursor("feed", cursor, default=begin)
            page = tuple(told[first : first + limit])
            at = first + len(page)
            return FeedPage(page, write_cursor("feed", at), at == len(told))

    def read_due(self, status: Status, *, until: int) -> Iterator[str]:
        with self._called("read_due"):
            due = [
                (sandbox.status_order, sandbox.sandbox_id)
                for sandbox in self._index().values()
                if sandbox.status is status and sandbox.status_order <= until
            ]
        return iter([sandbox_id for _, sandbox_id in sorted(due)])

    def list_sandboxes(self, status: Status | None, *, limit: int, cursor: str | None) -> SandboxPage:
        with self._called("list_sandboxes"):
            after = read_cursor(status, cursor, default="")
            source = self._index() if status else self._records
            listed = sorted(
                (sandbox for sandbox in source.values() if status in {None, sandbox.status}),
                key=lambda sandbox: sandbox.sandbox_id,
            )
        rest = [sandbox for sandbox in listed if sandbox.sandbox_id > after]
        page = tuple(rest[:limit])
        return SandboxPage(
            tuple(each for each in page if each.sandbox_id not in self._spoiled),
            write_cursor(status, page[-1].sandbox_id) if len(rest) > limit else None,
            tuple(Unreadable(each.sandbox_id, SPOILED) for each in page if each.sandbox_id in self._spoiled),
        )

    def count(self) -> Mapping[Status, int]:
        with self._called("count"):
            counted = Counter(sandbox.status for sandbox in self._index().values())
        return {status: counted[status] for status in Status}

    def read_next_due(self, status: Status, *, limit: int) -> Sequence[int]:
        with self._called("read_next_due"):
            orders = (each.status_order for each in self._index().values() if each.status is status)
            return sorted(orders)[:limit]

    def oldest_pending_deletion(self) -> int | None:
        with self._called("oldest_pending_deletion"):
            asked = [
                sandbox.wipe.requested_at
                for sandbox in self._index().values()
                if sandbox.status is Status.PENDING_DELETION and sandbox.wipe and not sandbox.is_cooling
            ]
        return min((each for each in asked if each is not None), default=None)

    def read_watermark(self) -> Watermark | None:
        with self._called("read_watermark"):
            return self._watermark

    def write_watermark(self, watermark: Watermark) -> None:
        with self._called("write_watermark"):
            if self._watermark is None or watermark.synced_at >= self._watermark.synced_at:
                self._watermark = watermark

    def read_pauses(self) -> Pauses:
        with self._called("read_pauses"):
            return self._pauses

    def set_pauses(self, before: Pauses, after: Pauses, *facts: PoolFact) -> Pauses:
        with self._called("set_pauses"):
            changes = {name: getattr(after, name) for name in PAUSABLE if getattr(before, name) != getattr(after, name)}
            if all(getattr(self._pauses, name) == pause for name, pause in changes.items()):
                return self._pauses
            for name in changes:
                if (getattr(self._pauses, name) is None) != (getattr(before, name) is None):
                    raise Conflict("another request has just paused or resumed the same", current=None)
            self._pauses = replace(self._pauses, **changes)
            self._keep(*facts)
            return self._pauses

    def record(self, fact: PoolFact) -> None:
        with self._called("record"):
            if fact not in self.facts:
                self._keep(fact)

    def finish_upgrade(self) -> None:
        with self._called("finish_upgrade"):
            self.upgraded = UPGRADE

    def read_counts(self) -> CountRecord:
        with self._called("read_counts"):
            return self._counts

    def write_counts(self, record: CountRecord, *, instead_of: str | None) -> None:
        with self._called("write_counts"):
            if self._counts.turn not in {instead_of, record.turn}:
                raise Conflict("another process has just written the counts", current=None)
            self._counts = record

    def write_sample(self, sample: Sample) -> None:
        with self._called("write_sample"):
            known = self.samples.get(sample.at, sample)
            self.samples[sample.at] = replace(sample, allocates=known.allocates if known is not sample else {})

    def add_allocates(self, minute: int, allocates: Mapping[AllocateOutcome, int]) -> None:
        with self._called("add_allocates"):
            known = self.samples.get(minute, Sample(at=minute))
            added = Counter(known.allocates) + Counter(allocates)
            self.samples[minute] = replace(known, allocates=dict(added))

    def read_samples(self, *, since: int, until: int) -> list[Sample]:
        with self._called("read_samples"):
            return [self.samples[at] for at in sorted(self.samples) if since <= at < until]

    def read_ending(self, *, until: int) -> Iterator[tuple[str, int]]:
        with self._called("read_ending"):
            shown = [each for each in self._index().values() if each.status is Status.ALLOCATED]
            return iter([(each.sandbox_id, each.version) for each in shown if each.status_order <= until])

    def read_level(self) -> PoolLevel:
        with self._called("read_level"):
            return self._level

    def write_level(self, before: PoolLevel, after: PoolLevel, fact: PoolFact) -> None:
        with self._called("write_level"):
            if self._level == after:
                return
            if self._level != before:
                raise Conflict("another run has just told the pool's level", current=None)
            self._level = after
            self.facts.append(fact)

    def ping(self) -> TableState:
        with self._called("ping"):
            synced_at = self._watermark.synced_at if self._watermark else None
            return TableState(
                identity=self.identity,
                is_restored=self.is_restored,
                upgraded=self.upgraded,
                synced_at=None if synced_at is None or synced_at <= self.last_foreign_sync else synced_at,
                time=self._clock.now() if self._clock else None,
            )

    def has_sandboxes(self) -> bool:
        with self._called("has_sandboxes"):
            return bool(self._index())

    def identify(self, identity: str, *, instead_of: str | None, last_foreign_sync: int | None = None) -> None:
        with self._called("identify"):
            if self.identity not in {instead_of, identity}:
                raise Conflict("the table was given another identity", current=None)
            self.identity, self.is_restored = identity, False
            self.last_foreign_sync = self.last_foreign_sync if last_foreign_sync is None else last_foreign_sync

    def _called(self, method: str) -> AbstractContextManager[None]:
        return _Called(self._lock, self.calls, method)

    def _refuse_spoiled(self, sandbox_id: str) -> None:
        if sandbox_id in self._spoiled:
            raise UnreadableRecord(f"sandbox {sandbox_id!r}", SPOILED, sandbox_id=sandbox_id)

    def _claim(self, track_id: str, idempotency_key: str) -> Claim | None:
        if (track_id, idempotency_key) in self._spoiled_claims:
            raise UnreadableRecord(f"a claim of track {track_id!r}", SPOILED, track_id=track_id)
        return self._claims.get((track_id, idempotency_key))

    def _segment(self, sandbox_id: str) -> int:
        return zlib.crc32(sandbox_id.encode()) % self._shards

    def _index(self) -> Mapping[str, Sandbox]:
        return self._records

    def _met(self) -> Sequence[str]:
        """Return the ids that a read of the whole index shows."""
        return list(self._records)

    def _put(self, sandbox_id: str, sandbox: Sandbox | None) -> None:
        self.on_write(self._records.get(sandbox_id), sandbox)
        self._place(sandbox_id, sandbox)

    def _place(self, sandbox_id: str, sandbox: Sandbox | None) -> None:
        if sandbox is None:
            self._records.pop(sandbox_id, None)
        else:
            self._records[sandbox_id] = sandbox

    def _check_account(self, sandbox: Sandbox) -> None:
        """Raise `Conflict` if another sandbox has the account. An account record without a sandbox does not count."""
        owner_id = self._accounts.get(sandbox.account_key, sandbox.sandbox_id)
        owner = self._records.get(owner_id)
        if owner and owner_id != sandbox.sandbox_id and owner.account_key == sandbox.account_key:
            raise Conflict(f"the account of sandbox {sandbox.sandbox_id} belongs to sandbox {owner_id}", current=None)

    def _leave_account(self, sandbox: Sandbox) -> None:
        if self._accounts.get(sandbox.account_key) == sandbox.sandbox_id:
            del self._accounts[sandbox.account_key]


class LaggingStore(MemoryStore):
    """A `MemoryStore` whose index shows each record as it was up to `lag` seconds ago.

    A read of the whole index may miss a record that has just moved in it.
    """

    def __init__(self, clock: Clock, rng: Random, *, lag: float = 2.0, shards: int = 4) -> None:
        super().__init__(clock, shards=shards)
        self._time = clock
        self._rng = rng
        self._lag = lag
        self._past: dict[str, deque[tuple[float, Sandbox | None]]] = defaultdict(deque)
        """For each record its earlier states, and until when each lasted."""

    def _put(self, sandbox_id: str, sandbox: Sandbox | None) -> None:
        before = self._records.get(sandbox_id)
        super()._put(sandbox_id, sandbox)
        self._past[sandbox_id].append((self._time.monotonic(), before))

    def seed(self, *sandboxes: Sandbox) -> None:
        """Put records in place, long enough ago for the index to know them."""
        super().seed(*sandboxes)
        for sandbox in sandboxes:
            self._past.pop(sandbox.sandbox_id, None)

    def _met(self) -> Sequence[str]:
        self._forget_past()
        moving = {sandbox_id for sandbox_id, past in self._past.items() if past}
        return [each for each in self._records if each not in moving or self._rng.random() < 0.5]

    def _forget_past(self) -> None:
        settled = self._time.monotonic() - self._lag
        for past in self._past.values():
            while past and past[0][0] <= settled:
                past.popleft()

    def _index(self) -> Mapping[str, Sandbox]:
        shown = dict(self._records)
        now = self._time.monotonic()
        self._forget_past()
        for sandbox_id, past in self._past.items():
            moment = now - self._rng.uniform(0, self._lag)
            old = next((state for until, state in past if until > moment), shown.get(sandbox_id))
            shown.pop(sandbox_id, None)
            if old is not None:
                shown[sandbox_id] = old
        return shown


class StoreWrapper(WebhooksWrapper):
    """Passes every call on to another store. Subclasses change that."""

    def __init__(self, inner: SandboxStore) -> None:
        self.inner = inner

    @property
    def positions(self) -> int:
        return self.inner.positions

    def get(self, sandbox_id: str) -> Sandbox | None:
        return self._call("get", lambda: self.inner.get(sandbox_id))

    def get_claim(self, track_id: str, idempotency_key: str) -> Claim | None:
        return self._call("get_claim", lambda: self.inner.get_claim(track_id, idempotency_key))

    def read_claims(self, track_id: str) -> list[Claim]:
        return self._call("read_claims", lambda: self.inner.read_claims(track_id))

    def read_candidates(
        self, position: Position, *, limit: int, prefix: str, reservation_id: str | None = None
    ) -> CandidatePage:
        return self._call(
            "read_candidates",
            lambda: self.inner.read_candidates(position, limit=limit, prefix=prefix, reservation_id=reservation_id),
        )

    def read_reservations(self) -> OpenReservations:
        return self._call("read_reservations", self.inner.read_reservations)

    def read_booked(self) -> tuple[Reservation, ...]:
        return self._call("read_booked", self.inner.read_booked)

    def read_reservation(self, reservation_id: str) -> Reservation | None:
        return self._call("read_reservation", lambda: self.inner.read_reservation(reservation_id))

    def write_reservation(
        self, before: Reservation | None, after: Reservation, *, version: int, fact: PoolFact | None = None
    ) -> None:
        self._call("write_reservation", lambda: self.inner.write_reservation(before, after, version=version, fact=fact))

    def mark_opened(self, reservation: Reservation, fact: PoolFact) -> None:
        self._call("mark_opened", lambda: self.inner.mark_opened(reservation, fact))

    def archive_reservation(self, reservation: Reservation) -> None:
        self._call("archive_reservation", lambda: self.inner.archive_reservation(reservation))

    def list_archived(self, *, limit: int, cursor: str | None) -> ReservationPage:
        return self._call("list_archived", lambda: self.inner.list_archived(limit=limit, cursor=cursor))

    def allocate(
        self, candidate: Candidate, claim: Claim, *, by: Actor, token: str, place_id: str | None = None
    ) -> AllocateAnswer:
        return self._call(
            "allocate", lambda: self.inner.allocate(candidate, claim, by=by, token=token, place_id=place_id)
        )

    def read_line(self, *, limit: int | None = None) -> list[Place]:
        return self._call("read_line", lambda: self.inner.read_line(limit=limit))

    def read_place(self, track_id: str, idempotency_key: str) -> Place | None:
        return self._call("read_place", lambda: self.inner.read_place(track_id, idempotency_key))

    def read_places(self, track_id: str) -> list[Place]:
        return self._call("read_places", lambda: self.inner.read_places(track_id))

    def join(self, place: Place) -> JoinAnswer:
        return self._call("join", lambda: self.inner.join(place))

    def renew(self, place: Place) -> bool:
        return self._call("renew", lambda: self.inner.renew(place))

    def leave(self, place: Place, *, unless_renewed: bool = False) -> bool:
        return self._call("leave", lambda: self.inner.leave(place, unless_renewed=unless_renewed))

    def commit(self, *changes: Change) -> None:
        self._call(kind_of(*changes), lambda: self.inner.commit(*changes))

    def record_accounts(self, *sandboxes: Sandbox) -> None:
        self._call("record_accounts", lambda: self.inner.record_accounts(*sandboxes))

    def read_all(self, *, with_accounts: bool = True, consistent: bool = False, known: Sequence[Sandbox] = ()) -> Pool:
        return self._call(
            "read_all",
            lambda: self.inner.read_all(with_accounts=with_accounts, consistent=consistent, known=known),
        )

    def read_removed(self, sandbox_ids: Sequence[str]) -> Mapping[str, int]:
        return self._call("read_removed", lambda: self.inner.read_removed(sandbox_ids))

    def read_history(self, sandbox_id: str, *, limit: int, cursor: str | None) -> FactPage:
        return self._call("read_history", lambda: self.inner.read_history(sandbox_id, limit=limit, cursor=cursor))

    def read_feed(self, *, since: int, cursor: str | None, limit: int, newest_first: bool = False) -> FeedPage:
        return self._call(
            "read_feed",
            lambda: self.inner.read_feed(since=since, cursor=cursor, limit=limit, newest_first=newest_first),
        )

    def read_due(self, status: Status, *, until: int) -> Iterator[str]:
        return self._call("read_due", lambda: self.inner.read_due(status, until=until))

    def list_sandboxes(self, status: Status | None, *, limit: int, cursor: str | None) -> SandboxPage:
        return self._call("list_sandboxes", lambda: self.inner.list_sandboxes(status, limit=limit, cursor=cursor))

    def count(self) -> Mapping[Status, int]:
        return self._call("count", self.inner.count)

    def read_next_due(self, status: Status, *, limit: int) -> Sequence[int]:
        return self._call("read_next_due", lambda: self.inner.read_next_due(status, limit=limit))

    def oldest_pending_deletion(self) -> int | None:
        return self._call("oldest_pending_deletion", self.inner.oldest_pending_deletion)

    def read_usage(self, *, since: int, until: int) -> Iterator[UsageLine]:
        return self._call("read_usage", lambda: self.inner.read_usage(since=since, until=until))

    def read_watermark(self) -> Watermark | None:
        return self._call("read_watermark", self.inner.read_watermark)

    def write_watermark(self, watermark: Watermark) -> None:
        self._call("write_watermark", lambda: self.inner.write_watermark(watermark))

    def read_pauses(self) -> Pauses:
        return self._call("read_pauses", self.inner.read_pauses)

    def set_pauses(self, before: Pauses, after: Pauses, *facts: PoolFact) -> Pauses:
        return self._call("set_pauses", lambda: self.inner.set_pauses(before, after, *facts))

    def record(self, fact: PoolFact) -> None:
        self._call("record", lambda: self.inner.record(fact))

    def finish_upgrade(self) -> None:
        self._call("finish_upgrade", self.inner.finish_upgrade)

    def read_counts(self) -> CountRecord:
        return self._call("read_counts", self.inner.read_counts)

    def write_counts(self, record: CountRecord, *, instead_of: str | None) -> None:
        self._call("write_counts", lambda: self.inner.write_counts(record, instead_of=instead_of))

    def write_sample(self, sample: Sample) -> None:
        self._call("write_sample", lambda: self.inner.write_sample(sample))

    def add_allocates(self, minute: int, allocates: Mapping[AllocateOutcome, int]) -> None:
        self._call("add_allocates", lambda: self.inner.add_allocates(minute, allocates))

    def read_samples(self, *, since: int, until: int) -> Sequence[Sample]:
        return self._call("read_samples", lambda: self.inner.read_samples(since=since, until=until))

    def read_ending(self, *, until: int) -> Iterator[tuple[str, int]]:
        return self._call("read_ending", lambda: self.inner.read_ending(until=until))

    def read_level(self) -> PoolLevel:
        return self._call("read_level", self.inner.read_level)

    def write_level(self, before: PoolLevel, after: PoolLevel, fact: PoolFact) -> None:
        self._call("write_level", lambda: self.inner.write_level(before, after, fact))

    def ping(self) -> TableState:
        return self._call("ping", self.inner.ping)

    def has_sandboxes(self) -> bool:
        return self._call("has_sandboxes", self.inner.has_sandboxes)

    def identify(self, identity: str, *, instead_of: str | None, last_foreign_sync: int | None = None) -> None:
        self._call(
            "identify",
            lambda: self.inner.identify(identity, instead_of=instead_of, last_foreign_sync=last_foreign_sync),
        )

    def _call(self, method: str, call: Callable[[], Answer]) -> Answer:
        return call()


def at_once(work: Callable[[], None]) -> None:
    """Do in this thread what is read aside in service, so that a test knows when it is done."""
    work()


class FakeTableMemory:
    """The memory of the table that all processes of a test share."""

    def __init__(self) -> None:
        self.known: KnownTable | None = None
        self.is_away = False
        self._accepted = 0

    def recall(self) -> KnownTable | None:
        self._check()
        return self.known

    def remember(self, table: KnownTable) -> None:
        self._check()
        if self.known is None:
            self.known = table
        elif self.known.identity == table.identity:
            self.known = replace(self.known, had_records=table.had_records)

    def replace(self, identity: str) -> None:
        self._check()
        self._accepted += 1
        self.known = KnownTable(identity=identity, accepted_at=self._accepted)

    def _check(self) -> None:
        if self.is_away:
            raise QueueUnavailable("the memory does not answer")


class TimelessStore(StoreWrapper):
    """Hides the time of a real store from a process that has a fake clock."""

    def ping(self) -> TableState:
        return replace(super().ping(), time=None)


class Crashed(BaseException):
    """The process is killed here and does nothing more."""


class Fault(Enum):
    """A way in which `FlakyStore` fails a call."""

    REFUSED = "refused"
    """Not applied, and the caller knows."""
    LOST_BEFORE = "lost before"
    """Not applied, and the caller does not know."""
    LOST_AFTER = "lost after"
    """Applied, and the caller does not know."""
    CONTENDED = "contended"
    """For `allocate` only: not applied because of another transaction."""
    CRASH_BEFORE = "crash before"
    """Not applied, and the caller is killed."""
    CRASH_AFTER = "crash after"
    """Applied, and the caller is killed."""


WRITES = frozenset(
    {
        "allocate",
        "join",
        "renew",
        "leave",
        "end_allocation",
        "add",
        "record_accounts",
        "update",
        "remove",
        "write_watermark",
        "set_pauses",
        "record",
        "identify",
        "finish_upgrade",
        "write_counts",
        "write_reservation",
        "mark_opened",
        "archive_reservation",
        "write_endpoint",
        "add_delivery",
        "told",
        "write_delivery",
        "write_sample",
        "add_allocates",
        "write_level",
    }
)


class FlakyStore(StoreWrapper):
    """Fails calls by a script. Other calls fail at random with `rng`, a share `rate`, in ways that their method allows."""

    def __init__(self, inner: SandboxStore, *, rng: Random | None = None, rate: float = 0.0) -> None:
        super().__init__(inner)
        self.calls: Counter[str] = Counter()
        self.before_call: Callable[[str], object] = lambda _: None
        """Called with the method's name before each call; it may let time pass, or act as another process."""
        self._rng = rng
        self._rate = rate
        self._script: dict[str, deque[Fault | BaseException | None]] = defaultdict(deque)
        self._writes: deque[Fault | None] = deque()

    def fail(self, method: str, *faults: Fault | BaseException | None) -> None:
        """Fail the next calls of a method, one by one: by a fault or an exception. None lets a call succeed."""
        self._script[method].extend(faults)

    def just_before(self, method: str, act: Callable[[], object]) -> None:
        """Let somebody act, once, just before the next call of a method."""
        waiting = [act]

        def before(called: str) -> None:
            if called == method and waiting:
                waiting.pop()()

        self.before_call = before

    def fail_writes(self, *faults: Fault | None) -> None:
        """Fail the next writes of any kind by these faults, in place of an earlier list."""
        self._writes = deque(faults)

    def hold_up(self) -> tuple[threading.Event, threading.Event]:
        """Make calls wait; return the event that a call has come, and the event that lets it go on."""
        come, let_through = threading.Event(), threading.Event()

        def wait(_: str) -> None:
            come.set()
            assert let_through.wait(30)

        self.before_call = wait
        return come, let_through

    def allocate(
        self, candidate: Candidate, claim: Claim, *, by: Actor, token: str, place_id: str | None = None
    ) -> AllocateAnswer:
        if self._script["allocate"] and self._script["allocate"][0] is Fault.CONTENDED:
            self._script["allocate"][0] = None
            return self._call("allocate", Contended)
        return super().allocate(candidate, claim, by=by, token=token, place_id=place_id)

    def _call(self, method: str, call: Callable[[], Answer]) -> Answer:
        self.calls[method] += 1
        self.before_call(method)
        fault = self._draw(method)
        if fault is None:
            return call()
        if isinstance(fault, BaseException):
            raise fault
        if fault is Fault.REFUSED:
            raise StoreUnavailable("the store refused")
        if fault in {Fault.LOST_AFTER, Fault.CRASH_AFTER}:
            with suppress(Conflict):
                call()
        if fault in {Fault.CRASH_BEFORE, Fault.CRASH_AFTER}:
            raise Crashed
        raise OutcomeUnknown("the answer was lost")

    def _draw(self, method: str) -> Fault | BaseException | None:
        if self._script[method]:
            return self._script[method].popleft()
        if self._writes and method in WRITES:
            return self._writes.popleft()
        if self._rng is None or self._rng.random() >= self._rate:
            return None
        if method in WRITES:
            return self._rng.choice([Fault.REFUSED, Fault.LOST_BEFORE, Fault.LOST_AFTER])
        return Fault.REFUSED


class Rival(Enum):
    """The act of another writer on a candidate just before `LosingStore.allocate`."""

    TAKES = "takes"
    RENAMES = "renames"


class LosingStore(StoreWrapper):
    """Lets another writer come first, once for each operation: a (method, sandbox), or an allocate's (track, key).

    The other writer takes or renames a candidate, ends an allocation, adds an account, or changes a record's version.
    `losses` counts the lost operations by method.
    """

    def __init__(self, inner: SandboxStore, *, rival: Rival = Rival.TAKES) -> None:
        super().__init__(inner)
        self.losses: Counter[str] = Counter()
        self._rival = rival
        self._lost: set[tuple[str, ...]] = set()

    def allocate(
        self, candidate: Candidate, claim: Claim, *, by: Actor, token: str, place_id: str | None = None
    ) -> AllocateAnswer:
        current = self.inner.get(candidate.sandbox_id)
        fits = current is not None and current.is_free and current.version == candidate.version
        lease = claim.lease
        if current is not None and fits and self._first("allocate", lease.track_id, lease.idempotency_key):
            if self._rival is Rival.TAKES:
                rival = f"rival-of-{lease.track_id}"
                theirs = replace(lease, track_id=rival, idempotency_key=rival, lease_id=f"rival-{lease.lease_id}")
                self.inner.allocate(candidate, replace(claim, lease=theirs), by=BY, token=f"rival-{token}")
            else:
                self._bump(replace(current, name=f"{current.name}-renamed"))
        return super().allocate(candidate, claim, by=by, token=token, place_id=place_id)

    def commit(self, *changes: Change) -> None:
        kind = kind_of(*changes)
        for each in changes:
            if self._first(kind, each.sandbox_id):
                self._be_first(kind, each)
        super().commit(*changes)

    def _be_first(self, kind: str, change: Change) -> None:
        current = self.inner.get(change.sandbox_id)
        if kind == "add":
            if current is None:
                self.inner.commit(add_of(replace(change.result, version=change.result.version - 1)))
        elif kind != "end_allocation":
            self._bump(current)
        elif current is not None and current.lease is not None:
            now = change.result.updated_at + 1
            self.inner.commit(end(current, reason=DeletionReason.RELEASED, by=BY, now=now))

    def _first(self, *operation: str) -> bool:
        if operation in self._lost:
            return False
        self._lost.add(operation)
        self.losses[operation[0]] += 1
        return True

    def _bump(self, current: Sandbox | None) -> None:
        if current is not None and current.status is not Status.ALLOCATED:
            self.inner.commit(change_of(current, replace(current, version=current.version + 1)))


@dataclass(frozen=True, slots=True)
class DeleteCall:
    """A delete call that reached the provider, with the sandbox's record at that moment, if known."""

    external_id: str
    record: Sandbox | None


class FakeServices:
    """Removes services of accounts as `during_remove` and `answers` say; then there are none."""

    def __init__(self) -> None:
        self.answers: deque[ServicesRemoval | Exception] = deque()
        self.during_remove: Callable[[str], object] = lambda _: None
        """Called with the external id during each removal."""
        self.removals: list[tuple[str, float]] = []
        """The external id and `within` of each removal."""

    def remove(self, external_id: str, *, within: float) -> ServicesRemoval:
        self.removals.append((external_id, within))
        Context().run(self.during_remove, external_id)
        answer = self.answers.popleft() if self.answers else ServicesRemoval(outcome=ServicesOutcome.NONE)
        if isinstance(answer, Exception):
            raise answer
        return answer


class FakeProvider:
    """A provider that lists `accounts`, and answers delete calls by `answers`, then `WIPED`."""

    def __init__(self, store: MemoryStore | None = None) -> None:
        """Read the record of each delete call from `store`, for `deletes`."""
        self.accounts: Sequence[Account] = ()
        self.skipped: Sequence[SkippedAccount] = ()
        self.inactive: Sequence[InactiveAccount] = ()
        self.ambiguous: Sequence[Account] = ()
        self.doubt: str | None = None
        self.listing_error: Exception | None = None
        self.admit_error: Exception | None = None
        self.answers: deque[WipeAnswer | Exception] = deque()
        self.during_list: Callable[[], object] = lambda: None
        self.during_delete: Callable[[str], object] = lambda _: None
        """Called with the external id during each delete call."""
        self.deletes: list[DeleteCall] = []
        self._store = store
        self._admitted = threading.local()

    def list_accounts(self) -> AccountListing:
        self.during_list()
        if self.listing_error:
            raise self.listing_error
        return self.listing()

    def listing(self) -> AccountListing:
        """Return the current list."""
        return AccountListing(
            accounts=tuple(self.accounts),
            skipped=tuple(self.skipped),
            inactive=tuple(self.inactive),
            ambiguous=tuple(self.ambiguous),
            doubt=self.doubt,
        )

    @contextmanager
    def admit(self) -> Iterator[None]:
        if self.admit_error:
            raise self.admit_error
        self._admitted.calls = 1
        try:
            yield
        finally:
            self._admitted.calls = 0

    def delete_account(self, external_id: str, *, send_within: float) -> WipeAnswer:
        assert getattr(self._admitted, "calls", 0) > 0, "each call needs an admit of its own"
        self._admitted.calls = 0
        records = iter(self._store.dump()[0].values() if self._store else ())
        self.deletes.append(DeleteCall(external_id, next((r for r in records if r.external_id == external_id), None)))
        Context().run(self.during_delete, external_id)  # what others do meanwhile does not have this wipe's deadline
        answer = self.answers.popleft() if self.answers else WipeAnswer.WIPED
        if isinstance(answer, Exception):
            raise answer
        return answer
