"""The task definitions under `deploy/ecs`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from deploy.dev.processes import ROOT
from tests.deploy.environments import A_TOKEN, GUNICORN, PORTS, accepted, graceful_timeout_sec, longest_task_sec

TASKS = {path.stem: json.loads(path.read_text()) for path in sorted((ROOT / "deploy" / "ecs").glob("*.json"))}
SECRETS = {
    "REDIS_URL": "rediss://:password@redis.example.com:6379/0",
    "BROKER_API_TOKEN": A_TOKEN,
    "BROKER_ADMIN_TOKEN": A_TOKEN[::-1],
    "CSP_API_TOKEN": "provider",
    "CONSOLE_SECRET_KEY": A_TOKEN,
}


def container(process: str) -> dict[str, Any]:
    (only,) = TASKS[process]["containerDefinitions"]
    assert isinstance(only, dict)
    return only


def environment(process: str) -> dict[str, str]:
    """Return what a process is given, with stand-ins for its secrets."""
    secret = [each["name"] for each in container(process)["secrets"]]
    plain = {each["name"]: each["value"] for each in container(process)["environment"]}
    assert SECRETS.keys() & plain.keys() == set(), "a secret is written down"
    return plain | {name: SECRETS[name] for name in secret}


def as_cloudformation(value: Any, *, free: bool = False) -> Any:
    """Return a definition in CloudFormation's spelling, which cfn-lint has the schema of; `free` names stay."""
    if isinstance(value, list):
        return [as_cloudformation(each) for each in value]
    if not isinstance(value, dict):
        return value
    return {
        name if free else name[0].upper() + name[1:]: as_cloudformation(each, free=name == "options")
        for name, each in value.items()
    }


def test_there_is_one_for_each_process_that_serves() -> None:
    assert set(TASKS) == {"api", "console", "worker-jobs", "worker-deletions", "worker-webhooks", "beat"}


def test_the_definitions_are_valid(tmp_path: Path) -> None:
    resources = {
        name.title().replace("-", ""): {"Type": "AWS::ECS::TaskDefinition", "Properties": as_cloudformation(task)}
        for name, task in TASKS.items()
    }
    template = tmp_path / "template.json"
    template.write_text(json.dumps({"AWSTemplateFormatVersion": "2010-09-09", "Resources": resources}))
    linter = Path(sys.executable).with_name("cfn-lint")
    lint = subprocess.run([linter, template], capture_output=True, text=True, check=False)
    assert lint.returncode == 0, lint.stdout


@pytest.mark.parametrize("process", TASKS)
def test_a_process_accepts_its_environment(process: str) -> None:
    assert container(process)["command"] == [process]
    settings = accepted(process, environment(process))
    assert settings.in_production
    assert [each["containerPort"] for each in container(process)["portMappings"]] == [PORTS[process]]


@pytest.mark.parametrize("process", TASKS)
def test_a_container_is_confined_and_can_write_tmp(process: str) -> None:
    this = container(process)
    assert this["user"] == "10001:10001"
    assert this["readonlyRootFilesystem"] is True
    assert this["linuxParameters"]["capabilities"]["drop"] == ["ALL"]
    (mount,) = this["mountPoints"]
    assert mount["containerPath"] == "/tmp"  # noqa: S108 - a container's own
    # Fargate's volume belongs to root, unless the image names the directory as a volume: then it has its rights.
    assert f'VOLUME ["{mount["containerPath"]}"]\n' in (ROOT / "deploy" / "Dockerfile").read_text()
    assert [volume["name"] for volume in TASKS[process]["volumes"]] == [mount["sourceVolume"]]
    assert this["healthCheck"]["command"] == ["CMD", "/app/deploy/entrypoint.sh", "healthcheck"]


def test_only_what_uses_the_table_has_a_role() -> None:
    assert {name for name, task in TASKS.items() if "taskRoleArn" in task} == TASKS.keys() - {"beat", "console"}


def test_the_console_gets_its_own_secret_alone() -> None:
    assert [each["name"] for each in container("console")["secrets"]] == ["CONSOLE_SECRET_KEY"]


def test_a_process_has_as_long_to_stop_as_it_may_take_within_what_fargate_grants() -> None:
    for served in GUNICORN:
        assert graceful_timeout_sec(served, environment(served)) < container(served)["stopTimeout"] <= 120
    for queue in ("deletions", "webhooks"):
        longest = longest_task_sec(environment(f"worker-{queue}"), [queue])
        assert longest < container(f"worker-{queue}")["stopTimeout"] <= 120
    assert container("worker-jobs")["stopTimeout"] == 120
