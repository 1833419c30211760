"""Chromium for tests that use a page as a person does, and a record of what a page must not do."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from axe_playwright_python.sync_playwright import Axe  # type: ignore[import-untyped] # it ships no types
from playwright.sync_api import expect, sync_playwright

from tests.backends import installed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Dialog, Page

    from tests.console.harness import Console

_OPTIONS = (
    # Its calls home would fail here, and slow down the start.
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--disable-quic",
    # A container has no graphics card, and little shared memory.
    "--disable-gpu",
    "--disable-dev-shm-usage",
)
_RULES = {
    "runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"],
    # It is of WCAG 2.2, and axe leaves it out unless it is asked for.
    "rules": {"target-size": {"enabled": True}},
}
_LOOKS = ((("light", 1280), ("dark", 360)), (("light", 360), ("dark", 1280)))
"""What axe sees of a page, in turns: contrast depends on the theme, and room on the width. All four take twice as long."""
_WIDTHS = (360, 1280, 1920)
SESSION = "broker-console"
"""The cookie of the console in development."""
PATIENCE_MS = 20_000
"""Pages of the console renew themselves every five seconds, and a busy machine is late."""


@contextmanager
def running_chromium() -> Iterator[Browser]:
    """Run this machine's Chromium during the context. If it is missing, skip the test, or fail it in CI.

    Meanwhile, expectations wait for `PATIENCE_MS`.
    """
    path = installed("chromium", package="chromium")
    with sync_playwright() as playwright:
        # Its own sandbox needs rights that root in a container has not; the pages are ours.
        browser = playwright.chromium.launch(executable_path=path, chromium_sandbox=False, args=_OPTIONS)
        expect.set_options(timeout=PATIENCE_MS)
        yield browser
        expect.set_options(timeout=None)
        browser.close()


@dataclass
class Watch:
    """What the pages of a browser context did."""

    said: list[str] = field(default_factory=list)
    """Errors and warnings of the browser's console: a file that is missing, or what the page's policy forbids."""
    hosts: set[str] = field(default_factory=set)
    """The hosts that were asked for something, with their ports."""
    dialogs: list[str] = field(default_factory=list)
    """Dialogs that a script opened. Each was closed."""


def watch(context: BrowserContext) -> Watch:
    """Return the record of all that the pages of `context` do from now on."""
    seen = Watch()

    def close(dialog: Dialog) -> None:
        seen.dialogs.append(dialog.message)
        dialog.dismiss()

    def note(message: ConsoleMessage) -> None:
        if message.type in {"error", "warning"}:
            seen.said.append(f"{message.text} {message.location['url']}")

    context.on("console", note)
    context.on("weberror", lambda error: seen.said.append(str(error.error)))
    context.on("request", lambda request: seen.hosts.add(urlsplit(request.url).netloc))
    context.on("dialog", close)
    return seen


def give_session(context: BrowserContext, console: Console, url: str, token: str) -> None:
    """Sign the owner of `token` in to a console of this process, without filling the form."""
    console.sign_in(token)
    cookie = console.browser.get_cookie(SESSION)
    assert cookie is not None
    console.browser.delete_cookie(SESSION)
    plant_session(context, cookie.value, url)


def plant_session(context: BrowserContext, value: str, url: str) -> None:
    """Put a session's cookie into the browser."""
    context.add_cookies([{"name": SESSION, "value": value, "url": url, "httpOnly": True, "sameSite": "Strict"}])


def find_faults(page: Page, address: str, *, turn: int = 0) -> list[str]:
    """Return what axe finds on the page in both themes, and at which widths it scrolls sideways.

    Who looks at several pages counts them by `turn`, so that each theme is seen at each width.
    """
    faults = []
    for width in _WIDTHS:
        page.set_viewport_size({"width": width, "height": 900})
        if page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth"):
            faults.append(f"{address}, {width} px: scrolls sideways")
    for theme, width in _LOOKS[turn % 2]:
        page.evaluate("theme => document.documentElement.setAttribute('data-bs-theme', theme)", theme)
        page.set_viewport_size({"width": width, "height": 900})
        faults += [
            f"{address}, {theme}, {width} px: {each['id']}: {each['nodes'][0]['html'][:200]}"
            for each in Axe().run(page, options=_RULES).response["violations"]
        ]
    return faults
