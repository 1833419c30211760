"""Chromium for tests that use a page as a person does, and a record of what a page must not do."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from playwright.sync_api import sync_playwright

from tests.backends import installed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Dialog

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


@contextmanager
def running_chromium() -> Iterator[Browser]:
    """Run this machine's Chromium during the context. If it is missing, skip the test, or fail it in CI."""
    path = installed("chromium", package="chromium")
    with sync_playwright() as playwright:
        # Its own sandbox needs rights that root in a container has not; the pages are ours.
        browser = playwright.chromium.launch(executable_path=path, chromium_sandbox=False, args=_OPTIONS)
        yield browser
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
