"""`python -m deploy.dev.openapi_lint`: lint the API's description with Redocly's linter, fetched once from npm.

Exits as the linter does, and with 0, which is said, where there is no Node.js that it runs on.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

from deploy.dev.processes import ROOT

_PACKAGE = "@redocly/cli@2.77.0"
_OLDEST_NODE = (20, 19)
_HOME = ROOT / ".cache" / "redocly-cli-2.77.0"


def main() -> int:
    """Lint `deploy/openapi.json`; returns the exit code. Raises `CalledProcessError` if the linter cannot be had."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None or _version_of(node) < _OLDEST_NODE:
        print("redocly: skipped, it needs npm and Node.js 20.19 or newer")
        return 0
    linter = _HOME / "node_modules" / ".bin" / "redocly"
    if not linter.exists():
        options = ("--ignore-scripts", "--no-audit", "--no-fund", "--no-save", "--silent", "--prefix", str(_HOME))
        subprocess.run([npm, "install", *options, _PACKAGE], check=True)
    command = [str(linter), "lint", "--config", str(ROOT / "deploy" / "dev" / "redocly.yaml"), "--format=stylish"]
    # It would tell its makers how it is used, and look for newer releases.
    quiet = {"REDOCLY_TELEMETRY": "off", "REDOCLY_SUPPRESS_UPDATE_NOTICE": "true"}
    return subprocess.run([*command, "deploy/openapi.json"], cwd=ROOT, env=os.environ | quiet, check=False).returncode


def _version_of(node: str) -> tuple[int, ...]:
    told = subprocess.run([node, "--version"], capture_output=True, text=True, check=True).stdout
    return tuple(int(part) for part in told.strip().removeprefix("v").split(".")[:2])


if __name__ == "__main__":
    try:
        sys.exit(main())
    except subprocess.CalledProcessError as failed:
        sys.exit(f"redocly: could not be fetched from npm: {failed}")
