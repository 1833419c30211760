"""Remembers in Redis, for all processes, which table is the right one: one hash, which never expires."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from redis.exceptions import RedisError

from broker_common.core.errors import QueueUnavailable
from broker_common.core.ports import KnownTable

if TYPE_CHECKING:
    from collections.abc import Callable

    from redis import Redis

    from broker_common.core.ports import Clock

MEMORY_KEY = "sandbox-broker:table"
_AWAY_SEC = 10.0


class RedisTableMemory:
    """Implements the `TableMemory` port. After a command without an answer, Redis is not asked for ten seconds.

    So an operation that needs no Redis, such as allocate, loses at most one timeout in that time.
    """

    def __init__(self, redis: Redis, clock: Clock, *, key: str = MEMORY_KEY) -> None:
        self._redis = redis
        self._clock = clock
        self._key = key
        self._away_until = float("-inf")

    def recall(self) -> KnownTable | None:
        """Implement the port."""
        found: dict[bytes | str, bytes | str] = self._call(lambda: self._redis.hgetall(self._key))
        fields = {_text(name): _text(value) for name, value in found.items()}
        if "identity" not in fields:
            return None
        accepted_at = fields.get("accepted_at", "0")
        return KnownTable(
            identity=fields["identity"],
            had_records=fields.get("had_records") == fields["identity"],
            accepted_at=int(accepted_at) if accepted_at.isdecimal() else 0,
        )

    def remember(self, table: KnownTable) -> None:
        """Implement the port: if several processes write for the first time, the first one decides."""

        def write() -> None:
            with self._redis.pipeline() as pipe:
                pipe.hsetnx(self._key, "identity", table.identity)
                pipe.hsetnx(self._key, "accepted_at", str(table.accepted_at))
                if table.had_records:
                    pipe.hset(self._key, "had_records", table.identity)
                pipe.execute()

        self._call(write)

    def replace(self, identity: str) -> None:
        """Implement the port; the time comes from Redis' own clock."""

        def write() -> None:
            seconds, microseconds = self._redis.time()
            accepted_at = int(seconds) * 1000 + int(microseconds) // 1000
            self._redis.hset(self._key, mapping={"identity": identity, "accepted_at": str(accepted_at)})

        self._call(write)

    def _call(self, call: Callable[[], Any]) -> Any:  # noqa: ANN401 - any answer of Redis
        if self._clock.monotonic() < self._away_until:
            raise QueueUnavailable("Redis, which remembers the table, did not answer a moment ago")
        try:
            return call()
        except RedisError as error:
            self._away_until = self._clock.monotonic() + _AWAY_SEC
            raise QueueUnavailable("Redis, which remembers the table, does not answer") from error


def _text(value: str | bytes) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value
