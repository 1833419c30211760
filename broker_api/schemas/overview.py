"""The bodies of the calls that show the pool at a glance: the overview, and the samples of the minutes."""

from __future__ import annotations

from typing import Any

from marshmallow import Schema, ValidationError, fields, validate, validates_schema

from broker_api.schemas.jobs import JobRunSchema
from broker_api.schemas.parts import (
    RESERVATION_ID,
    StrictInteger,
    enum_field,
    number_field,
    optional_text_field,
    optional_time_field,
    text_field,
    time_field,
)
from broker_api.schemas.pool import PausesSchema, StatsSchema
from broker_common.core.reservation import ReservationState
from broker_common.core.samples import KEPT_SEC, MINUTE_SEC, MOST_SAMPLES, STEPS_SEC
from broker_common.core.telemetry import AllocateOutcome

DEFAULT_LENGTH_SEC = 24 * 3600
_LATEST = 10**12
_DAYS = KEPT_SEC // (24 * 3600)
_OUTCOMES = {
    AllocateOutcome.SUCCESS: ("Tracks that got a sandbox", 118),
    AllocateOutcome.IDEMPOTENT: ("Repeated requests of tracks that held the sandbox already", 4),
    AllocateOutcome.NO_SANDBOXES: ("Requests that were refused, because no sandbox was free", 0),
    AllocateOutcome.WAITING: ("Requests of tracks that wait in line", 0),
    AllocateOutcome.ERROR: ("Requests that failed", 0),
}

AllocatesSchema = Schema.from_dict(
    {outcome.value: number_field(*described) for outcome, described in _OUTCOMES.items()}, name="AllocatesSchema"
)
AllocatesSchema.__doc__ = "How many requests to allocate had which outcome."


class LineSummarySchema(Schema):
    """The line of waiting tracks, in short."""

    waiting = number_field("How many tracks wait")
    longest_waiting_since = optional_time_field("When the track joined that waits longest, of those that are not late")


class ShownReservationSchema(Schema):
    """A reservation that is open, or lacks sandboxes."""

    reservation_id = text_field(RESERVATION_ID, "Its id")
    name = text_field("Class of 9:00", "Its name")
    state = enum_field(
        ReservationState,
        {"example": ReservationState.OPEN.value, "description": "`open`, or `filling` if it lacks sandboxes"},
        required=True,
    )
    starts_at = time_field("When it starts", 1759576200)
    ends_at = time_field("When it ends", 1759590600)
    count = number_field("How many sandboxes it is for", 30)
    set_aside = number_field("How many sandboxes are set aside for it now", 12)
    drawn = number_field("How many leases have begun from it", 18)
    short_by = number_field("How many sandboxes it lacks")


class WebhookCountsSchema(Schema):
    """How many webhook endpoints there are."""

    endpoints = number_field("All endpoints", 2)
    failing = number_field("Those whose last try failed")
    disabled = number_field("Those that get nothing now, because they failed for days or an operator wants it")


class BreakerSchema(Schema):
    """The circuit breaker of the calls to the provider, as all workers share it."""

    state = fields.String(
        required=True,
        validate=validate.OneOf(["closed", "half-open", "open"]),
        metadata={
            "example": "closed",
            "description": "`closed`: calls go out. `open`: none does. `half-open`: one call may try",
        },
    )
    failures = number_field("How many calls in a row have failed")
    reason = optional_text_field(None, "Why the last of them failed; else null")
    open_until = optional_time_field("Until when no call goes out, while it is not closed")


class OverviewSchema(Schema):
    """The state of the broker, as an operator first looks at it."""

    counts = fields.Nested(StatsSchema, required=True, metadata={"description": "How many sandboxes have which status"})
    counted_at = time_field("When the pool was counted: one process counts it for all, every few seconds")
    oldest_pending_deletion_at = optional_time_field(
        "Since when the sandbox waits that has waited longest to be wiped", 1759574600
    )
    last_sync_at = optional_time_field("When a sync last succeeded", 1759574955)
    line = fields.Nested(LineSummarySchema, required=True, metadata={"description": "The line, as known within 15 s"})
    allocates = fields.Nested(
        AllocatesSchema,
        required=True,
        metadata={"description": "Requests to allocate of the last hour; those of the last two minutes may be missing"},
    )
    allocates_since = time_field("From when on they are counted", 1759571400)
    reservations = fields.List(
        fields.Nested(ShownReservationSchema),
        required=True,
        metadata={"description": "Those that are open, and those that are being filled and lack sandboxes"},
    )
    webhooks = fields.Nested(WebhookCountsSchema, required=True, metadata={"description": "The endpoints of webhooks"})
    pauses = fields.Nested(
        PausesSchema,
        required=True,
        allow_none=True,
        metadata={"description": "Which operations are paused; null if their record cannot be read"},
    )
    pauses_error = optional_text_field(None, "Why the pauses cannot be read; else null")
    jobs = fields.List(
        fields.Nested(JobRunSchema),
        required=True,
        allow_none=True,
        metadata={
            "description": "The last run of each job that ran within a day; null while Redis does not answer",
        },
    )
    jobs_error = optional_text_field(None, "Why the runs cannot be read; else null")
    breaker = fields.Nested(
        BreakerSchema,
        required=True,
        allow_none=True,
        metadata={"description": "The provider's circuit breaker; null while Redis does not answer"},
    )
    breaker_error = optional_text_field(None, "Why the breaker cannot be read; else null")


class SamplesQuerySchema(Schema):
    """Which time to show, and in which steps."""

    @validates_schema
    def _check_range(self, values: dict[str, Any], **_: Any) -> None:  # noqa: ANN401 - marshmallow's options
        since, until = values.get("since"), values.get("until")
        if since is None or until is None:
            return
        if until <= since:
            raise ValidationError("Must be later than from.", field_name="to")
        if until - since > KEPT_SEC:
            raise ValidationError(f"Must be at most {_DAYS} days after from.", field_name="to")

    since = StrictInteger(
        data_key="from",
        validate=validate.Range(min=0, max=_LATEST),
        metadata={"description": "The first moment, in Unix seconds; a day before `to` if it is left out"},
    )
    until = StrictInteger(
        data_key="to",
        validate=validate.Range(min=0, max=_LATEST),
        metadata={
            "description": f"The end, in Unix seconds, at most {_DAYS} days later; now if it is left out",
        },
    )
    step = StrictInteger(
        validate=validate.OneOf(STEPS_SEC),
        metadata={
            "description": "The length of a step in seconds. If it is left out, the shortest one with which an answer"
            f" has at most {MOST_SAMPLES} samples: a minute for up to {MOST_SAMPLES * MINUTE_SEC // 3600} hours"
        },
    )


class SampleSchema(Schema):
    """What was known of a minute, or of a longer step."""

    at = time_field("When the step began")
    counts = fields.Nested(
        StatsSchema,
        required=True,
        allow_none=True,
        metadata={
            "description": "The counts by status, of the minute of the step in which the fewest were available; null if"
            " the pool was not counted"
        },
    )
    waiting = fields.Integer(
        required=True,
        allow_none=True,
        metadata={"example": 0, "description": "How many tracks waited in line in that minute; null likewise"},
    )
    allocates = fields.Nested(
        AllocatesSchema, required=True, metadata={"description": "Requests to allocate in the whole step"}
    )


class SamplesSchema(Schema):
    """The samples of a time, in order. A step of which nothing is known is absent."""

    samples = fields.List(fields.Nested(SampleSchema), required=True)
    count = number_field("How many are in `samples`", 1)
    step = number_field("The length of a step in seconds", MINUTE_SEC)
