"""Starts the traces of a process, if the standard variables of OpenTelemetry ask for them.

The broker imports nothing of OpenTelemetry unless they do.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from broker_common.adapters.traces import NO_TRACES
from broker_common.settings import Process

if TYPE_CHECKING:
    from collections.abc import Callable

    from broker_common.adapters.traces import Traces
    from broker_common.settings import Settings


def find_problem(settings: Settings, process: Process) -> str | None:
    """Return why the traces that the settings ask for cannot be made; None if all is well. This starts no thread."""
    if settings.traces_variable is None:
        return None
    try:
        _import_start(settings, process)
        from broker_common.adapters import otel_traces  # noqa: PLC0415 - only if traces are asked for
    except ModuleNotFoundError:
        return (
            f"{settings.traces_variable}: Asks for traces, but the extra `tracing` is not installed: install "
            "sandbox-broker[tracing], or set OTEL_SDK_DISABLED=true."
        )
    except ValueError:
        return (
            "OTEL_PROPAGATORS: Names one that is not installed. Leave it out: the broker uses W3C Trace Context alone."
        )
    return otel_traces.find_problem()


def start_traces(settings: Settings, process: Process) -> Traces:
    """Start the traces of this process, and return what adds its spans. Call it after the fork, once."""
    if settings.traces_variable is None:
        return NO_TRACES
    return _import_start(settings, process)()


def _import_start(settings: Settings, process: Process) -> Callable[[], Traces]:
    """Return what starts the traces of a process. The console imports less: it has no table and no queue."""
    if process is Process.CONSOLE:
        from broker_common.adapters import otel_traces  # noqa: PLC0415 - only if traces are asked for

        return partial(otel_traces.start, process.value, api_url=settings.broker_api_url)
    from broker_common.adapters import otel_backend  # noqa: PLC0415 - the same

    return partial(otel_backend.start, process.value)
