"""`python -m deploy.dev.sbom`: list what the image installs, with its licences, and check these.

The list (an SBOM in CycloneDX's format) has the packages of deploy/requirements.txt, and which of them needs which. It
has no development tools. For the image, deploy/Dockerfile makes such a list of what the build has really installed.

The exit code is 0 if every licence is accepted, 1 if one is unknown or not accepted, and 2 if the list cannot be made.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import venv
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from deploy.dev.audit import LOCK
from deploy.dev.processes import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

OUTPUT = ROOT / ".cache" / "sbom" / "sandbox-broker.cdx.json"
ACCEPTED = frozenset(
    {
        "Apache-2.0",
        "BSD-2-Clause",
        "BSD-3-Clause",
        "MIT",
        "MIT-0",
        "PSF-2.0",
        # These names do not say which version. Each version asks for the same as those above.
        "License :: OSI Approved :: Apache Software License",
        "License :: OSI Approved :: BSD License",
    }
)
"""What any package may have. To pass such a package on, keep its notices. They ask for nothing more."""
_MPL = "it asks for the source of its own files, which every index of Python packages has; we change none of them"
UNKNOWN = "unknown"
"""In place of a licence, if the package names none in a form that the tool reads."""
EXCEPTIONS: Mapping[tuple[str, str], str] = {
    ("certifi", "MPL-2.0"): _MPL,
    ("certifi", "License :: OSI Approved :: Mozilla Public License 2.0 (MPL 2.0)"): _MPL,
    ("orjson", "MPL-2.0"): _MPL,
    ("protobuf", UNKNOWN): "its file LICENSE is BSD-3-Clause, with a sentence that makes no claim on generated code",
    ("pygal", "LGPL-3.0-or-later"): (
        "it asks that users can change it; they can, because it is a directory of readable Python files; we change "
        "none of them"
    ),
}
"""What one package alone may have: (package, licence or UNKNOWN) and the reason."""


class CannotList(Exception):
    """The list cannot be made. The text says why, and what to do."""


def main(arguments: list[str] | None = None) -> int:
    """Write the list and print one line for each fault in it; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m deploy.dev.sbom")
    parser.add_argument("--requirements", type=Path, default=LOCK, help="what to list, by exact versions")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    asked = parser.parse_args(arguments)
    try:
        sbom = listed(asked.requirements, asked.output)
    except CannotList as error:
        print(f"sbom failed: {error}", file=sys.stderr)
        return 2
    found = faults(sbom)
    for fault in found:
        print(fault)
    if found:
        print("Read the licence. If it may be used, add it to EXCEPTIONS in deploy/dev/sbom.py, with the reason.")
        print("If none is known, but the package's files have one: its name there is UNKNOWN.")
        print("Otherwise choose another package.")
    print(f"Packages: {len(sbom['components'])}. Faults in their licences: {len(found)}. List: {asked.output}")
    return 1 if found else 0


def listed(requirements: Path, output: Path) -> dict[str, Any]:
    """Write the list of the installed packages that `requirements` names to `output`, and return it.

    Raises CannotList if one of them is not installed in the version that is named.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    tool = Path(sys.executable).with_name("cyclonedx-py")
    # The build of the image holds the list to CycloneDX's schema, which takes seconds.
    command = [str(tool), "environment", "--output-reproducible", "--no-validate"]
    command += ["--pyproject", str(ROOT / "pyproject.toml"), "--output-file", str(output)]
    with tempfile.TemporaryDirectory() as directory:
        environment = Path(directory) / "environment"
        # The tool reads a whole environment. This one has the same packages as the image, and needs no network.
        venv.create(environment, symlinks=True)
        (site,) = environment.glob("lib/python*/site-packages")
        for installed in _installed(requirements):
            (site / installed.name).symlink_to(installed)
        made = subprocess.run([*command, str(environment)], capture_output=True, text=True, check=False)
    if made.returncode != 0:
        raise CannotList(made.stderr.strip())
    sbom: dict[str, Any] = json.loads(output.read_text())
    return sbom


def faults(sbom: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each package of `sbom` whose licence is unknown or not accepted."""
    found = []
    for package in sbom["components"]:
        name = canonicalize_name(package["name"])
        licences = list(_licences(package)) or [UNKNOWN]
        refused = [each for each in licences if each not in ACCEPTED and (name, each) not in EXCEPTIONS]
        for each in refused:
            fault = "no licence is known" if each == UNKNOWN else f"the licence {each!r} is not accepted"
            found.append(f"{name} {package['version']}: {fault}")
    return found


def _licences(package: Mapping[str, Any]) -> Iterator[str]:
    """Yield every licence that the package names, also each one of a choice."""
    for each in package.get("licenses", ()):
        if "expression" in each:
            # Source: SPDX specification 2.3, annex D, for the words of an expression.
            words = re.split(r"\s+(?:AND|OR|WITH)\s+|[()]", each["expression"])
            yield from (word.strip() for word in words if word.strip())
        else:
            yield each["license"].get("id") or each["license"]["name"]


def _installed(requirements: Path) -> Iterator[Path]:
    """Yield the directory with the metadata of each package that is asked for on this machine."""
    for line in requirements.read_text().splitlines():
        if not line[:1].isalnum():
            continue  # a hash, which belongs to the line before
        asked = Requirement(line.rstrip(" \\"))
        if asked.marker is not None and not asked.marker.evaluate():
            continue
        try:
            found = metadata.distribution(asked.name)
        except metadata.PackageNotFoundError:
            raise CannotList(f"{asked} is not installed. Run make .venv/installed.") from None
        if found.version not in asked.specifier:
            raise CannotList(f"{asked} is locked, but {found.version} is installed. Run make .venv/installed.")
        yield Path(str(found.locate_file(""))) / _metadata_directory(found)


def _metadata_directory(installed: metadata.Distribution) -> str:
    """Return the name of the directory that holds the METADATA of a package."""
    (name,) = {file.parts[0] for file in installed.files or () if file.match("*.dist-info/METADATA")}
    return name


if __name__ == "__main__":
    sys.exit(main())
