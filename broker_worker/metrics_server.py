"""The /metrics of a worker (its pool's processes added up) and of beat."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from celery import signals
from prometheus_client import CollectorRegistry, Counter, ProcessCollector, start_http_server, values
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from broker_common.core.jobs import Job

if TYPE_CHECKING:
    from collections.abc import Iterable

    from prometheus_client import Metric


def share_metrics_through(directory: str) -> None:
    """Have the metrics of this process and of those that it forks kept in files of one directory, emptied first.

    To be called before any metric is made.
    """
    for left_over in Path(directory).glob("*.db"):
        left_over.unlink()
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = directory
    # The library looks at the variable when it is imported, and Celery's command line imports it (through Flower)
    # before it loads this application.
    values.ValueClass = values.MultiProcessValue()  # type: ignore[no-untyped-call] # the library leaves it untyped


def serve_worker_metrics(*, address: str, port: int, directory: str) -> None:
    """Serve once the worker is ready, from its main process: a child would inherit the socket."""

    def serve(**_: Any) -> None:  # noqa: ANN401 - Celery's signature
        registry = CollectorRegistry()
        _PoolCollector(registry, directory)
        ProcessCollector(registry=registry)
        start_http_server(port, addr=address, registry=registry)

    def forget(pid: int, **_: Any) -> None:  # noqa: ANN401 - Celery's signature
        mark_process_dead(pid, directory)  # type: ignore[no-untyped-call] # the library leaves it untyped

    signals.worker_ready.connect(serve, weak=False)
    signals.worker_process_shutdown.connect(forget, weak=False)


def serve_beat_metrics(*, address: str, port: int) -> None:
    """Serve from the start on, also while another beat is the one that sends."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    sent = Counter("broker_beat_sent_total", "Jobs that this beat has sent", ["job"], registry=registry)
    names = {f"broker.{job}": sent.labels(job.value) for job in Job}

    def serve(**_: Any) -> None:  # noqa: ANN401 - Celery's signature
        start_http_server(port, addr=address, registry=registry)

    def count(sender: str, **_: Any) -> None:  # noqa: ANN401 - Celery's signature
        if sender in names:
            names[sender].inc()

    signals.beat_init.connect(serve, weak=False)
    signals.after_task_publish.connect(count, weak=False)


class _PoolCollector(MultiProcessCollector):
    """Adds up the files of all processes, after dropping the live gauges of those that were killed."""

    def __init__(self, registry: CollectorRegistry, directory: str) -> None:
        super().__init__(registry, directory)  # type: ignore[no-untyped-call] # the library leaves it untyped
        self._directory = Path(directory)

    def collect(self) -> Iterable[Metric]:
        for gauges in self._directory.glob("gauge_live*.db"):
            pid = int(gauges.stem.rsplit("_", 1)[1])
            if not _is_alive(pid):
                mark_process_dead(pid, str(self._directory))  # type: ignore[no-untyped-call] # the library leaves it untyped
        collected: Iterable[Metric] = super().collect()  # type: ignore[no-untyped-call] # the library leaves it untyped
        return collected


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
