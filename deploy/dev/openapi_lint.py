"""`python -m deploy.dev.openapi_lint`: lint the API's description with Redocly's linter, fetched once from npm.

Exits with the linter's code. Without a Node.js that can run it, the output says so and the code is 0.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

from deploy.dev import npm
from deploy.dev.processes import ROOT

_PACKAGE = "@redocly/cli@2.77.0"
_OLDEST_NODE = (20, 19)
_HOME = ROOT / ".cache" / "redocly-cli-2.77.0"


def main() -> int:
    """Lint `deploy/openapi.json`; return the exit code."""
    node, fetcher = shutil.which("node"), shutil.which("npm")
    if node is None or fetcher is None or _version_of(node) < _OLDEST_NODE:
        print("redocly: skipped, it needs npm and Node.js 20.19 or newer")
        return 0
    linter = _HOME / "node_modules" / ".bin" / "redocly"
    if not linter.exists():
        try:
            npm.fetch(fetcher, _PACKAGE, _HOME)
        except npm.FetchFailed as failed:
            print(f"redocly: {failed}, then run make lint again" if failed.is_offline else f"redocly: {failed}")
            return 1
    command = [str(linter), "lint", "--config", str(ROOT / "deploy" / "dev" / "redocly.yaml"), "--format=stylish"]
    # By default it reports its use to its makers, and looks for newer releases.
    quiet = {"REDOCLY_TELEMETRY": "off", "REDOCLY_SUPPRESS_UPDATE_NOTICE": "true"}
    return subprocess.run([*command, "deploy/openapi.json"], cwd=ROOT, env=os.environ | quiet, check=False).returncode


def _version_of(node: str) -> tuple[int, ...]:
    output = subprocess.run([node, "--version"], capture_output=True, text=True, check=True).stdout
    return tuple(int(part) for part in output.strip().removeprefix("v").split(".")[:2])


if __name__ == "__main__":
    sys.exit(main())
