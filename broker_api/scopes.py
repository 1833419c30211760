"""What a token is for, and where the tokens of one purpose come from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum

from broker_common.tokens import Token

TokenSource = Callable[[], Sequence[Token]]
"""Returns the tokens that are valid now."""


class Scope(Enum):
    """What a token is for."""

    TRACK = "track"
    ADMIN = "admin"
