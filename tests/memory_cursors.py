"""The cursors of the stores in memory. A cursor holds only for the listing that gave it."""

from __future__ import annotations

import base64
import json
from typing import TypeVar

from broker_common.core.errors import InvalidInput

At = TypeVar("At", str, int)


def write_cursor(of: str | None, at: str | int) -> str:
    """Return the cursor of the listing `of` that reads on after `at`."""
    return base64.urlsafe_b64encode(json.dumps([of, at]).encode()).decode()


def read_cursor(of: str | None, cursor: str | None, *, default: At) -> At:
    """Return the place in a cursor, or `default` if there is none. Raises `InvalidInput` for one of another listing."""
    if cursor is None:
        return default
    try:
        match json.loads(base64.b64decode(cursor, altchars=b"-_", validate=True)):
            case [listed, at] if listed == of and isinstance(at, type(default)):
                return at
    except ValueError:
        pass
    raise InvalidInput("cursor: was not given by this listing")
