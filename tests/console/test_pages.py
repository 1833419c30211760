"""What all pages have in common."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from broker_api.console.app import PAGES
from tests.console.filled import TOKENS

if TYPE_CHECKING:
    from tests.console.harness import Console


@pytest.mark.parametrize("endpoint", [endpoint for endpoint, _ in PAGES])
def test_each_page_of_the_navigation_is_shown_to_who_is_signed_in(console: Console, endpoint: str) -> None:
    with console.app.test_request_context():
        path = console.app.url_for(endpoint)

    page = console.open(path)

    assert page.status_code == 200, page.text
    assert 'aria-current="page"' in page.text


def test_each_field_for_a_time_says_in_which_zone_it_is(filled: Console) -> None:
    filled.sign_in(TOKENS["adam"])
    labels = {
        address: [re.sub(r"<[^>]+>", "", text) for text in re.findall(r"<label[^>]*>(.*?)</label>", page, re.DOTALL)]
        for address in ("/usage", "/events", "/webhooks/hook/replay", "/reservations/new")
        for page in [filled.open(address).text]
    }
    of_times = [
        text for texts in labels.values() for text in texts if re.match(r"From|To\b|Since|Starts|Or ends", text)
    ]
    assert len(of_times) == 6
    assert [text for text in of_times if "UTC" not in text] == []


def test_each_file_that_a_page_loads_is_there(console: Console) -> None:
    page = console.open("/").text
    paths = re.findall(r'(?:src|href)="(/[^"]+\.(?:css|js|svg))"', page)

    assert len(paths) >= 5
    for path in paths:
        assert console.open(path, buffered=True).status_code == 200, path


def test_a_page_that_renews_itself_leaves_it_to_the_next_visit_to_end_the_session(console: Console) -> None:
    console.browser = console.new_browser()

    renewed = console.open("/", headers={"X-Renew": "1"})

    assert renewed.status_code == 401
    assert "Set-Cookie" not in renewed.headers
    assert console.open("/").status_code == 303
