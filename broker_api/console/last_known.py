"""The last answers of the API, which pages show while it is away."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any

import orjson

from broker_api.console.memory import Memory

if TYPE_CHECKING:
    from collections.abc import Mapping

    from broker_common.core.ports import Clock

_MOST_BYTES = 32 * 1024 * 1024
_MOST_BYTES_EACH = 1024 * 1024
"""Compressed. A longer answer is not kept."""
_LONGEST_SEC = 3600
_FAST = 1
"""The level of compression. Answers repeat the same names, so even this makes them about ten times smaller."""


class LastKnown:
    """Keeps the last answer to each question of each token for an hour, in bounded memory."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._memory: Memory[bytes] = Memory(clock, longest_sec=_LONGEST_SEC, most_size=_MOST_BYTES)

    def keep(self, token: str, path: str, parameters: Mapping[str, object], body: dict[str, Any]) -> None:
        """Remember an answer. The oldest ones are dropped."""
        name, packed = _name(path, parameters), zlib.compress(orjson.dumps(body), _FAST)
        if len(packed) > _MOST_BYTES_EACH:
            # What was known before is not the last answer any more.
            self._memory.drop(token, name)
        else:
            self._memory.put(token, name, packed, at=self._clock.now(), size=len(name) + len(packed))

    def find(self, token: str, path: str, parameters: Mapping[str, object]) -> tuple[int, dict[str, Any]] | None:
        """Return when the last answer came, and the answer; None if there is none of the last hour."""
        found = self._memory.get(token, _name(path, parameters))
        return None if found is None else (found[0], orjson.loads(zlib.decompress(found[1])))

    def forget(self, token: str) -> None:
        """Drop every answer to this token."""
        self._memory.forget(token)


def _name(path: str, parameters: Mapping[str, object]) -> str:
    return f"{path}?{sorted(parameters.items())}"
