"""Where a request ends, in any split of its bytes. The results are compared with gunicorn's parser, which decides."""

from __future__ import annotations

from http import HTTPStatus
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from gunicorn.config import Config  # type: ignore[import-untyped] # it ships no types
from gunicorn.http import get_parser  # type: ignore[import-untyped] # the same
from gunicorn.http.errors import ParseException  # type: ignore[import-untyped] # the same
from hypothesis import given
from hypothesis import strategies as st

from broker_api.bounds import MAX_BODY_BYTES
from broker_api.connections import Exchange
from broker_api.request_reader import RequestReader, State
from tests.examples import examples

if TYPE_CHECKING:
    from collections.abc import Iterable

MAX_HEAD = 10_000
GET = b"GET / HTTP/1.1\r\nHost: broker\r\n\r\n"


def make_reader() -> RequestReader:
    return RequestReader(max_head_bytes=MAX_HEAD)


def post(*headers: bytes, body: bytes = b"") -> bytes:
    return b"\r\n".join([b"POST / HTTP/1.1", *headers, b"", body])


def chunked(body: bytes) -> bytes:
    return post(b"Transfer-Encoding: chunked", body=body)


def parse(request: bytes) -> tuple[bytes, bool]:
    """Return the body that gunicorn reads, and whether the request had exactly that length."""
    exchange = Exchange()
    exchange.begin(request)
    parser = get_parser(Config(), exchange, ("127.0.0.1", 1))
    body = next(parser).body.read()
    return body, exchange.is_used_up() and not parser.unreader.take_buffered()


def read_all(pieces: Iterable[bytes]) -> tuple[list[bytes], State]:
    """Return the complete requests in `pieces`, and the state after them."""
    reader = make_reader()
    requests: list[bytes] = []
    for piece in pieces:
        reader.feed(piece)
        while reader.state is State.WHOLE:
            request = reader.take()
            if reader.took_part:
                return requests, State.WHOLE
            requests.append(request)
        if reader.state is State.REFUSED:
            break
    return requests, reader.state


def cut(data: bytes, places: Iterable[int]) -> list[bytes]:
    ends = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return [data[begin:end] for begin, end in pairwise(ends)]


CHUNKS = st.lists(st.binary(min_size=1, max_size=40), max_size=4).map(
    lambda parts: b"".join(b"%X;a=b\r\n%s\r\n" % (len(part), part) for part in parts)
)
REQUESTS = st.one_of(
    st.just(GET),
    st.just(b"\r\n" + GET),
    st.binary(max_size=60).map(lambda body: post(b"content-length:  %d " % len(body), body=body)),
    st.builds(
        lambda chunks, trailers: chunked(chunks + b"0\r\n" + trailers + b"\r\n"),
        CHUNKS,
        st.sampled_from([b"", b"X-Sum: 1\r\n"]),
    ),
)
CUTS = st.lists(st.integers(min_value=0), max_size=8)


@examples(100)
@given(st.lists(REQUESTS, min_size=1, max_size=4), CUTS)
def test_requests_are_told_apart_however_their_bytes_arrive(requests: list[bytes], places: list[int]) -> None:
    assert read_all(cut(b"".join(requests), places)) == (requests, State.NOTHING)
    assert all(parse(request)[1] for request in requests), "gunicorn reads just as far"


@examples(100)
@given(st.lists(REQUESTS, min_size=1, max_size=3), st.integers(min_value=0), st.binary(max_size=6), CUTS)
def test_where_bytes_are_wrong_gunicorn_and_the_reader_do_not_differ_unnoticed(
    requests: list[bytes], place: int, wrong: bytes, places: list[int]
) -> None:
    """The parser reads a complete request to its end, refuses it, or shows that its length is another one."""
    stream = bytearray(b"".join(requests))
    place %= len(stream)
    stream[place : place + len(wrong)] = wrong
    at_once, _ = read_all([bytes(stream)])
    in_parts, _ = read_all(cut(bytes(stream), places))
    common = min(len(at_once), len(in_parts))
    assert at_once[:common] == in_parts[:common]
    for request in in_parts:
        try:
            _, is_used_up = parse(request)
        except (ParseException, StopIteration, OSError):
            continue
        if is_used_up:
            assert read_all([request]) == ([request], State.NOTHING)


@pytest.mark.parametrize(
    "received",
    [
        *(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"\x00", b"\r\n\r\n", b"\nGET / HTTP/1.1"),
        *(b"\r\r\n", b"GET / HTTP/1.1\nHost: broker\n\n", b"GET / HTTP/1.1\r\nHost: broker\n"),
    ],
)
def test_what_cannot_become_a_request_is_refused_without_waiting_for_more(received: bytes) -> None:
    reader = make_reader()
    assert (reader.feed(received), reader.refusal) == (State.REFUSED, HTTPStatus.BAD_REQUEST)


@pytest.mark.parametrize("received", [b"", b"\r", b"\r\n"])
def test_an_empty_line_before_a_request_is_nothing(received: bytes) -> None:
    assert make_reader().feed(received) is State.NOTHING


@pytest.mark.parametrize(
    ("received", "status"),
    [
        (b"GET /" + b"x" * MAX_HEAD, HTTPStatus.REQUEST_URI_TOO_LONG),
        (b"GET / HTTP/1.1\r\nX: " + b"x" * MAX_HEAD, HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE),
    ],
)
def test_a_head_without_an_end_is_refused(received: bytes, status: HTTPStatus) -> None:
    reader = make_reader()
    assert (reader.feed(received), reader.refusal) == (State.REFUSED, status)


@pytest.mark.parametrize("length", [MAX_BODY_BYTES + 2, 10**17])
def test_of_a_body_that_is_said_to_be_too_large_only_the_head_is_taken(length: int) -> None:
    reader = make_reader()
    head = post(b"Content-Length: %d" % length)
    assert reader.feed(head + b"GET / HTTP/1.1") is State.WHOLE
    assert (reader.take(), reader.took_part) == (head, True)


@pytest.mark.parametrize("length", [MAX_BODY_BYTES, MAX_BODY_BYTES + 1])
def test_a_body_that_the_application_can_judge_is_waited_for(length: int) -> None:
    reader = make_reader()
    assert reader.feed(post(b"Content-Length: %d" % length, body=b"x" * (length - 1))) is State.PART_OF_BODY
    assert reader.feed(b"x") is State.WHOLE


@pytest.mark.parametrize(
    "headers",
    [
        (b"Content-Length: 2", b"Content-Length: 3"),
        (b"Content-Length: 2", b"Transfer-Encoding: chunked"),
        (b"Content-Length: +2",),
        (b"Content-Length: " + b"1" * 30,),
        (b"Transfer-Encoding: gzip, chunked",),
    ],
)
def test_a_body_whose_length_is_open_to_guesses_is_left_to_the_parser_and_nothing_follows_it(
    headers: tuple[bytes, ...],
) -> None:
    reader = make_reader()
    assert reader.feed(post(*headers)) is State.WHOLE
    reader.take()
    assert reader.took_part


@pytest.mark.parametrize(
    "body",
    [
        b"nonsense\r\n",
        b"-1\r\n",
        b"2" * 9000,
        b"2;" + b"x" * 9000,
        b"0\r\n" + b"X: " + b"x" * (MAX_HEAD + 1),
        b"1\r\nx\r\n" * (2 * MAX_BODY_BYTES),
        b"8000\r\n" + b" " * 0x8000 + b"\r\n8000\r\n" + b" " * 0x8000 + b"\r\nFFFFFFFF\r\n" + b" " * 0x5000,
    ],
    ids=lambda body: repr(body[:12]),
)
def test_chunks_that_are_malformed_or_too_many_are_given_to_the_parser_at_once(body: bytes) -> None:
    reader = make_reader()
    assert reader.feed(chunked(body)) is State.WHOLE
    reader.take()
    assert reader.took_part


def test_what_is_there_of_a_request_whose_client_has_gone_can_be_taken() -> None:
    reader = make_reader()
    request = post(b"Content-Length: 5", body=b"hel")
    reader.feed(request)
    assert len(reader) == len(request)
    assert (reader.take(), reader.took_part, reader.state) == (request, True, State.NOTHING)


@pytest.mark.parametrize(
    ("request_bytes", "asks"),
    [
        (post(b"Content-Length: 2", b"Expect: 100-continue"), True),
        (post(b"expect:100-Continue", b"Transfer-Encoding: chunked"), True),
        (post(b"Content-Length: 2"), False),
        (post(b"Content-Length: 2", b"X-Expect: 100-continue"), False),
        (post(b"Content-Length: 2", b"Expect: 100-continue").replace(b"1.1", b"1.0"), False),
        (post(b"Content-Length: 0", b"Expect: 100-continue"), False),
        (post(b"Content-Length: 99999999", b"Expect: 100-continue"), False),
    ],
)
def test_a_client_that_waits_to_be_told_to_go_on_is_recognised(request_bytes: bytes, *, asks: bool) -> None:
    reader = make_reader()
    reader.feed(request_bytes)
    assert reader.asks_to_go_on is asks
