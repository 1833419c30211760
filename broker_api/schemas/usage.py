"""The query and the body of the call that reports usage."""

from __future__ import annotations

from marshmallow import Schema, fields, validate

from broker_api.schemas.parts import StrictInteger, enum_field, number_field, optional_text_field, plain_field
from broker_common.core.usage import Grouping

_LATEST = 2**40
_FROM, _TO = 1759536000, 1759622400


class UsageQuerySchema(Schema):
    """Which leases to count, and what to have a row for."""

    since = StrictInteger(
        data_key="from",
        required=True,
        validate=validate.Range(min=0, max=_LATEST),
        metadata={"example": _FROM, "description": "Leases that ended from then on, in Unix seconds"},
    )
    until = StrictInteger(
        data_key="to",
        load_default=None,
        validate=validate.Range(min=0, max=_LATEST),
        metadata={"example": _TO, "description": "Leases that ended before then; now if it is left out"},
    )
    by = fields.String(
        required=True,
        validate=validate.OneOf([each.value for each in Grouping]),
        metadata={"example": "track_name", "description": "A row for each lab, for each customer, or for each day"},
    )
    customer = plain_field({"description": "Only leases of this customer"})


def _seconds(description: str, example: int) -> fields.Integer:
    metadata = {"example": example, "description": f"{description}, in seconds; null if there is none"}
    return fields.Integer(required=True, allow_none=True, metadata=metadata)


class UsageRowSchema(Schema):
    """The leases of one lab or customer, or those that ended on one day."""

    group = optional_text_field(
        "intro-to-dns", "The lab, the customer or the day (UTC); null if the lab or customer is not known"
    )
    leases = number_field("How many leases ended", 40)
    sandbox_hours = fields.Float(
        required=True, metadata={"example": 38.5, "description": "How long they lasted together, in hours"}
    )
    marked = number_field("Ended by their tracks", 36)
    released = number_field("Ended by an operator", 1)
    expired = number_field("Ended by the broker, because their time was over", 3)
    lease_median_sec = _seconds("The median length of a lease", 3300)
    lease_p95_sec = _seconds("95 % of the leases were this long at most", 7100)
    wipes = number_field("How many of the leases were followed by a wipe until now", 40)
    wipe_median_sec = _seconds("The median time from the end of a lease to its wipe", 14)
    wipe_p95_sec = _seconds("95 % of the wipes came within this time", 35)


class UsageSchema(Schema):
    """A report on the leases that ended in a time."""

    since = fields.Integer(
        data_key="from", required=True, metadata={"example": _FROM, "description": "Where it begins, in Unix seconds"}
    )
    until = fields.Integer(
        data_key="to", required=True, metadata={"example": _TO, "description": "Where it ends, in Unix seconds"}
    )
    by = enum_field(Grouping, {"example": "track_name", "description": "What there is a row for"}, required=True)
    rows = fields.List(
        fields.Nested(UsageRowSchema),
        required=True,
        metadata={"description": "Days in their order; labs and customers with the most hours first"},
    )
    total = fields.Nested(UsageRowSchema, required=True, metadata={"description": "All rows together"})
