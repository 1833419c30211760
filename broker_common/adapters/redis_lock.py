"""The job lock in Redis: one run of a job at a time, over all workers."""

from __future__ import annotations

import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from redis.exceptions import LockError, RedisError

from broker_common.core.errors import QueueUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from redis import Redis
    from redis.lock import Lock


class RedisJobLocks:
    """Implements the `JobLocks` port: a lock ends by itself `expiry_sec` after its owner stopped renewing it."""

    def __init__(self, redis: Redis, *, expiry_sec: float = 30, prefix: str = "sandbox-broker:locks") -> None:
        self._redis = redis
        self._expiry_sec = expiry_sec
        self._prefix = prefix

    @contextmanager
    def hold(self, job: str, *, owner: str) -> Iterator[bool]:
        """Hold a job's lock inside the context; yields False if another owner holds it.

        An owner that still holds it, because its earlier run was cut off, gets it again. Raises `QueueUnavailable` if
        Redis does not answer.
        """
        # Not thread-local: the thread that renews it needs the owner's token, too.
        lock = self._redis.lock(f"{self._prefix}:{job}", timeout=self._expiry_sec, thread_local=False)
        try:
            is_held = lock.acquire(blocking=False, token=owner) or _enter_again(lock, owner)
        except RedisError as error:
            raise QueueUnavailable("Redis, which holds the job locks, does not answer") from error
        if not is_held:
            yield False
            return
        over = threading.Event()
        renewal = threading.Thread(target=self._renew, args=(lock, over), daemon=True)
        renewal.start()
        try:
            yield True
        finally:
            over.set()
            renewal.join()
            # The lock may have expired already. If Redis is away, it will expire.
            with suppress(RedisError):
                lock.release()

    def _renew(self, lock: Lock, over: threading.Event) -> None:
        while not over.wait(self._expiry_sec / 3):
            with suppress(RedisError):
                lock.reacquire()


def _enter_again(lock: Lock, owner: str) -> bool:
    lock.local.token = owner.encode()
    try:
        return lock.reacquire()
    except LockError:
        return False
