"""What the gunicorn worker does with a request before the application sees it, or instead of the application."""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import resource
import select
import selectors
import signal
import socket
import struct
import sys
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from http.client import HTTPMessage, parse_headers
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import pytest
from gunicorn import util  # type: ignore[import-untyped] # it ships no types
from gunicorn.config import Config  # type: ignore[import-untyped] # the same
from gunicorn.workers import gthread  # type: ignore[import-untyped] # the same

from broker_api.connections import Exchange
from broker_api.event_loop import MAX_HELD_BYTES, make_room_for
from broker_api.gunicorn_worker import Worker, fold_repeated
from broker_api.listening import refuse_connections
from broker_api.sharing import Counts, Share
from broker_common.core.telemetry import AllocateOutcome
from deploy.dev.processes import Process, Program, free_ports, wait_until
from tests.api.harness import make_api
from tests.api.test_startup import COMMANDS, ENVIRONMENT
from tests.fakes import make_sandbox

if TYPE_CHECKING:
    from collections.abc import Iterator


class Answer(NamedTuple):
    """An answer, as it was received."""

    status: int
    headers: HTTPMessage
    body: bytes

    @property
    def error(self) -> dict[str, Any]:
        """The error of the body."""
        error: dict[str, Any] = json.loads(self.body)["error"]
        return error


THREADS = 4


def parse_answer(received: bytes) -> Answer:
    """Return an answer, with all that follows its head as its body."""
    head, _, body = received.partition(b"\r\n\r\n")
    status_line, _, lines = head.partition(b"\r\n")
    return Answer(int(status_line.split()[1]), parse_headers(BytesIO(lines)), body)


def read_answer(answers: IO[bytes]) -> Answer:
    """Read one whole answer from a kept connection."""
    status, headers = int(answers.readline().split()[1]), parse_headers(answers)
    body = answers.read(int(headers["Content-Length"]))
    assert len(body) == int(headers["Content-Length"])
    return Answer(status, headers, body)


def read_status(answers: IO[bytes]) -> int:
    """Read one whole answer from a kept connection, and return its status."""
    return read_answer(answers).status


class Server:
    """gunicorn as it is deployed. Its store and its queue do not answer, unless `app` has others."""

    def __init__(self, scratch: str, *, app: str = COMMANDS["api"][-1], **environment: str) -> None:
        self.lines: list[str] = []
        (self.port,) = free_ports(1)
        machine = {each: os.environ[each] for each in ("PATH", "HOME", "LANG") if each in os.environ}
        settings = {
            "API_BIND": "127.0.0.1",
            "API_PORT": str(self.port),
            "API_WORKERS": "1",
            "API_THREADS": str(THREADS),
            "REDIS_URL": "redis://127.0.0.1:1/0",
            "DDB_ENDPOINT_URL": "http://127.0.0.1:1",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_EC2_METADATA_DISABLED": "true",
            "TMPDIR": scratch,
        }
        program = Program(
            name="api",
            command=(sys.executable, "-m", *COMMANDS["api"][:-1], app),
            env=machine | ENVIRONMENT | settings | environment,
            ready_url=f"http://127.0.0.1:{self.port}/healthz",
        )
        self.process = Process(program, lambda _, line: self.lines.append(line))

    def connect(self) -> socket.socket:
        """Open a connection that gives up after 10 s of silence."""
        return socket.create_connection(("127.0.0.1", self.port), 10)

    def connect_slowly(self) -> socket.socket:
        """Open a connection that receives little at a time."""
        connection = socket.socket()
        connection.settimeout(10)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", self.port))
        return connection

    def workers(self) -> list[int]:
        """Return the process ids of gunicorn's workers."""
        master = self.process.pid
        return [int(each) for each in Path(f"/proc/{master}/task/{master}/children").read_text().split()]

    def send(self, request: bytes) -> Answer:
        """Send raw bytes, read until the server closes the connection, and return the one answer that was read."""
        with self.connect() as connection:
            connection.sendall(request)
            answer = parse_answer(connection.makefile("rb").read())
        assert answer.headers["Content-Length"] == str(len(answer.body)), answer
        return answer


@contextmanager
def running(scratch: Path, **options: str) -> Iterator[Server]:
    server = Server(str(scratch), **options)
    server.process.start()
    try:
        assert wait_until(server.process.is_ready, 30, give_up=server.process.has_ended), "\n".join(server.lines)
        yield server
    finally:
        server.process.stop()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("gunicorn")) as server:
        yield server


def call(*headers: bytes, line: bytes = b"GET /healthz HTTP/1.1", body: bytes = b"") -> bytes:
    return b"\r\n".join([line, b"Host: broker", *headers, b"", body])


REFUSED = {
    "no request line": (call(line=b"nonsense"), 400, "VALIDATION_ERROR"),
    "no method": (call(line=b"G@T /healthz HTTP/1.1"), 400, "VALIDATION_ERROR"),
    "another protocol": (call(line=b"GET /healthz SPDY/7"), 400, "VALIDATION_ERROR"),
    "a NUL in a header": (call(b"X-Track-ID: a\x00b"), 400, "VALIDATION_ERROR"),
    "no name of a header": (call(b"X Track ID: a"), 400, "VALIDATION_ERROR"),
    "a folded header": (call(b"X-Track-ID: a", b" b"), 400, "VALIDATION_ERROR"),
    "two lengths": (call(b"Content-Length: 1", b"Content-Length: 2"), 400, "VALIDATION_ERROR"),
    "another expectation": (call(b"Expect: a miracle"), 417, "EXPECTATION_FAILED"),
    "a long path": (call(line=b"GET /" + b"x" * 5000 + b" HTTP/1.1"), 414, "URI_TOO_LONG"),
    "a long header": (call(b"X-Track-ID: " + b"x" * 9000), 431, "REQUEST_HEADER_FIELDS_TOO_LARGE"),
    "many headers": (call(*[b"X-One: 1"] * 65), 431, "REQUEST_HEADER_FIELDS_TOO_LARGE"),
    "another coding": (call(b"Transfer-Encoding: zip, chunked"), 400, "VALIDATION_ERROR"),
}


@pytest.mark.parametrize(("request_bytes", "status", "code"), REFUSED.values(), ids=REFUSED)
def test_what_gunicorn_refuses_is_answered_like_every_error(
    server: Server, request_bytes: bytes, status: int, code: str
) -> None:
    answer = server.send(request_bytes)
    error = answer.error
    assert (answer.status, error["code"]) == (status, code)
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.headers["Connection"] == "close"
    assert answer.headers["Server"] == "broker"
    assert set(error) == {"code", "message", "request_id"}
    assert error["message"]
    assert error["request_id"] == answer.headers["X-Request-ID"]
    assert re.fullmatch("[A-Za-z0-9._-]{1,128}", error["request_id"])


@pytest.mark.parametrize(("request_bytes", "status", "code"), REFUSED.values(), ids=REFUSED)
def test_what_gunicorn_refuses_is_a_problem_for_who_prefers_that(
    server: Server, request_bytes: bytes, status: int, code: str
) -> None:
    line, _, others = request_bytes.partition(b"\r\n")
    wanted = b"X-Request-ID: req-1\r\nAccept: text/html\r\naccept: application/problem+json"
    answer = server.send(b"\r\n".join([line, wanted, others]))
    assert (answer.status, answer.headers["Content-Type"]) == (status, "application/problem+json")
    assert answer.headers["Vary"] == "Accept"
    assert answer.headers["X-Request-ID"] == "req-1"
    problem = json.loads(answer.body)
    assert (problem["type"], problem["status"]) == (f"/v1/docs#{code}", status)
    assert (problem["code"], problem["request_id"]) == (code, "req-1")


def test_what_no_thread_has_seen_is_refused_by_a_problem_for_who_prefers_that(server: Server) -> None:
    answer = server.send(b"GET /healthz HTTP/1.1\r\nAccept: application/problem+json\r\nX-One: 1\nX-Two: 2\r\n\r\n")
    assert (answer.status, answer.headers["Content-Type"]) == (400, "application/problem+json")


def test_what_asks_for_a_problem_in_its_body_alone_is_refused_in_plain_json(server: Server) -> None:
    body = b"\r\nAccept: application/problem+json\r\n"
    answer = server.send(call(b"Expect: a miracle", b"Content-Length: %d" % len(body), body=body))
    assert (answer.status, answer.headers["Content-Type"]) == (417, "application/json")
    assert answer.headers["Vary"] == "Accept"


def test_a_refusal_is_logged_with_its_id_and_without_what_was_sent(server: Server) -> None:
    answer = server.send(call(b"Authorization Bearer s3cr3t"))
    assert answer.status == 400
    assert b"s3cr3t" not in answer.body

    def logged() -> bool:
        return any(answer.headers["X-Request-ID"] in line for line in server.lines)

    assert wait_until(logged, 10), server.lines
    (line,) = [line for line in server.lines if answer.headers["X-Request-ID"] in line]
    assert json.loads(line)["level"] == "warning"
    assert not any("s3cr3t" in line for line in server.lines)


def test_a_body_in_chunks_that_is_too_large_answers_413(server: Server) -> None:
    headers = (b"Authorization: Bearer track-token", b"X-Track-ID: t", b"Transfer-Encoding: chunked")
    chunks = (b"8000\r\n" + b" " * 0x8000 + b"\r\n") * 3
    answer = server.send(
        call(*headers, b"Connection: close", line=b"POST /v1/allocate HTTP/1.1", body=chunks + b"0\r\n\r\n")
    )
    assert (answer.status, answer.error["code"]) == (413, "PAYLOAD_TOO_LARGE")


@pytest.mark.parametrize("chunks", [b"nonsense\r\n", b"1\r\nxAB0\r\n\r\n"])
def test_a_request_that_was_refused_before_its_body_was_read_gets_no_second_answer(
    server: Server, chunks: bytes
) -> None:
    answer = server.send(call(b"Transfer-Encoding: chunked", line=b"POST /v1/allocate HTTP/1.1", body=chunks))
    assert (answer.status, answer.error["code"]) == (401, "UNAUTHORIZED")


def test_what_an_earlier_run_has_counted_is_not_counted_again(tmp_path: Path) -> None:
    left_over = tmp_path / "counter_1.db"
    left_over.touch()
    with running(tmp_path, PROMETHEUS_MULTIPROC_DIR=str(tmp_path)):
        assert not left_over.exists()


def test_what_killed_workers_counted_is_kept_in_few_files(tmp_path: Path) -> None:
    def count_of_calls(server: Server) -> int:
        metrics = server.send(call(b"Connection: close", line=b"GET /metrics HTTP/1.1")).body.decode()
        found = re.search(r'^http_requests_total.*"/healthz".* ([0-9.]+)$', metrics, re.MULTILINE)
        return int(float(found[1])) if found else 0

    def kill_the_worker(server: Server) -> None:
        (killed,) = server.workers()
        os.kill(killed, signal.SIGKILL)
        assert wait_until(lambda: server.workers() not in ([], [killed]), 20)
        assert wait_until(lambda: not list(tmp_path.glob(f"counter_{killed}.db")), 20)

    with running(tmp_path, PROMETHEUS_MULTIPROC_DIR=str(tmp_path)) as server:
        before = count_of_calls(server)
        for _ in range(3):
            assert server.send(call(b"Connection: close")).status == 200
            kill_the_worker(server)
        assert count_of_calls(server) == before + 3
        assert len(list(tmp_path.glob("counter_*.db"))) == 2
        # If that is not possible, the worker logs it and continues to serve.
        (tmp_path / "counter_gone.new").mkdir()
        (killed,) = server.workers()
        os.kill(killed, signal.SIGKILL)
        assert wait_until(lambda: any("could not be compacted" in line for line in server.lines), 20)
        assert count_of_calls(server) == before + 3


@pytest.fixture
def bare() -> Worker:
    """Return a worker without a server around it."""
    worker = Worker.__new__(Worker)
    worker.log, worker.age = logging.getLogger("gunicorn.error"), 1
    worker.method_queue = SimpleNamespace(defer=lambda _: None)
    return worker


def test_what_nothing_else_could_answer_is_answered_500_and_logged(
    bare: Worker, caplog: pytest.LogCaptureFixture
) -> None:
    exchange = Exchange()
    exchange.sendall(b"a part of another answer")
    bare.handle_error(SimpleNamespace(headers=[]), exchange, ("127.0.0.1", 1), KeyError("a-secret-value"))
    answer = exchange.take_answer()
    assert answer.startswith(b"HTTP/1.1 500 ")
    assert b"INTERNAL_ERROR" in answer
    assert b"secret" not in answer
    assert [record.levelname for record in caplog.records] == ["ERROR"]


@pytest.fixture
def loop(bare: Worker, monkeypatch: pytest.MonkeyPatch) -> Worker:
    """Return a worker whose event loop is prepared and does not run."""
    monkeypatch.setattr(gthread.ThreadWorker, "init_process", lambda _: None)
    monkeypatch.setattr("broker_api.event_loop.OF_THIS_SERVER", Counts())
    bare.cfg, bare.sockets = Config(), []
    bare.init_process()
    bare.poller = selectors.DefaultSelector()
    bare.alive, bare.nr_conns = True, 0
    return bare


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """Yield a listener that one client has connected to."""
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()),
    ):
        yield listener


def test_a_connection_that_made_room_for_another_one_is_not_looked_at_again(
    loop: Worker, listener: socket.socket
) -> None:
    """The poller may have reported the connection in the same turn."""
    assert loop.accept(listener)
    (conn,) = loop._waiting
    loop.worker_connections = 2
    with socket.create_connection(listener.getsockname()):
        assert loop.accept(listener)
        loop._on_ready(conn, conn.stream)
        assert (loop.nr_conns, conn.stream.fileno(), len(loop._waiting)) == (1, -1, 1)
    loop.murder_keepalived(force=True)
    assert (loop.nr_conns, loop._waiting) == (0, {})


def test_a_connection_is_left_as_it_is_until_something_happens_to_it(loop: Worker, listener: socket.socket) -> None:
    loop.accept(listener)
    (conn,) = loop._waiting
    conn.receive()
    conn.discard()
    assert (conn.has_ended, conn.is_broken, len(conn.reader)) == (False, False, 0)
    conn.stream.close()
    conn.go_on_sending()
    conn.discard()
    assert (conn.has_ended, conn.is_broken) == (True, True)
    loop.murder_keepalived(force=True)


def test_a_connection_whose_thread_failed_is_closed_and_that_is_logged(
    loop: Worker, listener: socket.socket, caplog: pytest.LogCaptureFixture
) -> None:
    loop.accept(listener)
    (conn,) = loop._waiting
    failed: Future[None] = Future()
    failed.set_exception(KeyError("a fault"))
    loop.finish_request(conn, failed)
    assert (loop.nr_conns, conn.stream.fileno()) == (0, -1)
    assert [record.levelname for record in caplog.records] == ["ERROR"]


@pytest.mark.parametrize("number", [errno.ECONNABORTED, errno.EBADF])
def test_only_a_client_that_has_gone_again_is_no_reason_to_stop(loop: Worker, number: int) -> None:
    def accept() -> None:
        raise OSError(number, "")

    expected = nullcontext() if number == errno.ECONNABORTED else pytest.raises(OSError, match=str(number))
    with expected:
        assert not loop.accept(SimpleNamespace(accept=accept))


def test_gunicorn_does_not_wait_for_a_client_whose_answer_broke_off() -> None:
    util.close_graceful(Exchange())


class ClosedTooEarly(socket.socket):
    """A listener to which a client connects between the last accept and the close."""

    def __init__(self) -> None:
        super().__init__()
        self.bind(("127.0.0.1", 0))
        self.listen()
        self.settimeout(0)
        self.late = socket.socket()
        self.late.settimeout(0)

    def close(self) -> None:
        if self.fileno() >= 0:
            self.late.connect_ex(self.getsockname())
        super().close()


def stop_accepting(loop: Worker, listener: socket.socket) -> None:
    """Have a worker accept from a listener, and then stop."""
    loop.sockets, loop._accepting = [listener], False
    loop.set_accept_enabled(True)
    loop.alive = False
    loop.set_accept_enabled(False)


def await_connection(client: socket.socket) -> int:
    """Wait until a client is connected or not, and return the number of the error."""
    poll = select.poll()
    poll.register(client, select.POLLOUT)
    assert poll.poll(10_000), "the kernel repeats the first packet after a second"
    return client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)


def test_a_client_that_connects_when_the_last_worker_closes_its_listener_is_refused_and_not_reset(loop: Worker) -> None:
    with ClosedTooEarly() as listener, listener.late, socket.create_connection(listener.getsockname()):
        stop_accepting(loop, listener)
        assert loop.nr_conns == 1, "what was queued is served"
        assert loop._share.is_last(), "what it still accepts does not make others take it for one that serves on"
        assert await_connection(listener.late) == errno.ECONNREFUSED
    loop.murder_keepalived(force=True)


def test_a_worker_that_stops_while_others_accept_refuses_nobody(loop: Worker) -> None:
    other = Share(loop._share._counts, loop.age + 1)
    other.note(0)
    with ClosedTooEarly() as listener, listener.late, socket.socket(fileno=os.dup(listener.fileno())) as of_the_other:
        stop_accepting(loop, listener)
        assert await_connection(listener.late) == 0
        of_the_other.accept()[0].close()


def test_a_worker_that_serves_admits_connections_that_another_one_has_refused(loop: Worker) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as client:
        refuse_connections(listener)
        client.settimeout(0)
        client.connect_ex(listener.getsockname())
        loop.sockets = [listener]
        loop.murder_keepalived()
        assert await_connection(client) == 0


def test_a_worker_that_has_not_begun_to_serve_stops_at_once(bare: Worker) -> None:
    bare.booted, bare.alive = False, True
    bare.handle_exit(signal.SIGTERM, None)
    assert not bare.alive


def test_a_second_request_to_stop_does_not_begin_the_drain_again(bare: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    timer = [0.0]
    alarm = SimpleNamespace(
        ITIMER_REAL=signal.ITIMER_REAL,
        getitimer=lambda _: (timer[-1], 0.0),
        setitimer=lambda _, seconds: timer.append(seconds),
    )
    monkeypatch.setattr("broker_api.gunicorn_worker.signal", alarm)
    bare.booted, bare.alive = True, True
    bare.wsgi = make_api(SHUTDOWN_DRAIN_SEC="5").app
    for _ in range(2):
        bare.handle_exit(signal.SIGTERM, None)
    assert (bare.alive, timer) == (True, [0.0, 5.0])


def test_headers_that_stand_once_are_left_alone() -> None:
    headers = [("HOST", "a"), ("X-TRACK-ID", "one, two"), ("VIA", "a"), ("VIA", "b")]
    assert fold_repeated(headers) is headers


def test_equal_caller_headers_become_one() -> None:
    headers = [("X-TRACK-ID", "track"), ("HOST", "a"), ("X-TRACK-ID", " track ")]
    assert sorted(fold_repeated(headers)) == [("HOST", "a"), ("X-TRACK-ID", "track")]


@pytest.mark.parametrize(
    "name",
    ["X-TRACK-ID", "X-INSTRUQT-SANDBOX-ID", "X-INSTRUQT-TRACK-ID", "X-SANDBOX-NAME-PREFIX", "IDEMPOTENCY-KEY"],
)
def test_different_caller_headers_become_one_that_no_client_can_send(name: str) -> None:
    assert fold_repeated([(name, "a"), (name, "b"), (name, "a")]) == [(name, "a\nb")]


def test_more_busy_connections_than_threads_are_all_served(server: Server) -> None:
    """A thread that waits for the next request of its connection must not let others wait for ever."""
    with ExitStack() as opened:
        connections = [opened.enter_context(server.connect()) for _ in range(THREADS + 4)]
        files = [opened.enter_context(each.makefile("rb")) for each in connections]
        for _ in range(3):
            for each in connections:
                each.sendall(call())
            statuses = [read_status(each) for each in files]
            assert statuses == [200] * len(connections)


def test_a_request_that_comes_late_on_a_kept_connection_is_served(server: Server) -> None:
    with server.connect() as connection, connection.makefile("rb") as answers:
        connection.sendall(call())
        assert read_status(answers) == 200
        # These calls use every thread, also the one that served the first request.
        for _ in range(THREADS):
            assert server.send(call(b"Connection: close")).status == 200
        connection.sendall(call())
        assert read_status(answers) == 200


def test_connections_that_never_send_a_request_do_not_hold_up_the_end(tmp_path: Path) -> None:
    with running(tmp_path) as server, ExitStack() as opened:
        silent = [opened.enter_context(server.connect()) for _ in range(THREADS)]
        # It gets a thread once the silent connections wait in the event loop.
        assert server.send(call(b"Connection: close")).status == 200
        server.process.kill(signal.SIGTERM)
        assert wait_until(server.process.has_ended, 20), "it would wait for them until gunicorn's limit, 35 s"
        assert server.process.poll() == 0
        assert [each.recv(1) for each in silent] == [b""] * THREADS


# -- slow clients, and clients that leave


def test_bytes_of_tls_are_told_that_this_is_plain_http(server: Server) -> None:
    hello = bytes.fromhex("16030100c8010000c40303") + b"s3cr3t-of-tls" + bytes(180)
    with server.connect() as connection:
        connection.sendall(hello)
        received = connection.makefile("rb").read()
    assert received.startswith(b"HTTP/1.1 400 ")
    request_id = json.loads(received.partition(b"\r\n\r\n")[2])["error"]["request_id"]
    assert wait_until(lambda: any(request_id in line for line in server.lines), 10)
    assert not any("s3cr3t" in line for line in server.lines)


MARK = (
    b"POST /v1/sandboxes/7/mark-for-deletion HTTP/1.1\r\nHost: broker\r\nAuthorization: Bearer track-token\r\n"
    b"X-Track-ID: t\r\nContent-Type: application/json\r\n"
)


def test_a_client_that_waits_to_be_told_to_go_on_is_told_so_once(server: Server) -> None:
    with server.connect() as connection, connection.makefile("rb") as answers:
        connection.sendall(MARK + b"Expect: 100-continue\r\nContent-Length: 2\r\n\r\n")
        assert answers.readline() == b"HTTP/1.1 100 Continue\r\n"
        assert answers.readline() == b"\r\n"
        connection.sendall(b"{}")
        assert read_status(answers) == 503
        # If the body has arrived already, nobody waits.
        connection.sendall(MARK + b"Expect: 100-continue\r\nContent-Length: 2\r\n\r\n{}" + call())
        assert [read_status(answers), read_status(answers)] == [503, 200]


def test_requests_that_are_sent_at_once_are_answered_in_their_order(server: Server) -> None:
    paths = [b"/healthz", b"/nowhere", b"/v1/openapi.json", b"/healthz"] * 5
    with server.connect() as connection, connection.makefile("rb") as answers:
        connection.sendall(b"".join(call(line=b"GET " + path + b" HTTP/1.1") for path in paths))
        assert [read_status(answers) for _ in paths] == [200, 404, 200, 200] * 5


def test_a_request_that_comes_byte_by_byte_is_served(server: Server) -> None:
    with server.connect() as connection, connection.makefile("rb") as answers:
        for byte in b"\r\n" + MARK + b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n1\r\n}\r\n0\r\n\r\n" + call():
            connection.sendall(bytes([byte]))
        assert [read_status(answers), read_status(answers)] == [503, 200]


def test_large_answers_reach_a_client_that_reads_slowly(server: Server) -> None:
    requests = 12
    with server.connect_slowly() as connection, connection.makefile("rb") as answers:
        connection.sendall(call(line=b"GET /v1/docs/swagger-ui-bundle.js HTTP/1.1") * requests)
        # It begins to read after the server has stopped: until then the kernel takes no more of its answers.
        assert server.send(call(b"Connection: close")).status == 200
        assert [read_status(answers) for _ in range(requests)] == [200] * requests
        connection.sendall(call())
        assert read_status(answers) == 200


@pytest.mark.parametrize("more", [0, 1_000_000])
def test_a_client_that_goes_in_the_middle_harms_nobody(server: Server, more: int) -> None:
    for request in (
        call()[:20],
        MARK + b"Content-Length: 50\r\n\r\n{",
        MARK + b"Content-Length: 9999999\r\n\r\n" + b" " * more,
        call(line=b"GET /v1/docs/swagger-ui-bundle.js HTTP/1.1") * 3,
    ):
        with server.connect_slowly() as connection, suppress(ConnectionError):
            connection.sendall(request)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    assert server.send(call(b"Connection: close")).status == 200


def test_a_client_that_goes_on_sending_after_its_answer_is_cut_off(server: Server) -> None:
    with server.connect() as connection:
        connection.sendall(MARK + b"Content-Length: 99999999\r\n\r\n")
        with pytest.raises(ConnectionError):
            connection.sendall(bytes(160_000_000))


def as_track(path: bytes) -> bytes:
    """Return a request of a view that calls the store."""
    return call(b"Authorization: Bearer track-token", b"X-Track-ID: t", line=b"GET " + path + b" HTTP/1.1")


def test_probes_and_scrapes_are_answered_while_more_requests_than_threads_wait_for_the_store(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent_store, ExitStack() as opened:
        url = f"http://127.0.0.1:{silent_store.getsockname()[1]}"
        server = opened.enter_context(running(tmp_path, DDB_ENDPOINT_URL=url, REQUEST_DEADLINE_SEC="60"))
        waiting = [opened.enter_context(server.connect()) for _ in range(30 * THREADS)]
        for each in waiting:
            each.sendall(as_track(b"/v1/sandboxes"))
        # A scrape and /readyz call the store, too, and wait for it.
        slow = [opened.enter_context(server.connect()) for _ in range(3 * THREADS)]
        for each in slow:
            each.sendall(call(line=b"GET /readyz?verbose HTTP/1.1"))
        assert server.send(call(b"Connection: close")).status == 200
        scrape = server.send(call(b"Connection: close", line=b"GET /metrics?name[]=http_requests_total HTTP/1.1"))
        assert scrape.status == 200
        answered, _, _ = select.select(slow, [], [], 0)
        assert len(answered) < len(slow), "neither waited for /readyz"
        assert select.select(slow[:1], [], [], 10)[0]
        with slow[0].makefile("rb") as answers:
            assert read_status(answers) == 503
        answered, _, _ = select.select(waiting, [], [], 0)
        assert len(answered) < len(waiting) - THREADS, "some had not begun"
        server.process.kill(signal.SIGKILL)  # the test need not wait for a clean end


def test_a_request_that_waited_past_its_deadline_for_a_thread_is_answered_503(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent_store, ExitStack() as opened:
        silent_store.settimeout(10)
        url = f"http://127.0.0.1:{silent_store.getsockname()[1]}"
        server = opened.enter_context(running(tmp_path, DDB_ENDPOINT_URL=url, REQUEST_DEADLINE_SEC="0.5"))
        bulk = call(
            *(b"Authorization: Bearer admin-token", b"Content-Length: 0", b"Connection: close"),
            line=b"POST /v1/admin/bulk-retry HTTP/1.1",
        )
        # Bulk calls have a longer deadline, and repeat a call that was not answered. They hold all threads.
        for _ in range(THREADS):
            opened.enter_context(server.connect()).sendall(bulk)
            opened.enter_context(silent_store.accept()[0])
        late = opened.enter_context(server.connect())
        late.sendall(as_track(b"/v1/sandboxes"))
        with late.makefile("rb") as received:
            answer = read_answer(received)
        assert (answer.status, answer.error["message"]) == (503, "the request waited too long for a thread")
        assert int(answer.headers["Retry-After"]) > 0
        server.process.kill(signal.SIGKILL)  # the test need not wait for a clean end


def test_a_process_that_runs_out_of_descriptors_closes_what_has_waited_longest(tmp_path: Path) -> None:
    with running(tmp_path) as server, ExitStack() as opened:
        (worker,) = server.workers()
        open_now = len(list(Path(f"/proc/{worker}/fd").iterdir()))
        resource.prlimit(worker, resource.RLIMIT_NOFILE, (open_now + 30, open_now + 30))
        silent = [opened.enter_context(server.connect()) for _ in range(60)]
        assert server.send(call(b"Connection: close")).status == 200
        assert silent[0].recv(1) == b""
        # It also does not loop when closing others does not help.
        resource.prlimit(worker, resource.RLIMIT_NOFILE, (3, open_now + 30))
        late = opened.enter_context(server.connect())
        late.sendall(call(b"Connection: close"))
        assert wait_until(lambda: any("no file descriptors are left" in line for line in server.lines), 10)
        resource.prlimit(worker, resource.RLIMIT_NOFILE, (open_now + 30, open_now + 30))
        assert late.makefile("rb").readline() == b"HTTP/1.1 200 OK\r\n"
    assert sum("no file descriptors are left" in line for line in server.lines) < 10


def test_requests_that_are_never_finished_do_not_fill_the_memory(server: Server) -> None:
    large = b"GET / HTTP/1.1\r\n" + (b"X-A: " + b"x" * 8000 + b"\r\n") * 60
    connections = MAX_HELD_BYTES // len(large) + 5
    with ExitStack() as opened:
        holding = [opened.enter_context(server.connect()) for _ in range(connections)]
        for each in holding:
            each.sendall(large)
        assert holding[0].recv(1) == b"", "not an answer: its time was not over"
        assert server.send(call(b"Connection: close")).status == 200


@pytest.mark.parametrize(
    ("limits", "room", "raised"),
    [
        ((256, 1024), 768, (1024, 1024)),
        ((1024, 1_000_000), 1000, (1256, 1_000_000)),
        ((1024, resource.RLIM_INFINITY), 1000, (1256, resource.RLIM_INFINITY)),
        ((4096, 4096), 1000, None),
        ((resource.RLIM_INFINITY, resource.RLIM_INFINITY), 1000, None),
    ],
)
def test_the_limit_of_descriptors_is_raised_as_far_as_connections_need_it_and_may(
    monkeypatch: pytest.MonkeyPatch, limits: tuple[int, int], room: int, raised: tuple[int, int] | None
) -> None:
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits)
    monkeypatch.setattr(resource, "setrlimit", lambda _, wanted: asked.append(wanted))
    assert make_room_for(1000) == room
    assert asked == ([raised] if raised else [])


def test_a_worker_that_ends_stores_what_it_has_counted_of_the_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    api = make_api(counts_minutes=True)
    api.store.seed(make_sandbox("7"))
    monkeypatch.setattr(gthread.ThreadWorker, "run", lambda _: api.allocate())
    worker = Worker.__new__(Worker)
    worker.wsgi = api.app
    worker.run()
    (sample,) = api.store.samples.values()
    assert sample.allocates == {AllocateOutcome.SUCCESS: 1}
