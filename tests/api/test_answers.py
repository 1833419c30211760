"""Compares every answer of the application with its description."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING, Any

import pytest

from broker_common.core.job_registry import JOBS
from broker_common.core.jobs import JobState
from broker_common.core.ports import Allowance
from broker_common.core.sandbox import Status
from broker_common.core.webhook import DeliveryState
from tests.api.description import faults_of, look_up, operations, read_document
from tests.api.harness import Api, body_of, make_api, refusing
from tests.api.test_roles import A_CLASS, AN_ENDPOINT
from tests.fakes import START, StoreWrapper, add_of, make_sandbox

if TYPE_CHECKING:
    from collections.abc import Iterator

    from werkzeug.test import TestResponse

NO_PLACE_IN_OPENAPI = {"Content-Type", "Content-Length"}
REFUSED_BY_GUNICORN = {"URI_TOO_LONG", "EXPECTATION_FAILED", "REQUEST_HEADER_FIELDS_TOO_LARGE", "REQUEST_TIMEOUT"}
"""Tested in `test_gunicorn_worker.py` and `test_hostile_requests.py`: the application does not see these requests."""
ERROR = {"$ref": "#/components/schemas/Error"}
PROBLEM = "application/problem+json"
AS_PROBLEM = "_AS_PROBLEM"
STARTS = [f"/v1/admin/{job.path}" for job in JOBS.values()]


class Broken(StoreWrapper):
    """A store with an unexpected fault."""

    def get(self, sandbox_id: str) -> Any:
        raise KeyError(sandbox_id)


def like(api: Api, *, around: Any = None) -> Api:
    """Return another API, whose calls ask for the same shape of errors."""
    made = make_api(around=around)
    made.accept = api.accept
    return made


def to_a_track(api: Api) -> Iterator[TestResponse]:
    yield api.track("POST", "/v1/allocate")
    yield api.track("POST", "/v1/allocate", headers={"Prefer": "wait=0"})
    yield api.track("GET", "/v1/waiting")
    yield api.track("DELETE", "/v1/waiting")
    api.store.seed(make_sandbox("1"))
    api.clock.advance(2)  # the API remembers for a second that none was free
    yield api.track("POST", "/v1/allocate", headers={"X-Reservation-ID": "none"})
    yield api.track("POST", "/v1/allocate", headers={"X-Instruqt-Track-ID": "intro"})
    yield api.track("POST", "/v1/allocate")
    yield api.track("GET", "/v1/sandboxes")
    yield api.track("GET", "/v1/sandboxes/1")
    yield api.track("GET", "/v1/sandboxes/1", "track-2")
    yield api.track("GET", "/v1/sandboxes/2")
    for until in (0, 10**12):
        yield api.track("POST", "/v1/sandboxes/1/extend", json={"expires_at": until})
    yield api.track("POST", "/v1/sandboxes/1/mark-for-deletion", json={"lease_id": "another"})
    yield api.track("POST", "/v1/sandboxes/1/mark-for-deletion")
    yield api.track("POST", "/v1/sandboxes/1/extend", json={"expires_at": 0})


def to_an_operator(api: Api) -> Iterator[TestResponse]:
    api.store.seed(make_sandbox("1"), make_sandbox("s", status=Status.STALE))
    lease = api.allocate()["lease_id"]
    for path in (
        "/sandboxes",
        "/sandboxes/1",
        "/sandboxes/2",
        "/sandboxes?limit=0",
        "/stats",
        "/overview",
        "/samples",
        "/samples?from=0&to=999999999",
        "/pause",
        "/whoami",
        "/waiting",
    ):
        yield api.admin("GET", f"/v1/admin{path}")
    for until in (0, 10**12):
        yield api.admin("POST", "/v1/admin/sandboxes/1/extend", json={"expires_at": until})
    yield api.admin("POST", "/v1/admin/sandboxes/1/release", json={"lease_id": "another"})
    yield api.admin("POST", "/v1/admin/sandboxes/1/release", json={"lease_id": lease})
    yield api.admin("GET", f"/v1/admin/usage?from={START - 1}&by=day")
    api.clock.advance(1)
    yield api.admin("GET", f"/v1/admin/usage?from={START}&by=track_name")
    yield api.admin("GET", f"/v1/admin/usage?from={START}&by=customer", headers={"Accept": "text/csv"})
    yield api.admin("GET", "/v1/admin/usage?from=0&by=day")
    yield api.admin("GET", f"/v1/admin/usage?from={START}&by=hour")
    yield api.admin("POST", "/v1/admin/sandboxes/1/quarantine", json={"reason": "slow"})
    yield api.admin("POST", "/v1/admin/sandboxes/s/quarantine", json={"reason": "slow"})
    yield api.admin("DELETE", "/v1/admin/sandboxes/1/quarantine")
    yield api.admin("DELETE", "/v1/admin/sandboxes/s/quarantine")
    yield api.admin("POST", "/v1/admin/sandboxes/1/retry-deletion")
    yield api.admin("POST", "/v1/admin/sandboxes/s/retry-deletion")
    yield api.admin("DELETE", "/v1/admin/waiting/none")
    yield api.track("POST", "/v1/allocate", "track-2", headers={"Prefer": "wait=0"})
    yield api.admin("GET", "/v1/admin/waiting")
    yield api.admin("POST", "/v1/admin/bulk-retry")
    yield api.admin("POST", "/v1/admin/bulk-delete?status=stale")
    yield api.admin("POST", "/v1/admin/pause", json={"sync": True})
    for path in ("/sandboxes/1/history", "/sandboxes/none/history", "/events", "/events?after=none", "/events?kind=no"):
        yield api.admin("GET", f"/v1/admin{path}")


def about_reservations(api: Api) -> Iterator[TestResponse]:
    api.store.seed(*(make_sandbox(str(number)) for number in range(10)))
    path, key = "/v1/admin/reservations", {"Idempotency-Key": "monday"}
    booked = api.admin("POST", path, json=A_CLASS, headers=key)
    one = f"{path}/{body_of(booked, 201)['reservation_id']}"
    yield booked
    yield api.admin("POST", path, json=A_CLASS, headers=key)
    yield api.admin("POST", path, json=A_CLASS | {"count": 3}, headers=key)
    yield api.admin("POST", path, json=A_CLASS | {"count": 100})
    yield api.admin("POST", path, json=A_CLASS | {"count": 0})
    yield api.admin("POST", f"{path}/check", json=A_CLASS)
    yield api.admin("GET", path)
    yield api.admin("GET", f"{path}?state=ended")
    yield api.admin("GET", one)
    yield api.admin("GET", f"{path}/none")
    yield api.track("POST", "/v1/allocate", headers={"X-Reservation-ID": one.rpartition("/")[2]})
    yield api.admin("PATCH", one, json={"version": 7, "count": 3})
    yield api.admin("PATCH", one, json={"version": 1, "count": 3, "track_names": ["intro"]})
    yield api.admin("GET", f"/v1/admin/capacity?from={START}&to={START + 7200}")
    yield api.admin("GET", f"/v1/admin/capacity?from={START}&to={START}")
    yield api.admin("DELETE", one)
    yield api.admin("PATCH", one, json={"version": 3, "count": 4})
    api.store.upgraded = 0
    api.clock.advance(5)
    yield api.admin("POST", path, json=A_CLASS)


def about_webhooks(api: Api) -> Iterator[TestResponse]:
    path, another = "/v1/admin/webhooks", like(api)
    api.store.commit(add_of(make_sandbox("1", updated_at=START)))
    made = api.admin("POST", path, json=AN_ENDPOINT)
    yield made
    yield api.admin("POST", path, json=AN_ENDPOINT | {"url": "http://hooks.example.com/"})
    one = f"{path}/{made.get_json()['endpoint_id']}"
    for target in (path, one, f"{path}/none", f"{one}/deliveries/none", f"{path}/none/deliveries"):
        yield api.admin("GET", target)
    yield api.admin("PATCH", one, json={"version": 1, "description": "the console"})
    yield api.admin("PATCH", one, json={"version": 1, "enabled": False})
    yield api.admin("POST", f"{one}/rotate-secret")
    tested = api.admin("POST", f"{one}/test")
    yield tested
    delivery = f"{one}/deliveries/{tested.get_json()['delivery_id']}"
    yield api.admin("GET", delivery)
    yield api.admin("POST", f"{delivery}/retry")
    (stored,) = api.store.deliveries.values()
    api.store.write_delivery(
        stored, replace(stored, state=DeliveryState.DELIVERED, next_try_at=None, delivered_at=START)
    )
    yield api.admin("POST", f"{delivery}/retry")
    yield api.admin("POST", f"{one}/replay", json={"since": START - 3600})
    yield api.admin("POST", f"{one}/replay", json={"since": START + 3600})
    yield api.admin("GET", f"{one}/deliveries?state=pending")
    yield api.admin("GET", f"{one}/deliveries?cursor=none")
    for _ in range(20):
        last = another.admin("POST", path, json=AN_ENDPOINT)
    yield last
    yield another.admin("POST", path, json=AN_ENDPOINT)
    yield api.admin("DELETE", one)
    yield api.admin("DELETE", one)
    api.store.upgraded = 0
    api.clock.advance(5)
    yield api.admin("POST", path, json=AN_ENDPOINT)


def during_an_upgrade(api: Api) -> Iterator[TestResponse]:
    api.store.seed(make_sandbox("1"))
    api.allocate()
    api.store.upgraded = 0
    api.clock.advance(5)
    yield api.admin("POST", "/v1/admin/sandboxes/1/quarantine", json={"reason": "slow"})
    yield api.admin("GET", "/v1/admin/sandboxes/1/history")
    yield api.admin("GET", "/v1/admin/events")


def about_jobs(api: Api) -> Iterator[TestResponse]:
    for job in STARTS:
        yield api.admin("POST", job)
        yield api.admin("POST", job, headers={"Prefer": "wait=0"})
    yield api.admin("GET", "/v1/admin/jobs/job-1")
    yield api.admin("GET", "/v1/admin/jobs/none")
    yield api.admin("GET", "/v1/admin/jobs")
    api.queue.states[0], api.queue.result = JobState.SUCCEEDED, {"removed": 3}
    for job in STARTS:
        yield api.admin("POST", job, headers={"Prefer": "wait=1"})
    api.queue.states[0], api.queue.error = JobState.FAILED, "the provider is away"
    yield api.admin("GET", "/v1/admin/jobs/job-1")
    yield api.admin("GET", "/v1/admin/jobs?limit=3")
    api.queue.down = True
    yield api.admin("POST", STARTS[0])
    yield api.admin("GET", "/v1/admin/jobs")


def without_token(api: Api) -> Iterator[TestResponse]:
    for path in ("/healthz", "/readyz", "/metrics", "/v1/openapi.json", "/v1/docs"):
        yield api.call("GET", path)
    yield api.call("GET", "/metrics", headers={"Accept": "application/openmetrics-text"})
    yield like(api, around=refusing("ping")).call("GET", "/readyz")


def refused(api: Api) -> Iterator[TestResponse]:
    replaced = like(api)
    assert replaced.call("GET", "/readyz").status_code == 200
    replaced.store.identity = "another"
    replaced.clock.advance(5)
    yield replaced.call("GET", "/readyz")
    yield replaced.track("POST", "/v1/allocate")
    yield replaced.admin("POST", "/v1/admin/bulk-delete?status=stale")
    yield api.call("POST", "/v1/allocate")
    yield api.admin("POST", "/v1/allocate")
    yield api.call("POST", "/v1/allocate", headers=api.track_headers)
    yield api.track("POST", "/v1/allocate", data=b"x" * 70_000)
    yield api.admin("POST", "/v1/admin/pause", json={"allocate": True})
    yield api.track("POST", "/v1/allocate")
    api.rate_limit.answer = Allowance(is_exceeded=True, limit=200, remaining=0, reset_after=4, retry_after=1)
    yield api.track("POST", "/v1/allocate")
    yield api.call("GET", "/v1/docs")
    for around in (refusing("get"), Broken):
        yield like(api, around=around).track("GET", "/v1/sandboxes/1")


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return read_document()


@dataclass(frozen=True)
class Answer:
    """An answer, with its call and its description."""

    call: tuple[str, str]
    response: TestResponse
    described: dict[str, Any]

    def __str__(self) -> str:
        return f"{' '.join(self.call)}: {self.response.status}"


@pytest.fixture(scope="module")
def answers(document: dict[str, Any]) -> list[Answer]:
    described = operations(document)
    found = []
    groups = (
        *(to_a_track, to_an_operator, about_reservations, about_webhooks, during_an_upgrade),
        *(about_jobs, without_token, refused),
    )
    for calls, accept in product(groups, (None, PROBLEM)):
        api = make_api()
        api.accept = accept
        rules = api.app.url_map.bind("localhost")
        for response in calls(api):
            rule, _ = rules.match(response.request.path, response.request.method, return_rule=True)
            call = response.request.method.lower(), re.sub("<(.*?)>", r"{\1}", rule.rule)
            found.append(Answer(call, response, described[call]["responses"].get(str(response.status_code), {})))
    return found


def test_every_call_was_made_and_every_answer_to_it_is_described(
    document: dict[str, Any], answers: list[Answer]
) -> None:
    succeeded = {answer.call for answer in answers if answer.response.status_code < 300}
    assert succeeded == set(operations(document))
    assert [str(answer) for answer in answers if not answer.described] == []


def test_every_body_is_as_its_schema_says(document: dict[str, Any], answers: list[Answer]) -> None:
    for answer in answers:
        if answer.response.status_code == 204:
            assert (answer.response.data, answer.described.keys() & {"content"}) == (b"", set())
            continue
        body = answer.response.get_json() if answer.response.is_json else answer.response.text
        schema = answer.described["content"][answer.response.mimetype]["schema"]
        assert faults_of(document, schema, body) == [], answer


def test_every_header_is_described_with_its_answer_or_in_the_introduction(
    document: dict[str, Any], answers: list[Answer]
) -> None:
    introduction = document["info"]["description"].partition("## Every answer")[2].partition("\n## ")[0]
    for answer in answers:
        described = answer.described["headers"]
        sent = answer.response.headers
        for name, value in sent.items():
            if name not in described and name not in NO_PLACE_IN_OPENAPI:
                # The page has its own policy.
                shown = f"`{name}: " if answer.call == ("get", "/v1/docs") else f"`{name}: {value}`"
                assert shown in introduction, f"{answer}: {name}"
        promised = {name for name, header in described.items() if look_up(document, header).get("required")}
        assert promised <= set(sent.keys()), answer


def test_every_error_that_is_described_was_answered_and_no_other(
    document: dict[str, Any], answers: list[Answer]
) -> None:
    answered = set()
    for answer in answers:
        if answer.described.get("content", {}).get("application/json", {}).get("schema") == ERROR:
            body, is_problem = body_of(answer.response), answer.response.mimetype == PROBLEM
            code = body["code"] if is_problem else body["error"]["code"]
            assert code in answer.described["content"][answer.response.mimetype]["examples"], answer
            answered.add(code + AS_PROBLEM if is_problem else code)
    unseen = {code + ending for code in REFUSED_BY_GUNICORN for ending in ("", AS_PROBLEM)}
    assert answered | unseen == set(document["components"]["examples"])


def test_what_no_call_answers_is_introduced(document: dict[str, Any]) -> None:
    api, introduction = make_api(), document["info"]["description"]
    for method, path in (("GET", "/v1/nothing"), ("PUT", "/v1/allocate")):
        answer = api.call(method, path)
        assert faults_of(document, ERROR, answer.get_json()) == []
        assert f"{answer.status_code} `{body_of(answer)['error']['code']}`" in introduction
    assert "`Allow`" in introduction
    assert answer.headers["Allow"] == "POST"
