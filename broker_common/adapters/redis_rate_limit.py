"""The rate limit that all API processes share in Redis: a token bucket for each key, one round trip for each request.

The bucket is throttled-py's GCRA (the generic cell rate algorithm): one small Redis key, which expires when the bucket
is full again. So no caller leaves a key behind.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from typing import TYPE_CHECKING

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry
from throttled import RateLimiterType, Throttled, rate_limiter
from throttled.exceptions import StoreUnavailableError
from throttled.store import RedisStore

from broker_common.core.ports import Allowance

if TYPE_CHECKING:
    from throttled import RateLimitResult

TIMEOUT_SEC = 0.05
"""Time that one request loses when Redis stops answering. After it no request waits until Redis answers again."""
_PROBE_SEC = 0.5
_KEY_PREFIX = "sandbox-broker:rate"

_log = logging.getLogger(__name__)


class RedisRateLimit:
    """Implements the `RateLimit` port: each key may make `burst` requests at once, and `rps` a second without end."""

    def __init__(self, redis_url: str, *, rps: int, burst: int) -> None:
        self._options = {
            "socket_timeout": TIMEOUT_SEC,
            "socket_connect_timeout": TIMEOUT_SEC,
            "retry": Retry(NoBackoff(), 0),
        }
        self._redis_url = redis_url
        self._limit = Throttled(
            using=RateLimiterType.GCRA.value,
            quota=rate_limiter.per_sec(rps, burst=burst),
            store=RedisStore(server=redis_url, options={"CONNECTION_POOL_KWARGS": self._options}),
            key_prefix=_KEY_PREFIX,
        )
        self._burst = burst
        self._lock = threading.Lock()
        self._is_away = False

    def take(self, key: str) -> Allowance | None:
        """Count one request of a key; returns None while Redis is away: then no request is limited."""
        if self._is_away:
            return None
        try:
            result: RateLimitResult = self._limit.limit(key)
        except StoreUnavailableError as error:
            self._note_away(error.__cause__ or error)
            return None
        state = result.state
        return Allowance(
            is_exceeded=result.limited,
            limit=self._burst,
            remaining=max(0, state.remaining),
            reset_after=math.ceil(state.reset_after),
            retry_after=max(1, math.ceil(state.retry_after)) if result.limited else 0,
        )

    def _note_away(self, error: BaseException) -> None:
        with self._lock:
            if self._is_away:
                return  # pragma: no cover - only where two requests find it away at the same moment
            self._is_away = True
        _log.warning("Redis does not answer (%s): requests pass without a rate limit", type(error).__name__)
        threading.Thread(target=self._wait_for_redis, name="rate-limit-probe", daemon=True).start()

    def _wait_for_redis(self) -> None:
        """Repeat a write until Redis accepts it, as the limit needs, so that no request has to try."""
        redis = Redis.from_url(self._redis_url, **self._options)
        while True:
            time.sleep(_PROBE_SEC)
            try:
                redis.set(f"{_KEY_PREFIX}:probe", "", ex=1)
            except (RedisError, OSError):
                continue
            redis.close()
            self._is_away = False
            _log.info("Redis answers again: requests are limited")
            return
