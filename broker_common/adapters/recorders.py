"""The recorder that passes telemetry on to several recorders, and contains their failures."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

if TYPE_CHECKING:
    from collections.abc import Sequence

    from broker_common.core.ports import Recorder
    from broker_common.core.telemetry import Event


class Recorders:
    """Passes telemetry on to several recorders. If one fails, that is logged, and the others go on."""

    def __init__(self, recorders: Sequence[Recorder]) -> None:
        self._recorders = tuple(recorders)
        self._log: structlog.typing.FilteringBoundLogger = structlog.get_logger("broker")

    def record(self, event: Event) -> None:
        """Pass `event` on; never raises."""
        for recorder in self._recorders:
            try:
                recorder.record(event)
            except Exception:  # noqa: BLE001 - an operation must not fail because it could not be counted
                self._log.exception("An event could not be recorded", event_type=type(event).__name__)
