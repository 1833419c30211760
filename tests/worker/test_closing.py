"""A worker's connection to a Redis that is gone."""

from __future__ import annotations

from contextlib import suppress

from kombu import Connection, Consumer, Exchange, Queue
from kombu.common import ignore_errors

from broker_worker.messages import CheckedTransport
from deploy.dev.processes import free_ports
from deploy.dev.programs import valkey
from tests.backends import running


def test_can_be_closed_while_messages_are_in_work_and_others_are_waited_for() -> None:
    got: list[object] = []
    with running(valkey(free_ports(1)[0])) as address:
        connection = Connection(f"redis://{address}/0", transport=CheckedTransport)
        # Like a worker's: one channel for tasks, and one for commands, which go to every worker.
        everybody = Exchange("commands", "fanout", durable=False)
        queues = Queue("tasks"), Queue("worker.commands", everybody, auto_delete=True, durable=False)
        for queue, channel in zip(queues, (connection.default_channel, connection.channel()), strict=True):
            Consumer(channel, queue, callbacks=[lambda _, message: got.append(message)]).consume()
        with suppress(TimeoutError):
            connection.drain_events(timeout=0.1)  # subscribes
        with Connection(f"redis://{address}/0", transport=CheckedTransport) as sender:
            sender.SimpleQueue("tasks").put({})
            sender.Producer().publish({}, exchange=everybody, declare=[everybody])
        for _ in range(2):
            connection.drain_events(timeout=10)
        assert len(got) == 2
        with suppress(TimeoutError):
            connection.drain_events(timeout=0.1)

    # What Celery does when it has lost the connection. An error here ends the worker.
    connection.collect()
    ignore_errors(connection, connection.close)
