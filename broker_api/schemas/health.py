"""The bodies of the health checks."""

from __future__ import annotations

from marshmallow import Schema, fields, validate

from broker_api.schemas.parts import time_field

_NOW = "When this was answered"


class HealthSchema(Schema):
    """The process runs."""

    status = fields.String(
        required=True,
        validate=validate.OneOf(["healthy"]),
        metadata={"example": "healthy", "description": "Always the same"},
    )
    timestamp = time_field(_NOW)


class ReadinessSchema(Schema):
    """Whether requests should be sent to the process, and why not."""

    status = fields.String(
        required=True,
        validate=validate.OneOf(["ready", "not_ready"]),
        metadata={"example": "ready", "description": "`ready` if every check is ok; the check of Redis does not count"},
    )
    timestamp = time_field(_NOW)
    checks = fields.Dict(
        keys=fields.String(),
        values=fields.String(),
        required=True,
        metadata={
            "example": {"dynamodb": "ok", "clock": "ok", "redis": "ok"},
            "description": "By what was checked: `ok`, or `error: ` and the reason",
        },
    )
