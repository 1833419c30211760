"""The description of the API, and the page that shows it."""

from __future__ import annotations

import re
import tomllib
from typing import TYPE_CHECKING, Any

import pytest
from openapi_spec_validator import validate

from broker_api.caller import CALLER_HEADERS
from broker_api.description_files import SCENARIOS, read_calls
from broker_api.errors import ANSWERED, ERROR_CODES, ERRORS
from broker_api.links import LINKS
from broker_common.core.job_registry import JOBS
from deploy.dev.processes import ROOT
from tests.api.description import COPY, describe, faults_of, look_up, operations, read_document
from tests.api.harness import Api, body_of, make_api
from tests.api.test_roles import ALLOWED

if TYPE_CHECKING:
    from collections.abc import Iterator

FILES = ROOT / "broker_api" / "description"
NOT_DESCRIBED = {("GET", "/favicon.ico"), ("GET", "/v1/docs/<path:filename>")}
"""The files of the page that shows the description."""
CALLS = {(method.lower(), re.sub(r"<(\w+)>", r"{\1}", rule)) for method, rule in ALLOWED.keys() - NOT_DESCRIBED}


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return read_document()


def answers(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for operation in operations(document).values():
        yield from operation["responses"].items()


def test_the_description_holds_every_call_and_no_other(document: dict[str, Any]) -> None:
    assert set(operations(document)) == CALLS


def test_every_path_is_in_kebab_case(document: dict[str, Any]) -> None:
    parts = {part for path in document["paths"] for part in path.split("/")[1:]}
    assert [part for part in parts if not re.fullmatch(r"[a-z0-9.-]+|\{\w+\}", part)] == []


def test_the_description_is_valid_openapi(document: dict[str, Any]) -> None:
    assert document["openapi"].startswith("3.1")
    validate(document)


def test_the_committed_copy_is_the_description() -> None:
    assert COPY.read_text() == describe(), "run `make openapi`"


def test_every_call_has_a_name_of_its_own_a_summary_a_description_and_a_tag_that_is_described(
    document: dict[str, Any],
) -> None:
    found = operations(document).values()
    assert len({operation["operationId"] for operation in found}) == len(CALLS)
    tags = {tag["name"]: tag["description"] for tag in document["tags"]}
    for operation in found:
        assert re.fullmatch(r"[A-Z][^`\n]+\.", operation["summary"]), "one sentence without Markdown"
        assert operation.get("description"), operation["operationId"]
        assert [tags[tag] for tag in operation["tags"]] != []
        assert all(tags[tag] for tag in operation["tags"])


def test_every_parameter_header_and_field_says_what_it_is(document: dict[str, Any]) -> None:
    described = [each for operation in operations(document).values() for each in operation["parameters"]]
    described += document["components"]["headers"].values()
    described += [
        field
        for schema in document["components"]["schemas"].values()
        for field in schema["properties"].values()
        if "$ref" not in field.get("items", field)
    ]
    assert [each for each in described if not each.get("description")] == []


def test_every_answer_says_what_it_is_and_shows_one(document: dict[str, Any]) -> None:
    for status, answer in answers(document):
        assert answer["description"] not in {"", "OK"}, status
        if status == "204":
            assert "content" not in answer
            continue
        assert answer["content"], status
        for body in answer["content"].values():
            assert body["schema"], status
            assert "example" in body or body["examples"], status


def test_every_body_that_a_call_reads_is_shown(document: dict[str, Any]) -> None:
    bodies = [operation["requestBody"] for operation in operations(document).values() if "requestBody" in operation]
    assert len(bodies) == 14
    assert all(body["content"]["application/json"]["example"] for body in bodies)


def test_every_example_is_as_its_schema_says(document: dict[str, Any]) -> None:
    shown = [
        (each["schema"], each["example"]) for each in document["components"]["parameters"].values() if "example" in each
    ]
    for operation in operations(document).values():
        shown += [(each["schema"], each["example"]) for each in operation["parameters"] if "example" in each]
        for part in [operation.get("requestBody", {}), *operation["responses"].values()]:
            for body in part.get("content", {}).values():
                examples = [look_up(document, each)["value"] for each in body.get("examples", {}).values()]
                examples += [body["example"]] if "example" in body else []
                shown += [(body["schema"], example) for example in examples]
    for schema in document["components"]["schemas"].values():
        shown += [(field, field["example"]) for field in schema["properties"].values() if "example" in field]
    assert len(shown) > 300
    assert [(fault, example) for schema, example in shown for fault in faults_of(document, schema, example)] == []


def test_the_tokens_are_described(document: dict[str, Any]) -> None:
    """`test_roles.py` checks which call needs which token."""
    schemes = document["components"]["securitySchemes"]
    assert {name: scheme["scheme"] for name, scheme in schemes.items()} == dict.fromkeys(
        ("trackToken", "adminToken"), "bearer"
    )
    assert all(scheme["description"] for scheme in schemes.values())


def test_every_error_has_the_shape_that_is_described(document: dict[str, Any]) -> None:
    for operation in operations(document).values():
        for status, response in operation["responses"].items():
            if status >= "400" and (operation["operationId"], status) != ("readyz", "503"):
                shapes = {media_type: body["schema"]["$ref"] for media_type, body in response["content"].items()}
                assert shapes == {
                    "application/json": "#/components/schemas/Error",
                    "application/problem+json": "#/components/schemas/Problem",
                }


def test_no_call_is_described_with_an_answer_for_every_other_status(document: dict[str, Any]) -> None:
    """With such an answer, every status would fit the description."""
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
        "408": {"REQUEST_TIMEOUT"},
        "414": {"URI_TOO_LONG"},
        "417": {"EXPECTATION_FAILED"},
        "431": {"REQUEST_HEADER_FIELDS_TOO_LARGE"},
        "429": {"RATE_LIMIT_EXCEEDED"},
        "500": {"INTERNAL_ERROR"},
    }
    assert shown_codes(document, "post", "/v1/allocate") == common | {
        "403": {"FORBIDDEN"},
        "404": {"RESERVATION_NOT_FOUND"},
        "409": {"NO_SANDBOXES_AVAILABLE", "RESERVATION_NOT_OPEN"},
        "413": {"PAYLOAD_TOO_LARGE"},
        "503": {"SERVICE_UNAVAILABLE", "PAUSED", "TABLE_CHANGED", "UPGRADE_UNFINISHED"},
    }
    assert shown_codes(document, "post", "/v1/sandboxes/{sandbox_id}/mark-for-deletion") == common | {
        "403": {"FORBIDDEN", "NOT_SANDBOX_OWNER"},
        "404": {"SANDBOX_NOT_FOUND"},
        "409": {"LEASE_MISMATCH"},
        "413": {"PAYLOAD_TOO_LARGE"},
        "503": {"SERVICE_UNAVAILABLE"},
    }
    extend = common | {
        "403": {"FORBIDDEN"},
        "404": {"SANDBOX_NOT_FOUND"},
        "409": {"LEASE_MISMATCH", "ALLOCATION_ENDED", "DURATION_LIMIT"},
        "413": {"PAYLOAD_TOO_LARGE"},
        "503": {"SERVICE_UNAVAILABLE", "TABLE_CHANGED"},
    }
    assert shown_codes(document, "post", "/v1/admin/sandboxes/{sandbox_id}/extend") == extend
    assert shown_codes(document, "post", "/v1/sandboxes/{sandbox_id}/extend") == extend | {
        "403": {"FORBIDDEN", "NOT_SANDBOX_OWNER"}
    }
    assert shown_codes(document, "get", "/v1/admin/jobs/{job_id}") == common | {
        "403": {"FORBIDDEN"},
        "404": {"JOB_NOT_FOUND"},
        "500": {"INTERNAL_ERROR"},
        "503": {"QUEUE_UNAVAILABLE", "SERVICE_UNAVAILABLE"},
    }
    unready = {"SERVICE_UNAVAILABLE", "UPGRADE_UNFINISHED"}
    assert shown_codes(document, "post", "/v1/admin/reservations") == common | {
        "403": {"FORBIDDEN"},
        "409": {"CAPACITY_NOT_AVAILABLE"},
        "413": {"PAYLOAD_TOO_LARGE"},
        "422": {"IDEMPOTENCY_MISMATCH"},
        "503": unready,
    }
    change = common | {
        "403": {"FORBIDDEN"},
        "404": {"RESERVATION_NOT_FOUND"},
        "409": {"CAPACITY_NOT_AVAILABLE", "RESERVATION_NOT_OPEN", "VERSION_MISMATCH"},
        "413": {"PAYLOAD_TOO_LARGE"},
        "503": unready,
    }
    assert shown_codes(document, "patch", "/v1/admin/reservations/{reservation_id}") == change
    quarantine = shown_codes(document, "post", "/v1/admin/sandboxes/{sandbox_id}/quarantine")
    assert quarantine["409"] == {"INVALID_TRANSITION"}
    assert quarantine["503"] == {"SERVICE_UNAVAILABLE", "UPGRADE_UNFINISHED"}
    for path in ("/v1/admin/events", "/v1/admin/sandboxes/{sandbox_id}/history"):
        assert shown_codes(document, "get", path)["503"] == {"SERVICE_UNAVAILABLE", "UPGRADE_UNFINISHED"}


def test_every_error_names_its_codes_and_shows_each_under_its_own_status(document: dict[str, Any]) -> None:
    assert set(document["components"]["schemas"]["ErrorDetail"]["properties"]["code"]["enum"]) == set(ANSWERED)
    for status, answer in answers(document):
        examples = answer.get("content", {}).get("application/json", {}).get("examples", {})
        assert re.findall(r"^`([A-Z_]+)`: ", answer["description"], re.MULTILINE) == list(examples)
        waits = []
        for code, reference in examples.items():
            error = look_up(document, reference)["value"]["error"]
            assert (error["code"], ERROR_CODES[code].status) == (code, int(status))
            waits.append("retry_after" in error)
        if examples:
            assert any(waits) == ("Retry-After" in answer["headers"])
            assert all(waits) == look_up(document, answer["headers"].get("Retry-After", {})).get("required", False)


def test_every_error_is_shown_in_both_shapes(document: dict[str, Any]) -> None:
    shown = document["components"]["examples"]
    codes = [name for name in shown if not name.endswith("_AS_PROBLEM")]
    for code in codes:
        plain = dict(shown[code]["value"]["error"])
        assert shown[f"{code}_AS_PROBLEM"]["value"] == {
            "type": f"/v1/docs#{code}",
            "title": ERROR_CODES[code].meaning,
            "status": ERROR_CODES[code].status,
            "detail": plain.pop("message"),
            "instance": f"#{plain['request_id']}",
            **plain,
        }
    assert len(shown) == 2 * len(codes)


def test_a_problems_type_leads_to_the_page_under_any_base_path(api: Api) -> None:
    for each, base_path in ((api, "/v1"), (make_api(API_BASE_PATH="/broker"), "/broker")):
        problem = each.call("POST", f"{base_path}/allocate", headers={"Accept": "application/problem+json"})
        page, _, code = body_of(problem)["type"].partition("#")
        assert (page, code) == (f"{base_path}/docs", "UNAUTHORIZED")
        assert each.call("GET", page).status_code == 200
        description = body_of(each.call("GET", f"{base_path}/openapi.json"))
        assert f'id="{code}"' in description["info"]["description"]
        shown = description["components"]["examples"]["UNAUTHORIZED_AS_PROBLEM"]["value"]
        assert shown["type"] == body_of(problem)["type"]


def test_the_page_says_of_every_code_what_it_means_where_a_problem_leads_to(document: dict[str, Any]) -> None:
    for error in ERRORS:
        row = f'| <a id="{error.code}"></a>`{error.code}` | {error.status.value} | {error.meaning} | {error.remedy} |'
        assert (row in document["info"]["description"]) == (error.code in ANSWERED)


def test_every_answer_is_described_with_its_request_id(document: dict[str, Any]) -> None:
    assert all("X-Request-ID" in answer["headers"] for _, answer in answers(document))


def test_an_answer_without_a_valid_token_is_described_with_the_scheme_to_use(document: dict[str, Any]) -> None:
    with_token = [each for each in operations(document).values() if each["security"]]
    assert with_token
    assert all("WWW-Authenticate" in each["responses"]["401"]["headers"] for each in with_token)


def test_links_lead_to_calls_that_take_their_parameters(document: dict[str, Any]) -> None:
    found = operations(document)
    taken = {
        operation["operationId"]: {each["name"] for each in operation["parameters"]} for operation in found.values()
    }
    links = [link for _, answer in answers(document) for link in answer.get("links", {}).values()]
    assert links
    for link in links:
        assert set(link["parameters"]) <= taken[link["operationId"]]


def test_a_class_and_a_track_that_waits_are_followed_by_links(document: dict[str, Any]) -> None:
    found = operations(document)

    def led_to(verb: str, path: str, status: str) -> set[str]:
        return set(found[verb, path]["responses"][status]["links"])

    assert led_to("post", "/v1/admin/reservations", "201") == {
        "adminReadReservation",
        "adminChangeReservation",
        "adminCancelReservation",
        "allocate",
    }
    assert led_to("post", "/v1/allocate", "201") >= {"readSandbox", "extend", "markForDeletion"}
    assert led_to("post", "/v1/allocate", "202") == {"listWaiting", "giveUpWaiting"}


def test_every_link_is_in_the_description(document: dict[str, Any]) -> None:
    shown = {
        (operation["operationId"], int(status))
        for operation in operations(document).values()
        for status, answer in operation["responses"].items()
        if "links" in answer
    }
    starts = {(f"admin{job.name.title().replace('_', '')}", status) for job in JOBS.values() for status in (200, 202)}
    assert shown == LINKS.keys() | starts


SCENARIO_CALL = re.compile(r"`(GET|POST|PATCH|DELETE) (/[^`\s]*)`")


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_every_call_of_a_scenario_is_described_and_the_document_tells_the_scenario(
    scenario: str, document: dict[str, Any]
) -> None:
    text = (FILES / f"{scenario}.md").read_text()
    calls = {(verb.lower(), path) for verb, path in SCENARIO_CALL.findall(text)}
    assert len(calls) > 2
    for verb, target in calls:
        path, _, query = target.partition("?")
        taken = {each["name"] for each in operations(document)[verb, path]["parameters"]}
        assert {each.partition("=")[0] for each in query.split("&") if each} <= taken
    assert text.strip() in document["info"]["description"]


def test_every_text_is_of_a_call_and_every_call_but_those_that_start_jobs_has_one(document: dict[str, Any]) -> None:
    texts = read_calls("/v1")
    described = {each["operationId"]: each["description"] for each in operations(document).values()}
    assert texts.keys() <= described.keys()
    starts = {f"admin{job.name.title().replace('_', '')}" for job in JOBS.values()}
    assert described.keys() - texts.keys() == starts
    assert all(described[call].startswith(text) for call, text in texts.items())


def test_the_texts_name_the_paths_of_the_base_path_that_is_set() -> None:
    described = body_of(make_api(API_BASE_PATH="/broker").call("GET", "/broker/openapi.json"))
    texts = [described["info"]["description"], *(tag["description"] for tag in described["tags"])]
    texts += [operation["description"] for operation in operations(described).values()]
    assert "`POST /broker/allocate`" in texts[0]
    assert [text for text in texts if "/v1" in text or "$" in text] == []


def test_the_package_has_every_file_of_the_description_and_every_module() -> None:
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    package = ROOT / "broker_api"
    packed = {path for pattern in setuptools["package-data"]["broker_api"] for path in package.glob(pattern)}
    assert packed == set(package.rglob("*.md")) != set()
    modules = {
        path.parent for each in ("broker_api", "broker_common", "broker_worker") for path in (ROOT / each).rglob("*.py")
    }
    assert {".".join(path.relative_to(ROOT).parts) for path in modules} == set(setuptools["packages"])


def test_the_description_introduces_itself(document: dict[str, Any]) -> None:
    assert document["info"]["title"] == "Sandbox Broker"
    assert document["info"]["version"]
    for word in ("X-Track-ID", "Retry-After", "Idempotency-Key", "lease_id"):
        assert word in document["info"]["description"]


def test_nothing_is_described_that_no_call_uses(document: dict[str, Any]) -> None:
    used = set(re.findall(r"'#/components/(\w+)/([^']+)'", str(document)))
    used |= {
        ("securitySchemes", name) for each in operations(document).values() for one in each["security"] for name in one
    }
    assert {(kind, name) for kind, named in document["components"].items() for name in named} == used


def test_a_tracks_headers_are_described(document: dict[str, Any]) -> None:
    parameters = {each["name"]: each for each in operations(document)["post", "/v1/allocate"]["parameters"]}
    assert set(parameters) == {*CALLER_HEADERS, "X-Request-ID", "Prefer"}
    # Another header may be sent in its place, which only the words can say.
    assert {name for name, each in parameters.items() if each.get("required")} == {"X-Track-ID"}
    assert "X-Instruqt-Sandbox-ID" in parameters["X-Track-ID"]["description"]


def test_every_call_takes_the_callers_request_id(document: dict[str, Any]) -> None:
    assert all(
        "X-Request-ID" in {each["name"] for each in call["parameters"]} for call in operations(document).values()
    )


def test_answers_have_the_fields_that_are_described(api: Api, document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    for name in ("Allocation", "HeldSandbox", "Sandbox", "Stats", "Marked", "Reservation", "Fit", "CapacityPoint"):
        assert set(schemas[name]["required"]) == set(schemas[name]["properties"])
    for name, call in (("Stats", "stats"), ("Overview", "overview")):
        assert set(body_of(api.admin("GET", f"/v1/admin/{call}"))) == set(schemas[name]["properties"])


def test_nothing_but_what_is_described_is_accepted_in_a_body(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    for name in (
        *("MarkInput", "ReleaseInput", "QuarantineInput", "PausesInput", "SyncInput"),
        *("BookingInput", "ChangeInput"),
    ):
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
