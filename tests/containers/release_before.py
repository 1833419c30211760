"""The release before this one, as its own commit has it: what an upgrade begins with, and what a rollback returns to."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

from deploy.dev.processes import ROOT

if TYPE_CHECKING:
    from pathlib import Path

_WITHOUT_TAGS = "5e9ccd67a37a84da7cb82703a8508c3e29c482ee"
"""Release 1, the one without a history: the commit that filled `tests/upgrade/release_1`. It has no tag."""


class NoSuchRelease(Exception):
    """This checkout does not have the release before; the message says what to do."""


def name() -> str:
    """Return the newest tag before this commit, or the commit of release 1 if there is none."""
    found = _git("describe", "--tags", "--abbrev=0", "HEAD^")
    return found.stdout.strip() if found.returncode == 0 else _WITHOUT_TAGS


def unpack(directory: Path) -> None:
    """Write the tree of the release before into a directory. Raises `NoSuchRelease`."""
    release = name()
    if _git("cat-file", "-e", f"{release}^{{tree}}").returncode != 0:
        raise NoSuchRelease(f"{release} is not in this checkout, which may be shallow: git fetch --unshallow --tags")
    archive = directory.with_suffix(".tar")
    done = _git("archive", "--format=tar", "--output", str(archive), release)
    assert done.returncode == 0, done.stderr
    directory.mkdir()
    subprocess.run(["tar", "--extract", "--file", str(archive), "--directory", str(directory)], check=True)
    archive.unlink()


def _git(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False)
