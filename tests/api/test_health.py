"""The health checks for load balancers and orchestrators."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from prometheus_client import CollectorRegistry

from broker_api.app import create_app
from broker_api.runtime import runtime_of
from broker_common.adapters.dynamo_table import create_table
from broker_common.adapters.dynamo_transport import make_client
from broker_common.services import build_api_services
from broker_common.settings import Process, Settings
from tests.api.harness import ENVIRONMENT, Api, Untouchable, body_of, error_of, make_api, refusing
from tests.fakes import START, FakeClock, MemoryStore, StoreWrapper, make_sandbox

if TYPE_CHECKING:
    from broker_common.core.store import SandboxStore, TableState


def test_a_process_that_runs_is_healthy_and_touches_nothing() -> None:
    api = make_api(around=lambda _: Untouchable())
    api.queue.down = True
    assert body_of(api.call("GET", "/healthz"), 200) == {"status": "healthy", "timestamp": START}


def test_a_process_whose_store_answers_is_ready(api: Api) -> None:
    assert body_of(api.call("GET", "/readyz"), 200) == {
        "status": "ready",
        "timestamp": START,
        "checks": {"dynamodb": "ok", "clock": "ok", "table": "ok", "redis": "ok"},
    }


def test_a_process_is_not_ready_while_its_store_is_away() -> None:
    api = make_api(around=refusing("ping"))
    answer = api.call("GET", "/readyz")
    body = body_of(answer)
    assert (answer.status_code, body["status"]) == (503, "not_ready")
    assert body["checks"] == {"dynamodb": "error: the store refused", "redis": "ok"}
    assert api.call("GET", "/readyz").status_code == 200


def test_an_unexpected_failure_of_a_check_is_not_shown() -> None:
    class Broken(StoreWrapper):
        def ping(self) -> TableState:
            raise RuntimeError("secret")

    answer = make_api(around=Broken).call("GET", "/readyz")
    assert answer.status_code == 503
    assert body_of(answer)["checks"]["dynamodb"] == "error: unexpected"
    assert "secret" not in answer.text


def test_a_process_without_redis_is_ready_and_says_so(api: Api) -> None:
    api.queue.down = True
    answer = api.call("GET", "/readyz")
    body = body_of(answer)
    assert (answer.status_code, body["status"]) == (200, "ready")
    assert body["checks"]["redis"] == "error: the job queue cannot be reached"


@pytest.mark.parametrize(("difference", "status"), [(60, 200), (-60, 200), (61, 503), (-61, 503), (7200, 503)])
def test_a_process_whose_clock_is_far_from_the_stores_is_not_ready(difference: int, status: int) -> None:
    def with_another_clock(_store: SandboxStore) -> MemoryStore:
        return MemoryStore(FakeClock(START + difference))

    answer = make_api(around=with_another_clock).call("GET", "/readyz")
    checks = body_of(answer)["checks"]
    assert answer.status_code == status
    assert checks["dynamodb"] == "ok"
    assert checks["clock"].startswith("ok" if status == 200 else "error: ")


def test_a_store_that_does_not_tell_the_time_is_no_reason_to_be_unready() -> None:
    answer = make_api(around=lambda _: MemoryStore()).call("GET", "/readyz")
    assert answer.status_code == 200
    assert "clock" not in body_of(answer)["checks"]


@pytest.mark.usefixtures("aws_environment")
def test_a_process_is_ready_however_long_its_requests_may_take(ministack_url: str) -> None:
    settings = Settings.from_env(
        ENVIRONMENT
        | {
            "DDB_ENDPOINT_URL": ministack_url,
            "DDB_TABLE_NAME": "readiness",
            "REQUEST_DEADLINE_SEC": "30",
            "REDIS_URL": "redis://127.0.0.1:1/0",
        },
        process=Process.API,
    )
    client = make_client(region=settings.aws_region, endpoint_url=ministack_url, timeout_sec=10, connections=1)
    create_table(client, settings.ddb_table_name)
    app = create_app(settings, build_api_services(settings, registry=CollectorRegistry()))
    answer = app.test_client().get("/readyz")
    client.delete_table(TableName=settings.ddb_table_name)
    assert (answer.status_code, body_of(answer)["checks"]["dynamodb"]) == (200, "ok")


def test_a_process_that_is_about_to_stop_is_not_ready_and_still_serves(api: Api) -> None:
    runtime_of(api.app).draining = True
    assert body_of(api.call("GET", "/readyz"), 503)["status"] == "not_ready"
    assert api.call("GET", "/healthz").status_code == 200
    assert api.track("GET", "/v1/sandboxes").status_code == 200


def test_a_process_whose_clock_is_wrong_allocates_nothing_and_answers_what_is_held(api: Api) -> None:
    api.store.seed(make_sandbox("1"), make_sandbox("2"))
    held = api.allocate("holder")
    api.store._clock = FakeClock(START - 7200)
    api.clock.advance(5)
    answer = api.track("POST", "/v1/allocate", "another")
    error = error_of(answer)
    assert (answer.status_code, error["code"], error["retry_after"]) == (503, "SERVICE_UNAVAILABLE", 5)
    assert "clock is +7205 s" in error["message"]
    again = api.track("POST", "/v1/allocate", "holder")
    assert (again.status_code, body_of(again)) == (200, held)


def test_on_another_table_a_process_is_not_ready_and_allocates_nothing(api: Api) -> None:
    api.store.seed(make_sandbox("1"))
    held = api.allocate("holder")["sandbox_id"]
    api.store.identity = "another"
    api.clock.advance(5)
    for track in ("holder", "another"):
        answer = api.track("POST", "/v1/allocate", track)
        assert (answer.status_code, error_of(answer)["code"], error_of(answer)["retry_after"]) == (
            503,
            "TABLE_CHANGED",
            30,
        )
    readiness = api.call("GET", "/readyz")
    assert readiness.status_code == 503
    assert "broker table accept" in body_of(readiness)["checks"]["table"]
    assert api.track("GET", f"/v1/sandboxes/{held}", "holder").status_code == 200, "reads go on, as the table says"
