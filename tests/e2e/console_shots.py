"""`python -m tests.e2e.console_shots [NAME …]`: take the pictures of docs/console.md again, all or those named.

A whole broker runs for it, with a pool as it is on a working day.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from playwright.sync_api import expect

from deploy.dev.processes import ROOT, wait_until
from tests.backends import hide_aws
from tests.e2e.browser import running_chromium
from tests.e2e.console_life import SETTINGS, life, wait_in_line
from tests.e2e.stack import ADMIN_TOKEN, Stack

if TYPE_CHECKING:
    from playwright.sync_api import Page

PLACE = ROOT / "docs" / "console"
MOST_BYTES = 150_000
"""A reader of the document loads all of them."""
_WIDTH = 1280
_HEIGHTS = {"booking": 1040, "line": 520, "webhooks": 440}
_HEIGHT = 870

Walk = Callable[["Page", Stack], None]


def _overview(page: Page, _stack: Stack) -> None:
    page.goto("/")


def _sandboxes(page: Page, _stack: Stack) -> None:
    page.goto("/sandboxes?sort=expires_at&track_name=networking-101")


def _sandbox(page: Page, stack: Stack) -> None:
    (failed, *_) = stack.as_admin("GET", "/sandboxes?status=deletion_failed").json()["sandboxes"]
    page.goto(f"/sandboxes/{failed['sandbox_id']}")


def _line(page: Page, stack: Stack) -> None:
    wait_in_line(stack)
    page.goto("/line")
    expect(page.get_by_role("row")).to_have_count(5)


def _reservations(page: Page, _stack: Stack) -> None:
    page.goto("/reservations")


def _booking(page: Page, _stack: Stack) -> None:
    page.goto("/reservations/new")
    page.get_by_label("Name of the class").fill("Cloud discovery")
    page.get_by_label("How many sandboxes").fill("40")
    day = datetime.now(UTC) + timedelta(days=4)
    page.get_by_label(re.compile("^Starts")).fill(f"{day:%Y-%m-%d}T09:00")
    page.get_by_label("Lasts").fill("3 h")
    page.get_by_label("Labs of the class").fill("cloud-discovery")
    expect(page.locator("[data-found]")).to_contain_text("It fits")


def _jobs(page: Page, stack: Stack) -> None:
    stack.as_admin("POST", "/pause", json={"cleanup": True}).raise_for_status()
    page.goto("/jobs")


def _webhooks(page: Page, _stack: Stack) -> None:
    page.goto("/webhooks")


def _usage(page: Page, _stack: Stack) -> None:
    page.goto("/usage")


WALKS: dict[str, Walk] = {
    "overview": _overview,
    "sandboxes": _sandboxes,
    "sandbox": _sandbox,
    "line": _line,
    "reservations": _reservations,
    "booking": _booking,
    "webhooks": _webhooks,
    "usage": _usage,
    # The last one, because it pauses cleanup.
    "jobs": _jobs,
}


def main(names: list[str]) -> int:
    """Take the pictures; returns 1 if one has too many bytes."""
    hide_aws()
    PLACE.mkdir(exist_ok=True)
    with (
        TemporaryDirectory() as scratch,
        Stack(Path(scratch), SETTINGS, with_console=True, with_webhooks=True) as stack,
    ):
        assert wait_until(lambda: stack.run_job("sync")["state"] == "succeeded", 30)
        with life(stack), running_chromium() as browser:
            page = browser.new_page(
                base_url=stack.console_url,
                viewport={"width": _WIDTH, "height": _HEIGHT},
                color_scheme="light",
                reduced_motion="reduce",
                timezone_id="UTC",
                locale="en-GB",
            )
            page.goto("/signin")
            page.get_by_label("Token").fill(ADMIN_TOKEN)
            page.get_by_role("button", name="Sign in").click()
            expect(page.get_by_role("heading", name="Overview")).to_be_visible()
            return max([_take(page, stack, name) for name in WALKS if not names or name in names], default=0)


def _take(page: Page, stack: Stack, name: str) -> int:
    page.set_viewport_size({"width": _WIDTH, "height": _HEIGHTS.get(name, _HEIGHT)})
    WALKS[name](page, stack)
    path = PLACE / f"{name}.png"
    page.screenshot(path=path)
    size = path.stat().st_size
    sys.stdout.write(f"{path.relative_to(ROOT)}: {size:,} bytes{', too many' if size > MOST_BYTES else ''}\n")
    return int(size > MOST_BYTES)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
