"""The API without some of its parts, to measure what each costs: `gunicorn … tests.long.bench.parts_wsgi:app`.

`BENCH_WITHOUT` is the number of parts to leave out, in the order of `PARTS`.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from itertools import count
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from flask import Flask, Response

from broker_api import app as api
from broker_api.startup import build_app
from broker_common import services
from broker_common.adapters import dynamo_base
from broker_common.adapters.dynamo_items import index_key
from broker_common.adapters.dynamo_table import INDEX
from broker_common.adapters.dynamo_transport import DynamoTransport
from broker_common.adapters.recorders import Recorders
from broker_common.settings import Process
from broker_common.startup import read_settings
from tests.long.bench.parts import PARTS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from broker_common.adapters.dynamo_fields import Item

_PATH = "/v1/allocate"
_BODY = b'{"sandbox_id": "2009521", "name": "lab-adventure-0087", "external_id": "identity/accounts/7d2f0c7e", "lease_id": "x"}'


class _NoLimit:
    """Replaces the rate limit."""

    def __init__(self, *_: object, **__: object) -> None: ...

    def take(self, _key: str) -> None:
        """Let the request pass uncounted."""


class _Answered(DynamoTransport):
    """Answers the calls of an allocation itself: candidates without end, and each transaction is applied."""

    _numbers = count()

    def transact_once(self, **_request: Any) -> None:
        """Return as for a transaction that was applied."""

    def read(self, operation: str, **request: Any) -> Any:
        """Return new candidates, as dense as those of a large pool; send any other read."""
        if operation != "query" or request.get("IndexName") != INDEX:
            return super().read(operation, **request)
        values = request["ExpressionAttributeValues"]
        items = [self._candidate() for _ in range(request["Limit"])]
        last = index_key(items[-1]["sandbox_id"]["S"], values[":status"]["S"], int(values[":order"]["N"]) + 1)
        return {"Items": items, "LastEvaluatedKey": last}

    def _candidate(self) -> Item:
        number = f"{next(self._numbers)}"
        return {
            "PK": {"S": f"SBX#{number}"},
            "sandbox_id": {"S": number},
            "name": {"S": f"lab-adventure-{number}"},
            "external_id": {"S": f"identity/accounts/{number}"},
            "version": {"N": "1"},
        }


class _Shortcut:
    """An application that answers allocate by `answer`, and everything else by `behind`."""

    def __init__(self, behind: Flask, answer: Callable[[Any, Any], Iterable[bytes]]) -> None:
        self.extensions = behind.extensions  # the worker looks here whether it drains
        self._behind = behind
        self._answer = answer

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        return self.wsgi_app(environ, start_response)

    def wsgi_app(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        answer = self._answer if environ["PATH_INFO"] == _PATH else self._behind
        return answer(environ, start_response)


def _bare_flask() -> Flask:
    bare = Flask("bare", static_folder=None)

    @bare.post(_PATH)
    def allocate() -> Response:
        return Response(_BODY, 201, mimetype="application/json")

    return bare


def _plain(_environ: dict[str, Any], start_response: Any) -> list[bytes]:
    start_response("201 CREATED", [("Content-Type", "application/json"), ("Content-Length", str(len(_BODY)))])
    return [_BODY]


def build(environ: Mapping[str, str]) -> Flask | _Shortcut:
    """Return the application that the environment describes."""
    without = PARTS[: int(environ["BENCH_WITHOUT"])]
    level = {"LOG_LEVEL": "ERROR"} if "log lines" in without else {}
    with ExitStack() as replaced:

        def replace(where: Any, name: str, by: object) -> None:
            replaced.enter_context(patch.object(where, name, by))

        if "metrics" in without:
            replace(services, "Recorders", lambda _: Recorders([]))
            replace(api, "register_metrics", lambda *_: None)
            replace(api, "describe_pages", lambda *_: None)  # it describes /metrics, which is not served
        if "rate limit" in without:
            replace(services, "RedisRateLimit", _NoLimit)
        if "DynamoDB client" in without:
            replace(dynamo_base, "DynamoTransport", _Answered)
        app = build_app(read_settings({**environ, **level}, process=Process.API))
    if "Flask" in without:
        return _Shortcut(app, _plain)
    if "hooks, marshmallow, core" in without:
        return _Shortcut(app, _bare_flask())
    return app


app = build(os.environ)
