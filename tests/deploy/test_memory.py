"""The limits of memory: a process has the same one in compose and on Kubernetes, and no less on Fargate."""

from __future__ import annotations

import json
import re

import pytest
import yaml

from deploy.dev.processes import ROOT
from tests.deploy.environments import PROCESSES

_UNITS = {"m": 1, "g": 1024, "Mi": 1, "Gi": 1024}
_ON_FARGATE = [process for process in PROCESSES if process != "flower"]


def mib(text: str) -> int:
    number, unit = re.fullmatch(r"([0-9]+)([a-zA-Z]+)", text).groups()  # type: ignore[union-attr] # else the test fails
    return int(number) * _UNITS[unit]


def in_compose(process: str) -> int:
    return mib(yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())["services"][process]["mem_limit"])


def on_kubernetes(process: str) -> int:
    for file in (ROOT / "deploy" / "kubernetes" / "base").glob("*.yaml"):
        for each in yaml.safe_load_all(file.read_text()):
            if each and each["kind"] == "Deployment" and each["metadata"]["name"] == f"broker-{process}":
                (container,) = each["spec"]["template"]["spec"]["containers"]
                return mib(container["resources"]["limits"]["memory"])
    pytest.fail(f"no Deployment runs {process}")


@pytest.mark.parametrize("process", PROCESSES)
def test_a_process_has_the_same_limit_of_memory_in_compose_and_on_kubernetes(process: str) -> None:
    assert in_compose(process) == on_kubernetes(process)


@pytest.mark.parametrize("process", _ON_FARGATE)
def test_a_task_on_fargate_has_at_least_the_limit_of_memory_that_its_process_has_elsewhere(process: str) -> None:
    task = json.loads((ROOT / "deploy" / "ecs" / f"{process}.json").read_text())
    assert int(task["memory"]) >= in_compose(process)
