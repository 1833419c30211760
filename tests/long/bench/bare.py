"""The limit: the broker's own transaction by bare boto3, from as many processes and threads as the broker has clients.

Each transaction has a sandbox of its own: there is no search for a candidate, no conflict, and no HTTP. The requests are
those of the broker's store: same items, same conditions, same client.
"""

from __future__ import annotations

import multiprocessing
import threading
import time
import uuid
from random import Random
from typing import TYPE_CHECKING, Any, ClassVar, Self

from broker_common.adapters.dynamo_store import DynamoStore
from broker_common.adapters.dynamo_transport import make_client
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

    from broker_common.core.sandbox import Sandbox

_MOST_THREADS = 64
_ALLOCATED = 201


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
        """Allocate each sandbox to a new track, `clients` at a time in all processes together."""
        threads = max(1, clients // self._processes)
        shares = [sandboxes[number :: self._processes] for number in range(self._processes)]
        parts = self._pool.starmap(_Process.run, [(table, share, threads) for share in shares], chunksize=1)
        return Load([answer for part in parts for answer in part.answers], sum(part.cpu_seconds for part in parts))


class _Process:
    """The inside of one of the processes."""

    client: ClassVar[Any]
    together: ClassVar[Barrier]

    @classmethod
    def start(cls, dynamodb_url: str, together: Barrier) -> None:
        """Create the client, with the broker's options."""
        cls.client = make_client(region=REGION, endpoint_url=dynamodb_url, timeout_sec=30, connections=_MOST_THREADS)
        cls.together = together

    @classmethod
    def run(cls, table: str, sandboxes: Sequence[Sandbox], threads: int) -> Load:
        """Send one transaction for each sandbox, at the same time as the other processes."""
        left = iter(list(enumerate(transactions(table, sandboxes))))
        answers: list[Answer] = []
        begin = threading.Event()

        def act() -> None:
            begin.wait()
            for number, request in left:
                began = time.monotonic()
                cls.client.transact_write_items(**request)
                answers.append(Answer(number, _ALLOCATED, began, time.monotonic()))

        workers = [threading.Thread(target=act) for _ in range(threads)]
        for worker in workers:
            worker.start()
        cls.together.wait()
        cpu = time.process_time()
        begin.set()
        for worker in workers:
            worker.join()
        assert len(answers) == len(sandboxes), "a transaction failed"
        return Load(answers, time.process_time() - cpu)


class _Notebook:
    """Replaces the client, and keeps the requests instead of sending them."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []

    def transact_write_items(self, **request: Any) -> dict[str, Any]:
        self.requests.append(request)
        return {}


def transactions(table: str, sandboxes: Sequence[Sandbox]) -> list[dict[str, Any]]:
    """Return the requests by which the broker's store would allocate each sandbox to a new track."""
    notebook: Any = _Notebook()
    rng, now, policy = Random(), int(time.time()), Policy()
    store = DynamoStore(notebook, table, clock=SystemClock(), rng=rng, recorder=Recorders([]))
    for sandbox in sandboxes:
        track = str(uuid.uuid4())
        times = {"allocated_at": now, "expires_at": now + policy.lab_duration_sec}
        claim = make_claim(sandbox, track, lease_id=new_id(rng), **times)
        store.allocate(candidate_of(sandbox), claim, by=BY, token=new_id(rng))
    requests: list[dict[str, Any]] = notebook.requests
    return requests
