"""The provider's call slots, and the pace of its deletes, over all workers.

A slot is a member of a sorted set, and its score is the end of its lease: the slot of a dead worker becomes free. The
pace is a token bucket that holds one token, kept as one number: the time at which the token is back. One script takes a
slot and the token together or neither, so that a call holds no slot while it waits for the token, and no token while it
waits for a slot.
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

# Redis' own clock decides, so that workers whose clocks differ agree on what has expired. A holder that has a slot
# already gets its lease extended. The last argument is the microseconds in which the bucket gets its token; 0: the call
# needs none.
_ACQUIRE = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
if not redis.call('ZSCORE', KEYS[1], ARGV[1]) and redis.call('ZCARD', KEYS[1]) >= tonumber(ARGV[2]) then
    return -1
end
local step = tonumber(ARGV[4])
if step > 0 then
    local instant = time[1] * 1000000 + time[2]
    local wait = (tonumber(redis.call('GET', KEYS[2]) or '') or instant) - instant
    if wait > 0 and wait <= step then
        return wait
    end
    -- A longer wait than a step: the clock was set back. Then the step begins now. The record may not end a part of a
    -- millisecond too early, so it gets one more.
    redis.call('SET', KEYS[2], string.format('%.0f', instant + step), 'PX', math.ceil(step / 1000) + 1)
    if wait > 0 then
        return step
    end
end
redis.call('ZADD', KEYS[1], now + ARGV[3], ARGV[1])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return 0
"""
_ALL_TAKEN = -1
_POLL_SEC = 0.1
_MINUTE_US = 60_000_000


class RedisSlots:
    """Call slots in Redis. `lease_sec` must be longer than a call can last.

    With `paced_per_minute`, no 60 seconds have more begins of paced calls than this number, by Redis' clock: from one
    begin to the next, 60 s divided by it must pass, also after a rest. 0: there is no pace.
    """

    def __init__(
        self,
        redis: Redis,
        *,
        limit: int,
        lease_sec: float,
        paced_per_minute: int = 0,
        key: str = "sandbox-broker:csp:slots",
        pace_key: str = "sandbox-broker:csp:pace",
    ) -> None:
        self._redis = redis
        self._limit = limit
        self._lease_ms = round(lease_sec * 1000)
        self._paced_per_minute = paced_per_minute
        # Rounded up, so that a minute never has one more.
        self._step_us = -(-_MINUTE_US // paced_per_minute) if paced_per_minute else 0
        self._keys = [key, pace_key]
        self._script = redis.register_script(_ACQUIRE)

    @contextmanager
    def hold(self, *, wait_sec: float, is_paced: bool = False) -> Iterator[Slot]:
        """Hold a slot inside the context; waits for at most `wait_sec` for a free one, and for the pace if `is_paced`.

        Raises `ProviderBusy` if no call may begin in that time, `ProviderSlotsUnavailable` if Redis does not answer.
        """
        token = uuid.uuid4().hex
        give_up_at = time.monotonic() + wait_sec
        while (waiting_us := self._acquire(token, is_paced=is_paced)) != 0:
            left = give_up_at - time.monotonic()
            if left <= 0:
                raise ProviderBusy(
                    f"all {self._limit} call slots of the provider are taken"
                    if waiting_us == _ALL_TAKEN
                    else f"the pace of {self._paced_per_minute} deletes a minute allows no other one yet"
                )
            pause = random.uniform(0.5, 1.5) * _POLL_SEC
            time.sleep(min(left, pause if waiting_us == _ALL_TAKEN else waiting_us / 1e6))
        try:
            yield Slot(self, token)
        finally:
            # If Redis is away now, the lease ends by itself.
            with suppress(RedisError):
                self._redis.zrem(self._keys[0], token)

    def _acquire(self, token: str, *, is_paced: bool) -> int:
        """Try to take a slot. Return 0 if it is taken, `_ALL_TAKEN`, or the microseconds until the pace allows one."""
        step_us = self._step_us if is_paced else 0
        try:
            taken: int = self._script(keys=self._keys, args=[token, self._limit, self._lease_ms, step_us])
        except RedisError as error:
            raise ProviderSlotsUnavailable("the provider's call slots cannot be reached in Redis") from error
        return taken


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
        if self._slots._acquire(self._token, is_paced=False):  # noqa: SLF001 - a slot is the other half of its class
            raise ProviderBusy("the call slot was lost, and all others are taken")
