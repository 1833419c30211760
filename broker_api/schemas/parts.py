"""The kinds of fields that the schemas are made of, and the examples that the fields carry."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from marshmallow import Schema, ValidationError, fields, validate

from broker_api.caller import MAX_LENGTH, find_fault

if TYPE_CHECKING:
    from collections.abc import Mapping
    from enum import Enum

PLAIN = {"minLength": 1, "maxLength": MAX_LENGTH, "pattern": "^[ -~]+$"}
"""1 to 128 printable ASCII characters, as OpenAPI says it."""
LEASE_ID = "5b7f2ad1-6b6e-4f0e-8a55-0d9a52b3a6f1"
REQUEST_ID = "0f3c1f0e-6f0a-4f5e-9a4e-2f1d8d0f6c11"
PLACE_ID = "00000000-001759574955-8d1f6a52-3c0b-4e57-9a65-2d7f0c9e4b13"
JOB_ID = "3f4d9f0a-3f2b-4dd1-9a54-3d1d8d0f6c11"
RESERVATION_ID = "0f6f6a52-9a3e-4c55-8a9f-6f0d3d0c1b7e"
ENDPOINT_ID = "7c9e6679-7425-40de-944b-e07fc1f90ae7"
DELIVERY_ID = "2009521:1759574955000:sandbox_allocated"
MAX_DELIVERY_ID = 256
"""The name of a fact has the sandbox's id, which may have 128 characters."""
MAX_CURSOR = 2048
_MAX_REASON = 500
_CONTROLS = r"\x00-\x1f\x7f-\x9f\u2028\u2029"
# Control characters, line separators and lone surrogates break logs, terminals and encoders.
_UNFIT_FOR_TEXT = re.compile(rf"[{_CONTROLS}\ud800-\udfff]")
_FIT = f"[^{_CONTROLS}]"
"""The same for OpenAPI, whose strings hold no surrogates. Every dialect of patterns knows plain classes."""


class StrictInteger(fields.Integer):
    """A number in plain digits. Python's `int` also takes signs, blanks, underscores and the digits of every script."""

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any) -> int:  # noqa: ANN401 - marshmallow's signature
        if not (value.isascii() and value.isdigit()):
            raise self.make_error("invalid", input=value)
        return int(super()._deserialize(value, attr, data, **kwargs) or 0)


class WholeNumber(fields.Integer):
    """A whole JSON number. marshmallow's own field also takes texts, and strictly no `300.0`, which is whole.

    Source: JSON Schema, "Validation", section 6.1.1.
    """

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any) -> int:  # noqa: ANN401 - marshmallow's signature
        is_whole = isinstance(value, int) if not isinstance(value, float) else value.is_integer()
        if isinstance(value, bool) or not is_whole:
            raise self.make_error("invalid", input=value)
        return int(super()._deserialize(int(value), attr, data, **kwargs) or 0)


class StrictBoolean(fields.Boolean):
    """A JSON boolean. marshmallow's own field also takes numbers and words."""

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any) -> bool:  # noqa: ANN401 - marshmallow's signature
        if not isinstance(value, bool):
            raise self.make_error("invalid", input=value)
        return bool(super()._deserialize(value, attr, data, **kwargs))


def plain_field(metadata: Mapping[str, Any], *, required: bool = False, allow_none: bool = False) -> fields.String:
    """Return a field that reads 1 to 128 printable ASCII characters."""
    return fields.String(
        required=required, allow_none=allow_none, validate=_check_plain, metadata={**PLAIN, **metadata}
    )


def reason_field(metadata: Mapping[str, Any], *, required: bool = True, allow_none: bool = False) -> fields.String:
    """Return a field that reads a person's words: one line of text that is not blank."""
    pattern = f"^{_FIT}*[^\\s{_CONTROLS}]{_FIT}*$"
    shape = {"minLength": 1, "maxLength": _MAX_REASON, "pattern": pattern}
    return fields.String(
        required=required, allow_none=allow_none, validate=_check_reason, metadata={**shape, **metadata}
    )


def text_field(example: str, description: str) -> fields.String:
    """Return a field of an answer that is always there."""
    return fields.String(required=True, metadata={"example": example, "description": description})


def optional_text_field(example: str | None, description: str, *, attribute: str | None = None) -> fields.String:
    """Return a field of an answer that may be null."""
    metadata = {"example": example, "description": description}
    return fields.String(required=True, allow_none=True, attribute=attribute, metadata=metadata)


def time_field(description: str, example: int = 1759574955) -> fields.Integer:
    """Return a field that holds a time."""
    return fields.Integer(
        required=True, metadata={"example": example, "description": f"{description}, in Unix seconds"}
    )


def optional_time_field(description: str, example: int | None = None) -> fields.Integer:
    """Return a field that holds a time or null."""
    metadata = {"example": example, "description": f"{description}, in Unix seconds; else null"}
    return fields.Integer(required=True, allow_none=True, metadata=metadata)


def omitted_time_field(description: str, example: int) -> fields.Integer:
    """Return a field that holds a time, and is left out while there is none."""
    return fields.Integer(metadata={"example": example, "description": f"{description} (Unix seconds)"})


def given_number_field(
    metadata: Mapping[str, Any], *, low: int, high: int | None = None, required: bool = False
) -> fields.Integer:
    """Return a field of a body that reads a whole number from `low` to `high`."""
    return WholeNumber(required=required, validate=validate.Range(min=low, max=high), metadata=metadata)


def number_field(description: str, example: int = 0) -> fields.Integer:
    """Return a field that holds a whole number."""
    return fields.Integer(required=True, metadata={"example": example, "description": description})


def optional_number_field(description: str, example: int | None = None) -> fields.Integer:
    """Return a field that holds a whole number or null."""
    metadata = {"example": example, "description": f"{description}; null if that is not known"}
    return fields.Integer(required=True, allow_none=True, metadata=metadata)


def enum_field(kind: type[Enum], metadata: Mapping[str, Any], **options: Any) -> fields.Enum[Any]:  # noqa: ANN401 - marshmallow's
    """Return a field that holds the value of a member of `kind`."""
    return fields.Enum(kind, by_value=fields.String, metadata=metadata, **options)


def example_of(schema: Schema, **different: Any) -> dict[str, Any]:  # noqa: ANN401 - any JSON
    """Return an object that fits `schema`, made of the examples of its fields; `different` replaces some of them.

    An optional field without an example is left out.
    """
    examples = {
        field.data_key or name: _example_of_field(field)
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


def _check_plain(text: str) -> None:
    fault = find_fault(text)
    if fault is not None:
        raise ValidationError(fault)


def _check_reason(text: str) -> None:
    if not 0 < len(text) <= _MAX_REASON or not text.strip() or _UNFIT_FOR_TEXT.search(text):
        raise ValidationError(f"Must be 1 to {_MAX_REASON} characters, not blank, and without control characters.")
