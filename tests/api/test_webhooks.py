"""The calls that keep webhook endpoints."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from typing import Any

import pytest
from structlog.contextvars import merge_contextvars
from structlog.testing import capture_logs

from broker_common.core.facts import Fact, FactKind
from broker_common.core.webhook import DeliveryState
from tests.api.harness import Api, assert_error, body_of, make_api
from tests.fakes import START, add_of, make_sandbox

PATH = "/v1/admin/webhooks"
AN_ENDPOINT = {"url": "https://hooks.example.com/broker", "kinds": ["sandbox.allocated", "pool.paused"]}
DAY = 24 * 3600


@pytest.fixture(scope="module")
def api_with_one() -> tuple[Api, dict[str, Any]]:
    """Return an API with one endpoint, and the endpoint, for tests whose calls change nothing."""
    api = make_api()
    return api, add(api)


def add(api: Api, **different: Any) -> dict[str, Any]:
    """Register an endpoint, and return it with its secret."""
    return body_of(api.admin("POST", PATH, json=AN_ENDPOINT | different), 201)


def path_of(endpoint: dict[str, Any]) -> str:
    return f"{PATH}/{endpoint['endpoint_id']}"


def test_an_endpoint_is_registered_and_read(api: Api) -> None:
    made = add(api, description="the console")
    secret = made.pop("secret")
    assert secret.startswith("whsec_")
    assert made == AN_ENDPOINT | {
        "endpoint_id": made["endpoint_id"],
        "description": "the console",
        "enabled": True,
        "version": 1,
        "created_at": START,
        "created_by": "admin",
        "active_from": START + 10,
        "failing_since": None,
        "disabled_at": None,
        "disabled_reason": None,
        "previous_secret_valid_until": None,
    }
    assert body_of(api.admin("GET", path_of(made)), 200) == made
    assert body_of(api.admin("GET", PATH), 200) == {"webhooks": [made], "count": 1}


def test_a_secret_is_shown_once_and_is_in_no_other_answer_log_line_or_fact(api: Api) -> None:
    api.store.commit(add_of(make_sandbox("1", updated_at=START)))
    with capture_logs(processors=[merge_contextvars]) as lines:
        made = add(api, kinds=["*"])
        rotated = body_of(api.admin("POST", f"{path_of(made)}/rotate-secret"), 200)
        tested = api.admin("POST", f"{path_of(made)}/test")
        answers = [
            tested,
            api.admin("GET", PATH),
            api.admin("GET", path_of(made)),
            api.admin("PATCH", path_of(made), json={"version": 2, "description": "new"}),
            api.admin("PATCH", path_of(made), json={"version": 1, "description": "old"}),
            api.admin("POST", f"{path_of(made)}/replay", json={"since": START - DAY}),
            api.admin("GET", f"{path_of(made)}/deliveries"),
            api.admin("GET", f"{path_of(made)}/deliveries/{body_of(tested)['delivery_id']}"),
            api.admin("POST", f"{path_of(made)}/deliveries/{body_of(tested)['delivery_id']}/retry"),
            api.admin("GET", "/v1/admin/events"),
            api.admin("DELETE", path_of(made)),
        ]
    assert made["secret"] != rotated["secret"]
    seen = [answer.text for answer in answers] + [repr(lines), repr(api.store.facts), repr(api.recorder.events)]
    assert len(lines) >= len(answers)
    for secret in (made["secret"], rotated["secret"]):
        assert secret not in "".join(seen)
        assert secret.removeprefix("whsec_") not in "".join(seen)


def test_a_rotation_says_until_when_the_secret_before_signs(api: Api) -> None:
    made = add(api)
    rotated = body_of(api.admin("POST", f"{path_of(made)}/rotate-secret"), 200)
    assert (rotated["version"], rotated["previous_secret_valid_until"]) == (2, START + DAY)
    assert body_of(api.admin("GET", path_of(made)))["previous_secret_valid_until"] == START + DAY
    api.clock.advance(DAY)
    assert body_of(api.admin("GET", path_of(made)))["previous_secret_valid_until"] is None


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"url": "http://hooks.example.com/"}, "url"),
        ({"url": "https://anna:secret-word@hooks.example.com/"}, "url"),
        ({"url": "https://"}, "url"),
        ({"url": f"https://hooks.example.com/{'a' * 2000}"}, "url"),
        ({"url": "https://hooks.example.com/a b"}, "url"),
        ({"url": "https://hooks.example.com/\u0007"}, "url"),
        ({"url": ""}, "url"),
        ({"url": None}, "url"),
        ({"url": 7}, "url"),
        ({"url": ["https://hooks.example.com/"]}, "url"),
        ({"kinds": []}, "kinds"),
        ({"kinds": ["sandbox.lost"]}, "kinds"),
        ({"kinds": ["sandbox.added", "sandbox.added"]}, "kinds"),
        ({"kinds": ["*", "sandbox.added"]}, "kinds"),
        ({"kinds": "*"}, "kinds"),
        ({"kinds": None}, "kinds"),
        ({"kinds": [None]}, "kinds"),
        ({"kinds": {"0": "*"}}, "kinds"),
        ({"description": ""}, "description"),
        ({"description": "a\nb"}, "description"),
        ({"description": "a" * 501}, "description"),
        ({"secret": "whsec_bXkgb3du"}, "secret"),
        ({"colour": "blue"}, "colour"),
    ],
)
def test_what_makes_no_sense_is_refused_by_its_field(
    api_with_one: tuple[Api, dict[str, Any]], change: dict[str, Any], field: str
) -> None:
    api, made = api_with_one
    calls = (
        api.admin("POST", PATH, json=AN_ENDPOINT | change),
        api.admin("PATCH", path_of(made), json={"version": 1} | change),
    )
    for answer in calls:
        error = assert_error(answer, 400, "VALIDATION_ERROR")
        assert list(error["details"]) == [field]
        assert error["message"].startswith(f"{field}: ")
        assert "secret-word" not in answer.text
    assert [each["version"] for each in body_of(api.admin("GET", PATH))["webhooks"]] == [1]


@pytest.mark.parametrize("missing", ["url", "kinds"])
def test_an_endpoint_needs_a_url_and_kinds(shared_api: Api, missing: str) -> None:
    body = {name: value for name, value in AN_ENDPOINT.items() if name != missing}
    assert list(assert_error(shared_api.admin("POST", PATH, json=body), 400, "VALIDATION_ERROR")["details"]) == [
        missing
    ]


def test_hosts_of_the_setting_are_allowed() -> None:
    api = make_api(WEBHOOK_ALLOWED_HOSTS="hooks.internal, 10.0.0.5", BROKER_ENV="development")
    assert add(api, url="http://hooks.internal:8080/")["url"] == "http://hooks.internal:8080/"
    assert_error(api.admin("POST", PATH, json=AN_ENDPOINT | {"url": "http://other.internal/"}), 400, "VALIDATION_ERROR")


def test_an_endpoint_is_changed_disabled_and_enabled_again(api: Api) -> None:
    made = add(api, description="the console")
    changed = body_of(api.admin("PATCH", path_of(made), json={"version": 1, "kinds": ["*"], "description": None}), 200)
    assert (changed["kinds"], changed["description"], changed["version"], changed["url"]) == (
        ["*"],
        None,
        2,
        made["url"],
    )
    disabled = body_of(api.admin("PATCH", path_of(made), json={"version": 2, "enabled": False}), 200)
    assert (disabled["enabled"], disabled["disabled_at"], disabled["disabled_reason"]) == (
        False,
        START,
        "disabled by admin",
    )
    enabled = body_of(api.admin("PATCH", path_of(made), json={"version": 3, "enabled": True}), 200)
    assert (enabled["enabled"], enabled["disabled_at"], enabled["disabled_reason"]) == (True, None, None)


def test_a_change_needs_the_present_version(api: Api) -> None:
    made = add(api)
    api.admin("PATCH", path_of(made), json={"version": 1, "enabled": False})
    error = assert_error(
        api.admin("PATCH", path_of(made), json={"version": 1, "enabled": True}), 409, "VERSION_MISMATCH"
    )
    assert error["details"] == {"version": 2}
    for body in ({"enabled": True}, {"version": "2"}, {"version": None}, {"version": -1}):
        error = assert_error(api.admin("PATCH", path_of(made), json=body), 400, "VALIDATION_ERROR")
        assert list(error["details"]) == ["version"]
    for value in (1, "true", None):
        error = assert_error(
            api.admin("PATCH", path_of(made), json={"version": 2, "enabled": value}), 400, "VALIDATION_ERROR"
        )
        assert list(error["details"]) == ["enabled"]


def test_one_endpoint_too_many_answers_409(api: Api) -> None:
    for _ in range(20):
        last = add(api)
    assert_error(api.admin("POST", PATH, json=AN_ENDPOINT), 409, "WEBHOOK_LIMIT")
    assert api.admin("DELETE", path_of(last)).status_code == 204
    add(api)


def test_an_endpoint_is_removed_once(api: Api) -> None:
    made = add(api)
    assert api.admin("DELETE", path_of(made)).status_code == 204
    for method, end in (
        *(("DELETE", ""), ("GET", ""), ("POST", "/rotate-secret"), ("POST", "/test"), ("GET", "/deliveries")),
        *(("GET", "/deliveries/one"), ("POST", "/deliveries/one/retry")),
    ):
        assert_error(api.admin(method, path_of(made) + end), 404, "WEBHOOK_NOT_FOUND")
    assert_error(api.admin("POST", f"{path_of(made)}/replay", json={"since": START}), 404, "WEBHOOK_NOT_FOUND")


def test_a_test_is_a_delivery_that_can_be_followed(api: Api) -> None:
    made = add(api)
    tested = body_of(api.admin("POST", f"{path_of(made)}/test"), 202)
    one = f"{path_of(made)}/deliveries/{tested['delivery_id']}"
    assert (tested["kind"], tested["state"], tested["tries"]) == ("test", "pending", 0)
    assert json.loads(tested["payload"])["data"]["endpoint_id"] == made["endpoint_id"]
    assert_error(api.admin("POST", f"{one}/retry"), 409, "INVALID_TRANSITION")
    (stored,) = api.store.deliveries.values()
    api.store.write_delivery(
        stored,
        replace(
            stored,
            state=DeliveryState.DELIVERED,
            tries=1,
            next_try_at=None,
            last_try_at=START,
            last_status=204,
            last_answer="204",
            delivered_at=START,
        ),
    )
    read = body_of(api.admin("GET", one), 200)
    assert (read["state"], read["last_status"], read["delivered_at"]) == ("delivered", 204, START)
    again = body_of(api.admin("POST", f"{one}/retry"), 200)
    assert (again["state"], again["tries"], again["delivered_at"]) == ("pending", 0, None)


def test_deliveries_are_listed_by_state_without_their_bodies(api: Api) -> None:
    made, other = add(api), add(api)
    for _ in range(3):
        api.admin("POST", f"{path_of(made)}/test")
    listing = f"{path_of(made)}/deliveries"
    first = body_of(api.admin("GET", f"{listing}?state=pending&limit=2"), 200)
    rest = body_of(api.admin("GET", f"{listing}?state=pending&limit=2&cursor={first['cursor']}"), 200)
    assert (first["count"], rest["count"], rest["cursor"]) == (2, 1, None)
    assert "payload" not in first["deliveries"][0]
    assert body_of(api.admin("GET", f"{listing}?state=exhausted"), 200)["deliveries"] == []
    for target in (
        f"{listing}?cursor={first['cursor']}",
        f"{listing}?state=delivered&cursor={first['cursor']}",
        f"{path_of(other)}/deliveries?state=pending&cursor={first['cursor']}",
        f"{listing}?cursor=none",
        f"{listing}?cursor=",
    ):
        assert list(assert_error(api.admin("GET", target), 400, "VALIDATION_ERROR")["details"]) == ["cursor"]
    for query, field in (("state=done", "state"), ("limit=0", "limit"), ("limit=101", "limit"), ("since=1", "since")):
        error = assert_error(api.admin("GET", f"{listing}?{query}"), 400, "VALIDATION_ERROR")
        assert list(error["details"]) == [field]


@pytest.mark.parametrize(
    ("odd", "status"),
    [
        ("none", 404),
        ("..", 404),
        ("a.b.c", 404),
        ("2009521:notanumber:sandbox_allocated", 404),
        ("%20", 404),
        ("x" * 256, 404),
        ("x" * 257, 400),
        ("%00", 400),
        ("b%C3%BCcher", 400),
    ],
)
def test_odd_ids_of_deliveries_are_not_found_or_refused(
    api_with_one: tuple[Api, dict[str, Any]], odd: str, status: int
) -> None:
    api, made = api_with_one
    for method, target in (("GET", odd), ("POST", f"{odd}/retry")):
        answer = api.admin(method, f"{path_of(made)}/deliveries/{target}")
        assert answer.status_code == status
        error = body_of(answer)["error"]
        assert error["code"] in {"DELIVERY_NOT_FOUND", "NOT_FOUND", "VALIDATION_ERROR"}
    assert api.admin("GET", f"{PATH}/{'x' * 129}").status_code == 400


def test_a_delivery_of_another_endpoint_is_not_found(api: Api) -> None:
    made, other = add(api), add(api)
    tested = body_of(api.admin("POST", f"{path_of(made)}/test"), 202)
    assert_error(api.admin("GET", f"{path_of(other)}/deliveries/{tested['delivery_id']}"), 404, "DELIVERY_NOT_FOUND")


def test_a_replay_is_done_page_by_page_with_the_cursor(api: Api) -> None:
    made = add(api, kinds=["*"])
    api.store.facts += [
        Fact(
            kind=FactKind.ADDED,
            sandbox_id=f"s-{number}",
            version=(START - 3600) * 1000,
            at=START - 3600,
            principal="job:sync",
        )
        for number in range(300)
    ]
    read_feed = api.store.read_feed

    def slow(**given: Any) -> Any:
        api.clock.advance(12)
        return read_feed(**given)

    api.store.read_feed = slow  # type: ignore[method-assign] # a table that is slow
    target = f"{path_of(made)}/replay"
    body: dict[str, Any] = {"since": START - DAY}
    replayed, cursors = 0, []
    while True:
        done = body_of(api.admin("POST", target, json=body), 200)
        replayed += done["replayed"]
        if done["cursor"] is None:
            break
        cursors.append(done["cursor"])
        body = body | {"cursor": done["cursor"]}
    assert replayed == 300
    assert len(set(cursors)) >= 2


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"since": START + 1}, "since"),
        ({"since": START - 91 * DAY}, "since"),
        ({"since": -1}, "since"),
        ({"since": 2**40 + 1}, "since"),
        ({"since": "yesterday"}, "since"),
        ({"since": True}, "since"),
        ({}, "since"),
        ({"since": START, "cursor": "none"}, "cursor"),
        ({"since": START, "cursor": ""}, "cursor"),
        ({"since": START, "cursor": None}, "cursor"),
        ({"since": START, "until": START}, "until"),
    ],
)
def test_a_replay_that_makes_no_sense_is_refused_by_its_field(
    api_with_one: tuple[Api, dict[str, Any]], body: dict[str, Any], field: str
) -> None:
    api, made = api_with_one
    error = assert_error(api.admin("POST", f"{path_of(made)}/replay", json=body), 400, "VALIDATION_ERROR")
    assert list(error["details"]) == [field]


def test_a_cursor_whose_inner_part_was_changed_is_refused(api: Api) -> None:
    made = add(api)
    forged = base64.urlsafe_b64encode(json.dumps(["replay", made["endpoint_id"], START, "forged"]).encode()).decode()
    answer = api.admin("POST", f"{path_of(made)}/replay", json={"since": START, "cursor": forged})
    assert list(assert_error(answer, 400, "VALIDATION_ERROR")["details"]) == ["cursor"]


def test_a_repeated_field_of_a_body_is_refused(api: Api) -> None:
    text = '{"url": "https://hooks.example.com/", "url": "https://other.example.com/", "kinds": ["*"]}'
    answer = api.admin("POST", PATH, data=text, headers={"Content-Type": "application/json"})
    assert list(assert_error(answer, 400, "VALIDATION_ERROR")["details"]) == ["url"]
