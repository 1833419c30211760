"""The rate limit that all API processes share in Redis: a token bucket for each key, one round trip for each request.

The bucket is kept as GCRA does (the generic cell rate algorithm, ITU-T I.371): as the time when it is full again, in
one small Redis key, which expires at that time. So no caller leaves a key behind. Redis' own clock counts, so the
clocks of the processes need not agree.
"""

from __future__ import annotations

import hashlib
import logging
import sys
import threading
import time
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, cast

from redis import ConnectionPool, Redis
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, RedisError
from redis.retry import Retry

from broker_common.core.ports import Allowance

if TYPE_CHECKING:
    from redis.connection import ConnectionInterface

TIMEOUT_SEC = 0.05
"""Time that one request loses when Redis stops answering. After it no request waits until Redis answers again."""
_PROBE_SEC = 0.5
_PREFIX = "sandbox-broker:rate"
# Microseconds since 2025: a smaller number leaves room for fractions in a double.
_SCRIPT = """
local interval, burst = tonumber(ARGV[1]), tonumber(ARGV[2])
local time = redis.call("TIME")
local now = (time[1] - 1735689600) * 1000000 + time[2]
local full_at = math.max(now, tonumber(redis.call("GET", KEYS[1]) or now))
local wait = full_at - now - (burst - 1) * interval
local remaining, retry_after = 0, math.ceil(wait / 1000000)
local reset_after = math.ceil((full_at - now) / 1000000)
if wait <= 0 then
    remaining, retry_after = math.floor(-wait / interval), 0
    full_at = full_at + interval
    reset_after = math.ceil((full_at - now) / 1000000)
    redis.call("SET", KEYS[1], full_at, "EX", reset_after)
end
-- One line of text, which is read faster than a list of numbers.
return {ok = string.format("%d %d %d", remaining, reset_after, retry_after)}
"""

_log = logging.getLogger(__name__)


class RedisRateLimit:
    """Implements the `RateLimit` port: each key may make `burst` requests at once, and `rps` a second without end.

    It uses connections of redis-py, but not its client or pool, which would take most of a call's processor time.
    """

    def __init__(self, redis_url: str, *, rps: int, burst: int) -> None:
        self._options = {
            "socket_timeout": TIMEOUT_SEC,
            "socket_connect_timeout": TIMEOUT_SEC,
            "socket_keepalive": True,
            "retry": Retry(NoBackoff(), 0),
            "protocol": 2,  # version 3 begins with a greeting, and all it adds is what a server sends unasked
        }
        self._redis_url = redis_url
        # It only makes connections: one for each thread that asks at the same moment.
        self._pool = ConnectionPool.from_url(redis_url, max_connections=sys.maxsize, **self._options)
        self._idle: deque[ConnectionInterface] = deque()
        self._interval = 1_000_000 / rps
        self._burst = burst
        self._known_script = self._pack("EVALSHA", hashlib.sha1(_SCRIPT.encode(), usedforsecurity=False).hexdigest())
        self._whole_script = self._pack("EVAL", _SCRIPT)
        self._lock = threading.Lock()
        self._is_away = False

    def take(self, key: str) -> Allowance | None:
        """Count one request of a key; returns None while Redis is away: then no request is limited.

        A request may count twice if Redis closes an idle connection at that moment: it is sent once more.
        """
        if self._is_away:
            return None
        try:
            remaining, reset_after, retry_after = self._run_script(f"{_PREFIX}:{key}".encode())
        except RedisError as error:
            # Also idle ones lead to a server that is gone, or that takes no writes any more.
            self.close()
            self._note_away(error)
            return None
        return Allowance(
            is_exceeded=retry_after > 0,
            limit=self._burst,
            remaining=remaining,
            reset_after=reset_after,
            retry_after=retry_after,
        )

    def close(self) -> None:
        """Close the idle connections."""
        with suppress(IndexError):
            while True:
                self._idle.pop().disconnect()  # type: ignore[no-untyped-call]

    def _run_script(self, key: bytes) -> list[int]:
        try:
            connection, was_open = self._idle.pop(), True
        except IndexError:
            connection, was_open = self._pool.make_connection(), False
        try:
            try:
                counted = self._call(connection, self._known_script, key)
            except RedisConnectionError:
                if not was_open:
                    raise
                # Redis closes connections that are idle, and all when it restarts. A new one tells whether it is away.
                counted = self._call(connection, self._known_script, key)
        except BaseException:
            # An answer that nobody has read would be taken for the next one.
            connection.disconnect()  # type: ignore[no-untyped-call]
            raise
        self._idle.append(connection)
        return counted

    def _call(self, connection: ConnectionInterface, script: tuple[bytes, bytes], key: bytes) -> list[int]:
        """Call the script, over a new connection if `connection` is not open."""
        before, after = script
        packed = b"%b$%d\r\n%b\r\n%b" % (before, len(key), key, after)
        connection.send_packed_command([packed], check_health=False)  # type: ignore[no-untyped-call]
        try:
            answer = cast("bytes", connection.read_response())
        except NoScriptError:  # Redis keeps no scripts over a restart
            return self._call(connection, self._whole_script, key)
        return [int(number) for number in answer.split()]

    def _pack(self, command: str, script: str) -> tuple[bytes, bytes]:
        """Return a call of the script in Redis' protocol: what comes before the key, and what comes after it.

        To pack all of it for each request would take longer than to read the answer.
        """
        connection = self._pool.make_connection()
        packed = connection.pack_command(command, script, 1, "?", self._interval, self._burst)  # type: ignore[no-untyped-call]
        before, _, after = b"".join(packed).partition(b"$1\r\n?\r\n")
        return before, after

    def _note_away(self, error: RedisError) -> None:
        with self._lock:
            if self._is_away:
                return  # pragma: no cover - only where two requests find it away at the same moment
            self._is_away = True
        _log.warning("Redis does not answer (%s): requests pass without a rate limit", type(error).__name__)
        try:
            threading.Thread(target=self._wait_for_redis, name="rate-limit-probe", daemon=True).start()
        except RuntimeError:  # the system has no thread left, so the next request tries Redis itself
            self._is_away = False

    def _wait_for_redis(self) -> None:
        """Repeat a write until Redis accepts it, as the limit needs, so that no request has to try."""
        redis = Redis.from_url(self._redis_url, **self._options)
        while True:
            time.sleep(_PROBE_SEC)
            try:
                redis.set(f"{_PREFIX}:probe", "", ex=1)
            except (RedisError, OSError):
                continue
            redis.close()
            self._is_away = False
            _log.info("Redis answers again: requests are limited")
            return
