"""Check the messages that a worker takes from a queue. Only messages as this broker sends them pass.

A message is read here once, and written again with only the fields that the broker uses. So Celery never gets an
option that somebody else put into a queue, such as a time limit, a callback or a compression. A message that cannot be
read is dropped. Its log line has no content of the message, which may be a secret.

If Redis refuses an acknowledgement, it is sent again later. Kombu would forget it. Then the worker could hold one
message less at a time.
"""

from __future__ import annotations

import base64
import binascii
import functools
import re
import uuid
from contextlib import contextmanager
from queue import Empty
from typing import TYPE_CHECKING, Any

import structlog
from celery import signals
from kombu.transport import TRANSPORT_ALIASES, redis
from kombu.utils.json import dumps, loads

from broker_common.adapters.celery_names import ARGUMENTS, QUEUES
from broker_worker.redelivery import SharedTimeQoS
from broker_worker.trace_context import read_trace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_CONTENT = {"content-type": "application/json", "content-encoding": "utf-8"}
_BODY_ENCODING = "base64"
_ID = re.compile(r"[!-~]{1,255}")
_TEXTS = ("root_id", "parent_id", "argsrepr", "kwargsrepr", "origin", "run_request_id", "run_principal")
"""Headers that are only shown: in Flower, or in the log."""
_OPTIONS = ("eta", "expires", "retries", "group", "chord", "compression")
"""Headers by which Celery would run a task in another way, which this broker never uses."""
# All errors that kombu raises when it reads JSON or an envelope of another shape.
_SHAPE_ERRORS = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger("broker")


class Unreadable(ValueError):
    """This broker did not send the message. The text names the field, but never its value."""


def read(message: Any, queue: str) -> dict[str, Any]:  # noqa: ANN401 - any JSON
    """Return a queue's message with only the fields that this broker uses. Raises `Unreadable`."""
    if not isinstance(message, dict):
        raise Unreadable("it is not a JSON object")
    headers, properties = _of_type(message, "headers", dict), _of_type(message, "properties", dict)
    for name, value in _CONTENT.items():
        if message.get(name) != value:
            raise Unreadable(f"{name} is not {value}")
    if properties.get("body_encoding") != _BODY_ENCODING:
        raise Unreadable(f"body_encoding is not {_BODY_ENCODING}")
    task, task_id = _of_type(headers, "task", str), _of_type(headers, "id", str)
    if task not in ARGUMENTS:
        raise Unreadable("task is unknown")
    if not _ID.fullmatch(task_id):
        raise Unreadable("id must be 1 to 255 printable ASCII characters")
    _refuse_options(headers, _OPTIONS)
    # The messages of workers have these. Only the limits of the task count.
    limits = headers.get("timelimit") or []
    if not isinstance(limits, list) or not all(isinstance(limit, int | float | None) for limit in limits):
        raise Unreadable("timelimit is not a list of numbers")
    kwargs = _read_body(_of_type(message, "body", str), ARGUMENTS[task])
    body = dumps([[], kwargs, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}])
    texts = {name: headers[name] for name in _TEXTS if isinstance(headers.get(name), str)}
    return {
        **_CONTENT,
        "body": base64.b64encode(body.encode()).decode(),
        "headers": {**texts, **read_trace(headers), "task": task, "id": task_id},
        "properties": {
            "body_encoding": _BODY_ENCODING,
            "correlation_id": task_id,
            # Each delivery has a new tag, because kombu finds the message by it.
            "delivery_tag": str(uuid.uuid4()),
            # A message that is not acknowledged returns to its queue.
            "delivery_info": {"exchange": "", "routing_key": queue},
            "priority": 0,
        },
    }


def _read_body(body: str, arguments: dict[str, type]) -> dict[str, Any]:
    """Return the task's arguments, all of them by name."""
    try:
        payload = loads(base64.b64decode(body, validate=True))
    except binascii.Error as error:
        raise Unreadable("body is not base64") from error
    except _SHAPE_ERRORS as error:
        raise Unreadable("body is not JSON") from error
    match payload:
        case [[], dict() as kwargs, (dict() | None) as embed]:
            pass
        case _:
            raise Unreadable("body is not a task's arguments by name")
    _refuse_options(embed or {}, tuple(embed or {}))
    for name, value in kwargs.items():
        if name not in arguments:
            raise Unreadable("body has an argument that the task does not take")
        if not isinstance(value, arguments[name]):
            raise Unreadable(f"{name} is not of the type {arguments[name].__name__}")
    return kwargs


def _of_type(values: dict[str, Any], name: str, kind: type) -> Any:  # noqa: ANN401 - of that type
    value = values.get(name)
    if not isinstance(value, kind):
        raise Unreadable(f"{name} is missing or not of the type {kind.__name__}")
    return value


def _refuse_options(values: dict[str, Any], names: tuple[str, ...]) -> None:
    for name in names:
        value = values.get(name)
        if any(value) if isinstance(value, list) else value:
            raise Unreadable(
                f"{name if name in _OPTIONS else 'an option of the body'} is set, and this broker never sets it"
            )


class CheckedQoS(SharedTimeQoS):
    """Kombu's list of unacknowledged messages. If Redis refuses to settle one, it is settled later."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - kombu's signature
        super().__init__(*args, **kwargs)
        self._unsettled: dict[str, Callable[[], None]] = {}

    def ack(self, delivery_tag: str) -> None:
        """Acknowledge a message, now or as soon as Redis allows it."""
        self._settle(delivery_tag, functools.partial(super().ack, delivery_tag))

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """Reject a message, now or as soon as Redis allows it."""
        self._settle(delivery_tag, functools.partial(super().reject, delivery_tag, requeue=requeue))

    def restore_visible(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - kombu's signature
        """Settle the messages that Redis has refused, before kombu's own work of each second."""
        for tag, settle in list(self._unsettled.items()):
            settle()
            del self._unsettled[tag]
        super().restore_visible(*args, **kwargs)

    def _settle(self, tag: str, settle: Callable[[], None]) -> None:
        try:
            settle()
        except self.channel.connection_errors as error:  # type: ignore[attr-defined] # the stubs leave it out
            self._unsettled[tag] = settle
            _log.warning(
                "Redis refuses an acknowledgement; it is sent again until Redis takes it",
                action="acknowledge",
                outcome="error",
                error=type(error).__name__,
            )


class CheckedChannel(redis.Channel):
    """Kombu's channel, which drops messages that cannot be read."""

    QoS = CheckedQoS

    def close(self) -> None:
        """Close the channel, also if Redis is gone. Raises one of `connection_errors` if messages cannot go back."""
        try:
            super().close()
        except self.connection_errors:  # type: ignore[attr-defined] # the stubs leave it out
            # Kombu first reads what it waits for. If that fails, it has closed nothing, and does not wait any more.
            # Celery would close the channel later, when kombu has forgotten the address, and the worker would end.
            super().close()

    def _brpop_read(self, **options: Any) -> bool:  # noqa: ANN401 - kombu's signature
        with _dropping_unreadable("queue"):
            return bool(super()._brpop_read(**options))  # type: ignore[misc] # the stubs leave it out

    def _receive_one(self, client: Any) -> Any:  # noqa: ANN401 - kombu leaves it untyped
        with _dropping_unreadable("channel"):
            return super()._receive_one(client)  # type: ignore[misc] # the stubs leave it out


class CheckedTransport(redis.Transport):
    """Kombu's transport with `CheckedChannel`. It checks the messages of this broker's queues by `read`."""

    Channel = CheckedChannel

    def _deliver(self, message: Any, queue: str | None) -> None:  # noqa: ANN401 - any JSON
        # Other queues are Celery's own, for its commands to workers and their answers.
        super()._deliver(read(message, queue) if queue in QUEUES else message, queue)


@contextmanager
def _dropping_unreadable(origin: str) -> Iterator[None]:
    try:
        yield
    except _SHAPE_ERRORS as error:
        reason = str(error) if isinstance(error, Unreadable) else type(error).__name__
        _log.error(
            f"A message of a {origin} cannot be read, and was dropped", action="receive", outcome="error", error=reason
        )
        signals.task_rejected.send(sender=None, message=None, exc=None)
        raise Empty from None


def check_what_is_received() -> None:
    """Make this process read its queues through `CheckedTransport`."""
    path = f"{__name__}:{CheckedTransport.__name__}"
    TRANSPORT_ALIASES.update({"redis": path, "rediss": path})
