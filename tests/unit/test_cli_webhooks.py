"""`broker webhook`, where no broker is needed to see what it does."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
import responses
from responses.matchers import json_params_matcher, query_param_matcher

from broker_common.cli import webhooks
from tests.unit.test_cli import URL, broker, refusal

ALL = f"{URL}/webhooks"
ONE = f"{ALL}/one"
SECRET = "whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="
HOOK = "https://hooks.example.com/broker"
FOUND: dict[str, Any] = {
    "endpoint_id": "one",
    "url": HOOK,
    "kinds": ["sandbox.added", "pool.paused"],
    "description": None,
    "enabled": True,
    "version": 4,
    "active_from": 1796112010,
    "failing_since": None,
    "disabled_at": None,
    "previous_secret_valid_until": None,
}
DELIVERY: dict[str, Any] = {
    "delivery_id": "test-1",
    "state": "pending",
    "tries": 0,
    "fact_at": 1796112000,
    "next_try_at": 1796112000,
    "last_try_at": None,
    "last_status": None,
    "last_answer": None,
}
ENDED = DELIVERY | {"tries": 1, "next_try_at": None, "last_try_at": 1796112001, "last_answer": "204 No Content"}


@responses.activate
@pytest.mark.parametrize(
    ("words", "body"),
    [
        ((), {"kinds": ["*"]}),
        (("--kind", "pool.paused", "--kind", "sandbox.added"), {"kinds": ["pool.paused", "sandbox.added"]}),
        (("--description", "the console"), {"kinds": ["*"], "description": "the console"}),
    ],
)
def test_an_endpoint_is_registered_and_its_secret_is_printed(words: tuple[str, ...], body: dict[str, Any]) -> None:
    made = FOUND | {"secret": SECRET}
    responses.post(ALL, json=made, status=201, match=[json_params_matcher({"url": HOOK} | body)])
    result = broker("webhook", "add", HOOK, *words)
    assert (result.exit_code, result.stdout) == (0, f"one {HOOK}\nsecret: {SECRET}\n")
    assert result.stderr == "Keep the secret now: it is not shown again.\n"
    assert json.loads(broker("webhook", "add", HOOK, *words, "--json").stdout) == made


@responses.activate
def test_a_rotation_prints_the_new_secret_and_until_when_the_old_one_signs() -> None:
    made = FOUND | {"secret": SECRET, "previous_secret_valid_until": int(time.time()) + 86400}
    responses.post(f"{ONE}/rotate-secret", json=made)
    result = broker("webhook", "rotate-secret", "one")
    assert f"secret: {SECRET}" in result.stdout
    assert "the secret before signs, too: until" in result.stderr
    assert json.loads(broker("webhook", "rotate-secret", "one", "--json").stdout) == made


@responses.activate
def test_endpoints_are_listed_with_what_state_they_are_in() -> None:
    found = [FOUND, FOUND | {"failing_since": 7}, FOUND | {"failing_since": 7, "enabled": False}]
    responses.get(ALL, json={"webhooks": found, "count": 3})
    heading, *rows = broker("webhook", "list").stdout.splitlines()
    assert heading.split() == ["endpoint_id", "state", "kinds", "url"]
    assert [row.split() for row in rows] == [
        ["one", state, "sandbox.added,pool.paused", HOOK] for state in ("ok", "failing", "disabled")
    ]
    assert [json.loads(line) for line in broker("webhook", "list", "--json").stdout.splitlines()] == found


@responses.activate
def test_an_endpoint_is_shown_with_every_field_and_any_text_is_a_safe_id() -> None:
    responses.get(f"{ALL}/..%2Fone", json=FOUND)
    shown = broker("webhook", "show", "../one").stdout
    assert "kinds                        sandbox.added,pool.paused" in shown
    assert "1796112010  (2026-12-01 08:00:10Z" in shown
    assert json.loads(broker("webhook", "show", "../one", "--json").stdout) == FOUND


@responses.activate
@pytest.mark.parametrize(
    ("words", "changes"),
    [
        (("--enable",), {"enabled": True}),
        (("--disable",), {"enabled": False}),
        (("--url", HOOK), {"url": HOOK}),
        (("--kind", "pool.paused"), {"kinds": ["pool.paused"]}),
        (("--description", ""), {"description": None}),
        (("--description", "new"), {"description": "new"}),
    ],
)
def test_a_change_sends_what_was_given_and_the_version_that_was_read(
    words: tuple[str, ...], changes: dict[str, Any]
) -> None:
    responses.get(ONE, json=FOUND)
    responses.patch(ONE, json=FOUND, match=[json_params_matcher(changes | {"version": 4})])
    result = broker("webhook", "change", "one", *words)
    assert result.exit_code == 0, result.output
    assert "sandbox.added,pool.paused" in result.stdout


@responses.activate
def test_a_change_may_name_the_version_and_needs_something_to_change() -> None:
    responses.patch(ONE, json=FOUND, match=[json_params_matcher({"enabled": True, "version": 2})])
    assert broker("webhook", "change", "one", "--enable", "--version", "2").exit_code == 0
    result = broker("webhook", "change", "one")
    assert (result.exit_code, "give what to change" in result.stderr) == (2, True)
    responses.patch(ONE, json=refusal("VERSION_MISMATCH", "the endpoint has version 5"), status=409)
    result = broker("webhook", "change", "one", "--disable", "--version", "2")
    assert (result.exit_code, "`broker webhook show` says what it is now" in result.stderr) == (1, True)


@responses.activate
def test_an_endpoint_is_removed_after_a_question(monkeypatch: pytest.MonkeyPatch) -> None:
    responses.get(ONE, json=FOUND)
    responses.delete(ONE, status=204)
    result = broker("webhook", "remove", "one")
    assert (result.exit_code, "give --yes" in result.stderr) == (2, True)
    assert broker("webhook", "remove", "one", "--yes").stdout == "one is removed\n"
    monkeypatch.setattr(webhooks, "is_terminal", lambda: True)
    result = broker("webhook", "remove", "one")
    assert (result.exit_code, HOOK in result.stderr) == (1, True)


@responses.activate
@pytest.mark.parametrize(
    ("ended", "printed", "code"),
    [
        (ENDED | {"state": "delivered"}, "delivered: 204 No Content", 0),
        (ENDED | {"state": "delivered", "last_answer": None, "last_status": 204}, "delivered: 204", 0),
        (ENDED | {"last_answer": "timed out after 15 s"}, "pending: timed out after 15 s", 1),
    ],
)
def test_a_test_waits_for_its_first_try(
    monkeypatch: pytest.MonkeyPatch, ended: dict[str, Any], printed: str, code: int
) -> None:
    monkeypatch.setattr(webhooks, "_TEST_POLL_SEC", 0)
    responses.post(f"{ONE}/test", json=DELIVERY, status=202)
    responses.get(f"{ONE}/deliveries/test-1", json=DELIVERY)
    responses.get(f"{ONE}/deliveries/test-1", json=ended)
    result = broker("webhook", "test", "one")
    assert (result.exit_code, result.stdout) == (code, f"{printed}\n")
    assert json.loads(broker("webhook", "test", "one", "--json").stdout) == ended


@responses.activate
@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({}, "later: broker webhook deliveries one"),
        ({"failing_since": 1}, "the endpoint is down, and one delivery is tried every 30 seconds, the oldest first"),
        ({"enabled": False}, "the endpoint is disabled. After the repair: broker webhook change one --enable"),
    ],
)
def test_a_test_that_is_not_tried_in_time_says_why_or_where_to_look(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], why: str
) -> None:
    monkeypatch.setattr(webhooks, "_TEST_WAIT_SEC", 0)
    responses.post(f"{ONE}/test", json=DELIVERY, status=202)
    responses.get(ONE, json=FOUND | changes)
    result = broker("webhook", "test", "one")
    assert (result.exit_code, result.stdout) == (1, f"not tried yet: {why}\n")


@responses.activate
def test_deliveries_are_listed_page_after_page_up_to_the_limit() -> None:
    for cursor, following in ((None, "next"), ("next", "more")):
        asked = {"limit": "50" if cursor else "100", "state": "exhausted"} | ({"cursor": cursor} if cursor else {})
        page = {"deliveries": [ENDED | {"delivery_id": f"after-{cursor}"}] * int(asked["limit"]), "cursor": following}
        responses.get(f"{ONE}/deliveries", json=page, match=[query_param_matcher(asked)])
    words = ("webhook", "deliveries", "one", "--state", "exhausted", "--limit", "150")
    heading, *rows = broker(*words).stdout.splitlines()
    assert heading.split() == ["delivery_id", "kind", "state", "tries", "fact_at", "next_try_at", "last_answer"]
    assert (len(rows), rows[-1].split()[0]) == (150, "after-next")
    assert len(broker(*words, "--json").stdout.splitlines()) == 150


@responses.activate
def test_the_last_page_of_deliveries_may_be_short() -> None:
    responses.get(f"{ONE}/deliveries", json={"deliveries": [ENDED], "cursor": None})
    assert len(broker("webhook", "deliveries", "one").stdout.splitlines()) == 2


@responses.activate
def test_a_delivery_is_sent_again_and_any_text_is_a_safe_id() -> None:
    responses.post(f"{ONE}/deliveries/a%2Fb%3A1%3Asandbox_added/retry", json=DELIVERY)
    assert broker("webhook", "retry", "one", "a/b:1:sandbox_added").stdout == "test-1 is pending\n"
    unknown = refusal("DELIVERY_NOT_FOUND", "the endpoint has no delivery 'x'")
    responses.post(f"{ONE}/deliveries/x/retry", json=unknown, status=404)
    result = broker("webhook", "retry", "one", "x")
    assert (result.exit_code, "`broker webhook deliveries` lists the ids" in result.stderr) == (1, True)


@responses.activate
def test_a_replay_goes_on_until_there_is_no_cursor() -> None:
    since = 1796112000
    for cursor, following, replayed in ((None, "next", 100), ("next", None, 7)):
        body = {"since": since} | ({"cursor": cursor} if cursor else {})
        answer = {"replayed": replayed, "cursor": following}
        responses.post(f"{ONE}/replay", json=answer, match=[json_params_matcher(body)])
    result = broker("webhook", "replay", "one", "--since", "2026-12-01 09:00 Europe/Berlin")
    assert (result.stdout, result.stderr) == ("107 deliveries are sent again\n", "100 so far\n")


@responses.activate
def test_a_replay_may_begin_a_length_of_time_ago() -> None:
    posted = responses.post(f"{ONE}/replay", json={"replayed": 0, "cursor": None})
    assert broker("webhook", "replay", "one", "--since", "24h").exit_code == 0
    assert abs(json.loads(posted.calls[0].request.body)["since"] - (time.time() - 86400)) < 60
    result = broker("webhook", "replay", "one", "--since", "yesterday")
    assert (result.exit_code, "--since" in result.stderr) == (2, True)


@responses.activate
def test_an_unknown_endpoint_is_told_where_the_ids_are() -> None:
    responses.get(ONE, json=refusal("WEBHOOK_NOT_FOUND", "there is no webhook endpoint 'one'"), status=404)
    result = broker("webhook", "show", "one")
    assert (result.exit_code, "`broker webhook list` lists the ids" in result.stderr) == (1, True)
