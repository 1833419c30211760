"""When a message that nobody has acknowledged is delivered again: by Redis' clock, which all workers share."""

from __future__ import annotations

import time
from typing import Any

from kombu.transport import redis


class SharedTimeQoS(redis.QoS):
    """Kombu's book of messages under way, read by Redis' clock.

    By its own clock, a worker that is hours ahead would take what others are doing for lost, and deliver it again.
    """

    def restore_visible(self, *args: Any, **options: Any) -> None:  # noqa: ANN401 - kombu's signature
        """Deliver again what has been under way for longer than the visibility time-out."""
        channel: Any = self.channel  # the stubs know it as any transport's
        with channel.conn_or_acquire() as client:
            seconds, microseconds = client.time()
        ahead_sec = time.time() - (seconds + microseconds / 1e6)
        self.visibility_timeout = channel.visibility_timeout + ahead_sec
        super().restore_visible(*args, **options)
