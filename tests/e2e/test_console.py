"""The console in Chromium over a whole broker, used as operators, instructors and strangers would."""

from __future__ import annotations

import hashlib
import re
import time
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

import pytest
import requests
from flask import url_for
from playwright.sync_api import expect

from deploy.dev.processes import wait_until
from tests.console.filled import NO_PAGES
from tests.console.harness import make_console
from tests.e2e.browser import find_faults, running_chromium, watch
from tests.e2e.stack import ADMIN_TOKEN, Stack
from tests.webhook_receiver import Receiver, receiving

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from playwright.sync_api import Browser, Locator, Page, StorageState

SETTINGS = {
    "POOL": "30",
    "HISTORY_DAYS": "90",
    "API_WORKERS": "1",
    "MOCK_CSP_DELETE_SECONDS": "0.05",
    # The tests say when cleanup runs.
    "CLEANUP_INTERVAL_SEC": "86400",
}
OPERATOR, VIEWER, LEAVING = "the-token-of-olga", "the-token-of-vera", "the-token-of-leo"
PEOPLE = {"olga": (OPERATOR, "operator"), "vera": (VIEWER, "viewer"), "leo": (LEAVING, "operator")}


def write_tokens(file: Path, *names: str) -> None:
    """Write the file of tokens with these people alone."""
    file.write_text(
        "".join(
            f'[[token]]\nname = "{name}"\nsha256 = "{hashlib.sha256(token.encode()).hexdigest()}"\nroles = ["{role}"]\n'
            for name, (token, role) in PEOPLE.items()
            if name in names
        )
    )


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("tokens") / "tokens.toml"
    write_tokens(file, *PEOPLE)
    return file


@pytest.fixture(scope="module")
def stack(tokens: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    settings = SETTINGS | {"BROKER_TOKENS_FILE": str(tokens)}
    with Stack(tmp_path_factory.mktemp("stack"), settings, with_console=True, with_webhooks=True) as running:
        assert wait_until(lambda: running.run_job("sync")["state"] == "succeeded", 30)
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with running_chromium() as running:
        yield running


class Visit(Protocol):
    """Opens a page of a new person, who is signed in by `token` unless that is None.

    `statuses` are the errors that this person is to meet. Anything else that a browser complains about fails the test.
    """

    def __call__(self, token: str | None = ADMIN_TOKEN, *, statuses: tuple[int, ...] = (), **options: Any) -> Page: ...


@pytest.fixture(scope="module")
def states() -> dict[str, StorageState]:
    """Return the cookies of those who have signed in, by token, so that the form is not filled for each test."""
    return {}


@pytest.fixture
def visit(browser: Browser, stack: Stack, states: dict[str, StorageState]) -> Iterator[Visit]:
    opened = []

    def open_page(token: str | None = ADMIN_TOKEN, *, statuses: tuple[int, ...] = (), **options: Any) -> Page:
        given = {"viewport": {"width": 1280, "height": 900}, "reduced_motion": "reduce"} | options
        if token in states:
            given["storage_state"] = states[token]
        context = browser.new_context(base_url=stack.console_url, **given)
        opened.append((context, watch(context), statuses))
        page = context.new_page()
        if token is not None and token not in states:
            sign_in(page, token)
            expect(page.get_by_role("heading", name="Overview")).to_be_visible()
            states[token] = context.storage_state()
        page.goto("/")
        return page

    yield open_page
    for context, seen, statuses in opened:
        context.close()
        expected = [f"Failed to load resource: the server responded with a status of {status} (" for status in statuses]
        assert [said for said in seen.said if not said.startswith(tuple(expected))] == []
        assert seen.dialogs == [], "a planted script ran"
        assert seen.hosts == {urlsplit(stack.console_url).netloc}


def sign_in(page: Page, token: str) -> None:
    page.goto("/signin")
    page.get_by_label("Token").fill(token)
    page.get_by_role("button", name="Sign in").click()


def said(page: Page) -> Locator:
    """Return what the page says of the last form."""
    return page.locator("#messages")


def allocate(stack: Stack, track_id: str, lab: str = "networking-101", **headers: str) -> dict[str, Any]:
    answer = stack.as_track(track_id, "POST", "/allocate", headers={"X-Instruqt-Track-ID": lab} | headers)
    assert answer.status_code == HTTPStatus.CREATED, answer.text
    held: dict[str, Any] = answer.json()
    return held


def mark(stack: Stack, track_id: str, sandbox_id: str) -> None:
    assert stack.as_track(track_id, "POST", f"/sandboxes/{sandbox_id}/mark-for-deletion").ok


def status_of(stack: Stack, sandbox_id: str) -> str:
    found: str = stack.as_admin("GET", f"/sandboxes/{sandbox_id}").json()["status"]
    return found


def fail_to_wipe(stack: Stack, track_id: str) -> dict[str, Any]:
    """Have the provider refuse to wipe a sandbox of this track, and return the sandbox."""
    held = allocate(stack, track_id)
    mark(stack, track_id, held["sandbox_id"])
    stack.switch(fail_next_deletes=1, fail_status=422)
    stack.run_job("cleanup")
    assert wait_until(lambda: status_of(stack, held["sandbox_id"]) == "deletion_failed", 30)
    return held


def tab_to(page: Page, target: Locator) -> None:
    """Press Tab until the focus is on `target`."""
    expect(target).to_be_visible()
    for _ in range(200):
        page.keyboard.press("Tab")
        if target.evaluate("each => each === document.activeElement"):
            return
    pytest.fail(f"Tab does not lead to {target}")


# -- signing in and out


def test_a_wrong_token_is_refused_by_a_sentence_and_the_right_one_leads_to_the_page_that_was_asked_for(
    visit: Visit,
) -> None:
    page = visit(None, statuses=(401,))
    page.goto("/sandboxes?status=available")
    expect(said(page)).to_have_text("Sign in to see this page.")
    page.get_by_label("Token").fill("not-the-token")
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_text("The token is unknown.")).to_be_visible()
    expect(page.get_by_role("navigation")).not_to_contain_text("Sandboxes")
    page.get_by_label("Token").fill(ADMIN_TOKEN)
    page.get_by_role("button", name="Sign in").click()
    expect(page).to_have_url(re.compile(r"/sandboxes\?status=available$"))
    assert ADMIN_TOKEN not in page.content()


def test_who_signs_out_leaves_nothing_that_the_back_button_shows(visit: Visit) -> None:
    page = visit()
    page.get_by_role("link", name="Sandboxes", exact=True).click()
    expect(page.get_by_role("heading", name="Sandboxes")).to_be_visible()
    page.get_by_role("button", name="Sign out").click()
    expect(said(page)).to_contain_text("You are signed out.")
    page.go_back()
    expect(page.get_by_label("Token")).to_be_visible()
    expect(page.get_by_role("navigation")).not_to_contain_text("Sandboxes")


def test_who_loses_the_token_while_a_page_is_open_reads_why(visit: Visit, tokens: Path) -> None:
    page = visit(LEAVING, statuses=(401,))
    write_tokens(tokens, "olga", "vera")
    # The page renews itself, so nobody has to click to notice.
    expect(page).to_have_url(re.compile("/signin"))
    expect(said(page)).to_contain_text("You are signed out, because the broker does not accept your token")


# -- a day of an operator


def test_the_numbers_of_the_overview_move_while_tracks_come(visit: Visit, stack: Stack) -> None:
    page = visit()
    page.evaluate("window.isTheSamePage = true")
    allocated = page.locator("[data-live]", has=page.locator(".status-allocated")).first
    before = stack.stats()["allocated"]
    with ThreadPoolExecutor(1) as load:
        came = load.submit(lambda: [allocate(stack, f"load-{number}") for number in range(5)])
        expect(allocated).to_contain_text(re.compile(rf"\b{before + 5}\b"))
    assert len(came.result()) == 5
    assert page.evaluate("window.isTheSamePage")


def test_an_operator_finds_the_sandbox_that_failed_and_why_and_has_it_wiped_again(visit: Visit, stack: Stack) -> None:
    held = fail_to_wipe(stack, "unlucky")
    page = visit(OPERATOR)
    page.goto("/sandboxes?status=deletion_failed")
    page.get_by_role("link", name=held["name"]).click()
    expect(page.get_by_role("main")).to_contain_text("It could not be wiped")
    expect(page.get_by_role("main")).to_contain_text("422")
    page.get_by_role("button", name="Wipe again").click()
    expect(said(page)).to_contain_text(re.compile(r"\(request [0-9a-f-]{36}\)"))
    expect(page.locator(".lead .status")).to_have_text("waiting to be wiped")

    page.get_by_role("link", name="Jobs", exact=True).click()
    page.get_by_role("row", name=re.compile("^Cleanup")).get_by_role("button", name="Run now Cleanup").click()
    expect(page.get_by_role("heading", name="Run of Cleanup")).to_be_visible()
    # The page follows the run to its end.
    expect(page.locator("p.lead")).to_contain_text("succeeded")

    page.goto(f"/sandboxes/{held['sandbox_id']}")
    expect(page.locator(".lead .status")).to_have_text("available")


def test_an_operator_releases_several_sandboxes_at_once(visit: Visit, stack: Stack) -> None:
    held = [allocate(stack, f"forgotten-{number}", lab="forgotten") for number in range(3)]
    page = visit(OPERATOR)
    page.goto("/sandboxes?track_name=forgotten")
    for each in held[:2]:
        page.get_by_role("checkbox", name=re.compile(each["name"])).check()
    page.get_by_label("With the chosen sandboxes").select_option("release")
    page.get_by_label("Type how many are chosen").fill("2")
    page.get_by_role("button", name="Do it").click()
    expect(page.get_by_role("heading", name="2 of 2 done")).to_be_visible()
    assert [status_of(stack, each["sandbox_id"]) for each in held] == ["pending_deletion"] * 2 + ["allocated"]


def test_an_operator_pauses_cleanup_sees_who_did_since_when_and_resumes_it(visit: Visit, stack: Stack) -> None:
    page = visit(OPERATOR)
    page.goto("/jobs")
    page.locator("#pause-cleanup-form summary").click()
    page.get_by_role("button", name="Pause Cleanup").click()
    row = page.get_by_role("row", name=re.compile("^Cleanup.*paused by olga"))
    expect(row).to_contain_text("since")
    expect(row.locator("time").first).to_be_visible()
    page.get_by_role("link", name="Overview", exact=True).click()
    expect(page.get_by_role("main")).to_contain_text("Cleanup is paused by olga")
    page.goto("/jobs")
    page.get_by_role("button", name="Resume Cleanup").click()
    expect(page.locator("#pause-cleanup-form summary")).to_be_visible()
    assert stack.as_admin("GET", "/pause").json()["cleanup"] is False


# -- an instructor


def test_an_instructor_books_a_class_sees_it_as_a_bar_changes_it_and_cancels_it(visit: Visit, stack: Stack) -> None:
    page = visit(OPERATOR, timezone_id="Europe/Berlin")
    page.goto("/reservations")
    page.get_by_role("link", name="Book a class").click()
    page.get_by_label("Name of the class").fill("DNS for beginners")
    page.get_by_label("How many sandboxes").fill("900")
    starts = time.strftime("%Y-%m-%dT10:00", time.localtime(time.time() + 2 * 24 * 3600))
    page.get_by_label(re.compile("^Starts")).fill(starts)
    page.get_by_label("Lasts").fill("3 h")
    found = page.locator("[data-found]")
    # Nothing was sent by the person yet: the check answers while he types.
    expect(found).to_contain_text("It does not fit")
    page.get_by_label("How many sandboxes").fill("5")
    expect(found).to_contain_text("It fits")
    page.get_by_role("button", name="Book").click()
    expect(page.get_by_role("heading", name="DNS for beginners")).to_be_visible()
    (booked,) = [
        each
        for each in stack.as_admin("GET", "/reservations").json()["reservations"]
        if each["name"] == "DNS for beginners"
    ]
    # Ten o'clock in Berlin.
    assert time.strftime("%H:%M", time.gmtime(booked["starts_at"])) in {"08:00", "09:00"}

    page.goto("/reservations")
    expect(page.locator("svg", has_text="DNS for beginners")).to_be_visible()
    page.get_by_role("main").get_by_role("table").get_by_role("link", name="DNS for beginners").click()
    page.get_by_role("link", name="Change").click()
    page.get_by_label("How many sandboxes").fill("7")
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_role("heading", name="DNS for beginners")).to_be_visible()
    assert stack.as_admin("GET", f"/reservations/{booked['reservation_id']}").json()["count"] == 7

    cancel = page.locator("details", has_text="Cancel the reservation")
    cancel.locator("summary").click()
    cancel.get_by_role("textbox").fill("DNS")
    cancel.get_by_role("button").click()
    expect(said(page)).to_contain_text("Nothing was done")
    cancel.locator("summary").click()
    cancel.get_by_role("textbox").fill("DNS for beginners")
    cancel.get_by_role("button").click()
    expect(said(page)).to_contain_text(re.compile(r"\(request "))
    assert stack.as_admin("GET", f"/reservations/{booked['reservation_id']}").json()["state"] == "cancelled"


# -- the keyboard


def test_a_person_reaches_an_action_of_a_sandbox_by_the_keyboard_alone(visit: Visit, stack: Stack) -> None:
    held = allocate(stack, "of-the-keyboard")
    page = visit(None)
    page.goto("/signin")
    tab_to(page, page.get_by_label("Token"))
    page.keyboard.type(OPERATOR)
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Overview")).to_be_visible()
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_role("main")).to_be_focused()
    page.goto("/")

    tab_to(page, page.get_by_role("link", name="Sandboxes", exact=True))
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Sandboxes")).to_be_visible()
    tab_to(page, page.get_by_label("Track", exact=True))
    page.keyboard.type("of-the-keyboard")
    page.keyboard.press("Enter")
    expect(page).to_have_url(re.compile("track_id=of-the-keyboard"))
    tab_to(page, page.get_by_role("link", name=held["name"]))
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name=f"Sandbox {held['name']}")).to_be_visible()
    tab_to(page, page.locator("summary", has_text="Release"))
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    page.keyboard.type(held["sandbox_id"])
    page.keyboard.press("Enter")
    expect(page.locator(".lead .status")).to_have_text("waiting to be wiped")
    assert status_of(stack, held["sandbox_id"]) == "pending_deletion"


# -- what each role sees


PLANTED = "<img src=x onerror=alert(1)>"
"""Runs if a page writes it as markup."""
QUERIES: dict[str, dict[str, Any]] = {"events.index": {"track_id": PLANTED}}
"""What pages are asked for here: a few rows are enough, and axe takes seconds for hundreds."""


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with receiving(Receiver()) as running:
        yield running


@pytest.fixture(scope="module")
def planted(stack: Stack, receiver: Receiver) -> dict[str, Any]:
    """Write `PLANTED` where tracks, the provider and operators can write something.

    Returns the ids of what has it, by the names that the routes have for them.
    """
    name = f"{PLANTED}-sandbox"
    account = {"name": name, "state": "active", "account_type": "sandbox"}
    requests.post(f"{stack.csp_url}/_mock/accounts", json=account, timeout=30).raise_for_status()
    stack.run_job("sync")
    held = allocate(stack, PLANTED, PLANTED, **{"X-Sandbox-Name-Prefix": name})
    stack.as_admin("POST", f"/sandboxes/{held['sandbox_id']}/quarantine", json={"reason": PLANTED}).raise_for_status()
    waiting = {"X-Sandbox-Name-Prefix": PLANTED, "X-Instruqt-Track-ID": PLANTED, "Prefer": "wait=0"}
    assert stack.as_track(f"{PLANTED}-2", "POST", "/allocate", headers=waiting).status_code == HTTPStatus.ACCEPTED
    now = int(time.time())
    booking = {
        "name": PLANTED,
        "count": 1,
        "starts_at": now + 3600,
        "ends_at": now + 7200,
        "prefix": "lab",
        "track_names": [PLANTED],
        "note": PLANTED,
    }
    reservation = stack.as_admin("POST", "/reservations", json=booking).json()
    endpoint = stack.as_admin(
        "POST",
        "/webhooks",
        json={"url": f"http://127.0.0.1:{receiver.port}/", "kinds": ["*"], "description": PLANTED},
    ).json()
    receiver.secret = endpoint["secret"]
    delivery = stack.as_admin("POST", f"/webhooks/{endpoint['endpoint_id']}/test").json()
    return {
        "sandbox_id": held["sandbox_id"],
        "reservation_id": reservation["reservation_id"],
        "job_id": stack.as_admin("GET", "/jobs?job=sync").json()["runs"][0]["job_id"],
        "endpoint_id": endpoint["endpoint_id"],
        "delivery_id": delivery["delivery_id"],
    }


def addresses(page: Page, planted: dict[str, Any]) -> list[str]:
    """Return the address of every page of the console for who is signed in, by its routes: no list is to be kept."""
    app = make_console().app
    with app.test_request_context():
        found = [
            url_for(rule.endpoint, **{name: planted[name] for name in rule.arguments}, **QUERIES.get(rule.endpoint, {}))
            for rule in app.url_map.iter_rules()
            if "GET" in (rule.methods or ()) and rule.endpoint not in NO_PAGES
        ]
    assert len(found) > 10
    # Files to save, and addresses that only lead on, are no pages.
    return [each for each in found if is_page(page, each)]


def is_page(page: Page, address: str) -> bool:
    answer = page.request.get(address, max_redirects=0)
    return answer.headers.get("content-type", "").startswith("text/html") and not 300 <= answer.status < 400


@pytest.mark.timeout(300)
def test_no_page_runs_what_is_planted_and_none_has_a_barrier(visit: Visit, planted: dict[str, Any]) -> None:
    page = visit()
    faults, showing = [], []
    for turn, address in enumerate(addresses(page, planted)):
        page.goto(address)
        expect(page.get_by_role("heading", level=1)).to_be_visible()
        page.evaluate("document.querySelectorAll('details').forEach(each => { each.open = true; })")
        if PLANTED in page.get_by_role("main").inner_text():
            showing.append(address)
        faults += find_faults(page, address, turn=turn)
    assert faults == []
    assert len(showing) > 5, showing


def test_the_page_to_sign_in_has_no_barrier(visit: Visit) -> None:
    page = visit(None)
    page.goto("/signin")
    assert find_faults(page, "/signin") == []


def test_a_viewer_is_offered_nothing_that_changes_something(visit: Visit, planted: dict[str, Any]) -> None:
    page = visit(VIEWER, statuses=(403,))
    for address in addresses(page, planted):
        page.goto(address)
        expect(page.get_by_role("heading", level=1)).to_be_visible()
        expect(page.locator("main form[method=post]"), address).to_have_count(0)


# -- webhooks, events and usage


def test_an_administrator_adds_an_endpoint_sees_its_secret_once_and_its_test_arrive(visit: Visit, stack: Stack) -> None:
    with receiving(Receiver()) as receiver:
        page = visit()
        page.goto("/webhooks")
        page.get_by_role("link", name="Add an endpoint").click()
        page.get_by_label("Address").fill(f"http://127.0.0.1:{receiver.port}/hooks")
        page.get_by_role("button", name="Add it").click()
        secret = page.get_by_text(re.compile("whsec_")).first
        expect(secret).to_be_visible()
        receiver.secret = secret.inner_text()
        page.get_by_role("link", name="I have copied it").click()
        expect(page.get_by_role("button", name="Send a test")).to_be_visible()
        assert receiver.secret not in page.content()
        page.get_by_role("button", name="Send a test").click()
        expect(page.get_by_role("definition").filter(has_text="delivered").first).to_be_visible()
        page.get_by_role("main").get_by_role("link", name="/hooks").click()
        expect(page.get_by_role("row", name=re.compile("test.*delivered"))).to_be_visible()
        assert [each.event["type"] for each in receiver.accepted] == ["test"]


def test_from_an_event_one_gets_to_the_sandbox_its_lab_and_its_usage_and_takes_the_numbers_along(
    visit: Visit, stack: Stack
) -> None:
    held = allocate(stack, "curious", lab="dns-security")
    mark(stack, "curious", held["sandbox_id"])
    # A report ends before the second in which it is made, and this page does not renew itself.
    usage = f"/usage?by=track_name&from={held['allocated_at'] - 60}"
    assert wait_until(lambda: "dns-security" in stack.as_admin("GET", usage).text, 20)
    page = visit(VIEWER)
    page.goto("/events?track_id=curious&kind=sandbox.marked")
    page.get_by_role("main").get_by_role("link", name=held["sandbox_id"]).click()
    expect(page.get_by_role("heading", name=f"Sandbox {held['name']}")).to_be_visible()
    page.get_by_role("link", name="usage by lab").click()
    expect(page.get_by_role("heading", name="Usage", exact=True)).to_be_visible()
    expect(page.get_by_role("row", name=re.compile("dns-security")).first).to_be_visible()
    with page.expect_download() as saved:
        page.get_by_role("link", name="CSV").click()
    assert "dns-security" in saved.value.path().read_text()


# -- when the API is away. The last test: it stops the API.


def test_while_the_api_is_away_the_last_known_state_is_shown_with_its_age_until_it_is_back(
    visit: Visit, stack: Stack
) -> None:
    page = visit(statuses=(503,))
    stack.stop("api")
    try:
        trouble = page.get_by_role("alert").filter(has_text="last known state")
        expect(trouble.locator("time")).to_be_visible()
        page.goto("/events?kind=sandbox.added")
        expect(page.get_by_role("heading", name="The broker does not answer")).to_be_visible()
        expect(page.get_by_text("Traceback")).to_have_count(0)
    finally:
        stack.start("api")
    # Nobody clicks.
    expect(page.get_by_role("heading", name="Events")).to_be_visible()
    page.goto("/")
    expect(page.get_by_role("alert").filter(has_text="last known state")).to_have_count(0)
