"""Unique ids from an injected source of randomness."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from random import Random


def new_id(rng: Random) -> str:
    """Return a random UUID (RFC 9562, version 4)."""
    return str(uuid.UUID(int=rng.getrandbits(128), version=4))
