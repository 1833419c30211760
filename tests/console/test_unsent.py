"""A form that is sent after the session has ended: it does nothing, and what was typed can be sent after a new sign-in."""

from __future__ import annotations

import html
import re
from typing import TYPE_CHECKING, Any

import pytest

from tests.api.harness import ADMIN_TOKEN, make_api, named_token
from tests.api.test_reservations import DAY, STARTS_AT
from tests.console.harness import Console, make_console
from tests.console.test_reservations import NEW, form_of, reservations_of, typed
from tests.fakes import make_sandbox

if TYPE_CHECKING:
    from pathlib import Path

    from werkzeug.test import TestResponse

TYPED = {
    "name": "Networking <101>",
    "count": "3",
    "starts": typed(STARTS_AT + DAY),
    "length": "3 h",
    "lead": "15",
    "labs": "intro\r\nrouting & more",
    "note": "Room 7",
}
_FORM = re.compile(r'<form method="post" action="([^"]*)">\s*(<input type="hidden".*?)<button', re.DOTALL)
_FIELD = re.compile(r'name="([^"]*)" value="([^"]*)"')


def text_of(page: TestResponse) -> str:
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", page.text)))


def send_again(console: Console, page: TestResponse, **typed: str) -> TestResponse:
    """Press the button of a page that has a form which was not sent, after something was typed into it."""
    found = _FORM.search(page.text[page.text.index("<main") :])
    assert found, page.text
    form: dict[str, list[str]] = {}
    for name, value in _FIELD.findall(found[2]):
        form.setdefault(html.unescape(name), []).append(html.unescape(value))
    return console.browser.post(html.unescape(found[1]), data=form | typed)


def opened(console: Console) -> dict[str, Any]:
    """Return the form that books a class as a browser sends it, filled in."""
    return form_of(console.open(NEW).text) | TYPED


def csrf_of(console: Console, page: str = "/jobs") -> str:
    found = re.search(r'name="csrf_token"[^>]*value="([^"]+)"', console.open(page).text)
    assert found
    return found[1]


@pytest.fixture
def console() -> Console:
    """Return a console in which an admin is signed in, and whose pool has ten sandboxes."""
    made = make_console()
    made.api.store.seed(*(make_sandbox(str(number)) for number in range(10)))
    made.sign_in()
    return made


def test_after_a_new_sign_in_all_that_was_typed_is_shown_and_sent_once(console: Console) -> None:
    form = opened(console)
    console.api.clock.advance(12 * 3600)

    kept = console.browser.post(NEW, data=form)
    assert kept.status_code == 400
    assert "Your sign-in has ended. Nothing was changed. What you typed is kept on this page." in text_of(kept)
    for value in TYPED.values():
        assert html.escape(value) in kept.text
    assert "Networking <101>" not in kept.text
    assert reservations_of(console) == []

    console.sign_in()
    shown = send_again(console, kept)
    assert (shown.status_code, "The form is from before you signed in." in text_of(shown)) == (400, True)
    assert "Note Room 7" in text_of(shown)
    assert reservations_of(console) == []

    for _ in range(2):
        assert send_again(console, shown).status_code == 303
    (booked,) = reservations_of(console)
    assert (booked["name"], booked["count"], booked["note"]) == ("Networking <101>", 3, "Room 7")
    assert booked["track_names"] == ["intro", "routing & more"]
    assert booked["starts_at"] == STARTS_AT + DAY


def test_what_is_wrong_in_a_form_that_is_sent_again_is_said_at_its_field(console: Console) -> None:
    form = opened(console) | {"count": "many"}
    console.browser.delete_cookie("broker-console")
    kept = console.browser.post(NEW, data=form)
    console.sign_in()
    page = send_again(console, send_again(console, kept))
    assert page.status_code == 400
    assert form_of(page.text)["note"] == "Room 7"
    assert form_of(page.text)["count"] == "many"


def test_a_form_that_is_sent_again_without_a_sign_in_is_kept_again(console: Console) -> None:
    form = opened(console)
    console.send("/signout")
    kept = console.browser.post(NEW, data=form)
    again = send_again(console, send_again(console, kept))
    assert "You are not signed in. Nothing was changed" in text_of(again)
    assert "Note Room 7" in text_of(again)
    assert reservations_of(console) == []


def test_a_form_that_meets_a_token_which_is_revoked_says_why_and_is_kept(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens.toml"
    tokens.write_text(named_token("olga", "token-o", "operator") + named_token("keeper", "keeper-token", "admin"))
    console = make_console(make_api(BROKER_TOKENS_FILE=str(tokens)))
    console.sign_in("token-o")
    form = opened(console)
    tokens.write_text(named_token("keeper", "keeper-token", "admin"))
    kept = console.browser.post(NEW, data=form)
    assert kept.status_code == 401
    assert "the broker does not accept your token: the token is unknown. Nothing was changed" in text_of(kept)
    assert "Note Room 7" in text_of(kept)
    assert console.open("/").status_code == 303, "the session has ended"


def test_each_sandbox_that_was_chosen_is_kept_and_what_confirms_is_typed_again(tmp_path: Path) -> None:
    chosen = ["7", "8", "9"]
    tokens = tmp_path / "tokens.toml"
    tokens.write_text(named_token("olga", "token-o", "operator") + named_token("keeper", "keeper-token", "admin"))
    console = make_console(make_api(BROKER_TOKENS_FILE=str(tokens)))
    console.api.store.seed(*(make_sandbox(each) for each in chosen))
    console.sign_in("token-o")
    form = {"csrf_token": csrf_of(console), "chosen": chosen, "act": "quarantine", "reason": "slow", "typed": "3"}
    tokens.write_text(named_token("keeper", "keeper-token", "admin"))
    kept = console.browser.post("/sandboxes?name=s", data=form)
    assert (kept.status_code, "Reason slow" in text_of(kept)) == (401, True)
    console.sign_in("keeper-token")
    again = send_again(console, kept)
    assert "Act quarantine" in text_of(again)
    assert "Type 3 again to confirm" in text_of(again)
    assert "3 of 3 done" not in text_of(send_again(console, again))
    done = send_again(console, again, typed="3")
    assert (done.status_code, "3 of 3 done" in text_of(done)) == (200, True)


@pytest.mark.parametrize(
    ("headers", "is_kept"),
    [
        ({"Sec-Fetch-Site": "same-origin"}, True),
        ({"Sec-Fetch-Site": "cross-site"}, False),
        ({"Sec-Fetch-Site": "same-site", "Origin": "http://localhost"}, False),
        ({"Origin": "http://localhost"}, True),
        ({"Origin": "http://evil.example.com"}, False),
        ({"Origin": "null"}, False),
        ({}, False),
    ],
)
def test_what_another_site_wrote_into_a_form_is_not_shown(
    console: Console, headers: dict[str, str], is_kept: bool
) -> None:
    del console.browser.environ_base["HTTP_SEC_FETCH_SITE"]
    page = console.browser.post("/jobs/pauses/cleanup", data={"reason": "Win a prize"}, headers=headers)
    assert (page.status_code, "Nothing was changed" in text_of(page)) == (400, True)
    assert ("Win a prize" in page.text) is is_kept


def test_a_token_that_is_typed_to_sign_in_is_never_shown_again(console: Console) -> None:
    page = console.browser.post("/signin", data={"token": ADMIN_TOKEN})
    assert page.status_code == 400
    assert ADMIN_TOKEN not in page.text
