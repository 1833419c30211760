"""A whole API in this process, whose store, queue and clock a test controls."""

from __future__ import annotations

import hashlib
from collections import deque
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry

from broker_api import jobs
from broker_api.app import create_app
from broker_common.adapters.minute_counts import MinuteCounts
from broker_common.adapters.prometheus_recorder import PrometheusApiRecorder
from broker_common.adapters.recorders import Recorders
from broker_common.adapters.renewed import Renewed
from broker_common.core.allocation import Allocator
from broker_common.core.bookings import Bookings
from broker_common.core.candidate_cache import CandidateCache
from broker_common.core.counts import Counts
from broker_common.core.endpoints import Endpoints
from broker_common.core.errors import JobNotFound, QueueUnavailable
from broker_common.core.guard import Guard
from broker_common.core.history import History
from broker_common.core.inventory import Inventory
from broker_common.core.job_registry import JOBS
from broker_common.core.jobs import JobState
from broker_common.core.known_reservations import KnownReservations
from broker_common.core.leases import Leases
from broker_common.core.operations import Operations
from broker_common.core.overview import Breaker, Overviews
from broker_common.core.pauses import PauseCache
from broker_common.core.pool_copy import PoolCopy
from broker_common.core.ports import Allowance
from broker_common.core.purge import Purger
from broker_common.core.reserving import Reserver
from broker_common.core.runs import JobRun
from broker_common.core.search import Search
from broker_common.core.usage import Usage
from broker_common.core.waiting import WaitingLine
from broker_common.core.webhook_url import AllowedUrls
from broker_common.services import ApiServices
from broker_common.settings import Process, Settings
from tests.fakes import START, FakeClock, FakeTableMemory, Fault, FlakyStore, MemoryStore, RecordingRecorder, at_once

if TYPE_CHECKING:
    from collections.abc import Mapping

    from flask import Flask
    from werkzeug.test import TestResponse

    from broker_common.core.ports import Clock, Recorder
    from broker_common.core.principals import Actor
    from broker_common.core.store import SandboxStore

TRACK_TOKEN = "track-token"
ADMIN_TOKEN = "admin-token"
ALLOCATION = {
    *("sandbox_id", "name", "external_id", "lease_id", "allocated_at", "expires_at"),
    *("track_name", "sfdc_account_id"),
}
"""The fields of what a track is allocated."""
ENVIRONMENT = {"BROKER_ENV": "development", "BROKER_API_TOKEN": TRACK_TOKEN, "BROKER_ADMIN_TOKEN": ADMIN_TOKEN}


class FakeQueue:
    """A job queue that runs nothing: each `find` shows the next scripted state, and repeats the last one."""

    def __init__(self) -> None:
        self.down = False
        self.enqueued: list[tuple[str, Actor, Mapping[str, bool]]] = []
        self.states: deque[JobState | None] = deque([JobState.QUEUED])
        """None: not found."""
        self.result: Mapping[str, Any] | None = None
        self.error: str | None = None

    def enqueue(self, job: str, *, by: Actor, flags: Mapping[str, bool]) -> str:
        self._check()
        self.enqueued.append((job, by, flags))
        return f"job-{len(self.enqueued)}"

    def find(self, job_id: str) -> JobRun:
        self._check()
        state = self.states.popleft() if len(self.states) > 1 else self.states[0]
        number = int(job_id.removeprefix("job-")) if job_id.removeprefix("job-").isdigit() else 0
        if state is None or not 0 < number <= len(self.enqueued):
            raise JobNotFound(f"there is no job {job_id!r}")
        job, by, _ = self.enqueued[number - 1]
        final, has_begun = state.is_final, state is not JobState.QUEUED
        return JobRun(
            job_id=job_id,
            job=job,
            state=state,
            principal=by.principal,
            requested_by=by.request_id,
            queued_at=START + 0.5,
            started_at=START + 1.5 if has_begun else None,
            progressed_at=START + 2.5 if has_begun else None,
            result=self.result if final else None,
            error=self.error if final else None,
        )

    def read_last(self, job: str | None, *, limit: int) -> list[JobRun]:
        self._check()
        names = [f"job-{number}" for number, (of, *_) in enumerate(self.enqueued, 1) if job in {None, of}]
        return [self.find(name) for name in reversed(names)][:limit]

    def ping(self) -> None:
        self._check()

    def _check(self) -> None:
        if self.down:
            raise QueueUnavailable("the job queue cannot be reached")


class FakeBreaker:
    """A breaker in the state that a test sets; away while the queue is."""

    def __init__(self, queue: FakeQueue) -> None:
        self.now = Breaker(state="closed")
        self._queue = queue

    def read(self) -> Breaker:
        self._queue.ping()
        return self.now


@dataclass
class Api:
    """An application, with its store, queue and clock."""

    app: Flask
    store: MemoryStore
    clock: FakeClock
    queue: FakeQueue
    recorder: RecordingRecorder
    settings: Settings
    rate_limit: FakeRateLimit
    breaker: FakeBreaker
    track_headers: dict[str, str] = field(default_factory=lambda: {"Authorization": f"Bearer {TRACK_TOKEN}"})
    admin_headers: dict[str, str] = field(default_factory=lambda: {"Authorization": f"Bearer {ADMIN_TOKEN}"})
    accept: str | None = None
    """The header `Accept` of each call; None: no such header."""

    def call(self, method: str, path: str, *, headers: Mapping[str, str] | None = None, **options: Any) -> TestResponse:
        """Make a call without a token."""
        all_headers = ({} if self.accept is None else {"Accept": self.accept}) | dict(headers or {})
        return self.app.test_client().open(path, method=method, headers=all_headers, buffered=True, **options)

    def track(
        self,
        method: str,
        path: str,
        track_id: str = "track-1",
        *,
        headers: Mapping[str, str] | None = None,
        **options: Any,
    ) -> TestResponse:
        """Make a call as a track."""
        all_headers = self.track_headers | {"X-Track-ID": track_id} | dict(headers or {})
        return self.call(method, path, headers=all_headers, **options)

    def admin(
        self, method: str, path: str, *, headers: Mapping[str, str] | None = None, **options: Any
    ) -> TestResponse:
        """Make a call as an operator."""
        return self.call(method, path, headers=self.admin_headers | dict(headers or {}), **options)

    def allocate(self, track_id: str = "track-1", **headers: str) -> dict[str, Any]:
        """Allocate a sandbox and return the answer's body."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return body_of(self.track("POST", "/v1/allocate", track_id, headers=named), 201)


def body_of(answer: TestResponse, status: int | None = None) -> dict[str, Any]:
    """Return an answer's JSON object, after checking the status if one is given."""
    assert answer.status_code == (status or answer.status_code), answer.text
    body = answer.get_json()
    assert isinstance(body, dict)
    return body


def error_of(answer: TestResponse) -> dict[str, Any]:
    """Return an answer's error, after checking its shape."""
    body = body_of(answer)
    assert set(body) == {"error"}
    error: dict[str, Any] = body["error"]
    assert (
        {"code", "message", "request_id"} <= set(error) <= {"code", "message", "request_id", "retry_after", "details"}
    )
    assert error["request_id"] == answer.headers["X-Request-ID"]
    assert answer.headers.get("Retry-After") == (str(error["retry_after"]) if "retry_after" in error else None)
    return error


def assert_error(answer: TestResponse, status: int, code: str) -> dict[str, Any]:
    """Check an answer's status and the code of its error, and return the error."""
    error = error_of(answer)
    assert (answer.status_code, error["code"]) == (status, code)
    return error


def named_token(name: str, token: str, *roles: str, more: str = "") -> str:
    """Return the table of a token in the file of named tokens."""
    digest = hashlib.sha256(token.encode()).hexdigest()
    return f'[[token]]\nname = "{name}"\nsha256 = "{digest}"\nroles = {[str(role) for role in roles]}\n{more}\n'


class FakeRateLimit:
    """Gives the answer that a test sets, and remembers which callers were counted."""

    def __init__(self) -> None:
        self.answer: Allowance | None = Allowance(
            is_exceeded=False, limit=200, remaining=199, reset_after=1, retry_after=0
        )
        self.keys: list[str] = []

    def take(self, key: str) -> Allowance | None:
        self.keys.append(key)
        return self.answer


def make_services(  # noqa: PLR0917 - each is a part of the services
    store: SandboxStore,
    clock: Clock,
    queue: FakeQueue,
    recorder: Recorder,
    settings: Settings,
    rate_limit: FakeRateLimit,
    breaker: FakeBreaker | None = None,
    minute_counts: MinuteCounts | None = None,
) -> ApiServices:
    """Return the services that the routes call, with every id and order fixed."""
    rng, pauses = Random(1), PauseCache(store, clock, Random(1))
    guard = Guard(store=store, memory=FakeTableMemory(), recorder=recorder, clock=clock, rng=rng)
    reservations = KnownReservations(store, clock)
    reserver = Reserver(store=store, guard=guard, recorder=recorder, clock=clock, rng=rng, threads=1)
    leases = Leases(store=store, guard=guard, recorder=recorder, clock=clock, policy=settings.policy)
    counts = Counts(store, clock, Random(2), max_age=settings.pool_gauge_cache_sec, policy=settings.policy)
    pool_count = Renewed(counts.latest, clock, max_age=settings.pool_gauge_cache_sec, at_end=counts.give_back)
    line = WaitingLine(
        store=store,
        guard=guard,
        reservations=reservations,
        pool_count=pool_count.get,
        recorder=recorder,
        clock=clock,
        rng=rng,
        policy=settings.policy,
    )
    inventory = Inventory(store=store, leases=leases)
    return ApiServices(
        clock=clock,
        recorder=recorder,
        store=store,
        guard=guard,
        pauses=pauses,
        pool_count=pool_count,
        reservations=reservations,
        line=line,
        allocator=Allocator(
            store=store,
            guard=guard,
            candidate_cache=CandidateCache(store, clock, rng, size=settings.k_candidates),
            line=line,
            pauses=pauses,
            reservations=reservations,
            recorder=recorder,
            clock=clock,
            rng=rng,
            policy=settings.policy,
            work_sec=settings.request_deadline_sec,
        ),
        leases=leases,
        inventory=inventory,
        search=Search(copy=PoolCopy(store, clock, aside=at_once), inventory=inventory, clock=clock),
        history=History(records=store, reports=store, guard=guard, clock=clock),
        usage=Usage(records=store, clock=clock, kept_days=settings.history_days),
        operations=Operations(store=store, guard=guard, clock=clock, threads=1),
        purger=Purger(store=store, guard=guard, recorder=recorder, clock=clock, policy=settings.policy, threads=1),
        bookings=Bookings(
            store=store,
            copy=PoolCopy(store, clock, aside=at_once),
            guard=guard,
            reserver=reserver,
            clock=clock,
            rng=rng,
            policy=settings.policy,
        ),
        endpoints=Endpoints(
            records=store,
            reports=store,
            guard=guard,
            clock=clock,
            rng=rng,
            random_bytes=rng.randbytes,
            allowed=AllowedUrls(hosts=settings.webhook_allowed_hosts, loopback=not settings.in_production),
            history_days=settings.history_days,
            threads=1,
        ),
        queue=queue,
        rate_limit=rate_limit,
        overviews=Overviews(
            store=store,
            inventory=inventory,
            reservations=reservations,
            pool_count=pool_count.get,
            queue=queue,
            breaker=breaker or FakeBreaker(queue),
            clock=clock,
            jobs=JOBS,
        ),
        minute_counts=minute_counts or MinuteCounts(store.add_allocates, clock),
    )


class Untouchable:
    """A store whose methods may not be called."""

    def __getattr__(self, name: str) -> Any:
        def fail(*_: object, **__: object) -> None:
            raise AssertionError(f"the store was asked to {name}")

        return fail


def refusing(method: str) -> Any:
    """Return a wrapper of a store that refuses the next call of `method`."""

    def wrap(store: SandboxStore) -> FlakyStore:
        flaky = FlakyStore(store)
        flaky.fail(method, Fault.REFUSED)
        return flaky

    return wrap


def make_api(
    *, around: Any = None, job_calls: Any = jobs.blueprint, counts_minutes: Any = False, **environment: str
) -> Api:
    """Return an API with these `job_calls`. `around` may wrap its store, and `environment` adds settings.

    `counts_minutes`: the allocates of each minute are counted, which starts a thread that the test must end.
    """
    settings = Settings.from_env(ENVIRONMENT | environment, process=Process.API)
    clock, queue, recorder, rate_limit = FakeClock(), FakeQueue(), RecordingRecorder(), FakeRateLimit()
    store, breaker = MemoryStore(clock), FakeBreaker(queue)
    seen = around(store) if around else store
    registry = CollectorRegistry()
    minute_counts = MinuteCounts(seen.add_allocates, clock)
    recorders = Recorders([recorder, PrometheusApiRecorder(registry), *([minute_counts] if counts_minutes else [])])
    services = make_services(seen, clock, queue, recorders, settings, rate_limit, breaker, minute_counts)
    app = create_app(settings, services, registry=registry, job_calls=job_calls)
    return Api(
        app=app,
        store=store,
        clock=clock,
        queue=queue,
        recorder=recorder,
        settings=settings,
        rate_limit=rate_limit,
        breaker=breaker,
    )
