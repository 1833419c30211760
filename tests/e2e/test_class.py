"""A class over real processes: booked from the command line, filled by the job, drawn by its tracks alone, cancelled."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from click.testing import CliRunner

from broker_common.cli.commands import main
from deploy.dev.processes import wait_until
from tests.e2e.stack import ADMIN_TOKEN

if TYPE_CHECKING:
    from tests.e2e.stack import Stack

SETTINGS = {"POOL": "10", "API_WORKERS": "2"}
LAB = {"X-Instruqt-Track-ID": "networking-101"}
_FILL_SEC = 60
"""The job runs every 15 seconds, and a busy machine is late."""


def broker(stack: Stack, *words: str) -> dict[str, Any]:
    """Run a command of reservations, and return what it printed as JSON."""
    env = {"BROKER_API_URL": f"{stack.api_url}/v1", "BROKER_ADMIN_TOKEN": ADMIN_TOKEN}
    result = CliRunner().invoke(main, ["reservation", *words, "--json"], env=env, prog_name="broker")
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def allocate(stack: Stack, track: str, **headers: str) -> tuple[int, dict[str, Any]]:
    answer = stack.as_track(track, "POST", "/allocate", headers=headers)
    return answer.status_code, answer.json()


def is_served(stack: Stack, track: str) -> bool:
    return allocate(stack, track)[0] == HTTPStatus.CREATED


def reservation_of(stack: Stack, allocation: dict[str, Any]) -> str | None:
    read = stack.as_admin("GET", f"/sandboxes/{allocation['sandbox_id']}").json()
    found: str | None = read["reservation_id"]
    return found


def test_a_class_finds_its_sandboxes_in_a_pool_that_strangers_have_emptied(stack: Stack) -> None:
    wanted = ("--name", "Networking 101", "--count", "5", "--at", "now", "--for", "2h", "--lab", "networking-101")
    assert broker(stack, "check", *wanted) == {"fits": True, "could_have": 8}
    reservation_id = broker(stack, "create", *wanted, "--key", "this morning")["reservation_id"]
    booked = stack.as_admin("GET", "/reservations").json()
    assert [each["reservation_id"] for each in booked["reservations"]] == [reservation_id]

    def read() -> dict[str, Any]:
        return broker(stack, "show", reservation_id)

    assert wait_until(lambda: read()["set_aside"] == 5, _FILL_SEC), read()
    assert (read()["state"], read()["short_by"]) == ("open", 0)
    assert (stack.stats()["reserved"], stack.stats()["available"]) == (5, 5)

    strangers = [allocate(stack, f"stranger-{number}") for number in range(6)]
    assert [status for status, _ in strangers] == [HTTPStatus.CREATED] * 5 + [HTTPStatus.CONFLICT]
    assert strangers[-1][1]["error"]["code"] == "NO_SANDBOXES_AVAILABLE"
    assert {reservation_of(stack, held) for _, held in strangers[:5]} == {None}

    by = [LAB, LAB, {"X-Reservation-ID": reservation_id}]
    with ThreadPoolExecutor(len(by)) as pool:
        drawn = list(pool.map(lambda each: allocate(stack, f"student-{each}", **by[each]), range(len(by))))
    assert [status for status, _ in drawn] == [HTTPStatus.CREATED] * 3
    assert {reservation_of(stack, held) for _, held in drawn} == {reservation_id}
    assert (read()["set_aside"], read()["drawn"]) == (2, 3)
    history = stack.as_admin("GET", f"/sandboxes/{drawn[0][1]['sandbox_id']}/history").json()["facts"]
    assert [(fact["kind"], fact["details"]["reservation_id"]) for fact in history[:2]] == [
        ("sandbox.allocated", reservation_id),
        ("sandbox.reserved", reservation_id),
    ]

    assert stack.as_admin("DELETE", f"/reservations/{reservation_id}").json()["state"] == "cancelled"
    assert (stack.stats()["reserved"], stack.stats()["available"]) == (0, 2)
    # An API process remembers for a moment that no sandbox was free.
    for late in ("stranger-5", "stranger-6"):
        assert wait_until(partial(is_served, stack, late), 30)
    for number, (_, held) in enumerate(drawn):
        again = allocate(stack, f"student-{number}")
        assert again == (HTTPStatus.OK, held)

    def refusal() -> str:
        _, refused = allocate(stack, "latecomer", **{"X-Reservation-ID": reservation_id})
        code: str = refused["error"]["code"]
        return code

    # Each process reads the reservations again within three seconds.
    assert wait_until(lambda: refusal() == "RESERVATION_NOT_OPEN", 30)
