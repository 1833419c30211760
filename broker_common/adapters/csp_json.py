"""Reads the provider's JSON objects, and tells whether one of them states a failure."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

_ERRORS = frozenset({"error", "errors"})


def read_fields(body: bytes) -> tuple[tuple[str, Any], ...] | None:
    """Return the fields of a JSON object, repeated ones included; None if `body` is anything else."""
    try:
        document = json.loads(body, object_pairs_hook=tuple)
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, tuple) else None


def states_failure(fields: Iterable[tuple[str, Any]]) -> bool:
    """Tell whether one of an object's fields states a failure.

    `error` and `errors` do, with any value. `success` does unless it is true or an object (or the fields of one, as
    `read_fields` returns them): Infoblox' atlas-app-toolkit (README, "Response format") answers `"success": {"status",
    "code", "message"}`, and names a partial failure by an `error` beside it (`gateway/response.go`).
    """
    for name, value in fields:
        lower = name.lower()
        if lower in _ERRORS or (lower == "success" and value is not True and not isinstance(value, (dict, tuple))):
            return True
    return False
