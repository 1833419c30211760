"""The limit: the broker's own transaction by bare boto3, from as many processes and threads as the broker has clients.

Each transaction has a sandbox of its own: there is no search for a candidate, no conflict, and no HTTP. The requests are
those of the broker's store: same items (the claim, the sandbox, the fact), same conditions. The client is boto3 as its
documentation describes it: nothing of the broker is in it.
"""

from __future__ import annotations

import multiprocessing
import threading
import time
import uuid
from random import Random
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast
from unittest.mock import patch

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError

from broker_common.adapters import dynamo_base
from broker_common.adapters.dynamo_store import DynamoStore
from broker_common.adapters.recorders import Recorders
from broker_common.adapters.system_clock import SystemClock
from broker_common.core.ids import new_id
from broker_common.core.lease import candidate_of
from broker_common.core.policy import Policy
from tests.fakes import BY, make_claim
from tests.long.bench.load import Answer, Load
from tests.long.bench.servers import REGION

if TYPE_CHECKING:
    from collections.abc import Sequence
    from multiprocessing.synchronize import Barrier

    from mypy_boto3_dynamodb import DynamoDBClient

    from broker_common.core.sandbox import Sandbox

_MOST_THREADS = 64
_ALLOCATED = 201
_CONNECT_EVERY_SEC = 0.005
"""Between the first requests of two threads. DynamoDB Local queues 50 new connections; Linux drops those beyond."""


def make_bare_client(dynamodb_url: str) -> DynamoDBClient:
    """Make boto3's low-level client with the public options by which a careful user makes it fast.

    A connection for each thread, because boto3 closes those beyond `max_pool_connections`. No validation of parameters,
    and one fixed user agent: both save processor time in each call. A request that fails at DynamoDB, or is not answered,
    is sent again, up to twice; `ClientRequestToken` makes that safe.
    """
    return boto3.client(
        "dynamodb",
        region_name=REGION,
        endpoint_url=dynamodb_url,
        config=Config(
            max_pool_connections=_MOST_THREADS,
            parameter_validation=False,
            retries={"mode": "standard"},
            user_agent="bare",
            connect_timeout=10,
            read_timeout=30,
        ),
    )


class Bare:
    """Processes that send bare transactions. Use it in a `with` statement."""

    def __init__(self, dynamodb_url: str, *, processes: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._processes = processes
        self._pool = context.Pool(processes, _Process.start, (dynamodb_url, context.Barrier(processes)))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.terminate()
        self._pool.join()

    def allocate(self, table: str, sandboxes: Sequence[Sandbox], *, clients: int) -> Load:
        """Allocate each sandbox to a new track, `clients` at a time in all processes together.

        A transaction that DynamoDB refuses has the status of that answer. One that is never answered is an error.
        """
        threads = max(1, clients // self._processes)
        shares = [sandboxes[number :: self._processes] for number in range(self._processes)]
        parts = self._pool.starmap(_Process.run, [(table, share, threads) for share in shares], chunksize=1)
        return Load(
            [answer for part in parts for answer in part.answers],
            sum(part.cpu_seconds for part in parts),
            sent_again=sum(part.sent_again for part in parts),
        )


class _Process:
    """The inside of one of the processes."""

    client: ClassVar[Any]
    together: ClassVar[Barrier]
    connected: ClassVar[int] = 0
    """The most threads so far: each has made a connection."""

    @classmethod
    def start(cls, dynamodb_url: str, together: Barrier) -> None:
        """Create the client."""
        cls.client = make_bare_client(dynamodb_url)
        cls.together = together

    @classmethod
    def run(cls, table: str, sandboxes: Sequence[Sandbox], threads: int) -> Load:
        """Send one transaction for each sandbox, at the same time as the other processes.

        If there are more threads than before, they begin one after another: that run warms up.
        """
        left = iter(list(enumerate(transactions(table, sandboxes))))
        answers: list[Answer] = []
        sent_again: list[int] = []
        begin = threading.Event()

        def act() -> None:
            begin.wait()
            for number, request in left:
                began = time.monotonic()
                status = _ALLOCATED
                try:
                    answer = cls.client.transact_write_items(**request)
                except ClientError as error:
                    answer = cast("dict[str, Any]", error.response)
                    status = answer["ResponseMetadata"]["HTTPStatusCode"]
                answers.append(Answer(number, status, began, time.monotonic()))
                sent_again.append(answer["ResponseMetadata"]["RetryAttempts"])

        workers = [threading.Thread(target=act) for _ in range(threads)]
        is_new, cls.connected = threads > cls.connected, max(threads, cls.connected)
        if is_new:
            begin.set()
        for worker in workers:
            worker.start()
            time.sleep(_CONNECT_EVERY_SEC if is_new else 0)
        cls.together.wait()
        cpu = time.process_time()
        begin.set()
        for worker in workers:
            worker.join()
        assert len(answers) == len(sandboxes), "a transaction was not answered"
        return Load(answers, time.process_time() - cpu, sent_again=sum(sent_again))


class _Notebook:
    """Replaces the store's transport, and keeps the transactions instead of sending them."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []

    def read(self, *_: object, **__: object) -> dict[str, int]:
        """Say that there is no webhook endpoint, which is all that the store asks."""
        return {"Count": 0}

    def transact_once(self, **request: Any) -> None:
        self.requests.append(request)


def transactions(table: str, sandboxes: Sequence[Sandbox]) -> list[dict[str, Any]]:
    """Return the requests by which the broker's store would allocate each sandbox to a new track."""
    notebook, client_of_the_transport = _Notebook(), cast("Any", None)
    rng, now, policy = Random(), int(time.time()), Policy()
    with patch.object(dynamo_base, "DynamoTransport", lambda *_, **__: notebook):
        store = DynamoStore(client_of_the_transport, table, clock=SystemClock(), rng=rng, recorder=Recorders([]))
    for sandbox in sandboxes:
        track = str(uuid.uuid4())
        times = {"allocated_at": now, "expires_at": now + policy.lab_duration_sec}
        claim = make_claim(sandbox, track, lease_id=new_id(rng), **times)
        store.allocate(candidate_of(sandbox), claim, by=BY, token=new_id(rng))
    return notebook.requests
