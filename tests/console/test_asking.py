"""What the console asks before it does something: docs/console.md has the rule."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

import pytest

from broker_common.core.jobs import JobState
from tests.contract.webhooks import make_endpoint
from tests.fakes import START, make_sandbox

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.console.harness import Console

    Fill = Callable[[Console], dict[str, Any]]


def lease(console: Console) -> dict[str, Any]:
    console.api.store.seed(make_sandbox("7"))
    console.api.allocate()
    held = console.api.admin("GET", "/v1/admin/sandboxes/7").get_json()
    return {"lease_id": held["lease_id"], "reason": "slow"}


def many(act: str) -> Fill:
    def fill(console: Console) -> dict[str, Any]:
        found = lease(console)
        return {"act": act, "chosen": "7", "lease-7": found["lease_id"], "reason": "slow"}

    return fill


def place(console: Console) -> dict[str, Any]:
    console.api.track("POST", "/v1/allocate", "track-1", headers={"Prefer": "wait=30"})
    return {"track_id": "track-1"}


def reservation(console: Console) -> dict[str, Any]:
    console.api.store.seed(*(make_sandbox(str(number)) for number in range(3)))
    booking = {"name": "Class", "count": 1, "starts_at": START + 86400, "ends_at": START + 90000}
    console.api.admin("POST", "/v1/admin/reservations", json=booking)
    return {}


def webhook(console: Console) -> dict[str, Any]:
    console.api.store.write_endpoint(None, make_endpoint(url="https://hooks.example.com/in"))
    return {}


def nothing(_console: Console) -> dict[str, Any]:
    return {}


TYPED: dict[str, tuple[str, str, Fill]] = {
    "sandboxes.change release": ("/sandboxes/7?act=release", "7", lease),
    "sandboxes.change quarantine": ("/sandboxes/7?act=quarantine", "7", lease),
    "sandboxes.change_chosen release": ("/sandboxes", "1", many("release")),
    "sandboxes.change_chosen quarantine": ("/sandboxes", "1", many("quarantine")),
    "sandboxes.retry_all": ("/sandboxes/all/retry", "wipe all", nothing),
    "sandboxes.delete_all stale": ("/sandboxes/all/delete/stale", "stale", nothing),
    "sandboxes.delete_all deletion_failed": ("/sandboxes/all/delete/deletion_failed", "deletion_failed", nothing),
    "line.remove": ("/line/{place}/remove", "track-1", place),
    "reservations.cancel": ("/reservations/{reservation}/cancel", "Class", reservation),
    "jobs.run purge_stale": ("/jobs/purge_stale/run", "purge", nothing),
    "jobs.force": ("/jobs/sync/force", "force", nothing),
    "webhooks.rotate": ("/webhooks/hook/rotate-secret", "hook", webhook),
    "webhooks.remove": ("/webhooks/hook/remove", "hook", webhook),
}
"""What cannot be taken back: the form's address, what must be typed, and what fills the store and the other fields."""
OPENED = {
    "jobs.pause": ("/jobs", 'name="paused" value="yes"'),
    "webhooks.enable": ("/webhooks/hook", 'name="enabled" value="no"'),
}
"""What interrupts until somebody lets it go on: a first click only opens the form. Its page, and its field."""
ONE_CLICK = {
    *("signin.show", "signin.out"),
    *("sandboxes.change", "sandboxes.change_chosen"),
    *("reservations.book", "reservations.check", "reservations.save"),
    "jobs.run",
    *("webhooks.new", "webhooks.save", "webhooks.replay", "webhooks.test", "webhooks.retry"),
}
"""The others: they can be taken back, add something, or do what happens by itself within minutes."""


def sent_by(console: Console, path: str, form: dict[str, Any]) -> tuple[list[str], str]:
    """Return the methods of the calls by which a form changed something, and what the next pages say."""
    waiting = console.api.admin("GET", "/v1/admin/waiting").get_json()["places"]
    booked = console.api.admin("GET", "/v1/admin/reservations").get_json()["reservations"]
    path = path.format(
        place=waiting[0]["place_id"] if waiting else "", reservation=booked[0]["reservation_id"] if booked else ""
    )
    name = {"name": "Class"} if booked else {}
    console.to_api.sent.clear()
    said = console.send(path, name | form).text
    return [str(each.method) for each in console.to_api.sent if each.method != "GET"], said + console.said()


def test_each_form_of_the_console_has_its_place_in_the_rule(console: Console) -> None:
    forms = {rule.endpoint for rule in console.app.url_map.iter_rules() if "POST" in (rule.methods or ())}
    assert forms == {name.split(" ")[0] for name in TYPED} | set(OPENED) | ONE_CLICK


@pytest.mark.parametrize("name", TYPED)
def test_what_cannot_be_taken_back_is_done_by_one_call_and_only_if_that_was_typed(console: Console, name: str) -> None:
    path, expected, fill = TYPED[name]
    form = fill(console)
    for typed in ({}, {"typed": f"{expected}x"}):
        calls, said = sent_by(console, path, form | typed)
        assert calls == []
        assert f"Nothing was done: what you typed is not {expected}." in said
    calls, _ = sent_by(console, path, form | {"typed": f" {expected} "})
    assert len(calls) == 1


@pytest.mark.parametrize("name", OPENED)
def test_what_interrupts_opens_a_form_that_says_what_it_means(console: Console, name: str) -> None:
    page, field = OPENED[name]
    webhook(console)
    before, after = console.open(page).text.split(field)[:2]
    opened = before[before.rindex("<details") :]
    assert "</details>" not in opened
    assert "<summary" in opened
    assert "until somebody" in opened
    assert "<button" in after[: after.index("</details>")]


def test_a_purge_asks_for_its_word_on_the_page_of_its_run_too(console: Console) -> None:
    assert console.send("/jobs/purge_stale/run", {"typed": "purge"}).location == "/jobs/runs/job-1"
    console.api.queue.states = deque([JobState.SUCCEEDED])
    page = console.open("/jobs/runs/job-1").text
    assert "Type <code>purge</code> to confirm" in page
    assert "No act takes that back." in page
    console.send("/jobs/cleanup/run")
    assert "to confirm" not in console.open("/jobs/runs/job-2").text
