"""Traces as a receiver gets them from a whole broker: who called whom, over all processes, and without a secret."""

from __future__ import annotations

import base64
import re
import secrets
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import requests
from celery import Celery

from deploy.dev import programs
from deploy.dev.processes import wait_until
from tests.e2e.stack import ADMIN_TOKEN, TRACK_TOKEN, Stack
from tests.trace_receiver import Span, TraceReceiver, draw, receiving_traces
from tests.webhook_receiver import Receiver, receiving

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from deploy.dev.plan import Plan
    from deploy.dev.processes import Program

pytestmark = pytest.mark.timeout(300)
CALLER = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
PROVIDER_TOKEN = "the-token-of-the-provider"
PLANTED = {name: f"{name}-{secrets.token_hex(8)}" for name in ("query", "path", "header", "baggage", "webhook-path")}
SERVICES = ("api", "console", "worker-jobs", "worker-deletions", "worker-webhooks", "beat")
EXPECTED = {
    ("api", "POST /v1/admin/cleanup"),
    ("api", "POST /v1/admin/sync"),
    ("api", "POST /v1/admin/webhooks"),
    ("api", "POST /v1/allocate"),
    ("console", "GET /sandboxes"),
    ("worker", "run/broker.cleanup"),
    ("worker", "run/broker.delete_sandbox"),
    ("worker", "run/broker.sync"),
}
_CSRF = re.compile(r'name="csrf_token"[^>]*value="([^"]+)"')


@dataclass(frozen=True)
class Story:
    """What happened, and what the receiver of traces and the receiver of webhooks got."""

    traces: TraceReceiver
    hooks: Receiver
    stack: Stack
    runs: dict[str, dict[str, Any]]

    def is_whole(self) -> bool:
        """Tell whether all came that the tests look for. What is part of a span comes before it, or with it."""
        spans = self.traces.spans
        deletes = [span for span in spans if span.name == "DELETE"]
        return (
            {(_service(process), name) for process, name in EXPECTED} <= {(span.service, span.name) for span in spans}
            and any(self.line_to(span)[0].name == "POST /v1/admin/cleanup" for span in deletes)
            and any(self.line_to(span)[0].service == _service("beat") for span in self.sent_webhooks())
        )

    def sent_webhooks(self) -> list[Span]:
        """Return the spans of the calls to the receiver of webhooks."""
        port = self.hooks.port
        return [span for span in self.traces.spans if span.name == "POST" and span.attributes["server.port"] == port]

    def find(self, name: str, service: str = "api") -> Span:
        """Return the first span of this name."""
        return next(span for span in self.traces.spans if (span.name, span.service) == (name, _service(service)))

    def trace_of(self, root: Span) -> list[Span]:
        """Return all spans of a trace."""
        return [span for span in self.traces.spans if span.trace_id == root.trace_id]

    def line_to(self, span: Span) -> list[Span]:
        """Return the spans from the root to this one: each is the parent of the next."""
        known = {each.span_id: each for each in self.trace_of(span)}
        line = [span]
        while line[0].parent_id in known:
            line.insert(0, known[line[0].parent_id])
        return line


def _service(process: str) -> str:
    return f"sandbox-broker-{process}"


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    """Have every process do its work once, and stop them all."""
    with receiving_traces() as traces, receiving(Receiver()) as hooks:
        settings = {
            "POOL": "4",
            "CSP_API_TOKEN": PROVIDER_TOKEN,
            "MOCK_CSP_TOKEN": PROVIDER_TOKEN,
            "OTEL_EXPORTER_OTLP_ENDPOINT": traces.url,
            "OTEL_BSP_SCHEDULE_DELAY": "500",
            # What the operator of a collector may set, and what would send secrets if nothing took them out.
            "OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SERVER_REQUEST": ".*",
            "OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_CLIENT_REQUEST": ".*",
        }
        with Stack(tmp_path_factory.mktemp("stack"), settings, with_console=True, with_webhooks=True) as stack:
            told = Story(traces, hooks, stack, _act(stack, hooks))
            assert wait_until(told.is_whole, 60), draw(traces.spans)
            endings = {name: stack.stop(name) for name in SERVICES}
            assert all(ending.startswith("stopped") for ending in endings.values()), endings
            yield told


def _act(stack: Stack, hooks: Receiver) -> dict[str, dict[str, Any]]:
    runs = {"sync": stack.run_job("sync", headers={"traceparent": CALLER, "baggage": f"key={PLANTED['baggage']}"})}
    url = f"http://127.0.0.1:{hooks.port}/{PLANTED['webhook-path']}"
    answers: list[requests.Response] = []

    def register() -> bool:
        """Register, as soon as the API knows that no process of an older release runs."""
        answers.append(stack.as_admin("POST", "/webhooks", json={"url": url, "kinds": ["*"]}))
        return answers[-1].status_code == 201

    assert wait_until(register, 30), answers[-1].text
    hooks.secret = answers[-1].json()["secret"]
    allocated = stack.as_track("anna", "POST", "/allocate", headers={"X-Any": PLANTED["header"]}).json()
    stack.as_track("anna", "GET", f"/sandboxes/{allocated['sandbox_id']}?token={PLANTED['query']}")
    stack.as_track("anna", "GET", f"/no-such-path/{PLANTED['path']}")
    stack.as_track("anna", "POST", f"/sandboxes/{allocated['sandbox_id']}/mark-for-deletion")
    # Its first try fails, with an error.
    stack.switch(fail_next_deletes=1)
    runs["cleanup"] = stack.run_job("cleanup")
    with requests.Session() as person:
        form = person.get(f"{stack.console_url}/signin", timeout=30).text
        given = {"token": ADMIN_TOKEN, "csrf_token": _CSRF.findall(form)[0]}
        person.post(f"{stack.console_url}/signin", data=given, timeout=30).raise_for_status()
        page = person.get(f"{stack.console_url}/sandboxes", timeout=30)
        assert allocated["sandbox_id"] in page.text
        for path in ("/healthz", "/readyz", "/metrics"):
            for base in (stack.api_url, stack.console_url):
                person.get(f"{base}{path}?any=1", timeout=30)
    assert wait_until(lambda: len(hooks.received) >= 3, 60), hooks.received
    return runs


def test_one_trace_leads_from_a_call_through_both_queues_to_the_delete_at_the_provider(story: Story) -> None:
    call = story.find("POST /v1/admin/cleanup")
    trace = story.trace_of(call)
    delete = next(span for span in trace if span.name == "DELETE")

    line = story.line_to(delete)
    assert [(span.service.removeprefix("sandbox-broker-"), span.kind, span.name) for span in line] == [
        ("api", "server", "POST /v1/admin/cleanup"),
        ("api", "producer", "apply_async/broker.cleanup"),
        ("worker", "consumer", "run/broker.cleanup"),
        ("worker", "producer", "apply_async/broker.delete_sandbox"),
        ("worker", "consumer", "run/broker.delete_sandbox"),
        ("worker", "client", "DELETE"),
    ], draw(trace)
    # The queue of each task is worked by another process.
    assert len({span.instance for span in line}) == 3
    assert call.parent_id == ""
    assert line[2].attributes["messaging.message.id"] == story.runs["cleanup"]["job_id"]
    assert {span.trace_id for span in story.traces.spans if span.parent_id in {each.span_id for each in trace}} == {
        call.trace_id
    }


@pytest.mark.parametrize(
    ("parent", "service", "system", "names"),
    [
        ("POST /v1/admin/cleanup", "api", "redis", {"EVALSHA", "LPUSH"}),
        ("POST /v1/allocate", "api", "redis", {"EVALSHA"}),
        ("POST /v1/allocate", "api", "aws.dynamodb", {"DynamoDB.Query", "DynamoDB.TransactWriteItems"}),
        ("POST /v1/admin/webhooks", "api", "aws.dynamodb", {"DynamoDB.TransactWriteItems"}),
        ("run/broker.cleanup", "worker", "aws.dynamodb", {"DynamoDB.Query"}),
        ("run/broker.delete_sandbox", "worker", "aws.dynamodb", {"DynamoDB.GetItem", "DynamoDB.UpdateItem"}),
        ("run/broker.delete_sandbox", "worker", "redis", {"WATCH", "GET"}),
        ("run/broker.sync", "worker", "aws.dynamodb", {"DynamoDB.BatchGetItem", "DynamoDB.TransactWriteItems"}),
    ],
)
def test_calls_to_dynamodb_and_redis_are_part_of_what_made_them(
    story: Story, parent: str, service: str, system: str, names: set[str]
) -> None:
    root = story.find(parent, service)
    children = [span for span in story.trace_of(root) if span.parent_id == root.span_id]
    calls = [span for span in children if span.attributes.get("db.system.name") == system]

    assert names <= {span.name for span in calls}, draw(story.trace_of(root))
    assert {span.kind for span in calls} == {"client"}
    if system == "aws.dynamodb":
        assert {span.attributes["db.collection.name"] for span in calls} == {"SandboxPool"}
        assert all(span.name == f"DynamoDB.{span.attributes['db.operation.name']}" for span in calls)


def test_a_call_that_names_its_trace_becomes_part_of_it_with_the_job_and_the_list_of_the_provider(story: Story) -> None:
    call = story.find("POST /v1/admin/sync")

    assert f"00-{call.trace_id}-{call.parent_id}-01" == CALLER
    listed = next(span for span in story.trace_of(call) if span.name == "GET")
    assert [span.name for span in story.line_to(listed)] == [
        "POST /v1/admin/sync",
        "apply_async/broker.sync",
        "run/broker.sync",
        "GET",
    ]


def test_the_trace_of_a_page_begins_in_the_console_and_leads_through_the_api_to_the_table(story: Story) -> None:
    page = story.find("GET /sandboxes", "console")
    read = next(span for span in story.trace_of(page) if span.name.startswith("DynamoDB."))

    line = [(span.service.removeprefix("sandbox-broker-"), span.kind) for span in story.line_to(read)]
    assert line == [("console", "server"), ("console", "client"), ("api", "server"), ("api", "client")]
    assert page.parent_id == ""


def test_a_webhook_is_sent_in_the_trace_of_the_job_that_found_it_and_its_receiver_is_not_told(story: Story) -> None:
    sent = story.sent_webhooks()[0]

    assert [span.name for span in story.line_to(sent)] == [
        "apply_async/broker.deliver",
        "run/broker.deliver",
        "apply_async/broker.send_webhook",
        "run/broker.send_webhook",
        "POST",
    ]
    assert story.line_to(sent)[0].service == _service("beat")
    told = {name for received in story.hooks.received for name in received.headers}
    assert not told & {"traceparent", "tracestate", "baggage", "x-amzn-trace-id"}


def test_no_secret_is_in_any_byte_that_was_sent(story: Story) -> None:
    sent = b"".join(story.traces.raw)
    given = [TRACK_TOKEN, ADMIN_TOKEN, PROVIDER_TOKEN, story.hooks.secret, *PLANTED.values()]
    given += [story.stack.plan.env["CONSOLE_SECRET_KEY"], story.hooks.secret.removeprefix("whsec_")]

    for secret in given:
        for form in (secret.encode(), base64.b64encode(secret.encode()), secret.encode().hex().encode()):
            assert form not in sent, secret
    # The libraries would put them into these.
    for word in (b"authorization", b"Bearer", b"cookie", b"url.full", b"url.query", b"db.query.text", b"traceback"):
        assert word not in sent, word
    assert {span.message for span in story.traces.spans} == {""}
    errors = [attributes for span in story.traces.spans for _, attributes in span.events]
    assert all(attributes.keys() <= {"exception.type"} for attributes in errors)


def test_health_checks_and_metrics_make_no_spans(story: Story) -> None:
    routes = {str(span.attributes.get("http.route")) for span in story.traces.spans}

    assert "/v1/allocate" in routes
    assert not routes & {"/healthz", "/readyz", "/metrics"}


def test_no_trace_begins_with_a_call_that_belongs_to_no_request_and_no_task(story: Story) -> None:
    roots = [span for span in story.traces.spans if not span.parent_id]

    assert {(span.service.removeprefix("sandbox-broker-"), span.kind) for span in roots} == {
        ("api", "server"),
        ("console", "server"),
        ("beat", "producer"),
    }


def test_log_lines_name_the_trace_and_the_span_that_they_belong_to(story: Story) -> None:
    lines = story.stack.records("api", "worker-jobs", "worker-deletions", "worker-webhooks", "console")
    known = {(span.trace_id, span.span_id): span.name for span in story.traces.spans}
    found = {
        (line["message"], known[line["trace_id"], line["span_id"]])
        for line in lines
        if (line.get("trace_id"), line.get("span_id")) in known
    }

    assert ("Request answered", "POST /v1/allocate") in found
    assert ("Request answered", "GET /sandboxes") in found
    assert ("Delete ended", "run/broker.delete_sandbox") in found
    assert {name for message, name in found if message != "Request answered"} >= {"run/broker.sync"}


@pytest.fixture(params=["away", "hangs"])
def endpoint(request: pytest.FixtureRequest) -> Iterator[str]:
    """Yield the address of a receiver of traces that refuses connections, or never answers."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        if request.param == "hangs":
            listener.listen(128)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def test_a_process_that_stops_sends_its_last_spans(tmp_path: Path) -> None:
    never = {"OTEL_BSP_SCHEDULE_DELAY": "600000", "API_WORKERS": "1"}

    def of_a_job(plan: Plan, scratch: Path) -> list[Program]:
        return [programs.worker_jobs(plan, scratch), programs.api(plan, scratch)]

    with receiving_traces() as traces, Stack(tmp_path, _sent_to(traces) | never, services=of_a_job) as stack:
        stack.run_job("sync")
        assert traces.spans == []

        endings = [stack.stop("api"), stack.stop("worker-jobs")]

        assert all(ending.startswith("stopped") for ending in endings), endings
        assert {("api", "POST /v1/admin/sync"), ("worker", "run/broker.sync")} <= {
            (span.service.removeprefix("sandbox-broker-"), span.name) for span in traces.spans
        }


def test_a_receiver_that_does_not_take_spans_holds_up_no_call_no_job_and_no_stop(endpoint: str, tmp_path: Path) -> None:
    settings = {
        "POOL": "2",
        "API_WORKERS": "1",
        "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
        "OTEL_EXPORTER_OTLP_TIMEOUT": "1",
        "OTEL_BSP_SCHEDULE_DELAY": "50",
    }
    services = SERVICES[:1] + SERVICES[2:]
    with Stack(tmp_path, settings, with_webhooks=True) as stack:
        assert stack.run_job("sync")["state"] == "succeeded"
        sandbox = stack.as_track("anna", "POST", "/allocate").json()
        stack.as_track("anna", "POST", f"/sandboxes/{sandbox['sandbox_id']}/mark-for-deletion")
        assert stack.run_job("cleanup")["state"] == "succeeded"
        assert wait_until(lambda: bool(lost(stack, "api")), 60)
        endings = {name: stack.stop(name) for name in services}

        assert all(ending.startswith("stopped") for ending in endings.values()), endings
        assert {stack.exit_code(name) for name in services} == {0}
        # One a minute: the tests of `CleanExporter` count them.
        assert len(lost(stack, "api")) < 5
        assert {line["level"] for line in lost(stack, *services)} == {"warning"}
        assert not [line for line in stack.records(*services) if line["logger"].startswith("opentelemetry")]


def lost(stack: Stack, *names: str) -> list[dict[str, Any]]:
    """Return the log lines about spans that were lost."""
    return [line for line in stack.records(*names) if line.get("action") == "export_traces"]


def test_a_message_with_a_bad_trace_runs_its_job_in_a_new_one(tmp_path: Path) -> None:
    bad = {"traceparent": f"00-{'0' * 32}-{'0' * 16}-01", "tracestate": PLANTED["header"]}
    with receiving_traces() as traces, Stack(tmp_path, {"OTEL_TRACES_EXPORTER": "otlp"} | _sent_to(traces)) as stack:
        sender = Celery(broker=stack.plan.env["REDIS_URL"], set_as_current=False)
        sender.send_task("broker.watch", queue="jobs", task_id=PLANTED["query"], headers=bad)
        found = wait_until(lambda: any(_is_of(span, PLANTED["query"]) for span in traces.spans), 60)

        assert found
        (run,) = [span for span in traces.spans if _is_of(span, PLANTED["query"])]
        assert (run.name, run.parent_id, run.attributes["celery.state"]) == ("run/broker.watch", "", "SUCCESS")


def _is_of(span: Span, task_id: str) -> bool:
    return bool(span.attributes.get("messaging.message.id") == task_id)


def _sent_to(traces: TraceReceiver) -> dict[str, str]:
    return {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"{traces.url}/v1/traces", "OTEL_BSP_SCHEDULE_DELAY": "100"}
