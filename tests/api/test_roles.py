"""Every call of the API with every role, compared with one table."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from broker_api.runtime import runtime_of
from broker_common.core.bookings import Wanted
from broker_common.core.endpoints import WantedEndpoint
from broker_common.core.line import Place, Wish
from broker_common.core.principals import Actor, Role
from broker_common.core.sandbox import Status
from broker_common.core.webhook import DeliveryState
from tests.api.description import operations, read_document
from tests.api.harness import Api, error_of, make_api, named_token
from tests.fakes import START, add_of, make_sandbox

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from broker_common.core.bookings import Bookings
    from broker_common.core.reservation import Reservation

ALL = {None, *Role}
"""The roles that may make each call; None is a caller without a token."""
TRACKS = {Role.TRACK}
READERS = {Role.VIEWER, Role.OPERATOR, Role.ADMIN}
OPERATORS = {Role.OPERATOR, Role.ADMIN}
ADMINS = {Role.ADMIN}
ALLOWED: dict[tuple[str, str], set[Role] | set[Role | None]] = {
    ("POST", "/v1/allocate"): TRACKS,
    ("GET", "/v1/waiting"): TRACKS,
    ("DELETE", "/v1/waiting"): TRACKS,
    ("GET", "/v1/sandboxes"): TRACKS,
    ("GET", "/v1/sandboxes/<sandbox_id>"): TRACKS,
    ("POST", "/v1/sandboxes/<sandbox_id>/extend"): TRACKS,
    ("POST", "/v1/sandboxes/<sandbox_id>/mark-for-deletion"): TRACKS,
    ("GET", "/v1/admin/whoami"): READERS,
    ("GET", "/v1/admin/stats"): READERS,
    ("GET", "/v1/admin/overview"): READERS,
    ("GET", "/v1/admin/samples"): READERS,
    ("GET", "/v1/admin/sandboxes"): READERS,
    ("GET", "/v1/admin/sandboxes/<sandbox_id>"): READERS,
    ("GET", "/v1/admin/jobs/<job_id>"): READERS,
    ("GET", "/v1/admin/pause"): READERS,
    ("POST", "/v1/admin/pause"): OPERATORS,
    ("POST", "/v1/admin/sync"): OPERATORS,
    ("POST", "/v1/admin/cleanup"): OPERATORS,
    ("POST", "/v1/admin/expire"): OPERATORS,
    ("POST", "/v1/admin/purge-stale"): OPERATORS,
    ("POST", "/v1/admin/reserve"): OPERATORS,
    ("POST", "/v1/admin/watch"): OPERATORS,
    ("POST", "/v1/admin/deliver"): OPERATORS,
    ("POST", "/v1/admin/sandboxes/<sandbox_id>/extend"): OPERATORS,
    ("POST", "/v1/admin/sandboxes/<sandbox_id>/release"): OPERATORS,
    ("POST", "/v1/admin/sandboxes/<sandbox_id>/quarantine"): OPERATORS,
    ("DELETE", "/v1/admin/sandboxes/<sandbox_id>/quarantine"): OPERATORS,
    ("GET", "/v1/admin/sandboxes/<sandbox_id>/history"): READERS,
    ("GET", "/v1/admin/events"): READERS,
    ("GET", "/v1/admin/jobs"): READERS,
    ("GET", "/v1/admin/waiting"): READERS,
    ("DELETE", "/v1/admin/waiting/<place_id>"): OPERATORS,
    ("POST", "/v1/admin/sandboxes/<sandbox_id>/retry-deletion"): OPERATORS,
    ("POST", "/v1/admin/bulk-retry"): OPERATORS,
    ("POST", "/v1/admin/bulk-delete"): ADMINS,
    ("POST", "/v1/admin/reservations"): OPERATORS,
    ("GET", "/v1/admin/reservations"): READERS,
    ("POST", "/v1/admin/reservations/check"): OPERATORS,
    ("GET", "/v1/admin/reservations/<reservation_id>"): READERS,
    ("PATCH", "/v1/admin/reservations/<reservation_id>"): OPERATORS,
    ("DELETE", "/v1/admin/reservations/<reservation_id>"): OPERATORS,
    ("GET", "/v1/admin/capacity"): READERS,
    ("GET", "/v1/admin/usage"): READERS,
    ("POST", "/v1/admin/webhooks"): ADMINS,
    ("GET", "/v1/admin/webhooks"): READERS,
    ("GET", "/v1/admin/webhooks/<endpoint_id>"): READERS,
    ("PATCH", "/v1/admin/webhooks/<endpoint_id>"): ADMINS,
    ("POST", "/v1/admin/webhooks/<endpoint_id>/rotate-secret"): ADMINS,
    ("POST", "/v1/admin/webhooks/<endpoint_id>/test"): ADMINS,
    ("POST", "/v1/admin/webhooks/<endpoint_id>/replay"): ADMINS,
    ("GET", "/v1/admin/webhooks/<endpoint_id>/deliveries"): READERS,
    ("GET", "/v1/admin/webhooks/<endpoint_id>/deliveries/<delivery_id>"): READERS,
    ("POST", "/v1/admin/webhooks/<endpoint_id>/deliveries/<delivery_id>/retry"): ADMINS,
    ("DELETE", "/v1/admin/webhooks/<endpoint_id>"): ADMINS,
    ("GET", "/healthz"): ALL,
    ("GET", "/readyz"): ALL,
    ("GET", "/metrics"): ALL,
    ("GET", "/favicon.ico"): ALL,
    ("GET", "/v1/openapi.json"): ALL,
    ("GET", "/v1/docs"): ALL,
    ("GET", "/v1/docs/<path:filename>"): ALL,
}
"""Other callers get 401 without a token, and 403 with one."""

A_CLASS: dict[str, Any] = {"name": "Networking 101", "count": 2, "starts_at": START + 3600, "ends_at": START + 7200}
AN_ENDPOINT: dict[str, Any] = {"url": "https://hooks.example.com/", "kinds": ["*"]}
SENT: dict[tuple[str, str], Any] = {
    ("POST", "/v1/admin/pause"): {"json": {"allocate": True}},
    ("POST", "/v1/admin/sandboxes/<sandbox_id>/extend"): {"json": {"expires_at": START + 5 * 3600}},
    ("POST", "/v1/admin/sandboxes/<sandbox_id>/release"): {"json": {"lease_id": "lease-of-allocated"}},
    ("POST", "/v1/admin/sandboxes/<sandbox_id>/quarantine"): {"json": {"reason": "it looks odd"}},
    ("POST", "/v1/admin/bulk-delete"): {"query_string": {"status": "stale"}},
    ("POST", "/v1/admin/reservations"): {"json": A_CLASS},
    ("POST", "/v1/admin/reservations/check"): {"json": A_CLASS},
    ("PATCH", "/v1/admin/reservations/<reservation_id>"): {"json": {"version": 1, "count": 3}},
    ("POST", "/v1/admin/webhooks"): {"json": AN_ENDPOINT},
    ("PATCH", "/v1/admin/webhooks/<endpoint_id>"): {"json": {"version": 1, "enabled": False}},
    ("POST", "/v1/admin/webhooks/<endpoint_id>/replay"): {"json": {"since": START - 3600}},
    ("GET", "/v1/admin/capacity"): {"query_string": {"from": START, "to": START + 3600}},
    ("GET", "/v1/admin/usage"): {"query_string": {"from": START - 3600, "by": "day"}},
}
"""The body or query that a call needs to have an effect."""
CHANGED = {
    ("POST", "/v1/admin/sandboxes/<sandbox_id>/extend"): "allocated",
    ("POST", "/v1/admin/sandboxes/<sandbox_id>/release"): "allocated",
    ("POST", "/v1/admin/sandboxes/<sandbox_id>/quarantine"): "available",
    ("DELETE", "/v1/admin/sandboxes/<sandbox_id>/quarantine"): "flagged",
    ("POST", "/v1/admin/sandboxes/<sandbox_id>/retry-deletion"): "deletion_failed",
}
"""The sandbox that a call can change."""
NO_CHANGE = {("POST", "/v1/admin/reservations/check")}
"""Calls that have a body, and change nothing."""
PLACE = Place(
    place_id="place-1",
    track_id="track-2",
    idempotency_key="track-2",
    wish=Wish(),
    round=0,
    joined_at=START,
    back_by=START + 3,
)
"""The place in the line that a call can remove."""


@pytest.fixture(scope="module")
def tokens_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file with one token of each role."""
    file = tmp_path_factory.mktemp("tokens") / "tokens.toml"
    file.write_text("".join(named_token(f"one-{role}", f"token-of-{role}", role) for role in Role))
    return file


@pytest.fixture
def api(tokens_file: Path) -> Api:
    return make_full_api(tokens_file)


@pytest.fixture(scope="module")
def unchanged_api(tokens_file: Path) -> Api:
    """Return an API for calls that change nothing: to make one takes longer than a call."""
    return make_full_api(tokens_file)


def make_full_api(file: Path) -> Api:
    """Return an API on which each call could have an effect."""
    api = make_api(BROKER_API_TOKEN="", BROKER_ADMIN_TOKEN="", BROKER_TOKENS_FILE=str(file))
    held = {"allocated_to_track": "track-1", "lease_id": "lease-of-allocated", "dirty": True}
    for status in (Status.AVAILABLE, Status.ALLOCATED, Status.STALE, Status.DELETION_FAILED):
        api.store.seed(make_sandbox(status.value, status=status, **(held if status is Status.ALLOCATED else {})))
    api.store.seed(
        make_sandbox("flagged", status=Status.PENDING_DELETION, dirty=True, quarantine_reason="it looks odd")
    )
    api.store.seed(*(make_sandbox(f"free-{number}") for number in range(10)))
    bookings_of(api).book(Wanted(**A_CLASS), by=Actor(principal="one-operator", request_id=None))
    api.store.join(PLACE)
    endpoints = runtime_of(api.app).services.endpoints
    wanted = WantedEndpoint(url=AN_ENDPOINT["url"], kinds=("*",))
    endpoint = endpoints.create(wanted, by=Actor(principal="one-admin"))
    ended = endpoints.test(endpoint.endpoint_id, by=Actor(principal="one-admin"))
    api.store.write_delivery(ended, replace(ended, state=DeliveryState.EXHAUSTED, next_try_at=None))
    # A replay finds a fact.
    api.store.commit(add_of(make_sandbox("added", updated_at=START)))
    return api


def bookings_of(api: Api) -> Bookings:
    return runtime_of(api.app).services.bookings


def all_reservations(api: Api) -> tuple[Reservation, ...]:
    return bookings_of(api).list(state=None, limit=100, cursor=None).reservations


def served(api: Api) -> Iterator[tuple[str, str]]:
    """Yield every call that the application has a route for."""
    for rule in api.app.url_map.iter_rules():
        yield from ((method, rule.rule) for method in rule.methods or () if method not in {"HEAD", "OPTIONS"})


def make_call(api: Api, method: str, rule: str, role: Role | None) -> tuple[int, str | None]:
    """Make a call that could have an effect. Return its status and the code of an error."""
    path = (
        rule.replace("<path:filename>", "index.css").replace("<job_id>", "job-1").replace("<place_id>", PLACE.place_id)
    )
    path = path.replace("<sandbox_id>", CHANGED.get((method, rule), "allocated"))
    path = path.replace("<reservation_id>", all_reservations(api)[0].reservation_id)
    endpoint_id, delivery_id = next(iter(api.store.endpoints), "gone"), next(iter(api.store.deliveries))[1]
    path = path.replace("<endpoint_id>", endpoint_id).replace("<delivery_id>", delivery_id)
    headers = {"X-Track-ID": "track-1"} | ({"Authorization": f"Bearer token-of-{role}"} if role else {})
    answer = api.call(method, path, headers=headers, **SENT.get((method, rule), {}))
    is_refused = answer.status_code >= 400 and "error" in (answer.get_json(silent=True) or {})
    return answer.status_code, error_of(answer)["code"] if is_refused else None


def test_the_table_holds_every_call_and_no_other(api: Api) -> None:
    assert set(served(api)) == set(ALLOWED)


@pytest.mark.parametrize("role", [None, *Role], ids=str)
@pytest.mark.parametrize(("method", "rule"), ALLOWED, ids=map(" ".join, ALLOWED))
def test_each_role_makes_the_calls_of_the_table_and_no_others(
    unchanged_api: Api, tokens_file: Path, method: str, rule: str, role: Role | None
) -> None:
    is_allowed = role in ALLOWED[method, rule]
    api = make_full_api(tokens_file) if is_allowed and method != "GET" else unchanged_api
    status, code = make_call(api, method, rule, role)
    if is_allowed:
        assert code not in {"UNAUTHORIZED", "FORBIDDEN"}
        assert status not in {401, 403}
    else:
        assert (status, code) == ((401, "UNAUTHORIZED") if role is None else (403, "FORBIDDEN"))


def test_head_needs_what_get_needs(api: Api) -> None:
    for method, rule in ALLOWED:
        if method == "GET" and "/admin/" in rule:
            assert [make_call(api, "HEAD", rule, role)[0] for role in (None, Role.TRACK)] == [401, 403]


def test_a_viewer_reads_everything_and_changes_nothing(api: Api) -> None:
    before = state_of(api)
    for method, rule in ALLOWED:
        status, code = make_call(api, method, rule, Role.VIEWER)
        if method == "GET" and "/admin/" in rule:
            assert status == 200 or code == "JOB_NOT_FOUND"
        elif method != "GET":
            assert (status, code) == (403, "FORBIDDEN")
    assert state_of(api) == before


def test_each_of_these_calls_would_change_something_for_who_may_make_it(api: Api) -> None:
    """Without this check, the test above could pass with calls that change nothing."""
    for method, rule in ALLOWED:
        if method != "GET" and "/admin/" in rule and (method, rule) not in NO_CHANGE:
            before = state_of(api)
            assert make_call(api, method, rule, Role.ADMIN)[0] in {200, 201, 202, 204}, rule
            assert state_of(api) != before, rule


def state_of(api: Api) -> object:
    services = runtime_of(api.app).services
    stored = api.store.dump(), api.store.read_line(), api.store.read_pauses()
    webhooks = [(each, each.secrets[0].value) for each in api.store.endpoints.values()], api.store.deliveries
    return repr((stored, webhooks, api.queue.enqueued, services.bookings.list(state=None, limit=100, cursor=None)))


def test_the_description_says_of_each_call_which_role_it_needs(api: Api) -> None:
    document = read_document()
    for (verb, path), operation in operations(document).items():
        allowed = ALLOWED[verb.upper(), re.sub(r"\{(\w+)\}", r"<\1>", path)]
        if None in allowed:
            assert operation["security"] == []
            assert "Needs the role" not in operation["description"]
            continue
        # The needed role is the first one, in the order of the roles, that may make the call.
        needed = next(role for role in Role if role in allowed)
        scheme = "trackToken" if needed is Role.TRACK else "adminToken"
        assert operation["security"] == [{scheme: [needed.value]}]
        assert operation["description"].endswith(f"Needs the role `{needed}`.")
