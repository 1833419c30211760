"""From errors to answers."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, cast

import pytest
import structlog
from werkzeug.exceptions import ServiceUnavailable

from broker_api.errors import STATUS_OF
from broker_common.core.errors import BrokerError, SandboxNotFound, StoreRejected
from tests.api.harness import Api, error_of, make_api
from tests.fakes import StoreWrapper, make_sandbox

if TYPE_CHECKING:
    from collections.abc import Iterator


def subclasses(kind: type[BrokerError]) -> Iterator[type[BrokerError]]:
    for each in kind.__subclasses__():
        yield each
        yield from subclasses(each)


@pytest.mark.parametrize("kind", sorted(subclasses(BrokerError), key=str))
def test_every_error_has_a_status(kind: type[BrokerError]) -> None:
    assert 400 <= STATUS_OF[kind] < 600


def test_the_table_holds_no_error_twice_removed() -> None:
    assert set(STATUS_OF) == set(subclasses(BrokerError))


class Broken(StoreWrapper):
    """A store with a fault that nobody foresaw."""

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
    (record,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], KeyError)


def test_a_request_that_the_store_calls_malformed_answers_500_without_its_text_which_the_log_has(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Broken, "fault", StoreRejected("DynamoDB calls the request malformed: a-secret-value"))
    answer = make_api(around=Broken).admin("GET", "/v1/admin/sandboxes")
    assert (answer.status_code, error_of(answer)["code"]) == (500, "INTERNAL_ERROR")
    assert "secret" not in answer.text
    assert "INTERNAL_ERROR: DynamoDB calls the request malformed: a-secret-value" in caplog.text


@pytest.mark.parametrize("fault", [ServiceUnavailable("a-secret-value"), SandboxNotFound("a-secret-value")])
def test_an_error_that_stands_in_no_table_is_unexpected(fault: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Broken, "fault", fault)
    monkeypatch.delitem(cast("dict[type, int]", STATUS_OF), SandboxNotFound)
    answer = make_api(around=Broken).admin("GET", "/v1/admin/sandboxes")
    assert (answer.status_code, error_of(answer)["code"]) == (500, "INTERNAL_ERROR")
    assert "secret" not in answer.text


def test_a_request_is_logged_under_its_id_and_track_and_leaves_neither_behind() -> None:
    seen: list[dict[str, object]] = []

    class Watching(StoreWrapper):
        def read_claims(self, track_id: str) -> list[object]:  # type: ignore[override] # it returns the inner store's
            seen.append(structlog.contextvars.get_contextvars())
            return list(super().read_claims(track_id))

    api = make_api(around=Watching)
    api.track("GET", "/v1/sandboxes", "track-1", headers={"X-Request-ID": "req-1"})
    assert seen == [{"request_id": "req-1", "track_id": "track-1", "principal": "track"}]
    assert structlog.contextvars.get_contextvars() == {}


def test_the_retry_time_stands_in_header_and_body(api: Api) -> None:
    answer = api.track("POST", "/v1/allocate")
    assert answer.headers["Retry-After"] == str(error_of(answer)["retry_after"])


def test_a_message_tells_what_it_is_about(api: Api) -> None:
    api.store.seed(make_sandbox("7"))
    assert "'8'" in error_of(api.track("GET", "/v1/sandboxes/8"))["message"]
