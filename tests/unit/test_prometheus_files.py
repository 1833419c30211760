"""What processes that are gone have counted is kept in few files, although processes are killed and files are read meanwhile."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import threading
from collections import Counter
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry
from prometheus_client.mmap_dict import MmapedDict, mmap_key

from broker_common.adapters.prometheus_files import ProcessesCollector, forget_process

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import pytest

FIRST_PID = 5_000_001
"""Above the highest number of a process that Linux gives."""


def write(directory: Path, kind: str, pid: int, values: dict[str, float]) -> None:
    """Write what a process has counted, by name or, of a histogram, by bucket."""
    file = MmapedDict(str(directory / f"{kind}_{pid}.db"))  # type: ignore[no-untyped-call] # the library leaves it untyped
    for name, value in values.items():
        labels = {"le": name} if kind == "histogram" else {}
        sample = "seconds_bucket" if kind == "histogram" else name
        metric = "seconds" if kind == "histogram" else name
        file.write_value(mmap_key(metric, sample, list(labels), list(labels.values()), "help"), value, 0.0)  # type: ignore[no-untyped-call] # the same
    file.close()  # type: ignore[no-untyped-call] # the same


def write_all(directory: Path, pid: int, *, last_success: float = 0) -> None:
    write(directory, "counter", pid, {"calls_total": 1, f"calls_{pid % 3}_total": 2})
    write(directory, "histogram", pid, {"0.1": 1, "1.0": 2, "+Inf": 0})
    write(directory, "gauge_max", pid, {"last_success": last_success})
    write(directory, "gauge_livesum", pid, {"in_progress": 1})


def read(directory: Path, *, compacts: bool = False) -> dict[str, float]:
    registry = CollectorRegistry()
    registry.register(ProcessesCollector(str(directory), compacts=compacts))
    return {
        sample.name + sample.labels.get("le", ""): sample.value
        for metric in registry.collect()
        for sample in metric.samples
    }


def of(processes: int) -> dict[str, float]:
    """Return what so many processes have counted."""
    numbers = Counter((FIRST_PID + each) % 3 for each in range(processes))
    return {f"calls_{number}_total": 2.0 * times for number, times in numbers.items()} | {
        "calls_total": processes,
        "seconds_bucket0.1": processes,
        "seconds_bucket1.0": 3 * processes,
        "seconds_bucket+Inf": 3 * processes,
        "seconds_count": 3 * processes,
        "last_success": processes - 1,
    }


def files(directory: Path) -> list[str]:
    return sorted(file.name for file in directory.iterdir())


def test_what_two_hundred_processes_counted_is_kept_in_one_file_of_each_kind(tmp_path: Path) -> None:
    for number in range(200):
        write_all(tmp_path, FIRST_PID + number, last_success=number)
        forget_process(tmp_path, FIRST_PID + number)
        assert len(files(tmp_path)) == 3
    assert read(tmp_path) == of(200)


def test_a_process_with_the_number_of_one_that_is_gone_is_counted(tmp_path: Path) -> None:
    for _ in range(2):
        write_all(tmp_path, FIRST_PID)
        forget_process(tmp_path, FIRST_PID)
    write_all(tmp_path, FIRST_PID)
    assert read(tmp_path)["calls_total"] == 3


def test_a_file_that_a_killed_process_left_empty_is_nothing(tmp_path: Path) -> None:
    write_all(tmp_path, FIRST_PID)
    (tmp_path / f"counter_{FIRST_PID + 1}.db").touch()
    (tmp_path / "histogram_gone.new").write_bytes(b"what a compaction that was killed has left")
    assert read(tmp_path)["calls_total"] == 1
    for pid in (FIRST_PID, FIRST_PID + 1):
        forget_process(tmp_path, pid)
    assert read(tmp_path) == of(1)


def test_a_worker_compacts_what_its_killed_children_left_and_nothing_of_those_that_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        write_all(tmp_path, FIRST_PID + number, last_success=number)
    write(tmp_path, "counter", os.getpid(), {"calls_total": 10})
    write(tmp_path, "counter", 1, {"calls_total": 100})
    monkeypatch.setattr(os, "kill", as_somebody_else(os.kill))
    shown = read(tmp_path, compacts=True)
    assert shown == of(3) | {"calls_total": 113}
    assert files(tmp_path) == sorted(
        [f"counter_{os.getpid()}.db", "counter_1.db", "counter_gone-3.db", "gauge_max_gone-3.db", "histogram_gone-3.db"]
    )


def as_somebody_else(kill: Callable[[int, int], None]) -> Callable[[int, int], None]:
    def kill_as_somebody_else(pid: int, signum: int) -> None:
        if pid == 1:
            raise PermissionError
        kill(pid, signum)

    return kill_as_somebody_else


def test_every_scrape_during_compaction_shows_the_whole_sum(tmp_path: Path) -> None:
    for number in range(100):
        write_all(tmp_path, FIRST_PID + number, last_success=number)
    compacting = multiprocessing.get_context("spawn").Process(target=forget_all, args=(tmp_path, 100))
    compacting.start()
    scrapes = 0
    while compacting.is_alive():
        shown = read(tmp_path)
        shown.pop("in_progress", None)
        assert shown == of(100)
        scrapes += 1
    compacting.join()
    assert (compacting.exitcode, len(files(tmp_path))) == (0, 3)
    assert scrapes > 0


def forget_all(directory: Path, processes: int) -> None:
    for number in range(processes):
        forget_process(directory, FIRST_PID + number)


STEPS = """
import os, sys
from pathlib import Path
from broker_common.adapters.prometheus_files import forget_process

left = int(sys.argv[2])

def before_each(event, args):
    global left
    if event in {"os.rename", "os.remove"} and sys.argv[1] in os.fspath(args[0]):
        if not left:
            os._exit(9)
        left -= 1

sys.addaudithook(before_each)
for pid in sys.argv[3:]:
    forget_process(Path(sys.argv[1]), int(pid))
"""
"""Compacts, and ends as by SIGKILL before a step of it that changes the directory."""


def compact_until(directory: Path, step: int, *pids: int) -> int:
    command = [sys.executable, "-c", STEPS, str(directory), str(step), *map(str, pids)]
    return subprocess.run(command, check=False).returncode


def test_a_compaction_that_is_killed_at_any_step_loses_nothing_and_counts_nothing_twice(tmp_path: Path) -> None:
    step, killed = 0, True
    while killed:
        directory = tmp_path / str(step)
        directory.mkdir()
        for number in range(4):
            write_all(directory, FIRST_PID + number, last_success=number)
        forget_process(directory, FIRST_PID)
        killed = compact_until(directory, step, FIRST_PID + 1, FIRST_PID + 2) == 9
        shown = read(directory)
        shown.pop("in_progress")
        assert shown == of(4), step
        for number in range(4):
            forget_process(directory, FIRST_PID + number)
        assert read(directory) == of(4), step
        assert len(files(directory)) == 3
        step += 1
    assert step > 20


def test_scrapes_at_once_compact_one_after_the_other(tmp_path: Path) -> None:
    for number in range(50):
        write_all(tmp_path, FIRST_PID + number, last_success=number)
    collector = ProcessesCollector(str(tmp_path), compacts=True)
    shown: list[float] = []

    def scrape() -> None:
        (calls,) = (metric for metric in collector.collect() if metric.name == "calls_total")
        shown.append(calls.samples[0].value)

    threads = [threading.Thread(target=scrape) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert shown == [50] * 4
