"""Real processes with a wrong clock: a small library, built once a session, is preloaded into them."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.backends import installed


def build(directory: Path) -> Path:
    """Build the library and return its path. Without a compiler skip the test, or fail it in CI."""
    library = directory / "wrong_clock.so"
    if not library.exists():
        compiler = installed("cc", package="gcc libc6-dev")
        source = Path(__file__).with_suffix(".c")
        subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(source), "-ldl"], check=True)
    return library


def ahead(seconds: int, library: Path) -> dict[str, str]:
    """Return the environment of a process whose clock is `seconds` ahead."""
    return {"LD_PRELOAD": str(library), "WRONG_CLOCK_SEC": str(seconds)}
