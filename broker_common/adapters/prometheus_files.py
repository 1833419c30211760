"""The metrics files of a service's processes: adds them up for a scrape, and keeps their number small.

prometheus_client makes a file for each process and kind of metric, and keeps the files of ended processes for ever.
This module moves their counts into one file for each kind. One process does that for a directory. It may be killed at
any point, and others may read at any time: no count is lost or counted twice.
"""

from __future__ import annotations

import os
import re
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from prometheus_client import Metric

_OF_PROCESS = re.compile(r"(counter|histogram|summary|gauge_max)_([0-9]+)\.db")
"""The kinds that stay after their process has ended; other gauges belong to running processes."""
_OF_ENDED = re.compile(r"(?P<kind>[a-z]+(?:_max)?)_gone-(?P<number>[0-9]+)(?:-with-(?P<pid>[0-9]+))?\.db")


class _EndedFile(NamedTuple):
    """A file with the counts of ended processes, for one kind."""

    number: int
    """The file with the highest number counts: it includes those with lower numbers."""
    name: str
    moved: str | None
    """A process's file whose counts are included, and which may still exist."""


class ProcessesCollector(Collector):
    """Collects the counts of all processes of a directory, ended ones included."""

    def __init__(self, directory: str, *, compacts: bool = False) -> None:
        """Read a `directory`; with `compacts`, this process is the one that compacts it, before each scrape."""
        self._directory = Path(directory)
        self._compacts = compacts
        self._lock = threading.Lock()

    def collect(self) -> Iterable[Metric]:
        """Return the sums."""
        if self._compacts:
            with self._lock:
                _forget_ended(self._directory)
        while True:
            # If a process has begun or ended meanwhile, the files are read again.
            before = _names(self._directory)
            with suppress(FileNotFoundError):
                metrics = MultiProcessCollector.merge(_to_read(self._directory, before))  # type: ignore[no-untyped-call] # the library leaves it untyped
                if _names(self._directory) == before:
                    return list(metrics)


def forget_process(directory: Path, pid: int) -> None:
    """Move the counts of an ended process into the files of ended processes, and remove its own files."""
    mark_process_dead(pid, directory)  # type: ignore[no-untyped-call] # the library leaves it untyped
    for name in sorted(_names(directory)):
        file = _OF_PROCESS.fullmatch(name)
        if file and int(file[2]) == pid:
            _move(directory, kind=file[1], pid=pid)


def _forget_ended(directory: Path) -> None:
    pids = {int(file[2]) for name in _names(directory) if (file := _OF_PROCESS.fullmatch(name))}
    for pid in pids:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            forget_process(directory, pid)
        except PermissionError:  # another user's process has the number now
            continue


def _names(directory: Path) -> frozenset[str]:
    return frozenset(file.name for file in directory.glob("*.db"))


def _ended_files(names: Collection[str]) -> dict[str, list[_EndedFile]]:
    """Return the files of ended processes by kind, the one that counts last."""
    found: dict[str, list[_EndedFile]] = {}
    for name in names:
        file = _OF_ENDED.fullmatch(name)
        if file:
            moved = f"{file['kind']}_{file['pid']}.db" if file["pid"] else None
            found.setdefault(file["kind"], []).append(_EndedFile(int(file["number"]), name, moved))
    return {kind: sorted(files) for kind, files in found.items()}


def _obsolete(files: list[_EndedFile]) -> list[str]:
    """Return the names of the files whose counts are in the last of `files`."""
    return [*(each.name for each in files[:-1]), *([files[-1].moved] if files[-1].moved else [])]


def _to_read(directory: Path, names: frozenset[str]) -> list[str]:
    obsolete = {name for files in _ended_files(names).values() for name in _obsolete(files)}
    paths = [directory / name for name in sorted(names - obsolete)]
    # A process that was killed while it made its file leaves an empty one.
    return [str(path) for path in paths if path.stat().st_size]


def _move(directory: Path, *, kind: str, pid: int) -> None:
    """Move the counts of a process's file into a new file of ended processes.

    The new file's name says which process's counts it includes. So one rename moves them: from then on the process's
    own file does not count. When that file is removed, the name drops the pid, which a new process may get.
    """
    older = _ended_files(_names(directory)).get(kind, [])
    _remove(directory, _obsolete(older) if older else [])
    sources = [directory / each.name for each in older[-1:]]
    own = directory / f"{kind}_{pid}.db"
    if own.exists() and own.stat().st_size:
        sources.append(own)
    number = older[-1].number + 1 if older else 1
    written = directory / f"{kind}_gone.new"
    written.unlink(missing_ok=True)
    _write(written, _add_up(kind, sources))
    new = written.rename(directory / f"{kind}_gone-{number}-with-{pid}.db")
    _remove(directory, [each.name for each in older[-1:]])
    _remove(directory, [own.name])
    new.rename(directory / f"{kind}_gone-{number}.db")


def _remove(directory: Path, names: Iterable[str]) -> None:
    for name in names:
        (directory / name).unlink(missing_ok=True)


def _add_up(kind: str, files: Iterable[Path]) -> dict[str, float]:
    values: dict[str, float] = {}
    for file in files:
        for key, value, _, _ in MmapedDict.read_all_values_from_file(file):  # type: ignore[no-untyped-call] # the library leaves it untyped
            before = values.get(key)
            if before is None:
                values[key] = value
            else:
                values[key] = max(before, value) if kind == "gauge_max" else before + value
    return values


def _write(path: Path, values: dict[str, float]) -> None:
    file = MmapedDict(str(path))  # type: ignore[no-untyped-call] # the library leaves it untyped
    for key, value in values.items():
        file.write_value(key, value, 0.0)  # type: ignore[no-untyped-call] # the same
    file.close()  # type: ignore[no-untyped-call] # the same
