"""The pages of webhooks."""

from __future__ import annotations

import html
import json
import logging
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from structlog.testing import capture_logs

from broker_common.core.errors import StoreUnavailable
from broker_common.core.facts import FactKind, PoolFactKind
from broker_common.core.ports import Allowance
from broker_common.core.webhook import DeliveryState
from broker_common.core.webhook_payload import delivery_of
from tests.api.harness import body_of, make_api, named_token
from tests.console.harness import Console, make_console
from tests.contract.webhooks import delivered, exhausted, make_delivery, make_endpoint
from tests.fakes import START, add_of, make_sandbox

if TYPE_CHECKING:
    from pathlib import Path

    from werkzeug.test import TestResponse

    from broker_common.core.webhook import Delivery, Endpoint

URL = "https://hooks.example.com/broker"
EVIL = '"><script>alert(1)</script>'
SECRET = re.compile(r"whsec_[A-Za-z0-9+/=]+")


def text_of(answer: TestResponse) -> str:
    """Return the words of a page's content, without tags."""
    main = answer.text[answer.text.index("<main") : answer.text.index("</main>")]
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", main)).split())


def add(console: Console, **changes: Any) -> Endpoint:
    endpoint = make_endpoint(**({"url": URL} | changes))
    console.api.store.write_endpoint(None, endpoint)
    return endpoint


def add_delivery(console: Console, delivery: Delivery) -> Delivery:
    assert console.api.store.add_delivery(delivery)
    return delivery


def form_of(page: str) -> dict[str, Any]:
    """Return the fields of the page's form as a browser sends them."""
    fields: dict[str, Any] = {}
    for tag in re.findall(r"<input[^>]*>", page[page.index('class="webhook-form"') :]):
        name, value = re.search(r'name="([^"]+)"', tag), re.search(r'value="([^"]*)"', tag)
        assert name is not None
        assert value is not None
        if ("radio" not in tag and "checkbox" not in tag) or " checked" in tag:
            fields.setdefault(name[1], []).append(html.unescape(value[1]))
    return {name: values[0] if len(values) == 1 else values for name, values in fields.items()}


def stored(console: Console, endpoint_id: str = "hook") -> Endpoint:
    found = console.api.store.read_endpoint(endpoint_id)
    assert found is not None
    return found


@pytest.fixture
def viewer(tmp_path: Path) -> Console:
    """Return a console in which a viewer is signed in."""
    file = tmp_path / "tokens.toml"
    file.write_text(named_token("vera", "token-of-vera", "viewer", "operator"))
    console = make_console(make_api(BROKER_TOKENS_FILE=str(file)))
    assert console.sign_in("token-of-vera").status_code == 303
    return console


# -- reading


def test_without_an_endpoint_the_page_says_what_webhooks_are_for(console: Console, viewer: Console) -> None:
    assert "Add an endpoint" in text_of(console.open("/webhooks"))
    assert "An administrator can add an endpoint." in text_of(viewer.open("/webhooks"))


def test_endpoints_are_listed_with_their_state_and_how_far_they_are_behind(console: Console) -> None:
    add(console, description="the billing", kinds=("pool.low",))
    add(console, endpoint_id="failing", url="https://b.example/in", failing_since=START - 7200)
    reason = "disabled by anna"
    add(console, endpoint_id="off", url="https://c.example/in", disabled_at=START - 60, disabled_reason=reason)
    add(console, endpoint_id="some", url="https://d.example/in", kinds=tuple(FactKind)[:4])
    for version in (1, 2):
        add_delivery(console, make_delivery(version=version, fact_at=START - 600 * version))

    page = console.open("/webhooks")
    said = text_of(page)

    for words in (
        "the billing https://hooks.example.com/broker enabled 2 waiting, the oldest since 20 min ago pool.low",
        "2 h ago ) nothing waits every kind",
        "disabled since 1 min ago : disabled by anna",
        "4 kinds",
        "by admin",
    ):
        assert words in said
    assert 'href="/webhooks/failing"' in page.text


def test_more_waiting_deliveries_than_are_counted_are_said_as_more(console: Console) -> None:
    add(console)
    for version in range(101):
        add_delivery(console, make_delivery(version=version, fact_at=START - 60))

    assert "100 or more waiting, one since 1 min ago" in text_of(console.open("/webhooks"))


def test_an_endpoint_is_shown_with_its_deliveries_in_words(console: Console) -> None:
    add(console, kinds=("sandbox.added", "test"))
    add_delivery(console, delivered(make_delivery(version=1), START - 60))
    failed = replace(exhausted(make_delivery(version=2), START - 60), tries=10, last_status=503, last_answer="too busy")
    add_delivery(console, failed)
    again = replace(failed, delivery_id="7:3:x", version=3, state=DeliveryState.PENDING, tries=2)
    add_delivery(console, replace(again, next_try_at=START + 300, last_status=None, last_answer="timed out"))
    add_delivery(console, replace(again, delivery_id="7:6:x", next_try_at=START - 9))
    add_delivery(console, make_delivery(version=4, next_try_at=START - 1))
    add_delivery(console, make_delivery(version=5, next_try_at=START + 5))

    page = console.open("/webhooks/hook")
    said = text_of(page)

    for words in (
        "A sync found a new sandbox.",
        "An operator tries the endpoint.",
        "at try 1. 200 ok",
        "All 10 tries failed.",
        "503 too busy",
        "2 tries failed, the last one 1 min ago . The next one: in 5 min",
        "timed out",
        "The next one is due: it is sent when the endpoint answers again.",
        "Not tried yet. It is due.",
        "Not tried yet. The first try: in 5 s",
    ):
        assert words in said, words
    assert page.text.count(">Send again<") == 2
    assert page.text.count(">Send now<") == 2
    assert 'href="/sandboxes/7"' in page.text


def test_deliveries_are_filtered_by_state_and_read_page_by_page(console: Console) -> None:
    add(console)
    for version in range(60):
        add_delivery(console, delivered(make_delivery(version=version), START))
    add_delivery(console, make_delivery(version=100))

    first = console.open("/webhooks/hook?state=delivered").text
    more = re.search(r'href="([^"]+)">More deliveries', first)
    assert more is not None
    second = console.open(html.unescape(more[1])).text
    assert (first.count('class="fact-of"'), second.count('class="fact-of"')) == (50, 10)
    assert "No delivery is in this state." in console.open("/webhooks/hook?state=exhausted").text
    assert console.open("/webhooks/hook?state=odd").status_code == 400


def test_an_endpoint_without_deliveries_says_what_to_do(console: Console) -> None:
    add(console)

    assert "Nothing was sent yet. Send a test" in text_of(console.open("/webhooks/hook"))


def test_a_delivery_is_shown_with_its_fact_and_its_body(console: Console) -> None:
    endpoint = add(console)
    api = console.api
    api.store.seed(make_sandbox("7"))
    api.allocate(X_Instruqt_Track_ID="intro")
    (fact,) = api.store.facts
    made = add_delivery(console, delivery_of(fact, endpoint, now=START))

    page = console.open(f"/webhooks/hook/deliveries/{made.delivery_id}")

    assert "A track got the sandbox." in text_of(page)
    assert 'href="/sandboxes?track_id=track-1"' in page.text
    assert "&#34;type&#34;: &#34;sandbox.allocated&#34;" in page.text


@pytest.mark.parametrize("payload", ["not JSON", '{"type": "x", "data": {}}'])
def test_a_delivery_whose_body_has_another_form_is_shown_too(console: Console, payload: str) -> None:
    add(console)
    add_delivery(console, make_delivery(delivery_id="odd", payload=payload))

    page = console.open("/webhooks/hook/deliveries/odd")

    assert page.status_code == 200
    assert "name or ids of the sandbox changed" in text_of(page)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"disabled_at": START, "disabled_reason": "it answered 410"}, "because the endpoint is disabled"),
        ({"failing_since": START}, "one delivery is tried every 30 seconds"),
        ({}, "An older one of the same sandbox goes first."),
    ],
)
def test_a_delivery_says_why_it_waits(console: Console, changes: dict[str, Any], words: str) -> None:
    add(console, **changes)
    made = add_delivery(console, make_delivery())

    assert words in text_of(console.open(f"/webhooks/hook/deliveries/{made.delivery_id}"))


def test_what_is_not_there_is_said_so(console: Console) -> None:
    add(console)

    assert console.open("/webhooks/nope").status_code == 404
    assert console.open("/webhooks/hook/deliveries/nope").status_code == 404


def test_planted_words_stay_text(console: Console) -> None:
    add(console, description=EVIL, url=f"https://h.example/{EVIL}", disabled_at=1, disabled_reason=EVIL)
    made = exhausted(make_delivery(delivery_id=EVIL, payload=f'{{"data": "{EVIL[2:]}"}}'), START)
    add_delivery(console, replace(made, last_answer=EVIL, kind=EVIL))
    path = "/webhooks/hook/deliveries/%22%3E%3Cscript%3Ealert(1)%3C%2Fscript%3E"

    for each in ("/webhooks", "/webhooks/hook", "/webhooks/hook/change", "/webhooks/hook/replay?since=" + EVIL):
        page = console.open(each)
        assert page.status_code == 200, page.text
        assert "<script>alert" not in page.text
        assert "&lt;script&gt;alert(1)" in page.text
    assert "<script>alert" not in console.open(path).text
    sent = console.send("/webhooks/new", {"url": EVIL, "description": EVIL, "scope": "some", "kinds": EVIL})
    assert sent.status_code == 400
    assert "<script>alert" not in sent.text


def test_known_endpoints_are_shown_while_the_api_is_away(console: Console) -> None:
    add(console)
    console.open("/webhooks")
    console.to_api.away = True

    page = console.open("/webhooks")

    assert page.status_code == 200
    assert "This is the last known state" in page.text


# -- adding, and secrets


def test_an_endpoint_is_added_and_its_secret_is_in_that_answer_alone(
    console: Console, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    form = {"url": f" {URL} ", "scope": "some", "kinds": ["pool.low", "test"], "description": "chat"}
    with capture_logs() as lines:
        answer = console.send("/webhooks/new", form, page="/webhooks/new")

    assert answer.status_code == 200
    (found,) = set(SECRET.findall(html.unescape(answer.text)))
    (endpoint,) = console.api.store.read_endpoints()
    assert found == endpoint.secrets[0].value
    assert (endpoint.url, endpoint.kinds, endpoint.description) == (URL, ("pool.low", "test"), "chat")
    assert answer.headers["Cache-Control"] == "no-store"
    assert console.to_api.sent[-1].headers["X-Request-ID"] in answer.text
    with console.browser.session_transaction() as session:
        assert found not in str(dict(session))
    assert found not in str(lines) + caplog.text + str(answer.headers)
    for path in ("/", "/webhooks", f"/webhooks/{endpoint.endpoint_id}"):
        assert found not in html.unescape(console.open(path).text)


def test_a_new_endpoint_gets_every_kind_unless_some_are_chosen(console: Console) -> None:
    page = console.open("/webhooks/new").text
    for kind in (*FactKind, *PoolFactKind, "test"):
        assert f'value="{kind}"' in page
    assert "Few sandboxes are available." in page

    console.send("/webhooks/new", {"url": URL, "kinds": ["pool.low"], "scope": "all"})

    assert [each.kinds for each in console.api.store.read_endpoints()] == [("*",)]


@pytest.mark.parametrize(
    ("form", "words"),
    [
        ({}, "Write the address."),
        ({"url": "http://hooks.example.com/in"}, "Must begin with https://."),
        ({"url": URL, "scope": "some"}, "must not be empty"),
        ({"url": URL, "scope": "some", "kinds": ["pool.painted"]}, "Must be one of"),
        ({"url": URL, "description": "x" * 600}, "500"),
    ],
)
def test_a_form_that_does_not_fit_is_shown_again_with_what_was_typed(
    console: Console, form: dict[str, Any], words: str
) -> None:
    answer = console.send("/webhooks/new", form)

    assert answer.status_code == 400
    assert words.lower() in text_of(answer).lower()
    for typed in (form.get("url"), form.get("description")):
        assert typed is None or f'value="{typed}"' in answer.text
    assert console.api.store.read_endpoints() == []


def test_an_error_that_is_about_no_field_stands_above_the_form(console: Console) -> None:
    for number in range(20):
        add(console, endpoint_id=f"hook-{number}")

    answer = console.send("/webhooks/new", {"url": URL})

    assert re.search(r'role="alert">There are 20 endpoints already: remove one first. \(request', answer.text)


def test_a_secret_is_rotated_with_a_word_on_how_long_the_old_one_stays(console: Console) -> None:
    add(console)
    assert "For 1 d each delivery is signed by both secrets." in text_of(console.open("/webhooks/hook/rotate-secret"))

    answer = console.send("/webhooks/hook/rotate-secret", {"typed": "hook"}, page="/webhooks/hook/rotate-secret")

    assert answer.status_code == 200
    assert stored(console).secrets[0].value in html.unescape(answer.text)
    assert "It signs, too, until 2025-06-16" in text_of(answer)
    assert "It was changed. The one before signs, too, until" in text_of(console.open("/webhooks/hook"))
    assert "was changed already" in text_of(console.open("/webhooks/hook/rotate-secret"))
    assert not SECRET.search(html.unescape(console.open("/webhooks/hook").text))


# -- changing


def test_an_endpoint_is_changed_by_a_form_that_has_what_it_is_now(console: Console) -> None:
    add(console, description="old", kinds=("pool.low",))
    page = console.open("/webhooks/hook/change").text
    assert f'value="{URL}"' in page
    assert 'value="pool.low" checked' in page
    assert 'value="some" checked' in page

    form = form_of(page) | {"url": "https://new.example/in", "scope": "all", "description": ""}
    answer = console.send("/webhooks/hook/change", form, page="/webhooks/hook/change")

    assert answer.headers["Location"] == "/webhooks/hook"
    assert "The endpoint is changed. (request" in console.open("/webhooks/hook").text
    changed = stored(console)
    assert (changed.url, changed.kinds, changed.description) == ("https://new.example/in", ("*",), None)
    assert 'value="all" checked' in console.open("/webhooks/hook/change").text


def test_only_what_was_changed_in_the_form_is_sent(console: Console) -> None:
    add(console, description="old", kinds=("test", "pool.low"))
    form = form_of(console.open("/webhooks/hook/change").text)

    assert console.send("/webhooks/hook/change", form | {"description": "new"}).status_code == 303

    (sent,) = [json.loads(each.body or "") for each in console.to_api.sent if each.method == "PATCH"]
    assert sent == {"description": "new", "version": 1}
    console.open("/webhooks/hook")
    assert console.send("/webhooks/hook/change", form).headers["Location"] == "/webhooks/hook"
    assert "Nothing was changed: the form has the values that it had before." in console.open("/webhooks/hook").text
    assert stored(console).version == 2


def test_a_change_after_somebody_else_s_keeps_theirs_and_shows_both(console: Console) -> None:
    add(console, kinds=("pool.low",))
    form = form_of(console.open("/webhooks/hook/change").text) | {"description": "mine"}
    theirs = {"description": "theirs", "kinds": ["pool.low", "test"], "version": 1}
    body_of(console.api.admin("PATCH", "/v1/admin/webhooks/hook", json=theirs), 200)

    answer = console.send("/webhooks/hook/change", form)

    assert answer.status_code == 409
    said = text_of(answer)
    assert "Somebody else changed this endpoint since you opened this form, so nothing was saved." in said
    assert "Description was nothing, and is now theirs. You typed mine, which is in the form." in said
    assert (
        "What it is told was pool.low, and is now pool.low, test. You did not change it, so the form has what it is now."
        in said
    )
    again = form_of(answer.text)
    assert (again["description"], again["kinds"], again["version"]) == ("mine", ["pool.low", "test"], "2")
    assert console.send("/webhooks/hook/change", again).status_code == 303
    assert (stored(console).description, stored(console).kinds) == ("mine", ("pool.low", "test"))


def test_a_change_after_somebody_else_s_that_cannot_be_read_keeps_what_was_typed(console: Console) -> None:
    add(console)
    form = form_of(console.open("/webhooks/hook/change").text) | {"description": "mine"}
    body_of(console.api.admin("PATCH", "/v1/admin/webhooks/hook", json={"description": "x", "version": 1}), 200)
    # The refusal comes, and then nothing.
    console.to_api.answers_left = 1

    answer = console.send("/webhooks/hook/change", form, page="/webhooks/new")

    assert "The endpoint has changed, and cannot be read now. Nothing was saved. (request" in text_of(answer)
    assert form_of(answer.text) == form


def test_the_form_of_a_change_is_never_made_of_the_last_known_state(console: Console) -> None:
    add(console)
    console.open("/webhooks/hook")
    console.open("/webhooks/hook/change")
    console.to_api.away = True

    assert console.open("/webhooks/hook/change").status_code == 503


def test_a_change_that_was_saved_but_not_answered_is_not_called_somebody_else_s(console: Console) -> None:
    add(console)
    form = form_of(console.open("/webhooks/hook/change").text) | {"description": "mine"}
    assert console.send("/webhooks/hook/change", form).status_code == 303
    sent_as = request_of(console.open("/webhooks/hook").text)

    again = console.send("/webhooks/hook/change", form)

    assert (again.status_code, again.location) == (303, "/webhooks/hook")
    page = console.open("/webhooks/hook").text
    assert "it is saved already" in page
    assert request_of(page) == sent_as, "the request that saved it"
    assert stored(console).version == 2


def request_of(page: str) -> str:
    """Return the id of the request that the message of a page names."""
    (found,) = re.findall(r"\(request ([\w-]+)\)", page)
    return str(found)


def test_an_endpoint_is_added_once_however_often_its_form_is_sent(console: Console) -> None:
    form = form_of(console.open("/webhooks/new").text) | {"url": URL, "scope": "all"}
    first = console.send("/webhooks/new", form)
    assert first.status_code == 200
    (sent_as,) = re.findall(r"<dt>Request</dt><dd><code>([\w-]+)", first.text)

    again = console.send("/webhooks/new", form)

    assert again.status_code == 409
    assert f"This form was sent already, so nothing was added now (request {sent_as})." in text_of(again)
    assert len(console.api.store.read_endpoints()) == 1
    # A second endpoint with the same address is possible, but only on purpose.
    assert console.send("/webhooks/new", form_of(again.text)).status_code == 200
    assert len(console.api.store.read_endpoints()) == 2


def test_a_form_is_not_counted_as_sent_if_the_token_of_its_sender_was_refused(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens.toml"
    keeper, amy = named_token("keeper", "keeper-token", "admin"), named_token("amy", "amy-token", "admin")
    tokens.write_text(keeper + amy)
    console = make_console(make_api(BROKER_TOKENS_FILE=str(tokens)))
    console.sign_in("amy-token")
    form = form_of(console.open("/webhooks/new").text) | {"url": URL, "scope": "all"}
    del form["csrf_token"]  # each session has one of its own
    tokens.write_text(keeper)
    assert console.send("/webhooks/new", form, page="/webhooks/new").status_code == 401
    tokens.write_text(keeper + amy)
    console.sign_in("amy-token")
    assert console.send("/webhooks/new", form, page="/webhooks/new").status_code == 200
    assert len(console.api.store.read_endpoints()) == 1


def test_a_form_of_a_new_endpoint_that_was_refused_can_be_sent_again(console: Console) -> None:
    form = form_of(console.open("/webhooks/new").text) | {"scope": "all"}
    refused = console.send("/webhooks/new", form | {"url": "https://10.0.0.1/in"})
    assert refused.status_code == 400
    assert form_of(refused.text)["key"] == form["key"]

    assert console.send("/webhooks/new", form_of(refused.text) | {"url": URL}).status_code == 200


def test_a_refusal_of_which_nobody_knows_whether_it_was_done_says_so(
    console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise StoreUnavailable("the table does not answer")

    form = form_of(console.open("/webhooks/new").text) | {"url": URL, "scope": "all"}
    monkeypatch.setattr(console.api.store, "write_endpoint", fail)
    answer = console.send("/webhooks/new", form)
    assert "It is not known whether this was done: look before you try again. (request" in text_of(answer)
    assert form_of(answer.text)["key"] != form["key"]


def test_a_change_that_the_api_refuses_keeps_what_was_typed(console: Console) -> None:
    add(console)

    for form in ({"url": "", "version": "1"}, {"url": "https://10.0.0.1/in", "version": "1"}):
        answer = console.send("/webhooks/hook/change", form)
        assert answer.status_code == 400
        assert 'aria-invalid="true"' in answer.text
    assert stored(console).version == 1


def test_a_kind_that_this_release_does_not_know_stays_chosen(console: Console) -> None:
    add(console, kinds=("sandbox.painted",))

    assert 'value="sandbox.painted" checked' in console.open("/webhooks/hook/change").text


def test_an_endpoint_is_disabled_and_enabled(console: Console) -> None:
    add(console)

    console.send("/webhooks/hook/enabled", {"enabled": "no", "version": "1"})
    assert stored(console).disabled_reason == "disabled by admin"
    said = console.open("/webhooks/hook").text
    assert "The endpoint is disabled." in said
    assert ">Enable<" in said
    console.send("/webhooks/hook/enabled", {"enabled": "yes", "version": "2"})
    assert stored(console).disabled_at is None


def test_an_endpoint_is_removed_only_when_its_id_is_typed(console: Console) -> None:
    add(console)

    answer = console.send("/webhooks/hook/remove", {"typed": "hoo"})
    assert answer.headers["Location"] == "/webhooks/hook"
    assert "Nothing was done" in console.open("/webhooks/hook").text
    answer = console.send("/webhooks/hook/remove", {"typed": " hook "})
    assert answer.headers["Location"] == "/webhooks"
    assert "The endpoint is removed." in console.open("/webhooks").text
    assert console.api.store.read_endpoints() == []
    assert console.send("/webhooks/hook/remove", {"typed": "hook"}).status_code == 303
    assert "There is no webhook endpoint" in html.unescape(console.said())


# -- sending


def test_a_test_leads_to_its_delivery(console: Console) -> None:
    add(console)

    answer = console.send("/webhooks/hook/test")

    page = console.open(answer.headers["Location"])
    assert "The test is sent in a moment." in page.text
    assert "Delivery of test" in text_of(page)
    assert "Not tried yet. It is due." in text_of(page)
    assert console.send("/webhooks/nope/test").headers["Location"] == "/webhooks/nope"


def test_a_delivery_is_sent_again(console: Console) -> None:
    add(console)
    made = add_delivery(console, exhausted(make_delivery(delivery_id="7:1:x"), START))
    path = f"/webhooks/hook/deliveries/{made.delivery_id}"

    answer = console.send(f"{path}/retry", {"next": "/webhooks/hook?state=exhausted"}, page=path)

    assert answer.headers["Location"] == "/webhooks/hook?state=exhausted"
    assert "The delivery is sent again in a moment. (request" in console.said()
    found = console.api.store.read_delivery("hook", made.delivery_id)
    assert found is not None
    assert (found.state, found.tries) == (DeliveryState.PENDING, 0)
    console.send(f"{path}/retry")
    assert "is pending and due" in html.unescape(console.said())


def test_all_facts_since_a_time_are_sent_again(console: Console) -> None:
    add(console)
    for sandbox_id in "12":
        console.api.store.commit(add_of(make_sandbox(sandbox_id, version=START * 1000, updated_at=START)))
    console.api.clock.advance(60)

    answer = console.send("/webhooks/hook/replay", {"since": "1h"}, page="/webhooks/hook/replay")

    assert answer.headers["Location"] == "/webhooks/hook?state=pending"
    page = console.open(answer.headers["Location"])
    assert "2 deliveries are sent again. (request" in page.text
    assert page.text.count('class="fact-of"') == 2


@pytest.mark.parametrize(
    ("since", "words"),
    [("soon", "This is not a time."), ("9999d", "facts are kept"), ("2030-01-01", "future"), ("", "not a time")],
)
def test_a_replay_since_a_time_that_does_not_fit_is_asked_for_again(console: Console, since: str, words: str) -> None:
    add(console)

    answer = console.send("/webhooks/hook/replay", {"since": since})

    assert answer.status_code == 400
    assert words in text_of(answer)
    assert f'value="{since}"' in answer.text


def test_a_long_replay_goes_on_by_a_button_one_call_at_a_time(
    console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(console)
    for number in range(150):
        console.api.store.commit(add_of(make_sandbox(str(number), version=START * 1000, updated_at=START)))
    console.api.clock.advance(60)
    monkeypatch.setattr("broker_common.core.endpoints._REPLAY_SEC", 0.0)
    before = len(console.to_api.sent)

    first = console.send("/webhooks/hook/replay", {"since": "1h"})

    assert "100 deliveries are sent again so far. There are more." in text_of(first)
    assert [each.method for each in console.to_api.sent[before:]].count("POST") == 1
    fields = dict(re.findall(r'type="hidden" name="(since|cursor|so_far)" value="([^"]*)"', first.text))
    console.api.clock.advance(30)
    second = console.send("/webhooks/hook/replay", fields)
    assert second.status_code == 303
    assert "150 deliveries are sent again." in console.said()


# -- who may, and what if nobody answers


_ACTS = (
    "/webhooks/new",
    "/webhooks/hook/change",
    "/webhooks/hook/enabled",
    "/webhooks/hook/rotate-secret",
    "/webhooks/hook/replay",
    "/webhooks/hook/test",
    "/webhooks/hook/remove",
    "/webhooks/hook/deliveries/d/retry",
)


def test_who_is_no_admin_sees_all_and_is_offered_no_change(viewer: Console) -> None:
    add(viewer)
    add_delivery(viewer, delivered(make_delivery(delivery_id="d"), START))

    for path in ("/webhooks", "/webhooks/hook", "/webhooks/hook/deliveries/d"):
        page = viewer.open(path)
        assert page.status_code == 200
        main = page.text[page.text.index("<main") : page.text.index("</main>")]
        assert "<form" not in main
        assert not re.search("Add an endpoint|Change|Rotate|Replay|Send again|Remove", main)
    for path in _ACTS:
        assert viewer.send(path, {"typed": "hook"}).status_code == 403, path
    for path in ("/webhooks/new", "/webhooks/hook/change", "/webhooks/hook/rotate-secret", "/webhooks/hook/replay"):
        assert viewer.open(path).status_code == 403, path


def test_a_form_without_the_session_s_token_does_nothing(console: Console) -> None:
    add(console)

    for path in _ACTS:
        assert console.browser.post(path, data={"typed": "hook", "url": URL}).status_code == 400
    assert stored(console).version == 1


@pytest.mark.parametrize(
    ("path", "form", "words"),
    [
        ("/webhooks/new", {"url": URL, "description": "mine"}, "It is not known whether this was done"),
        ("/webhooks/hook/change", {"url": URL, "description": "mine"}, "It is not known whether this was done"),
        ("/webhooks/hook/rotate-secret", {"typed": "hook"}, "Rotate again"),
        ("/webhooks/hook/replay", {"since": "1h"}, "nothing is missed by that"),
    ],
)
def test_an_act_without_an_answer_says_what_is_known(
    console: Console, path: str, form: dict[str, str], words: str
) -> None:
    add(console)
    # Nothing is known of the endpoint from before.
    console.open("/")
    console.to_api.away = True

    answer = console.send(path, form)

    assert answer.status_code == 400
    assert words in text_of(answer)
    assert re.search(r"\(request [0-9a-f-]{36}\)", text_of(answer))
    for name, typed in form.items():
        assert name == "typed" or f'value="{typed}"' in answer.text


def test_a_rotation_that_is_refused_is_said_on_its_page(console: Console) -> None:
    add(console)
    console.open("/webhooks/hook/rotate-secret")
    console.api.rate_limit.answer = Allowance(is_exceeded=True, limit=1, remaining=0, reset_after=1, retry_after=1)

    answer = console.send("/webhooks/hook/rotate-secret", {"typed": "hook"}, page="/webhooks/hook/rotate-secret")

    assert answer.status_code == 400
    assert "(request" in text_of(answer)
    assert len(stored(console).secrets) == 1
