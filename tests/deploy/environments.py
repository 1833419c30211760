"""What the manifests under `deploy/` give a process, held against what the process accepts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import fields
from typing import TYPE_CHECKING

from broker_common.settings import Process, Settings
from deploy.dev.processes import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

PROCESSES = {
    "api": Process.API,
    "console": Process.CONSOLE,
    "worker-jobs": Process.WORKER,
    "worker-deletions": Process.WORKER,
    "worker-webhooks": Process.WORKER,
    "beat": Process.BEAT,
    "flower": Process.BEAT,
}
PORTS = {
    "api": 8080,
    "console": 8081,
    "worker-jobs": 9101,
    "worker-deletions": 9101,
    "worker-webhooks": 9101,
    "beat": 9102,
    "flower": 5555,
}
QUEUES = {"jobs", "deletions", "webhooks"}
A_TOKEN = "0123456789abcdef0123456789abcdef"
_LIMITS = """
import json, sys
sys.argv = ["celery", "worker"]
from broker_worker.celery_app import app
limits = {queue.name: 0 for queue in app.conf.task_queues}
for task in app.tasks.values():
    if task.name.startswith("broker."):
        queue = app.amqp.router.route({}, task.name)["queue"].name
        limits[queue] = max(limits[queue], task.time_limit)
print(json.dumps(limits))
"""
_SETTINGS = {item.name.upper() for item in fields(Settings)}
_OF_OTHERS = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "FLOWER_BASIC_AUTH", "OTEL_EXPORTER_OTLP_HEADERS"}


def accepted(command: str, environ: Mapping[str, str]) -> Settings:
    """Return the settings of a process with this environment; it has to accept all of it, and to know every name."""
    assert set(environ) - _SETTINGS - _OF_OTHERS == set()
    return Settings.from_env(environ, process=PROCESSES[command])


def longest_task_sec(environ: Mapping[str, str], queues: Iterable[str]) -> float:
    """Return after how many seconds every task of these queues has ended, as a worker with this environment has it."""
    limits: dict[str, float] = json.loads(output_of(_LIMITS, environ))
    assert set(limits) == QUEUES
    assert all(limits.values()), limits
    return max(limits[queue] for queue in queues)


GUNICORN = {"api": "deploy/gunicorn.conf.py", "console": "deploy/gunicorn-console.conf.py"}
"""The configuration of each process that gunicorn serves."""


def graceful_timeout_sec(process: str, environ: Mapping[str, str]) -> float:
    """Return how long gunicorn takes to stop at most, as its configuration says with this environment."""
    code = f"import runpy; print(runpy.run_path({GUNICORN[process]!r})['graceful_timeout'])"
    return float(output_of(code, environ))


def output_of(code: str, environ: Mapping[str, str]) -> str:
    """Return what code prints in a process with this environment, which what it imports reads."""
    env = {"PATH": os.environ["PATH"], **environ}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, check=True
    ).stdout
