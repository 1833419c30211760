"""What each role sees and may send, on every page and by every form, over a broker that has one of everything."""

from __future__ import annotations

import html
import re
from typing import TYPE_CHECKING

import pytest

from tests.console.filled import NO_PAGES, TOKENS, addresses_of, values_of

if TYPE_CHECKING:
    from werkzeug.test import TestResponse

    from tests.console.harness import Console

_POST_FORM = re.compile(r'<form[^>]*method="post"[^>]*>')
_ACTION = re.compile(r'action="([^"]*)"')
_LINK = re.compile(r'<a [^>]*href="(/[^"#]*)')


def pages_of(console: Console) -> dict[str, TestResponse]:
    """Return every page by its address, as the person who is signed in gets it."""
    found = addresses_of(console.app, values_of(console.api))
    more = ["/sandboxes/failed", "/sandboxes/free", "/sandboxes/given-back", "/webhooks/off", "/usage?by=customer"]
    return {each: console.open(each) for each in [*(address for name, address in found if name not in NO_PAGES), *more]}


def main_of(page: TestResponse) -> str:
    return html.unescape(page.text[page.text.find("<main") :])


@pytest.mark.parametrize(("name", "forbidden"), [("vera", 6), ("olga", 4), ("adam", 0)])
def test_no_link_leads_a_person_to_a_page_that_their_role_may_not_open(
    filled: Console, name: str, forbidden: int
) -> None:
    filled.sign_in(TOKENS[name])
    pages = pages_of(filled)
    assert {page.status_code for page in pages.values()} <= {200, 302, 403}
    assert sum(page.status_code == 403 for page in pages.values()) == forbidden
    links = {link for page in pages.values() if page.mimetype == "text/html" for link in _LINK.findall(main_of(page))}
    assert len(links) > 20
    refused = {link for link in links if filled.open(link).status_code not in {200, 302}}
    assert refused == set()


def test_no_page_has_a_form_that_does_something_for_a_viewer(filled: Console) -> None:
    filled.sign_in(TOKENS["vera"])
    for address, page in pages_of(filled).items():
        assert not _POST_FORM.search(main_of(page)), address


@pytest.mark.parametrize("name", ["olga", "adam"])
def test_each_form_that_a_page_has_is_one_that_the_role_may_send(filled: Console, name: str) -> None:
    filled.sign_in(TOKENS[name])
    sent = {
        found.group(1) if (found := _ACTION.search(form)) else address
        for address, page in pages_of(filled).items()
        for form in _POST_FORM.findall(main_of(page))
    }
    assert len(sent) > 8
    page = filled.open("/").text
    for action in sorted(sent):
        answer = filled.browser.post(action, data={"csrf_token": token_in(page)})
        assert answer.status_code not in {403, 404, 405}, action


def test_every_form_is_refused_to_a_viewer_and_the_api_is_not_called(filled: Console) -> None:
    filled.sign_in(TOKENS["vera"])
    token = token_in(filled.open("/").text)
    before = len(filled.to_api.sent)
    tried = 0
    for endpoint, address in addresses_of(filled.app, values_of(filled.api), "POST"):
        if endpoint in {"signin.show", "signin.out"}:
            continue
        answer = filled.browser.post(address, data={"csrf_token": token, "typed": "held", "act": "release"})
        assert (answer.status_code, "Your roles do not allow this" in answer.text) == (403, True), endpoint
        tried += 1
    assert tried > 15
    assert len(filled.to_api.sent) == before


def test_forms_for_admins_are_refused_to_an_operator_and_the_api_is_not_called(filled: Console) -> None:
    filled.sign_in(TOKENS["olga"])
    token = token_in(filled.open("/").text)
    before = len(filled.to_api.sent)
    posts = addresses_of(filled.app, values_of(filled.api), "POST")
    of_admins = [each for each in posts if each[0].startswith("webhooks.") or each[0] == "sandboxes.delete_all"]
    assert len(of_admins) > 8
    for endpoint, address in of_admins:
        assert filled.browser.post(address, data={"csrf_token": token, "typed": "stale"}).status_code == 403, endpoint
    assert len(filled.to_api.sent) == before


def token_in(page: str) -> str:
    """Return the token that the forms of a page have."""
    found = re.search(r'name="csrf_token"[^>]*value="([^"]+)"', page)
    assert found
    return found.group(1)
