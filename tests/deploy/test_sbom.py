"""The list of what the image installs: complete, and without a licence that nobody has accepted."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest
from packaging.utils import canonicalize_name

from deploy.dev import sbom
from deploy.dev.audit import LOCK
from deploy.dev.processes import ROOT
from tests.deploy.test_lock import locked

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return the list of what is locked."""
    return sbom.listed(LOCK, tmp_path_factory.mktemp("sbom") / "made" / "sbom.cdx.json")


def install(site: Path, name: str, licence: str) -> None:
    """Put a package into `site` that says `licence` about itself."""
    information = site / f"{name}-1.0.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text(f"Metadata-Version: 2.4\nName: {name}\nVersion: 1.0\n{licence}")
    (information / "RECORD").write_text(f"{information.name}/METADATA,,\n{information.name}/RECORD,,\n")


def test_the_list_has_exactly_what_is_locked_and_no_development_tool(made: dict[str, Any]) -> None:
    listed = {canonicalize_name(each["name"]): each["version"] for each in made["components"]}
    assert listed == {name: str(each.specifier).removeprefix("==") for name, each in locked().items()}
    assert "pytest" not in listed


def test_the_list_says_which_package_needs_which(made: dict[str, Any]) -> None:
    needs = {each["ref"]: each.get("dependsOn", []) for each in made["dependencies"]}

    def names(ref: str) -> set[str]:
        return {canonicalize_name(each.partition("==")[0]) for each in needs[ref]}

    assert {"flask", "celery", "boto3"} <= names("root-component")
    (flask,) = (ref for ref in needs if ref.startswith("Flask=="))
    assert {"werkzeug", "jinja2"} <= names(flask)


def test_every_licence_of_what_is_locked_is_known_and_accepted(made: dict[str, Any]) -> None:
    assert sbom.faults(made) == []


def test_every_licence_that_is_accepted_is_one_that_a_package_has(
    made: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sbom, "ACCEPTED", frozenset())
    monkeypatch.setattr(sbom, "EXCEPTIONS", {})
    refused = [
        re.match(r"(\S+) \S+: (?:the licence '(.*)' is not accepted|no licence)", each) for each in sbom.faults(made)
    ]
    needed = [(each[1], each[2] or sbom.UNKNOWN) for each in refused if each]
    monkeypatch.undo()
    assert {licence for _, licence in needed} == sbom.ACCEPTED | {licence for _, licence in sbom.EXCEPTIONS}
    assert set(sbom.EXCEPTIONS) <= set(needed)


@pytest.mark.parametrize(
    ("licence", "fault"),
    [
        ("", "planted 1.0: no licence is known"),
        ("License-Expression: GPL-3.0-only\n", "planted 1.0: the licence 'GPL-3.0-only' is not accepted"),
        ("License-Expression: MIT AND (BSD-3-Clause OR GPL-3.0-only)\n", "the licence 'GPL-3.0-only' is not accepted"),
        ("License: ask our lawyers\n", "planted 1.0: no licence is known"),
        ("Classifier: License :: Other/Proprietary License\n", "planted 1.0: "),
        ("License-Expression: MPL-2.0\n", "the licence 'MPL-2.0' is not accepted"),
        ("License-Expression: MIT\n", None),
        ("Classifier: License :: OSI Approved :: BSD License\n", None),
    ],
)
def test_a_package_whose_licence_is_unknown_or_not_accepted_is_named_and_fails_the_check(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    licence: str,
    fault: str | None,
) -> None:
    install(tmp_path, "planted", licence)
    monkeypatch.syspath_prepend(tmp_path)
    requirements, output = tmp_path / "requirements.txt", tmp_path / "sbom.cdx.json"
    requirements.write_text("planted==1.0 \\\n    --hash=sha256:00\n")
    code = sbom.main(["--requirements", str(requirements), "--output", str(output)])
    said = capsys.readouterr().out
    assert code == (0 if fault is None else 1)
    assert said.endswith(f"Packages: 1. Faults in their licences: {code}. List: {output}\n")
    assert fault is None or fault in said
    assert [each["name"] for each in json.loads(output.read_text())["components"]] == ["planted"]


def test_a_package_without_a_licence_is_accepted_by_its_name_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sbom, "EXCEPTIONS", {("planted", sbom.UNKNOWN): "its file LICENSE is that of MIT"})
    packages = [{"name": name, "version": "1.0"} for name in ("planted", "other")]
    assert sbom.faults({"components": packages}) == ["other 1.0: no licence is known"]


@pytest.mark.parametrize(
    ("requirement", "reason"),
    [("missing-package==1.0", "is not installed"), ("planted==2.0", "planted==2.0 is locked, but 1.0 is installed")],
)
def test_no_list_is_made_of_what_is_not_installed_as_locked(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    requirement: str,
    reason: str,
) -> None:
    install(tmp_path, "planted", "License: MIT\n")
    monkeypatch.syspath_prepend(tmp_path)
    requirements = tmp_path / "requirements.txt"
    requirements.write_text(requirement)
    assert sbom.main(["--requirements", str(requirements), "--output", str(tmp_path / "sbom.cdx.json")]) == 2
    assert reason in capsys.readouterr().err
    assert not (tmp_path / "sbom.cdx.json").exists()


def test_the_image_gets_a_list_of_the_environment_that_it_runs() -> None:
    dockerfile = (ROOT / "deploy" / "Dockerfile").read_text()
    assert re.search(
        r"^RUN cyclonedx-py environment .* --output-file sbom\.cdx\.json /opt/broker$", dockerfile, re.MULTILINE
    )
    (of_environment,) = re.findall(r"^COPY --from=(\w+) /opt/broker /opt/broker$", dockerfile, re.MULTILINE)
    (of_list,) = re.findall(r"^COPY --from=(\w+) /build/sbom\.cdx\.json \./$", dockerfile, re.MULTILINE)
    assert of_list == of_environment
    assert dockerfile.index("\nWORKDIR /app\n") < dockerfile.index("/build/sbom.cdx.json")
