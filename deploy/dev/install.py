"""`python -m deploy.dev.install`: install the locked packages, and this one, into the interpreter that runs this.

Needs the standard library alone: it runs before anything is installed. pip's own output is shown only if it fails for
another reason than the network.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys

from deploy.dev.processes import ROOT

_STEPS = (("--require-hashes", "-r", "deploy/requirements.txt"), ("-e", ".[dev]"))
_NO_NETWORK = re.compile(
    r"NewConnectionError|Failed to establish a new connection|Temporary failure in name resolution|Name or service not "
    r"known|Network is unreachable|ConnectTimeout|Read timed out|ProxyError|Connection refused|from versions: none",
    re.IGNORECASE,
)
# A connection that failed and was repeated leaves its words in the output of another failure.
_OTHER_FAULT = re.compile(r"^ERROR: (?!Could not |No matching distribution)", re.MULTILINE)


def main() -> int:
    """Install; print one line if the package index cannot be reached; return the exit code."""
    print("Installing into .venv: about two minutes, and again only when the requirements change.", flush=True)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"]
    for step in _STEPS:
        done = subprocess.run(
            [*pip, *step],
            cwd=ROOT,
            env=os.environ | {"PIP_ROOT_USER_ACTION": "ignore"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if done.returncode != 0 and _NO_NETWORK.search(done.stdout) and not _OTHER_FAULT.search(done.stdout):
            print(
                "The Python packages cannot be fetched: the package index does not answer, or lacks them. "
                "Connect to a network (or set PIP_INDEX_URL to an index that answers), then run make again.",
                file=sys.stderr,
            )
            return 1
        print(done.stdout, end="", file=sys.stderr)
        if done.returncode != 0:
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
