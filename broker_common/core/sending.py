"""Send the deliveries of one endpoint: in order for each sandbox, and never twice at the same time.

Before a delivery is sent, it is taken: a write with a new `attempt_id`, which makes it due again only after a try must
have ended. The outcome is written on that attempt. So a crash at any point loses nothing: the delivery is sent again
when it is due. (A process that is suspended between its last check and the sending cannot be stopped; see
`SEND_WITHIN_SEC`.)
"""

from __future__ import annotations

import math
import threading
from collections import Counter
from dataclasses import dataclass, replace
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Protocol

from broker_common.core.errors import BrokerError
from broker_common.core.facts import PoolFact, PoolFactKind
from broker_common.core.ids import new_id
from broker_common.core.job_names import Job
from broker_common.core.parallel import for_each
from broker_common.core.store import Conflict
from broker_common.core.telemetry import DeliveryEnded, DeliveryOutcome, EndpointDisabled, ItemFailed
from broker_common.core.webhook import DeliveryState

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from random import Random

    from broker_common.core.guard import Guard
    from broker_common.core.ports import Clock, Recorder
    from broker_common.core.principals import Actor
    from broker_common.core.store import SandboxStore
    from broker_common.core.webhook import Delivery, Endpoint

WAITS_SEC = (5, 5 * 60, 30 * 60, *(hours * 3600 for hours in (2, 5, 10, 14, 20, 24)))
"""How long after each failed try the next one is made; after the last of these, there is no other.

Source: Standard Webhooks 1.0, "Delivery attempts".
"""
_JITTER = 0.1
TAKEN_SEC = 60
"""How long a delivery is taken for: longer than a try may last, and longer than the write of its outcome."""
SEND_WITHIN_SEC = 5.0
"""How many seconds after a delivery was taken it may be sent; later it is not."""
DRAIN_SEC = 30.0
"""How long one drain goes on. What is due then waits for the next one."""
DRAIN_LIMIT_SEC = DRAIN_SEC + 45.0
"""Within so many seconds a drain ends: the tries that have begun are finished."""
_PAGE = 200
_PROBE_PAGE = 10
_MOST_OF_A_SANDBOX = 50
"""So many deliveries of one sandbox are sent before others have their turn."""
_MOST_FAILURES = 8
"""After so many failures in a row, a drain ends."""
_DOWN_AFTER_SEC = 10
"""An endpoint without a success for so long counts as down. One that fails now and then does not."""
PROBE_SEC = 30
"""How often one delivery is tried while the endpoint is down."""
GIVE_UP_SEC = 5 * 24 * 3600
"""An endpoint that has failed for so long is disabled."""
_UNTRIED_SEC = WAITS_SEC[-1] * (1 + _JITTER) + 3600
"""An endpoint that was not tried for so long had nothing to be sent. Its failures before that do not count."""
_LOOK_SEC = 2.0
"""How long an endpoint that was removed or changed may still be sent what was due before."""


@dataclass(frozen=True, slots=True)
class WebhookAnswer:
    """What became of a try. `status` is None if no answer came; `text` says it in words, in at most 300 characters."""

    status: int | None
    text: str


class WebhookTransport(Protocol):
    """Sends deliveries to endpoints."""

    def send(self, endpoint: Endpoint, delivery: Delivery, *, now: int) -> WebhookAnswer:
        """Send a delivery once, signed at `now`. Never raises for what an endpoint does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainResult:
    """How many tries of one drain succeeded, and how many failed."""

    delivered: int
    failed: int


class _Drain:
    """What the threads of one drain know together."""

    def __init__(self, endpoint: Endpoint, *, now: int, ends_at: float) -> None:
        self.endpoint = endpoint
        self.failing_since = endpoint.failing_since
        if self.failing_since is not None and now - (endpoint.probe_at or self.failing_since) > _UNTRIED_SEC:
            self.failing_since = None
        self._ends_at = ends_at
        self._look_at = ends_at - DRAIN_SEC + _LOOK_SEC
        self.has_changed = False
        """Somebody has changed, disabled or removed it since it was read."""
        self.is_probing = False
        """Only one delivery is tried, because the endpoint is down."""
        self.look_whether_down(now)
        self.has_claimed = False
        """This process is the one that probes it."""
        self.is_gone = False
        """It has answered that it wants no more."""
        self._counts: Counter[bool] = Counter()
        self._moved = 0
        self._failures_in_row = 0
        self._lock = threading.Lock()

    @property
    def tries(self) -> int:
        return self._counts.total()

    @property
    def done(self) -> int:
        """How many deliveries were tried, or moved to a later time."""
        return self.tries + self._moved

    @property
    def result(self) -> DrainResult:
        return DrainResult(delivered=self._counts[True], failed=self._counts[False])

    @property
    def is_hopeless(self) -> bool:
        return self.is_gone or self._failures_in_row >= _MOST_FAILURES

    def look_whether_down(self, now: int) -> None:
        """Tell by the tries until now whether only one delivery is tried from now on."""
        self.is_probing = self.failing_since is not None and now - self.failing_since >= _DOWN_AFTER_SEC

    def goes_on(self, monotonic: float) -> bool:
        """Tell whether another delivery may be tried at this time."""
        is_over = self.is_hopeless or self.has_changed or monotonic >= self._ends_at
        return not is_over and not (self.is_probing and self.tries)

    def must_look(self, monotonic: float) -> bool:
        """Tell one thread every two seconds that the endpoint must be read again."""
        with self._lock:
            is_due = monotonic >= self._look_at
            if is_due:
                self._look_at = monotonic + _LOOK_SEC
            return is_due

    def why_disabled(self, now: int) -> str | None:
        """Return why the endpoint must be disabled; None if it must not."""
        if self.is_gone:
            return "it answered 410, so it wants no more deliveries"
        has_failed = self._failures_in_row > 0
        if has_failed and self.failing_since is not None and now - self.failing_since >= GIVE_UP_SEC:
            return "it has failed for five days"
        return None

    def count_moved(self) -> None:
        """Count a delivery that was moved to a later time."""
        with self._lock:
            self._moved += 1

    def count(self, answer: WebhookAnswer, *, now: int) -> None:
        """Count a try."""
        with self._lock:
            self._counts[_is_success(answer)] += 1
            if _is_success(answer):
                self._failures_in_row, self.failing_since = 0, None
                return
            self._failures_in_row += 1
            self.failing_since = now if self.failing_since is None else self.failing_since
            self.is_gone = self.is_gone or answer.status == HTTPStatus.GONE


class Sender:
    """Sends what is due, endpoint by endpoint. One endpoint never holds up another. Thread-safe."""

    def __init__(
        self,
        *,
        store: SandboxStore,
        transport: WebhookTransport,
        guard: Guard,
        recorder: Recorder,
        clock: Clock,
        rng: Random,
        threads: int,
    ) -> None:
        """Send up to `threads` deliveries to an endpoint at the same time."""
        self._store = store
        self._transport = transport
        self._guard = guard
        self._recorder = recorder
        self._clock = clock
        self._rng = rng
        self._threads = threads
        self._lock = threading.Lock()
        self._draining: set[str] = set()

    def drain(self, endpoint_id: str, *, by: Actor) -> DrainResult:
        """Send an endpoint's deliveries until none is due, it fails again and again, or `DRAIN_SEC` have passed.

        Returns at once if another thread of this process drains the same endpoint, or if it is disabled or gone. While
        the endpoint is down, only one delivery is tried every `PROBE_SEC`, by one process, and the rest only after that
        one succeeded. So it costs one thread one timeout. Disables it if it wants no more deliveries, or has failed for
        `GIVE_UP_SEC`. Raises `UnsafeToAct` and `StoreUnavailable`.
        """
        self._guard.check()
        with self._lock:
            if endpoint_id in self._draining:
                return DrainResult(delivered=0, failed=0)
            self._draining.add(endpoint_id)
        try:
            return self._drain(endpoint_id, by)
        finally:
            with self._lock:
                self._draining.discard(endpoint_id)

    def _drain(self, endpoint_id: str, by: Actor) -> DrainResult:
        endpoint = self._store.read_endpoint(endpoint_id)
        if endpoint is None:
            return DrainResult(delivered=0, failed=0)
        now = self._clock.now()
        if endpoint.probe_at is not None and endpoint.probe_at > now:
            return DrainResult(delivered=0, failed=0)
        drain = _Drain(endpoint, now=now, ends_at=self._clock.monotonic() + DRAIN_SEC)
        while endpoint is not None and endpoint.disabled_at is None and drain.goes_on(self._clock.monotonic()):
            self._guard.check()
            drain.endpoint = endpoint
            done = drain.done
            limit = _PROBE_PAGE if drain.is_probing else _PAGE
            groups = _by_sandbox(self._store.read_due_deliveries(endpoint_id, until=self._clock.now(), limit=limit))
            if not groups or not self._may_try(drain):
                break
            for_each(partial(self._send, drain), groups, threads=1 if drain.is_probing else self._threads)
            self._note(drain, by)
            drain.look_whether_down(self._clock.now())
            if drain.done == done or (drain.tries and not drain.result.delivered):
                break
            endpoint = self._store.read_endpoint(endpoint_id)
        return drain.result

    def _may_try(self, drain: _Drain) -> bool:
        """Tell whether this process may try deliveries. One that is down is probed by one process at a time."""
        if not drain.is_probing or drain.has_claimed:
            return True
        claimed = replace(drain.endpoint, probe_at=self._clock.now() + PROBE_SEC)
        try:
            self._store.write_endpoint(drain.endpoint, claimed)
        except Conflict:  # another process probes it, or somebody has changed it
            return False
        drain.endpoint, drain.has_claimed = claimed, True
        return True

    def _send(self, drain: _Drain, due: Sequence[Delivery]) -> None:
        """Send what is pending for one sandbox, in order, until one must wait. `due` are known to be due."""
        if not drain.goes_on(self._clock.monotonic()):
            return
        sandbox_id = due[0].sandbox_id
        try:
            pending = [] if sandbox_id is None else self._store.read_pending(drain.endpoint.endpoint_id, sandbox_id)
            known = {each.delivery_id for each in pending}
            for each in due:
                # Of no sandbox; or sent again by hand, because newer ones have ended before. Nothing waits for it.
                if each.delivery_id not in known:
                    self._send_in_order(drain, [each], ())
            in_order = [each for each in due if each.delivery_id in known]
            self._send_in_order(drain, pending[:_MOST_OF_A_SANDBOX], in_order)
        except BrokerError as error:
            self._recorder.record(ItemFailed(job=Job.DELIVER, sandbox_id=sandbox_id, error=error.message))

    def _send_in_order(self, drain: _Drain, pending: Sequence[Delivery], due: Sequence[Delivery]) -> None:
        for delivery in pending:
            if drain.must_look(self._clock.monotonic()):
                found = self._store.read_endpoint(drain.endpoint.endpoint_id)
                is_same = found is not None and found.version == drain.endpoint.version and found.disabled_at is None
                drain.has_changed = not is_same
            if not drain.goes_on(self._clock.monotonic()):
                return
            if delivery.next_try_at is not None and delivery.next_try_at > self._clock.now():
                if delivery.attempt_id is None:
                    self._move(drain, delivery, due)
                return  # or another process sends it now, and goes on with the rest
            tried = self._try(drain, delivery)
            if tried is None:
                return
            if tried.next_try_at is not None:
                self._move(drain, tried, due)
                return

    def _move(self, drain: _Drain, first: Delivery, due: Sequence[Delivery]) -> None:
        """Make those of the `due` ones that are newer than `first` due when that is. Else they stay in others' way."""
        for each in due:
            if each.version > first.version:
                try:
                    self._store.write_delivery(each, replace(each, next_try_at=first.next_try_at))
                except Conflict:
                    return
                drain.count_moved()

    def _try(self, drain: _Drain, delivery: Delivery) -> Delivery | None:
        """Take a delivery, send it once, and store the outcome. Return it; None if another writer came between."""
        began = self._clock.monotonic()
        taken = replace(delivery, attempt_id=new_id(self._rng), next_try_at=self._clock.now() + TAKEN_SEC)
        try:
            self._store.write_delivery(delivery, taken)
            if self._clock.monotonic() - began > SEND_WITHIN_SEC:
                self._store.write_delivery(taken, replace(delivery, attempt_id=None))
                return None
            sent_at = self._clock.monotonic()
            answer = self._transport.send(drain.endpoint, taken, now=self._clock.now())
            now, seconds = self._clock.now(), self._clock.monotonic() - sent_at
            drain.count(answer, now=now)
            after = self._after(taken, answer, now)
            self._store.write_delivery(taken, after)
        except Conflict:
            return None
        self._recorder.record(
            DeliveryEnded(
                outcome=_outcome(after, answer),
                endpoint_id=after.endpoint_id,
                delivery_id=after.delivery_id,
                seconds=seconds,
                sandbox_id=after.sandbox_id,
                error=None if _is_success(answer) else answer.text,
            )
        )
        return after

    def _after(self, taken: Delivery, answer: WebhookAnswer, now: int) -> Delivery:
        """Return a delivery after a try."""
        tried = replace(
            taken,
            tries=taken.tries + 1,
            next_try_at=None,
            attempt_id=None,
            last_try_at=now,
            last_status=answer.status,
            last_answer=answer.text,
        )
        if _is_success(answer):
            return replace(tried, state=DeliveryState.DELIVERED, delivered_at=now)
        if tried.tries > len(WAITS_SEC):
            return replace(tried, state=DeliveryState.EXHAUSTED)
        wait = WAITS_SEC[tried.tries - 1] * self._rng.uniform(1, 1 + _JITTER)
        return replace(tried, next_try_at=now + math.ceil(wait))

    def _note(self, drain: _Drain, by: Actor) -> None:
        """Store since when the endpoint fails, and disable it if that must be."""
        now, current = self._clock.now(), drain.endpoint
        reason = drain.why_disabled(now)
        while True:
            after = replace(current, failing_since=drain.failing_since)
            if drain.failing_since is None:
                after = replace(after, probe_at=None)
            if reason is not None:
                after = replace(after, disabled_at=now, disabled_reason=reason)
            if after == current:
                return
            fact = None if reason is None else self._disabled(current, reason, by, now)
            try:
                self._store.write_endpoint(current, after, fact=fact)
            except Conflict:
                found = self._store.read_endpoint(current.endpoint_id)
                # If an operator has changed it, these tries say nothing of what it is now.
                if found is None or found.version != current.version or found.disabled_at is not None:
                    return
                current = found
            else:
                if reason is not None:
                    self._recorder.record(EndpointDisabled(endpoint_id=current.endpoint_id, reason=reason))
                return

    def _disabled(self, endpoint: Endpoint, reason: str, by: Actor, now: int) -> PoolFact:
        return PoolFact(
            kind=PoolFactKind.WEBHOOK_DISABLED,
            fact_id=new_id(self._rng),
            at=now,
            principal=by.principal,
            request_id=by.request_id,
            details={"endpoint_id": endpoint.endpoint_id, "reason": reason},
        )


def _is_success(answer: WebhookAnswer) -> bool:
    return answer.status is not None and HTTPStatus.OK <= answer.status < HTTPStatus.MULTIPLE_CHOICES


def _outcome(tried: Delivery, answer: WebhookAnswer) -> DeliveryOutcome:
    if tried.state is DeliveryState.DELIVERED:
        return DeliveryOutcome.DELIVERED
    if answer.status == HTTPStatus.GONE:
        return DeliveryOutcome.DISABLED
    return DeliveryOutcome.EXHAUSTED if tried.state is DeliveryState.EXHAUSTED else DeliveryOutcome.FAILED


def _by_sandbox(due: Iterable[Delivery]) -> list[list[Delivery]]:
    """Group deliveries of one sandbox. Each one of the pool is a group of its own."""
    groups: dict[tuple[str | None, str], list[Delivery]] = {}
    for each in due:
        groups.setdefault((each.sandbox_id, each.delivery_id if each.sandbox_id is None else ""), []).append(each)
    return list(groups.values())
