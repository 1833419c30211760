"""Any answer in place of DynamoDB's: no write counts as applied, and no read as empty, unless DynamoDB says so.

A bare socket answers; how the store sends its calls is not for these tests to know.
"""

from __future__ import annotations

import json
import socket
import ssl
import threading
import time
import zlib
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace
from random import Random
from typing import TYPE_CHECKING, Any

import pytest
import trustme
from botocore.session import Session
from hypothesis import example, given, settings
from hypothesis import strategies as st

from broker_common.adapters.dynamo_items import encode_sandbox
from broker_common.adapters.dynamo_store import DynamoStore
from broker_common.adapters.dynamo_transport import make_client
from broker_common.adapters.system_clock import SystemClock
from broker_common.core.deadline import deadline_in
from broker_common.core.errors import BrokerError, OutcomeUnknown, StoreMisconfigured, StoreRejected, StoreUnavailable
from broker_common.core.facts import PoolFact, PoolFactKind
from broker_common.core.lease import candidate_of, extend
from broker_common.core.reservation import ReservationStage
from broker_common.core.samples import PoolLevel, Sample
from broker_common.core.sandbox import Status
from broker_common.core.store import (
    AllocateAnswer,
    Allocated,
    Contended,
    CountRecord,
    Pause,
    Pauses,
    Position,
    Watermark,
)
from broker_common.core.telemetry import AllocateOutcome
from tests.backends import AWS_ENVIRONMENT
from tests.contract.line import make_place
from tests.contract.suite import SHARED_STORE
from tests.contract.webhooks import delivered, make_delivery, make_endpoint
from tests.fakes import (
    BY,
    START,
    FakeClock,
    RecordingRecorder,
    add_of,
    change_of,
    make_claim,
    make_reservation,
    make_sandbox,
    removal_of,
)
from tests.raw_dynamodb import Behaviour, Exchange, RawDynamoDB, raw_dynamodb, whole

if TYPE_CHECKING:
    from collections.abc import Iterator

    from broker_common.core.ports import Clock

pytestmark = pytest.mark.slow

FREE = make_sandbox("1")
HELD = make_sandbox("1", status=Status.ALLOCATED)
PLACE = make_place()
PAUSED = PoolFact(kind=PoolFactKind.PAUSED, fact_id="f", at=1, principal="op", details={"operation": "sync"})
CLASS = make_reservation()
CLASS_OVER = replace(CLASS, stage=ReservationStage.ENDED)
RESERVED = make_sandbox("1", status=Status.RESERVED, version=2)
ITEM = json.dumps({"Item": encode_sandbox(FREE, 4)}).encode()


def allocate(store: DynamoStore, *, place_id: str | None = None) -> AllocateAnswer:
    return store.allocate(candidate_of(FREE), make_claim(FREE), by=BY, token="t", place_id=place_id)


READS: dict[str, Callable[[DynamoStore], object]] = {
    "get": lambda store: store.get("1"),
    "get_claim": lambda store: store.get_claim("t", "t"),
    "read_claims": lambda store: store.read_claims("t"),
    "read_candidates": lambda store: store.read_candidates(Position(0), limit=5, prefix=""),
    "read_all": lambda store: store.read_all(),
    "read_due": lambda store: list(store.read_due(Status.STALE, until=5)),
    "list_sandboxes": lambda store: store.list_sandboxes(None, limit=5, cursor=None),
    "count": lambda store: store.count(),
    "read_line": lambda store: store.read_line(),
    "read_place": lambda store: store.read_place("t", "t"),
    "read_places": lambda store: store.read_places("t"),
    "read_next_due": lambda store: store.read_next_due(Status.ALLOCATED, limit=5),
    "oldest_pending_deletion": lambda store: store.oldest_pending_deletion(),
    "read_watermark": lambda store: store.read_watermark(),
    "read_pauses": lambda store: store.read_pauses(),
    "read_counts": lambda store: store.read_counts(),
    "read_removed": lambda store: store.read_removed(["1"]),
    "read_history": lambda store: store.read_history("1", limit=5, cursor=None),
    "read_feed": lambda store: store.read_feed(since=0, cursor=None, limit=5),
    "has_sandboxes": lambda store: store.has_sandboxes(),
    "ping": lambda store: store.ping(),
    "read_ring": lambda store: store.read_candidates(Position(0), limit=5, prefix="", reservation_id="res-1"),
    "read_reservations": lambda store: store.read_reservations(),
    "read_booked": lambda store: store.read_booked(),
    "read_reservation": lambda store: store.read_reservation("res-1"),
    "list_archived": lambda store: store.list_archived(limit=5, cursor=None),
    "read_usage": lambda store: list(store.read_usage(since=START, until=START + 1)),
    "read_samples": lambda store: store.read_samples(since=0, until=60),
    "read_many_samples": lambda store: store.read_samples(since=0, until=86400),
    "read_ending": lambda store: list(store.read_ending(until=5)),
    "read_level": lambda store: store.read_level(),
    "read_endpoints": lambda store: store.read_endpoints(),
    "read_endpoint": lambda store: store.read_endpoint("hook"),
    "find_untold": lambda store: store.find_untold(limit=5),
    "oldest_untold": lambda store: store.oldest_untold(),
    "read_due_deliveries": lambda store: store.read_due_deliveries("hook", until=5, limit=5),
    "read_pending": lambda store: store.read_pending("hook", "1"),
    "read_delivery": lambda store: store.read_delivery("hook", "1:1:sandbox_updated"),
    "list_deliveries": lambda store: store.list_deliveries("hook", state=None, limit=5, cursor=None),
}
WRITES: dict[str, Callable[[DynamoStore], object]] = {
    "allocate": allocate,
    "allocate in line": lambda store: allocate(store, place_id=PLACE.place_id),
    "join": lambda store: store.join(PLACE),
    "renew": lambda store: store.renew(PLACE),
    "leave": lambda store: store.leave(PLACE),
    "end_allocation": lambda store: store.commit(change_of(HELD, make_sandbox("1", version=2))),
    "extend": lambda store: store.commit(extend(HELD, expires_at=2**40, by=BY, now=START)),
    "add": lambda store: store.commit(add_of(FREE)),
    "update": lambda store: store.commit(change_of(FREE, make_sandbox("1", version=2))),
    "remove": lambda store: store.commit(removal_of(FREE)),
    "write_watermark": lambda store: store.write_watermark(Watermark(1, 1)),
    "set_pauses": lambda store: store.set_pauses(Pauses(), Pauses(sync=Pause(by="op", since=1)), PAUSED),
    "record": lambda store: store.record(PAUSED),
    "record_accounts": lambda store: store.record_accounts(FREE),
    "write_counts": lambda store: store.write_counts(CountRecord(turn="t", counter="c"), instead_of=None),
    "finish_upgrade": lambda store: store.finish_upgrade(),
    "set_aside": lambda store: store.commit(change_of(FREE, RESERVED)),
    "draw": lambda store: store.allocate(candidate_of(RESERVED), make_claim(RESERVED), by=BY, token="t"),
    "book": lambda store: store.write_reservation(None, CLASS, version=0),
    "end": lambda store: store.write_reservation(CLASS, CLASS_OVER, version=1, fact=PAUSED),
    "mark_opened": lambda store: store.mark_opened(replace(CLASS, opened_at=1), PAUSED),
    "archive_reservation": lambda store: store.archive_reservation(CLASS_OVER),
    "write_sample": lambda store: store.write_sample(Sample(at=60)),
    "add_allocates": lambda store: store.add_allocates(60, {AllocateOutcome.SUCCESS: 1}),
    "write_level": lambda store: store.write_level(PoolLevel(), PoolLevel(is_low=True, counted_at=1), PAUSED),
    "write_endpoint": lambda store: store.write_endpoint(None, make_endpoint()),
    "told": lambda store: store.told(PAUSED),
    "add_delivery": lambda store: store.add_delivery(make_delivery()),
    "write_delivery": lambda store: store.write_delivery(make_delivery(), delivered(make_delivery())),
}
CALLS = READS | WRITES


PROXIED = "http://dynamodb.example"


@pytest.fixture(scope="module", params=["http", "https", "proxy"])
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RawDynamoDB]:
    """Yield a socket to be told how to behave, behind plain HTTP, TLS, and as a proxy, which boto3 asks for all calls."""
    tls = None
    with pytest.MonkeyPatch.context() as patch:
        for name, value in AWS_ENVIRONMENT.items():
            patch.setenv(name, value)
        if request.param == "https":
            tls, authority = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), trustme.CA()
            authority.issue_cert("127.0.0.1").configure_cert(tls)
            file = tmp_path_factory.mktemp("tls") / "ca.pem"
            authority.cert_pem.write_to_path(str(file))
            patch.setenv("AWS_CA_BUNDLE", str(file))
        with raw_dynamodb(lambda _: None, tls=tls) as server:
            if request.param == "proxy":
                patch.setenv("http_proxy", server.url)
                patch.setenv("no_proxy", "")
                server.url = PROXIED
            yield server


@contextmanager
def connected(engine: RawDynamoDB, *, clock: Clock | None = None, timeout_sec: float = 10) -> Iterator[DynamoStore]:
    """Yield a store on the engine, which pauses between its tries in no time unless another clock is given."""
    client = make_client(region="us-east-1", endpoint_url=engine.url, timeout_sec=timeout_sec, connections=8)
    yield DynamoStore(
        client,
        "pool",
        clock=clock or FakeClock(),
        rng=Random(1),
        recorder=RecordingRecorder(),
        timeout_sec=timeout_sec,
    )
    client.close()


@pytest.fixture(scope="module")
def store(engine: RawDynamoDB) -> Iterator[DynamoStore]:
    with connected(engine) as store:
        yield store


@pytest.fixture(autouse=True)
def _every_exchange_ends_with_its_test(request: pytest.FixtureRequest) -> Iterator[None]:
    """Leave no connection to the next test that the engine is about to close, and that the client still keeps."""
    engine: RawDynamoDB | None = request.getfixturevalue("engine") if "engine" in request.fixturenames else None
    yield
    if engine is not None:
        assert all(exchange.ended.wait(10) for exchange in engine.requests)
        engine.requests.clear()


def calls_of(engine: RawDynamoDB) -> dict[str, Callable[[DynamoStore], object]]:
    """Return all calls for plain HTTP, and else one read and one write: what differs is how an answer comes in."""
    return CALLS if is_plain(engine) else {name: CALLS[name] for name in ("get", "allocate")}


def is_plain(engine: RawDynamoDB) -> bool:
    return engine.url.startswith("http:") and engine.url != PROXIED


def once(raw: bytes) -> Callable[[Exchange], None]:
    """Answer with these bytes, and close.

    After a whole answer the client may keep its connection, and send its next call just before the close: wait until
    the exchange has ended.
    """

    def behave(exchange: Exchange) -> None:
        exchange.send(raw)
        exchange.connection.shutdown(socket.SHUT_RDWR)

    return behave


def keeping(raw: bytes) -> Callable[[Exchange], None]:
    """Answer with these bytes, and leave the connection open."""
    return lambda exchange: exchange.send(raw)


def in_turn(first: Behaviour, rest: Behaviour) -> Behaviour:
    """Behave in the first way once, and in the other from then on."""
    ways = iter([first])

    def behave(exchange: Exchange) -> None:
        next(ways, rest)(exchange)

    return behave


def chunked(body: bytes) -> bytes:
    return (
        b"HTTP/1.1 200 OK\r\nContent-Type: application/x-amz-json-1.0\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    )


def unsized(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/x-amz-json-1.0\r\n\r\n" + body


NO_ANSWERS = {
    "nothing": b"",
    "an empty body": whole(b""),
    "an empty body without a length": unsized(b""),
    "an empty body in chunks": chunked(b""),
    "no content": b"HTTP/1.1 204 No Content\r\n\r\n",
    "HTML": whole(b"<html><body>It works!</body></html>", content_type="text/html"),
    "HTML of the right type": whole(b"<html></html>"),
    "text": whole(b"OK"),
    "the right body of another type": whole(b"{}", content_type="application/json"),
    "the right body without a type": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}",
    "the right body as created": whole(b"{}", status="201 Created"),
    "a redirect": whole(b"{}", status="302 Found\r\nLocation: http://127.0.0.1:1/"),
    "a portal's page": whole(b"<html>Sign in</html>", status="403 Forbidden", content_type="text/html"),
    "a portal's JSON": whole(b'{"x": 1}'),
    "an error of a portal": whole(b'{"error": "no"}', status="400 Bad Request"),
    "an error of an odd type": whole(b'{"__type": 7}', status="400 Bad Request"),
    "an error of an empty type": whole(b'{"__type": ""}', status="400 Bad Request"),
    "an error without a code": whole(b'{"__type": "com.amazonaws.dynamodb.v20120810#"}', status="400 Bad Request"),
    "an error with odd reasons": whole(
        b'{"__type": "TransactionCanceledException", "CancellationReasons": {"Code": 1}}', status="400 Bad Request"
    ),
    "an error with an odd record": whole(
        b'{"__type": "ConditionalCheckFailedException", "Item": {"a": 1}}', status="400 Bad Request"
    ),
    "a gateway's page": whole(b"<html></html>", status="502 Bad Gateway", content_type="text/html"),
    "a list": whole(b"[]"),
    "a word": whole(b"null"),
    "a number": whole(b"1"),
    "other than UTF-8": whole(b'{"Item": "\xff"}'),
    "depth": whole(b'{"Item":' * 20_000),
    "less than it says": b"HTTP/1.1 200 OK\r\nContent-Type: application/x-amz-json-1.0\r\nContent-Length: 9\r\n\r\n{}",
    "a length that is none": b"HTTP/1.1 200 OK\r\nContent-Type: application/x-amz-json-1.0\r\nContent-Length: x\r\n\r\n{}",
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Type: application/x-amz-json-1.0\r\nContent-Length: 2\r\nContent-Length: 3"
    b"\r\n\r\n{}",
    "another checksum": b"HTTP/1.1 200 OK\r\nContent-Type: application/x-amz-json-1.0\r\nContent-Length: 2\r\n"
    b"x-amz-crc32: 1\r\n\r\n{}",
    "malformed parts": whole(
        b'{"Item": [], "Items": {}, "Count": "3", "Responses": [], "Attributes": 1, "ConsumedCapacity": 1}'
    ),
    "malformed items": whole(
        b'{"Item": {"PK": "x"}, "Items": [1], "Count": 1, "Responses": {"pool": [1]}, "Attributes": {"a": {}},'
        b' "ItemCollectionMetrics": 1}'
    ),
}


@pytest.mark.parametrize("answer", NO_ANSWERS)
def test_what_is_no_answer_is_no_success_and_no_absence(engine: RawDynamoDB, store: DynamoStore, answer: str) -> None:
    engine.behave = once(NO_ANSWERS[answer])
    for name, call in calls_of(engine).items():
        with pytest.raises(StoreUnavailable) as raised:
            call(store)
        assert isinstance(raised.value, OutcomeUnknown) == (name in WRITES), name


def test_a_batch_read_that_says_nothing_of_its_table_is_no_answer(engine: RawDynamoDB, store: DynamoStore) -> None:
    found = whole(b'{"Items": [{"PK": {"S": "SBX#1"}}], "Count": 1}')
    nothing = whole(b'{"Responses": {}}')
    engine.behave = lambda exchange: exchange.send(found if exchange.operation == "Query" else nothing)
    with pytest.raises(StoreUnavailable):
        store.list_sandboxes(Status.STALE, limit=5, cursor=None)


@pytest.mark.parametrize("frame", [whole, unsized, chunked])
@pytest.mark.parametrize("content", [b"{}", ITEM])
def test_an_answer_that_is_cut_short_at_any_byte_is_refused(
    engine: RawDynamoDB, store: DynamoStore, content: bytes, frame: Callable[[bytes], bytes]
) -> None:
    """Where the answer comes through TLS or boto3, and costs more time, it is cut at each seventh byte."""
    raw = frame(content)
    for length in range(
        0, len(raw) - (5 if frame is chunked else 0), 1 if content == b"{}" and is_plain(engine) else 7
    ):
        engine.behave = once(raw[:length])
        with pytest.raises(OutcomeUnknown):
            allocate(store)
        with pytest.raises(StoreUnavailable):
            store.get("1")


def test_a_whole_answer_is_accepted(engine: RawDynamoDB, store: DynamoStore) -> None:
    engine.behave = keeping(whole(b"{}"))
    assert allocate(store) == Allocated()
    assert store.get("1") is None
    engine.behave = keeping(whole(ITEM))
    assert store.get("1") == FREE


@pytest.mark.parametrize("frame", [unsized, chunked])
def test_an_answer_that_does_not_say_its_length_is_accepted_only_if_a_proxy_may_have_framed_it(
    engine: RawDynamoDB, store: DynamoStore, frame: Callable[[bytes], bytes]
) -> None:
    """DynamoDB always says the length."""
    engine.behave = once(frame(b"{}"))
    if engine.url == PROXIED:
        assert allocate(store) == Allocated()
    else:
        with pytest.raises(OutcomeUnknown):
            allocate(store)


def test_an_idle_connection_that_dynamodb_has_closed_is_no_error(engine: RawDynamoDB, store: DynamoStore) -> None:
    closed = threading.Event()

    def behave(exchange: Exchange) -> None:
        once(whole(b"{}"))(exchange)
        closed.set()

    engine.behave = behave
    for _ in range(3):
        assert allocate(store) == Allocated()
        assert closed.wait(10)
        closed.clear()


def test_connections_are_kept_from_one_good_answer_to_the_next(engine: RawDynamoDB) -> None:
    engine.behave = keeping(whole(b"{}"))
    before = engine.connections
    with connected(engine) as store:
        for _ in range(5):
            assert store.get("1") is None
    assert engine.connections == before + 1


def test_what_follows_a_bad_answer_is_not_taken_for_the_next_one(engine: RawDynamoDB, store: DynamoStore) -> None:
    """The first answer says that it ends early: what follows would do as an answer to the next call."""
    engine.behave = keeping(whole(b"{ ") + whole(ITEM))
    with pytest.raises(OutcomeUnknown):
        allocate(store)
    before = engine.connections
    engine.behave = keeping(whole(b"{}"))
    assert store.get("1") is None
    assert engine.connections == before + 1


# -- an answer that takes for ever


PassTime = Callable[[float], None]


@pytest.fixture
def pass_time(monkeypatch: pytest.MonkeyPatch) -> PassTime:
    """Return what moves the monotonic clock on: so no limit is reached because the machine is busy."""
    now, passed = time.monotonic, [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now() + passed[0])

    def pass_time(seconds: float) -> None:
        passed[0] += seconds

    return pass_time


def dripping(pass_time: PassTime, head: bytes, drip: bytes) -> Callable[[Exchange], None]:
    """Send a head, and then a little each second, for much longer than a client should wait."""

    def behave(exchange: Exchange) -> None:
        exchange.send(head)
        until = time.perf_counter() + 8
        while time.perf_counter() < until:
            pass_time(1)
            exchange.send(drip)
            time.sleep(0.02)  # or all of it would come at once
        exchange.was_waited_for = True

    return behave


_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-amz-json-1.0\r\n"
ENDLESS = {
    "status line": (b"", b"H"),
    "interim answers": (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "headers": (_HEAD, b"X-A: b\r\n"),
    "one header": (_HEAD + b"X-A: ", b"b"),
    "body": (_HEAD + b"Content-Length: 100000\r\n\r\n", b" "),
    "body without a length": (_HEAD + b"\r\n", b" "),
    "chunks": (_HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
    "flood": (_HEAD + b"\r\n", b" " * 2**20),
    "flood with a length": (_HEAD + b"Content-Length: 99999999999\r\n\r\n", b" " * 2**20),
}


@pytest.mark.parametrize("where", ENDLESS)
def test_an_answer_that_drips_in_is_cut_off_at_the_time_of_one_call(
    engine: RawDynamoDB, pass_time: PassTime, where: str
) -> None:
    engine.behave = dripping(pass_time, *ENDLESS[where])
    with connected(engine) as store, pytest.raises(OutcomeUnknown):
        allocate(store)
    assert engine.requests[-1].ended.wait(10)
    assert not engine.requests[-1].was_waited_for


def test_a_request_ends_at_its_deadline_however_its_answers_drip(engine: RawDynamoDB, pass_time: PassTime) -> None:
    engine.behave, clock = dripping(pass_time, *ENDLESS["body"]), SystemClock()
    began = len(engine.requests)
    with (
        connected(engine, clock=clock) as store,
        deadline_in(30, clock),
        pytest.raises(StoreUnavailable),
    ):
        store.get("1")
    assert 1 <= len(engine.requests) - began <= 3


def test_a_call_after_one_that_was_cut_off_has_all_of_its_time(engine: RawDynamoDB, pass_time: PassTime) -> None:
    def pausing(exchange: Exchange) -> None:
        for byte in whole(b"{}"):
            pass_time(0.03)
            exchange.send(bytes([byte]))

    with connected(engine) as store:
        engine.behave = dripping(pass_time, *ENDLESS["body"])
        with pytest.raises(OutcomeUnknown):
            allocate(store)
        assert engine.requests[-1].ended.wait(10)
        engine.behave = pausing
        for _ in range(3):
            assert allocate(store) == Allocated()


# -- errors


def failing(code: str, status: int = 400, **content: Any) -> Callable[[Exchange], None]:
    body = json.dumps({"__type": f"com.amazonaws.dynamodb.v20120810#{code}", "message": "no", **content})
    return keeping(whole(body.encode(), status=f"{status} No"))


BUSY = (
    "ThrottlingException",
    "ProvisionedThroughputExceededException",
    "RequestLimitExceeded",
    "LimitExceededException",
    "TransactionConflictException",
    "ReplicatedWriteConflictException",
    "ResourceInUseException",
    "IdempotentParameterMismatchException",
)
FOR_A_PERSON = (
    "ResourceNotFoundException",
    "AccessDeniedException",
    "ExpiredTokenException",
    "IncompleteSignature",
    "InvalidClientTokenId",
    "InvalidSignatureException",
    "MissingAuthenticationTokenException",
    "NotAuthorized",
    "OptInRequired",
    "UnrecognizedClientException",
    "InvalidEndpointException",
    "ItemCollectionSizeLimitExceededException",
    "KMSDisabledException",
    "ACodeThatNobodyKnows",
)
OURS = ("ValidationException", "SerializationException", "UnknownOperationException", "DuplicateItemException")
UNCERTAIN = {
    "InternalServerError": 500,
    "InternalFailure": 500,
    "ServiceUnavailable": 503,
    "ACodeThatNobodyKnows": 500,
    "TransactionInProgressException": 400,
}
ERRORS: list[tuple[str, int, type[BrokerError]]] = [
    *[(code, 400, StoreUnavailable) for code in BUSY],
    *[(code, 400, StoreMisconfigured) for code in FOR_A_PERSON],
    *[(code, 400, StoreRejected) for code in OURS],
    *[(code, status, OutcomeUnknown) for code, status in UNCERTAIN.items()],
]


@pytest.mark.parametrize(("code", "status", "kind"), ERRORS)
def test_every_error_has_one_meaning_at_every_call(
    engine: RawDynamoDB, store: DynamoStore, code: str, status: int, kind: type[BrokerError]
) -> None:
    engine.behave = failing(code, status)
    for name, call in calls_of(engine).items():
        with pytest.raises(BrokerError) as raised:
            call(store)
        expected = StoreUnavailable if kind is OutcomeUnknown and name in READS else kind
        assert type(raised.value) is expected, name


def test_every_error_that_an_operation_may_answer_has_its_meaning() -> None:
    model = Session().get_service_model("dynamodb")
    operations = [
        "BatchGetItem",
        "DeleteItem",
        "GetItem",
        "PutItem",
        "Query",
        "Scan",
        "TransactWriteItems",
        "UpdateItem",
    ]
    named = {shape.name for each in operations for shape in model.operation_model(each).error_shapes}
    tested = {code for code, *_ in ERRORS}
    assert named - tested == {"ConditionalCheckFailedException", "TransactionCanceledException"}


def test_a_client_token_that_another_request_used_is_replaced(engine: RawDynamoDB, store: DynamoStore) -> None:
    began = len(engine.requests)
    engine.behave = in_turn(failing("IdempotentParameterMismatchException"), keeping(whole(b"{}")))
    store.commit(change_of(HELD, make_sandbox("1", version=2)))
    first, second = (each.request.pop("ClientRequestToken") for each in engine.requests[began:])
    assert first != second
    assert engine.requests[began].request == engine.requests[began + 1].request


def test_a_refusal_after_a_lost_answer_leaves_the_outcome_unknown(engine: RawDynamoDB, store: DynamoStore) -> None:
    engine.behave = in_turn(once(b""), failing("ThrottlingException"))
    with pytest.raises(OutcomeUnknown):
        store.commit(add_of(FREE))


@pytest.mark.parametrize(
    ("codes", "kind"),
    [
        (["ValidationError"], StoreRejected),
        (["ItemCollectionSizeLimitExceeded"], StoreMisconfigured),
        (["AReasonThatNobodyKnows"], StoreMisconfigured),
        (["ThrottlingError", "AReasonThatNobodyKnows"], StoreMisconfigured),
        (["ThrottlingError", "ProvisionedThroughputExceeded"], StoreUnavailable),
        (["TransactionConflict"], StoreUnavailable),
    ],
)
def test_a_cancelled_transaction_means_what_its_reasons_say(
    engine: RawDynamoDB, store: DynamoStore, codes: list[str], kind: type[BrokerError]
) -> None:
    reasons = [{"Code": code} for code in [*codes, "None", "None"][:3]]
    engine.behave = failing("TransactionCanceledException", CancellationReasons=reasons)
    with pytest.raises(BrokerError) as raised:
        store.commit(change_of(HELD, make_sandbox("1", version=2)))
    assert type(raised.value) is kind
    if kind is StoreMisconfigured:
        with pytest.raises(StoreMisconfigured):
            allocate(store)
    elif kind is StoreUnavailable:
        assert allocate(store) == Contended()


@pytest.mark.parametrize("reasons", [[], [{"Code": "TransactionConflict"}]])
def test_a_transaction_that_is_cancelled_without_a_reason_for_each_item_may_have_been_applied(
    engine: RawDynamoDB, store: DynamoStore, reasons: list[Any]
) -> None:
    engine.behave = failing("TransactionCanceledException", CancellationReasons=reasons)
    with pytest.raises(OutcomeUnknown):
        allocate(store)


# -- anything

JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["Item", "Items", "Count", "Responses", "pool", "Attributes", "PK", "SK", "S", "N", "x", "Keys"]
            )
            | st.sampled_from(
                ["LastEvaluatedKey", "UnprocessedKeys", "__type", "CancellationReasons", "Code", "status_order"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)
BODIES = st.binary(max_size=60) | JSON.map(lambda value: json.dumps(value).encode())


@pytest.mark.parametrize("engine", ["http", "proxy"], indirect=True)  # TLS changes no content
@given(
    call=st.sampled_from(sorted(CALLS)),
    body=BODIES,
    status=st.sampled_from([200, 200, 400, 500]),
    spoilt=st.booleans(),
)
@example(call="list_sandboxes", body=b'{"Items": [{}]}', status=200, spoilt=False)
@example(
    call="read_candidates", body=b'{"Items": [], "LastEvaluatedKey": {"PK": {"S": "x"}}}', status=200, spoilt=False
)
@settings(SHARED_STORE, max_examples=150)
def test_any_answer_makes_a_call_fail_only_in_ways_that_its_callers_know(  # noqa: PLR0917 - by name
    engine: RawDynamoDB, store: DynamoStore, call: str, body: bytes, status: int, spoilt: bool
) -> None:
    head = f"HTTP/1.1 {status} X\r\nContent-Type: application/x-amz-json-1.0\r\nContent-Length: {len(body)}\r\n"
    engine.behave = keeping(f"{head}x-amz-crc32: {zlib.crc32(body) + spoilt}\r\n\r\n".encode() + body)
    try:
        CALLS[call](store)
    except BrokerError:
        pass
    else:
        assert not spoilt
        assert status == 200
        assert isinstance(json.loads(body), dict)
