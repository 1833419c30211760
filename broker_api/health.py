"""Whether the process lives, and whether it should be sent requests."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from broker_api.blueprint import Blueprint
from broker_api.runtime import runtime, services
from broker_api.schemas import HealthSchema, ReadinessSchema, example_of
from broker_common.core.deadline import deadline_in
from broker_common.core.errors import BrokerError

if TYPE_CHECKING:
    from collections.abc import Callable

blueprint = Blueprint(
    "health", __name__, description="For load balancers, orchestrators and Prometheus; without a token"
)

_CHECK_SEC = 1.5
_OK = "ok"

_log = logging.getLogger(__name__)


@blueprint.route("/healthz", methods=["GET"], role=None)
@blueprint.doc(operationId="healthz")
@blueprint.response(200, HealthSchema, description="It runs")
def healthz() -> dict[str, Any]:
    """Tell that the process runs.

    It touches nothing else: a process that does not answer should be started anew.
    """
    return {"status": "healthy", "timestamp": services().clock.now()}


@blueprint.route("/readyz", methods=["GET"], role=None)
@blueprint.doc(operationId="readyz")
@blueprint.response(200, ReadinessSchema, description="To be sent requests")
@blueprint.alt_response(
    503,
    schema=ReadinessSchema,
    description="Not to be sent requests now",
    example=example_of(
        ReadinessSchema(), status="not_ready", checks={"dynamodb": "error: DynamoDB does not answer", "redis": "ok"}
    ),
)
def readyz() -> tuple[dict[str, Any], int]:
    """Tell whether tracks can be served.

    It asks DynamoDB, compares its clock with this process's, and sees whether the table is the one that was known
    before. Redis is reported, by whether it takes a write, and does not count: no call of a track needs it. A process
    that is about to stop is not ready.
    """
    checks: dict[str, str] = {}
    if runtime().draining.is_set():
        checks["process"] = "error: it is about to stop"
    checks |= _check_store()
    ready = all(outcome == _OK for outcome in checks.values())
    checks["redis"] = _check(services().queue.ping)
    body = {"status": "ready" if ready else "not_ready", "timestamp": services().clock.now(), "checks": checks}
    return body, 200 if ready else 503


def _check_store() -> dict[str, str]:
    guard = services().guard
    with deadline_in(_CHECK_SEC, services().clock):
        checks = {"dynamodb": _check(guard.look)}
    # What was found wrong before stands while DynamoDB does not answer.
    if guard.has_clock_reading:
        checks["clock"] = _told(guard.clock_problem())
    if checks["dynamodb"] == _OK or guard.table_problem():
        checks["table"] = _told(guard.table_problem())
    return checks


def _told(problem: str | None) -> str:
    return _OK if problem is None else f"error: {problem}"


def _check(ping: Callable[[], object]) -> str:
    try:
        ping()
    except BrokerError as error:
        return f"error: {error.message}"
    except Exception:  # noqa: BLE001 - a check reports; what it met is for the log, not for whoever asks
        _log.exception("readiness check failed")
        return "error: unexpected"
    return _OK
