"""The live API against its own description. Schemathesis sends what the description allows, and what it forbids."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from deploy.dev.processes import ROOT
from tests.e2e.stack import ADMIN_TOKEN, TRACK_TOKEN

if TYPE_CHECKING:
    from pathlib import Path

    from tests.e2e.stack import Stack

SETTINGS = {
    "POOL": "200",
    "RATE_LIMIT_RPS": "100000",
    "RATE_LIMIT_BURST": "100000",
    "MOCK_CSP_DELETE_SECONDS": "0",
    # A late answer of a busy machine is no fault here.
    "REQUEST_DEADLINE_SEC": "30",
}
CASES_OF_A_CALL = 40


@pytest.mark.timeout(600)
def test_no_answer_is_a_server_error_or_outside_the_description(stack: Stack, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    ended = subprocess.run(
        [
            sys.executable,
            "-m",
            "schemathesis.cli",
            f"--config-file={ROOT / 'tests' / 'e2e' / 'schemathesis.toml'}",
            "run",
            f"{stack.api_url}/v1/openapi.json",
            "--checks=all",
            "--phases=examples,coverage,fuzzing,stateful",
            f"--max-examples={CASES_OF_A_CALL}",
            "--generation-deterministic",
            "--continue-on-failure",
            "--workers=1",
            "--no-color",
            f"--report-json-path={report}",
        ],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "TRACK_TOKEN": TRACK_TOKEN, "ADMIN_TOKEN": ADMIN_TOKEN},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    told: dict[str, Any] = json.loads(report.read_text())
    assert told["operations"]["tested"] == told["operations"]["total"] > 0
    assert {phase["status"] for phase in told["phases"].values()} == {"success"}
    assert told["test_cases"]["generated"] > 2000
    assert [line for line in stack.records("api") if line["level"] == "error"] == []
