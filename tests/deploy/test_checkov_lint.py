"""What `make lint` makes of checkov's findings and of our exceptions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import yaml

from deploy.dev import checkov_lint
from deploy.dev.checkov_lint import FRAMEWORKS, NotInstalled, find_faults
from deploy.dev.processes import ROOT

if TYPE_CHECKING:
    from pathlib import Path

EXCEPTIONS = {"CKV_1": {"finds": "A rule", "resources": ["Table.*"], "reason": "a reason"}}


def reports(*failed: tuple[str, str], **summary: int) -> list[dict[str, Any]]:
    """Return a report of each framework; the first has these findings, as (check, resource), and this summary."""
    found = [{"check_id": check, "check_name": "A rule", "resource": resource} for check, resource in failed]
    empty = {"passed": 3, "skipped": 0, "parsing_errors": 0}
    others = [{"check_type": name, "summary": empty, "results": {"failed_checks": []}} for name in FRAMEWORKS[1:]]
    return [{"check_type": FRAMEWORKS[0], "summary": empty | summary, "results": {"failed_checks": found}}, *others]


def test_a_finding_with_an_exception_is_no_fault() -> None:
    assert list(find_faults(reports(("CKV_1", "Table.one"), ("CKV_1", "Table.two")), EXCEPTIONS)) == []


@pytest.mark.parametrize("found", [("CKV_2", "Table.one"), ("CKV_1", "Queue.one")])
def test_a_finding_without_an_exception_is_a_fault(found: tuple[str, str]) -> None:
    faults = list(find_faults(reports(("CKV_1", "Table.one"), found), EXCEPTIONS))
    assert faults == [f"{found[1]}: {found[0]} A rule"]


def test_an_exception_that_is_no_longer_needed_is_a_fault() -> None:
    assert list(find_faults(reports(), EXCEPTIONS)) == ["Table.*: CKV_1 is not found there. Remove the exception"]


def test_an_error_of_checkov_is_shown(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "checkov"
    broken.write_text("#!/bin/sh\necho 'no rule is left' >&2\nexit 3\n")
    broken.chmod(0o700)
    monkeypatch.setattr(checkov_lint, "_install", lambda: broken)
    assert checkov_lint.main() == 1
    assert capsys.readouterr().out == "checkov: it ended with 3: no rule is left\n"


@pytest.mark.parametrize("summary", [{"passed": 0}, {"parsing_errors": 1}])
def test_files_that_checkov_does_not_read_are_a_fault(summary: dict[str, int]) -> None:
    assert list(find_faults(reports(**summary), {})) == [f"{FRAMEWORKS[0]}: checkov could not read the files"]


def test_a_framework_without_a_report_is_a_fault() -> None:
    assert list(find_faults(reports()[:-1], {})) == [f"{FRAMEWORKS[-1]}: checkov could not read the files"]


def test_an_exception_beside_a_resource_is_a_fault() -> None:
    (fault,) = find_faults(reports(skipped=1), {})
    assert fault.endswith("checkov-exceptions.yaml, not beside a resource")


def test_every_exception_has_a_title_resources_and_a_reason() -> None:
    exceptions = yaml.safe_load((ROOT / "deploy" / "dev" / "checkov-exceptions.yaml").read_text())
    assert all(set(each) == {"finds", "resources", "reason"} and all(each.values()) for each in exceptions.values())


@pytest.mark.parametrize(("ci", "code"), [("true", 1), ("", 0)], ids=["in CI", "elsewhere"])
def test_without_checkov_the_linter_says_so_and_fails_in_ci(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], ci: str, code: int
) -> None:
    def refuse() -> None:
        raise NotInstalled("no network")

    monkeypatch.setenv("CI", ci)
    monkeypatch.setattr(checkov_lint, "_install", refuse)
    assert checkov_lint.main() == code
    assert "no network" in capsys.readouterr().out
