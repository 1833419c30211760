"""The files in which the processes of one service keep what they count: added up for a scrape, and kept few.

prometheus_client has a file for each process and kind, and leaves those of processes that are gone for ever. Here what
these have counted is moved into one file for each kind. One process does that for a directory. It may be killed at any
point, and others may read at any time: no count is ever lost, nor counted twice.
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
"""The kinds that outlive their process; gauges of another kind are those of processes that run."""
_OF_THE_GONE = re.compile(r"(?P<kind>[a-z]+(?:_max)?)_gone-(?P<number>[0-9]+)(?:-with-(?P<pid>[0-9]+))?\.db")


class _Gone(NamedTuple):
    """The file of a kind that holds what processes that are gone have counted."""

    number: int
    """The highest one counts; it holds what those with lower numbers do."""
    name: str
    moved: str | None
    """A process's file whose counts it holds already, and which may still be there."""


class ProcessesCollector(Collector):
    """What all processes of a directory have counted, also those that are gone."""

    def __init__(self, directory: str, *, compacts: bool = False) -> None:
        """Read a `directory`; with `compacts`, this process is the one that compacts it, before each scrape."""
        self._directory = Path(directory)
        self._compacts = compacts
        self._lock = threading.Lock()

    def collect(self) -> Iterable[Metric]:
        """Return the sums."""
        if self._compacts:
            with self._lock:
                _forget_the_gone(self._directory)
        while True:
            # What changes while it is read is read again: a process has begun or ended meanwhile.
            before = _names(self._directory)
            with suppress(FileNotFoundError):
                metrics = MultiProcessCollector.merge(_to_read(self._directory, before))  # type: ignore[no-untyped-call] # the library leaves it untyped
                if _names(self._directory) == before:
                    return list(metrics)


def forget_process(directory: Path, pid: int) -> None:
    """Move what a process that is gone has counted into the files of the gone, and remove its own."""
    mark_process_dead(pid, directory)  # type: ignore[no-untyped-call] # the library leaves it untyped
    for name in sorted(_names(directory)):
        file = _OF_PROCESS.fullmatch(name)
        if file and int(file[2]) == pid:
            _move(directory, kind=file[1], pid=pid)


def _forget_the_gone(directory: Path) -> None:
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


def _gone_of(names: Collection[str]) -> dict[str, list[_Gone]]:
    """Return, by kind, the files of the gone, the one that counts last."""
    found: dict[str, list[_Gone]] = {}
    for name in names:
        file = _OF_THE_GONE.fullmatch(name)
        if file:
            moved = f"{file['kind']}_{file['pid']}.db" if file["pid"] else None
            found.setdefault(file["kind"], []).append(_Gone(int(file["number"]), name, moved))
    return {kind: sorted(files) for kind, files in found.items()}


def _obsolete(files: list[_Gone]) -> list[str]:
    """Return the names of a kind's files whose counts the last one holds."""
    return [*(each.name for each in files[:-1]), *([files[-1].moved] if files[-1].moved else [])]


def _to_read(directory: Path, names: frozenset[str]) -> list[str]:
    obsolete = {name for files in _gone_of(names).values() for name in _obsolete(files)}
    paths = [directory / name for name in sorted(names - obsolete)]
    # A process that was killed as it made its file has left an empty one.
    return [str(path) for path in paths if path.stat().st_size]


def _move(directory: Path, *, kind: str, pid: int) -> None:
    """Move the counts of one file.

    The new file of the gone says by its name which process's counts it holds in addition, so that they count from one
    moment on in there and not in the process's own file; and no more once that is removed, as the number may come back.
    """
    older = _gone_of(_names(directory)).get(kind, [])
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
