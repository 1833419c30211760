"""DynamoDB Local for tests and the bench: when it counts as ready."""

from __future__ import annotations

import pytest

from deploy.dev.dynamodb_local import dynamodb_local
from deploy.dev.processes import Process
from tests.http_server import Handler, serving


@pytest.mark.usefixtures("dynamodb_local_url")
def test_it_is_ready_only_when_it_lists_its_tables() -> None:
    calls: list[tuple[str, str, bytes]] = []
    statuses = iter([500, 200])

    class Store(Handler):
        def reply(self) -> None:
            calls.append((self.command, self.headers["X-Amz-Target"], self.read_body()))
            self.answer(next(statuses), b"{}")

    with serving(Store) as server:
        process = Process(dynamodb_local(server.server_port), lambda _name, _line: None)
        assert [process.is_ready(), process.is_ready()] == [False, True]
    assert calls == 2 * [("POST", "DynamoDB_20120810.ListTables", b"{}")]
