"""The removal of services on a bad night at the provider: every account is deleted, and its fact tells what failed.

One broker lives through the whole night, and each test leaves its pool full.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from deploy.dev.processes import wait_until
from tests.e2e.stack import Stack, with_deletion_workers

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.timeout(300)

POOL = 12
WORKERS = ("worker-1", "worker-2")
EMAIL, PASSWORD = "night@example.com", "a-password-of-the-night"
NAME = "lab-service"
SETTINGS = {
    "POOL": str(POOL),
    "API_WORKERS": "1",
    "CSP_SERVICES_CLEANUP": "on",
    "CSP_SERVICES_NAME": NAME,
    "CSP_SERVICES_EMAIL": EMAIL,
    "CSP_SERVICES_PASSWORD": PASSWORD,
    "CIRCUIT_BREAKER_THRESHOLD": "3",
    "CIRCUIT_BREAKER_TIMEOUT_SEC": "10",
    "MOCK_CSP_DELETE_SECONDS": "0",
    "SYNC_INTERVAL_SEC": "86400",
    "CLEANUP_INTERVAL_SEC": "86400",
    "AUTO_EXPIRY_INTERVAL_SEC": "86400",
}
ALL_WELL = {
    "sign_in_down": False,
    "refuse_switch": False,
    "stuck_service": "",
    "services_html": "",
    "html_errors": False,
}


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    services = with_deletion_workers(WORKERS, threads=3)
    with Stack(tmp_path_factory.mktemp("services"), SETTINGS, services=services) as stack:
        assert stack.run_job("sync")["state"] == "succeeded"
        yield stack
        for name in (*WORKERS, "worker-jobs", "api", "beat"):
            stack.kill(name)  # the end need not wait for theirs


class Lived:
    """Sandboxes that tracks have held: their services, and how the wipes went."""

    def __init__(self, stack: Stack, *classes: list[str]) -> None:
        """Let one track for each list hold a sandbox, leave services of these names in it, and give it back."""
        self._stack = stack
        self.account: dict[str, str] = {}
        stack.forget_deletes()
        for number, names in enumerate(classes):
            held = stack.as_track(f"track-{number}", "POST", "/allocate").json()
            self.account[held["sandbox_id"]] = held["external_id"]
            stack.leave_services(held["external_id"], names)
            mark = f"/sandboxes/{held['sandbox_id']}/mark-for-deletion"
            assert stack.as_track(f"track-{number}", "POST", mark).status_code == 200

    def wipe(self) -> list[dict[str, Any]]:
        """Have all wiped, and return what the facts of their wipes say, in the order of the classes."""
        result = self._stack.run_job("cleanup")["result"]
        assert result["deleted"] == len(self.account), result
        deleted = Counter(each["external_id"] for each in self._stack.delete_log()["deletes"] if each["applied"])
        assert deleted == Counter(self.account.values())
        assert self._stack.stats()["available"] == POOL
        return [self._details(sandbox_id) for sandbox_id in self.account]

    def left(self) -> list[list[str]]:
        kept = self._stack.service_log()["services"]
        return [kept.get(account.rpartition("/")[2], []) for account in self.account.values()]

    def _details(self, sandbox_id: str) -> dict[str, Any]:
        facts = self._stack.as_admin("GET", f"/sandboxes/{sandbox_id}/history", params={"limit": 5}).json()["facts"]
        wiped: dict[str, Any] = next(fact for fact in facts if fact["kind"] == "sandbox.wiped")["details"]
        return wiped


@pytest.fixture(autouse=True)
def at_peace(night: Stack) -> Iterator[None]:
    """Begin and end each test with a provider that works, and with a breaker that lets removals pass."""
    night.switch(**ALL_WELL)
    night.forget_services()
    assert wait_until(lambda: Lived(night, []).wipe()[0]["services"] == "none", 90)
    yield
    night.switch(**ALL_WELL)


def circuit_state(stack: Stack) -> float:
    return max(
        float(value)
        for name in WORKERS
        for value in re.findall(
            r'^broker_circuit_state\{name="csp_services"\} (\S+)$', stack.metrics_of(name), re.MULTILINE
        )
    )


def outcomes(stack: Stack) -> Counter[str]:
    """Return how many removals the metrics of all workers count, by outcome."""
    counted: Counter[str] = Counter()
    for name in WORKERS:
        found = re.findall(
            r'^broker_csp_services_cleanup_total\{outcome="(\w+)"\} (\S+)$', stack.metrics_of(name), re.MULTILINE
        )
        counted.update({outcome: int(float(count)) for outcome, count in found})
    return counted


def test_services_are_gone_before_the_account_is_and_other_names_stay(night: Stack) -> None:
    before = outcomes(night)
    lived = Lived(night, [NAME, "of somebody else"], [])
    first, second = lived.wipe()
    assert first == {"services": "removed", "services_removed": 1, "services_left": 0}
    assert second == {"services": "none", "services_removed": 0, "services_left": 0}
    assert lived.left() == [["of somebody else"], []]
    assert outcomes(night) - before == Counter({"removed": 1, "none": 1})


def test_two_hundred_services_are_removed_or_counted_in_the_time_that_they_have(night: Stack) -> None:
    lived = Lived(night, [NAME] * 200)
    (details,) = lived.wipe()
    (left,) = lived.left()
    assert details["services_left"] == len(left)
    assert details["services_removed"] + details["services_left"] == 200
    assert details["services"] == ("partial" if left else "removed")
    assert night.delete_log()["highest_in_flight"] == 1


def test_while_nobody_can_sign_in_accounts_are_deleted_and_the_breaker_stops_the_attempts(night: Stack) -> None:
    night.switch(sign_in_down=True, html_errors=True)
    lived = Lived(night, *[[NAME]] * 10)
    calls = len(night.service_log()["calls"])
    told = Counter(details["services"] for details in lived.wipe())
    assert set(told) <= {"failed", "skipped"}
    assert told["skipped"] > 0, told
    assert len(night.service_log()["calls"]) - calls == told["failed"]
    assert lived.left() == [[NAME]] * 10
    assert wait_until(lambda: circuit_state(night) > 0, 20)
    night.switch(**ALL_WELL)

    assert wait_until(lambda: Lived(night, [NAME]).wipe()[0]["services"] == "removed", 60), "they have not begun again"
    assert wait_until(lambda: circuit_state(night) == 0, 20)


@pytest.mark.parametrize(
    ("switches", "told"),
    [
        ({"refuse_switch": True}, {"services": "failed", "services_error": "switch account: HTTP 403"}),
        (
            {"services_html": "list"},
            {
                "services": "failed",
                "services_error": "list services: HTTP 200 with an HTML page, such as a login page",
            },
        ),
        (
            {"stuck_service": NAME},
            {"services": "partial", "services_left": 1, "services_error": "delete service: HTTP 500"},
        ),
    ],
    ids=["switch refused", "HTML in place of JSON", "one that cannot be deleted"],
)
def test_a_failure_stands_in_the_fact_of_the_wipe_and_the_account_is_deleted(
    night: Stack, switches: dict[str, Any], told: dict[str, Any]
) -> None:
    night.switch(**switches)
    lived = Lived(night, [NAME])
    (details,) = lived.wipe()
    assert told.items() <= details.items()
    assert lived.left() == [[NAME]]


def test_no_secret_of_the_night_is_in_a_log_a_fact_or_a_metric(night: Stack) -> None:
    Lived(night, [NAME]).wipe()
    night.switch(sign_in_down=True)
    Lived(night, [NAME]).wipe()
    lines = [record for name in WORKERS for record in night.records(name) if record.get("action") == "remove_services"]
    assert {line["outcome"] for line in lines} >= {"removed", "failed"}
    told = [night.output(name) for name in (*WORKERS, "worker-jobs", "api", "beat")]
    told += [night.metrics_of(name) for name in WORKERS]
    told.append(night.as_admin("GET", "/events", params={"limit": 100}).text)
    assert not any(secret in text for text in told for secret in (PASSWORD, EMAIL, "jwt-"))


def test_shadow_counts_and_deletes_no_service(tmp_path: Path) -> None:
    services = with_deletion_workers(WORKERS, threads=3)
    with Stack(tmp_path, {**SETTINGS, "CSP_SERVICES_CLEANUP": "shadow"}, services=services) as stack:
        assert stack.run_job("sync")["state"] == "succeeded"
        lived = Lived(stack, [NAME, NAME], [])
        first, second = lived.wipe()
        assert first == {"services": "shadow", "services_removed": 0, "services_left": 2}
        assert second["services"] == "none"
        assert lived.left() == [[NAME, NAME], []]
        assert Counter(call["step"] for call in stack.service_log()["calls"])["delete"] == 0
        assert outcomes(stack)["shadow"] == 1
        for name in (*WORKERS, "worker-jobs", "api", "beat"):
            stack.kill(name)
