"""What metrics and logs cost: allocations a second with all of them on, against the same API without any.

Two API servers run on one table; they are driven in turn, and each pair of runs gives a ratio.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from deploy.dev import programs
from deploy.dev.dynamodb_local import dynamodb_local
from deploy.dev.plan import make_plan
from deploy.dev.processes import Process, free_ports, wait_until
from tests.bench.load import allocate_many
from tests.e2e.stack import TRACK_TOKEN, Stack

PAIRS = 7
CLIENTS = 16
REQUESTS = 640


def main() -> None:
    """Print a line a pair, and the medians."""
    port, quiet_port = free_ports(2)
    with tempfile.TemporaryDirectory() as scratch:
        database = Process(dynamodb_local(port), lambda *_: None)
        database.start()
        try:
            assert wait_until(database.is_ready, 60), database.ending()
            settings = {
                "POOL": str((2 * PAIRS + 4) * REQUESTS),
                "DDB_ENDPOINT_URL": f"http://127.0.0.1:{port}",
                "API_WORKERS": "2",
            }
            with Stack(Path(scratch), settings) as stack:
                measure(stack, quiet_port, Path(scratch))
        finally:
            database.stop()


def measure(stack: Stack, quiet_port: int, scratch: Path) -> None:
    """Fill the pool, start the quiet API beside the real one, and drive both in turn."""
    run = stack.run_job("sync")
    assert run["state"] == "succeeded", run
    env = {**stack.plan.env, "API_PORT": str(quiet_port)}
    plan = replace(make_plan(env), env=env)
    program = programs.api(plan, scratch / "quiet")
    quiet = Process(replace(program, command=[*program.command[:-1], "tests.bench.quiet_wsgi:app"]), lambda *_: None)
    quiet.start()
    try:
        assert wait_until(quiet.is_ready, 60, give_up=quiet.has_ended), quiet.ending()
        urls = {"on": f"{stack.api_url}/v1", "off": f"{plan.api_url}/v1"}
        for url in urls.values():
            allocate_many(url, TRACK_TOKEN, clients=CLIENTS, requests=REQUESTS)
        rates: dict[str, list[float]] = {"on": [], "off": []}
        for number in range(PAIRS):
            order = ("on", "off") if number % 2 == 0 else ("off", "on")
            for which in order:
                load = allocate_many(urls[which], TRACK_TOKEN, clients=CLIENTS, requests=REQUESTS)
                assert set(load.latencies) == {201}, {status: len(each) for status, each in load.latencies.items()}
                rates[which].append(load.rate)
            say(f"pair {number + 1}: on {rates['on'][-1]:.0f}/s, off {rates['off'][-1]:.0f}/s")
        ratios = [on / off for on, off in zip(rates["on"], rates["off"], strict=True)]
        say(f"median: on {statistics.median(rates['on']):.0f}/s, off {statistics.median(rates['off']):.0f}/s,")
        say(f"        ratio of the pairs {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})")
    finally:
        quiet.stop()


def say(line: str) -> None:
    """Print a line at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
