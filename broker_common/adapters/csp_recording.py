"""Records the outcome and the length of each call of the provider."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from broker_common.core.errors import (
    ListingUnusable,
    ProviderError,
    ProviderFailing,
    ProviderMisconfigured,
    ProviderRejected,
)
from broker_common.core.telemetry import ProviderCalled, ProviderOutcome

if TYPE_CHECKING:
    from collections.abc import Iterator

    from broker_common.core.ports import Clock, Recorder

_OUTCOMES: dict[type[ProviderError], ProviderOutcome] = {
    ProviderFailing: ProviderOutcome.FAILING,
    ProviderMisconfigured: ProviderOutcome.MISCONFIGURED,
    ProviderRejected: ProviderOutcome.REJECTED,
    ListingUnusable: ProviderOutcome.UNUSABLE,
}


@contextmanager
def recorded(operation: str, *, recorder: Recorder, clock: Clock) -> Iterator[None]:
    """Record the call that is made inside the context: its outcome follows from the error that it raises, if any."""
    started, outcome = clock.monotonic(), ProviderOutcome.FAILING
    try:
        yield
        outcome = ProviderOutcome.SUCCESS
    except ProviderError as error:
        outcome = _OUTCOMES.get(type(error), outcome)
        raise
    finally:
        seconds = clock.monotonic() - started
        recorder.record(ProviderCalled(operation=operation, outcome=outcome, seconds=seconds))
