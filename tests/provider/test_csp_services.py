"""The removal of services that students left: against the mock CSP over HTTP, and against answers of any other kind."""

from __future__ import annotations

import json
import logging
import threading
from typing import TYPE_CHECKING, Any

import pytest
import requests

from broker_common.adapters.csp_services import CspServices
from broker_common.adapters.redis_breaker import NoBreaker, RedisBreaker
from broker_common.adapters.system_clock import SystemClock
from broker_common.core.errors import ProviderFailing, ProviderMisconfigured
from broker_common.core.ports import ServicesRemoval
from broker_common.core.telemetry import ProviderCalled, ProviderOutcome, ServicesOutcome
from deploy.dev.processes import wait_until
from tests.fakes import FakeClock, RecordingRecorder
from tests.http_server import Handler, serving

if TYPE_CHECKING:
    from redis import Redis

    from tests.provider.conftest import MockCsp

EMAIL, PASSWORD = "cleaner@example.com", "services_password_123"
NAME = "lab-service"
BREAKER = "sandbox-broker:csp:services-breaker"


def services_of(url: str, **changes: Any) -> CspServices:
    options: dict[str, Any] = {
        "email": EMAIL,
        "password": PASSWORD,
        "name": NAME,
        "is_shadow": False,
        "connect_timeout": 2,
        "read_timeout": 5,
        "connections": 10,
        "breaker": NoBreaker(),
        "recorder": RecordingRecorder(),
        "clock": SystemClock(),
    }
    return CspServices(base_url=url, **options | changes)


def with_breaker(redis: Redis, url: str) -> CspServices:
    breaker = RedisBreaker(redis, threshold=3, timeout_sec=600, trial_sec=600, key=BREAKER)
    return services_of(url, breaker=breaker)


def let_timeout_pass(redis: Redis) -> None:
    """Have the open breaker admit a trial now: its record is the time at which it does."""
    stored = redis.get(BREAKER)
    assert isinstance(stored, bytes)
    redis.set(BREAKER, json.dumps(json.loads(stored) | {"open_until": 0}))


class Left:
    """The services of one account of the mock, and the calls about services."""

    def __init__(self, mock: MockCsp) -> None:
        self._url = f"{mock.url}/_mock/services"
        self.account = mock.any_account()
        self._key = self.account.rpartition("/")[2]
        requests.delete(self._url, timeout=10).raise_for_status()

    def add(self, *names: str) -> None:
        requests.post(self._url, json={"id": self.account, "names": names}, timeout=10).raise_for_status()

    def names(self) -> list[str]:
        found: list[str] = requests.get(self._url, timeout=10).json()["services"].get(self._key, [])
        return found

    def of_the_user(self) -> list[str]:
        found: list[str] = requests.get(self._url, timeout=10).json()["services"]["home"]
        return found

    def steps(self) -> list[str]:
        return [call["step"] for call in requests.get(self._url, timeout=10).json()["calls"]]


@pytest.fixture
def left(mock: MockCsp) -> Left:
    """Give an account of the mock without services."""
    return Left(mock)


def test_the_services_of_the_name_are_removed_and_no_others(mock: MockCsp, left: Left) -> None:
    left.add(NAME, "of somebody else", NAME, NAME.upper())
    removal = services_of(mock.url).remove(left.account, within=60)
    assert removal == ServicesRemoval(outcome=ServicesOutcome.REMOVED, removed=2)
    assert left.names() == ["of somebody else", NAME.upper()]
    assert left.steps() == ["sign_in", "switch", "list", "delete", "delete"]


def test_without_a_name_all_services_of_the_account_are_removed_but_the_user_s_own_stay(
    mock: MockCsp, left: Left
) -> None:
    left.add(NAME, "another")
    assert services_of(mock.url, name=None).remove(left.account, within=60).removed == 2
    assert left.names() == []
    assert left.of_the_user() == ["the user's own"]


def test_an_account_without_services_is_told_apart(mock: MockCsp, left: Left) -> None:
    removal = services_of(mock.url).remove(left.account, within=60)
    assert removal == ServicesRemoval(outcome=ServicesOutcome.NONE)


def test_the_origin_of_the_provider_s_address_is_called_also_if_it_has_a_path(mock: MockCsp, left: Left) -> None:
    left.add(NAME)
    assert services_of(f"{mock.url}/v2").remove(left.account, within=60).outcome is ServicesOutcome.REMOVED


def test_shadow_counts_and_deletes_nothing(mock: MockCsp, left: Left) -> None:
    left.add(NAME, NAME)
    removal = services_of(mock.url, is_shadow=True).remove(left.account, within=60)
    assert removal == ServicesRemoval(outcome=ServicesOutcome.SHADOW, left=2)
    assert left.names() == [NAME, NAME]
    assert left.steps() == ["sign_in", "switch", "list"]


def test_two_hundred_services_are_removed_one_after_the_other(mock: MockCsp, left: Left) -> None:
    left.add(*[NAME] * 200)
    requests.delete(f"{mock.url}/_mock/deletes", timeout=10).raise_for_status()
    threads = threading.active_count()
    removal = services_of(mock.url).remove(left.account, within=1000)
    assert removal == ServicesRemoval(outcome=ServicesOutcome.REMOVED, removed=200)
    assert mock.log()["highest_in_flight"] == 1
    assert wait_until(lambda: threading.active_count() <= threads, 30)


def test_a_removal_ends_when_its_time_is_over_and_says_how_many_are_left(mock: MockCsp, left: Left) -> None:
    left.add(*[NAME] * 200)
    clock = FakeClock()

    class Slow(RecordingRecorder):
        """Each call about services takes a second."""

        def record(self, event: Any) -> None:
            super().record(event)
            clock.advance(1)

    removal = services_of(mock.url, clock=clock, recorder=Slow()).remove(left.account, within=20)
    assert removal == ServicesRemoval(
        outcome=ServicesOutcome.PARTIAL, removed=17, left=183, error="the time for the removal is over"
    )
    assert len(left.names()) == 183


def test_each_call_ends_with_the_time_of_the_removal(mock: MockCsp, left: Left) -> None:
    mock.switch(service_seconds=30)
    # The clock stands still, so that no stall before the call leaves it without time.
    removal = services_of(mock.url, read_timeout=60, clock=FakeClock()).remove(left.account, within=2)
    assert (removal.outcome, removal.error) == (ServicesOutcome.FAILED, "sign in: timed out")


def test_no_call_is_made_without_time(mock: MockCsp, left: Left) -> None:
    removal = services_of(mock.url).remove(left.account, within=0)
    assert (removal.outcome, removal.error) == (ServicesOutcome.FAILED, "sign in: no time is left for it")
    assert left.steps() == []


@pytest.mark.parametrize(
    ("switches", "error", "steps"),
    [
        ({"sign_in_down": True}, "sign in: HTTP 503", ["sign_in"]),
        ({"sign_in_down": True, "html_errors": True}, "sign in: HTTP 503 with an HTML page", ["sign_in"]),
        ({"refuse_switch": True}, "switch account: HTTP 403", ["sign_in", "switch"]),
        (
            {"same_token": True},
            "switch account: the answer has the same token as before, so nothing was switched",
            ["sign_in", "switch"],
        ),
        ({"services_html": "sign_in"}, "sign in: HTTP 200 with an HTML page, such as a login page", ["sign_in"]),
        (
            {"services_html": "switch"},
            "switch account: HTTP 200 with an HTML page, such as a login page",
            ["sign_in", "switch"],
        ),
        (
            {"services_html": "list"},
            "list services: HTTP 200 with an HTML page, such as a login page",
            ["sign_in", "switch", "list"],
        ),
    ],
)
def test_a_failure_before_the_list_ends_the_removal(
    mock: MockCsp, left: Left, switches: dict[str, Any], error: str, steps: list[str]
) -> None:
    left.add(NAME)
    mock.switch(**switches)
    removal = services_of(mock.url).remove(left.account, within=60)
    assert removal == ServicesRemoval(outcome=ServicesOutcome.FAILED, error=error)
    assert left.steps() == steps
    assert left.names() == [NAME]
    assert left.of_the_user() == ["the user's own"]


def test_one_service_that_cannot_be_deleted_does_not_keep_the_others(mock: MockCsp, left: Left) -> None:
    left.add("stuck", NAME, NAME)
    mock.switch(stuck_service="stuck")
    removal = services_of(mock.url, name=None).remove(left.account, within=60)
    assert removal == ServicesRemoval(
        outcome=ServicesOutcome.PARTIAL, removed=2, left=1, error="delete service: HTTP 500"
    )
    assert left.names() == ["stuck"]


def test_a_page_in_place_of_a_delete_s_answer_removes_nothing(mock: MockCsp, left: Left) -> None:
    left.add(NAME)
    mock.switch(services_html="delete")
    removal = services_of(mock.url).remove(left.account, within=60)
    assert removal == ServicesRemoval(
        outcome=ServicesOutcome.PARTIAL, left=1, error="delete service: HTTP 200 with an HTML page"
    )


def test_every_call_is_counted_by_its_operation_and_outcome(mock: MockCsp, left: Left) -> None:
    left.add(NAME, "stuck")
    mock.switch(stuck_service="stuck")
    recorder = RecordingRecorder()
    services_of(mock.url, name=None, recorder=recorder).remove(left.account, within=60)
    assert [(event.operation, event.outcome) for event in recorder.of(ProviderCalled)] == [
        ("sign_in", ProviderOutcome.SUCCESS),
        ("switch_account", ProviderOutcome.SUCCESS),
        ("list_services", ProviderOutcome.SUCCESS),
        ("delete_service", ProviderOutcome.SUCCESS),
        ("delete_service", ProviderOutcome.FAILING),
    ]


def test_an_account_of_another_shape_is_never_asked_for(mock: MockCsp, left: Left) -> None:
    removal = services_of(mock.url).remove("identity/accounts/../../users", within=60)
    assert removal.outcome is ServicesOutcome.FAILED
    assert left.steps() == []


# -- the breaker of its own


def test_the_breaker_stops_the_attempts_and_they_go_on_when_one_can_sign_in_again(
    mock: MockCsp, left: Left, redis: Redis
) -> None:
    redis.delete(BREAKER)
    left.add(NAME)
    mock.switch(sign_in_down=True)
    one, other = (with_breaker(redis, mock.url) for _ in range(2))
    for services in (one, other, one):
        assert services.remove(left.account, within=60).outcome is ServicesOutcome.FAILED
    skipped = other.remove(left.account, within=60)
    assert (skipped.outcome, skipped.error) == (
        ServicesOutcome.SKIPPED,
        "the circuit breaker of the removal of services is open",
    )
    assert left.steps() == ["sign_in"] * 3
    mock.switch()
    assert one.remove(left.account, within=60).outcome is ServicesOutcome.SKIPPED, "its time is not over"
    let_timeout_pass(redis)
    assert one.remove(left.account, within=60).outcome is ServicesOutcome.REMOVED
    assert redis.get("sandbox-broker:csp:breaker") is None, "the breaker of deletes has nothing to do with it"


def test_a_wrong_password_opens_the_breaker_at_once(mock: MockCsp, left: Left, redis: Redis) -> None:
    redis.delete(BREAKER)
    breaker = RedisBreaker(redis, threshold=3, timeout_sec=600, trial_sec=600, key=BREAKER)
    services = services_of(mock.url, breaker=breaker, password="wrong")
    assert services.remove(left.account, within=60).error == "sign in: HTTP 401"
    assert services.remove(left.account, within=60).outcome is ServicesOutcome.SKIPPED


@pytest.mark.parametrize("switches", [{"refuse_switch": True}, {"stuck_service": "stuck"}])
def test_one_account_or_service_that_refuses_says_nothing_about_the_others(
    mock: MockCsp, left: Left, redis: Redis, switches: dict[str, Any]
) -> None:
    redis.delete(BREAKER)
    mock.switch(**switches)
    services = with_breaker(redis, mock.url)
    for _ in range(4):
        left.add(NAME, "stuck")
        assert services.remove(left.account, within=60).outcome is not ServicesOutcome.SKIPPED


def test_deletes_that_all_fail_open_the_breaker(mock: MockCsp, left: Left, redis: Redis) -> None:
    redis.delete(BREAKER)
    left.add(NAME)
    mock.switch(stuck_service=NAME)
    services = with_breaker(redis, mock.url)
    for _ in range(3):
        assert services.remove(left.account, within=60).outcome is ServicesOutcome.PARTIAL
    assert services.remove(left.account, within=60).outcome is ServicesOutcome.SKIPPED


# -- what `broker check` asks


def test_a_check_signs_in_and_does_nothing_else(mock: MockCsp, left: Left) -> None:
    services_of(mock.url).check()
    assert left.steps() == ["sign_in"]
    with pytest.raises(ProviderMisconfigured, match="sign in: HTTP 401"):
        services_of(mock.url, password="wrong").check()
    mock.switch(sign_in_down=True)
    with pytest.raises(ProviderFailing, match="sign in: HTTP 503"):
        services_of(mock.url).check()


# -- answers that no proper server gives

ACCOUNT = "identity/accounts/0b1f5cf8-6c3e-4f0e-9a53-6f0f8d8e1c11"
SERVICE = "0b1f5cf8-6c3e-4f0e-9a53-6f0f8d8e1c12"
JSON = {"Content-Type": "application/json"}
Answers = dict[tuple[str, str], tuple[int, bytes, dict[str, str]]]
GOOD: Answers = {
    ("POST", "/v2/session/users/sign_in"): (200, b'{"jwt": "first-jwt"}', JSON),
    ("POST", "/v2/session/account_switch"): (201, b'{"jwt": "second-jwt"}', JSON),
    ("GET", "/api/universalinfra/v1/universalservices"): (
        200,
        json.dumps({"results": [{"id": SERVICE, "name": NAME}]}).encode(),
        JSON,
    ),
    ("DELETE", f"/api/universalinfra/v1/universalservices/{SERVICE}"): (204, b"", {}),
}
SIGN_IN, SWITCH, LIST, DELETE = GOOD


def removal_from(answers: Answers, **options: Any) -> tuple[ServicesRemoval, list[tuple[str, str, str | None, str]]]:
    """Remove services at a server that gives these answers; also returns its requests, with their authorization."""
    asked: list[tuple[str, str, str | None, str]] = []

    class Scripted(Handler):
        protocol_version = "HTTP/1.1"

        def reply(self) -> None:
            cookie = self.headers.get("Cookie", "")
            asked.append((self.command, self.path, self.headers.get("Authorization"), cookie))
            if "Content-Length" in self.headers:
                self.read_body()
            status, body, headers = answers.get((self.command, self.path), (404, b"", {}))
            self.send_response_only(status)
            for name, value in headers.items():
                self.send_header(name, value)
            if status != 204:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    with serving(Scripted) as server:
        services = services_of(f"http://127.0.0.1:{server.server_port}", **options)
        return services.remove(ACCOUNT, within=60), asked


def test_only_the_token_of_the_account_reaches_its_services_and_no_cookie_is_sent() -> None:
    with_cookie = {**JSON, "Set-Cookie": "session=of-another-account; Path=/"}
    answers = {**GOOD, SIGN_IN: (200, b'{"jwt": "first-jwt"}', with_cookie)}
    removal, asked = removal_from(answers)
    assert removal == ServicesRemoval(outcome=ServicesOutcome.REMOVED, removed=1)
    assert asked == [
        (*SIGN_IN, None, ""),
        (*SWITCH, "Bearer first-jwt", ""),
        (*LIST, "Bearer second-jwt", ""),
        (*DELETE, "Bearer second-jwt", ""),
    ]


@pytest.mark.parametrize("call", list(GOOD))
def test_a_redirect_is_never_followed(call: tuple[str, str]) -> None:
    removal, asked = removal_from({**GOOD, call: (307, b"", {"Location": "/elsewhere"})})
    assert removal.outcome is (ServicesOutcome.PARTIAL if call == DELETE else ServicesOutcome.FAILED)
    assert "HTTP 307" in str(removal.error)
    assert asked[-1][:2] == call


@pytest.mark.parametrize(
    ("call", "body"),
    [
        *((SIGN_IN, body) for body in (b"", b"[]", b"{}", b'{"jwt": 7}', b'{"jwt": ""}', b'{"jwt": "two words"}')),
        (SIGN_IN, '{"jwt": "caf\u00e9\\n"}'.encode()),
        (SIGN_IN, b'{"jwt": "x", "error": "no"}'),
        (SWITCH, b'{"jwt": null}'),
        *((LIST, body) for body in (b"", b"null", b"{}", b'{"results": 7}', b'{"results": ["text"]}', b"[" * 100_000)),
    ],
)
def test_an_answer_that_does_not_parse_is_a_failure_and_removes_nothing(call: tuple[str, str], body: bytes) -> None:
    removal, asked = removal_from({**GOOD, call: (200, body, JSON)})
    assert (removal.outcome, removal.removed) == (ServicesOutcome.FAILED, 0)
    assert DELETE not in [each[:2] for each in asked]


def test_a_service_whose_id_cannot_be_read_is_left_and_its_path_is_never_called() -> None:
    entries = [{"id": each, "name": NAME} for each in ("../../accounts", 7, f"x?{SERVICE}", f"a/b/{SERVICE}")]
    removal, asked = removal_from({**GOOD, LIST: (200, json.dumps({"results": entries}).encode(), JSON)})
    assert removal == ServicesRemoval(
        outcome=ServicesOutcome.PARTIAL, removed=1, left=3, error="list services: the id of a service cannot be read"
    )
    assert [each[:2] for each in asked[3:]] == [DELETE]


@pytest.mark.parametrize(
    ("status", "body", "outcome"),
    [
        (200, b"{}", ServicesOutcome.REMOVED),
        (204, b"", ServicesOutcome.REMOVED),
        (404, b"{}", ServicesOutcome.REMOVED),
        (404, b"<html>no such page</html>", ServicesOutcome.PARTIAL),
        (202, b"{}", ServicesOutcome.PARTIAL),
        (403, b"{}", ServicesOutcome.PARTIAL),
        (409, b"{}", ServicesOutcome.PARTIAL),
        (429, b"{}", ServicesOutcome.PARTIAL),
    ],
)
def test_a_service_is_gone_by_200_204_and_404(status: int, body: bytes, outcome: ServicesOutcome) -> None:
    content_type = {"Content-Type": "text/html"} if body.startswith(b"<") else JSON
    removal, _ = removal_from({**GOOD, DELETE: (status, body, content_type)})
    assert removal.outcome is outcome


def test_no_error_and_no_log_line_has_the_password_or_a_token(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    echo = f'{{"error": "{PASSWORD} first-jwt second-jwt {EMAIL}"}}'.encode()
    for call in GOOD:
        for status in (200, 302, 401, 404, 500):
            removal, _ = removal_from({**GOOD, call: (status, echo, JSON)})
            told = f"{removal} {caplog.text}"
            assert not any(secret in told for secret in (PASSWORD, EMAIL, "first-jwt", "second-jwt")), told


def test_the_services_do_not_show_their_secrets() -> None:
    assert PASSWORD not in repr(services_of("http://127.0.0.1:1"))


def test_a_provider_that_is_away_is_a_failure() -> None:
    removal = services_of("http://127.0.0.1:1").remove(ACCOUNT, within=60)
    assert removal == ServicesRemoval(outcome=ServicesOutcome.FAILED, error="sign in: could not connect")
