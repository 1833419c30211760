"""Signing in to the console in a real browser: at an issuer, by a token, over links from other sites, and out."""

from __future__ import annotations

import os
import re
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, urlsplit

import pytest
import requests
from playwright.sync_api import expect

from broker_api.console.session import LONGEST_TOKEN
from broker_common.adapters.oidc_sign_in import NotRenewed, OidcSignIn
from broker_common.adapters.system_clock import SystemClock
from deploy.dev.processes import Process, Program, free_ports, wait_until
from tests.api.harness import make_api
from tests.authorization_server import CLIENT_ID, LOGOUT, AuthorizationServer, settings_of
from tests.console.harness import make_console, served
from tests.console.test_signin import console_of
from tests.e2e.browser import running_chromium, watch
from tests.e2e.stack import ADMIN_TOKEN, Stack
from tests.http_server import Handler, serving
from tests.issuer import AUDIENCE, DISCOVERY, running

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Browser, Page

    from tests.e2e.browser import Watch

RENEWAL_MS = 6000
PENDING, SESSION = "broker-console-sign-in", "broker-console"


@pytest.fixture(scope="module")
def issuer() -> Iterator[AuthorizationServer]:
    with running(AuthorizationServer()) as server:
        # For browsers, ports of one host are one site. The issuer is another one, as it is in production.
        server.host = "localhost"
        yield server


@pytest.fixture(scope="module")
def stack(issuer: AuthorizationServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    settings = settings_of(issuer) | {"OIDC_CLIENT_ID": CLIENT_ID}
    with Stack(tmp_path_factory.mktemp("stack"), settings, with_console=True) as running_stack:
        yield running_stack


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with running_chromium() as chromium:
        yield chromium


@pytest.fixture
def seen(browser: Browser) -> Iterator[tuple[Page, Watch]]:
    """Yield a page of a browser without cookies, and the record of what its pages do."""
    context = browser.new_context()
    record = watch(context)
    yield context.new_page(), record
    context.close()


@pytest.fixture
def page(seen: tuple[Page, Watch]) -> Page:
    return seen[0]


@pytest.fixture
def elsewhere(stack: Stack) -> Iterator[str]:
    """Yield the address of another site, whose page links to the console's page of jobs."""

    class Chat(Handler):
        def reply(self) -> None:
            link = f'<a href="{stack.console_url}/jobs">See the jobs</a>'
            self.answer(200, link.encode(), Content_Type="text/html")

    with serving(Chat) as server:
        yield f"http://localhost:{server.server_port}/"


def sign_in(page: Page, name: str = "anna") -> None:
    """Follow the link to the issuer on the page to sign in; give a name if the issuer asks for one."""
    page.get_by_role("link", name="Sign in at").click()
    page.get_by_label("Name").fill(name)
    page.get_by_role("button", name="Sign in").click()


def cookies(page: Page) -> dict[str, str | None]:
    """Return the cookies of the console by name, with their `SameSite`."""
    return {each["name"]: each.get("sameSite") for each in page.context.cookies() if "broker" in str(each["name"])}


def test_a_person_signs_in_at_the_issuer_comes_back_to_the_page_and_signs_out_of_both(
    stack: Stack, issuer: AuthorizationServer, seen: tuple[Page, Watch]
) -> None:
    page, record = seen
    page.goto(f"{stack.console_url}/events?kind=sandbox.allocated")
    expect(page.get_by_text("Sign in to see this page.")).to_be_visible()
    sign_in(page)

    page.wait_for_url(f"{stack.console_url}/events?kind=sandbox.allocated")
    expect(page.get_by_text("oidc:anna-1")).to_be_visible()
    assert cookies(page) == {SESSION: "Strict", "broker-console-known": "Lax"}
    page.reload()
    expect(page.get_by_text("oidc:anna-1")).to_be_visible()

    page.get_by_role("button", name="Sign out").click()
    # The issuer is another site. So the first answer at this address only leads to the page.
    expect(page.get_by_role("heading", name="Sign in", exact=True)).to_be_visible()
    assert LOGOUT in issuer.asked
    page.goto(f"{stack.console_url}/events")
    expect(page.get_by_role("heading", name="Sign in", exact=True)).to_be_visible()
    # The issuer does not know the person any more either.
    page.get_by_role("link", name="Sign in at").click()
    expect(page.get_by_label("Name")).to_be_visible()
    assert record.said == [], "a file that is missing, or what the page's policy forbids"


def test_who_the_issuer_still_knows_is_back_by_one_click(stack: Stack, page: Page) -> None:
    page.goto(f"{stack.console_url}/line")
    sign_in(page)
    page.wait_for_url(f"{stack.console_url}/line")
    page.context.clear_cookies(name=SESSION)
    page.goto(f"{stack.console_url}/jobs")
    page.get_by_role("link", name="Sign in at").click()
    page.wait_for_url(f"{stack.console_url}/jobs")
    expect(page.get_by_text("oidc:anna-1")).to_be_visible()


def test_a_link_on_another_site_leads_in_signed_in_and_ends_no_session(
    stack: Stack, page: Page, elsewhere: str
) -> None:
    page.goto(f"{stack.console_url}/line")
    sign_in(page)
    page.wait_for_url(f"{stack.console_url}/line")
    page.goto(elsewhere)
    page.get_by_role("link", name="See the jobs").click()
    page.wait_for_url(f"{stack.console_url}/jobs")
    expect(page.get_by_text("oidc:anna-1")).to_be_visible()
    page.goto(f"{stack.console_url}/line")
    expect(page.get_by_text("oidc:anna-1")).to_be_visible()


def test_a_long_token_passes_the_browser_and_the_server(stack: Stack, issuer: AuthorizationServer, page: Page) -> None:
    issuer.change.access_claims = {"groups": ["x" * 40] * 58}
    page.goto(f"{stack.console_url}/line")
    sign_in(page)
    page.wait_for_url(f"{stack.console_url}/line")
    issuer.change.access_claims = {}
    assert LONGEST_TOKEN * 0.9 < len(issuer.given[-2]) <= LONGEST_TOKEN
    assert set(cookies(page)) == {SESSION, f"{SESSION}-1", "broker-console-known"}
    page.goto(f"{stack.console_url}/jobs")
    expect(page.get_by_text("oidc:anna-1")).to_be_visible()
    page.get_by_role("button", name="Sign out").click()
    page.wait_for_url(f"{stack.console_url}/signin")
    assert f"{SESSION}-1" not in cookies(page)


def test_a_person_whom_the_issuer_or_the_broker_refuses_reads_why(stack: Stack, page: Page) -> None:
    page.goto(f"{stack.console_url}/line")
    sign_in(page, "mallory")
    expect(page.get_by_text("The issuer did not sign you in: mallory may not use this application.")).to_be_visible()
    page.context.clear_cookies()
    page.get_by_role("link", name="Sign in again").click()
    sign_in(page, "nobody")
    expect(page.get_by_text("it has no role of an operator")).to_be_visible()
    assert set(cookies(page)) <= {SESSION, PENDING}


def test_by_a_token_a_person_signs_in_although_the_issuer_is_away(
    stack: Stack, issuer: AuthorizationServer, page: Page
) -> None:
    issuer.faults[DISCOVERY] = lambda handler: handler.answer(503)
    page.goto(f"{stack.console_url}/jobs")
    page.get_by_label("Token").fill("wrong-token")
    page.get_by_role("button", name="by this token").click()
    expect(page.get_by_text("The token is unknown.")).to_be_visible()
    page.get_by_label("Token").fill(ADMIN_TOKEN)
    page.get_by_role("button", name="by this token").click()
    page.wait_for_url(re.compile("/jobs$"))
    issuer.faults.clear()


def test_a_page_that_is_left_open_goes_on_when_its_token_ends(page: Page) -> None:
    with running(AuthorizationServer()) as issuer:
        issuer.host = "localhost"
        issuer.change.refresh_tokens = "once"
        console = console_of(issuer)
        with served(console.app) as url:
            page.clock.install()
            page.goto(f"{url}/line")
            sign_in(page)
            page.wait_for_url(f"{url}/line")
            for renewals in (1, 2):
                console.api.clock.advance(issuer.change.lasts_sec)
                with page.expect_response(lambda answer: "x-renew" in answer.request.headers) as found:
                    page.clock.run_for(RENEWAL_MS)
                assert (found.value.status, len(issuer.renewals)) == (200, renewals)
            page.reload()
            expect(page.get_by_text("oidc:anna-1")).to_be_visible()
            assert len(issuer.renewals) == 2, "the browser kept the cookie of the renewed session"


@contextmanager
def issuer_of_another_author() -> Iterator[str]:
    """Run `oidc-provider-mock`; yields its address."""
    (port,) = free_ports(1)
    command = (sys.executable, "-W", "ignore", "-m", "oidc_provider_mock", "--port", str(port), "--require-nonce", "1")
    program = Program(
        name="issuer",
        command=command,
        env={"PATH": os.environ["PATH"]},
        ready_url=f"http://127.0.0.1:{port}{DISCOVERY}",
    )
    other = Process(program, lambda *_: None)
    other.start()
    try:
        assert wait_until(other.is_ready, 30)
        yield f"http://127.0.0.1:{port}"
    finally:
        other.stop()


def test_an_issuer_of_another_author_is_understood_and_its_tokens_are_for_the_api_to_judge(page: Page) -> None:
    """`oidc-provider-mock` writes ID tokens as we read them. Its access tokens are no JWTs, so the API refuses them."""
    with issuer_of_another_author() as address:
        settings = {"OIDC_ISSUER": address, "OIDC_AUDIENCE": AUDIENCE}
        console = make_console(
            make_api(**settings), settings | {"OIDC_CLIENT_ID": CLIENT_ID, "OIDC_CLIENT_SECRET": "any"}
        )
        with served(console.app) as url:
            page.goto(f"{url}/signin/issuer", wait_until="commit")
            page.get_by_placeholder("sub").fill("anna")
            page.get_by_role("button", name="Authorize").click(no_wait_after=True)
            expect(page.get_by_text("The token is unknown.")).to_be_visible()
            page.goto(f"{url}/signin/issuer", wait_until="commit")
            page.get_by_role("button", name="Deny").click(no_wait_after=True)
            expect(page.get_by_role("heading", name="You are not signed in")).to_be_visible()


def test_an_issuer_of_another_author_renews_its_tokens() -> None:
    with issuer_of_another_author() as address:
        client = OidcSignIn(
            issuer=address,
            client_id=CLIENT_ID,
            client_secret="any",
            audience=AUDIENCE,
            scopes="openid offline_access",
            clock=SystemClock(),
        )
        return_to = "http://127.0.0.1:9/signin/return"
        asking, asked = client.begin(return_to, is_known=True)
        answer = requests.post(asking, data={"sub": "anna"}, allow_redirects=False, timeout=30)
        came_with = dict(parse_qsl(urlsplit(answer.headers["Location"]).query))
        granted = client.finish(asked, came_with, return_to, is_known=True)
        assert granted.refresh_token is not None
        renewed = client.renew(granted.refresh_token)
        assert renewed.access_token != granted.access_token
        assert renewed.refresh_token is not None
        with pytest.raises(NotRenewed):
            client.renew("none of its own")


def test_no_token_is_in_any_line_of_the_log(stack: Stack, issuer: AuthorizationServer) -> None:
    assert issuer.given
    written = "\n".join(stack.output(name) for name in ("console", "api"))
    assert "/signin/return" in written
    for token in issuer.given:
        for part in token.split(".")[1:]:
            assert part not in written
    for sent in issuer.exchanges:
        assert sent["code"] not in written
        assert sent["code_verifier"] not in written
    assert ADMIN_TOKEN not in written
