"""`python -m tests.long.memory`: say how much each process grew under load. Exits with 1 if one did not stay flat."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tests.long.memory.run import POOL, REQUESTS_OF_A_LIFE, measure


def main() -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.long.memory", description=__doc__)
    parser.add_argument(
        "--rounds",
        type=int,
        default=100,
        help=f"of {POOL * REQUESTS_OF_A_LIFE} requests and {POOL} tasks each (%(default)s)",
    )
    options = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        growths = measure(options.rounds, Path(scratch), lambda line: say(f"{time.monotonic() - began:6.0f} s {line}"))
    leaking = [growth.process for growth in growths if not growth.is_flat]
    say(f"NOT FLAT: {', '.join(leaking)}" if leaking else "the memory of every process stayed flat")
    return 1 if leaking else 0


def say(text: str) -> None:
    """Print a line and flush it."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
