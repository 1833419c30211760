"""The linter of the API's description, where it cannot run; where it can, `make lint` runs it."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from deploy.dev.processes import ROOT

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("version", [None, "v18.20.4"])
def test_without_a_node_that_it_runs_on_the_linter_says_so_and_passes(tmp_path: Path, version: str | None) -> None:
    if version is not None:
        for name in ("node", "npm"):
            (tmp_path / name).write_text(f"#!/bin/sh\necho {version}\n")
            (tmp_path / name).chmod(0o755)
    command = [sys.executable, "-m", "deploy.dev.openapi_lint"]
    ended = subprocess.run(command, cwd=ROOT, env={"PATH": str(tmp_path)}, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout == "redocly: skipped, it needs npm and Node.js 20.19 or newer\n"
