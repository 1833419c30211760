"""The clients: tracks that allocate, repeat a request, send copies at once, read, give back, give back late, or forget.

Some wait in line. Of these some come back late, some give up, and some are not seen again.

The same clients run over HTTP against real processes, and in a simulation: `Surroundings` is all that they need.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from tests.long.history.record import Call, Kind

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from random import Random

PATIENCE_SEC = 20.0
_HASTY_SEC = 0.03
_TRIES = 12
_KEYS = ("", "", "", "first", "second")
_PREFIXES = ("", "", "", "lab-adventure-", "lab-expedition-")
_SHARED_TRACKS = 4
_LAB = "the-lab"
_RESERVATIONS = 2
"""How many reservations there are at once."""
_WAITS = (0, 0, 1, 2)
_TURNS = 20
"""A track that waits comes back so often at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A request to the API; `path` follows the base path."""

    method: str
    path: str
    track_id: str
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The answer to a request."""

    status: int
    body: Mapping[str, Any]
    replayed: bool = False
    retry_after: int = 0


class Surroundings(Protocol):
    """The world of the clients: their time, their way to the API, and their record."""

    def now(self) -> float:
        """Return the time in Unix seconds."""

    def sleep(self, seconds: float) -> None:
        """Wait for `seconds`."""

    def send(self, request: Request, *, patience: float) -> Answer | None:
        """Send a request; return its answer, or None after `patience` seconds without one."""

    def operate(self, method: str, path: str, body: Mapping[str, Any] | None, *, patience: float) -> Answer | None:
        """Send an operator's request; `path` follows `/admin`. Return as `send` does."""

    def together(self, *acts: Callable[[], Any]) -> list[Any]:
        """Run all `works` at the same time; return their results when all have ended."""

    def record(self, call: Call) -> None:
        """Record a call."""


class Budget:
    """The number of calls that all clients make together. Many threads may use it."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.goes_on = False
        """Whether clients go on after the total."""
        self.is_closed = False
        """Whether clients must end now."""
        self._made = 0
        self._lock = threading.Lock()

    @property
    def made(self) -> int:
        """The number of calls so far."""
        return self._made

    @property
    def is_used_up(self) -> bool:
        """Whether clients may begin no new session."""
        return self.is_closed or (self._made >= self.total and not self.goes_on)

    def count(self) -> None:
        """Count a call."""
        with self._lock:
            self._made += 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """Durations in seconds: of the lab, of the longest one, of the buffer after its end, and of a pause between calls."""

    lab_sec: float
    max_lab_sec: float
    buffer_sec: float
    think_sec: float


class Operator:
    """Books reservations, makes them smaller or shorter, and cancels them. Never makes one longer."""

    def __init__(self, surroundings: Surroundings, rng: Random, pace: Pace) -> None:
        self.booked: list[str] = []
        """The ids of the latest reservations, also of some that are over, for tracks to name."""
        self._around = surroundings
        self._rng = rng
        self._pace = pace
        self._live: list[Mapping[str, Any]] = []

    def act(self) -> None:
        """Make one call."""
        rng, now = self._rng, int(self._around.now())
        self._live = [each for each in self._live if each["ends_at"] > now + 1]
        if len(self._live) < _RESERVATIONS:
            self._book(now)
            return
        known = self._live.pop(rng.randrange(len(self._live)))
        match rng.choice(["count", "end", "end", "cancel"]):
            case "count":
                self._change(known, {"count": max(1, known["count"] - 1)})
            case "end":
                self._change(known, {"ends_at": max(known["starts_at"], now) + 1})
            case _:
                self._call(Kind.CANCEL, "DELETE", known["reservation_id"])

    def _book(self, now: int) -> None:
        rng = self._rng
        starts_at = now + rng.randrange(3)
        body = {
            "name": "a class",
            "count": rng.randrange(1, 5),
            "starts_at": starts_at,
            "ends_at": starts_at + 2 + int(rng.uniform(0, self._pace.max_lab_sec)),
            "prefix": rng.choice(_PREFIXES),
            "track_names": [_LAB] if rng.random() < 0.7 else [],
        }
        answer = self._call(Kind.BOOK, "POST", None, body)
        if answer is not None and answer.status == 201:
            self._live.append(answer.body)
            self.booked[:] = [*self.booked[-3:], answer.body["reservation_id"]]

    def _change(self, known: Mapping[str, Any], changes: Mapping[str, Any]) -> None:
        body = {"version": known["version"], **changes}
        answer = self._call(Kind.CHANGE, "PATCH", known["reservation_id"], body)
        if answer is not None and answer.status == 200:
            self._live.append(answer.body)

    def _call(
        self, kind: Kind, method: str, reservation_id: str | None, body: Mapping[str, Any] | None = None
    ) -> Answer | None:
        path = "/reservations" if reservation_id is None else f"/reservations/{reservation_id}"
        began = self._around.now()
        answer = self._around.operate(method, path, body, patience=PATIENCE_SEC)
        self._around.record(
            Call(
                kind=kind,
                began=began,
                ended=self._around.now(),
                status=answer.status if answer else None,
                body=answer.body if answer else {},
                patience=PATIENCE_SEC,
                reservation_id=reservation_id,
            )
        )
        return answer


class Client:
    """One client. It acts for one track after another: most are new, some are shared with other clients."""

    def __init__(
        self,
        name: str,
        surroundings: Surroundings,
        rng: Random,
        budget: Budget,
        pace: Pace,
        *,
        reservations: Sequence[str],
    ) -> None:
        """Have some tracks name one of `reservations`, which may change meanwhile."""
        self._name = name
        self._around = surroundings
        self._rng = rng
        self._budget = budget
        self._pace = pace
        self._reservations = reservations
        self._sessions = 0

    def run(self) -> None:
        """Run sessions until the budget is spent."""
        while not self._budget.is_used_up:
            self._think()
            self._sessions += 1
            self._session()

    def _session(self) -> None:
        rng = self._rng
        shared = rng.random() < 0.25
        track_id = f"shared-{rng.randrange(_SHARED_TRACKS)}" if shared else f"{self._name}-{self._sessions}"
        key, prefix = rng.choice(_KEYS), rng.choice(_PREFIXES)
        copies = rng.choice([1, 1, 1, 1, 2, 3, 4])
        waits = rng.choice(_WAITS) if rng.random() < 0.6 else None
        lab = _LAB if rng.random() < 0.4 else ""
        named = rng.choice(self._reservations) if self._reservations and rng.random() < 0.15 else None
        allocate = partial(self._allocate, track_id, key, prefix, waits, lab=lab, named=named)
        answers = self._around.together(*[allocate] * copies)
        held = next((answer.body for answer in answers if answer is not None and answer.status in {200, 201}), None)
        if held is None:
            self._around.sleep(rng.uniform(0.5, 1.5))
            return
        for _ in range(rng.randrange(4)):
            self._think()
            self._use(track_id, key, held)
        self._think()
        self._give_back(track_id, held)

    def _use(self, track_id: str, key: str, held: Mapping[str, Any]) -> None:
        match self._rng.choice(["read", "read", "list", "again", "longer", "others"]):
            case "read":
                self._call(Kind.READ, track_id, sandbox_id=held["sandbox_id"])
            case "list":
                self._call(Kind.LIST, track_id)
            case "again":
                self._call(Kind.ALLOCATE, track_id, key=key, prefix=self._rng.choice(_PREFIXES))
            case "longer":
                self._extend(track_id, held)
            case _:
                self._call(Kind.READ, f"nosy-{self._name}", sandbox_id=held["sandbox_id"])

    def _give_back(self, track_id: str, held: Mapping[str, Any]) -> None:
        rng, sandbox_id = self._rng, held["sandbox_id"]
        lease_id = held["lease_id"] if rng.random() < 0.4 else None
        match rng.choice(["once", "once", "once", "once", "copies", "again", "late", "forget"]):
            case "once":
                self._mark(track_id, sandbox_id, lease_id)
            case "copies":
                self._around.together(*[lambda: self._mark(track_id, sandbox_id, lease_id)] * 2)
            case "again":
                self._mark(track_id, sandbox_id, lease_id)
                self._think()
                self._mark(track_id, sandbox_id, held["lease_id"])
            case "late":
                over_at = held["expires_at"] + self._pace.buffer_sec + rng.uniform(-0.5, 1.0)
                self._around.sleep(max(0.0, over_at - self._around.now()))
                self._mark(track_id, sandbox_id, held["lease_id"])
            case _:
                return

    def _allocate(
        self, track_id: str, key: str, prefix: str, waits: int | None, *, lab: str, named: str | None
    ) -> Answer | None:
        """Allocate. A track that waits comes back as it was told, or late, or gives up, or is not seen again."""
        rng = self._rng
        for _ in range(_TURNS):
            answer = self._insist(
                Kind.ALLOCATE,
                track_id,
                key=key,
                prefix=prefix,
                wait_sec=waits,
                track_name=lab,
                reservation_id=named,
            )
            if answer is None or answer.status != 202:
                return answer
            match rng.choice(["back"] * 14 + ["late", "gives up", "gone"]):
                case "late":
                    self._around.sleep(answer.retry_after + rng.uniform(4, 9))
                case "gives up":
                    self._insist(Kind.GIVE_UP, track_id, key=key)
                    return answer
                case "gone":
                    return answer
                case _:
                    self._around.sleep(answer.retry_after)
        return answer

    def _extend(self, track_id: str, held: Mapping[str, Any]) -> None:
        """Extend the lease, at most to its limit. The end may be one that it has already."""
        until = held["allocated_at"] + int(self._rng.uniform(0, self._pace.max_lab_sec))
        lease_id = held["lease_id"] if self._rng.random() < 0.5 else None
        self._insist(Kind.EXTEND, track_id, sandbox_id=held["sandbox_id"], lease_id=lease_id, until=until)

    def _mark(self, track_id: str, sandbox_id: str, lease_id: str | None) -> Answer | None:
        return self._insist(Kind.MARK, track_id, sandbox_id=sandbox_id, lease_id=lease_id)

    def _insist(self, kind: Kind, track_id: str, **options: Any) -> Answer | None:
        """Repeat a call until its answer is certain, as a real track does."""
        answer = None
        for _ in range(_TRIES):
            answer = self._call(kind, track_id, **options)
            if answer is not None and answer.status < 500:
                break
            self._around.sleep(self._rng.uniform(0.1, 0.6))
        return answer

    def _call(
        self,
        kind: Kind,
        track_id: str,
        *,
        key: str = "",
        prefix: str = "",
        sandbox_id: str = "",
        lease_id: str | None = None,
        until: int = 0,
        wait_sec: int | None = None,
        track_name: str = "",
        reservation_id: str | None = None,
    ) -> Answer | None:
        patience = _HASTY_SEC if self._rng.random() < 0.02 else PATIENCE_SEC
        self._budget.count()
        began = self._around.now()
        answer = self._around.send(
            make_request(
                kind,
                track_id,
                key=key,
                prefix=prefix,
                sandbox_id=sandbox_id,
                lease_id=lease_id,
                until=until,
                wait_sec=wait_sec,
                track_name=track_name,
                reservation_id=reservation_id,
            ),
            patience=patience,
        )
        self._around.record(
            Call(
                kind=kind,
                began=began,
                ended=self._around.now(),
                status=answer.status if answer else None,
                body=answer.body if answer else {},
                track_id=track_id,
                key=(key or track_id) if kind in {Kind.ALLOCATE, Kind.GIVE_UP} else "",
                prefix=prefix,
                sandbox_id=sandbox_id,
                lease_id=lease_id,
                until=until,
                replayed=answer.replayed if answer else False,
                patience=patience,
                wait_sec=wait_sec,
                track_name=track_name,
                reservation_id=reservation_id,
            )
        )
        return answer

    def _think(self) -> None:
        self._around.sleep(min(self._rng.expovariate(1 / self._pace.think_sec), self._pace.lab_sec))


def make_request(
    kind: Kind,
    track_id: str,
    *,
    key: str = "",
    prefix: str = "",
    sandbox_id: str = "",
    lease_id: str | None = None,
    until: int = 0,
    wait_sec: int | None = None,
    track_name: str = "",
    reservation_id: str | None = None,
) -> Request:
    """Return the request for a call of a track."""
    given = {
        "Idempotency-Key": key,
        "X-Sandbox-Name-Prefix": prefix,
        "X-Instruqt-Track-ID": track_name,
        "X-Reservation-ID": reservation_id or "",
        "Prefer": "" if wait_sec is None else f"wait={wait_sec}",
    }
    headers = {name: value for name, value in given.items() if value}
    match kind:
        case Kind.ALLOCATE:
            return Request(method="POST", path="/allocate", track_id=track_id, headers=headers)
        case Kind.GIVE_UP:
            return Request(method="DELETE", path="/waiting", track_id=track_id, headers=headers)
        case Kind.READ:
            return Request(method="GET", path=f"/sandboxes/{sandbox_id}", track_id=track_id)
        case Kind.LIST:
            return Request(method="GET", path="/sandboxes", track_id=track_id)
        case Kind.EXTEND:
            named = {} if lease_id is None else {"lease_id": lease_id}
            path = f"/sandboxes/{sandbox_id}/extend"
            return Request(method="POST", path=path, track_id=track_id, body={"expires_at": until, **named})
        case _:
            return Request(
                method="POST",
                path=f"/sandboxes/{sandbox_id}/mark-for-deletion",
                track_id=track_id,
                body=None if lease_id is None else {"lease_id": lease_id},
            )
