"""The JSON shapes of requests and answers, as they go over the wire and as OpenAPI shows them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from marshmallow import Schema, ValidationError, fields, validate

from broker_api.caller import MAX_LENGTH, find_fault
from broker_common.core.domain import DeletionReason, Status
from broker_common.core.jobs import Job, JobState
from broker_common.core.purge import BULK_DELETABLE

if TYPE_CHECKING:
    from collections.abc import Mapping

PLAIN = {"minLength": 1, "maxLength": MAX_LENGTH, "pattern": "^[ -~]+$"}
"""OpenAPI's words for 1 to 128 printable ASCII characters."""
_MAX_REASON = 500
_MAX_CURSOR = 2048
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


def _plain(*, required: bool = False) -> fields.String:
    return fields.String(required=required, validate=_check_plain, metadata=PLAIN)


def _text(example: str) -> fields.String:
    return fields.String(required=True, metadata={"example": example})


def _optional_text(example: str | None) -> fields.String:
    return fields.String(required=True, allow_none=True, metadata={"example": example})


def _time(example: int = 1759574955) -> fields.Integer:
    return fields.Integer(required=True, metadata={"example": example, "description": "Unix seconds"})


def _optional_time(example: int | None = None) -> fields.Integer:
    return fields.Integer(
        required=True, allow_none=True, metadata={"example": example, "description": "Unix seconds, or null"}
    )


def _whole(example: int = 0) -> fields.Integer:
    return fields.Integer(required=True, metadata={"example": example})


class ErrorDetailSchema(Schema):
    """What went wrong."""

    code = _text("VALIDATION_ERROR")
    message = _text("X-Track-ID: Missing: the calling track's id.")
    request_id = _text("0f3c1f0e-6f0a-4f5e-9a4e-2f1d8d0f6c11")
    retry_after = fields.Integer(metadata={"description": "Seconds, as in the header Retry-After"})
    details = fields.Dict(
        keys=fields.String(),
        values=fields.List(fields.String()),
        metadata={"description": "Messages by header, parameter or field"},
    )


class ErrorSchema(Schema):
    """The body of every error."""

    error = fields.Nested(ErrorDetailSchema, required=True)


class AllocationSchema(Schema):
    """What a track is given."""

    sandbox_id = _text("2009521")
    name = _text("lab-adventure-0087")
    external_id = _text("identity/accounts/7d2f0c7e-0000-4000-8000-000000000000")
    lease_id = _text("5b7f2ad1-6b6e-4f0e-8a55-0d9a52b3a6f1")
    allocated_at = _time()
    expires_at = _time(1759589355)
    track_name = _optional_text("intro-to-dns")
    sfdc_account_id = _optional_text(None)


class HeldSandboxSchema(Schema):
    """A sandbox as its holder, or its last one, reads it; `lease_id` is the track's own lease."""

    sandbox_id = _text("2009521")
    name = _text("lab-adventure-0087")
    external_id = _text("identity/accounts/7d2f0c7e-0000-4000-8000-000000000000")
    lease_id = fields.String(required=True, attribute="lease_at_hand", allow_none=True)
    allocated_at = _optional_time(1759574955)
    expires_at = _optional_time(1759589355)
    track_name = _optional_text("intro-to-dns")
    sfdc_account_id = _optional_text(None)
    status = fields.Enum(Status, by_value=True, required=True, metadata={"example": Status.ALLOCATED.value})
    allocated_to_track = _optional_text("track-4711")


class HeldSandboxesSchema(Schema):
    """What the calling track holds."""

    sandboxes = fields.List(fields.Nested(HeldSandboxSchema), required=True)
    count = _whole(1)


class MarkedSchema(Schema):
    """A sandbox given back."""

    sandbox_id = _text("2009521")
    status = fields.Enum(Status, by_value=True, required=True, metadata={"example": Status.PENDING_DELETION.value})
    lease_id = fields.String(required=True, attribute="lease_at_hand", allow_none=True)
    deletion_requested_at = _optional_time(1759580000)


class SandboxSchema(HeldSandboxSchema):
    """A sandbox as an operator reads it: every field, and `lease_id` only while it is allocated."""

    lease_id = _optional_text("5b7f2ad1-6b6e-4f0e-8a55-0d9a52b3a6f1")
    idempotency_key = _optional_text("track-4711")
    dirty = fields.Boolean(required=True)
    deletion_requested_at = _optional_time()
    deletion_reason = fields.Enum(DeletionReason, by_value=True, required=True, allow_none=True)
    deletion_retry_count = _whole()
    deletion_last_error = _optional_text(None)
    next_attempt_at = _optional_time()
    last_synced = _optional_time(1759574955)
    stale_since = _optional_time()
    last_track_id = _optional_text(None)
    last_lease_id = _optional_text(None)
    created_at = _time()
    updated_at = _time()
    version = _whole(7)


class SandboxPageSchema(Schema):
    """A page of sandboxes; the next one is read with `cursor`, which is null on the last."""

    sandboxes = fields.List(fields.Nested(SandboxSchema), required=True)
    count = _whole(1)
    cursor = _optional_text(None)


class SandboxQuerySchema(Schema):
    """Which sandboxes to list."""

    status = fields.Enum(Status, by_value=True)
    track_id = _plain()
    limit = _StrictInteger(load_default=50, validate=validate.Range(min=1, max=100))
    cursor = fields.String(validate=validate.Length(min=1, max=_MAX_CURSOR))


class StatsSchema(Schema):
    """How many sandboxes are in which status; `total` is their sum. Tombstones are out of the pool, not counted."""

    available = _whole(42)
    allocated = _whole(7)
    pending_deletion = _whole(1)
    stale = _whole()
    deletion_failed = _whole()
    total = _whole(50)


class MarkInputSchema(Schema):
    """Which lease a mark is meant for."""

    lease_id = _plain()


class ReleaseInputSchema(Schema):
    """Which lease to end."""

    lease_id = _plain(required=True)


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
        },
    )


class BulkDeleteQuerySchema(Schema):
    """Which records to remove."""

    status = fields.String(required=True, validate=validate.OneOf([status.value for status in BULK_DELETABLE]))


class BulkDeletedSchema(Schema):
    """What a bulk delete did."""

    deleted = _whole(3)
    duration_ms = _whole(41)


class BulkRetriedSchema(Schema):
    """What a bulk retry did."""

    retried = _whole(3)
    duration_ms = _whole(41)


class PausesSchema(Schema):
    """Which operations are paused."""

    allocate = fields.Boolean(required=True)
    sync = fields.Boolean(required=True)
    cleanup = fields.Boolean(required=True)
    expire = fields.Boolean(required=True)


class PausesInputSchema(Schema):
    """Which operations to pause (true) or resume (false); the others stay as they are."""

    allocate = _StrictBoolean()
    sync = _StrictBoolean()
    cleanup = _StrictBoolean()
    expire = _StrictBoolean()


class SyncInputSchema(Schema):
    """How to sync; `force` overrides the brake."""

    force = _StrictBoolean(load_default=False)


class JobAcceptedSchema(Schema):
    """A run that was asked for."""

    job_id = _text("3f4d9f0a-3f2b-4dd1-9a54-3d1d8d0f6c11")
    status_url = _text("/v1/admin/jobs/3f4d9f0a-3f2b-4dd1-9a54-3d1d8d0f6c11")


class JobRunSchema(Schema):
    """A run of a job; `result` and `error` once there are any."""

    job_id = _text("3f4d9f0a-3f2b-4dd1-9a54-3d1d8d0f6c11")
    job = fields.Enum(Job, by_value=True, required=True)
    state = fields.Enum(JobState, by_value=True, required=True)
    result = fields.Dict(keys=fields.String())
    error = fields.String()


class HealthSchema(Schema):
    """The process runs."""

    status = fields.String(required=True, validate=validate.OneOf(["healthy"]))
    timestamp = _time()


class ReadinessSchema(Schema):
    """Whether the process should be sent requests, and why not."""

    status = fields.String(required=True, validate=validate.OneOf(["ready", "not_ready"]))
    timestamp = _time()
    checks = fields.Dict(
        keys=fields.String(), values=fields.String(), required=True, metadata={"example": {"dynamodb": "ok"}}
    )
