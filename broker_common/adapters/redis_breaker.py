"""The provider's circuit breaker, whose state all workers share in Redis.

pybreaker does not fit. When half-open, it lets every worker try at once. It compares clocks of different machines, in
whole seconds. It forgets failures while Redis is away. It can only wrap a call, while the broker must ask for the right
to call before it takes a sandbox, and calls after that.
"""

from __future__ import annotations

import json
import math
import threading
import time
import uuid
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from redis.exceptions import RedisError

from broker_common.core.errors import (
    ProviderCircuitOpen,
    ProviderError,
    ProviderFailing,
    ProviderMisconfigured,
    QueueUnavailable,
)
from broker_common.core.overview import Breaker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from redis import Redis


class BreakerState(StrEnum):
    """How the breaker treats the next call: admit it, admit it as a trial, or refuse it."""

    CLOSED = "closed"
    HALF_OPEN = "half-open"
    OPEN = "open"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Record:
    """The shared state. Times are Unix seconds; `open_until` is None while closed."""

    failures: int = 0
    reason: str | None = None
    """The message of the last failure."""
    open_until: float | None = None
    trial: str | None = None
    """The only call that may try after `open_until`; its right lasts until `trial_until`."""
    trial_until: float = 0

    def state(self, now: float) -> BreakerState:
        if self.open_until is None:
            return BreakerState.CLOSED
        return BreakerState.OPEN if now < self.open_until else BreakerState.HALF_OPEN

    def refuse(self, now: float) -> None:
        """Raise `ProviderCircuitOpen` unless a call may start now."""
        if self.open_until is None:
            return
        opens_at = self.open_until if self.trial is None else max(self.open_until, self.trial_until)
        if now < opens_at:
            seconds = math.ceil(opens_at - now)
            how = f"open for another {seconds} s" if now < self.open_until else "half-open, and another call is trying"
            since = "" if self.reason is None else f", since: {self.reason}"
            raise ProviderCircuitOpen(f"the provider's circuit breaker is {how}{since}", retry_after=seconds)


class RedisBreaker:
    """A circuit breaker over all workers.

    `threshold` failures in a row (`ProviderFailing`), or one `ProviderMisconfigured`, open it for `timeout_sec`. Then
    one call of all workers may try: its success closes the breaker, its failure opens it again. If that call never
    reports, because its worker died, another may try after `trial_sec`, which must be longer than a call lasts. Every
    other answer of the provider, even a refusal, shows that it works, and counts as a success.

    While Redis is away, each process goes on alone from the state that it saw last. It returns to the shared state as
    soon as Redis answers.
    """

    def __init__(
        self,
        redis: Redis,
        *,
        threshold: int,
        timeout_sec: float,
        trial_sec: float,
        key: str = "sandbox-broker:csp:breaker",
    ) -> None:
        self._redis = redis
        self._threshold = threshold
        self._timeout_sec = timeout_sec
        self._trial_sec = trial_sec
        self._key = key
        self._lock = threading.Lock()
        self._seen = _Record()

    @property
    def state(self) -> BreakerState:
        """The current state, for all workers."""
        found = BreakerState.CLOSED

        def look(record: _Record, now: float) -> _Record:
            nonlocal found
            found = record.state(now)
            return record

        self._update(look)
        return found

    def read(self) -> Breaker:
        """Return the state that all workers share. Raises `QueueUnavailable` if Redis does not answer."""
        try:
            with self._redis.pipeline(transaction=False) as pipe:
                pipe.get(self._key)
                pipe.time()
                stored, (seconds, microseconds) = pipe.execute()
        except RedisError as error:
            raise QueueUnavailable("Redis, which holds the state of the circuit breaker, does not answer") from error
        record = _parse(stored)
        return Breaker(
            state=record.state(seconds + microseconds / 1e6).value,
            failures=record.failures,
            reason=record.reason,
            open_until=None if record.open_until is None else math.ceil(record.open_until),
        )

    def check(self) -> None:
        """Raise `ProviderCircuitOpen` if no call may start now; changes nothing."""

        def look(record: _Record, now: float) -> _Record:
            record.refuse(now)
            return record

        self._update(look)

    @contextmanager
    def admit(self) -> Iterator[Permit]:
        """Give the right to make one call inside the context; raises `ProviderCircuitOpen`.

        An unused right changes nothing, and a call that ends without an answer of the provider changes nothing.
        """
        token = uuid.uuid4().hex

        def enter(record: _Record, now: float) -> _Record:
            record.refuse(now)
            if record.open_until is None:
                return record
            return replace(record, trial=token, trial_until=now + self._trial_sec)

        is_trial = self._update(enter).trial == token
        permit = Permit()
        try:
            yield permit
        finally:
            if permit.verdict is not None or is_trial:
                self._report(token, permit)

    def _report(self, token: str, permit: Permit) -> None:
        verdict = permit.verdict

        def judge(record: _Record, now: float) -> _Record:
            if record.open_until is not None and record.trial != token:
                # A call that began before the breaker opened says nothing about the provider now: only the trial does.
                return record
            if verdict is None:
                return replace(record, trial=None)
            if verdict is Verdict.ANSWERED:
                return _Record()
            failures = record.failures + 1
            tripped = verdict is Verdict.MISCONFIGURED or record.open_until is not None
            if tripped or failures >= self._threshold:
                return _Record(failures=failures, reason=permit.reason, open_until=now + self._timeout_sec)
            return replace(record, failures=failures, reason=permit.reason)

        self._update(judge)

    def _update(self, change: Callable[[_Record, float], _Record]) -> _Record:
        """Apply `change` to the shared record, in one transaction with its read, and return the result."""
        after = _Record()

        def attempt(pipe: Any) -> None:  # noqa: ANN401 - redis-py's pipeline returns values or itself, by its mode
            nonlocal after
            before = _parse(pipe.get(self._key))
            seconds, microseconds = pipe.time()
            after = change(before, seconds + microseconds / 1e6)
            pipe.multi()
            if after != before:
                pipe.set(self._key, json.dumps(asdict(after)))

        try:
            self._redis.transaction(attempt, self._key)
        except RedisError:
            with self._lock:
                self._seen = change(self._seen, time.time())
                return self._seen
        with self._lock:
            self._seen = after
        return after


class NoBreaker:
    """Admits every call and counts no failure: an operator's check must not be refused, or stop the workers."""

    def check(self) -> None:
        """Never raise."""

    @contextmanager
    def admit(self) -> Iterator[Permit]:
        """Give the right to make a call."""
        yield Permit()


class Verdict(StrEnum):
    """What a call showed about the provider."""

    ANSWERED = "answered"
    FAILED = "failed"
    MISCONFIGURED = "misconfigured"


class Permit:
    """The right to make one call."""

    def __init__(self) -> None:
        self.verdict: Verdict | None = None
        self.reason: str | None = None

    @contextmanager
    def call(self) -> Iterator[None]:
        """Run the call inside this context; its end sets the verdict for the breaker."""
        try:
            yield
        except ProviderFailing as error:
            self.verdict, self.reason = Verdict.FAILED, error.message
            raise
        except ProviderMisconfigured as error:
            self.verdict, self.reason = Verdict.MISCONFIGURED, error.message
            raise
        except ProviderError:
            self.verdict = Verdict.ANSWERED
            raise
        self.verdict = Verdict.ANSWERED


def _parse(stored: str | bytes | None) -> _Record:
    if stored is None:
        return _Record()
    try:
        return _Record(**json.loads(stored))
    except (TypeError, ValueError):
        # Another release wrote the record: start as closed, so that calls go on.
        return _Record()
