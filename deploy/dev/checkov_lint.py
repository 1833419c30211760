"""`python -m deploy.dev.checkov_lint`: look for bad practice in the image and in what is deployed, by checkov.

`checkov-exceptions.yaml` has what we leave as it is, each with its reason. Any other finding fails the lint, and so
does an exception that is no longer needed. checkov reads the overlays as kubectl makes them. Once it is installed, it
needs no network.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from deploy.dev import kubernetes_lint
from deploy.dev.processes import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

FRAMEWORKS = ("cloudformation", "dockerfile", "kubernetes", "terraform")
"""What it checks, in its own words."""
_VERSION = "3.3.30"
_HOME = ROOT / ".cache" / f"checkov-{_VERSION}"
_IS_INSTALLED = _HOME / "installed"
_LIMIT_SEC = 300
_EXCEPTIONS_FILE = Path(__file__).with_name("checkov-exceptions.yaml")


class NotInstalled(Exception):
    """checkov, or kubectl, cannot be had. The text says why."""


class Failed(Exception):
    """checkov ended with an error. The text is checkov's."""


def main() -> int:
    """Print each finding that has no exception, then the totals; return the exit code."""
    try:
        checkov, kubectl = _install(), _find_kubectl()
    except NotInstalled as reason:
        may_be_skipped = os.environ.get("CI") != "true"
        print(f"checkov: {'skipped, because' if may_be_skipped else 'CI=true asks for it, but'} {reason}")
        return 0 if may_be_skipped else 1
    try:
        with tempfile.TemporaryDirectory() as scratch:
            _collect(Path(scratch), kubectl)
            reports = _run(checkov, Path(scratch))
    except (Failed, kubernetes_lint.Refused) as error:
        print(f"checkov: {error}")
        return 1
    exceptions = yaml.safe_load(_EXCEPTIONS_FILE.read_text())
    faults = list(find_faults(reports, exceptions))
    for fault in faults:
        print(fault)
    passed = sum(each["summary"]["passed"] for each in reports)
    print(f"checkov: {passed} checks passed, {len(faults)} faults found, {len(exceptions)} kinds of exceptions")
    return 1 if faults else 0


def find_faults(reports: Iterable[Mapping[str, Any]], exceptions: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Yield each finding without an exception, each exception without a finding, and each framework that found nothing.

    An exception is `{check: {finds, resources, reason}}`; `resources` are patterns as those of a shell.
    """
    summaries = {each["check_type"]: each["summary"] for each in reports}
    for framework in FRAMEWORKS:
        summary = summaries.get(framework, {"passed": 0, "parsing_errors": 0, "skipped": 0})
        if not summary["passed"] or summary["parsing_errors"]:
            yield f"{framework}: checkov could not read the files"
        if summary["skipped"]:
            yield f"{framework}: write the exceptions into {_EXCEPTIONS_FILE.relative_to(ROOT)}, not beside a resource"
    unused = {(check, pattern) for check, each in exceptions.items() for pattern in each["resources"]}
    for report in reports:
        for found in report["results"]["failed_checks"]:
            check, resource = found["check_id"], found["resource"]
            patterns = exceptions.get(check, {"resources": []})["resources"]
            matching = {(check, pattern) for pattern in patterns if fnmatchcase(resource, pattern)}
            if not matching:
                yield f"{resource}: {check} {found['check_name']}"
            unused -= matching
    for check, pattern in sorted(unused):
        yield f"{pattern}: {check} is not found there. Remove the exception"


def _install() -> Path:
    """Return the program, after installing it. Raises NotInstalled.

    It has an environment of its own, because it needs old releases of our packages.
    """
    program = _HOME / "bin" / "checkov"
    if _IS_INSTALLED.exists():
        return program
    uv = Path(sys.executable).with_name("uv")
    for step in (
        ("venv", "--quiet", "--clear", "--python", sys.executable, str(_HOME)),
        ("pip", "install", "--quiet", "--python", str(_HOME), f"checkov=={_VERSION}"),
    ):
        done = subprocess.run([str(uv), *step], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise NotInstalled(f"uv {step[0]} failed: {done.stderr.strip()}")
    _IS_INSTALLED.touch()
    return program


def _find_kubectl() -> str:
    path = kubernetes_lint.find_kubectl()
    if path is None:
        raise NotInstalled("kubectl is missing")
    return path


def _collect(directory: Path, kubectl: str) -> None:
    """Copy what checkov reads, the overlays as kubectl makes them. The base alone is not installed."""
    for name in ("cloudformation", "ecs", "iam", "terraform"):
        shutil.copytree(ROOT / "deploy" / name, directory / name)
    shutil.copy(ROOT / "deploy" / "Dockerfile", directory)
    for overlay in sorted((kubernetes_lint.MANIFESTS / "overlays").iterdir()):
        made = yaml.safe_dump_all(kubernetes_lint.kustomize(kubectl, overlay))
        (directory / f"kubernetes-{overlay.name}.yaml").write_text(made)


def _run(checkov: Path, directory: Path) -> list[dict[str, Any]]:
    """Return checkov's report of each framework."""
    command = [str(checkov), "--directory", ".", "--framework", *FRAMEWORKS, "--output", "json"]
    command += ["--skip-download", "--quiet", "--compact", "--soft-fail"]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False, timeout=_LIMIT_SEC)
    if done.returncode != 0:
        raise Failed(f"it ended with {done.returncode}: {done.stderr.strip()}")
    reports = json.loads(done.stdout)
    return reports if isinstance(reports, list) else [reports]


if __name__ == "__main__":
    sys.exit(main())
