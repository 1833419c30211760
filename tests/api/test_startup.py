"""How every process ends when its settings are wrong."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from deploy.dev.processes import ROOT

if TYPE_CHECKING:
    from pathlib import Path

_CELERY = ("celery", "-A", "broker_worker.celery_app")
COMMANDS = {
    "api": ("gunicorn", "-c", "deploy/gunicorn.conf.py", "broker_api.wsgi:app"),
    "console": ("gunicorn", "-c", "deploy/gunicorn-console.conf.py", "broker_api.console.wsgi:app"),
    "worker": (*_CELERY, "worker"),
    "beat": (*_CELERY, "beat"),
    "broker": ("broker_common.cli", "table", "create"),
}
ENVIRONMENT = {
    "BROKER_ENV": "development",
    "BROKER_API_TOKEN": "track-token",
    "BROKER_ADMIN_TOKEN": "admin-token",
    "CSP_BASE_URL": "http://127.0.0.1:1",
    "CSP_API_TOKEN": "provider-token",
}


def start(name: str, scratch: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    machine = {each: os.environ[each] for each in ("PATH", "HOME", "LANG") if each in os.environ}
    return subprocess.run(
        [sys.executable, "-m", *COMMANDS[name]],
        cwd=ROOT,
        env=machine | ENVIRONMENT | {"TMPDIR": str(scratch)} | settings,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.mark.parametrize("name", COMMANDS)
def test_a_malformed_address_ends_every_process_with_2_and_is_not_told(name: str, tmp_path: Path) -> None:
    ended = start(
        name,
        tmp_path,
        REDIS_URL="redis://:s3cr3t/word@127.0.0.1:6379/0",
        DDB_ENDPOINT_URL="http://127.0.0.1:abc",
        CSP_BASE_URL="http://[::1",
    )
    assert ended.returncode == 2, ended.stderr
    output = ended.stdout + ended.stderr
    named = [line.split(":", 1)[0] for line in output.splitlines()]
    assert named == ["CSP_BASE_URL", "DDB_ENDPOINT_URL", "REDIS_URL"]
    assert "s3cr3t" not in output


def test_a_number_of_processes_that_is_none_is_refused_by_name(tmp_path: Path) -> None:
    ended = start("api", tmp_path, API_WORKERS="many")
    assert (ended.returncode, ended.stderr) == (2, "API_WORKERS: Not a valid integer.\n")


def test_a_file_of_named_tokens_with_a_mistake_ends_the_api_with_2_and_tells_the_line(tmp_path: Path) -> None:
    file = tmp_path / "tokens.toml"
    file.write_text('[[token]]\nname = "anna"\nsha256 = "s3cr3t"\nroles = ["viewer"]\n')
    ended = start("api", tmp_path, BROKER_TOKENS_FILE=str(file))
    told = "BROKER_TOKENS_FILE: line 3: sha256: Must be 64 hexadecimal digits.\n"
    assert (ended.returncode, ended.stderr) == (2, told)
