"""Beat ends when Redis is gone, also where that happens just when it connects to send its first job."""

from __future__ import annotations

import socket
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest

from tests.backends import empty_database
from tests.worker.conftest import Celery

if TYPE_CHECKING:
    from collections.abc import Iterator

_DATABASE = 8


class Mortal:
    """Stands before Redis, and is gone with all its connections as soon as the second one has asked so many times.

    Beat's first connection is for its schedule and its lock, the second one for what it sends.
    """

    def __init__(self, port: int, *, requests: int) -> None:
        self._upstream = ("127.0.0.1", port)
        self._left = requests
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sockets: list[socket.socket] = []
        self.port: int = self._listener.getsockname()[1]
        self.has_died = threading.Event()
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def die(self) -> None:
        """Close everything; nothing listens on the port any more."""
        self.has_died.set()
        for each in (self._listener, *self._sockets):
            try:
                each.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue  # closed by its peer

    def close(self) -> None:
        self.die()
        for thread in self._threads:
            thread.join()
        for each in (self._listener, *self._sockets):
            each.close()

    def _accept(self) -> None:
        while not self.has_died.is_set():
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            is_second = bool(self._sockets)
            upstream = socket.create_connection(self._upstream)
            self._sockets += (client, upstream)
            for source, target, counts in ((client, upstream, is_second), (upstream, client, False)):
                self._threads.append(threading.Thread(target=self._pass_on, args=(source, target, counts)))
                self._threads[-1].start()

    def _pass_on(self, source: socket.socket, target: socket.socket, counts: bool) -> None:
        try:
            while data := source.recv(65536):
                self._left -= counts
                if counts and self._left < 0:
                    self.die()
                    return
                target.sendall(data)
        except OSError:
            return


@contextmanager
def dying(redis_url: str, *, requests: int) -> Iterator[Mortal]:
    port = urlsplit(redis_url).port
    assert port is not None
    mortal = Mortal(port, requests=requests)
    try:
        yield mortal
    finally:
        mortal.close()


@pytest.mark.parametrize("requests", [0, 1, 4])
def test_a_beat_whose_redis_dies_while_it_connects_to_send_ends_with_1_and_one_line(
    redis_url: str, requests: int
) -> None:
    database = empty_database(redis_url, _DATABASE)
    with dying(database, requests=requests) as mortal:
        url = f"redis://127.0.0.1:{mortal.port}/{_DATABASE}"
        env = {"METRICS_PORT": "0", "SYNC_INTERVAL_SEC": "1"}
        with Celery(url, "beat", application="broker_worker.celery_app", **env) as beat:
            assert beat.exit_code() == 1
            assert mortal.has_died.is_set()

    errors = [line["message"] for line in beat.lines if line["message"].startswith("Beat ends")]
    assert errors == ["Beat ends: Redis does not answer, or the lock was lost"]
    assert not any("exception" in line for line in beat.lines)
