"""The JSON shapes of requests and answers, as they go over the wire and as OpenAPI shows them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from marshmallow import Schema, ValidationError, fields, pre_dump, validate, validates_schema

from broker_api.caller import MAX_LENGTH, find_fault
from broker_api.errors import ANSWERED, ERROR_CODES
from broker_common.core.facts import FactKind, PoolFactKind
from broker_common.core.flat import flatten, flatten_claim
from broker_common.core.job_names import Job
from broker_common.core.job_registry import JOBS
from broker_common.core.jobs import JobState
from broker_common.core.principals import Role
from broker_common.core.purge import BULK_DELETABLE
from broker_common.core.sandbox import DeletionReason, Status
from broker_common.core.search import SortField
from broker_common.core.store import PAUSABLE

if TYPE_CHECKING:
    from collections.abc import Mapping
    from enum import Enum

    from broker_common.core.facts import Fact, PoolFact
    from broker_common.core.flat import Flat
    from broker_common.core.jobs import Jobs, JobSpec
    from broker_common.core.sandbox import Claim, Sandbox
    from broker_common.core.store import Pauses

PLAIN = {"minLength": 1, "maxLength": MAX_LENGTH, "pattern": "^[ -~]+$"}
"""OpenAPI's words for 1 to 128 printable ASCII characters."""
_LEASE = "5b7f2ad1-6b6e-4f0e-8a55-0d9a52b3a6f1"
EXAMPLE_REQUEST_ID = "0f3c1f0e-6f0a-4f5e-9a4e-2f1d8d0f6c11"
_JOB_ID = "3f4d9f0a-3f2b-4dd1-9a54-3d1d8d0f6c11"
_NOW = "When this was answered"
_DURATION = "How long it took, in milliseconds"
_STATUS = {"description": "Where it stands in its life"}
_PAUSED = {
    "allocate": "No track is given a sandbox that it does not hold already",
    "sync": "No sync runs",
    "cleanup": "No sandbox is wiped",
    "expire": "The job that ends overdue allocations does not run",
}
_MAX_REASON = 500
_MAX_CURSOR = 2048
_MAX_PAGE = 100
_MAX_FOUND = 1000
SEARCHES = frozenset({"name", "track_name", "sort"})
"""What a listing answers from a copy of the pool, if one of them is given."""
_CONTROLS = r"\x00-\x1f\x7f-\x9f\u2028\u2029"
# Control characters, line separators and lone surrogates: they break logs, terminals and encoders.
_UNFIT_FOR_TEXT = re.compile(rf"[{_CONTROLS}\ud800-\udfff]")
_FIT = f"[^{_CONTROLS}]"
"""The same for OpenAPI, whose strings hold no surrogates; plain classes, which every dialect of patterns has."""


class _StrictInteger(fields.Integer):
    """A number as plain digits: `int` takes signs, blanks, underscores, and the digits of every script."""

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any) -> int:  # noqa: ANN401 - marshmallow's signature
        if not (value.isascii() and value.isdigit()):
            raise self.make_error("invalid", input=value)
        return int(super()._deserialize(value, attr, data, **kwargs) or 0)


class _StrictBoolean(fields.Boolean):
    """A JSON boolean, and nothing that merely looks like one."""

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any) -> bool:  # noqa: ANN401 - marshmallow's signature
        if not isinstance(value, bool):
            raise self.make_error("invalid", input=value)
        return bool(super()._deserialize(value, attr, data, **kwargs))


def _check_plain(text: str) -> None:
    fault = find_fault(text)
    if fault is not None:
        raise ValidationError(fault)


def _check_reason(text: str) -> None:
    if not 0 < len(text) <= _MAX_REASON or not text.strip() or _UNFIT_FOR_TEXT.search(text):
        raise ValidationError(f"Must be 1 to {_MAX_REASON} characters, none of them a control character.")


def _plain(metadata: Mapping[str, Any], *, required: bool = False) -> fields.String:
    return fields.String(required=required, validate=_check_plain, metadata={**PLAIN, **metadata})


def _text(example: str, description: str) -> fields.String:
    return fields.String(required=True, metadata={"example": example, "description": description})


def _optional_text(example: str | None, description: str, *, attribute: str | None = None) -> fields.String:
    metadata = {"example": example, "description": description}
    return fields.String(required=True, allow_none=True, attribute=attribute, metadata=metadata)


def _time(description: str, example: int = 1759574955) -> fields.Integer:
    metadata = {"example": example, "description": f"{description}, in Unix seconds"}
    return fields.Integer(required=True, metadata=metadata)


def _optional_time(description: str, example: int | None = None) -> fields.Integer:
    metadata = {"example": example, "description": f"{description}, in Unix seconds; else null"}
    return fields.Integer(required=True, allow_none=True, metadata=metadata)


def _moment(description: str, example: int) -> fields.Integer:
    """Describe a time that is left out while there is none."""
    return fields.Integer(metadata={"example": example, "description": f"{description} (Unix seconds)"})


def _whole(description: str, example: int = 0) -> fields.Integer:
    return fields.Integer(required=True, metadata={"example": example, "description": description})


def _enum(kind: type[Enum], metadata: Mapping[str, Any], **options: Any) -> fields.Enum[Any]:  # noqa: ANN401 - marshmallow's
    return fields.Enum(kind, by_value=fields.String, metadata=metadata, **options)


def example_of(schema: Schema, **different: Any) -> dict[str, Any]:  # noqa: ANN401 - any JSON
    """Return an object as a schema describes it, made of the examples of its fields, but for those that are given.

    Fields that need not be there are left out where they have no example.
    """
    examples = {
        name: _example_of_field(field)
        for name, field in schema.fields.items()
        if field.required or "example" in field.metadata
    }
    return examples | different


def _example_of_field(field: fields.Field[Any]) -> Any:  # noqa: ANN401 - any JSON
    if isinstance(field, fields.Nested):
        return example_of(field.schema)
    if isinstance(field, fields.List):
        return [_example_of_field(field.inner)]
    return field.metadata["example"]


class _FaultSchema(Schema):
    """What every error tells, in either shape."""

    code = fields.String(
        required=True,
        validate=validate.OneOf(ANSWERED),
        metadata={
            "example": "VALIDATION_ERROR",
            "description": "Stable. Later versions may have others: go by the status then",
        },
    )
    request_id = _text(EXAMPLE_REQUEST_ID, "As in the header `X-Request-ID`")
    retry_after = fields.Integer(metadata={"description": "Seconds, as in the header `Retry-After`"})
    details = fields.Dict(
        keys=fields.String(),
        values=fields.List(fields.String()),
        metadata={"description": "Messages by header, parameter or field"},
    )


class ErrorDetailSchema(_FaultSchema):
    """What went wrong."""

    message = _text("X-Track-ID: Missing: the calling track's id.", "For people; its wording may change")


class ErrorSchema(Schema):
    """The body of every error."""

    error = fields.Nested(ErrorDetailSchema, required=True)


class ProblemSchema(_FaultSchema):
    """The body of every error for callers that prefer RFC 9457's shape."""

    type = _text("/v1/docs#VALIDATION_ERROR", "Leads to what the code means")
    title = _text(ERROR_CODES["VALIDATION_ERROR"].meaning, "What the code means; the same each time")
    status = fields.Integer(required=True, metadata={"example": 400, "description": "The answer's status"})
    detail = _text("X-Track-ID: Missing: the calling track's id.", "For people; its wording may change")
    instance = _text(f"#{EXAMPLE_REQUEST_ID}", "Tells this error from all others; nothing can be read there")


class _AccountSchema(Schema):
    """What every answer tells of a sandbox."""

    sandbox_id = _text("2009521", "The provider's `csp_id` of the account")
    name = _text("lab-adventure-0087", "The provider's name of the account; its id if it has no name")
    external_id = _text("identity/accounts/7d2f0c7e-0000-4000-8000-000000000000", "The provider's `id` of the account")
    sfdc_account_id = _optional_text("0010CBF5B44E795C05", "The provider's, if it told one; else null")
    track_name = _optional_text("intro-to-dns", "From the header `X-Instruqt-Track-ID` of allocate; null without it")


class AllocationSchema(_AccountSchema):
    """What a track is given."""

    @pre_dump
    def _flatten(self, claim: Claim, **_: Any) -> Flat:  # noqa: ANN401 - marshmallow's options
        return flatten_claim(claim)

    lease_id = _text(_LEASE, "New for every allocation; names it in a mark for deletion that may be late")
    allocated_at = _time("When the allocation began")
    expires_at = _time("Until when the track may use it", 1759589355)


class HeldSandboxSchema(_AccountSchema):
    """A sandbox as its holder, or its last one, reads it."""

    @pre_dump
    def _flatten(self, sandbox: Sandbox, **_: Any) -> Flat:  # noqa: ANN401 - marshmallow's options
        return {**flatten(sandbox), "latest_lease_id": sandbox.latest_lease_id}

    lease_id = _optional_text(_LEASE, "The lease that the track holds, or held last", attribute="latest_lease_id")
    allocated_at = _optional_time("When the latest allocation began", 1759574955)
    expires_at = _optional_time("Until when the latest allocation may be used", 1759589355)
    status = _enum(Status, _STATUS | {"example": Status.ALLOCATED.value}, required=True)
    allocated_to_track = _optional_text("track-4711", "The track that holds it; null once its allocation has ended")


class HeldSandboxesSchema(Schema):
    """What the calling track holds."""

    sandboxes = fields.List(fields.Nested(HeldSandboxSchema), required=True)
    count = _whole("How many they are", 1)


class MarkedSchema(Schema):
    """A sandbox given back."""

    @pre_dump
    def _flatten(self, sandbox: Sandbox, **_: Any) -> Flat:  # noqa: ANN401 - marshmallow's options
        return {**flatten(sandbox), "latest_lease_id": sandbox.latest_lease_id}

    sandbox_id = _text("2009521", "As in the path")
    status = _enum(Status, _STATUS | {"example": Status.PENDING_DELETION.value}, required=True)
    lease_id = _optional_text(_LEASE, "The lease that the track held", attribute="latest_lease_id")
    deletion_requested_at = _optional_time("When the allocation was ended", 1759580000)


class SandboxSchema(HeldSandboxSchema):
    """A sandbox as an operator reads it: every field, and `lease_id` only while it is allocated."""

    lease_id = _optional_text(_LEASE, "The lease that its track holds; else null")
    idempotency_key = _optional_text("track-4711", "Of the present allocation; else null")
    dirty = fields.Boolean(
        required=True, metadata={"example": True, "description": "Was allocated and has not been wiped since"}
    )
    deletion_requested_at = _optional_time("When it was sent to be wiped")
    deletion_reason = _enum(
        DeletionReason,
        {"description": "Why it was sent to be wiped, or put aside; else null", "example": None},
        required=True,
        allow_none=True,
    )
    deletion_retry_count = _whole("Failed attempts to wipe it since it was last sent to be")
    deletion_last_error = _optional_text(None, "Why the latest attempt failed, or why it was put aside; else null")
    next_attempt_at = _optional_time("When it may next be tried to wipe it")
    ready_at = _optional_time("Until when it rests after its wipe")
    quarantine_reason = _optional_text(None, "Why it is set aside once it is wiped; else null")
    last_synced = _optional_time("When a sync last saw it", 1759574955)
    stale_since = _optional_time("Since when it is stale")
    last_track_id = _optional_text(None, "The track of its latest ended allocation; else null")
    last_lease_id = _optional_text(None, "The lease of its latest ended allocation; else null")
    created_at = _time("When the broker first saw it", 1759500000)
    updated_at = _time("When the record last changed")
    version = _whole("Grows with every change of the record", 7)


class UnreadableSchema(Schema):
    """A sandbox whose record cannot be read."""

    sandbox_id = _text("2009521", "The sandbox's id")
    reason = _text("expires_at is missing", "What is wrong with the record")


class SandboxPageSchema(Schema):
    """A page of sandboxes."""

    sandboxes = fields.List(fields.Nested(SandboxSchema), required=True)
    count = _whole("How many are in `sandboxes`", 1)
    unreadable = fields.List(
        fields.Nested(UnreadableSchema),
        required=True,
        metadata={"example": [], "description": "Those that belong on this page, and whose record cannot be read"},
    )
    cursor = _optional_text(None, "Reads the next page; null on the last one")
    total = fields.Integer(
        metadata={"description": "With `name`, `track_name` or `sort`: how many were found on all pages"}
    )
    snapshot_age_sec = fields.Float(
        metadata={
            "description": "With `name`, `track_name` or `sort`: how old the copy is that was searched, at most 5"
        }
    )


class SandboxQuerySchema(Schema):
    """Which sandboxes to list, and in which order."""

    @validates_schema
    def _check_limit(self, values: dict[str, Any], **_: Any) -> None:  # noqa: ANN401 - marshmallow's options
        if values["limit"] > _MAX_PAGE and not SEARCHES & values.keys():
            raise ValidationError(
                f"Must be at most {_MAX_PAGE} without {', '.join(sorted(SEARCHES))}.", field_name="limit"
            )

    status = _enum(Status, {"description": "Only sandboxes of this status"})
    track_id = _plain({"description": "Only sandboxes that this track holds"})
    name = _plain({"description": "Only sandboxes with this in their name, in capitals or small letters"})
    track_name = _plain({"description": "Only sandboxes whose latest lease is this lab's"})
    sort = fields.String(
        validate=validate.OneOf([sign + field.value for field in SortField for sign in ("", "-")]),
        metadata={"description": "The field to sort by; with `-` in front, the greatest comes first"},
    )
    limit = _StrictInteger(
        load_default=50,
        validate=validate.Range(min=1, max=_MAX_FOUND),
        metadata={
            "description": f"How many sandboxes a page has at most: 1 to {_MAX_PAGE}; with `name`, `track_name` or"
            f" `sort` up to {_MAX_FOUND:,}"
        },
    )
    cursor = fields.String(
        validate=validate.Length(min=1, max=_MAX_CURSOR),
        metadata={"description": "That of the page before, asked for with the same filters and order"},
    )


class StatsSchema(Schema):
    """How many sandboxes are in which status. Tombstones are out of the pool, not counted."""

    available = _whole("May be allocated", 42)
    allocated = _whole("Held by a track", 7)
    pending_deletion = _whole("Wait for the provider to wipe them, or rest after their wipe", 1)
    stale = _whole("Out of service until a sync sees them")
    deletion_failed = _whole("Need a person")
    total = _whole("All of these", 50)
    oldest_pending_deletion_at = _optional_time(
        "Since when the sandbox waits that has waited longest to be wiped", 1759580000
    )
    last_sync_at = _optional_time("When a sync last succeeded", 1759574955)


class MarkInputSchema(Schema):
    """Which lease a mark is meant for."""

    lease_id = _plain(
        {"example": _LEASE, "description": "That of the allocation to end; the one that is first read if left out"}
    )


class ReleaseInputSchema(Schema):
    """Which lease to end."""

    lease_id = _plain({"example": _LEASE, "description": "That of the allocation to end"}, required=True)


class QuarantineInputSchema(Schema):
    """Why a sandbox is put aside."""

    reason = fields.String(
        required=True,
        validate=_check_reason,
        metadata={
            "minLength": 1,
            "maxLength": _MAX_REASON,
            "pattern": f"^{_FIT}*[^\\s{_CONTROLS}]{_FIT}*$",
            "example": "a student reported that it is slow",
            "description": "Kept as `deletion_last_error`; not blank, and without control characters",
        },
    )


class FactSchema(Schema):
    """What happened to a sandbox, or to the pool."""

    kind = _text("sandbox.allocated", "What happened")
    at = _time("When it happened")
    principal = _text("track", "Who did it: a token's name, or `job:` and a job's name")
    request_id = _optional_text("0f3c1f0e-6f0a-4f5e-9a4e-2f1d8d0f6c11", "The request, or the run of a job")
    sandbox_id = _optional_text("2009521", "The sandbox; null for a fact of the pool")
    version = fields.Integer(
        required=True,
        allow_none=True,
        metadata={
            "example": 1759574955000,
            "description": "The sandbox's version since then; with sandbox and kind"
            " it names the fact. Null for a fact of the pool",
        },
    )
    fact_id = _optional_text(None, "Names a fact of the pool; null for one of a sandbox")
    track_id = _optional_text("track-4711", "The track that held it, or held it last")
    lease_id = _optional_text(_LEASE, "The lease of that track")
    status = _enum(
        Status,
        {"example": "allocated", "description": "The status since then; null: removed"},
        required=True,
        allow_none=True,
    )
    status_before = _enum(
        Status,
        {"example": "available", "description": "The status before; null: there was no record"},
        required=True,
        allow_none=True,
    )
    details = fields.Dict(keys=fields.String(), required=True, metadata={"example": {}, "description": "More, by kind"})

    @pre_dump
    def _complete(self, fact: Fact | PoolFact, **_: Any) -> dict[str, Any]:  # noqa: ANN401 - marshmallow's options
        return {name: getattr(fact, name, None) for name in self.fields}


class FactQuerySchema(Schema):
    """Which part of a history to read."""

    limit = _StrictInteger(
        load_default=50,
        validate=validate.Range(min=1, max=100),
        metadata={"description": "How many facts a page has at most: 1 to 100"},
    )
    cursor = fields.String(
        validate=validate.Length(min=1, max=_MAX_CURSOR), metadata={"description": "That of the page before"}
    )


class FactPageSchema(Schema):
    """A page of a sandbox's facts, newest first."""

    facts = fields.List(fields.Nested(FactSchema), required=True)
    count = _whole("How many are in `facts`", 1)
    cursor = _optional_text(None, "Reads the next page; null on the last one")


class FeedQuerySchema(Schema):
    """Which facts to read."""

    after = fields.String(
        validate=validate.Length(min=1, max=_MAX_CURSOR),
        metadata={"description": "The last `cursor` read; without it, the oldest fact that is kept comes first"},
    )
    since = _StrictInteger(
        validate=validate.Range(min=0, max=2**40),
        metadata={"description": "Where to begin without `after`, in Unix seconds"},
    )
    kind = fields.String(
        validate=validate.OneOf([kind.value for kind in (*FactKind, *PoolFactKind)]),
        metadata={"description": "Only facts of this kind"},
    )
    track_id = _plain({"description": "Only facts of this track's leases"})
    limit = _StrictInteger(
        load_default=100,
        validate=validate.Range(min=1, max=1000),
        metadata={"description": "How many facts are looked at: 1 to 1,000"},
    )


class FeedSchema(Schema):
    """A page of the feed."""

    events = fields.List(fields.Nested(FactSchema), required=True)
    count = _whole("How many are in `events`", 1)
    cursor = _text("f1759574835", "Reads on, as `after`")
    is_last = fields.Boolean(
        required=True,
        metadata={"example": True, "description": "Nothing came after these facts when they were read"},
    )


class BulkDeleteQuerySchema(Schema):
    """Which records to remove."""

    status = fields.String(
        required=True,
        validate=validate.OneOf([status.value for status in BULK_DELETABLE]),
        metadata={"description": "The status whose records are removed"},
    )


class BulkDeletedSchema(Schema):
    """What a bulk delete did."""

    deleted = _whole("Records removed", 3)
    duration_ms = _whole(_DURATION, 41)


class BulkRetriedSchema(Schema):
    """What a bulk retry did."""

    retried = _whole("Sandboxes sent to be wiped", 3)
    duration_ms = _whole(_DURATION, 41)


class WhoAmISchema(Schema):
    """Who makes the call."""

    principal = _text("anna", "The name of the token: what the broker logs of each call")
    roles = fields.List(
        _enum(Role, {"example": Role.OPERATOR.value, "description": "Each call says which one it needs"}),
        required=True,
        metadata={"description": "What it may do"},
    )
    customer = _optional_text(None, "The customer that it belongs to; null if to none")


class PauseSchema(Schema):
    """By whom an operation is paused, and since when."""

    operation = _text("allocate", "What is paused")
    by = _optional_text("ops-anna", "Who paused it; null if a release before this one did")
    since = _optional_time("Since when", 1759574955)


class PausesSchema(Schema):
    """Which operations are paused, and by whom."""

    @pre_dump
    def _flatten(self, pauses: Pauses, **_: Any) -> dict[str, Any]:  # noqa: ANN401 - marshmallow's options
        found = {name: getattr(pauses, name) for name in PAUSABLE}
        paused = [{"operation": name, "by": each.by, "since": each.since} for name, each in found.items() if each]
        return {**{name: each is not None for name, each in found.items()}, "paused": paused}

    allocate = fields.Boolean(required=True, metadata={"example": True, "description": _PAUSED["allocate"]})
    sync = fields.Boolean(required=True, metadata={"example": False, "description": _PAUSED["sync"]})
    cleanup = fields.Boolean(required=True, metadata={"example": False, "description": _PAUSED["cleanup"]})
    expire = fields.Boolean(required=True, metadata={"example": False, "description": _PAUSED["expire"]})
    paused = fields.List(
        fields.Nested(PauseSchema), required=True, metadata={"description": "What is paused, by whom, since when"}
    )


class PausesInputSchema(Schema):
    """Which operations to pause (true) or resume (false); the others stay as they are."""

    allocate = _StrictBoolean(metadata={"example": True, "description": _PAUSED["allocate"]})
    sync = _StrictBoolean(metadata={"description": _PAUSED["sync"]})
    cleanup = _StrictBoolean(metadata={"description": _PAUSED["cleanup"]})
    expire = _StrictBoolean(metadata={"description": _PAUSED["expire"]})


def flags_schema(job: JobSpec) -> type[Schema]:
    """Return the schema of what an operator may ask of a job's run."""
    flags: dict[str, fields.Field[Any]] = {
        flag.name: _StrictBoolean(load_default=False, metadata={"example": False, "description": flag.description})
        for flag in job.flags
    }
    return Schema.from_dict(flags, name=f"{job.name.title().replace('_', '')}InputSchema")


class JobAcceptedSchema(Schema):
    """A run that was asked for."""

    job_id = _text(_JOB_ID, "The run's id")
    status_url = _text(f"/v1/admin/jobs/{_JOB_ID}", "Where to read how it goes")


class JobRunSchema(Schema):
    """A run of a job; the members that do not apply are left out."""

    job_id = _text(_JOB_ID, "The run's id")
    job = fields.String(
        required=True,
        validate=validate.OneOf(list(JOBS)),
        metadata={"example": Job.SYNC.value, "description": "The job's name"},
    )
    state = _enum(
        JobState,
        {
            "example": JobState.SUCCEEDED.value,
            "description": "`succeeded`, `failed` and `skipped` (it was paused, or ran already) are final",
        },
        required=True,
    )
    principal = _text("admin", "Who asked for it; `job:` and the job's name if the schedule started it")
    requested_by = fields.String(
        metadata={
            "example": "0f3c1f0e-6f0a-4f5e-9a4e-2f1d8d0f6c11",
            "description": "The request id of the call that asked for it; not there if the schedule started it",
        }
    )
    queued_at = _moment("When it was asked for; not there if the schedule started it", 1759574953)
    started_at = _moment("When it began", 1759574954)
    ended_at = _moment("When it ended", 1759574955)
    result = fields.Dict(
        keys=fields.String(), metadata={"description": "What it did, counted; each job counts something else"}
    )
    error = fields.String(metadata={"description": "Why it failed or was skipped"})


class JobRunsSchema(Schema):
    """The last runs of jobs, newest first."""

    runs = fields.List(fields.Nested(JobRunSchema), required=True)
    count = _whole("How many they are", 1)


def job_runs_query_schema(jobs: Jobs) -> type[Schema]:
    """Return the schema that says which runs of these jobs to list."""
    return Schema.from_dict(
        {
            "job": fields.String(
                validate=validate.OneOf(list(jobs)), metadata={"description": "Only runs of the job of this name"}
            ),
            "limit": _StrictInteger(
                load_default=20,
                validate=validate.Range(min=1, max=100),
                metadata={"description": "How many runs to list at most: 1 to 100"},
            ),
        },
        name="JobRunsQuerySchema",
    )


class HealthSchema(Schema):
    """The process runs."""

    status = fields.String(
        required=True,
        validate=validate.OneOf(["healthy"]),
        metadata={"example": "healthy", "description": "Always the same"},
    )
    timestamp = _time(_NOW)


class ReadinessSchema(Schema):
    """Whether the process should be sent requests, and why not."""

    status = fields.String(
        required=True,
        validate=validate.OneOf(["ready", "not_ready"]),
        metadata={"example": "ready", "description": "`ready` if every check but that of Redis is ok"},
    )
    timestamp = _time(_NOW)
    checks = fields.Dict(
        keys=fields.String(),
        values=fields.String(),
        required=True,
        metadata={
            "example": {"dynamodb": "ok", "clock": "ok", "redis": "ok"},
            "description": "By what was looked at: `ok`, or `error: ` and why",
        },
    )
