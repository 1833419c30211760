"""How errors are answered."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, cast

import pytest
import structlog
from werkzeug.exceptions import ServiceUnavailable

from broker_api.error_answers import describe
from broker_api.errors import ANSWERED, ERROR_CODES, ERROR_OF, ERRORS, ErrorCode
from broker_common.core.errors import BrokerError, SandboxNotFound, StoreRejected
from broker_common.core.ports import Allowance
from tests.api.harness import Api, assert_error, body_of, error_of, make_api
from tests.fakes import StoreWrapper, make_sandbox

if TYPE_CHECKING:
    from collections.abc import Iterator


def subclasses(kind: type[BrokerError]) -> Iterator[type[BrokerError]]:
    for each in kind.__subclasses__():
        yield each
        yield from subclasses(each)


@pytest.mark.parametrize("kind", sorted(subclasses(BrokerError), key=str))
def test_every_class_of_errors_stands_in_the_table_once_under_its_own_code(kind: type[BrokerError]) -> None:
    (found,) = [error for error in ERRORS if kind in error.kinds]
    assert found is ERROR_OF[kind]
    assert found.code == kind.code


def test_every_code_is_described_once() -> None:
    assert sorted(ERROR_CODES) == sorted(error.code for error in ERRORS)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.code)
def test_every_code_says_what_it_means_and_what_to_do(error: ErrorCode) -> None:
    assert 400 <= error.status < 600
    for sentence in (error.meaning, error.remedy):
        assert sentence.endswith(".")
        assert sentence[0].isupper()


def test_the_codes_stand_in_the_order_of_their_statuses() -> None:
    assert [error.status for error in ERRORS] == sorted(error.status for error in ERRORS)


@pytest.mark.parametrize("error", [error for error in ERRORS if not error.kinds], ids=lambda error: error.code)
def test_what_http_itself_refuses_has_the_code_and_message_of_its_line(error: ErrorCode) -> None:
    assert error.code in ANSWERED
    assert describe(error.status) == (error.code, error.message)


def test_a_status_that_has_no_line_is_told_in_the_words_of_http() -> None:
    assert describe(416)[0] == "REQUESTED_RANGE_NOT_SATISFIABLE"
    assert describe(502)[0] == "INTERNAL_ERROR"


class Broken(StoreWrapper):
    """A store with an unexpected fault."""

    fault: Exception = KeyError("a-secret-value")

    def list_sandboxes(self, *_: object, **__: object) -> object:  # type: ignore[override] # it never returns
        raise self.fault


def test_an_unexpected_error_answers_500_without_its_text_and_is_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    api = make_api(around=Broken)
    with caplog.at_level(logging.WARNING):
        answer = api.admin("GET", "/v1/admin/sandboxes", headers={"X-Request-ID": "req-1"})
    error = error_of(answer)
    assert answer.status_code == 500
    assert (error["code"], error["request_id"]) == ("INTERNAL_ERROR", "req-1")
    assert "secret" not in answer.text
    (record,) = [record for record in caplog.records if record.exc_info and record.exc_info[1] is Broken.fault]
    assert record.levelno == logging.ERROR


def test_a_request_that_the_store_calls_malformed_answers_500_without_its_text_which_the_log_has(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Broken, "fault", StoreRejected("DynamoDB calls the request malformed: a-secret-value"))
    answer = make_api(around=Broken).admin("GET", "/v1/admin/sandboxes")
    assert_error(answer, 500, "INTERNAL_ERROR")
    assert "secret" not in answer.text
    assert "INTERNAL_ERROR: DynamoDB calls the request malformed: a-secret-value" in caplog.text


@pytest.mark.parametrize("fault", [ServiceUnavailable("a-secret-value"), SandboxNotFound("a-secret-value")])
def test_an_error_that_stands_in_no_table_is_unexpected(fault: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Broken, "fault", fault)
    monkeypatch.delitem(cast("dict[type, ErrorCode]", ERROR_OF), SandboxNotFound)
    answer = make_api(around=Broken).admin("GET", "/v1/admin/sandboxes")
    assert_error(answer, 500, "INTERNAL_ERROR")
    assert "secret" not in answer.text


JSON, PROBLEM = "application/json", "application/problem+json"


@pytest.mark.parametrize(
    ("accept", "media_type"),
    [
        *((each, JSON) for each in (None, "", "*/*", "application/*", JSON, "text/html", "nonsense")),
        *((each, PROBLEM) for each in (PROBLEM, "Application/Problem+JSON", f"{PROBLEM}, */*")),
        (f"{PROBLEM};q=0.5, */*;q=0.5", PROBLEM),
        # Such a caller takes plain JSON for answers that are no errors.
        (f"application/json, {PROBLEM}", PROBLEM),
        (f"application/json;q=0.5, {PROBLEM};q=0.9", PROBLEM),
        *((f"{PROBLEM};{each}", JSON) for each in ("q=0.1, */*", "q=0", "q=0, */*;q=0.1")),
        (f"application/json, {PROBLEM};q=0.9", JSON),
    ],
)
def test_an_error_comes_in_the_shape_that_the_caller_prefers(
    shared_api: Api, accept: str | None, media_type: str
) -> None:
    answer = shared_api.call("GET", "/v1/sandboxes", headers={} if accept is None else {"Accept": accept})
    assert (answer.status_code, answer.headers["Content-Type"]) == (401, media_type)
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert "Accept" in answer.vary
    assert set(body_of(answer)) == (
        {"error"} if media_type != PROBLEM else {"type", "title", "status", "detail", "instance", "code", "request_id"}
    )


def test_a_problem_says_the_same_as_the_error(api: Api) -> None:
    headers = {"X-Request-ID": "req-1"}
    plain = error_of(api.track("POST", "/v1/allocate", headers=headers))
    problem = api.track("POST", "/v1/allocate", headers=headers | {"Accept": PROBLEM})
    assert problem.headers["Retry-After"] == str(plain["retry_after"])
    assert body_of(problem) == {
        "type": "/v1/docs#NO_SANDBOXES_AVAILABLE",
        "title": "No sandbox that matches was free.",
        "status": 409,
        "detail": plain["message"],
        "instance": "#req-1",
        "code": "NO_SANDBOXES_AVAILABLE",
        "request_id": "req-1",
        "retry_after": plain["retry_after"],
        "details": plain["details"],
    }


def test_a_problem_names_the_fields_that_are_wrong(api: Api) -> None:
    problem = api.track("POST", "/v1/allocate?colour=red", headers={"Accept": PROBLEM})
    assert (problem.status_code, problem.mimetype) == (400, PROBLEM)
    assert body_of(problem)["details"] == {"colour": ["Unknown field."]}


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/v1/nothing", 404), ("GET", "/", 404), ("PUT", "/v1/allocate", 405), ("OPTIONS", "/healthz", 405)],
)
def test_what_no_call_answers_may_be_a_problem(api: Api, method: str, path: str, status: int) -> None:
    problem = api.call(method, path, headers={"Accept": PROBLEM})
    assert (problem.status_code, problem.mimetype, body_of(problem)["status"]) == (status, PROBLEM, status)


def test_a_limited_caller_may_be_told_so_by_a_problem(api: Api) -> None:
    api.rate_limit.answer = Allowance(is_exceeded=True, limit=200, remaining=0, reset_after=4, retry_after=2)
    problem = api.call("GET", "/v1/sandboxes", headers={"Accept": PROBLEM})
    assert (problem.status_code, body_of(problem)["code"]) == (429, "RATE_LIMIT_EXCEEDED")
    assert body_of(problem)["retry_after"] == 2


def test_an_unexpected_error_may_be_told_by_a_problem_and_without_its_text() -> None:
    problem = make_api(around=Broken).admin("GET", "/v1/admin/sandboxes", headers={"Accept": PROBLEM})
    assert (problem.status_code, problem.mimetype) == (500, PROBLEM)
    assert body_of(problem)["code"] == "INTERNAL_ERROR"
    assert "secret" not in problem.text


def test_a_problem_whose_code_has_no_line_is_of_no_known_type(api: Api) -> None:
    icon = api.call("GET", "/favicon.ico", headers={"Range": "bytes=999999-", "Accept": PROBLEM})
    assert icon.status_code == 416
    assert (body_of(icon)["type"], body_of(icon)["title"]) == ("about:blank", "Requested Range Not Satisfiable")


def test_an_answer_without_an_error_is_the_same_for_who_prefers_problems(api: Api) -> None:
    answer = api.admin("GET", "/v1/admin/stats", headers={"Accept": PROBLEM})
    assert (answer.status_code, answer.mimetype) == (200, "application/json")


def test_a_request_is_logged_under_its_id_principal_and_track_and_leaves_none_behind() -> None:
    seen: list[dict[str, object]] = []

    class Watching(StoreWrapper):
        def read_claims(self, track_id: str) -> list[object]:  # type: ignore[override] # it returns the inner store's
            seen.append(structlog.contextvars.get_contextvars())
            return list(super().read_claims(track_id))

    api = make_api(around=Watching)
    api.track("GET", "/v1/sandboxes", "track-1", headers={"X-Request-ID": "req-1"})
    assert seen == [{"request_id": "req-1", "principal": "track", "track_id": "track-1"}]
    assert structlog.contextvars.get_contextvars() == {}


def test_a_message_tells_what_it_is_about(api: Api) -> None:
    api.store.seed(make_sandbox("7"))
    assert "'8'" in error_of(api.track("GET", "/v1/sandboxes/8"))["message"]
