"""`python -m tests.long.history`: run, check, and say for each promise whether it was kept. Exits with 1 if one was not."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import traceback
from pathlib import Path

from deploy.dev.dynamodb_local import NotInstalled, dynamodb_local
from deploy.dev.processes import free_ports
from tests.backends import running
from tests.long.history.checker import check
from tests.long.history.planted import Bug
from tests.long.history.record import History
from tests.long.history.report import describe, summarize
from tests.long.history.run import Order, Unfinished, run


def main() -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.long.history", description=__doc__)
    parser.add_argument("--operations", type=int, default=2500, help="calls that the clients make (%(default)s)")
    parser.add_argument("--faults", type=int, default=25, help="faults during these calls (%(default)s)")
    parser.add_argument("--minutes", type=float, default=1.0, help="approximate duration of the calls (%(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="sets what clients do and which faults come (%(default)s)")
    parser.add_argument("--plant", type=Bug, choices=list(Bug), help="plant a bug, which the check must find")
    parser.add_argument("--out", type=Path, help="keep the history and the logs in this directory")
    parser.add_argument(
        "--check", type=Path, metavar="DIR", help="only check the history that an earlier run saved in DIR"
    )
    options = parser.parse_args()
    if options.check:
        return judge(History.load(options.check / "history.jsonl"))
    order = Order(
        seed=options.seed,
        calls=options.operations,
        faults=options.faults,
        calls_a_second=options.operations / (options.minutes * 60),
        bug=options.plant,
    )
    try:
        database = dynamodb_local(free_ports(1)[0])
    except NotInstalled as reason:
        sys.exit(f"DynamoDB Local is missing: {reason}")
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch, running(database) as address:
        out = options.out or Path(scratch)
        out.mkdir(parents=True, exist_ok=True)
        try:
            history = run(
                order, out, f"http://{address}", lambda line: say(f"{time.monotonic() - began:6.0f} s {line}")
            )
        except Unfinished as unfinished:
            traceback.print_exc()
            unfinished.history.save(out / "history.jsonl")
            judge(unfinished.history)
            say("the run FAILED before its end, for the reason above. The verdict covers what was seen until then")
            return 1
        history.save(out / "history.jsonl")
        say(f"{time.monotonic() - began:6.0f} s checking")
        return judge(history)


def judge(history: History) -> int:
    """Check a history and print the verdict; return the exit code."""
    verdict = check(history)
    say(summarize(history))
    say(describe(verdict))
    say("BROKEN" if verdict.violations else "every promise was kept")
    return 1 if verdict.violations else 0


def say(text: str) -> None:
    """Print a line and flush it."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
