"""What production images install: exact releases with hashes, the same as the tests run on, audited."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from contextlib import contextmanager
from importlib import metadata
from typing import TYPE_CHECKING

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from deploy.dev.audit import LOCK
from deploy.dev.processes import ROOT
from tests.http_server import Handler, serving

if TYPE_CHECKING:
    from collections.abc import Iterator


def locked() -> dict[str, Requirement]:
    """Return what the lock names for this platform and Python."""
    entries = [Requirement(line.rstrip(" \\")) for line in LOCK.read_text().splitlines() if line[0].isalnum()]
    return {canonicalize_name(each.name): each for each in entries if each.marker is None or each.marker.evaluate()}


def wanted() -> list[Requirement]:
    """Return what the broker itself asks for, without what its tests need."""
    asked = [Requirement(text) for text in metadata.requires("sandbox-broker") or []]
    return [each for each in asked if each.marker is None or each.marker.evaluate({"extra": ""})]


def test_every_dependency_is_locked_at_a_release_that_its_range_allows() -> None:
    assert len(wanted()) > 10
    for requirement in wanted():
        (version,) = locked()[canonicalize_name(requirement.name)].specifier
        assert version.operator == "=="
        assert requirement.specifier.contains(version.version), requirement


def test_every_locked_release_has_hashes() -> None:
    entries = re.split(r"\n(?=[a-z0-9])", LOCK.read_text().strip())
    assert len(entries) >= len(locked())
    assert [entry for entry in entries if not re.search(r"--hash=sha256:[0-9a-f]{64}", entry)] == []


@pytest.mark.parametrize("name", sorted(locked()))
def test_what_is_locked_is_what_these_tests_run_on(name: str) -> None:
    assert str(locked()[name].specifier) == f"=={metadata.version(name)}"


def test_the_lock_names_no_package_registry() -> None:
    assert "://" not in LOCK.read_text()


class _Database(Handler):
    """OSV's query call, which knows one vulnerability."""

    vulnerable: str

    def reply(self) -> None:
        asked = json.loads(self.read_body())
        known = asked["package"]["name"] == self.vulnerable
        self.answer(200, json.dumps({"vulns": [_vulnerability(self.vulnerable)]} if known else {}).encode())


def _vulnerability(name: str) -> dict[str, object]:
    package = {"name": name, "ecosystem": "PyPI"}
    ranges = [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "999"}]}]
    affected = [{"package": package, "ranges": ranges}]
    return {"id": "GHSA-of-a-test", "published": "2026-01-01T00:00:00Z", "summary": "bad", "affected": affected}


@contextmanager
def database(vulnerable: str) -> Iterator[str]:
    """Run a vulnerability database on loopback; yields its URL."""
    handler = type("_", (_Database,), {"vulnerable": vulnerable})
    with serving(handler) as server:
        yield f"http://127.0.0.1:{server.server_port}/v1/query"


def audit(url: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "deploy.dev.audit"]
    return subprocess.run(
        command, cwd=ROOT, env={**os.environ, "OSV_URL": url}, capture_output=True, text=True, check=False
    )


def test_the_audit_fails_and_names_the_release_when_one_is_known_to_be_vulnerable() -> None:
    with database("gunicorn") as url:
        result = audit(url)
    assert result.returncode == 1, result.stderr
    assert "gunicorn" in result.stdout
    assert "GHSA-of-a-test, fixed by 999" in result.stdout


def test_the_audit_passes_when_nothing_is_known_of_what_is_locked() -> None:
    with database("not-ours") as url:
        result = audit(url)
    assert result.returncode == 0, result.stderr
    assert result.stdout == f"{len(locked())} packages audited, 0 known vulnerabilities\n"


def test_the_audit_is_skipped_with_the_reason_when_the_database_is_out_of_reach() -> None:
    with database("not-ours") as url:
        pass
    result = audit(url)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("audit skipped: ")
    assert "Connection" in result.stdout
