"""The bodies and queries of an operator's calls on sandboxes."""

from __future__ import annotations

from typing import Any

from marshmallow import Schema, ValidationError, fields, validate, validates_schema

from broker_api.schemas.parts import (
    LEASE_ID,
    MAX_CURSOR,
    StrictInteger,
    enum_field,
    number_field,
    optional_text_field,
    optional_time_field,
    plain_field,
    reason_field,
    text_field,
    time_field,
)
from broker_api.schemas.tracks import HeldSandboxSchema
from broker_common.core.purge import BULK_DELETABLE
from broker_common.core.sandbox import DeletionReason, Status
from broker_common.core.search import SortField

SEARCHES = frozenset({"name", "track_name", "sort"})
"""A listing that has one of these parameters is answered from a copy of the pool."""
_MAX_PAGE = 100
_MAX_FOUND = 1000
_DURATION = "How long it took, in milliseconds"


class SandboxSchema(HeldSandboxSchema):
    """A sandbox, as an operator reads it: every field, and `lease_id` only while it is allocated."""

    lease_id = optional_text_field(LEASE_ID, "The lease that its track holds; else null")
    idempotency_key = optional_text_field("track-4711", "Of the current allocation; else null")
    customer = optional_text_field("acme", "The customer of its current or latest lease; else null")
    dirty = fields.Boolean(
        required=True, metadata={"example": True, "description": "Was allocated and has not been wiped since"}
    )
    deletion_requested_at = optional_time_field("When it was sent to be wiped")
    deletion_reason = enum_field(
        DeletionReason,
        {"description": "Why it was sent to be wiped, or set aside; else null", "example": None},
        required=True,
        allow_none=True,
    )
    deletion_retry_count = number_field("Failed attempts since it was last sent to be wiped")
    deletion_last_error = optional_text_field(None, "Why the latest attempt failed, or why it is set aside; else null")
    next_attempt_at = optional_time_field("When the next attempt to wipe it may begin")
    ready_at = optional_time_field("Until when it rests after its wipe")
    quarantine_reason = optional_text_field(None, "Why it will be set aside after its wipe; else null")
    last_synced = optional_time_field("When a sync last saw it", 1759574955)
    stale_since = optional_time_field("Since when it is stale")
    last_track_id = optional_text_field(None, "The track of its latest ended allocation; else null")
    last_lease_id = optional_text_field(None, "The lease of its latest ended allocation; else null")
    reservation_id = optional_text_field(
        None, "The reservation that it is set aside for, or that its lease was drawn from; else null"
    )
    created_at = time_field("When the broker first saw it", 1759500000)
    updated_at = time_field("When the record last changed")
    version = number_field("Grows with every change of the record", 7)


class UnreadableSchema(Schema):
    """A sandbox whose record cannot be read."""

    sandbox_id = text_field("2009521", "The sandbox's id")
    reason = text_field("expires_at is missing", "What is wrong with the record")


class SandboxPageSchema(Schema):
    """A page of sandboxes."""

    sandboxes = fields.List(fields.Nested(SandboxSchema), required=True)
    count = number_field("How many are in `sandboxes`", 1)
    unreadable = fields.List(
        fields.Nested(UnreadableSchema),
        required=True,
        metadata={"example": [], "description": "Sandboxes that belong on this page, and whose record cannot be read"},
    )
    cursor = optional_text_field(None, "Send it to read the next page; null on the last page")
    total = fields.Integer(
        metadata={"description": "With `name`, `track_name` or `sort`: how many were found on all pages"}
    )
    snapshot_age_sec = fields.Float(
        metadata={
            "description": "With `name`, `track_name` or `sort`: the age of the copy that was searched, at most 5"
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

    status = enum_field(Status, {"description": "Only sandboxes of this status"})
    track_id = plain_field({"description": "Only sandboxes that this track holds"})
    name = plain_field({"description": "Only sandboxes with this text in their name, in capital or small letters"})
    track_name = plain_field({"description": "Only sandboxes whose latest lease is of this lab"})
    sort = fields.String(
        validate=validate.OneOf([sign + field.value for field in SortField for sign in ("", "-")]),
        metadata={"description": "The field to sort by; with `-` in front, the greatest comes first"},
    )
    limit = StrictInteger(
        load_default=50,
        validate=validate.Range(min=1, max=_MAX_FOUND),
        metadata={
            "description": f"How many sandboxes a page has at most: 1 to {_MAX_PAGE}; with `name`, `track_name` or"
            f" `sort` up to {_MAX_FOUND:,}"
        },
    )
    cursor = fields.String(
        validate=validate.Length(min=1, max=MAX_CURSOR),
        metadata={"description": "The `cursor` of the page before; send the same filters and order with it"},
    )


class ReleaseInputSchema(Schema):
    """The lease to end."""

    lease_id = plain_field({"example": LEASE_ID, "description": "The lease of the allocation to end"}, required=True)


class QuarantineInputSchema(Schema):
    """Why a sandbox is set aside."""

    reason = reason_field(
        {
            "example": "a student reported that it is slow",
            "description": "Kept as `deletion_last_error`; not blank, and without control characters",
        }
    )


class BulkDeleteQuerySchema(Schema):
    """Which records to remove."""

    status = fields.String(
        required=True,
        validate=validate.OneOf([status.value for status in BULK_DELETABLE]),
        metadata={"description": "The status whose records are removed"},
    )


class BulkDeletedSchema(Schema):
    """The result of a bulk delete."""

    deleted = number_field("Records removed", 3)
    duration_ms = number_field(_DURATION, 41)


class BulkRetriedSchema(Schema):
    """The result of a bulk retry."""

    retried = number_field("Sandboxes sent to be wiped", 3)
    duration_ms = number_field(_DURATION, 41)
