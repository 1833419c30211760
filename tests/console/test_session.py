"""The session: an encrypted cookie that nobody else can make, read, keep for long, or give to another person."""

from __future__ import annotations

import base64
import re
from typing import TYPE_CHECKING, Any

import pytest
from flask import flash, session

from broker_api.console.session import LONGEST_TOKEN, EncryptedSessions, SessionTooLarge
from tests.api.harness import ADMIN_TOKEN, make_api
from tests.console.harness import Console, make_console

if TYPE_CHECKING:
    from werkzeug.test import TestResponse

NAME = "broker-console"
OLD, NEW = "o" * 40, "n" * 40


def held(console: Console, name: str = NAME) -> str:
    """Return the value of a cookie in the browser; empty if there is none."""
    cookie = console.browser.get_cookie(name)
    return cookie.value if cookie is not None else ""


def give(console: Console, value: str, name: str = NAME) -> None:
    """Put a cookie into the browser."""
    console.browser.set_cookie(name, value)


def is_signed_in(console: Console) -> bool:
    return console.open("/").status_code == 200


def written(answer: TestResponse) -> list[str]:
    """Return the names of the cookies that an answer sets."""
    return [header.split("=")[0] for header in answer.headers.getlist("Set-Cookie")]


def csrf_of(page: TestResponse) -> str:
    found = re.search(r'name="csrf_token"[^>]*value="([^"]+)"', page.text)
    assert found
    return found.group(1)


# -- what the cookie is


def test_the_cookie_is_for_this_console_alone_and_no_script_reads_it(stranger: Console) -> None:
    (cookie,) = stranger.sign_in().headers.getlist("Set-Cookie")
    assert cookie.split("; ")[1:] == ["HttpOnly", "Path=/", "SameSite=Strict"]


def test_in_production_browsers_take_the_cookie_only_over_tls_and_from_this_host() -> None:
    console = make_console(None, {"BROKER_ENV": "production"})
    (cookie,) = console.open("/signin").headers.getlist("Set-Cookie")
    assert cookie.startswith("__Host-broker-console=")
    assert cookie.split("; ")[1:] == ["Secure", "HttpOnly", "Path=/", "SameSite=Strict"]


def test_the_cookie_does_not_show_what_it_holds(console: Console) -> None:
    raw = base64.urlsafe_b64decode(held(console))
    for secret in (ADMIN_TOKEN, "admin", "roles"):
        assert secret.encode() not in raw
        assert secret not in held(console)


def test_without_a_key_in_development_each_process_has_one_of_its_own() -> None:
    first, second = (make_console(None, {"CONSOLE_SECRET_KEY": ""}) for _ in range(2))
    first.sign_in()
    give(second, held(first))
    assert not is_signed_in(second)


# -- who can make one, and for how long it is good


def test_at_sign_in_nothing_of_the_session_before_stays(stranger: Console) -> None:
    """A person who planted a session in the browser does not know the new one, and not its tokens for forms."""
    planted = csrf_of(stranger.open("/signin"))
    before = held(stranger)
    stranger.sign_in()
    assert held(stranger) != before
    refused = stranger.browser.post("/signout", data={"csrf_token": planted})
    assert refused.status_code == 400
    assert is_signed_in(stranger)
    give(stranger, before)
    assert not is_signed_in(stranger)


@pytest.mark.parametrize("place", [0, 10, 40, -20, -2])
def test_a_cookie_that_was_changed_counts_as_none(console: Console, place: int) -> None:
    value = held(console)
    other = "A" if value[place] != "A" else "B"
    changed = value[:place] + other + value[place:][1:]
    give(console, changed)
    assert not is_signed_in(console)


@pytest.mark.parametrize("value", ["", "x", "gAAAAA==", "é", "A" * 5000, "null", '{"token": "admin-token"}'])
def test_a_cookie_that_is_none_of_ours_counts_as_none(stranger: Console, value: str) -> None:
    answer = stranger.open("/", headers={"Cookie": f"{NAME}={value}"})
    assert (answer.status_code, answer.headers["Location"]) == (303, "/signin")


def test_the_cookie_of_a_pending_sign_in_is_no_session(console: Console) -> None:
    """Both are encrypted with keys that come from one secret, but each has a purpose."""
    value = held(console)
    console.browser.set_cookie("broker-console-sign-in", value)
    assert console.open("/signin/return?state=x").status_code == 400


def test_a_session_ends_after_a_working_day(console: Console) -> None:
    console.api.clock.advance(12 * 3600 - 1)
    assert is_signed_in(console)
    console.api.clock.advance(1)
    answer = console.open("/")
    assert answer.headers["Location"] == "/signin"
    assert "Your sign-in has ended. Sign in again." in console.open("/signin").text


def test_a_session_of_the_future_is_none_but_clocks_may_differ_a_little(console: Console) -> None:
    console.api.clock.advance(-300)
    assert is_signed_in(console)
    console.api.clock.advance(-1)
    assert not is_signed_in(console)


def test_a_new_key_ends_no_session_while_the_old_one_is_kept(stranger: Console) -> None:
    api = make_api()
    before = make_console(api, {"CONSOLE_SECRET_KEY": OLD})
    before.sign_in()
    both = make_console(api, {"CONSOLE_SECRET_KEY": f"{NEW},{OLD}"})
    give(both, held(before))
    assert is_signed_in(both)
    after = make_console(api, {"CONSOLE_SECRET_KEY": NEW})
    give(after, held(before))
    assert not is_signed_in(after)
    both.sign_in()
    give(after, held(both))
    assert is_signed_in(after)


@pytest.mark.parametrize("after", [f"{OLD},{NEW}", f"{NEW},{OLD}"])
def test_a_form_that_was_opened_before_a_key_is_added_or_put_in_front_still_works(after: str) -> None:
    api = make_api()
    before, later = (make_console(api, {"CONSOLE_SECRET_KEY": keys}) for keys in (OLD, after))
    before.sign_in()
    token = csrf_of(before.open("/jobs"))
    give(later, held(before))
    assert later.browser.post("/signout", data={"csrf_token": token}).status_code == 303


def test_a_form_is_signed_by_the_first_key_and_ends_with_a_key_that_is_taken_out() -> None:
    api = make_api()
    both, new, old = (make_console(api, {"CONSOLE_SECRET_KEY": keys}) for keys in (f"{NEW},{OLD}", NEW, OLD))
    both.sign_in()
    token, session_of_both = csrf_of(both.open("/jobs")), held(both)
    give(new, session_of_both)
    assert new.browser.post("/signout", data={"csrf_token": token}).status_code == 303
    # The old key reads this session, so that only the form's own key is tried.
    old.sign_in()
    with old.browser.session_transaction() as content:
        content["csrf_token"] = "of the session"
    with both.browser.session_transaction() as content:
        content["csrf_token"] = "of the session"
    signed_by_new = csrf_of(both.open("/jobs"))
    assert old.browser.post("/signout", data={"csrf_token": signed_by_new}).status_code == 400
    assert old.browser.post("/signout", data={"csrf_token": csrf_of(old.open("/jobs"))}).status_code == 303


# -- when it is written


def test_an_answer_writes_no_session_unless_it_changed(console: Console) -> None:
    console.open("/")
    for path in ("/", "/jobs", "/healthz", "/static/v/console.css", "/nothing"):
        assert written(console.open(path, buffered=True)) == []


def test_an_answer_that_comes_after_signing_out_does_not_sign_in_again(console: Console) -> None:
    """A page that renews itself may be on its way while the person signs out."""
    console.open("/")
    value = held(console)
    console.send("/signout")
    late = console.new_browser()
    late.set_cookie(NAME, value)
    assert written(late.get("/", headers={"X-Renew": "1"})) == []


def test_a_page_that_renews_itself_leaves_the_message_to_the_page_that_a_person_opens(console: Console) -> None:
    console.send("/signout", {})
    console.sign_in()
    with console.browser.session_transaction() as content:
        content["_flashes"] = [("success", "It is done.")]
    assert "It is done." not in console.open("/", headers={"X-Renew": "1"}).text
    assert "It is done." in console.open("/").text
    assert "It is done." not in console.open("/").text


# -- how much it holds


@pytest.fixture
def sessions(console: Console) -> EncryptedSessions:
    found = console.app.session_interface
    assert isinstance(found, EncryptedSessions)
    return found


def answer_with(console: Console, content: dict[str, Any], *messages: str) -> TestResponse:
    """Return the answer to a request that puts this into the session."""

    def view() -> str:
        session.update(content)
        for message in messages:
            flash(message)
        return "done"

    console.app.view_functions["health.healthz"] = view
    return console.open("/healthz")


def test_a_long_token_is_kept_in_two_cookies_that_every_server_reads(console: Console) -> None:
    long = "x" * LONGEST_TOKEN
    answer = answer_with(console, {"token": long})
    headers = answer.headers.getlist("Set-Cookie")
    assert written(answer) == [NAME, f"{NAME}-1"]
    # RFC 6265bis: name and value of 4,096 bytes at most. gunicorn: 8,190 bytes in a header.
    pairs = [header.split(";")[0] for header in headers]
    assert max(len(pair) for pair in pairs) < 4096
    assert len("; ".join(pairs)) < 8000
    console.app.view_functions["health.healthz"] = lambda: str(session["token"] == long)
    assert console.open("/healthz").text == "True"


def test_half_of_a_session_is_none(console: Console) -> None:
    answer_with(console, {"token": "x" * LONGEST_TOKEN})
    console.browser.delete_cookie(f"{NAME}-1")
    assert not is_signed_in(console)


def test_a_short_session_leaves_no_second_half_behind(console: Console) -> None:
    answer_with(console, {"token": "x" * LONGEST_TOKEN})
    answer = answer_with(console, {"token": "short"})
    assert written(answer) == [NAME, f"{NAME}-1"]
    assert held(console, f"{NAME}-1") == ""


def test_messages_that_find_no_room_give_way_to_newer_ones(console: Console) -> None:
    answer_with(console, {"token": "x" * LONGEST_TOKEN}, "first " + "y" * 1200, "second " + "y" * 400)
    console.app.view_functions["health.healthz"] = lambda: str([text[:6] for _, text in session["_flashes"]])
    assert console.open("/healthz").text == "['second']"


def test_a_session_that_no_browser_would_keep_is_not_sent(console: Console, sessions: EncryptedSessions) -> None:
    with console.app.test_request_context("/"):
        made = sessions.open_session(console.app, console.app.request_class({"REQUEST_METHOD": "GET"}))
        made["token"] = "x" * 8000
        with pytest.raises(SessionTooLarge):
            sessions.save_session(console.app, made, console.app.make_response(""))
