"""A pool as it is on a working day, for pictures of the console: leases, failures, classes, a line, webhooks, a month.

What a day brings comes through the API, the jobs and the mock provider. Only the past is written into the table.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http import HTTPStatus
from math import cos, pi
from random import Random
from typing import TYPE_CHECKING, Any

from broker_common.adapters.dynamo_usage import encode_line
from broker_common.core.samples import Sample, minute_of
from broker_common.core.sandbox import DeletionReason, Status
from broker_common.core.telemetry import AllocateOutcome
from broker_common.core.usage import UsageLine
from broker_common.core.utc import DAY_SEC
from broker_common.services import build_store
from deploy.dev.processes import wait_until
from tests.webhook_receiver import Receiver, receiving

if TYPE_CHECKING:
    from collections.abc import Iterator

    import requests

    from tests.e2e.stack import Stack

SETTINGS = {
    "POOL": "200",
    "HISTORY_DAYS": "90",
    "MOCK_CSP_DELETE_SECONDS": "0.2",
    # What waits to be wiped stays so, for the pictures.
    "CLEANUP_INTERVAL_SEC": "86400",
    "RATE_LIMIT_RPS": "1000",
    "RATE_LIMIT_BURST": "5000",
}
_LABS = ("networking-101", "dns-security", "threat-defense", "intro-to-ddi", "cloud-discovery")
_MONTH_DAYS = 30
_SAMPLE_STEP_SEC = 300
_WAIT_SEC = 60
_HOUR_SEC = 3600


@contextmanager
def life(stack: Stack) -> Iterator[Receiver]:
    """Fill a broker that has run one sync. Yields the receiver of its webhooks, which runs during the context."""
    with receiving(Receiver()) as receiver:
        _write_past(stack)
        _register(stack, receiver)
        _book(stack)
        _fail(stack)
        _allocate(stack)
        _done(stack.as_admin("POST", "/watch"))
        yield receiver


def _done(answer: requests.Response) -> dict[str, Any]:
    assert answer.ok, answer.text
    found: dict[str, Any] = answer.json()
    return found


def _write_past(stack: Stack) -> None:
    """Write a month of ended leases, and a day of samples."""
    store, client, rng, now = build_store(stack.plan.settings), stack.dynamodb(), Random(7), int(time.time())
    endings = [DeletionReason.MARKED] * 17 + [DeletionReason.EXPIRED] * 2 + [DeletionReason.RELEASED]
    for number in range(900):
        ended_at = now - 1 - rng.randrange(_MONTH_DAYS * DAY_SEC)
        line = UsageLine(
            lease_id=f"{rng.getrandbits(128):032x}-{number}",
            track_name=rng.choices(_LABS, weights=(9, 6, 4, 3, 1))[0],
            customer=rng.choice(("acme", "globex", None)),
            allocated_at=ended_at - round(rng.lognormvariate(8.6, 0.6)),
            ended_at=ended_at,
            ending=rng.choice(endings),
            wiped_at=ended_at + 15,
        )
        client.put_item(TableName=stack.plan.settings.ddb_table_name, Item=encode_line(line, days=_MONTH_DAYS))
    for at in range(minute_of(now) - DAY_SEC, minute_of(now) - 60, _SAMPLE_STEP_SEC):
        # A working day: most leases around its middle.
        load = (1 - cos(2 * pi * (at - now) / DAY_SEC + 1.2)) / 2
        allocated, wiping = round(150 * load + rng.randrange(6)), round(10 * load + rng.randrange(3))
        reserved = 20 if (at - now) % DAY_SEC > 18 * _HOUR_SEC else 0
        failed = 1 if at < now - 6 * _HOUR_SEC else 3
        counts = {
            Status.ALLOCATED: allocated,
            Status.PENDING_DELETION: wiping,
            Status.RESERVED: reserved,
            Status.DELETION_FAILED: failed,
            Status.STALE: 2,
            Status.AVAILABLE: max(0, 198 - allocated - wiping - reserved - failed),
        }
        waiting = max(0, allocated - 148)
        store.write_sample(Sample(at=at, by_status=counts, waiting=waiting))
        store.add_allocates(at, {AllocateOutcome.SUCCESS: round(12 * load) + 1, AllocateOutcome.WAITING: waiting})


def _register(stack: Stack, receiver: Receiver) -> None:
    """Register an endpoint that takes everything, and one that answers 404."""
    for path, kinds, description in (
        ("hooks", ["*"], "Training platform"),
        ("old", ["sandbox.needs_attention", "pool.low"], "Chat of the operators"),
    ):
        made = _done(
            stack.as_admin(
                "POST",
                "/webhooks",
                json={
                    "url": f"http://127.0.0.1:{receiver.port}/{path}",
                    "kinds": kinds,
                    "description": description,
                },
            )
        )
        receiver.secret = receiver.secret or made["secret"]


def _book(stack: Stack) -> None:
    """Book a class that is open now, and those of the coming days."""
    now = int(time.time())
    soon = now - now % 300 + 600
    day = now - now % DAY_SEC + DAY_SEC
    for name, count, lab, start, hours in (
        ("Networking 101, group A", 20, _LABS[0], soon, 4),
        ("DNS security", 30, _LABS[1], day + 9 * _HOUR_SEC, 3),
        ("Threat defense", 40, _LABS[2], day + 13 * _HOUR_SEC, 4),
        ("Networking 101, group B", 25, _LABS[0], day + DAY_SEC + 8 * _HOUR_SEC, 5),
        ("Partner day", 80, _LABS[3], day + 2 * DAY_SEC + 9 * _HOUR_SEC, 8),
    ):
        booking = {
            "name": name,
            "count": count,
            "track_names": [lab],
            "starts_at": start,
            "ends_at": start + hours * _HOUR_SEC,
        }
        _done(stack.as_admin("POST", "/reservations", json=booking))

    def is_filled() -> bool:
        return stack.stats()["reserved"] == 20

    assert wait_until(is_filled, _WAIT_SEC), "the job that fills reservations did not run"


def _fail(stack: Stack) -> None:
    """Have the provider refuse to wipe three sandboxes."""
    for number in range(3):
        _mark(stack, _allocate_one(stack, f"student-{number:03}", _LABS[number % len(_LABS)]))
    stack.switch(fail_next_deletes=3, fail_status=422)
    stack.run_job("cleanup")
    assert wait_until(lambda: stack.stats()["deletion_failed"] == 3, _WAIT_SEC), stack.stats()


def _allocate(stack: Stack) -> None:
    """Allocate for classes and single students; some are done already."""
    tracks = [(f"student-{number:03}", _LABS[number * number % 7 % len(_LABS)]) for number in range(10, 120)]
    with ThreadPoolExecutor(4) as threads:
        held = list(threads.map(lambda each: _allocate_one(stack, *each), tracks))
    for each in held[::14]:
        _mark(stack, each)


def _allocate_one(stack: Stack, track_id: str, lab: str) -> tuple[str, dict[str, Any]]:
    return track_id, _done(stack.as_track(track_id, "POST", "/allocate", headers={"X-Instruqt-Track-ID": lab}))


def _mark(stack: Stack, held: tuple[str, dict[str, Any]]) -> None:
    track_id, allocation = held
    _done(stack.as_track(track_id, "POST", f"/sandboxes/{allocation['sandbox_id']}/mark-for-deletion"))


def wait_in_line(stack: Stack) -> None:
    """Let four tracks wait for sandboxes of a name that the pool does not have."""
    for number in range(4):
        headers = {
            "X-Instruqt-Track-ID": "cloud-discovery",
            "X-Sandbox-Name-Prefix": "cloud-",
            "Prefer": "wait=0",
        }
        answer = stack.as_track(f"student-{200 + number}", "POST", "/allocate", headers=headers)
        assert answer.status_code == HTTPStatus.ACCEPTED, answer.text
