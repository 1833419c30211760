"""Attacks on a person who is signed in to the console, in Chromium: by other origins, planted cookies and texts.

The console and its API run in this process, so that a test sees each call that the API gets.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import expect

from tests.api.harness import make_api, named_token
from tests.console.filled import NO_PAGES, TEXTS, TOKENS, addresses_of, make_filled_api, planted, values_of
from tests.console.harness import Console, make_console, served
from tests.e2e.browser import SESSION, give_session, plant_session, running_chromium, watch
from tests.fakes import START
from tests.http_server import Handler, serving

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from playwright.sync_api import Browser, Page, Request

    from tests.e2e.browser import Watch

SAME_SITE, OTHER_SITE = "127.0.0.1", "localhost"
"""For browsers, ports of one host are one site: with a request from there, they send the session."""
RENEWAL_MS = 6000


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with running_chromium() as running:
        yield running


@pytest.fixture(scope="module")
def console(tmp_path_factory: pytest.TempPathFactory) -> Console:
    return make_console(make_filled_api(tmp_path_factory.mktemp("filled")))


@pytest.fixture(scope="module")
def url(console: Console) -> Iterator[str]:
    """Yield where the console answers."""
    with served(console.app) as address:
        yield address


class Visit(Protocol):
    """Opens a page of a browser without cookies, in which an admin is signed in unless that is not wanted."""

    def __call__(self, *, signed_in: bool = True) -> tuple[Page, Watch]: ...


@pytest.fixture
def visit(browser: Browser, console: Console, url: str) -> Iterator[Visit]:
    opened = []

    def open_page(*, signed_in: bool = True) -> tuple[Page, Watch]:
        context = browser.new_context(base_url=url)
        opened.append(context)
        seen, page = watch(context), context.new_page()
        if signed_in:
            give_session(context, console, url, TOKENS["adam"])
        return page, seen

    yield open_page
    for context in opened:
        context.close()


@contextmanager
def page_elsewhere(host: str, content: str) -> Iterator[str]:
    """Serve a page at another origin; yields its address."""

    class Elsewhere(Handler):
        def reply(self) -> None:
            self.answer(200, content.encode(), Content_Type="text/html")

    with serving(Elsewhere) as server:
        yield f"http://{host}:{server.server_port}/"


def session_of(page: Page) -> str:
    """Return the value of the session's cookie; empty if there is none."""
    return next((str(each["value"]) for each in page.context.cookies() if each["name"] == SESSION), "")


def is_signed_in(page: Page) -> bool:
    """Tell whether the browser's session opens a page."""
    page.goto("/jobs")
    expect(page.get_by_role("heading", level=1)).to_be_visible()
    return page.get_by_role("button", name="Sign out").is_visible()


# -- forms and frames of another origin


@pytest.mark.parametrize(("host", "has_session"), [(SAME_SITE, True), (OTHER_SITE, False)])
def test_a_form_that_another_origin_sends_changes_nothing_and_the_api_gets_no_call(
    console: Console, url: str, visit: Visit, host: str, has_session: bool
) -> None:
    page, _ = visit()
    form = f"""<form method="post" action="{url}/jobs/pauses/cleanup">
        <input type="hidden" name="paused" value="yes"><button>Win a prize</button></form>"""
    posts = [url + address for _, address in addresses_of(console.app, values_of(console.api), "POST")]
    sent = len(console.to_api.sent)
    with page_elsewhere(host, form) as elsewhere:
        page.goto(elsewhere)
        page.get_by_role("button").click()
        expect(page.get_by_role("heading", name="This form is too old")).to_be_visible()
        # The browser did send the session where it sees one site: it is the form's token that was missing.
        expect(page.get_by_text("You are not signed in.")).to_have_count(0 if has_session else 1)
        page.goto(elsewhere)
        answers = page.evaluate(
            """posts => Promise.all(posts.map(each => fetch(each, {
                method: "POST", mode: "no-cors", credentials: "include", redirect: "manual",
                body: new URLSearchParams({typed: "held", paused: "yes", act: "release", chosen: "held"}),
            }).then(answer => answer.type, error => error.name)))""",
            posts,
        )
    assert len(answers) > 20
    assert len(console.to_api.sent) == sent
    assert not console.api.admin("GET", "/v1/admin/pause").get_json()["cleanup"]
    assert is_signed_in(page)


@pytest.mark.parametrize("host", [SAME_SITE, OTHER_SITE])
def test_another_origin_cannot_show_a_page_of_the_console_inside_its_own(url: str, visit: Visit, host: str) -> None:
    page, seen = visit()
    tags = [
        f'<{tag} {link}="{url}/jobs" width="900" height="300"></{tag}>'
        for tag, link in (("iframe", "src"), ("object", "data"), ("embed", "src"))
    ]
    with page_elsewhere(host, f"<h1>Prizes</h1>{''.join(tags)}") as elsewhere:
        page.goto(elsewhere)
        expect(page.get_by_role("heading", name="Prizes")).to_be_visible()
        framed = [frame for frame in page.frames if frame is not page.main_frame]
        assert all("Sandbox Broker" not in frame.content() for frame in framed)
    refused = [text for text in seen.said if "frame-ancestors" in text]
    assert len(refused) == len(tags), seen.said


def test_another_origin_reads_nothing_of_the_console(url: str, visit: Visit) -> None:
    page, _ = visit()
    ways = """async url => {
        const read = [];
        for (const mode of ["cors", "no-cors"]) {
            read.push(await fetch(`${url}/jobs`, {mode, credentials: "include"}).then(each => each.text(), () => ""));
        }
        const opened = open(`${url}/jobs`);
        await new Promise(done => setTimeout(done, 500));
        try { read.push(opened.document.body.innerText); } catch { read.push(""); }
        return read.join("");
    }"""
    with page_elsewhere(SAME_SITE, "<h1>Prizes</h1>") as elsewhere:
        page.goto(elsewhere)
        assert page.evaluate(ways, url) == ""


# -- the session


def test_a_session_that_was_planted_before_the_sign_in_is_worth_nothing_after_it(
    console: Console, url: str, visit: Visit
) -> None:
    attacker, _ = visit(signed_in=False)
    victim, _ = visit(signed_in=False)
    attacker.goto("/signin")
    known = session_of(attacker)
    form_token = attacker.locator("input[name=csrf_token]").first.get_attribute("value")
    plant_session(victim.context, known, url)
    victim.goto("/signin")
    victim.get_by_label("Token").fill(TOKENS["adam"])
    victim.get_by_role("button", name="Sign in").click()
    expect(victim.get_by_role("button", name="Sign out")).to_be_visible()
    assert session_of(victim) not in {"", known}
    assert not is_signed_in(attacker)

    # The attacker knows the token for forms that the planted session had.
    form = f"""<form method="post" action="{url}/jobs/pauses/cleanup">
        <input name="csrf_token" value="{form_token}"><input name="paused" value="yes"><button>Go</button></form>"""
    with page_elsewhere(SAME_SITE, form) as elsewhere:
        victim.goto(elsewhere)
        victim.get_by_role("button").click()
        expect(victim.get_by_role("heading", name="This form is too old")).to_be_visible()
    assert not console.api.admin("GET", "/v1/admin/pause").get_json()["cleanup"]


def test_signing_out_ends_the_session_of_every_tab_of_the_browser(visit: Visit) -> None:
    page, _ = visit()
    page.goto("/line")
    other = page.context.new_page()
    other.clock.install()
    other.goto("/jobs")
    expect(other.get_by_role("heading", name="Jobs", exact=True)).to_be_visible()
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_text("You are signed out.")).to_be_visible()
    other.clock.run_for(RENEWAL_MS)
    expect(other.get_by_label("Token")).to_be_visible()
    assert not is_signed_in(page)


def test_what_was_typed_stays_when_the_session_ends_and_can_be_sent_after_a_new_sign_in(
    console: Console, url: str, visit: Visit
) -> None:
    page, _ = visit()
    page.goto("/line")
    form = page.context.new_page()
    form.clock.install()
    form.goto("/reservations/new")
    form.get_by_label("Name of the class").fill("Networking 101")
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_text("You are signed out.")).to_be_visible()
    form.get_by_label("How many sandboxes").fill("3")
    form.clock.run_for(RENEWAL_MS)
    expect(form.get_by_text("You are signed out. What you have typed stays on this page.")).to_be_visible()
    form.locator("form.booking").evaluate("form => { form.noValidate = true; }")
    form.get_by_role("button", name="Book", exact=True).click()
    expect(form.get_by_role("definition").filter(has_text="Networking 101")).to_be_visible()
    give_session(page.context, console, url, TOKENS["adam"])
    form.get_by_role("button", name="Send the form again").click()
    expect(form.get_by_role("heading", name="This form is too old")).to_be_visible()
    form.get_by_role("button", name="Send the form again").click()
    expect(form.get_by_text("Nothing was saved: something is missing or wrong below.")).to_be_visible()
    expect(form.get_by_label("Name of the class")).to_have_value("Networking 101")
    expect(form.get_by_label("How many sandboxes")).to_have_value("3")


def test_a_page_without_live_parts_is_not_asked_for_again(visit: Visit) -> None:
    page, _ = visit()
    page.clock.install()
    renewals: list[str] = []

    def note(request: Request) -> None:
        renewals.extend([request.url] if request.method == "GET" and "x-renew" in request.headers else [])

    page.on("request", note)
    for path in ("/usage", "/events?kind=sandbox.allocated", "/reservations/new", "/jobs"):
        page.goto(path)
        expect(page.get_by_role("heading", level=1)).to_be_visible()
        page.clock.run_for(3 * RENEWAL_MS)
    expect(page.get_by_role("heading", level=1)).to_be_visible()
    assert {urlsplit(each).path for each in renewals} <= {"/jobs"}


def test_a_page_renews_itself_no_more_after_its_button_is_pressed_until_it_is_pressed_again(visit: Visit) -> None:
    page, _ = visit()
    page.clock.install()
    page.goto("/jobs")
    page.get_by_role("button", name="Stop renewing this page").click()
    renewals: list[str] = []
    page.on("request", lambda request: renewals.append(request.headers.get("x-renew", "")))
    page.clock.run_for(3 * RENEWAL_MS)
    page.get_by_role("button", name="Renew this page again").click()
    assert renewals == []
    with page.expect_response(lambda answer: "x-renew" in answer.request.headers):
        page.clock.run_for(RENEWAL_MS)


def test_the_session_is_hidden_from_scripts_is_no_token_and_counts_for_nothing_when_edited(
    console: Console, url: str, visit: Visit
) -> None:
    page, _ = visit()
    value = session_of(page)
    page.goto("/jobs")
    held = page.evaluate("[document.cookie, JSON.stringify(localStorage), JSON.stringify(sessionStorage)].join()")
    assert value
    assert value not in held
    assert TOKENS["adam"] not in held + page.content()
    as_token = console.api.call("GET", "/v1/admin/whoami", headers={"Authorization": f"Bearer {value}"})
    assert as_token.status_code == 401
    for edited in (value[:-1], "A" + value[1:], value[:60] + ("A" if value[60] != "A" else "B") + value[61:]):
        plant_session(page.context, edited, url)
        assert not is_signed_in(page), edited
    # It is the change that made it worthless.
    plant_session(page.context, value, url)
    assert is_signed_in(page)


@pytest.mark.parametrize(
    ("lasts_sec", "why"), [(600, "the broker does not accept your token"), (13 * 3600, "Your sign-in has ended.")]
)
def test_who_has_a_page_open_when_the_token_or_the_session_ends_reads_why_and_a_form_does_nothing(
    browser: Browser, tmp_path: Path, lasts_sec: int, why: str
) -> None:
    tokens = tmp_path / "tokens.toml"
    tokens.write_text(named_token("olga", TOKENS["olga"], "operator", more=f"expires_at = {START + lasts_sec}"))
    tokens.chmod(0o600)
    console = make_console(make_api(BROKER_TOKENS_FILE=str(tokens)))
    with served(console.app) as url:
        # Two browsers, because the first answer ends the session of all tabs.
        contexts = [browser.new_context(base_url=url) for _ in range(2)]
        page, form = (context.new_page() for context in contexts)
        page.clock.install()
        for each in (page, form):
            give_session(each.context, console, url, TOKENS["olga"])
            each.goto("/jobs")
        pause = form.locator("details:has(input[name=paused])").first
        pause.locator("summary").click()
        console.api.clock.advance(min(lasts_sec, 12 * 3600))
        page.clock.run_for(RENEWAL_MS)
        pause.get_by_role("button").click()
        expect(page.get_by_label("Token")).to_be_visible()
        expect(page.locator("body")).to_contain_text(why)
        expect(form.get_by_role("main")).to_contain_text("Nothing was changed.")
        assert True not in console.api.admin("GET", "/v1/admin/pause").get_json().values()
        for context in contexts:
            context.close()


# -- planted texts

SHOWN_ON = {
    "sandbox name": {"sandboxes.show", "sandboxes.index", "line.index"},
    "track": {"sandboxes.show", "sandboxes.index", "line.index", "webhooks.delivery", "events.index"},
    "lab": {"sandboxes.show", "sandboxes.index", "line.index", "events.index", "usage.index"},
    "customer": {"sandboxes.show", "line.index", "reservations.index", "reservations.show", "usage.index"},
    "key": {"sandboxes.show", "line.index"},
    "prefix": {"line.index"},
    "reason": {"sandboxes.index", "sandboxes.show", "events.index"},
    "error of a wipe": {"sandboxes.index", "sandboxes.show"},
    "error of a job": {"overview.show", "jobs.index", "jobs.show"},
    "class": {"overview.show", "reservations.index", "reservations.show"},
    "note": {"reservations.show"},
    "lab of a class": {"reservations.index", "reservations.show"},
    "names of a class": {"reservations.show"},
    "webhook": {"webhooks.index", "webhooks.show", "webhooks.delivery", "webhooks.rotate", "webhooks.replay"},
    "answer": {"webhooks.show", "webhooks.delivery"},
    "reason of the breaker": {"overview.show"},
    "reason to disable": {"webhooks.index", "webhooks.show"},
}
"""For each text of `TEXTS` some pages that must show it, so that a text that is not there is noticed."""
MORE = (
    *(("sandboxes.show", "/sandboxes/failed"), ("sandboxes.show", "/sandboxes/free")),
    *(("webhooks.show", "/webhooks/off"), ("usage.index", "/usage?by=customer")),
)


@pytest.mark.timeout(180)
def test_no_text_that_an_outsider_wrote_runs_or_asks_another_host_on_any_page(browser: Browser, tmp_path: Path) -> None:
    console = make_console(make_filled_api(tmp_path, planted))
    found: dict[str, set[str]] = {text: set() for text in TEXTS}
    with served(console.app) as url:
        context = browser.new_context(base_url=url)
        seen, page = watch(context), context.new_page()
        give_session(context, console, url, TOKENS["adam"])
        pages = [each for each in addresses_of(console.app, values_of(console.api)) if each[0] not in NO_PAGES]
        for endpoint, address in (*pages, *MORE):
            if endpoint in {"sandboxes.as_csv", "usage.download", "overview.download"}:
                continue
            page.goto(address)
            expect(page.get_by_role("heading", level=1)).to_be_visible()
            content = page.locator("main").text_content() or ""
            values = page.locator("main").evaluate(
                "main => [...main.querySelectorAll('input, textarea')].map(each => each.value).join()"
            )
            for text in TEXTS:
                if planted(text) in content + values:
                    found[text].add(endpoint)
            assert page.locator("main img").count() == 0, address
        # Answers to forms have these texts, too.
        page.goto("/sandboxes")
        page.get_by_role("button", name="Choose all on this page").click()
        page.get_by_label("With the chosen sandboxes").select_option("quarantine")
        page.locator("#bulk input[name=reason]").fill(planted("typed"))
        page.locator("#bulk input[name=typed]").fill(str(page.locator("input[name=chosen]").count()))
        page.get_by_role("button", name="Do it").click()
        expect(page.locator("#outcomes")).to_be_visible()
        page.goto("/webhooks/new")
        page.get_by_label("Address").fill(planted("typed"))
        page.get_by_label("Description").fill(planted("typed"))
        page.get_by_role("button", name="Add it").click()
        expect(page.get_by_label("Description")).to_have_value(planted("typed"))
        context.close()
    missing = {text: SHOWN_ON[text] - found[text] for text in TEXTS if not SHOWN_ON[text] <= found[text]}
    assert missing == {}
    assert seen.dialogs == []
    assert [text for text in seen.said if "status of 400" not in text] == []
    assert seen.hosts == {urlsplit(url).netloc}
