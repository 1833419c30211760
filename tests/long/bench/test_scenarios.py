"""The bench as a whole, in its shortest form: every scenario works, and a failing one stops no other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from deploy.dev.processes import ROOT
from tests.long.bench.scenarios import SCENARIOS

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("aws_environment", "dynamodb_local_url")

LARGE = ["scaling", "line", "class", "webhooks", "console"]
"""The scenarios that start whole brokers, in the order of `SCENARIOS`. They take as long as all others together."""


def bench(*arguments: str | Path, planted: str = "") -> subprocess.CompletedProcess[str]:
    """Run the bench in its shortest form; `planted` is code that runs first and may change `SCENARIOS`."""
    code = (
        f"import os, signal, sys\nfrom tests.long.bench.__main__ import SCENARIOS, main\n{planted}\nmain(sys.argv[1:])"
    )
    command = [sys.executable, "-c", code, "--shortest", *map(str, arguments)]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("names", [[name for name in SCENARIOS if name not in LARGE], LARGE], ids=["small", "large"])
def test_every_scenario_runs_and_is_reported(tmp_path: Path, names: list[str]) -> None:
    done = bench("--out", tmp_path, *(word for name in names for word in ("--only", name)))
    assert done.returncode == 0, done.stderr
    assert [line.partition(":")[0] for line in done.stderr.splitlines()] == names
    found = json.loads((tmp_path / "bench.json").read_text())
    assert found["failures"] == {}
    assert all(figure["name"] in done.stdout for figure in found["figures"])
    assert (tmp_path / "bench.png").exists()


def test_a_scenario_that_fails_is_reported_with_its_reason_and_the_others_are_measured(tmp_path: Path) -> None:
    planted = """
def fail(bench):
    bench.findings.add("half a scenario", "before it failed", 7)
    raise AssertionError("the reason\\nand more of it")
SCENARIOS["calls"] = fail
"""
    done = bench("--out", tmp_path, "--only", "calls", "--only", "replays", planted=planted)
    assert done.returncode == 1, done.stderr
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert "before it failed 7" in lines
    assert "replays, 16 clients" in lines
    assert "calls: AssertionError: the reason" in lines
    assert "and more of it" in done.stderr
    assert json.loads((tmp_path / "bench.json").read_text())["failures"] == {"calls": "AssertionError: the reason"}


@pytest.mark.parametrize("signum", ["SIGINT", "SIGTERM"])
def test_a_bench_that_is_stopped_prints_what_it_has_measured(tmp_path: Path, signum: str) -> None:
    planted = f"""
def stop(bench):
    bench.findings.add("half a scenario", "before it was stopped", 7)
    os.kill(os.getpid(), signal.{signum})
    signal.pause()
SCENARIOS["calls"] = stop
"""
    done = bench("--out", tmp_path, "--only", "calls", planted=planted)
    assert done.returncode == 1, done.stderr
    assert "before it was stopped  7" in done.stdout
    assert json.loads((tmp_path / "bench.json").read_text())["figures"][0]["value"] == 7
