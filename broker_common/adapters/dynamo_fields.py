"""The attributes of a record: how a value looks in DynamoDB's own JSON, and which values a record can be read with."""

from __future__ import annotations

import base64
import json
import math
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from broker_common.core import schema
from broker_common.core.sandbox import ORDER_LIMIT

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

Item = dict[str, Any]
"""An item, a key or a set of values."""
MAX_KEY_BYTES = 1024
"""How long a sort key may be (AWS, "Service, account, and table quotas in Amazon DynamoDB")."""


def encode(value: str | int | bool) -> Item:
    """Return a value in DynamoDB's JSON."""
    if isinstance(value, str):
        return {"S": str(value)}
    return {"BOOL": value} if isinstance(value, bool) else {"N": str(value)}


def encode_all(flat: Mapping[str, Any]) -> Item:
    """Return the values that are not None in DynamoDB's JSON."""
    return {name: encode(value) for name, value in flat.items() if value is not None}


def read_cursor(cursor: str) -> Any:  # noqa: ANN401 - JSON
    """Return what is in an opaque cursor, which is JSON. Raises `ValueError` for any other text.

    Also for texts that DynamoDB refuses as a sort key: with lone surrogates, which JSON can have, and longer ones than
    `MAX_KEY_BYTES`.
    """
    padded = cursor + "=" * (-len(cursor) % 4)
    try:
        content = json.loads(base64.b64decode(padded, altchars=b"-_", validate=True))
        is_key = all(len(text.encode()) <= MAX_KEY_BYTES for text in _texts_in(content))
    except RecursionError:
        raise ValueError("the cursor has too many levels") from None
    if not is_key:
        raise ValueError("the cursor has a text that is too long for a key")
    return content


def _texts_in(content: object) -> Iterator[str]:
    if isinstance(content, str):
        yield content
    elif isinstance(content, list):
        for each in content:
            yield from _texts_in(each)


_TAGS = {str: "S", int: "N", bool: "BOOL"}
_NOUNS = {"S": "a text", "N": "a whole number that is not negative", "BOOL": "true or false"}


@dataclass(frozen=True, slots=True)
class Field:
    """An attribute of a record: its name, the type of its values, and whether a record must have it."""

    name: str
    kind: type
    is_required: bool = True

    @property
    def tag(self) -> str:
        """DynamoDB's name of the attribute's type."""
        return _TAGS.get(self.kind, "S")


def fields_of(required: Mapping[str, type], optional: Mapping[str, type]) -> tuple[Field, ...]:
    """Return the attributes that a record must have and those that it may have, given their types by name."""
    return (
        *(Field(name, kind) for name, kind in required.items()),
        *(Field(name, kind, is_required=False) for name, kind in optional.items()),
    )


def read_fields(item: Item, expected: Iterable[Field]) -> dict[str, Any]:
    """Return the values of the expected attributes of an item.

    Raises `ValueError` for the first one that is missing, has another type, or has a value that this release does not
    know.
    """
    values: dict[str, Any] = {}
    for each in expected:
        attribute = item.get(each.name)
        if attribute is None:
            if each.is_required:
                raise ValueError(f"{each.name} is missing")
            continue
        content = attribute.get(each.tag)
        if each.tag == "N":
            content = _whole(content, exactly=each.name == "version")
        elif type(content) is not (bool if each.tag == "BOOL" else str):
            content = None
        if content is None:
            raise ValueError(f"{each.name} is not {_NOUNS[each.tag]}")
        values[each.name] = _known(content, each.kind, each.name) if issubclass(each.kind, StrEnum) else content
    if values.get("schema", schema.WRITTEN) > schema.KNOWN:
        raise ValueError(f"schema is {values['schema']}, newer than this release knows")
    return values


def _known(value: str, kind: type[StrEnum], name: str) -> StrEnum:
    try:
        return kind(value)
    except ValueError:
        raise ValueError(f"{name} is not one that this release knows") from None


def _whole(content: object, *, exactly: bool) -> int | None:
    """Return a number's whole part, or None if the broker never writes such a number.

    With `exactly`, the number must be stored as the broker writes it: the conditions of writes name the version.
    """
    if not isinstance(content, str):
        return None
    number = int(content) if content.isascii() and content.isdigit() else _floor(content)
    return number if 0 <= number < ORDER_LIMIT and (not exactly or content == str(number)) else None


def _floor(content: str) -> int:
    try:
        return math.floor(Decimal(content))
    except (ArithmeticError, ValueError):
        return -1
