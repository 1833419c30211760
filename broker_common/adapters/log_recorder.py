"""The recorder that writes telemetry as log lines."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, assert_never

import structlog

from broker_common.core.errors import BrokerError, LayoutMismatch, StoreUnavailable, TableChanged
from broker_common.core.job_names import Job
from broker_common.core.job_registry import JOBS
from broker_common.core.telemetry import (
    AccountRefused,
    AccountSkipped,
    ActionsStopped,
    AllocateEnded,
    AllocateOutcome,
    AllocationExpired,
    AllocationReleased,
    DeleteContradicted,
    DeleteEnded,
    DeleteOutcome,
    DeliveryEnded,
    DeliveryOutcome,
    EndpointDisabled,
    ExtendOutcome,
    ExtensionEnded,
    ItemFailed,
    JobEnded,
    JobOutcome,
    MarkEnded,
    MarkOutcome,
    PoolSynced,
    ProviderCalled,
    RateChecked,
    RecordUnreadable,
    ServicesOutcome,
    ServicesRemovalEnded,
    StopReason,
    StoreCalled,
    SyncProgressed,
    WaitEnded,
    WebhooksLagged,
)

if TYPE_CHECKING:
    from broker_common.core.jobs import Jobs
    from broker_common.core.telemetry import Event

_SYNC = JOBS[Job.SYNC].log_action
# A caller's mistake, an empty pool and a pause are normal answers. A store that is away is reported elsewhere, too: a
# warning is enough for each request. An unexpected failure is an error.
_LEVELS_BY_CODE: dict[str | None, int] = {
    None: logging.ERROR,
    BrokerError.code: logging.ERROR,
    LayoutMismatch.code: logging.ERROR,
    StoreUnavailable.code: logging.WARNING,
    TableChanged.code: logging.WARNING,
}
_STOPPED = {
    StopReason.CLOCK: "This process does nothing: its clock is wrong",
    StopReason.TABLE: "This process does nothing: the table is not the known one",
}
_LEVELS: dict[object, int] = {
    DeleteOutcome.GONE: logging.WARNING,
    DeleteOutcome.WILL_RETRY: logging.WARNING,
    DeleteOutcome.POSTPONED: logging.WARNING,
    DeleteOutcome.GAVE_UP: logging.ERROR,
    DeleteOutcome.MISCONFIGURED: logging.ERROR,
    ServicesOutcome.PARTIAL: logging.WARNING,
    ServicesOutcome.FAILED: logging.WARNING,
    ServicesOutcome.SKIPPED: logging.WARNING,
    DeliveryOutcome.DELIVERED: logging.DEBUG,
    DeliveryOutcome.FAILED: logging.WARNING,
    DeliveryOutcome.EXHAUSTED: logging.ERROR,
    DeliveryOutcome.DISABLED: logging.ERROR,
    JobOutcome.ERROR: logging.ERROR,
}


class LogRecorder:
    """Writes one line for each event, without the fields that are None."""

    def __init__(self, jobs: Jobs = JOBS) -> None:
        self._jobs = jobs
        self._log: structlog.typing.FilteringBoundLogger = structlog.get_logger("broker")

    def record(self, event: Event) -> None:  # noqa: C901, PLR0912 - one case an event
        """Write `event`. Single calls, rate checks and lags are not logged: only metrics have them."""
        if isinstance(event, (StoreCalled, ProviderCalled, RateChecked, WebhooksLagged)):
            return
        details = self._details(event)
        match event:
            case AllocateEnded():
                self._log.log(_answer_level(event), "Allocate ended", action="allocate", **details)
            case WaitEnded():
                self._log.log(logging.INFO, "Wait in line ended", action="wait", **details)
            case MarkEnded():
                self._log.log(_answer_level(event), "Mark for deletion ended", action="mark_for_deletion", **details)
            case ExtensionEnded():
                self._log.log(_answer_level(event), "Extend ended", action="extend", **details)
            case AllocationReleased():
                self._log.log(logging.INFO, "Allocation released by an operator", action="release", **details)
            case AllocationExpired():
                self._log.log(logging.INFO, "Allocation expired", action="expire", **details)
            case AccountSkipped():
                self._log.log(logging.WARNING, "Account skipped", action=_SYNC, **details)
            case AccountRefused():
                self._log.log(
                    logging.ERROR,
                    "Account refused: another record is in the way",
                    action=_SYNC,
                    **details,
                )
            case DeleteContradicted():
                self._log.log(logging.ERROR, "Account is still listed after a 404", action=_SYNC, **details)
            case SyncProgressed():
                self._log.log(
                    logging.INFO,
                    f"Sync is at {event.done} of {event.total} sandboxes: {event.change}",
                    action=_SYNC,
                )
            case ItemFailed():
                self._log.log(logging.WARNING, "One item failed: the next run tries it again", **details)
            case PoolSynced():
                self._log.log(logging.DEBUG, "Pool written", action=_SYNC, **details)
            case DeleteEnded():
                self._log.log(_level(event.outcome), "Delete ended", action="delete", **details)
            case ServicesRemovalEnded():
                level = _level(event.outcome)
                self._log.log(level, "Removal of services ended", action="remove_services", **details)
            case DeliveryEnded():
                self._log.log(_level(event.outcome), "Delivery ended", action="send_webhook", **details)
            case EndpointDisabled():
                self._log.log(logging.ERROR, "Webhook endpoint disabled", action="send_webhook", **details)
            case ActionsStopped():
                self._log.log(logging.ERROR, _STOPPED[event.reason], action="guard", outcome="error", error=event.error)
            case RecordUnreadable():
                self._log.log(
                    logging.ERROR,
                    "A stored record cannot be read, and is left as it is",
                    action="read_record",
                    **details,
                )
            case JobEnded():
                level = logging.DEBUG if event.is_idle else _level(event.outcome)
                self._log.log(level, event.message, **details)
            case _:
                assert_never(event)

    def _details(self, event: Event) -> dict[str, Any]:
        """Return an event's fields under the names that all log lines use."""
        details = {name: getattr(event, name) for name in event.__slots__}
        details.pop("message", None)
        details.pop("is_idle", None)
        if "outcome" in details:
            details["outcome"] = details["outcome"].value
        if "seconds" in details and not isinstance(event, WaitEnded):  # a wait is no latency: nothing worked on it
            details["latency_ms"] = round(details.pop("seconds") * 1000, 1)
        if "reason" in details:
            details["error"] = details.pop("reason")
        if "job" in details:
            details["action"] = self._jobs[details.pop("job")].log_action
        return {name: value for name, value in details.items() if value is not None}


def _answer_level(event: AllocateEnded | MarkEnded | ExtensionEnded) -> int:
    if event.outcome not in {AllocateOutcome.ERROR, MarkOutcome.ERROR, ExtendOutcome.ERROR}:
        return logging.INFO
    return _LEVELS_BY_CODE.get(event.code, logging.INFO)


def _level(outcome: DeleteOutcome | ServicesOutcome | DeliveryOutcome | JobOutcome) -> int:
    return _LEVELS.get(outcome, logging.INFO)
