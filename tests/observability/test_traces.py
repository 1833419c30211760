"""Processes with traces on, off, and asked for in vain."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.sdk._shared_internal import BatchProcessor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from structlog.testing import capture_logs

from broker_common.adapters.otel_spans import BoundedProcessor, CleanExporter
from broker_common.settings import Process, Settings, SettingsError
from broker_common.startup import read_settings
from deploy.dev.processes import ROOT, free_ports
from tests.http_server import Handler, serving

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from opentelemetry.sdk.trace import ReadableSpan

SECRET = "a-secret-of-somebody"
DEVELOPMENT = {
    "BROKER_ENV": "development",
    "BROKER_API_TOKEN": "track-token",
    "BROKER_ADMIN_TOKEN": "admin-token",
    "CSP_BASE_URL": "http://127.0.0.1:9",
    "CSP_API_TOKEN": "csp-token",
    "DDB_ENDPOINT_URL": "http://127.0.0.1:9",
    "REDIS_URL": "redis://127.0.0.1:9/0",
}
ASKING = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}
COMMANDS = {
    "api": ("gunicorn", "-c", "deploy/gunicorn.conf.py", "broker_api.wsgi:app"),
    "console": ("gunicorn", "-c", "deploy/gunicorn-console.conf.py", "broker_api.console.wsgi:app"),
    "worker": ("celery", "-A", "broker_worker.celery_app", "worker"),
    "beat": ("celery", "-A", "broker_worker.celery_app", "beat"),
}
LISTED = "print(json.dumps(sorted(each for each in sys.modules if each.split('.')[0] == 'opentelemetry')))"


def run(*command: str, **environ: str) -> subprocess.CompletedProcess[str]:
    env = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ} | environ
    return subprocess.run(
        (sys.executable, *command), env=env, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_without_the_extra_a_process_that_is_to_trace_ends_with_2_and_names_the_variable(
    command: str, tmp_path: Path
) -> None:
    # As if nothing of OpenTelemetry were installed.
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['opentelemetry'] = None\n")
    ports = dict(zip(("API_PORT", "CONSOLE_PORT", "METRICS_PORT"), map(str, free_ports(3)), strict=True))
    ended = run("-m", *COMMANDS[command], PYTHONPATH=str(tmp_path), **DEVELOPMENT, **ASKING, **ports)

    assert ended.returncode == 2
    assert ended.stderr == (
        "OTEL_EXPORTER_OTLP_ENDPOINT: Asks for traces, but the extra `tracing` is not installed: install "
        "sandbox-broker[tracing], or set OTEL_SDK_DISABLED=true.\n"
    )


@pytest.mark.parametrize("asked", [{}, ASKING | {"OTEL_SDK_DISABLED": "true"}], ids=["not asked for", "disabled"])
def test_a_process_without_traces_imports_no_module_of_opentelemetry(asked: Mapping[str, str]) -> None:
    ours = """
import json, os, sys
sys.argv = ["celery", "worker"]
import broker_worker.celery_app
import broker_api.wsgi
import broker_api.console.wsgi
"""
    # The client of Redis looks for OpenTelemetry by itself, and imports what it finds, for metrics that are off.
    of_redis = run("-c", f"import json, sys\nimport redis, redis.asyncio\n{LISTED}")
    found = run("-c", f"{ours}\n{LISTED}", **DEVELOPMENT, **asked)

    assert found.returncode == 0, found.stderr
    imported, allowed = (set(json.loads(each.stdout.splitlines()[-1])) for each in (found, of_redis))
    assert imported <= allowed
    traces = ("opentelemetry.instrumentation", "opentelemetry.exporter", "opentelemetry.sdk.trace")
    assert not [name for name in imported if name.startswith(traces)]


@pytest.mark.parametrize(
    ("given", "variable"),
    [
        ({}, None),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, "OTEL_TRACES_EXPORTER"),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:4318/v1/traces"}, "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"),
        (ASKING, "OTEL_EXPORTER_OTLP_ENDPOINT"),
        (ASKING | {"OTEL_TRACES_EXPORTER": "none"}, None),
        (ASKING | {"OTEL_SDK_DISABLED": "TRUE"}, None),
        (ASKING | {"OTEL_SDK_DISABLED": "false"}, "OTEL_EXPORTER_OTLP_ENDPOINT"),
        ({"OTEL_SERVICE_NAME": "broker", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}, None),
    ],
)
def test_traces_are_on_if_a_standard_variable_asks_for_them(given: dict[str, str], variable: str | None) -> None:
    assert Settings.from_env(DEVELOPMENT | given, process=Process.API).traces_variable == variable


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("OTEL_SDK_DISABLED", "maybe"),
        ("OTEL_TRACES_EXPORTER", "console"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://user:{SECRET}@collector:4318"),
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", f"collector?key={SECRET}"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
        ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/json"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "10s"),
        ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "0"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "zip"),
        ("OTEL_EXPORTER_OTLP_TRACES_COMPRESSION", "br"),
        ("OTEL_TRACES_SAMPLER", "traceid_ratio"),
        ("OTEL_TRACES_SAMPLER_ARG", "1%"),
        ("OTEL_TRACES_SAMPLER_ARG", "1.01"),
        ("OTEL_TRACES_SAMPLER_ARG", "nan"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "256"),  # less than a batch, which is 512
        ("OTEL_BSP_MAX_QUEUE_SIZE", "0"),
        ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "many"),
        ("OTEL_BSP_SCHEDULE_DELAY", "0"),
        ("OTEL_BSP_EXPORT_TIMEOUT", "-1"),
        ("OTEL_SPAN_EVENT_COUNT_LIMIT", SECRET),
    ],
)
def test_a_value_that_this_broker_cannot_follow_is_refused_by_the_name_of_its_variable(
    variable: str, value: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(SystemExit) as ended:
        read_settings(DEVELOPMENT | ASKING | {variable: value}, process=Process.BEAT)

    [said] = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2
    assert said.startswith(f"{variable}: ")
    assert SECRET not in said


def test_all_bad_values_are_named_at_once_also_beside_a_bad_endpoint() -> None:
    bad = {
        "OTEL_BSP_SCHEDULE_DELAY": "0",
        "OTEL_EXPORTER_OTLP_ENDPOINT": "collector:4318",
        "OTEL_TRACES_SAMPLER": "some",
    }
    with pytest.raises(SettingsError) as refused:
        Settings.from_env(DEVELOPMENT | bad, process=Process.CONSOLE)

    assert [problem.split(":")[0] for problem in refused.value.problems] == sorted(bad)


@pytest.mark.parametrize(
    "off",
    [{}, ASKING | {"OTEL_SDK_DISABLED": "true"}, ASKING | {"OTEL_TRACES_EXPORTER": "none"}],
    ids=["not asked for", "disabled", "sent nowhere"],
)
def test_while_traces_are_off_no_value_for_them_stops_a_process(off: dict[str, str]) -> None:
    unfit = {
        "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
        "OTEL_TRACES_SAMPLER": "jaeger_remote",
        "OTEL_BSP_MAX_QUEUE_SIZE": "256",
    }

    assert read_settings(DEVELOPMENT | unfit | off, process=Process.WORKER).traces_variable is None


@pytest.mark.parametrize("sampler", ["always_on", "ALWAYS_OFF", "traceidratio", "ParentBased_TraceIdRatio"])
def test_every_sampler_of_the_standard_is_taken(sampler: str) -> None:
    given = {"OTEL_TRACES_SAMPLER": sampler, "OTEL_TRACES_SAMPLER_ARG": "0.01"}

    assert Settings.from_env(DEVELOPMENT | ASKING | given, process=Process.API).otel_traces_sampler == sampler


def test_blanks_around_a_value_change_nothing() -> None:
    start = """
from broker_common.adapters import otel_traces
print(otel_traces.start("api").provider.sampler.get_description())
"""
    ended = run("-c", start, **ASKING, OTEL_TRACES_SAMPLER=" traceidratio ", OTEL_TRACES_SAMPLER_ARG=" 0.25 ")

    assert (ended.returncode, ended.stdout) == (0, "TraceIdRatioBased{0.25}\n"), ended.stderr


def test_a_propagator_that_is_not_installed_ends_the_start_with_one_line() -> None:
    start = "import os\nfrom broker_common.startup import *\nfrom broker_common.settings import Process\n"
    call = f"{start}read_settings(os.environ, process=Process.BEAT)"
    ended = run("-c", call, **DEVELOPMENT, **ASKING, OTEL_PROPAGATORS=SECRET)

    assert ended.returncode == 2
    assert ended.stderr == (
        "OTEL_PROPAGATORS: Names one that is not installed. Leave it out: the broker uses W3C Trace Context alone.\n"
    )


def test_only_the_api_gets_to_know_a_trace() -> None:
    calls = """
import sys
import boto3, botocore.config, requests
from opentelemetry import baggage, context
from broker_common.adapters import otel_backend, otel_traces
api, other = sys.argv[1:]
# As an operator may write it; `requests` writes it in its own way.
traces = otel_traces.start("console", api_url=f"{api.replace('localhost', 'LocalHost')}/v1/")
otel_backend.watch(traces.provider)
context.attach(baggage.set_baggage("key", "value"))
with traces.provider.get_tracer("test").start_as_current_span("page"):
    for url in (f"{api}/v1/stats", f"{api}/v2", f"{other}/v1/stats", f"{other}/{api}/v1/"):
        requests.get(url, timeout=10)
    session = boto3.Session("id", "key", region_name="us-east-1")
    client = session.client("dynamodb", endpoint_url=other, config=botocore.config.Config(retries={"total_max_attempts": 1}))
    try:
        client.put_item(TableName="any", Item={})
    except Exception as error:
        print(type(error).__name__)
"""
    came: list[tuple[str, set[str]]] = []

    class Keep(Handler):
        def reply(self) -> None:
            came.append((self.path, {name.lower() for name in self.headers}))
            self.answer(200)

    with serving(Keep) as api, serving(Keep) as other:
        urls = [f"http://localhost:{server.server_port}" for server in (api, other)]
        ended = run("-c", calls, *urls, OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9")

    assert ended.returncode == 0, ended.stderr
    assert len(came) == 5
    names = {"traceparent", "tracestate", "baggage", "x-amzn-trace-id", "b3"}
    assert [headers & names for _, headers in came] == [{"traceparent"}, set(), set(), set(), set()]


class Hanging(SpanExporter):
    """Answers only when it is told to."""

    def __init__(self) -> None:
        self.called, self.answer = threading.Event(), threading.Event()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.called.set()
        self.answer.wait()
        return SpanExportResult.SUCCESS


@pytest.fixture
def stop_limits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the limits with which processors are told to stop, in milliseconds. They do not wait for so long here."""
    asked: list[int] = []
    stop = BatchProcessor.shutdown

    def note(processor: BatchProcessor[Any], timeout_millis: int = 30_000) -> None:
        asked.append(timeout_millis)
        stop(processor, 10)

    monkeypatch.setattr(BatchProcessor, "shutdown", note)
    return asked


def test_a_receiver_that_hangs_holds_up_no_work_and_an_end_for_2_seconds_at_most(stop_limits: list[int]) -> None:
    exporter = Hanging()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(BoundedProcessor(CleanExporter(exporter), max_queue_size=2, max_export_batch_size=1))
    tracer: Any = provider.get_tracer("test")
    for _ in range(100):
        tracer.start_span("any").end()
    assert exporter.called.wait(10)

    provider.shutdown()

    assert stop_limits == [2000]
    assert not exporter.answer.is_set()
    exporter.answer.set()


def test_spans_that_find_the_queue_full_are_counted_among_the_lost() -> None:
    receiver, provider = Hanging(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(BoundedProcessor(CleanExporter(receiver), max_queue_size=2, max_export_batch_size=1))
    tracer: Any = provider.get_tracer("test")
    with capture_logs() as lines:
        tracer.start_span("sent").end()
        assert receiver.called.wait(10)
        for _ in range(5):
            tracer.start_span("any").end()
        receiver.answer.set()
        provider.shutdown()

    assert [(line["lost_spans"], line["reasons"]) for line in lines if line["log_level"] == "warning"] == [
        (3, {"queue_full": 3})
    ]
