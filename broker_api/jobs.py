"""The calls by which an operator starts a job and follows its run. They need Redis, and no store."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from flask import jsonify, request
from werkzeug.http import parse_list_header, unquote_header_value

from broker_api.blueprint import Blueprint, refuse_surplus, require_plain
from broker_api.openapi import JOB_ID, answered_with, leads_to
from broker_api.runtime import runtime, services
from broker_api.schemas import JobAcceptedSchema, JobRunSchema, SyncInputSchema, example_of
from broker_api.tracing import request_id
from broker_common.core.errors import JobNotFound, QueueUnavailable
from broker_common.core.expiry import ExpiryResult
from broker_common.core.jobs import Job, JobRun
from broker_common.core.principals import Role
from broker_common.core.purge import PurgeResult
from broker_common.core.runs import CleanupTally
from broker_common.core.sync import SyncResult
from broker_common.core.telemetry import DeleteOutcome

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

blueprint = Blueprint("jobs", __name__, description="Starting jobs and following their runs")
blueprint.before_request(refuse_surplus)

MAX_WAIT_SEC = 30
_POLL_SEC = 0.2

_RUN = JobRunSchema()
_SYNCED = asdict(
    SyncResult(
        synced=50,
        added=2,
        updated=1,
        restored=0,
        contradicted=0,
        stale=1,
        removed=0,
        skipped=0,
        refused=0,
        tombstones_listed=0,
        overtaken=0,
        failed=0,
        missing=1,
        judged=42,
    )
)
_STARTED = {"links": leads_to("adminReadJob", {"job_id": "$response.body#/job_id"})}


def _starts(job: Job, result: Mapping[str, Any] | None) -> Callable[[Any], Any]:
    """Describe a call that starts a job and may wait for its end, with a result as that job has it."""

    def describe(view: Any) -> Any:  # noqa: ANN401 - flask-smorest's views
        applied = answered_with("Preference-Applied")
        for declare in (
            blueprint.alt_response(
                200,
                schema=JobRunSchema,
                description="The run, which ended while the call waited",
                example=example_of(_RUN, job=job.value, result=result),
                headers=applied,
                success=True,
            ),
            blueprint.response(
                202, JobAcceptedSchema, description="Asked for; `status_url` tells how it goes", headers=applied
            ),
            blueprint.doc(
                parameters=["prefer"],
                errors=("QUEUE_UNAVAILABLE",),
                responses={200: _STARTED, 202: _STARTED},
            ),
        ):
            view = declare(view)
        return view

    return describe


@blueprint.route("/sync", methods=["POST"], role=Role.OPERATOR)
@blueprint.doc(operationId="adminSync")
@blueprint.arguments(SyncInputSchema(), required=False)
@_starts(Job.SYNC, _SYNCED)
def sync(body: dict[str, bool]) -> Any:  # noqa: ANN401 - a JSON body, its status and headers
    """Read the provider's accounts into the pool.

    New accounts become available, available sandboxes that are missing become stale. Where more are missing than seems
    likely, none becomes stale and the run fails, unless it is forced.
    """
    return _start(Job.SYNC, force=body["force"])


@blueprint.route("/cleanup", methods=["POST"], role=Role.OPERATOR)
@blueprint.doc(operationId="adminCleanup")
@_starts(Job.CLEANUP, CleanupTally(counts={DeleteOutcome.DELETED: 3, DeleteOutcome.WILL_RETRY: 1}).conclude().result)
def cleanup() -> Any:  # noqa: ANN401 - the same
    """Have the sandboxes that are due wiped by the provider.

    Each is handed to a worker; the run ends with the last of them.
    """
    return _start(Job.CLEANUP)


@blueprint.route("/expire", methods=["POST"], role=Role.OPERATOR)
@blueprint.doc(operationId="adminExpire")
@_starts(Job.EXPIRE, asdict(ExpiryResult(expired=2, failed=0)))
def expire() -> Any:  # noqa: ANN401 - the same
    """End the allocations that are past their time.

    That is `expires_at` and the buffer after it; their sandboxes go to be wiped.
    """
    return _start(Job.EXPIRE)


@blueprint.route("/purge-stale", methods=["POST"], role=Role.OPERATOR)
@blueprint.doc(operationId="adminPurgeStale")
@_starts(Job.PURGE_STALE, asdict(PurgeResult(removed=4, failed=0)))
def purge_stale() -> Any:  # noqa: ANN401 - the same
    """Remove the records that have been stale for too long.

    Of a dirty sandbox a tombstone is left, so that no sync takes it for a new one.
    """
    return _start(Job.PURGE_STALE)


@blueprint.route("/jobs/<job_id>", methods=["GET"], role=Role.VIEWER, parameters=[JOB_ID])
@blueprint.doc(
    operationId="adminReadJob",
    errors=("JOB_NOT_FOUND", "QUEUE_UNAVAILABLE"),
)
@blueprint.response(200, JobRunSchema, description="The run as it stands", example=example_of(_RUN, result=_SYNCED))
def read(job_id: str) -> dict[str, Any]:
    """Tell how a run of a job goes, or went.

    A run is kept for 24 hours after its end; those that the schedule started are found here, too.
    """
    require_plain("job_id", job_id)
    return _shown(services().queue.find(job_id))


def _start(job: Job, *, force: bool = False) -> tuple[Any, int, dict[str, str]]:
    job_id = services().queue.enqueue(job, request_id=request_id(), force=force)
    accepted = {"job_id": job_id, "status_url": f"{runtime().settings.api_base_path}/admin/jobs/{job_id}"}
    seconds = preferred_wait(request.environ.get("HTTP_PREFER", ""))
    if seconds is None:
        return accepted, 202, {}
    with runtime().threads.waiting() as may_wait:
        if not may_wait:
            return accepted, 202, {}
        run = _await_end(job_id, seconds)
    applied = {"Preference-Applied": f"wait={seconds}"}
    if run is None:
        return accepted, 202, applied
    return jsonify(_RUN.dump(_shown(run))), 200, applied


def _await_end(job_id: str, seconds: int) -> JobRun | None:
    """Return the run once it has ended; None if it has not in time, cannot be seen, or this process must stop."""
    clock, queue, draining = services().clock, services().queue, runtime().draining
    until = clock.monotonic() + seconds
    while True:
        try:
            run = queue.find(job_id)
        except JobNotFound:
            # Not written down yet: the queue took it in before.
            pass
        except QueueUnavailable:
            return None
        else:
            if run.state.is_final:
                return run
        left = until - clock.monotonic()
        if left <= 0 or draining.is_set():
            return None
        clock.sleep(min(_POLL_SEC, left))


def preferred_wait(header: str) -> int | None:
    """Return the seconds that a caller prefers to wait for, at most 30; None if it does not say so intelligibly.

    Source: RFC 7240, sections 2 and 4.3. The first of several preferences of one name counts; malformed ones are
    ignored.
    """
    for preference in parse_list_header(header):
        name, _, value = preference.partition(";")[0].partition("=")
        if name.strip().lower() == "wait":
            value = unquote_header_value(value.strip())
            return min(int(value), MAX_WAIT_SEC) if value.isascii() and value.isdigit() else None
    return None


def _shown(run: JobRun) -> dict[str, Any]:
    shown = {"job_id": run.job_id, "job": run.job, "state": run.state, "result": run.result, "error": run.error}
    return {name: value for name, value in shown.items() if value is not None}
