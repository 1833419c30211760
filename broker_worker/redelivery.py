"""Deliver unacknowledged messages again by Redis' clock, which all workers share."""

from __future__ import annotations

import time
from typing import Any

from kombu.transport import redis


class SharedTimeQoS(redis.QoS):
    """Kombu's list of unacknowledged messages, which uses Redis' clock.

    By its own clock, a worker that is hours ahead would deliver the messages again that other workers still work on.
    """

    def restore_visible(self, *args: Any, **options: Any) -> None:  # noqa: ANN401 - kombu's signature
        """Deliver messages again that are unacknowledged for longer than the visibility timeout."""
        channel: Any = self.channel  # the stubs only know a channel of any transport
        with channel.conn_or_acquire() as client:
            seconds, microseconds = client.time()
        ahead_sec = time.time() - (seconds + microseconds / 1e6)
        self.visibility_timeout = channel.visibility_timeout + ahead_sec
        super().restore_visible(*args, **options)
