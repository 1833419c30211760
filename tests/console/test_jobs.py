"""The page jobs: last runs, one run, starting a run, and pauses."""

from __future__ import annotations

import re
from collections import deque
from html import unescape
from typing import TYPE_CHECKING

import pytest

from broker_common.core.errors import UnreadableRecord
from broker_common.core.jobs import JobState
from broker_common.core.principals import Actor
from tests.api.harness import make_api, named_token
from tests.console.harness import Console, make_console

if TYPE_CHECKING:
    from pathlib import Path

VIEWER_TOKEN = "viewer-token-of-32-characters-long"


def text_of(html: str) -> str:
    """Return the text of a page without its tags, with one space between words."""
    return unescape(" ".join(re.sub(r"<[^>]*>", " ", html).split()))


def ended(console: Console, job: str, state: JobState = JobState.SUCCEEDED, by: str = "anna") -> None:
    console.api.queue.enqueue(job, by=Actor(principal=by, request_id="req-7"), flags={})
    console.api.queue.states = deque([state])


@pytest.fixture
def viewer(tmp_path: Path) -> Console:
    """Return a console in which somebody is signed in who may only look."""
    tokens = tmp_path / "tokens.toml"
    tokens.write_text(named_token("vera", VIEWER_TOKEN, "viewer"))
    tokens.chmod(0o600)
    console = make_console(make_api(BROKER_TOKENS_FILE=str(tokens)))
    assert console.sign_in(VIEWER_TOKEN).status_code == 303
    return console


def test_each_job_is_shown_with_its_last_run_and_what_it_did_in_words(console: Console) -> None:
    ended(console, "sync")
    console.api.queue.result = {"synced": 300, "added": 2, "stale": 0, "judged": 42}
    shown = text_of(console.open("/jobs").text)
    assert (
        "Sync Update the pool from the provider's list of accounts. It runs every 10 min, unless a setting says otherwise."
        in shown
    )
    assert "by anna" in shown
    assert "succeeded 300 listed by the provider, 2 added." in shown
    assert "It runs daily at 02:00 UTC." in shown


def test_a_run_that_did_nothing_says_so_and_a_run_of_the_schedule_says_who_asked(console: Console) -> None:
    ended(console, "expire", by="job:expire")
    console.api.queue.result = {"expired": 0, "failed": 0}
    shown = text_of(console.open("/jobs").text)
    assert "by the schedule" in shown
    assert "There was nothing to do." in shown


def test_a_failed_run_says_why(console: Console) -> None:
    ended(console, "sync", JobState.FAILED)
    console.api.queue.error = "<b>53 of 100</b> sandboxes are missing"
    page = console.open("/jobs").text
    assert "&lt;b&gt;53 of 100&lt;/b&gt; sandboxes are missing." in page
    assert "<b>53" not in page


def test_runs_can_be_filtered_by_job_and_frequent_jobs_do_not_hide_the_main_ones(console: Console) -> None:
    for job in ("sync", "deliver", "cleanup"):
        ended(console, job)
    main, delivers = console.open("/jobs").text, console.open("/jobs?job=deliver").text
    runs = main.split('data-live="runs"')[1]
    assert "/jobs/runs/job-1" in runs
    assert "/jobs/runs/job-2" not in runs
    assert "Last runs of Deliver" in delivers
    assert "/jobs/runs/job-2" in delivers.split('data-live="runs"')[1]


def test_an_unknown_job_is_not_found(console: Console) -> None:
    assert console.open("/jobs?job=nothing").status_code == 404
    assert console.send("/jobs/nothing/run").status_code == 404
    assert console.send("/jobs/pauses/nothing").status_code == 404


def test_without_any_run_the_page_says_what_to_look_at(console: Console) -> None:
    shown = text_of(console.open("/jobs").text)
    assert "No run is known." in shown
    assert "none in a day" in shown


def test_a_job_can_be_run_now_and_its_page_follows_it_to_its_end(console: Console) -> None:
    answer = console.send("/jobs/cleanup/run", page="/jobs")
    assert (answer.status_code, answer.location) == (303, "/jobs/runs/job-1")
    assert [(job, by.principal) for job, by, _ in console.api.queue.enqueued] == [("cleanup", "admin")]
    queued = console.open(answer.location).text
    assert "Cleanup is asked for. This page follows it. (request " in queued
    assert "It waits for a worker." in text_of(queued)
    assert "It waits for a worker." not in text_of(console.open("/jobs").text)
    assert "data-often" in queued
    console.api.queue.states = deque([JobState.RUNNING])
    assert "It has run since" in text_of(console.open(answer.location).text)
    console.api.queue.states, console.api.queue.result = deque([JobState.SUCCEEDED]), {"deleted": 3, "new_count": 1}
    done = console.open(answer.location).text
    assert "succeeded 3 wiped, 1 new count." in text_of(done)
    assert "data-final" in done
    assert "data-often" not in done
    assert "Took 1 s" in text_of(done)
    assert "Run again" in done


def test_a_run_that_is_not_known_is_not_looked_for_again(console: Console) -> None:
    answer = console.open("/jobs/runs/job-9")
    assert answer.status_code == 404
    assert "No run job-9 is known." in text_of(answer.text)
    assert "data-final" in answer.text
    assert "data-often" not in answer.text


def test_what_a_cleanup_did_is_counted_once_and_leads_to_the_sandboxes(console: Console) -> None:
    ended(console, "cleanup")
    console.api.queue.result = {"deleted": 4, "gave_up": 2, "will_retry": 1, "failed": 3}
    for path in ("/jobs", "/jobs/runs/job-1"):
        page = console.open(path).text
        summary = page.split("All counts")[0]
        assert '4 wiped, <a href="/sandboxes?status=pending_deletion">1 to be tried again</a>, ' in summary
        assert '<a href="/sandboxes?status=deletion_failed">2 given up, a person must look</a>.' in summary
        assert "3 failed" not in summary
    assert "failed 3 failed in all" in text_of(console.open("/jobs/runs/job-1").text)


def test_other_counts_lead_to_the_page_that_shows_more(console: Console) -> None:
    ended(console, "watch")
    console.api.queue.result = {"available": 5, "waiting": 2, "failed": 1}
    page = console.open("/jobs?job=watch").text
    assert '<a href="/line">2 waiting in the line</a>, 1 failed in all.' in page
    assert '<a href="/sandboxes?status=available">5 available</a>' in page


def test_an_error_of_the_provider_is_said_by_its_message(console: Console) -> None:
    ended(console, "cleanup", JobState.FAILED)
    console.api.queue.error = 'delete: HTTP 401: {"error": [{"message": "The token has expired"}]}'
    for path in ("/jobs", "/jobs/runs/job-1", "/"):
        shown = text_of(console.open(path).text)
        assert "HTTP 401: The token has expired." in shown
        assert "message" not in shown.replace("messages", "")


def test_a_paused_job_is_not_offered_to_run_but_to_resume(console: Console) -> None:
    ended(console, "sync")
    console.send("/jobs/pauses/sync", {"paused": "yes"})
    for path in ("/jobs", "/jobs/runs/job-1"):
        page = console.open(path).text
        assert "It is paused, so a run would be skipped." in page
        assert 'action="/jobs/sync/run"' not in page
        assert 'Resume<span class="visually-hidden"> the job Sync</span>' in page
    assert "a sync with force would be skipped, too" in console.open("/jobs").text
    assert 'action="/jobs/sync/force"' not in console.open("/jobs").text
    assert 'action="/jobs/cleanup/run"' in console.open("/jobs").text


def test_a_run_is_shown_and_offered_again_although_the_pauses_cannot_be_read(
    console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise UnreadableRecord("the record of the pauses", "its schema is newer")

    ended(console, "sync")
    monkeypatch.setattr(console.api.store, "read_pauses", fail)
    assert 'action="/jobs/sync/run"' in console.open("/jobs/runs/job-1").text


def test_a_sync_is_forced_only_if_that_was_typed(console: Console) -> None:
    page = console.open("/jobs").text
    assert "takes all of them out of service, however many" in text_of(page)
    refused = console.send("/jobs/sync/force", {"typed": "yes"}, page="/jobs")
    assert (refused.status_code, refused.location) == (303, "/jobs")
    assert console.api.queue.enqueued == []
    assert "what you typed is not force" in console.open("/jobs").text
    answer = console.send("/jobs/sync/force", {"typed": "force"}, page="/jobs")
    assert answer.location == "/jobs/runs/job-1"
    assert [(job, dict(flags)) for job, _, flags in console.api.queue.enqueued] == [("sync", {"force": True})]


def test_an_operation_can_be_paused_and_resumed_and_the_page_says_who_paused_it(console: Console) -> None:
    console.send("/jobs/pauses/cleanup", {"paused": "yes", "next": "/jobs"}, page="/jobs")
    console.api.clock.advance(120)
    page = console.open("/jobs").text
    assert "Cleanup is paused. Every process follows within 5 seconds. (request " in page
    shown = text_of(page)
    assert "paused by admin since" in shown
    assert "2 min ago" in shown
    assert console.api.store.read_pauses().cleanup is not None
    console.send("/jobs/pauses/cleanup", {"paused": "no"}, page="/jobs")
    assert "Cleanup goes on. Every process" in console.open("/jobs").text
    assert console.api.store.read_pauses().cleanup is None


def test_with_redis_away_the_page_says_so_offers_no_run_and_still_pauses(console: Console) -> None:
    console.api.queue.down = True
    page = console.open("/jobs").text
    assert "no job can be started now: the job queue cannot be reached. Jobs need Redis." in text_of(page)
    assert "Run now" not in page
    assert "Pause" in page


def test_a_run_that_redis_refuses_is_said_on_the_page(console: Console) -> None:
    console.api.queue.down = True
    answer = console.send("/jobs/sync/run", page="/jobs")
    assert answer.location == "/jobs"
    assert "The job queue cannot be reached. (request " in console.open("/jobs").text
    gone = console.open("/jobs/runs/job-1")
    assert gone.status_code == 503
    assert "The job queue cannot be reached." in gone.text


def test_pauses_that_cannot_be_read_are_said_and_both_ways_are_offered(
    console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise UnreadableRecord("the record of the pauses", "its schema is newer")

    monkeypatch.setattr(console.api.store, "read_pauses", fail)
    page = console.open("/jobs").text
    shown = text_of(page)
    assert "It cannot be read what is paused: the record of the pauses cannot be read: its schema is newer." in shown
    cleanup = page.split('action="/jobs/pauses/cleanup"')[1:]
    assert [re.findall('name="paused" value="([^"]+)"', each)[0] for each in cleanup] == ["yes", "no"]


def test_somebody_who_may_only_look_is_offered_no_act_and_none_is_done(viewer: Console) -> None:
    ended(viewer, "sync")
    page = viewer.open("/jobs").text
    assert "Run now" not in page
    assert 'action="/jobs' not in page
    assert "Run again" not in viewer.open("/jobs/runs/job-1").text
    for path in ("/jobs/sync/run", "/jobs/sync/force", "/jobs/pauses/sync"):
        assert viewer.send(path, {"typed": "force", "paused": "yes"}).status_code == 403
    assert len(viewer.api.queue.enqueued) == 1
