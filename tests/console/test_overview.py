"""The first page: whether tracks are being served, the pool, and what needs a person."""

from __future__ import annotations

import re
from collections import deque
from dataclasses import replace
from html import unescape
from typing import TYPE_CHECKING, Any

import pytest

from broker_api.console import concerns
from broker_common.core.errors import UnreadableRecord
from broker_common.core.job_registry import JOBS
from broker_common.core.jobs import JobState
from broker_common.core.overview import Breaker
from broker_common.core.principals import Actor
from broker_common.core.samples import Sample, minute_of
from broker_common.core.sandbox import Status
from broker_common.core.telemetry import AllocateOutcome
from tests.contract.line import make_place
from tests.contract.webhooks import make_endpoint
from tests.fakes import START, make_reservation, make_sandbox

if TYPE_CHECKING:
    from tests.console.harness import Console

NOW = minute_of(START)
HOUR_SEC = 3600


def text_of(html: str) -> str:
    """Return the text of a page without its tags, with one space between words."""
    return unescape(" ".join(re.sub(r"<[^>]*>", " ", html).split()))


def part(console: Console, name: str) -> str:
    """Return the text of one part of the page."""
    page = console.open("/")
    assert page.status_code == 200, page.text
    return text_of("<" + page.text.split(f'data-live="{name}"')[1].split("</section>")[0])


def fill(console: Console, *, available: int = 0, **others: int) -> None:
    counts = {"available": available} | others
    console.api.store.seed(
        *(
            make_sandbox(f"{status}-{number}", status=Status(status))
            for status, count in counts.items()
            for number in range(count)
        )
    )


def asked(console: Console, **outcomes: int) -> None:
    console.api.store.add_allocates(NOW, {AllocateOutcome(name): count for name, count in outcomes.items()})


def paused(console: Console, **operations: bool) -> None:
    assert console.api.admin("POST", "/v1/admin/pause", json=operations).status_code == 200


def watched(console: Console) -> None:
    console.api.queue.enqueue("watch", by=Actor(principal="job:watch"), flags={})
    console.api.queue.states = deque([JobState.SUCCEEDED])


def test_tracks_are_served_while_sandboxes_are_free(console: Console) -> None:
    fill(console, available=3)
    asked(console, success=118, idempotent=4)
    found = part(console, "verdict")
    assert "Are tracks being served? Yes. 3 sandboxes are free." in found
    assert "Requests of the last hour: 118 got a sandbox, 4 asked again for what they hold." in found


def test_nobody_asked_is_said(console: Console) -> None:
    fill(console, available=1)
    assert "Yes. 1 sandbox is free. No track asked in the last hour." in part(console, "verdict")


def test_a_pause_of_allocation_is_the_first_thing_that_is_said_with_who_and_since_when(console: Console) -> None:
    fill(console, available=3)
    paused(console, allocate=True)
    console.api.clock.advance(300)
    found = part(console, "verdict")
    assert "No. Allocation is paused. Since" in found
    assert "5 min ago" in found
    assert "It was paused by admin. Tracks keep what they hold." in found
    assert "Allocation is paused by admin." in part(console, "concerns")


def test_an_empty_pool_says_what_to_do(console: Console) -> None:
    found = part(console, "verdict")
    assert "No. The pool is empty." in found
    assert "Run a sync on the page Jobs" in found


def test_without_a_free_sandbox_the_answer_is_not_now(console: Console) -> None:
    fill(console, allocated=2)
    assert "Not now. No sandbox is free. The next track is refused, or waits in the line." in part(console, "verdict")


def test_without_a_free_sandbox_it_is_said_since_when_tracks_wait(console: Console) -> None:
    fill(console, allocated=2, pending_deletion=1)
    console.api.store.join(make_place("track-9", joined_at=START))
    found = part(console, "verdict")
    assert "Not at once. No sandbox is free, and 1 track waits in the line. Since" in found
    assert "2 are in use, and 1 wait to be wiped." in found
    assert "The track that waits longest has waited since" in part(console, "now")


def test_when_all_free_ones_are_set_aside_only_classes_are_served(console: Console) -> None:
    fill(console, reserved=2)
    assert "Only classes. All sandboxes that are free are set aside" in part(console, "verdict")


@pytest.mark.parametrize(
    ("outcomes", "answer"),
    [
        ({"success": 2, "error": 3}, "Hardly. 3 requests failed in the last hour, although 2 sandboxes are free."),
        ({"success": 9, "error": 3}, "Mostly. 2 sandboxes are free, but 3 requests failed in the last hour."),
        ({"success": 9, "no_sandboxes": 4}, "Yes, now. 2 sandboxes are free, but 4 requests were refused"),
    ],
)
def test_requests_that_failed_or_were_refused_are_part_of_the_answer(
    console: Console, outcomes: dict[str, int], answer: str
) -> None:
    fill(console, available=2)
    asked(console, **outcomes)
    assert answer in part(console, "verdict")


def test_tracks_that_wait_although_others_are_free_are_said(console: Console) -> None:
    fill(console, available=2)
    for number in range(2):
        console.api.store.join(make_place(f"track-{number}", joined_at=START))
    assert "Not all. 2 sandboxes are free, and 2 tracks wait in the line." in part(console, "verdict")


def test_a_line_that_grows_is_said(console: Console) -> None:
    before = START - 900 - (START - 900) % 300
    fill(console, allocated=1)
    console.api.store.write_sample(Sample(at=before, by_status=dict.fromkeys(Status, 0), waiting=0))
    console.api.store.join(make_place("track-9", joined_at=START))
    assert "The line grows: 0 waited a quarter of an hour ago, 1 wait now." in part(console, "verdict")


def test_the_counts_of_the_pool_lead_to_the_sandboxes_of_each_status(console: Console) -> None:
    fill(console, available=3, allocated=1)
    page = console.open("/").text
    assert 'href="/sandboxes?status=available"><span class="count">3</span>' in page
    assert 'href="/sandboxes?status=deletion_failed"><span class="count">0</span>' in page
    assert 'href="/sandboxes"><span class="count">4</span>' in page
    assert 'href="/line"><span class="count">0</span>' in page


def test_nothing_needs_a_person_while_all_is_well(console: Console) -> None:
    fill(console, available=1)
    watched(console)
    assert "Nothing needs a person." in part(console, "concerns")


def test_what_needs_a_person_is_listed_with_where_to_look(console: Console) -> None:
    fill(console, deletion_failed=2)
    watched(console)
    console.api.store.reservations["res-1"] = make_reservation(count=3, set_aside=1, name="<i>Intro</i>")
    console.api.store.endpoints["a"] = make_endpoint("a", failing_since=START - 60)
    console.api.store.endpoints["b"] = make_endpoint("b", disabled_at=START, disabled_reason="it failed")
    console.api.store.endpoints["c"] = make_endpoint("c", disabled_at=START, disabled_reason="it failed")
    console.api.breaker.now = Breaker(state="open", failures=5, reason="it answered 500", open_until=START + 60)
    paused(console, cleanup=True)
    found, page = part(console, "concerns"), console.open("/").text
    assert "2 sandboxes need a person: see the reason of each." in found
    assert "The class <i>Intro</i> lacks 2 of 3 sandboxes." in found
    assert "<i>Intro" not in page
    assert page.count('href="/reservations/res-1"') == 2
    assert "1 of 3 webhooks is failing." in found
    assert "2 of 3 webhooks are disabled." in found
    assert "The breaker of calls to the provider is open, so wipes wait: It answered 500." in found
    assert "Cleanup is paused by admin. Since" in found
    assert "is open until" in part(console, "jobs")


def test_a_wipe_that_waits_for_long_is_said(console: Console) -> None:
    fill(console, available=1)
    sandbox_id = console.api.allocate()["sandbox_id"]
    console.api.track("POST", f"/v1/sandboxes/{sandbox_id}/mark-for-deletion")
    assert "has waited since" in part(console, "hour")
    console.api.clock.advance(2 * HOUR_SEC)
    assert "A sandbox has waited for more than an hour to be wiped. Since" in part(console, "concerns")


def test_a_failed_job_is_said_with_its_reason_and_its_run(console: Console) -> None:
    console.api.queue.enqueue("sync", by=Actor(principal="anna"), flags={})
    console.api.queue.states = deque([JobState.FAILED])
    console.api.queue.error = "53 of 100 sandboxes are missing. If the list is right, run the sync with force"
    page = console.open("/").text
    assert 'href="/jobs/runs/job-1">Sync failed: 53 of 100 sandboxes are missing.' in page
    assert "✗" not in page
    assert "Sync" in part(console, "jobs")


def test_a_job_that_only_a_newer_api_knows_has_its_own_name(console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(concerns, "JOBS", {name: JOBS[name] for name in JOBS if name != "sync"})
    console.api.queue.enqueue("sync", by=Actor(principal="anna"), flags={})
    console.api.queue.states = deque([JobState.FAILED])
    console.api.queue.error = "the list is empty"
    assert "Sync failed: The list is empty." in part(console, "concerns")


def test_runs_that_people_asked_for_do_not_show_that_the_schedule_works(console: Console) -> None:
    console.api.queue.enqueue("watch", by=Actor(principal="anna"), flags={})
    console.api.queue.states = deque([JobState.SUCCEEDED])
    console.api.clock.advance(121)
    assert "The jobs do not run." in part(console, "concerns")


def test_jobs_get_two_minutes_for_their_first_runs_after_a_start(console: Console) -> None:
    console.api.clock.advance(120)
    assert "The jobs do not run" not in part(console, "concerns")
    assert "After a start, the first runs come within two minutes." in part(console, "jobs")
    console.api.clock.advance(1)
    assert "The jobs do not run." in part(console, "concerns")


def test_jobs_that_do_not_run_are_said(console: Console) -> None:
    watched(console)
    assert "The jobs do not run" not in part(console, "concerns")
    console.api.clock.advance(400)
    assert "The jobs do not run. Look whether beat and a worker for jobs are running. Since" in part(
        console, "concerns"
    )


def test_with_redis_away_a_sentence_says_so(console: Console) -> None:
    fill(console, available=1)
    console.api.queue.down = True
    assert "The jobs cannot be read: The job queue cannot be reached. Tracks are served all the same." in part(
        console, "concerns"
    )
    found = part(console, "jobs")
    assert "The jobs cannot be read: The job queue cannot be reached. Jobs need Redis." in found
    assert "The breaker is not known." in found
    assert "Yes. 1 sandbox is free." in part(console, "verdict")


def test_a_breaker_that_alone_cannot_be_read_is_said(console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    def away() -> None:
        console.api.queue.down = True
        console.api.queue.ping()

    monkeypatch.setattr(console.api.breaker, "read", away)
    assert "The breaker cannot be read: The job queue cannot be reached." in part(console, "concerns")


def test_pauses_that_cannot_be_read_are_said(console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise UnreadableRecord("the record of the pauses", "its schema is newer")

    fill(console, available=1)
    monkeypatch.setattr(console.api.store, "read_pauses", fail)
    assert "It is not known whether allocation is paused." in part(console, "verdict")
    assert "The pauses cannot be read: The record of the pauses cannot be read: its schema is newer." in part(
        console, "concerns"
    )


def test_classes_that_are_open_or_start_within_a_day_are_shown_in_their_order(console: Console) -> None:
    later = make_reservation("res-2", name="Later", starts_at=START + 5 * HOUR_SEC, ends_at=START + 6 * HOUR_SEC)
    day = 24 * HOUR_SEC
    for each in (
        later,
        make_reservation("res-1", name="Open", count=3, set_aside=3),
        make_reservation("res-3", name="Tomorrow", starts_at=START + 2 * day, ends_at=START + 2 * day + 600),
        replace(later, reservation_id="res-4", name="Over", starts_at=START - 7200, ends_at=START - 60),
    ):
        console.api.store.reservations[each.reservation_id] = each
    found = part(console, "classes")
    assert found.index("Open") < found.index("Later")
    assert "not yet set aside" in found
    assert "Tomorrow" not in found
    assert "Over" not in found


def test_without_a_class_booking_one_is_offered(console: Console) -> None:
    assert 'href="/reservations/new">Book one</a>' in console.open("/").text
    assert "No class is booked for this time. Book one , so that sandboxes are set aside for it." in part(
        console, "classes"
    )


def test_reservations_that_cannot_be_read_do_not_take_the_page_away(
    console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    console.api.store.reservations["res-1"] = make_reservation(name="Open")
    assert console.api.admin("GET", "/v1/admin/overview").status_code == 200
    sent = console.to_api.send

    def refuse(request: Any, **options: Any) -> Any:
        if "/reservations" in request.url:
            request.url = request.url.replace("/reservations?limit=50", "/reservations?limit=0")
        return sent(request, **options)

    monkeypatch.setattr(console.to_api, "send", refuse)
    assert "Open" in part(console, "classes")


def test_a_view_costs_two_calls_and_once_a_minute_a_third(console: Console) -> None:
    console.open("/")
    before = len(console.to_api.sent)
    console.open("/")
    assert [(each.url or "").split("?")[0].rsplit("/", 1)[1] for each in console.to_api.sent[before:]] == [
        "overview",
        "reservations",
    ]
    console.api.clock.advance(60)
    before = len(console.to_api.sent)
    console.open("/")
    assert len(console.to_api.sent) - before == 3


def test_with_the_api_away_the_last_known_state_is_shown_with_its_age(console: Console) -> None:
    fill(console, available=3)
    console.open("/")
    console.to_api.away = True
    page = console.open("/").text
    assert "This is the last known state" in page
    assert "Yes. 3 sandboxes are free." in page
