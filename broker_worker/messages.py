"""What the worker does with messages that are none: log them and go on.

Celery itself rejects unknown tasks, wrong arguments, and bodies that do not parse. Two kinds it does not foresee, and
they end the worker, which may then find the same message again: an entry of a queue that is no message at all, and a
task whose body or headers have another shape.
"""

from __future__ import annotations

from queue import Empty
from typing import Any

import structlog
from celery.exceptions import InvalidTaskError
from celery.worker.request import Request
from kombu.transport import TRANSPORT_ALIASES, redis, virtual

from broker_worker.redelivery import SharedTimeQoS

_SHAPE_ERRORS = (AttributeError, KeyError, TypeError, ValueError)

_log: structlog.stdlib.BoundLogger = structlog.get_logger("broker")


class CheckedRequest(Request):
    """Celery's request, which is invalid when its message has not the shape of one."""

    def __init__(self, message: virtual.Message, **options: Any) -> None:  # noqa: ANN401 - Celery's signature
        try:
            super().__init__(message, **options)
            args, kwargs, embed = self._payload  # type: ignore[attr-defined] # the stubs leave it out
            limits = message.headers.get("timelimit") or ()
            has_shape = (
                isinstance(self.id, str)
                and isinstance(args, list | tuple)
                and isinstance(kwargs, dict)
                and isinstance(embed, dict | None)
                and isinstance(limits, list | tuple)
            )
        except _SHAPE_ERRORS as error:
            raise InvalidTaskError(f"not the shape of a task's message: {error!r}") from error
        if not has_shape:
            raise InvalidTaskError("not the shape of a task's message")


class CheckedChannel(redis.Channel):
    """Kombu's channel, which drops what it cannot read off a queue."""

    QoS = SharedTimeQoS

    def _brpop_read(self, **options: Any) -> bool:  # noqa: ANN401 - kombu's signature
        try:
            return bool(super()._brpop_read(**options))  # type: ignore[misc] # the stubs leave it out
        except _SHAPE_ERRORS:
            _log.exception("An entry of a queue is no message, and was dropped", action="receive", outcome="error")
            raise Empty from None


class CheckedTransport(redis.Transport):
    """Kombu's transport with that channel, which refuses a message without an envelope before it counts as received."""

    Channel = CheckedChannel

    def _deliver(self, message: Any, queue: str | None) -> None:  # noqa: ANN401 - whatever JSON a queue holds
        headers = message["headers"]
        if not isinstance(headers.get("task", ""), str):
            raise TypeError("the message's headers name no task")
        super()._deliver(message, queue)


def check_what_is_received() -> None:
    """Have this process read its queues through `CheckedTransport`."""
    path = f"{__name__}:{CheckedTransport.__name__}"
    TRANSPORT_ALIASES.update({"redis": path, "rediss": path})
