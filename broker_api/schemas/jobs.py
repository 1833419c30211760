"""The bodies and queries of the calls that start jobs and follow their runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from marshmallow import Schema, fields, validate

from broker_api.schemas.parts import (
    JOB_ID,
    REQUEST_ID,
    StrictBoolean,
    StrictInteger,
    enum_field,
    number_field,
    omitted_time_field,
    text_field,
)
from broker_common.core.job_names import Job
from broker_common.core.job_registry import JOBS
from broker_common.core.jobs import JobState

if TYPE_CHECKING:
    from broker_common.core.jobs import Jobs, JobSpec


def flags_schema(job: JobSpec) -> type[Schema]:
    """Return the schema of the flags that an operator may set for a run of `job`."""
    flags: dict[str, fields.Field[Any]] = {
        flag.name: StrictBoolean(load_default=False, metadata={"example": False, "description": flag.description})
        for flag in job.flags
    }
    return Schema.from_dict(flags, name=f"{job.name.title().replace('_', '')}InputSchema")


def job_runs_query_schema(jobs: Jobs) -> type[Schema]:
    """Return the schema of the query that says which runs of these `jobs` to list."""
    return Schema.from_dict(
        {
            "job": fields.String(
                validate=validate.OneOf(list(jobs)), metadata={"description": "Only runs of the job of this name"}
            ),
            "limit": StrictInteger(
                load_default=20,
                validate=validate.Range(min=1, max=100),
                metadata={"description": "How many runs to list at most: 1 to 100"},
            ),
        },
        name="JobRunsQuerySchema",
    )


class JobAcceptedSchema(Schema):
    """A run that was asked for."""

    job_id = text_field(JOB_ID, "The run's id")
    status_url = text_field(f"/v1/admin/jobs/{JOB_ID}", "Where to read the run's state")


class JobRunSchema(Schema):
    """A run of a job. Fields that do not apply are left out."""

    job_id = text_field(JOB_ID, "The run's id")
    job = fields.String(
        required=True,
        validate=validate.OneOf(list(JOBS)),
        metadata={"example": Job.SYNC.value, "description": "The job's name"},
    )
    state = enum_field(
        JobState,
        {
            "example": JobState.SUCCEEDED.value,
            "description": "`succeeded`, `failed` and `skipped` are final. A run is skipped while its job is paused, or"
            " runs already",
        },
        required=True,
    )
    principal = text_field("admin", "Who asked for it; `job:` and the job's name if the schedule started it")
    requested_by = fields.String(
        metadata={
            "example": REQUEST_ID,
            "description": "The request id of the call that asked for it; left out if the schedule started it",
        }
    )
    queued_at = omitted_time_field("When it was asked for; left out if the schedule started it", 1759574953)
    started_at = omitted_time_field("When it began", 1759574954)
    ended_at = omitted_time_field("When it ended", 1759574955)
    result = fields.Dict(
        keys=fields.String(), metadata={"description": "Counts of what it did; each job counts something else"}
    )
    error = fields.String(metadata={"description": "Why it failed or was skipped"})


class JobRunsSchema(Schema):
    """The last runs of jobs, newest first."""

    runs = fields.List(fields.Nested(JobRunSchema), required=True)
    count = number_field("How many are in `runs`", 1)
