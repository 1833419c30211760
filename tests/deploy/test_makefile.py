"""What `make` runs one after another: a step that fails does not hide what the others find, and fails the whole."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

from deploy.dev import programs
from deploy.dev.plan import make_plan
from deploy.dev.processes import ROOT
from tests.deploy.environments import longest_task_sec

if TYPE_CHECKING:
    from pathlib import Path

LINTERS = ("ruff", "mypy", "lint-imports", "hadolint", "check-jsonschema", "cfn-lint")


@pytest.mark.parametrize(
    ("target", "failing", "last"),
    [
        ("lint", "ruff check", "-m deploy.dev.openapi_lint"),
        ("lint", "deploy.dev.kubernetes_lint", "-m deploy.dev.openapi_lint"),
        ("coverage", "coverage run", "-m coverage report"),
        ("soak", "tests.long.history", "-m tests.long.memory"),
        ("soak", "tests.long.memory", "-m tests.long.memory"),
    ],
)
def test_a_step_that_fails_is_followed_by_the_others_and_fails_the_whole(
    tmp_path: Path, target: str, failing: str, last: str
) -> None:
    steps = tmp_path / "steps"
    stand_in = f"""#!/bin/sh
echo "$(basename "$0") $*" >> {steps}
case "$(basename "$0") $*" in *"{failing}"*) exit 1; esac
"""
    for name in ("python", *LINTERS):
        (tmp_path / name).write_text(stand_in)
        (tmp_path / name).chmod(0o755)
    made = ["make", "-o", ".venv/installed", "-o", "dynamodb-local", target, f"bin={tmp_path}"]
    done = subprocess.run(made, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode != 0, done.stdout
    ran = steps.read_text().splitlines()
    assert any(failing in step for step in ran)
    assert last in ran[-1]


@pytest.mark.parametrize("settings", [{}, {"CSP_TIMEOUT_READ_SEC": "60"}], ids=["by default", "with a slow provider"])
def test_a_worker_of_threads_has_as_long_to_stop_as_its_longest_task_may_take(
    tmp_path: Path, settings: dict[str, str]
) -> None:
    plan = make_plan(settings)
    deletions, webhooks = (longest_task_sec(plan.env, [queue]) for queue in ("deletions", "webhooks"))
    assert programs.worker_deletions(plan, tmp_path).stop_limit_sec > deletions
    assert programs.worker_webhooks(plan, tmp_path).stop_limit_sec > webhooks
