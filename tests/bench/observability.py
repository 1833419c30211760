"""What metrics and logs cost: allocations a second with all of them on, against the same API without any.

Two API servers run on one table; they are driven in turn, and each pair of runs gives a ratio. Their log lines go to
/dev/null: what reads them elsewhere is not the API's cost.
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
    """Fill the pool, start the real API and the quiet one, and drive both in turn."""
    run = stack.run_job("sync")
    assert run["state"] == "succeeded", run
    stack.stop("api")
    ports = {"on": stack.plan.number("API_PORT"), "off": quiet_port}
    applications = {"on": "broker_api.wsgi:app", "off": "tests.bench.quiet_wsgi:app"}
    servers = {which: serve(stack, scratch / which, ports[which], applications[which]) for which in ports}
    try:
        for server in servers.values():
            assert wait_until(server.is_ready, 60, give_up=server.has_ended), server.ending()
        urls = {which: f"http://127.0.0.1:{port}/v1" for which, port in ports.items()}
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
        for server in servers.values():
            server.stop()


def serve(stack: Stack, scratch: Path, port: int, application: str) -> Process:
    """Start an API server like the stack's, for one of the applications."""
    env = {**stack.plan.env, "API_PORT": str(port)}
    program = programs.api(replace(make_plan(env), env=env), scratch)
    command = ["sh", "-c", 'exec "$@" >/dev/null', "sh", *program.command[:-1], application]
    server = Process(replace(program, command=command), lambda *_: None)
    server.start()
    return server


def say(line: str) -> None:
    """Print a line at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
