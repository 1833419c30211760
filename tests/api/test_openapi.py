"""The description of the API, and the page that shows it."""

from __future__ import annotations

import re
from typing import Any

import pytest
from openapi_spec_validator import validate

from broker_api.errors import STATUS_OF
from broker_api.schemas import ErrorSchema
from tests.api.description import COPY, describe
from tests.api.harness import Api, body_of

CALLS = {
    ("post", "/v1/allocate"),
    ("get", "/v1/sandboxes"),
    ("get", "/v1/sandboxes/{sandbox_id}"),
    ("post", "/v1/sandboxes/{sandbox_id}/mark-for-deletion"),
    ("get", "/v1/admin/sandboxes"),
    ("get", "/v1/admin/sandboxes/{sandbox_id}"),
    ("get", "/v1/admin/stats"),
    ("post", "/v1/admin/sync"),
    ("post", "/v1/admin/cleanup"),
    ("post", "/v1/admin/expire"),
    ("post", "/v1/admin/purge-stale"),
    ("get", "/v1/admin/jobs/{job_id}"),
    ("post", "/v1/admin/sandboxes/{sandbox_id}/release"),
    ("post", "/v1/admin/sandboxes/{sandbox_id}/quarantine"),
    ("post", "/v1/admin/sandboxes/{sandbox_id}/retry-deletion"),
    ("post", "/v1/admin/bulk-retry"),
    ("post", "/v1/admin/bulk-delete"),
    ("get", "/v1/admin/pause"),
    ("post", "/v1/admin/pause"),
    ("get", "/healthz"),
    ("get", "/readyz"),
}
VERBS = {"get", "post", "put", "patch", "delete"}


@pytest.fixture
def document(api: Api) -> dict[str, Any]:
    answer = api.call("GET", "/v1/openapi.json")
    assert answer.status_code == 200
    return body_of(answer)


def operations(document: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    return {(verb, path): item[verb] for path, item in document["paths"].items() for verb in item if verb in VERBS}


def test_the_description_holds_every_call_and_no_other(document: dict[str, Any]) -> None:
    assert document["openapi"].startswith("3.1")
    assert set(operations(document)) == CALLS


def test_the_description_is_valid_openapi(document: dict[str, Any]) -> None:
    validate(document)


def test_the_committed_copy_is_the_description() -> None:
    assert COPY.read_text() == describe(), "`make openapi` renews it"


def test_every_call_has_a_name_of_its_own_and_a_summary(document: dict[str, Any]) -> None:
    found = operations(document).values()
    assert len({operation["operationId"] for operation in found}) == len(CALLS)
    assert all(operation["summary"] for operation in found)


def test_every_call_says_which_token_it_needs(document: dict[str, Any]) -> None:
    schemes = document["components"]["securitySchemes"]
    assert {name: scheme["scheme"] for name, scheme in schemes.items()} == {
        "trackToken": "bearer",
        "adminToken": "bearer",
    }
    for (_, path), operation in operations(document).items():
        token = "adminToken" if "/admin/" in path else "trackToken"
        assert operation["security"] == ([{token: []}] if path.startswith("/v1/") else [])


def test_every_error_has_the_shape_that_is_described(document: dict[str, Any]) -> None:
    for operation in operations(document).values():
        for status, response in operation["responses"].items():
            if status >= "400" and operation["operationId"] != "readyz":
                assert response["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/Error"}


def test_no_call_is_described_with_an_answer_for_every_other_status(document: dict[str, Any]) -> None:
    """Else nothing that the API answers could ever be outside its description."""
    assert {
        status for each in operations(document).values() for status in each["responses"] if not status.isdigit()
    } == set()


def shown_codes(document: dict[str, Any], verb: str, path: str) -> dict[str, set[str]]:
    responses = operations(document)[verb, path]["responses"]
    return {
        status: set(response["content"]["application/json"]["examples"])
        for status, response in responses.items()
        if status >= "400"
    }


def test_each_error_shows_the_codes_that_a_call_may_answer(document: dict[str, Any]) -> None:
    common = {
        "400": {"VALIDATION_ERROR"},
        "401": {"UNAUTHORIZED"},
        "414": {"URI_TOO_LONG"},
        "431": {"REQUEST_HEADER_FIELDS_TOO_LARGE"},
        "429": {"RATE_LIMIT_EXCEEDED"},
        "500": {"INTERNAL_ERROR"},
    }
    assert shown_codes(document, "post", "/v1/allocate") == common | {
        "403": {"FORBIDDEN"},
        "409": {"NO_SANDBOXES_AVAILABLE"},
        "413": {"PAYLOAD_TOO_LARGE"},
        "503": {"SERVICE_UNAVAILABLE", "PAUSED"},
    }
    assert shown_codes(document, "post", "/v1/sandboxes/{sandbox_id}/mark-for-deletion") == common | {
        "403": {"FORBIDDEN", "NOT_SANDBOX_OWNER"},
        "404": {"SANDBOX_NOT_FOUND"},
        "409": {"LEASE_MISMATCH"},
        "413": {"PAYLOAD_TOO_LARGE"},
        "503": {"SERVICE_UNAVAILABLE"},
    }
    assert shown_codes(document, "get", "/v1/admin/jobs/{job_id}") == common | {
        "403": {"FORBIDDEN"},
        "404": {"JOB_NOT_FOUND"},
        "503": {"QUEUE_UNAVAILABLE"},
    }
    quarantine = shown_codes(document, "post", "/v1/admin/sandboxes/{sandbox_id}/quarantine")
    assert quarantine["409"] == {"INVALID_TRANSITION"}


def test_every_example_is_an_error_as_it_is_answered(document: dict[str, Any]) -> None:
    status_of = {kind.code: status for kind, status in STATUS_OF.items()} | {
        "PAYLOAD_TOO_LARGE": 413,
        "URI_TOO_LONG": 414,
        "REQUEST_HEADER_FIELDS_TOO_LARGE": 431,
        "INTERNAL_ERROR": 500,
    }
    shown = document["components"]["examples"]
    for operation in operations(document).values():
        for status, response in operation["responses"].items():
            for code in response.get("content", {}).get("application/json", {}).get("examples", ()):
                error = shown[code]["value"]["error"]
                assert (error["code"], status_of[code]) == (code, int(status))
                assert ("retry_after" in error) == ("Retry-After" in response["headers"])
                assert ErrorSchema().validate(shown[code]["value"]) == {}


def test_every_answer_is_described_with_its_request_id(document: dict[str, Any]) -> None:
    responses = [each for operation in operations(document).values() for each in operation["responses"].values()]
    assert len(responses) > len(CALLS)
    assert all("X-Request-ID" in each["headers"] for each in responses)


def test_an_answer_without_a_valid_token_is_described_with_the_scheme_to_use(document: dict[str, Any]) -> None:
    with_token = [each for each in operations(document).values() if each["security"]]
    assert len(with_token) == len(CALLS) - 2
    assert all("WWW-Authenticate" in each["responses"]["401"]["headers"] for each in with_token)


LINKS = {
    ("post", "/v1/allocate", "201"): {"readSandbox", "markForDeletion", "adminReadSandbox", "adminRelease"},
    ("post", "/v1/allocate", "200"): {"readSandbox", "markForDeletion", "adminReadSandbox", "adminRelease"},
    ("get", "/v1/sandboxes", "200"): {"readSandbox", "markForDeletion", "adminReadSandbox", "adminRelease"},
    ("get", "/v1/admin/sandboxes", "200"): {
        "adminListSandboxes",
        "adminReadSandbox",
        "adminQuarantine",
        "adminRelease",
        "adminRetryDeletion",
    },
    ("post", "/v1/admin/sandboxes/{sandbox_id}/release", "200"): {"adminReadSandbox"},
    ("post", "/v1/admin/sandboxes/{sandbox_id}/quarantine", "200"): {"adminRetryDeletion"},
    ("post", "/v1/admin/sandboxes/{sandbox_id}/retry-deletion", "200"): {"adminReadSandbox"},
} | {
    ("post", f"/v1/admin/{job}", status): {"adminReadJob"}
    for job in ("sync", "cleanup", "expire", "purge-stale")
    for status in ("200", "202")
}


def test_the_answers_that_lead_to_other_calls_say_so(document: dict[str, Any]) -> None:
    found = {
        (verb, path, status): set(response["links"])
        for (verb, path), operation in operations(document).items()
        for status, response in operation["responses"].items()
        if "links" in response
    }
    assert found == LINKS


def test_every_link_leads_to_a_call_and_gives_it_parameters_that_it_has(document: dict[str, Any]) -> None:
    components = document["components"]["parameters"]
    taken = {
        operation["operationId"]: {
            (components[each["$ref"].rsplit("/", 1)[1]] if "$ref" in each else each)["name"]
            for each in [*document["paths"][path].get("parameters", []), *operation.get("parameters", [])]
        }
        for (_, path), operation in operations(document).items()
    }
    links = [
        link
        for operation in operations(document).values()
        for response in operation["responses"].values()
        for link in response.get("links", {}).values()
    ]
    assert all(set(link["parameters"]) <= taken[link["operationId"]] for link in links)


def test_the_description_introduces_itself(document: dict[str, Any]) -> None:
    assert document["info"]["title"] == "Sandbox Broker"
    assert document["info"]["version"]
    for word in ("X-Track-ID", "Retry-After", "Idempotency-Key", "lease_id"):
        assert word in document["info"]["description"]


def test_no_schema_is_described_that_nothing_uses(document: dict[str, Any]) -> None:
    used = set(re.findall(r"#/components/schemas/(\w+)", str(document)))
    assert set(document["components"]["schemas"]) == used


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    for reference in re.findall(r"'\$ref': '#/([^']+)'", str(document)):
        place: Any = document
        for step in reference.split("/"):
            place = place[step]


def test_every_response_is_described(document: dict[str, Any]) -> None:
    for operation in operations(document).values():
        assert all("description" in response or "$ref" in response for response in operation["responses"].values())


def test_a_tracks_headers_are_described(document: dict[str, Any]) -> None:
    references = operations(document)["post", "/v1/allocate"]["parameters"]
    components = document["components"]["parameters"]
    names = {components[reference["$ref"].rsplit("/", 1)[1]]["name"] for reference in references}
    assert names == {
        "X-Track-ID",
        "X-Instruqt-Track-ID",
        "X-Sandbox-Name-Prefix",
        "Idempotency-Key",
        "X-Request-ID",
    }
    assert {each["name"] for each in components.values() if each["required"]} == {"X-Track-ID"}
    # It may stand for it, which no description can say otherwise.
    assert "X-Instruqt-Sandbox-ID" in components["track_id"]["description"]


def test_answers_have_the_fields_that_are_described(api: Api, document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    for name in ("Allocation", "HeldSandbox", "Sandbox", "Stats", "Marked"):
        assert set(schemas[name]["required"]) == set(schemas[name]["properties"])
    assert set(body_of(api.admin("GET", "/v1/admin/stats"))) == set(schemas["Stats"]["properties"])


def test_nothing_but_what_is_described_is_accepted_in_a_body(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    for name in ("MarkInput", "ReleaseInput", "QuarantineInput", "PausesInput", "SyncInput"):
        assert schemas[name]["additionalProperties"] is False


def test_the_page_and_all_its_files_come_from_here(api: Api) -> None:
    page = api.call("GET", "/v1/docs")
    assert page.status_code == 200
    assert page.mimetype == "text/html"
    assert "/v1/openapi.json" in page.text
    files = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert len(files) == 3
    for path in files:
        assert path.startswith("/v1/docs/")
        answer = api.call("GET", path)
        assert answer.status_code == 200
        assert len(answer.data) > 1000


def test_the_page_has_an_icon(api: Api) -> None:
    answer = api.call("GET", "/favicon.ico")
    assert (answer.status_code, answer.mimetype) == (200, "image/png")


def test_the_page_asks_no_public_validator(api: Api) -> None:
    assert '"validatorUrl": null' in api.call("GET", "/v1/docs").text
