"""The health checks: whether the process runs, and whether it can serve requests."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from broker_api.blueprint import Blueprint
from broker_api.runtime import runtime, services
from broker_api.schemas.health import HealthSchema, ReadinessSchema
from broker_api.schemas.parts import example_of
from broker_common.core.deadline import deadline_in
from broker_common.core.errors import BrokerError

if TYPE_CHECKING:
    from collections.abc import Callable

blueprint = Blueprint("health", __name__)

_CHECK_SEC = 1.5
_OK = "ok"

_log = logging.getLogger(__name__)


@blueprint.route("/healthz", methods=["GET"], role=None)
@blueprint.doc(operationId="healthz")
@blueprint.response(200, HealthSchema, description="The process runs")
def healthz() -> dict[str, Any]:
    """Check that the process runs."""
    return {"status": "healthy", "timestamp": services().clock.now()}


@blueprint.route("/readyz", methods=["GET"], role=None)
@blueprint.doc(operationId="readyz")
@blueprint.response(200, ReadinessSchema, description="Ready: send requests")
@blueprint.alt_response(
    503,
    schema=ReadinessSchema,
    description="Not ready: send no requests now",
    example=example_of(
        ReadinessSchema(), status="not_ready", checks={"dynamodb": "error: DynamoDB does not answer", "redis": "ok"}
    ),
)
def readyz() -> tuple[dict[str, Any], int]:
    """Check whether the process can serve tracks."""
    checks: dict[str, str] = {}
    if runtime().draining:
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
    # A problem that was found before stays while DynamoDB does not answer.
    if guard.has_clock_reading:
        checks["clock"] = _outcome(guard.clock_problem())
    if checks["dynamodb"] == _OK or guard.table_problem():
        checks["table"] = _outcome(guard.table_problem())
    return checks


def _outcome(problem: str | None) -> str:
    return _OK if problem is None else f"error: {problem}"


def _check(ping: Callable[[], object]) -> str:
    try:
        ping()
    except BrokerError as error:
        return f"error: {error.message}"
    except Exception:  # noqa: BLE001 - the caller learns that the check failed, and the log says why
        _log.exception("readiness check failed")
        return "error: unexpected"
    return _OK
