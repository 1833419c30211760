"""How the processes of one server share new connections."""

from __future__ import annotations

import os
import signal
from contextlib import ExitStack, suppress
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from broker_api.sharing import Counts, Share
from deploy.dev.processes import wait_until
from tests.api.test_gunicorn_worker import call, read_status, running

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.api.test_gunicorn_worker import Server


LISTENS = "0A"
"""The state of a socket in `/proc/net/tcp`."""


@pytest.fixture
def share_with() -> Callable[[int], Share]:
    """Return what makes the share of a process with so many connections. All are processes of one server."""
    counts, ages = Counts(), count(1)

    def make(connections: int) -> Share:
        share = Share(counts, next(ages))
        share.note(connections)
        return share

    return make


def test_the_process_with_more_connections_leaves_the_next_one_to_another(share_with: Callable[[int], Share]) -> None:
    fewer, more = share_with(10), share_with(13)
    assert more.should_leave_next(13, 100.0)
    assert not fewer.should_leave_next(10, 100.0)


def test_a_process_with_about_as_many_connections_accepts(share_with: Callable[[int], Share]) -> None:
    share_with(10)
    assert not share_with(12).should_leave_next(12, 100.0)


def test_a_process_is_not_compared_with_ended_ones(share_with: Callable[[int], Share]) -> None:
    share_with(0).leave()
    assert not share_with(13).should_leave_next(13, 100.0)


def test_a_process_is_the_last_one_when_all_others_have_left(share_with: Callable[[int], Share]) -> None:
    one, other = share_with(0), share_with(3)
    one.leave()
    assert not one.is_last()
    other.leave()
    assert one.is_last()
    assert other.is_last()


def test_what_no_other_process_takes_is_accepted_and_all_that_follows_until_that_process_accepts(
    share_with: Callable[[int], Share],
) -> None:
    hanging, more = share_with(0), share_with(13)
    asked_at = (100.0, 100.04, 100.06, 100.07, 200.0)
    assert [more.should_leave_next(13, now) for now in asked_at] == [True, True, False, False, False]
    hanging.note(1)
    assert more.should_leave_next(13, 200.1)


def test_those_that_do_not_hang_go_on_sharing(share_with: Callable[[int], Share]) -> None:
    share_with(0)
    working, more = share_with(12), share_with(13)
    assert [more.should_leave_next(13, now) for now in (100.0, 100.06)] == [True, False]
    working.note(14)
    more.note(17)
    assert more.should_leave_next(17, 100.07)


def test_a_connection_that_comes_later_is_not_the_one_that_was_left(share_with: Callable[[int], Share]) -> None:
    """Another process may have accepted that one, and lost it again."""
    share_with(0)
    more = share_with(13)
    assert more.should_leave_next(13, 100.0)
    assert more.should_leave_next(13, 160.0)


def test_a_process_goes_on_leaving_while_another_one_accepts(share_with: Callable[[int], Share]) -> None:
    fewer, more = share_with(0), share_with(20)
    for number in range(10):
        fewer.note(number)
        assert more.should_leave_next(20, 100 + number * 0.04)


def kept_connections(server: Server) -> list[int]:
    """Return how many connections each process of a server has, also of clients that have gone."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    sockets = {f"socket:[{row[9]}]" for row in rows if row[1].endswith(f":{server.port:04X}") and row[3] != LISTENS}
    found = []
    for pid in server.workers():
        links = []
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(FileNotFoundError):  # closed meanwhile
                links.append(str(descriptor.readlink()))
        found.append(len(sockets.intersection(links)))
    return sorted(found)


def serve_some(server: Server, opened: ExitStack, number: int) -> None:
    """Open connections at once, which stay open, and have a request answered on each."""
    connections = [opened.enter_context(server.connect()) for _ in range(number)]
    for each in connections:
        each.sendall(call())
    assert [read_status(opened.enter_context(each.makefile("rb"))) for each in connections] == [200] * number


def await_processes(server: Server, number: int) -> None:
    """Wait until so many processes accept connections."""

    def all_accept() -> bool:
        with ExitStack() as trial:
            serve_some(server, trial, 10 * number)
            held = kept_connections(server)
        return len(held) == number and held[0] > 0

    assert wait_until(all_accept, 30)
    assert wait_until(lambda: sum(kept_connections(server)) == 0, 30)


def test_kept_connections_are_spread_evenly_also_after_a_process_was_replaced(tmp_path: Path) -> None:
    with running(tmp_path, app="tests.api.patient_app:app", API_WORKERS="3") as server, ExitStack() as opened:
        await_processes(server, 3)
        serve_some(server, opened, 60)
        held = kept_connections(server)
        assert sum(held) == 60
        assert held[-1] - held[0] <= 3, held
        opened.close()
        assert wait_until(lambda: sum(kept_connections(server)) == 0, 30)
        os.kill(server.workers()[0], signal.SIGKILL)
        await_processes(server, 3)
        serve_some(server, opened, 60)
        held = kept_connections(server)
        assert held[-1] - held[0] <= 3, held


def test_a_process_that_hangs_keeps_no_connection_from_the_others(tmp_path: Path) -> None:
    with running(tmp_path, API_WORKERS="3") as server, ExitStack() as opened:
        await_processes(server, 3)
        hanging = server.workers()[0]
        os.kill(hanging, signal.SIGSTOP)
        try:
            serve_some(server, opened, 60)  # each must be answered within ten seconds
            assert kept_connections(server)[0] == 0
        finally:
            os.kill(hanging, signal.SIGCONT)
