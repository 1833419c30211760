"""The provider's call slots: at most N calls at once, over all workers.

A slot is a member of a sorted set, and its score is the end of its lease: the slot of a dead worker becomes free.
"""

from __future__ import annotations

import random
import time
import uuid
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from redis.exceptions import RedisError

from broker_common.core.errors import ProviderBusy, ProviderSlotsUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from redis import Redis

# Redis' own clock decides, so that workers whose clocks differ agree on what has expired. A token that has a slot
# already gets its lease extended.
_ACQUIRE = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
if not redis.call('ZSCORE', KEYS[1], ARGV[1]) and redis.call('ZCARD', KEYS[1]) >= tonumber(ARGV[2]) then
    return 0
end
redis.call('ZADD', KEYS[1], now + ARGV[3], ARGV[1])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return 1
"""
_POLL_SEC = 0.1


class RedisSlots:
    """Call slots in Redis. `lease_sec` must be longer than a call can last."""

    def __init__(self, redis: Redis, *, limit: int, lease_sec: float, key: str = "sandbox-broker:csp:slots") -> None:
        self._redis = redis
        self._limit = limit
        self._lease_ms = round(lease_sec * 1000)
        self._key = key
        self._script = redis.register_script(_ACQUIRE)

    @contextmanager
    def hold(self, *, wait_sec: float) -> Iterator[Slot]:
        """Hold a slot inside the context; waits for a free one for at most `wait_sec`.

        Raises `ProviderBusy` if no slot became free, `ProviderSlotsUnavailable` if Redis does not answer.
        """
        token = uuid.uuid4().hex
        give_up_at = time.monotonic() + wait_sec
        while not self._acquire(token):
            left = give_up_at - time.monotonic()
            if left <= 0:
                raise ProviderBusy(f"all {self._limit} call slots of the provider are taken")
            time.sleep(min(left, random.uniform(0.5, 1.5) * _POLL_SEC))
        try:
            yield Slot(self, token)
        finally:
            # If Redis is away now, the lease ends by itself.
            with suppress(RedisError):
                self._redis.zrem(self._key, token)

    def _acquire(self, token: str) -> bool:
        try:
            return bool(self._script(keys=[self._key], args=[token, self._limit, self._lease_ms]))
        except RedisError as error:
            raise ProviderSlotsUnavailable("the provider's call slots cannot be reached in Redis") from error


class Slot:
    """A slot that a call holds."""

    def __init__(self, slots: RedisSlots, token: str) -> None:
        self._slots = slots
        self._token = token

    def renew(self) -> None:
        """Extend the lease, before another call in the same slot.

        Raises `ProviderBusy` if the lease had ended and all slots are taken now, `ProviderSlotsUnavailable` if Redis
        does not answer.
        """
        if not self._slots._acquire(self._token):  # noqa: SLF001 - a slot is the other half of its class
            raise ProviderBusy("the call slot was lost, and all others are taken")
