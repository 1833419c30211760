"""While the API is away or refuses: the last known state with its age, and sentences, never a traceback."""

from __future__ import annotations

import html
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from broker_api.console import last_known, reach
from broker_api.console.app import PAGES
from broker_api.console.calls import SignedOut, act, read
from broker_common.adapters.broker_http import TIMEOUT_SEC, BrokerHttp, Unreachable
from broker_common.core.ports import Allowance
from deploy.dev.processes import free_ports
from tests.api.harness import ADMIN_TOKEN, make_api
from tests.console.harness import Console, make_console
from tests.http_server import Handler, serving

if TYPE_CHECKING:
    import requests
    from werkzeug.test import TestResponse


def text_of(page: TestResponse) -> str:
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", page.text)))


def path_of(console: Console, endpoint: str) -> str:
    with console.app.test_request_context():
        return console.app.url_for(endpoint)


def test_a_page_shows_the_last_known_state_and_how_old_it_is(console: Console) -> None:
    console.open("/")
    console.to_api.away = True
    console.api.clock.advance(90)
    page = console.open("/")
    assert page.status_code == 200
    said = text_of(page)
    assert "This is the last known state, of " in said
    assert "the broker's API does not answer." in said
    at = re.search(r'last known state, of <time datetime="([^"]+)"', page.text)
    now = re.search(r'As of <time datetime="([^"]+)"', page.text)
    assert at
    assert now
    assert at.group(1) == now.group(1)


@pytest.mark.parametrize("endpoint", [endpoint for endpoint, _ in PAGES])
def test_a_page_that_nobody_saw_before_says_that_the_api_is_away(console: Console, endpoint: str) -> None:
    path, sent = path_of(console, endpoint), len(console.to_api.sent)
    console.open(path)
    asks_the_api = len(console.to_api.sent) > sent
    fresh = make_console(console.api)
    fresh.sign_in()
    fresh.to_api.away = True

    page = fresh.open(path)

    assert page.status_code in {200, 503}
    assert ("API does not answer" in text_of(page)) == asks_the_api
    assert "Traceback" not in page.text
    assert "admin (admin)" in text_of(page)


def test_the_page_without_an_answer_is_renewed_until_there_is_one(console: Console) -> None:
    console.to_api.away = True
    page = console.open("/jobs")
    assert page.status_code == 503
    assert "data-reload" in page.text
    assert 'href="/jobs"' in page.text


def test_what_was_known_an_hour_ago_is_not_shown(console: Console) -> None:
    console.open("/")
    console.to_api.away = True
    console.api.clock.advance(3600)
    assert console.open("/").status_code == 200
    console.api.clock.advance(1)
    assert console.open("/").status_code == 503


def test_nobody_sees_what_another_person_was_told() -> None:
    console = make_console(make_api(BROKER_ADMIN_TOKEN=f"{ADMIN_TOKEN},other-token"))
    console.sign_in()
    console.open("/jobs")
    other = Console(console.app, console.api, console.to_api)
    assert other.sign_in("other-token").status_code == 303
    console.to_api.away = True
    assert console.open("/jobs").status_code == 200
    assert other.open("/jobs").status_code == 503


def test_only_so_many_answers_are_kept(console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(last_known, "_MOST_BYTES", 600)
    small = make_console(console.api)
    small.sign_in()
    small.open("/jobs")
    small.open("/line")
    small.to_api.away = True
    assert small.open("/jobs").status_code == 503
    assert small.open("/line").status_code == 200


def test_an_answer_that_is_too_long_is_not_kept(console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    console.open("/line")
    monkeypatch.setattr(last_known, "_MOST_BYTES_EACH", 10)
    console.open("/line")
    console.to_api.away = True
    assert console.open("/line").status_code == 503


PATHS = ("/", "/line", "/jobs", "/webhooks", "/usage")


def test_while_the_api_hangs_two_calls_wait_and_all_pages_answer_from_what_is_known(console: Console) -> None:
    for path in PATHS:
        console.open(path)
    console.to_api.hangs, console.to_api.tries = True, 0
    for path in PATHS:
        assert "This is the last known state" in text_of(console.open(path)), path
    assert console.to_api.tries == 2
    assert console.to_api.waited[-1] == (2.0, 5.0)
    console.api.clock.advance(5)
    console.open("/line")
    console.open("/jobs")
    assert console.to_api.tries == 3
    console.to_api.hangs = False
    console.api.clock.advance(10)
    for path in PATHS:
        assert "last known state" not in console.open(path).text, path


def test_while_nothing_listens_one_call_finds_out(console: Console) -> None:
    for path in PATHS:
        console.open(path)
    console.to_api.away, console.to_api.tries = True, 0
    for path in PATHS:
        assert "This is the last known state" in text_of(console.open(path)), path
    assert console.to_api.tries == 1


def test_one_path_that_hangs_is_left_alone_and_all_others_are_asked(console: Console) -> None:
    for path in PATHS:
        console.open(path)
    console.to_api.hang = {"/waiting"}
    for _ in range(3):
        assert "last known state" in console.open("/line").text
        for path in ("/jobs", "/webhooks", "/usage"):
            assert "last known state" not in console.open(path).text, path
    assert console.to_api.tried.count("/waiting") == 2, "once when it answered, and once when it did not"
    console.to_api.hang = set()
    console.api.clock.advance(4)
    assert "last known state" in console.open("/line").text
    console.api.clock.advance(1)
    assert "last known state" not in console.open("/line").text


def test_the_rest_of_a_page_is_asked_for_after_its_slow_part(console: Console) -> None:
    console.open("/line")
    console.to_api.hang = {"/waiting"}
    console.to_api.tried.clear()
    console.open("/line")
    assert console.to_api.tried[:2] == ["/waiting", "/overview"]


def test_two_slow_paths_do_not_keep_the_others_away_for_ever(console: Console) -> None:
    for path in PATHS:
        console.open(path)
    console.to_api.hang = {"/overview", "/waiting"}
    console.open("/line")
    assert "last known state" in console.open("/webhooks").text
    for _ in range(2):
        console.api.clock.advance(5)
        console.open("/line")
        assert "last known state" not in console.open("/webhooks").text


def test_reads_that_wait_leave_threads_for_what_needs_no_read(
    console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four threads of the console's sixteen are left when the API hangs while many pages are opened."""
    monkeypatch.setattr(reach, "_PLACE_SEC", 0.01)
    console.open("/line")
    hold_on, waiting = threading.Event(), threading.Semaphore(0)
    send = console.to_api.send

    def hang(request: requests.PreparedRequest, **options: Any) -> requests.Response:
        waiting.release()
        hold_on.wait(60)
        return send(request, **options)

    monkeypatch.setattr(console.to_api, "send", hang)
    cookie = console.browser.get_cookie("broker-console")
    assert cookie is not None

    def open_page() -> int:
        browser = console.new_browser()
        browser.set_cookie(cookie.key, cookie.value)
        return browser.get("/webhooks").status_code

    with ThreadPoolExecutor(reach.MOST_READS) as pool:
        opened = [pool.submit(open_page) for _ in range(reach.MOST_READS)]
        try:
            for _ in opened:
                assert waiting.acquire(timeout=60)
            assert "last known state" in console.open("/line").text
            assert not waiting.acquire(blocking=False)
        finally:
            hold_on.set()
    assert [each.result() for each in opened] == [200] * reach.MOST_READS
    assert "last known state" not in console.open("/line").text


class Broken(Handler):
    """Hangs up without an answer."""


@pytest.mark.parametrize("listens", [True, False])
def test_an_api_that_hangs_up_is_told_from_one_that_is_not_there(listens: bool) -> None:
    with serving(Broken) as server:
        port = server.server_port if listens else free_ports(1)[0]
        with pytest.raises(Unreachable) as caught:
            BrokerHttp(f"http://127.0.0.1:{port}/v1").call("GET", "/admin/overview", token="any")
    assert caught.value.no_connection is not listens


def test_an_act_is_tried_even_so_and_has_more_time(console: Console) -> None:
    console.open("/jobs")
    console.to_api.hangs = True
    console.open("/jobs")
    tries = console.to_api.tries
    console.send("/jobs/cleanup/run", page="/jobs")
    assert console.to_api.tries == tries + 1
    assert console.to_api.waited[-1] == TIMEOUT_SEC


@pytest.mark.parametrize("path", ["/usage", "/usage/csv?by=day&from=2025-06-14&to=2025-06-15"])
def test_a_report_has_more_time_than_other_reads(console: Console, path: str) -> None:
    console.open(path)
    assert console.to_api.waited[-1] == TIMEOUT_SEC


def test_a_page_that_answers_a_form_is_not_loaded_again_by_itself(console: Console) -> None:
    """The browser would send the form again."""
    console.app.view_functions["signin.out"] = lambda: read("/jobs")
    console.to_api.away = True
    page = console.send("/signout", page="/nothing")
    assert page.status_code == 503
    assert "data-reload" not in page.text
    assert "tries again by itself" not in page.text


def test_a_form_whose_call_was_made_does_not_say_that_nothing_was_changed(console: Console) -> None:
    def change() -> str:
        act("Done", "POST", "/cleanup")
        raise SignedOut("You are signed out.")

    console.app.view_functions["signin.out"] = change
    console.send("/signout")
    said = text_of(console.open("/signin"))
    assert "You are signed out." in said
    assert "Nothing was changed" not in said


def test_a_busy_api_counts_as_one_that_is_away(console: Console) -> None:
    console.open("/line")
    console.api.rate_limit.answer = Allowance(is_exceeded=True, limit=200, remaining=0, reset_after=4, retry_after=1)
    page = console.open("/line")
    assert page.status_code == 200
    assert "This is the last known state, of " in text_of(page)
    assert ": too many requests." in text_of(page)
    new = console.open("/line?all=1")
    assert (new.status_code, "Too many requests. (request " in text_of(new)) == (429, True)


def test_a_form_that_had_no_answer_says_that_nobody_knows_whether_it_was_done(console: Console) -> None:
    found = re.search(r'name="csrf_token"[^>]*value="([^"]+)"', console.open("/jobs").text)
    assert found
    console.to_api.away = True
    answer = console.browser.post(
        "/jobs/cleanup/run", data={"csrf_token": found.group(1), "next": "/jobs"}, follow_redirects=True
    )
    said = text_of(answer)
    assert re.search(
        r"It is not known whether this was done: look before you try again. \(request [0-9a-f-]{36}\)", said
    )
    assert "This is the last known state, of " in said


def test_the_console_is_ready_while_the_api_is_away() -> None:
    console = make_console()
    console.to_api.away = True
    assert console.open("/healthz").status_code == 200
    assert console.open("/readyz").status_code == 200
    assert console.open("/signin").status_code == 200


def test_after_the_api_is_back_no_banner_is_left(console: Console) -> None:
    console.open("/")
    console.to_api.away = True
    console.open("/")
    console.to_api.away = False
    console.api.clock.advance(5)
    assert "last known state" not in console.open("/").text
