"""The console in Chromium in states that are rare: answers to forms, errors, empty, away, renewed under the reader.

The console and its API run in this process, so that a test makes each state by itself.
"""

from __future__ import annotations

from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import count
from typing import TYPE_CHECKING

import pytest
from playwright.sync_api import expect

from tests.api.harness import body_of, make_api
from tests.console.filled import TOKENS, make_filled_api
from tests.console.harness import Console, make_console, served
from tests.e2e.browser import find_faults, give_session, running_chromium
from tests.fakes import START, make_reservation, make_sandbox

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from playwright.sync_api import Browser, Page

RENEWAL_MS = 6000
_turns = count()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with running_chromium() as running:
        yield running


@pytest.fixture
def filled(tmp_path: Path) -> Console:
    """Return a console over a broker that has one of everything."""
    return make_console(make_filled_api(tmp_path))


@contextmanager
def visiting(browser: Browser, console: Console, token: str = TOKENS["adam"], zone: str = "UTC") -> Iterator[Page]:
    """Open a browser in which the owner of `token` is signed in, and whose timers wait for the test."""
    with served(console.app) as url:
        context = browser.new_context(base_url=url, reduced_motion="reduce", timezone_id=zone)
        page = context.new_page()
        give_session(context, console, url, token)
        page.clock.install()
        yield page
        context.close()


def renew(page: Page) -> None:
    """Let the time come at which the page renews itself, and wait until it has."""
    before = page.locator("[data-freshness]").element_handle()
    with page.expect_response(lambda answer: "x-renew" in answer.request.headers):
        page.clock.run_for(RENEWAL_MS)
    assert before is not None
    # The freshness is what is renewed last.
    page.wait_for_function("old => !old.isConnected", arg=before)


# -- barriers


def look(page: Page, heading: str) -> list[str]:
    """Return the faults of a page once it is there."""
    expect(page.get_by_role("heading", name=heading).first).to_be_visible()
    return find_faults(page, heading, turn=next(_turns))


@pytest.mark.timeout(300)
def test_no_answer_to_a_form_has_a_barrier(browser: Browser, filled: Console) -> None:
    with visiting(browser, filled) as page:
        page.goto("/sandboxes")
        page.get_by_role("button", name="Choose all on this page").click()
        page.get_by_label("With the chosen sandboxes").select_option("release")
        page.locator("#bulk input[name=typed]").fill(str(page.locator("input[name=chosen]").count()))
        page.get_by_role("button", name="Do it").click()
        expect(page.locator("#outcomes")).to_be_visible()
        page.evaluate("document.querySelectorAll('details').forEach(each => { each.open = true; })")
        faults = look(page, "Sandboxes")

        page.goto("/sandboxes/free")
        page.evaluate("document.querySelectorAll('details').forEach(each => { each.open = true; })")
        faults += look(page, "Sandbox")

        page.goto("/reservations/new")
        page.get_by_label("Name of the class").fill("Late")
        page.get_by_label("How many sandboxes").fill("1")
        page.locator("form.booking").evaluate("form => { form.noValidate = true; }")
        page.get_by_role("button", name="Book", exact=True).click()
        expect(page.locator("[aria-invalid=true]").first).to_be_visible()
        faults += look(page, "Book a class")

        page.goto("/webhooks/new")
        page.get_by_label("Address").fill("ftp://example.com")
        page.get_by_role("button", name="Add it").click()
        expect(page.locator("[aria-invalid=true], .alert-danger").first).to_be_visible()
        faults += look(page, "Add a webhook")
        page.get_by_label("Address").fill("https://hooks.example.com/in")
        page.get_by_role("button", name="Add it").click()
        expect(page.get_by_text("whsec_").first).to_be_visible()
        faults += look(page, "The secret of a webhook")

        page.goto("/webhooks/hook/replay")
        page.get_by_label("Since").fill("the day before")
        page.get_by_role("button", name="Replay").click()
        expect(page.locator("[aria-invalid=true]")).to_be_visible()
        faults += look(page, "Replay since a time")

    assert faults == []


@pytest.mark.timeout(300)
def test_the_bars_of_the_calendar_are_reached_by_keyboard_and_have_no_barrier(
    browser: Browser, filled: Console
) -> None:
    # Their bars are short, and one is below the other.
    for number in range(4):
        filled.api.store.reservations[f"short-{number}"] = make_reservation(
            f"short-{number}", name=f"Short {number}", starts_at=START + 7200, ends_at=START + 9000
        )
    with visiting(browser, filled) as page:
        page.goto("/reservations")
        faults = look(page, "Reservations")
        page.get_by_role("group", name="Calendar").focus()
        for _ in range(6):
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement.textContent").strip().startswith("Short 2"):
                break
        page.keyboard.press("Enter")
        expect(page.get_by_role("heading", name="Short 2")).to_be_visible()
    assert faults == []


@pytest.mark.timeout(300)
def test_no_error_and_no_state_with_the_api_away_has_a_barrier(browser: Browser, filled: Console) -> None:
    with visiting(browser, filled) as page:
        page.goto("/nothing")
        faults = look(page, "Not found")
        page.goto("/signout")
        faults += look(page, "Not possible")
        page.goto("/jobs")
        page.locator("input[name=csrf_token]").first.evaluate("each => { each.value = ''; }")
        page.get_by_role("button", name="Sign out").click()
        faults += look(page, "This form is too old")
        page.goto("/reservations/new")
        page.get_by_label("Name of the class").fill("Networking 101")
        page.locator("form.booking").evaluate("form => { form.noValidate = true; }")
        page.context.clear_cookies()
        page.get_by_role("button", name="Book", exact=True).click()
        faults += look(page, "You are signed out")
        give_session(page.context, filled, page.url, TOKENS["adam"])
        page.get_by_role("button", name="Send the form again").click()
        faults += look(page, "This form is too old")

        page.goto("/line")
        filled.to_api.away = True
        page.goto("/line")
        expect(page.get_by_text("last known state")).to_be_visible()
        faults += look(page, "Line")
        page.goto("/events")
        faults += look(page, "The broker does not answer")
        filled.to_api.away = False
        give_session(page.context, filled, page.url, TOKENS["vera"])
        filled.api.clock.advance(60)
        page.goto("/webhooks/new")
        faults += look(page, "Not allowed")
    assert faults == []


@pytest.mark.timeout(300)
def test_no_page_of_a_broker_without_anything_has_a_barrier_and_each_says_what_to_do(browser: Browser) -> None:
    console = make_console(make_api())
    faults = []
    with visiting(browser, console, "admin-token") as page:
        pages = (
            ("/", "Run a sync"),
            ("/sandboxes", "A sync adds the sandboxes"),
            ("/line", "No track waits"),
            ("/reservations", "Book a class"),
            ("/jobs", "look whether beat"),
            ("/webhooks", "Add an endpoint"),
            ("/events", ""),
            ("/usage", "Choose a longer time"),
        )
        for turn, (address, hint) in enumerate(pages):
            page.goto(address)
            expect(page.get_by_role("main")).to_contain_text(hint)
            faults += find_faults(page, address, turn=turn)
    assert faults == []


# -- a page that renews itself under the reader


def test_who_types_while_the_page_renews_itself_keeps_the_field_its_text_and_the_caret(
    browser: Browser, filled: Console
) -> None:
    with visiting(browser, filled) as page:
        page.goto("/sandboxes/held")
        form = page.locator("#release-form")
        form.locator("summary").click()
        field = form.get_by_role("textbox")
        field.press_sequentially("hexx")
        field.evaluate("each => each.setSelectionRange(2, 2)")
        # So the parts of the page change: the track gives the sandbox back.
        path = "/v1/admin/sandboxes/held"
        lease_id = body_of(filled.api.admin("GET", path), 200)["lease_id"]
        body_of(filled.api.admin("POST", f"{path}/release", json={"lease_id": lease_id}), 200)
        renew(page)
        expect(page.locator("[data-live=now] .status")).to_have_text("waiting to be wiped")
        expect(field).to_be_focused()
        page.keyboard.type("l")
        expect(field).to_have_value("helxx")
        assert field.evaluate("each => [each.selectionStart, each.selectionEnd]") == [3, 3]


def test_who_has_the_focus_on_a_link_while_the_page_renews_itself_keeps_it(browser: Browser, filled: Console) -> None:
    with visiting(browser, filled) as page:
        page.goto("/sandboxes")
        link = page.locator("[data-live=sandboxes]").get_by_role("link", name="held")
        link.focus()
        before = link.element_handle()
        filled.api.clock.advance(3600)
        renew(page)
        expect(link).to_be_focused()
        assert before is not None
        assert not before.evaluate("each => each.isConnected"), "the part was not renewed, so nothing was tried"


def test_who_has_the_focus_on_a_button_while_the_page_renews_itself_keeps_it(browser: Browser, filled: Console) -> None:
    with visiting(browser, filled) as page:
        page.goto("/jobs")
        button = page.locator("[data-live] td > form button").first
        button.focus()
        filled.api.clock.advance(3600)
        renew(page)
        expect(button).to_be_focused()


def test_a_click_that_lasts_while_the_page_renews_itself_is_not_lost(browser: Browser, filled: Console) -> None:
    with visiting(browser, filled) as page:
        page.goto("/sandboxes")
        link = page.locator("[data-live=sandboxes]").get_by_role("link", name="held")
        link.hover()
        page.mouse.down()
        filled.api.clock.advance(3600)
        renew(page)
        page.mouse.up()
        expect(page.get_by_role("heading", name="Sandbox held")).to_be_visible()


# -- a reader's zone


def test_a_class_in_the_hour_that_clocks_show_twice_keeps_its_time_when_something_else_is_changed(
    browser: Browser,
) -> None:
    """At the end of summer time, 2:30 comes twice in Berlin: at 0:30 and at 1:30 UTC."""
    api = make_api()
    api.store.seed(*(make_sandbox(str(number)) for number in range(10)))
    first, second = (int(datetime(2025, 10, 26, hour, 30, tzinfo=UTC).timestamp()) for hour in (0, 1))
    api.clock.advance(first - 3 * 24 * 3600 - START)
    for name, at in (("res-1", first), ("res-2", second)):
        api.store.reservations[name] = make_reservation(
            name, name=name, count=1, starts_at=at, ends_at=at + 7200, track_names=(), created_at=api.clock.now()
        )
    with visiting(browser, make_console(api), "admin-token", zone="Europe/Berlin") as page:
        for name, at in (("res-1", first), ("res-2", second)):
            page.goto(f"/reservations/{name}/change")
            starts = page.locator("input[name=starts]")
            expect(starts).to_have_value("2025-10-26T02:30")
            said = datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M UTC")
            expect(page.locator(".field", has=starts)).to_contain_text(said)
            page.get_by_label("How many sandboxes").fill("2")
            page.get_by_role("button", name="Save").click()
            expect(page.get_by_role("heading", name=name)).to_be_visible()
            changed = api.store.reservations[name]
            assert (changed.count, changed.starts_at, changed.ends_at) == (2, at, at + 7200)
