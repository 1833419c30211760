"""What the provider's JSON says in plain words: whether it is an object at all, and whether it says no."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

_ERRORS = frozenset({"error", "errors"})


def read_fields(body: bytes) -> tuple[tuple[str, Any], ...] | None:
    """Return the fields of a JSON object, each as often as it stands there; None if `body` is anything else."""
    try:
        document = json.loads(body, object_pairs_hook=tuple)
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, tuple) else None


def says_no(fields: Iterable[tuple[str, Any]]) -> bool:
    """Tell whether one of an object's fields takes its success back.

    `error` and `errors` do, whatever their value. `success` does unless it is true, or an object or `read_fields`'
    fields of one: Infoblox' atlas-app-toolkit (README, "Response format") answers `"success": {"status", "code",
    "message"}`, and names what failed in part by `error` beside it (`gateway/response.go`).
    """
    for name, value in fields:
        plain = name.lower()
        if plain in _ERRORS or (plain == "success" and value is not True and not isinstance(value, (dict, tuple))):
            return True
    return False
