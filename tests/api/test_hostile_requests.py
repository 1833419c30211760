"""Requests that no client library sends, byte by byte, to the API under gunicorn.

Its store does not answer, so a request that is accepted answers 503. Every refusal here comes before any look-up.
"""

from __future__ import annotations

import base64
import json
import socket
from typing import TYPE_CHECKING

import pytest

from deploy.dev.processes import wait_until
from tests.api.test_gunicorn_worker import Answer, Server, parse_answer, running

if TYPE_CHECKING:
    from collections.abc import Iterator

TRACK = (b"Authorization: Bearer track-token", b"X-Track-ID: track-1")
ADMIN = (b"Authorization: Bearer admin-token",)
JSON = b"Content-Type: application/json"
RELEASE = b"POST /v1/admin/sandboxes/7/release HTTP/1.1"
ALLOCATE = b"POST /v1/allocate HTTP/1.1"
HELD = b"GET /v1/sandboxes HTTP/1.1"
LONGEST_FIELD = 8190


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Yield the API. At the end, check that it still runs."""
    with running(tmp_path_factory.mktemp("gunicorn")) as server:
        yield server
        assert server.process.is_ready()


def send(server: Server, line: bytes, *headers: bytes, body: bytes = b"") -> Answer:
    """Send a request and nothing after it. Return the first answer, once the server has closed the connection."""
    with server.connect() as connection:
        connection.sendall(b"\r\n".join([line, b"Host: broker", b"Connection: close", *headers, b"", body]))
        connection.shutdown(socket.SHUT_WR)
        return parse_answer(connection.makefile("rb").read())


def assert_refused(answer: Answer, status: int, code: str, *named: str) -> None:
    """Check the shape of an error, and the header or field that it names."""
    error = answer.error
    assert (answer.status, error["code"]) == (status, code), answer
    assert error["request_id"] == answer.headers["X-Request-ID"]
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.headers["Connection"] == "close"
    assert answer.headers["Content-Length"] == str(len(answer.body)), "there is a second answer"
    assert list(error.get("details", {})) == list(named)


def sized(*parts: bytes) -> bytes:
    return b"Content-Length: " + b"".join(parts)


def release(server: Server, body: bytes, *, content_type: bytes = JSON) -> Answer:
    return send(server, RELEASE, *ADMIN, content_type, sized(b"%d" % len(body)), body=body)


# --- headers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "headers", "status"),
    [
        (HELD, (b"X-A: " + b"x" * (LONGEST_FIELD + 1),), 431),
        (HELD, (b"X" * (LONGEST_FIELD + 1) + b": a",), 431),
        (HELD, (b"X-A: a",) * 63, 431),
        (b"GET /v1/sandboxes?" + b"x" * 4094 + b" HTTP/1.1", (), 414),
        (b"GET /" + b"%41" * 4000 + b" HTTP/1.1", (), 414),
        (b"X" * 5000 + b" / HTTP/1.1", (), 414),
    ],
)
def test_a_head_that_is_too_large_is_refused(
    server: Server, line: bytes, headers: tuple[bytes, ...], status: int
) -> None:
    code = {431: "REQUEST_HEADER_FIELDS_TOO_LARGE", 414: "URI_TOO_LONG"}[status]
    assert_refused(send(server, line, *headers), status, code)


@pytest.mark.parametrize("name", [b"Authorization", b"X-Track-ID", b"Idempotency-Key", b"X-Sandbox-Name-Prefix"])
@pytest.mark.parametrize("values", [(b"Bearer track-token", b"Bearer admin-token"), (b"Bearer admin-token", b"x")])
def test_a_header_with_two_values_is_refused_in_either_order(
    server: Server, name: bytes, values: tuple[bytes, bytes]
) -> None:
    others = [header for header in TRACK if not header.startswith(name)]
    answer = send(server, ALLOCATE, *others, *(name + b": " + value for value in values))
    assert_refused(answer, 400, "VALIDATION_ERROR", name.decode())
    fault = "Was sent several times with different values. Send it once."
    assert answer.error["details"] == {name.decode(): [fault]}


def test_an_admin_call_with_two_tokens_is_refused(server: Server) -> None:
    answer = send(server, b"GET /v1/admin/stats HTTP/1.1", *ADMIN, b"authorization: Bearer track-token")
    assert_refused(answer, 400, "VALIDATION_ERROR", "Authorization")


@pytest.mark.parametrize(
    "headers",
    [
        (b"Content-Length: 2", b"Content-Length: 3"),
        (b"Content-Length: 2", b"Content-Length: 2"),
        (b"Content-Length: 2", b"Transfer-Encoding: chunked"),
        (b"Transfer-Encoding: chunked", b"Content-Length: 2"),
        (b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"),
        *((b"Transfer-Encoding: " + each,) for each in (b"chunked, identity", b"\x0bchunked")),
        *((sized(each),) for each in (b"-1", b"+2", b"0x2", b"2, 2", b"\xb2", b"2 2", b"")),
    ],
)
def test_a_body_whose_length_is_open_to_guesses_is_refused(server: Server, headers: tuple[bytes, ...]) -> None:
    answer = send(server, ALLOCATE, *TRACK, *headers, body=b"{}")
    assert_refused(answer, 400, "VALIDATION_ERROR")


@pytest.mark.parametrize(
    "header",
    [
        *(b"X-Track-ID: a\x00b", b"X-Track-ID: a\rX-Track-ID: b", b"X-Track-ID: a\nX-Other: b"),
        *(b"X-Track-ID: a\r\n b", b"X-Track-ID : a", b"X-Track-\xc3\xa9: a", b"X Track-ID: a", b": a"),
        b"X-Track-ID",
    ],
)
def test_a_header_line_that_is_none_is_refused(server: Server, header: bytes) -> None:
    answer = send(server, HELD, TRACK[0], header)
    assert (answer.status, answer.error["code"]) == (400, "VALIDATION_ERROR")
    assert answer.headers["Content-Length"] == str(len(answer.body))


@pytest.mark.parametrize(
    "value",
    [
        *(b"\x1b[31mred", b"a\tb", b"\x7f", b"x" * 8000),
        *("é".encode(), "e\u0301".encode(), "\u202egnirts".encode(), "\u0000".encode("utf-16")),
        *(b"\xed\xa0\x80", b"\xc0\xaf", b"\xff\xfe"),
    ],
)
@pytest.mark.parametrize("name", [b"X-Track-ID", b"X-Instruqt-Track-ID", b"Idempotency-Key", b"X-Sandbox-Name-Prefix"])
def test_a_header_with_a_value_that_is_not_plain_is_refused(server: Server, name: bytes, value: bytes) -> None:
    others = [header for header in TRACK if not header.startswith(name)]
    answer = send(server, ALLOCATE, *others, name + b": " + value)
    assert answer.status == 400
    assert answer.headers["Content-Length"] == str(len(answer.body))


# --- bodies ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [65_538, 10**6, 10**12, 10**30])
def test_a_body_that_is_said_to_be_too_large_is_refused_unread(server: Server, length: int) -> None:
    assert_refused(send(server, RELEASE, *ADMIN, JSON, sized(b"%d" % length)), 413, "PAYLOAD_TOO_LARGE")


def test_a_body_that_is_shorter_than_it_says_is_refused(server: Server) -> None:
    answer = send(server, RELEASE, *ADMIN, JSON, sized(b"100"), body=b'{"lease_id": "l"}')
    assert_refused(answer, 400, "VALIDATION_ERROR", "body")


@pytest.mark.parametrize(
    "chunks",
    [
        *(b"", b"5\r\n{}", b"-1\r\n{}\r\n", b"2\n{}\n0\n\n", b"\xb2\r\n{}"),
        *(b"nonsense\r\n", b"1\r\nxAB0\r\n\r\n", b"5\r\nhello world\r\n0\r\n\r\n"),
    ],
)
def test_chunks_that_are_none_are_refused(server: Server, chunks: bytes) -> None:
    answer = send(server, RELEASE, *ADMIN, JSON, b"Transfer-Encoding: chunked", body=chunks)
    assert_refused(answer, 400, "VALIDATION_ERROR", "body")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        *(('{"lease_id": "l"}'.encode(coding), "body") for coding in ("utf-8-sig", "utf-16", "utf-32-le")),
        ('{"lease_id": "é"}'.encode("latin-1"), "body"),
        (b'{"lease_id": "\xc0\xaf"}', "body"),
        (b'{"lease_id": "\xed\xa0\x80"}', "body"),
        (b'{"lease_id": NaN}', "body"),
        (b'{"lease_id": -Infinity}', "body"),
        (b'{"lease_id": ' + b"9" * 60_000 + b"}", "body"),
        (b'{"lease_id": ' + b"[" * 30_000 + b"]" * 30_000 + b"}", "body"),
        (b'{"a":' * 10_000 + b"1" + b"}" * 10_000, "body"),
        (b'{"lease_id": "a\x00b"}', "body"),
        (b'{"lease_id": "a\nb"}', "body"),
        (b'{"lease_id": "l"} {}', "body"),
        (b'{"lease_id": 1e400}', "lease_id"),
        *((b'{"lease_id": "' + each + b'"}', "lease_id") for each in (b"\\u0000", b"\\ud800", b"\\ud83d\\ude00")),
        (b'{"lease_id": "\\u202e"}', "lease_id"),
        (b'{"lease_id": "l", "lease_id": "m"}', "lease_id"),
        (b'{"lease_id": "l", "Lease_ID": "m"}', "Lease_ID"),
        (b'{"lease_id": "l", "__proto__": {}}', "__proto__"),
        (b'{"lease_id": {"$gt": ""}}', "lease_id"),
    ],
    ids=lambda value: repr(value[:24]),
)
def test_a_body_that_could_be_read_in_two_ways_is_refused(server: Server, body: bytes, field: str) -> None:
    assert_refused(release(server, body), 400, "VALIDATION_ERROR", field)


@pytest.mark.parametrize(
    "content_type",
    [
        *(b"Content-Type: text/json", b"Content-Type: application/jsonx", b"Content-Type: \xff", b"Content-Type:"),
        *(b"Content-Type: application/json, text/plain", b"Content-Type: multipart/form-data; boundary=x"),
        b"X-Nothing: at all",
    ],
)
def test_a_body_that_is_not_said_to_be_json_is_refused(server: Server, content_type: bytes) -> None:
    answer = release(server, b'{"lease_id": "l"}', content_type=content_type)
    assert_refused(answer, 400, "VALIDATION_ERROR", "Content-Type")


def test_a_body_that_is_as_it_should_be_is_let_through(server: Server) -> None:
    assert release(server, b'{"lease_id": "l"}').error["code"] == "SERVICE_UNAVAILABLE"


# --- targets ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "target",
    [
        *(b"//v1/allocate", b"///v1/allocate", b"http://broker//v1/allocate", b"/v1//allocate"),
        *(b"/./v1/allocate", b"/v1/../v1/allocate", b"/v1/%2e%2e/v1/allocate", b"/v1/%2E/allocate"),
        *(b"/v1%2fallocate", b"/v1%5callocate", b"/v1\\allocate", b"/v1/allocate/", b"/v1/allocate;x"),
        *(b"/v1/allocate%00", b"/v1/allocate%20", b"/v1/allocate%0d%0aX:%20y", b"/v1/allocate%3fx=1"),
        *(b"/v1/%61llocate%2f", b"/V1/allocate", b"/v1/Allocate", b"/v1/allocat\xc3\xa9"),
        *(b"/v1/sandboxes/..%2f..%2fallocate/x", b"/v1/docs/..%2f..%2fsettings.py"),
        *(b"/v1/docs/%2e%2e/%2e%2e/settings.py", b"*"),
    ],
)
def test_a_path_that_only_resembles_one_of_ours_is_unknown(server: Server, target: bytes) -> None:
    answer = send(server, b"POST " + target + b" HTTP/1.1", *TRACK)
    assert answer.error["code"] in {"NOT_FOUND", "METHOD_NOT_ALLOWED", "VALIDATION_ERROR"}, answer
    assert answer.status in {404, 405, 400}
    assert answer.headers["X-Request-ID"] == answer.error["request_id"]


@pytest.mark.parametrize("target", [b"/v1/allocate", b"http://broker/v1/allocate", b"/v1/%61llocate", b"/v1/allocate?"])
def test_another_spelling_of_a_path_that_means_the_same_is_served(server: Server, target: bytes) -> None:
    answer = send(server, b"POST " + target + b" HTTP/1.1", *TRACK)
    assert (answer.status, answer.error["code"]) == (503, "SERVICE_UNAVAILABLE")


@pytest.mark.parametrize("name", [b"SCRIPT_NAME", b"script_name", b"PATH_INFO", b"REMOTE_USER", b"X-Forwarded-Prefix"])
@pytest.mark.parametrize("value", [b"/x", b"/v1", b"/healthz", b"/"])
def test_no_header_changes_the_path_that_a_request_names(server: Server, name: bytes, value: bytes) -> None:
    """A proxy in front decides by the path. gunicorn believes some headers of every caller on the same machine."""
    header = name + b": " + value
    assert_refused(send(server, b"GET " + value + b"/metrics HTTP/1.1", header), 404, "NOT_FOUND")
    assert send(server, b"GET /healthz HTTP/1.1", header).status == 200
    assert send(server, HELD, *TRACK, header).status == 503


@pytest.mark.parametrize(
    "headers",
    [
        (b"X-Forwarded-Proto: https",),
        (b"X-Forwarded-Ssl: on",),
        (b"X-Forwarded-Protocol: ssl",),
        (b"X-Forwarded-Proto: https", b"X-Forwarded-Ssl: off"),
    ],
)
def test_no_header_of_a_proxy_that_is_not_trusted_makes_a_request_an_https_one(
    server: Server, headers: tuple[bytes, ...]
) -> None:
    answer = send(server, b"GET /healthz HTTP/1.1", *headers)
    assert (answer.status, answer.headers["Strict-Transport-Security"]) == (200, None)


@pytest.mark.parametrize("twin", [b"X_Track_ID", b"X_TRACK-ID", b"x-track_id"])
def test_a_header_that_only_resembles_one_of_ours_is_not_it(server: Server, twin: bytes) -> None:
    assert_refused(send(server, HELD, TRACK[0], twin + b": track-1"), 400, "VALIDATION_ERROR", "X-Track-ID")
    assert send(server, HELD, *TRACK, twin + b": track-2").status == 503


@pytest.mark.parametrize(
    "method", [b"X-HTTP-Method-Override: POST", b"X-HTTP-Method: POST", b"X-Method-Override: POST"]
)
def test_no_header_changes_the_method(server: Server, method: bytes) -> None:
    assert_refused(send(server, b"GET /v1/allocate HTTP/1.1", *TRACK, method), 405, "METHOD_NOT_ALLOWED")


@pytest.mark.parametrize("host", [b"elsewhere.example", b"127.0.0.1:1", b"a/b", b'"><script>', b""])
def test_no_answer_repeats_the_host_that_a_request_names(server: Server, host: bytes) -> None:
    with server.connect() as connection:
        connection.sendall(b"GET /v1/openapi.json HTTP/1.1\r\nConnection: close\r\nHost: " + host + b"\r\n\r\n")
        received = connection.makefile("rb").read()
    assert received.startswith((b"HTTP/1.1 200 ", b"HTTP/1.1 400 "))
    assert not host or host not in received


@pytest.mark.parametrize(
    "sandbox_id", [b"%00", b"%0a", b"%7f", b"%c3%a9", b"%e2%80%ae", b"%ed%a0%80", b"%c0%af", b"%ff"]
)
def test_a_sandbox_id_that_is_not_plain_is_refused(server: Server, sandbox_id: bytes) -> None:
    answer = send(server, b"GET /v1/sandboxes/" + sandbox_id + b" HTTP/1.1", *TRACK)
    assert_refused(answer, 400, "VALIDATION_ERROR", "sandbox_id")


@pytest.mark.parametrize("method", [b"TRACE", b"OPTIONS", b"PROPFIND", b"DELETE", b"GET", b"PATCH", b"LONGMETHODNAME"])
def test_a_method_that_a_path_has_not_is_refused(server: Server, method: bytes) -> None:
    answer = send(server, method + b" /v1/allocate HTTP/1.1", *TRACK)
    assert_refused(answer, 405, "METHOD_NOT_ALLOWED")
    assert answer.headers["Allow"] == "POST"


def test_head_answers_as_get_does_without_a_body(server: Server) -> None:
    answer = send(server, b"HEAD /healthz HTTP/1.1")
    assert (answer.status, answer.body) == (200, b"")
    assert int(answer.headers["Content-Length"]) > 0


@pytest.mark.parametrize("method", [b"post", b"Post", b"P\xc3\x96ST", b"PO ST", b""])
def test_a_method_that_is_misspelt_is_no_request(server: Server, method: bytes) -> None:
    answer = send(server, method + b" /v1/allocate HTTP/1.1", *TRACK)
    assert answer.status in {400, 405}
    assert answer.error["code"] in {"VALIDATION_ERROR", "METHOD_NOT_ALLOWED"}


# --- queries ---------------------------------------------------------------------------------------------------------


def listing(server: Server, query: bytes) -> Answer:
    return send(server, b"GET /v1/admin/sandboxes?" + query + b" HTTP/1.1", *ADMIN)


@pytest.mark.parametrize(
    "limit",
    [
        *(b"-1", b"0", b"101", b"9" * 20, b"9" * 3900),
        *(b"1.0", b"1e1", b"0x1", b"1_0", b"%2B5", b"+5", b"NaN", b"true"),
        *(b"5%20", b"%EF%BC%91", b"%D9%A3", b"%C2%B2", b"%00", b"5%00"),
    ],
)
def test_a_limit_that_is_no_number_from_1_to_100_is_refused(server: Server, limit: bytes) -> None:
    assert_refused(listing(server, b"limit=" + limit), 400, "VALIDATION_ERROR", "limit")


def encoded(content: object) -> bytes:
    return base64.urlsafe_b64encode(json.dumps(content).encode())


CURSORS = [
    *(b"x", b"%00", b"====", b"A" * 2049),
    *map(encoded, (None, [], {"status": "stale"}, "\ud800", 10**300)),
    *map(encoded, (["track", "track-1", "7"], ["track", "track-2", {}])),
    *map(base64.urlsafe_b64encode, (b"[" * 1500, b"\xff" * 100, b"9" * 1500, b"NaN")),
    "\u202e\u0661".encode("utf-8").hex("%").encode().join([b"%", b""]),
]


@pytest.mark.parametrize("query", [b"", b"&status=stale", b"&track_id=track-9", b"&status=stale&track_id=track-9"])
@pytest.mark.parametrize("cursor", CURSORS, ids=lambda cursor: repr(cursor[:20]))
def test_a_cursor_that_no_such_listing_gave_is_refused(server: Server, cursor: bytes, query: bytes) -> None:
    assert_refused(listing(server, b"cursor=" + cursor + query), 400, "VALIDATION_ERROR", "cursor")


@pytest.mark.parametrize("query", [b"%ff=1", b"a%00=1", b"LIMIT=1", b"limit[]=1", b"%E2%80%AE=1", b"cursor%0a=x"])
def test_a_parameter_that_no_call_has_is_refused(server: Server, query: bytes) -> None:
    answer = listing(server, query)
    assert (answer.status, answer.error["code"]) == (400, "VALIDATION_ERROR")
    assert len(answer.error["details"]) == 1


# --- afterwards ------------------------------------------------------------------------------------------------------


def test_what_is_forged_into_a_request_breaks_no_line_of_the_log(server: Server) -> None:
    forged = b'%0d%0a{"level":"critical"}%1b[31m%e2%80%ae'
    for line in (
        b"GET /v1/sandboxes/" + forged + b" HTTP/1.1",
        b"GET /" + forged + b"?" + forged + b" HTTP/1.1",
        b'{"level":"critical"} / HTTP/1.1',
        b"GET / HTTP/1.1\x1b",
    ):
        send(server, line, *TRACK, b'X-Request-ID: {"level":"critical"}', b"User-Agent: \x1b[31m\xe2\x80\xae")
    answer = send(server, b"GET /nowhere HTTP/1.1", b"X-Request-ID: the-last-one")
    assert answer.error["request_id"] == "the-last-one"
    assert wait_until(lambda: any("the-last-one" in line for line in server.lines), 10)
    for written in list(server.lines):
        assert written.isprintable(), written
        assert json.loads(written)["level"] in {"debug", "info", "warning"}, written
    assert sum("Booting worker" in line for line in server.lines) == 1
