"""The page at `/v1/docs` in a real browser: read by a track's author, who tries a call on it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import expect

from tests.e2e.browser import running_chromium, watch
from tests.e2e.stack import TRACK_TOKEN

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Page

    from tests.e2e.stack import Stack


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    with running_chromium() as browser:
        yield browser.new_page(viewport={"width": 1280, "height": 1600})


def test_a_track_s_author_authorizes_runs_allocate_and_sees_a_201(stack: Stack, page: Page) -> None:
    seen = watch(page.context)
    page.goto(f"{stack.api_url}/v1/docs")

    page.click("button.authorize")
    page.locator(".auth-container", has_text="trackToken").locator("input").fill(TRACK_TOKEN)
    page.locator(".auth-container", has_text="trackToken").get_by_role("button", name="Apply credentials").click()
    page.get_by_role("button", name="Close").last.click()

    call = page.locator(".opblock", has=page.get_by_text("/v1/allocate", exact=True))
    call.click()
    call.get_by_role("button", name="Try it out").click()
    call.locator("tr", has_text="X-Track-ID").locator("input").first.fill("of-a-browser")
    call.get_by_role("button", name="Execute").click()
    answer = call.locator(".live-responses-table .response")
    expect(answer.locator(".response-col_status")).to_contain_text("201")

    held: list[dict[str, Any]] = stack.as_admin("GET", "/sandboxes?track_id=of-a-browser").json()["sandboxes"]
    assert [each["status"] for each in held] == ["allocated"]
    expect(answer).to_contain_text(held[0]["sandbox_id"])
    assert seen.said == [], "a file that is missing, or a script that the page's policy forbids"
    assert seen.hosts == {urlsplit(stack.api_url).netloc}
