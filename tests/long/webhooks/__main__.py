"""`python -m tests.long.webhooks`: run, check promise 10, and print the figures. Exits with 1 if it was broken."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tests.long.webhooks.run import Order, describe, find_faults, run


def main() -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.long.webhooks", description=__doc__)
    parser.add_argument("--changes", type=int, default=2000, help="facts that tracks cause, about (%(default)s)")
    parser.add_argument("--faults", type=int, default=15, help="kills, and times that Redis is emptied (%(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="sets when faults come and what fails (%(default)s)")
    options = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        order = Order(changes=options.changes, faults=options.faults, seed=options.seed)
        story = run(order, Path(scratch), lambda line: print(f"{time.monotonic() - began:6.0f} s {line}", flush=True))  # noqa: T201 - a command
    print(describe(story))  # noqa: T201 - a command
    found = find_faults(story)
    print("\n".join(found) or "promise 10 was kept")  # noqa: T201 - a command
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
