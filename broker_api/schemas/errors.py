"""The bodies of errors, in plain JSON and in the shape of RFC 9457."""

from __future__ import annotations

from marshmallow import Schema, fields, validate

from broker_api.errors import ANSWERED, ERROR_CODES
from broker_api.schemas.parts import REQUEST_ID, text_field

_MESSAGE = "X-Track-ID: Missing: send the calling track's id."


class _FaultSchema(Schema):
    """The fields that both shapes have."""

    code = fields.String(
        required=True,
        validate=validate.OneOf(ANSWERED),
        metadata={
            "example": "VALIDATION_ERROR",
            "description": "Stable. A later version may have more codes: for an unknown code, go by the status",
        },
    )
    request_id = text_field(REQUEST_ID, "As in the header `X-Request-ID`")
    retry_after = fields.Integer(metadata={"description": "Seconds, as in the header `Retry-After`"})
    details = fields.Dict(
        keys=fields.String(),
        values=fields.Raw(
            metadata={
                "anyOf": [
                    {"type": "array", "items": {"type": "string"}},
                    {"type": ["string", "integer", "null"]},
                ]
            }
        ),
        metadata={
            "description": "With `VALIDATION_ERROR`: messages by header, parameter or field. With other codes: facts"
            " about the error"
        },
    )


class ErrorDetailSchema(_FaultSchema):
    """What went wrong."""

    message = text_field(_MESSAGE, "For people; its wording may change")


class ErrorSchema(Schema):
    """The body of every error."""

    error = fields.Nested(ErrorDetailSchema, required=True)


class ProblemSchema(_FaultSchema):
    """The body of every error for a caller that prefers RFC 9457's shape."""

    type = text_field("/v1/docs#VALIDATION_ERROR", "Leads to the meaning of the code")
    title = text_field(ERROR_CODES["VALIDATION_ERROR"].meaning, "The meaning of the code; the same each time")
    status = fields.Integer(required=True, metadata={"example": 400, "description": "The status of the answer"})
    detail = text_field(_MESSAGE, "For people; its wording may change")
    instance = text_field(f"#{REQUEST_ID}", "Names this one error; there is nothing to read at this address")
