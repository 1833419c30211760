"""What a span keeps, how failures to send are logged, and how a trace goes on in a message."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from botocore.exceptions import ClientError
from celery import Celery
from opentelemetry import context
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from structlog.testing import capture_logs

from broker_common.adapters.otel_celery import TaskInstrumentor
from broker_common.adapters.otel_clients import TracedDynamoClient, TracedRateLimit
from broker_common.adapters.otel_spans import CleanExporter, clean
from broker_common.core.ports import Allowance
from broker_worker.trace_context import read_trace

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from opentelemetry.trace import Tracer
    from opentelemetry.util.types import AnyValue

SECRET = "a-secret-of-somebody"
PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


class Spans:
    """Keeps the spans of one tracer."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider(shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracer: Tracer = self.provider.get_tracer("test")

    @property
    def only(self) -> ReadableSpan:
        """The one span that was made."""
        [span] = self._exporter.get_finished_spans()
        return span


@pytest.fixture
def spans() -> Spans:
    return Spans()


@pytest.mark.parametrize("kind", SpanKind)
def test_a_span_keeps_only_what_is_known_to_hold_no_secret(spans: Spans, kind: SpanKind) -> None:
    with (
        pytest.raises(ValueError, match=SECRET),
        spans.tracer.start_as_current_span(
            "run/broker.sync",
            kind=kind,
            attributes={
                "url.full": f"https://user:{SECRET}@example.com/?token={SECRET}",
                "db.query.text": SECRET,
                "http.request.header.authorization": (SECRET,),
                "http.route": "/v1/allocate",
                "http.response.status_code": 503,
            },
        ),
    ):
        raise ValueError(SECRET)

    kept = clean(spans.only)
    assert SECRET not in kept.to_json()
    assert kept.attributes == {"http.route": "/v1/allocate", "http.response.status_code": 503}
    assert [(event.name, event.attributes) for event in kept.events] == [
        ("exception", {"exception.type": "ValueError"})
    ]
    assert (kept.status.status_code, kept.status.description) == (StatusCode.ERROR, None)
    original = spans.only
    for name in ("name", "context", "parent", "resource", "kind", "start_time", "end_time", "instrumentation_scope"):
        assert getattr(kept, name) == getattr(original, name)


def test_the_state_that_a_caller_sends_with_its_trace_is_not_sent_on_to_the_receiver(spans: Spans) -> None:
    caller = TraceContextTextMapPropagator().extract({"traceparent": PARENT, "tracestate": f"vendor={SECRET}"})
    spans.tracer.start_span("any", context=caller).end()
    assert spans.only.context is not None
    assert spans.only.context.trace_state

    assert SECRET.encode() not in encode_spans([clean(spans.only)]).SerializeToString()


@pytest.mark.parametrize(
    ("kind", "attributes", "name"),
    [
        (SpanKind.SERVER, {"http.request.method": "GET", "http.route": "/v1/stats"}, f"GET /v1/{SECRET}"),
        (SpanKind.SERVER, {"http.request.method": "GET"}, "GET"),
        (SpanKind.SERVER, {}, "HTTP"),
        (SpanKind.CLIENT, {"http.request.method": "GET"}, f"GET /v1/{SECRET}"),
    ],
)
def test_a_request_to_no_route_is_not_named_by_its_path(
    spans: Spans, kind: SpanKind, attributes: dict[str, str], name: str
) -> None:
    spans.tracer.start_span(f"GET /v1/{SECRET}", kind=kind, attributes=attributes).end()

    assert clean(spans.only).name == name


def test_a_server_is_named_in_calls_to_it_and_not_in_those_that_come_in(spans: Spans) -> None:
    given: dict[str, AnyValue] = {"server.address": "csp.example.com", "server.port": 443}
    for kind, kept in ((SpanKind.CLIENT, given), (SpanKind.SERVER, {})):
        made = Spans()
        made.tracer.start_span("any", kind=kind, attributes=given).end()
        assert clean(made.only).attributes == kept


def test_a_pipeline_is_named_by_each_of_its_commands_once(spans: Spans) -> None:
    spans.tracer.start_span("LPUSH LPUSH PUBLISH LPUSH", attributes={"db.system.name": "redis"}).end()

    assert clean(spans.only).name == "LPUSH PUBLISH"


class Receiver(SpanExporter):
    """Takes spans, or does not."""

    takes = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        return SpanExportResult.SUCCESS if self.takes else SpanExportResult.FAILURE


def test_lost_spans_are_logged_once_a_minute_with_their_number_and_the_recovery_once(spans: Spans) -> None:
    now = [1000.0]
    receiver = Receiver()
    exporter = CleanExporter(receiver, monotonic=lambda: now[0])
    spans.tracer.start_span("any").end()
    batch = [spans.only] * 3
    with capture_logs() as lines:
        for _ in range(5):
            exporter.export(batch)
        assert [line["lost_spans"] for line in lines] == [3]
        now[0] += 60
        exporter.export(batch)
        assert [line["lost_spans"] for line in lines] == [3, 15]
        receiver.takes = True
        exporter.export(batch)
        exporter.export(batch)
        exporter.shutdown()

    assert [(line["log_level"], line["outcome"]) for line in lines] == [
        ("warning", "error"),
        ("warning", "error"),
        ("info", "success"),
    ]


def test_spans_lost_within_the_minute_are_still_reported_after_the_receiver_is_back(spans: Spans) -> None:
    now = [1000.0]
    receiver = Receiver()
    exporter = CleanExporter(receiver, monotonic=lambda: now[0])
    spans.tracer.start_span("any").end()
    with capture_logs() as lines:
        exporter.export([spans.only])
        exporter.export([spans.only] * 2)
        receiver.takes = True
        exporter.export([spans.only])
        assert [line["lost_spans"] for line in lines] == [1]
        now[0] += 60
        exporter.export([spans.only])

    assert [line["lost_spans"] for line in lines] == [1, 2]


def test_a_span_that_cannot_be_cleaned_is_counted_and_those_beside_it_are_sent(spans: Spans) -> None:
    sent = InMemorySpanExporter()
    spans.tracer.start_span("any").end()
    broken = ReadableSpan("broken", status=None)  # type: ignore[arg-type]
    with capture_logs() as lines:
        CleanExporter(sent).export([spans.only, broken])

    assert [span.name for span in sent.get_finished_spans()] == ["any"]
    assert [(line["lost_spans"], line["reasons"]) for line in lines] == [(1, {"not_cleaned": 1})]


class Table:
    """A client of DynamoDB that fails with a code, or answers."""

    def __init__(self, code: str | None = None) -> None:
        self._code = code

    def get_item(self, **request: Any) -> dict[str, Any]:
        if self._code is not None:
            raise ClientError({"Error": {"Code": self._code, "Message": SECRET}}, "GetItem")
        return {"Item": request["Key"]}

    def transact_write_items(self, **_: Any) -> None:
        raise TimeoutError(SECRET)

    def scan(self) -> str:
        return "boto3's own"


def test_a_call_past_boto3_has_a_span_with_its_table_and_no_value(spans: Spans) -> None:
    client: Any = TracedDynamoClient(Table(), spans.tracer)  # type: ignore[arg-type]

    assert client.get_item(TableName="SandboxPool", Key={"pk": {"S": SECRET}}) == {"Item": {"pk": {"S": SECRET}}}
    assert client.scan() == "boto3's own"
    assert spans.only.name == "DynamoDB.GetItem"
    assert spans.only.kind is SpanKind.CLIENT
    assert spans.only.attributes == {
        "db.system.name": "aws.dynamodb",
        "db.operation.name": "GetItem",
        "db.collection.name": "SandboxPool",
    }


@pytest.mark.parametrize(
    ("code", "status"),
    [("ConditionalCheckFailedException", StatusCode.OK), ("AccessDeniedException", StatusCode.ERROR)],
)
def test_a_refused_call_has_the_code_of_its_error_and_a_lost_race_is_none(
    spans: Spans, code: str, status: StatusCode
) -> None:
    client: Any = TracedDynamoClient(Table(code), spans.tracer)  # type: ignore[arg-type]

    with pytest.raises(ClientError):
        client.get_item(TableName="SandboxPool", Key={})
    assert spans.only.attributes is not None
    assert spans.only.attributes["db.response.status_code"] == code
    assert spans.only.status.status_code is status
    assert SECRET not in spans.only.to_json()


def test_a_transaction_without_an_answer_has_the_table_of_its_first_item_and_the_type_of_its_error(
    spans: Spans,
) -> None:
    client: Any = TracedDynamoClient(Table(), spans.tracer)  # type: ignore[arg-type]

    with pytest.raises(TimeoutError):
        client.transact_write_items(TransactItems=[{"Update": {"TableName": "SandboxPool"}}])
    assert spans.only.attributes is not None
    assert spans.only.attributes["db.collection.name"] == "SandboxPool"
    assert spans.only.attributes["error.type"] == "TimeoutError"
    assert SECRET not in spans.only.to_json()


def test_a_check_of_the_rate_limit_has_a_span_without_its_key(spans: Spans) -> None:
    allowance = Allowance(is_exceeded=False, limit=1, remaining=1, reset_after=1, retry_after=0)

    class Limit:
        def take(self, key: str) -> Allowance | None:
            return allowance

    assert TracedRateLimit(Limit(), spans.tracer).take(SECRET) is allowance
    assert spans.only.name == "EVALSHA"
    assert SECRET not in spans.only.to_json()


@pytest.fixture
def sender(spans: Spans) -> Iterator[Celery]:
    """Yield an application that sends tasks it does not know, as the API does."""
    instrumentor = TaskInstrumentor()  # type: ignore[no-untyped-call]
    instrumentor.instrument(tracer_provider=spans.provider)
    yield Celery(broker="memory://", set_as_current=False)
    instrumentor.uninstrument()


def test_a_message_names_the_span_of_its_sending_which_ends_even_if_the_queue_is_away(
    spans: Spans, sender: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[dict[str, Any]] = []

    def refuse(*_: Any, headers: dict[str, Any], **__: Any) -> None:
        sent.append(headers)
        raise OSError

    monkeypatch.setattr("kombu.Producer.publish", refuse)
    with pytest.raises(OSError):
        sender.send_task("broker.sync")

    span = spans.only
    assert (span.name, span.kind) == ("apply_async/broker.sync", SpanKind.PRODUCER)
    assert span.context is not None
    assert sent[0]["traceparent"].startswith(f"00-{span.context.trace_id:032x}-{span.context.span_id:016x}-")
    # Nothing of it is left for what this thread does next.
    later = Spans()
    later.tracer.start_span("next").end()
    assert later.only.parent is None


def test_a_message_is_sent_in_the_trace_of_the_request_that_sends_it(spans: Spans, sender: Celery) -> None:
    other = Spans()
    request = other.tracer.start_span("request")
    token = context.attach(set_span_in_context(request))
    sender.send_task("broker.sync")
    context.detach(token)

    assert spans.only.parent == request.get_span_context()


@pytest.mark.parametrize(
    "parent",
    [
        None,
        7,
        "",
        SECRET,
        f"{PARENT}\n",
        f" {PARENT}",
        PARENT.upper(),
        PARENT.replace("00-", "01-", 1),
        PARENT.replace("00-", "ff-", 1),
        f"{PARENT}-01",
        "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
        [PARENT],
    ],
)
def test_a_trace_that_is_not_of_the_form_of_w3c_is_left_out_with_its_state(parent: object) -> None:
    assert read_trace({"traceparent": parent, "tracestate": "vendor=1"}) == {}


@pytest.mark.parametrize("state", ["vendor=1", "a=1,b=2", "a=1 , b=x y", "tenant@vendor=~", "a*/_-=!"])
def test_a_valid_state_is_passed_on_with_its_trace(state: str) -> None:
    given = {"traceparent": PARENT, "tracestate": state}

    assert read_trace(given | {"other": SECRET}) == given


@pytest.mark.parametrize(
    "state",
    [
        None,
        7,
        "",
        "a",
        "A=1",
        "a=",
        "a=1,",
        "a=1,a=2",
        "a=b=c",
        "a=1\n",
        "a=ä",
        f"a={'x' * 511}",
        ",".join(f"k{number}=1" for number in range(33)),
    ],
)
def test_a_state_of_another_form_is_left_out_alone(state: object) -> None:
    assert read_trace({"traceparent": PARENT, "tracestate": state}) == {"traceparent": PARENT}
