"""JSON as the provider answers it: read strictly, because a sandbox counts as wiped by its word alone."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping


def read_object(body: bytes) -> dict[str, Any] | None:
    """Return the JSON object that a body holds, or None if it holds anything else.

    An object with two equal names counts as anything else: readers differ in which of the two they take (RFC 8259,
    section 4).
    """
    try:
        value = json.loads(body.decode(), object_pairs_hook=_make_object)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def reports_failure(answer: Mapping[str, Any]) -> bool:
    """Tell whether an object says that the call failed: a field `error` or `errors`, or a `success` that is not true.

    The value of `error` does not matter: what a provider means by an empty one is not known.
    """
    return any(
        name.casefold() in {"error", "errors"} or (name.casefold() == "success" and value is not True)
        for name, value in answer.items()
    )


def _make_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        raise ValueError
    return made
