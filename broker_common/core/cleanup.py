"""Cleanup: find the sandboxes that are due, and have the provider wipe each, by one attempt."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from broker_common.core.deadline import deadline_in, time_left
from broker_common.core.errors import (
    BrokerError,
    DeadlineExceeded,
    ProviderBusy,
    ProviderFailing,
    ProviderMisconfigured,
    ProviderRejected,
)
from broker_common.core.facts import with_details
from broker_common.core.ids import new_id
from broker_common.core.ports import ServicesRemoval, WipeAnswer
from broker_common.core.sandbox import ORDER_LIMIT, Sandbox, Status
from broker_common.core.schema import Upgrade
from broker_common.core.store import Conflict
from broker_common.core.telemetry import DeleteEnded, DeleteOutcome, ServicesOutcome, ServicesRemovalEnded
from broker_common.core.wipe import (
    account_gone,
    backoff_seconds,
    begin_attempt,
    cancel_attempt,
    confirm_wipe,
    fail_attempt,
    finish_cooling,
    reject_deletion,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from random import Random

    from broker_common.core.facts import Change, Detail
    from broker_common.core.guard import Guard
    from broker_common.core.known_reservations import KnownReservations
    from broker_common.core.pauses import PauseCache
    from broker_common.core.policy import Policy
    from broker_common.core.ports import Clock, Provider, Recorder, Services
    from broker_common.core.principals import Actor
    from broker_common.core.store import SandboxStore

SEND_WITHIN_SEC = 5.0
"""How many seconds after an attempt was recorded its call may begin; later it is not made.

With a removal of services before the call, `Policy.services_limit_sec` more.
"""
_PREPARE_WITHIN_SEC = 30.0
"""How many seconds after its start a wipe may begin to record the attempt; later it is postponed."""


def delete_limit_sec(policy: Policy) -> float:
    """Return the seconds within which `Cleaner.delete_sandbox` ends.

    So a thread that wipes is free again, even if store and provider hang. After the call, the rest of the attempt's
    window is left to store the outcome.
    """
    return _PREPARE_WITHIN_SEC + policy.attempt_window_sec


class Cleaner:
    """Has the provider wipe the sandboxes whose leases ended."""

    def __init__(
        self,
        *,
        store: SandboxStore,
        provider: Provider,
        services: Services | None,
        guard: Guard,
        pauses: PauseCache,
        reservations: KnownReservations,
        recorder: Recorder,
        clock: Clock,
        rng: Random,
        policy: Policy,
    ) -> None:
        """`services` is None if the services that students left stay where they are."""
        self._store = store
        self._provider = provider
        self._services = services
        self._guard = guard
        self._pauses = pauses
        self._reservations = reservations
        self._recorder = recorder
        self._clock = clock
        self._rng = rng
        self._policy = policy

    def find_due(self) -> Iterator[str]:
        """Read the ids of the sandboxes for which an attempt may start now. Reads no other sandboxes."""
        return self._store.read_due(Status.PENDING_DELETION, until=self._clock.now())

    def delete_sandbox(self, sandbox_id: str, *, by: Actor) -> DeleteEnded:
        """Make one attempt to have the provider wipe a sandbox, and store the outcome.

        Gets a call slot, records the attempt, removes the services that the student left, then calls the provider to
        delete the account, also if services are left. May be called any number of times: it leaves a
        sandbox alone that is not due, because another worker makes or made the attempt. A sandbox that is wiped and has
        rested becomes available without a call. Raises `ProviderBusy` if no call may begin yet: call again later.
        Every other failure is an outcome. Ends within `delete_limit_sec`.
        """
        try:
            with deadline_in(delete_limit_sec(self._policy), self._clock):
                ended = self._delete(sandbox_id, by)
        except ProviderBusy:
            raise
        except BrokerError as error:
            # The store, the breaker or the slots refuse the call. Nothing is lost: the next run tries again.
            ended = DeleteEnded(outcome=DeleteOutcome.POSTPONED, sandbox_id=sandbox_id, error=error.message)
        self._recorder.record(ended)
        return ended

    def _delete(self, sandbox_id: str, by: Actor) -> DeleteEnded:
        self._guard.check()
        if self._pauses.current().cleanup:
            return DeleteEnded(
                outcome=DeleteOutcome.POSTPONED,
                sandbox_id=sandbox_id,
                error="cleanup is paused by an operator",
            )
        sandbox = self._store.get(sandbox_id)
        if sandbox is not None and sandbox.is_rested(self._clock.now()):
            rested = partial(finish_cooling, order=self._rng.randrange(ORDER_LIMIT), by=by, now=self._clock.now())
            return self._write(sandbox, rested, DeleteOutcome.RESTED, None, frees=True)
        if sandbox is None or not sandbox.is_due_for_deletion(self._clock.now()):
            return DeleteEnded(outcome=DeleteOutcome.NOT_DUE, sandbox_id=sandbox_id)
        return self._attempt(sandbox, by)

    def _attempt(self, sandbox: Sandbox, by: Actor) -> DeleteEnded:
        sandbox_id = sandbox.sandbox_id
        with self._provider.admit():
            # By a wrong clock, an attempt that another worker makes at this moment would look as if it had ended.
            self._guard.check()
            if time_left(self._clock) < self._policy.attempt_window_sec:
                raise DeadlineExceeded("the preparation took too long, so the provider was not called")
            taken_at = self._clock.monotonic()
            attempt = begin_attempt(
                sandbox, attempt_id=new_id(self._rng), by=by, now=self._clock.now(), policy=self._policy
            )
            try:
                self._store.commit(attempt)
            except Conflict:
                return DeleteEnded(outcome=DeleteOutcome.NOT_DUE, sandbox_id=sandbox_id)
            taken = attempt.result
            if taken.status is Status.DELETION_FAILED:
                return _ended(taken, DeleteOutcome.GAVE_UP, _last_error(taken))
            if self._clock.monotonic() - taken_at > SEND_WITHIN_SEC:
                return self._cancel(taken, "recording the attempt took too long, so the provider was not called")
            found: Mapping[str, Detail] = {}
            send_by = taken_at + SEND_WITHIN_SEC
            if self._services is not None:
                # Both times count from the take, and the window is longer by the same time. So nothing is removed from
                # an account that another attempt may have made available, however long this attempt lasts.
                send_by += self._policy.services_limit_sec
                found = self._remove_services(self._services, taken, until=send_by - SEND_WITHIN_SEC)
                # The time of the removal is longer than this process may act on what it knew before.
                self._guard.check()
            send_within = send_by - self._clock.monotonic()
            if send_within < 0:
                return self._cancel(taken, "the removal of services took too long, so the account was not deleted yet")
            return self._call(taken, by, send_within=send_within, found=found)

    def _cancel(self, taken: Sandbox, late: str) -> DeleteEnded:
        given_up = partial(cancel_attempt, error=late, now=self._clock.now())
        return self._write(taken, given_up, DeleteOutcome.POSTPONED, late)

    def _remove_services(self, services: Services, taken: Sandbox, *, until: float) -> Mapping[str, Detail]:
        """Remove the services in an account, and return what the fact of the wipe says of them."""
        try:
            removal = services.remove(taken.external_id, within=until - self._clock.monotonic())
        except Exception as error:  # noqa: BLE001 - no error may keep the account from being deleted
            # Its text might hold a secret, such as a header.
            unexpected = f"the removal of services failed with an unexpected {type(error).__name__}"
            removal = ServicesRemoval(outcome=ServicesOutcome.FAILED, error=unexpected)
        ended = ServicesRemovalEnded(
            outcome=removal.outcome,
            sandbox_id=taken.sandbox_id,
            lease_id=taken.latest_lease_id,
            removed=removal.removed,
            left=removal.left,
            error=removal.error,
        )
        self._recorder.record(ended)
        details: dict[str, Detail] = {
            "services": removal.outcome.value,
            "services_removed": removal.removed,
            "services_left": removal.left,
        }
        return details if removal.error is None else {**details, "services_error": removal.error}

    def _call(self, taken: Sandbox, by: Actor, *, send_within: float, found: Mapping[str, Detail]) -> DeleteEnded:
        try:
            answer = self._provider.delete_account(taken.external_id, send_within=send_within)
        except ProviderMisconfigured as error:
            given_up = partial(
                cancel_attempt, error=error.message, outcome_unknown=error.outcome_unknown, now=self._clock.now()
            )
            return self._write(taken, given_up, DeleteOutcome.MISCONFIGURED, error.message)
        except ProviderFailing as error:
            now = self._clock.now()
            failed = partial(
                fail_attempt,
                error=error.message,
                outcome_unknown=error.outcome_unknown,
                retry_at=now + backoff_seconds(taken, jitter=self._rng.uniform(1, 2), policy=self._policy),
                by=by,
                now=now,
                policy=self._policy,
            )
            exhausted = failed(taken).result.status is Status.DELETION_FAILED
            outcome = DeleteOutcome.GAVE_UP if exhausted else DeleteOutcome.WILL_RETRY
            return self._write(taken, failed, outcome, error.message, found=found)
        except ProviderRejected as error:
            rejected = partial(reject_deletion, error=error.message, by=by, now=self._clock.now())
            return self._write(taken, rejected, DeleteOutcome.GAVE_UP, error.message, found=found)
        now = self._clock.now()
        if answer is WipeAnswer.GONE:
            gone = partial(account_gone, by=by, now=now, policy=self._policy)
            return self._write(taken, gone, DeleteOutcome.GONE, _last_error(gone(taken).result), found=found)
        wiped = partial(
            confirm_wipe,
            accepted_only=answer is WipeAnswer.ACCEPTED,
            order=self._rng.randrange(ORDER_LIMIT),
            by=by,
            now=now,
            policy=self._policy if self._guard.is_upgraded(Upgrade.FACTS) else replace(self._policy, cool_down_sec=0),
        )
        return self._write(taken, wiped, DeleteOutcome.DELETED, None, frees=True, found=found)

    def _write(
        self,
        sandbox: Sandbox,
        make: Callable[..., Change],
        outcome: DeleteOutcome,
        error: str | None,
        *,
        frees: bool = False,
        found: Mapping[str, Detail] | None = None,
    ) -> DeleteEnded:
        """Store an outcome, unless another attempt has begun meanwhile: then nothing changes.

        `found` are details for the fact. `frees`: the sandbox may become free, and `make` takes the `reservation_id`
        that lacks it. If an operator sets or lifts a quarantine while the call runs, the attempt is still the same:
        write again.
        """
        details = found or {}
        while True:
            try:
                if frees:
                    change = self._reservations.commit_freed(
                        sandbox.name, partial(_make_freed, make, sandbox, details), store=self._store
                    )
                else:
                    change = with_details(make(sandbox), details)
                    self._store.commit(change)
            except Conflict as conflict:
                current = conflict.current
                if current is None or _attempt_of(current) is None or _attempt_of(current) != _attempt_of(sandbox):
                    return _ended(sandbox, DeleteOutcome.NOT_DUE, "the attempt has ended, or another one has begun")
                sandbox = current
            else:
                return _ended(change.result, outcome, error)


def _make_freed(
    make: Callable[..., Change], sandbox: Sandbox, details: Mapping[str, Detail], reservation_id: str | None
) -> Change:
    return with_details(make(sandbox, reservation_id=reservation_id), details)


def _ended(sandbox: Sandbox, outcome: DeleteOutcome, error: str | None) -> DeleteEnded:
    return DeleteEnded(outcome=outcome, sandbox_id=sandbox.sandbox_id, lease_id=sandbox.latest_lease_id, error=error)


def _attempt_of(sandbox: Sandbox) -> str | None:
    return sandbox.wipe.attempt_id if sandbox.wipe else None


def _last_error(sandbox: Sandbox) -> str | None:
    return sandbox.wipe.last_error if sandbox.wipe else None
