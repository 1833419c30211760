"""`python -m tests.long.size.month [LEASES]`: time and memory of a report on a month of 100,000 leases.

It is asked of one real API process on DynamoDB Local. Exits with 1 if a report is not made in time.
"""

from __future__ import annotations

import sys
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import requests

from broker_common.adapters.dynamo_usage import encode_line
from broker_common.core.sandbox import DeletionReason
from broker_common.core.usage import Grouping, UsageLine
from broker_common.core.utc import DAY_SEC
from deploy.dev.plan import LOOPBACK
from tests.backends import hide_aws
from tests.long.bench.servers import ADMIN_TOKEN, DYNAMODB, Servers

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mypy_boto3_dynamodb import DynamoDBClient

MONTH_DAYS = 30
KEPT_DAYS = 90
LIMIT_SEC = 15
_BATCH = 25
_LABS, _CUSTOMERS = 40, 12
_ENDINGS = [DeletionReason.MARKED] * 17 + [DeletionReason.EXPIRED] * 2 + [DeletionReason.RELEASED]


def simulate_month(leases: int, *, until: int) -> Iterator[UsageLine]:
    """Yield the lines of leases that ended in the month before `until`: labs of about 2 hours, wipes of about 15 s."""
    rng = Random(16)
    for number in range(leases):
        ended_at = until - 1 - rng.randrange(MONTH_DAYS * DAY_SEC)
        yield UsageLine(
            lease_id=f"{rng.getrandbits(128):032x}-{number}",
            track_name=f"infoblox-threat-defense-{rng.randrange(_LABS)}" if rng.random() < 0.95 else None,
            customer=f"customer-{rng.randrange(_CUSTOMERS)}" if rng.random() < 0.8 else None,
            allocated_at=ended_at - round(rng.lognormvariate(8.6, 0.6)),
            ended_at=ended_at,
            ending=rng.choice(_ENDINGS),
            wiped_at=ended_at + round(rng.lognormvariate(2.7, 0.5)),
        )


def load_lines(client: DynamoDBClient, table: str, lines: Iterator[UsageLine]) -> None:
    """Write lines by batches of the table's own call, which has no conditions."""

    def write(batch: list[UsageLine]) -> None:
        puts: Any = [{"PutRequest": {"Item": encode_line(line, days=KEPT_DAYS)}} for line in batch]
        assert not client.batch_write_item(RequestItems={table: puts})["UnprocessedItems"]

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(write, iter(lambda: list(islice(lines, _BATCH)), [])))


def main(leases: int) -> int:
    """Ask for each report and print what it took; return the exit code."""
    hide_aws()
    is_good = True
    with TemporaryDirectory() as scratch, Servers(Path(scratch), processes=1) as servers:
        table, now = servers.make_table("usage"), int(time.time())
        load_lines(servers.client(), table, simulate_month(leases, until=now))
        with servers.api(table, variables={"HISTORY_DAYS": str(KEPT_DAYS)}) as api:
            url = f"http://{LOOPBACK}:{api.port}/v1/admin/usage"
            say(f"{leases} leases; memory before: {_memory(api.pid, 'VmRSS')} MiB")
            for by in Grouping:
                query: dict[str, str | int] = {"from": now - MONTH_DAYS * DAY_SEC, "to": now, "by": by.value}
                began, used = time.monotonic(), (api.cpu_seconds(), servers.cpu_seconds()[DYNAMODB])
                answer = requests.get(url, params=query, headers={"Authorization": f"Bearer {ADMIN_TOKEN}"}, timeout=60)
                took = time.monotonic() - began
                of_api, of_store = api.cpu_seconds() - used[0], servers.cpu_seconds()[DYNAMODB] - used[1]
                counted = answer.json()["total"]["leases"] if answer.ok else answer.text
                is_good = is_good and counted == leases and took < LIMIT_SEC
                say(
                    f"by {by}: {took:.1f} s (processor: API {of_api:.1f} s, DynamoDB Local {of_store:.1f} s),"
                    f" {counted} leases, most memory {_memory(api.pid, 'VmHWM')} MiB"
                )
    return 0 if is_good else 1


def say(line: str) -> None:
    """Print a line."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _memory(master: int, name: str) -> int:
    """Return a number of the largest child of a process, in MiB."""
    children = Path(f"/proc/{master}/task/{master}/children").read_text().split()
    statuses = [Path(f"/proc/{child}/status").read_text() for child in children]
    return max(int(status.partition(f"{name}:")[2].split()[0]) for status in statuses) // 1024


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 100_000))
