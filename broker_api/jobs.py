"""The calls that start a job and follow its run. They need Redis, and do not need the store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flask import jsonify

from broker_api.auth import actor
from broker_api.blueprint import Blueprint, refuse_surplus, require_plain
from broker_api.links import TO_RUN
from broker_api.openapi import JOB_ID, answered_with
from broker_api.preferences import preferred_wait, wait_applied
from broker_api.runtime import runtime, services
from broker_api.schemas.jobs import JobAcceptedSchema, JobRunSchema, JobRunsSchema, flags_schema, job_runs_query_schema
from broker_api.schemas.parts import example_of
from broker_common.core.errors import JobNotFound, QueueUnavailable
from broker_common.core.job_registry import JOBS
from broker_common.core.principals import Role

if TYPE_CHECKING:
    from collections.abc import Mapping

    from broker_common.core.jobs import Jobs, JobSpec
    from broker_common.core.runs import JobRun

_POLL_SEC = 0.2

_RUN = JobRunSchema()


def make_blueprint(jobs: Jobs) -> Blueprint:
    """Return the calls that start each of these `jobs`, and the calls that follow their runs."""
    blueprint = Blueprint("jobs", __name__)
    blueprint.before_request(refuse_surplus)
    for job in jobs.values():
        _add_start(blueprint, job)

    @blueprint.route("/jobs", methods=["GET"], role=Role.VIEWER)
    @blueprint.doc(operationId="adminListJobs", errors=("QUEUE_UNAVAILABLE",))
    @blueprint.arguments(job_runs_query_schema(jobs)(), location="query")
    @blueprint.response(200, JobRunsSchema, description="The last runs, newest first")
    def read_last(query: dict[str, Any]) -> dict[str, Any]:
        """List the last runs of one job, or of all jobs, newest first."""
        runs = services().queue.read_last(query.get("job"), limit=query["limit"])
        return {"runs": [shown_run(run) for run in runs], "count": len(runs)}

    @blueprint.route("/jobs/<job_id>", methods=["GET"], role=Role.VIEWER, parameters=[JOB_ID])
    @blueprint.doc(operationId="adminReadJob", errors=("JOB_NOT_FOUND", "QUEUE_UNAVAILABLE"))
    @blueprint.response(200, JobRunSchema, description="The run as it is now", example=_example(jobs))
    def read(job_id: str) -> dict[str, Any]:
        """Read the state and the result of a run."""
        require_plain("job_id", job_id)
        return shown_run(services().queue.find(job_id))

    return blueprint


def _add_start(blueprint: Blueprint, job: JobSpec) -> None:
    """Add the call that starts `job` and may wait for its end."""

    def start(flags: Mapping[str, bool] | None = None) -> Any:  # noqa: ANN401 - a JSON body, its status and headers
        return _start(job, flags or {})

    start.__name__, start.__doc__ = job.name, f"{job.summary}\n\n{job.description}"
    applied = answered_with("Preference-Applied")
    view: Any = start
    for declare in (
        blueprint.alt_response(
            200,
            schema=JobRunSchema,
            description="The run, which ended while the call waited",
            example=example_of(_RUN, job=job.name, result=job.example),
            headers=applied,
            success=True,
        ),
        blueprint.response(
            202, JobAcceptedSchema, description="The run was asked for. Read its state at `status_url`", headers=applied
        ),
        blueprint.doc(
            operationId=f"admin{job.name.title().replace('_', '')}",
            parameters=["prefer"],
            errors=("QUEUE_UNAVAILABLE",),
            responses={status: {"links": TO_RUN} for status in (200, 202)},
        ),
        *([blueprint.arguments(flags_schema(job)(), required=False)] if job.flags else []),
        blueprint.route(f"/{job.path}", methods=["POST"], role=Role.OPERATOR),
    ):
        view = declare(view)


def _example(jobs: Jobs) -> dict[str, Any]:
    job = next(iter(jobs.values()))
    return example_of(_RUN, job=job.name, result=job.example)


def _start(job: JobSpec, flags: Mapping[str, bool]) -> tuple[Any, int, dict[str, str]]:
    seconds = preferred_wait()
    job_id = services().queue.enqueue(job.name, by=actor(), flags=flags)
    accepted = {"job_id": job_id, "status_url": f"{runtime().settings.api_base_path}/admin/jobs/{job_id}"}
    if seconds is None:
        return accepted, 202, {}
    job_waits = runtime().job_waits
    if not job_waits.acquire(blocking=False):
        return accepted, 202, {}
    try:
        run = _await_end(job_id, seconds)
    finally:
        job_waits.release()
    applied = wait_applied(seconds)
    if run is None:
        return accepted, 202, applied
    return jsonify(_RUN.dump(shown_run(run))), 200, applied


def _await_end(job_id: str, seconds: int) -> JobRun | None:
    """Return the run once it has ended.

    Returns None after `seconds`, when Redis does not answer, or when this process must stop.
    """
    clock, queue, shared = services().clock, services().queue, runtime()
    until = clock.monotonic() + seconds
    while True:
        try:
            run = queue.find(job_id)
        except JobNotFound:
            # The queue has the run already, and its record is written a little later.
            pass
        except QueueUnavailable:
            return None
        else:
            if run.state.is_final:
                return run
        left = until - clock.monotonic()
        if left <= 0 or shared.draining:
            return None
        clock.sleep(min(_POLL_SEC, left))


def shown_run(run: JobRun) -> dict[str, Any]:
    """Return the fields of a run that an operator sees."""
    moments = {"queued_at": run.queued_at, "started_at": run.started_at, "ended_at": run.ended_at}
    shown = {
        "job_id": run.job_id,
        "job": run.job,
        "state": run.state,
        "principal": run.principal,
        "requested_by": run.requested_by,
        **{name: None if moment is None else int(moment) for name, moment in moments.items()},
        "result": run.result,
        "error": run.error,
    }
    return {name: value for name, value in shown.items() if value is not None}


blueprint = make_blueprint(JOBS)
