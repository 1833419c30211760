"""What Flower shows of jobs: readable names, arguments and results, and no secret."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import requests

from deploy.dev.processes import wait_until
from tests.e2e.stack import ADMIN_TOKEN, TRACK_TOKEN, Stack

if TYPE_CHECKING:
    from pathlib import Path


def test_flower_shows_jobs_by_name_with_arguments_and_results(tmp_path: Path) -> None:
    settings = {"FLOWER_UNAUTHENTICATED_API": "true", "MOCK_CSP_DELETE_SECONDS": "0.05"}
    with Stack(tmp_path, settings, with_flower=True) as stack:
        stack.run_job("sync", json={"force": True})
        sandbox = stack.as_track("seen", "POST", "/allocate").json()
        stack.as_track("seen", "POST", f"/sandboxes/{sandbox['sandbox_id']}/mark-for-deletion")
        cleanup = stack.run_job("cleanup")

        def tasks() -> dict[str, dict[str, Any]]:
            found = requests.get(f"{stack.plan.flower_url}/api/tasks", timeout=10).json()
            return {task["name"]: task for task in found.values() if task["state"] == "SUCCESS"}

        names = {"broker.sync", "broker.cleanup", "broker.delete_sandbox"}
        assert wait_until(lambda: tasks().keys() >= names, 20), tasks()
        seen = tasks()
        assert "'synced': 20" in seen["broker.sync"]["result"]
        assert "'force': True" in seen["broker.sync"]["kwargs"]
        assert sandbox["sandbox_id"] in seen["broker.delete_sandbox"]["kwargs"]
        assert cleanup["job_id"] in seen["broker.delete_sandbox"]["kwargs"]
        assert "'deleted'" in seen["broker.delete_sandbox"]["result"]
        shown = requests.get(f"{stack.plan.flower_url}/api/tasks", timeout=10).text
        for secret in (TRACK_TOKEN, ADMIN_TOKEN, stack.plan.env["CSP_API_TOKEN"]):
            assert secret not in shown
