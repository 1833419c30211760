"""The clients: tracks that allocate, repeat a request, send copies at once, read, give back, give back late, or forget.

The same clients run over HTTP against real processes, and in a simulation: `Surroundings` is all that they need.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from tests.long.history.record import Call, Kind

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from random import Random

PATIENCE_SEC = 20.0
_HASTY_SEC = 0.03
_TRIES = 12
_KEYS = ("", "", "", "first", "second")
_PREFIXES = ("", "", "", "lab-adventure-", "lab-expedition-")
_SHARED_TRACKS = 4


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


class Surroundings(Protocol):
    """The world of the clients: their time, their way to the API, and their record."""

    def now(self) -> float:
        """Return the time in Unix seconds."""

    def sleep(self, seconds: float) -> None:
        """Wait for `seconds`."""

    def send(self, request: Request, *, patience: float) -> Answer | None:
        """Send a request; return its answer, or None after `patience` seconds without one."""

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


class Client:
    """One client. It acts for one track after another: most are new, some are shared with other clients."""

    def __init__(self, name: str, surroundings: Surroundings, rng: Random, budget: Budget, pace: Pace) -> None:
        self._name = name
        self._around = surroundings
        self._rng = rng
        self._budget = budget
        self._pace = pace
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
        answers = self._around.together(*[lambda: self._allocate(track_id, key, prefix)] * copies)
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

    def _allocate(self, track_id: str, key: str, prefix: str) -> Answer | None:
        return self._insist(Kind.ALLOCATE, track_id, key=key, prefix=prefix)

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
    ) -> Answer | None:
        patience = _HASTY_SEC if self._rng.random() < 0.02 else PATIENCE_SEC
        self._budget.count()
        began = self._around.now()
        answer = self._around.send(
            make_request(kind, track_id, key=key, prefix=prefix, sandbox_id=sandbox_id, lease_id=lease_id, until=until),
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
                key=(key or track_id) if kind is Kind.ALLOCATE else "",
                prefix=prefix,
                sandbox_id=sandbox_id,
                lease_id=lease_id,
                until=until,
                replayed=answer.replayed if answer else False,
                patience=patience,
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
) -> Request:
    """Return the request for a call of a track."""
    match kind:
        case Kind.ALLOCATE:
            given = {"Idempotency-Key": key, "X-Sandbox-Name-Prefix": prefix}
            headers = {name: value for name, value in given.items() if value}
            return Request(method="POST", path="/allocate", track_id=track_id, headers=headers)
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
