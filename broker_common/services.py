"""Builds each process from rules and technologies: the only place that does so, and never at import."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import TYPE_CHECKING

from prometheus_client import REGISTRY
from redis import Redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from broker_common.adapters.celery_queue import CeleryJobQueue, CeleryWebhookQueue, queue_lengths
from broker_common.adapters.csp_client import CspClient
from broker_common.adapters.csp_services import CspServices
from broker_common.adapters.dynamo_store import DynamoStore
from broker_common.adapters.dynamo_transport import make_client
from broker_common.adapters.log_recorder import LogRecorder
from broker_common.adapters.minute_counts import MinuteCounts
from broker_common.adapters.oidc_issuer import fetch_keys
from broker_common.adapters.oidc_keys import IssuerKeys
from broker_common.adapters.oidc_tokens import AccessTokens
from broker_common.adapters.prometheus_collectors import CircuitCollector, QueueCollector
from broker_common.adapters.prometheus_recorder import PrometheusApiRecorder, PrometheusJobRecorder
from broker_common.adapters.recorders import Recorders
from broker_common.adapters.redis_breaker import NoBreaker, RedisBreaker
from broker_common.adapters.redis_job_runs import RedisJobRuns
from broker_common.adapters.redis_lock import RedisJobLocks
from broker_common.adapters.redis_rate_limit import RedisRateLimit
from broker_common.adapters.redis_slots import RedisSlots
from broker_common.adapters.redis_table_memory import RedisTableMemory
from broker_common.adapters.renewed import Renewed
from broker_common.adapters.system_clock import SystemClock
from broker_common.adapters.traces import NO_TRACES
from broker_common.adapters.webhook_http import WebhookHttp
from broker_common.core.access_token import AccessRules
from broker_common.core.allocation import Allocator
from broker_common.core.bookings import Bookings
from broker_common.core.candidate_cache import CandidateCache
from broker_common.core.cleanup import Cleaner
from broker_common.core.counts import Counts
from broker_common.core.deliveries import Deliverer
from broker_common.core.endpoints import Endpoints
from broker_common.core.expiry import Expirer
from broker_common.core.guard import Guard
from broker_common.core.history import History
from broker_common.core.inventory import Inventory
from broker_common.core.job_registry import JOBS
from broker_common.core.jobs import Work
from broker_common.core.known_reservations import KnownReservations
from broker_common.core.leases import Leases
from broker_common.core.operations import Operations
from broker_common.core.overview import Overviews
from broker_common.core.pauses import PauseCache
from broker_common.core.pool_copy import PoolCopy
from broker_common.core.purge import Purger
from broker_common.core.reserving import Reserver
from broker_common.core.runs import Runs
from broker_common.core.search import Search
from broker_common.core.sending import Sender
from broker_common.core.sync import Syncer
from broker_common.core.usage import Usage
from broker_common.core.waiting import WaitingLine
from broker_common.core.watch import Watcher
from broker_common.core.webhook_url import AllowedUrls
from broker_common.settings import ServicesCleanup

if TYPE_CHECKING:
    from collections.abc import Mapping

    from prometheus_client import CollectorRegistry

    from broker_common.adapters.traces import Traces
    from broker_common.core.ports import Clock, RateLimit, Recorder
    from broker_common.core.runs import JobLocks, JobQueue
    from broker_common.core.store import PoolCount, SandboxStore
    from broker_common.core.telemetry import AllocateOutcome
    from broker_common.settings import Settings

BULK_THREADS = 8
"""Simultaneous writes in work over many sandboxes."""
REDIS_TIMEOUT_SEC = 0.5
TABLE_MEMORY_TIMEOUT_SEC = 0.1
"""For the API, because tracks need no Redis."""
STORE_TIMEOUT_SEC = 1.0
MARGIN_SEC = 15.0
"""Time that a call to the provider may need beyond its timeouts: to take the sandbox, and to write the outcome."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiServices:
    """Everything that the API's routes call."""

    clock: Clock
    recorder: Recorder
    store: SandboxStore
    guard: Guard
    pauses: PauseCache
    pool_count: Renewed[PoolCount]
    reservations: KnownReservations
    line: WaitingLine
    allocator: Allocator
    leases: Leases
    inventory: Inventory
    search: Search
    history: History
    usage: Usage
    operations: Operations
    purger: Purger
    bookings: Bookings
    endpoints: Endpoints
    queue: JobQueue
    rate_limit: RateLimit
    overviews: Overviews
    minute_counts: MinuteCounts


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerServices(Work):
    """Everything that the worker's tasks call."""

    sender: Sender
    runs: Runs
    locks: JobLocks


def build_api_services(
    settings: Settings, *, registry: CollectorRegistry = REGISTRY, traces: Traces = NO_TRACES
) -> ApiServices:
    """Build one API process's services; call it after the fork. It connects to nothing yet."""
    clock, rng, policy = SystemClock(), Random(), settings.policy
    minute_counts = MinuteCounts(
        lambda *counts: _add_allocates(guard, store, *counts),  # both are made below, with this recorder
        clock,
        delay_sec=rng.uniform(0, 10),
    )
    recorder = Recorders([LogRecorder(), PrometheusApiRecorder(registry), minute_counts])
    connections = settings.api_threads + BULK_THREADS
    store = _store(settings, clock, rng, recorder, traces, threads=connections)
    remembering = connect_redis(settings, timeout_sec=TABLE_MEMORY_TIMEOUT_SEC, tries=1, connections=connections)
    memory = RedisTableMemory(remembering, clock)
    guard = Guard(store=store, memory=memory, recorder=recorder, clock=clock, rng=rng)
    pauses = PauseCache(store, clock, rng)
    reservations = KnownReservations(store, clock)
    leases = Leases(store=store, guard=guard, recorder=recorder, clock=clock, policy=policy)
    pool_copy = PoolCopy(store, clock)
    counts = Counts(store, clock, rng, max_age=settings.pool_gauge_cache_sec, policy=policy)
    pool_count = Renewed(counts.latest, clock, max_age=settings.pool_gauge_cache_sec, at_end=counts.give_back)
    line = WaitingLine(
        store=store,
        guard=guard,
        reservations=reservations,
        pool_count=pool_count.get,
        recorder=recorder,
        clock=clock,
        rng=rng,
        policy=policy,
    )
    inventory = Inventory(store=store, leases=leases)
    redis = connect_redis(settings, connections=connections)
    queue = CeleryJobQueue(settings.redis_url, build_runs(settings, redis))
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
            candidate_cache=CandidateCache(store, clock, rng, size=policy.k_candidates),
            line=line,
            pauses=pauses,
            reservations=reservations,
            recorder=recorder,
            clock=clock,
            rng=rng,
            policy=policy,
            work_sec=settings.request_deadline_sec,
        ),
        leases=leases,
        inventory=inventory,
        search=Search(copy=pool_copy, inventory=inventory, clock=clock),
        history=History(records=store, reports=store, guard=guard, clock=clock),
        usage=Usage(records=store, clock=clock, kept_days=settings.history_days),
        operations=Operations(store=store, guard=guard, clock=clock, threads=BULK_THREADS),
        purger=Purger(store=store, guard=guard, recorder=recorder, clock=clock, policy=policy, threads=BULK_THREADS),
        bookings=Bookings(
            store=store,
            copy=pool_copy,
            guard=guard,
            reserver=Reserver(store=store, guard=guard, recorder=recorder, clock=clock, rng=rng, threads=BULK_THREADS),
            clock=clock,
            rng=rng,
            policy=policy,
        ),
        endpoints=Endpoints(
            records=store,
            reports=store,
            guard=guard,
            clock=clock,
            rng=rng,
            random_bytes=secrets.token_bytes,
            allowed=AllowedUrls(hosts=settings.webhook_allowed_hosts, loopback=not settings.in_production),
            history_days=settings.history_days,
            threads=BULK_THREADS,
        ),
        queue=queue,
        rate_limit=traces.of_rate_limit(
            RedisRateLimit(settings.redis_url, rps=settings.rate_limit_rps, burst=settings.rate_limit_burst)
        ),
        overviews=Overviews(
            store=store,
            inventory=inventory,
            reservations=reservations,
            pool_count=pool_count.get,
            queue=queue,
            breaker=_breaker(settings, redis),
            clock=clock,
            jobs=JOBS,
        ),
        minute_counts=minute_counts,
    )


def _add_allocates(guard: Guard, store: SandboxStore, minute: int, allocates: Mapping[AllocateOutcome, int]) -> None:
    """Add a minute's allocates to its sample, unless the table is not the known one."""
    guard.check()
    store.add_allocates(minute, allocates)


def build_worker_services(
    settings: Settings, *, tasks: int = 1, registry: CollectorRegistry = REGISTRY, traces: Traces = NO_TRACES
) -> WorkerServices:
    """Build the services of a worker process that runs `tasks` at once; call it after a fork.

    It connects to nothing yet. The settings are a worker's: they have the provider's address and token.
    """
    clock, rng, policy = SystemClock(), Random(), settings.policy
    recorder = Recorders([LogRecorder(), PrometheusJobRecorder(registry)])
    connections = tasks + 2 * BULK_THREADS
    redis = connect_redis(settings, connections=connections)
    store = _store(settings, clock, rng, recorder, traces, threads=connections)
    guard = Guard(store=store, memory=RedisTableMemory(redis, clock), recorder=recorder, clock=clock, rng=rng)
    pauses = PauseCache(store, clock, rng)
    reservations = KnownReservations(store, clock)
    provider = _provider(settings, clock, redis, recorder, _breaker(settings, redis), connections=tasks)
    return WorkerServices(
        clock=clock,
        recorder=recorder,
        store=store,
        guard=guard,
        pauses=pauses,
        syncer=Syncer(
            store=store,
            provider=provider,
            guard=guard,
            reservations=reservations,
            recorder=recorder,
            clock=clock,
            rng=rng,
            policy=policy,
            threads=BULK_THREADS,
        ),
        cleaner=Cleaner(
            store=store,
            provider=provider,
            services=_services(settings, clock, recorder, _services_breaker(settings, redis), connections=tasks),
            guard=guard,
            pauses=pauses,
            reservations=reservations,
            recorder=recorder,
            clock=clock,
            rng=rng,
            policy=policy,
        ),
        expirer=Expirer(store=store, guard=guard, recorder=recorder, clock=clock, policy=policy, threads=BULK_THREADS),
        purger=Purger(store=store, guard=guard, recorder=recorder, clock=clock, policy=policy, threads=BULK_THREADS),
        reserver=Reserver(store=store, guard=guard, recorder=recorder, clock=clock, rng=rng, threads=BULK_THREADS),
        deliverer=Deliverer(
            store=store,
            queue=CeleryWebhookQueue(settings.redis_url, redis),
            guard=guard,
            recorder=recorder,
            clock=clock,
            threads=BULK_THREADS,
        ),
        sender=Sender(
            store=store,
            transport=WebhookHttp(
                allowed_hosts=settings.webhook_allowed_hosts,
                allows_loopback=not settings.in_production,
                connections=BULK_THREADS,
            ),
            guard=guard,
            recorder=recorder,
            clock=clock,
            rng=rng,
            threads=BULK_THREADS,
        ),
        watcher=Watcher(
            store=store,
            counts=Counts(store, clock, rng, max_age=settings.pool_gauge_cache_sec, policy=policy),
            guard=guard,
            recorder=recorder,
            clock=clock,
            rng=rng,
            policy=policy,
            threads=BULK_THREADS,
        ),
        runs=build_runs(settings, redis),
        locks=RedisJobLocks(redis),
    )


def build_access_tokens(settings: Settings, clock: Clock) -> AccessTokens | None:
    """Make what checks the issuer's access tokens; None without an issuer. It connects to nothing yet."""
    issuer, audience = settings.oidc_issuer, settings.oidc_audience
    if issuer is None or audience is None:
        return None
    # Three quarters of the threads are left for requests that do not wait for the issuer.
    keys = IssuerKeys(partial(fetch_keys, issuer), clock, waiting=max(1, settings.api_threads // 4))
    rules = AccessRules(issuer=issuer, audience=audience, roles_claim=settings.oidc_roles_claim)
    return AccessTokens(keys, rules, clock)


def build_store(settings: Settings) -> DynamoStore:
    """Make a store for a command line: nothing is recorded."""
    return _store(settings, SystemClock(), Random(), Recorders([]), NO_TRACES, threads=1)


def build_provider(settings: Settings) -> CspClient:
    """Make a client of the provider for a command line: nothing is recorded. The settings are a worker's.

    It calls even if the workers' circuit breaker is open, and does not change that breaker.
    """
    return _provider(settings, SystemClock(), connect_redis(settings), Recorders([]), NoBreaker(), connections=1)


def build_services(settings: Settings) -> CspServices | None:
    """Make what removes services, for a command line: nothing is recorded. None if the settings want no removal.

    It calls even if the workers' circuit breaker is open, and does not change that breaker.
    """
    return _services(settings, SystemClock(), Recorders([]), NoBreaker(), connections=1)


def build_runs(settings: Settings, redis: Redis) -> Runs:
    """Make the use cases that begin, follow and end the runs of jobs."""
    per_minute = settings.csp_deletes_per_minute
    between_wipes = 60 / per_minute if per_minute else 0
    stall_limit_sec = settings.policy.attempt_window_sec + MARGIN_SEC + between_wipes
    return Runs(RedisJobRuns(redis), stall_limit_sec=stall_limit_sec)


def build_circuit_collector(settings: Settings) -> CircuitCollector:
    """Make the metric of the provider's circuit breakers, for a process that does not call the provider itself."""
    redis = connect_redis(settings)
    breakers = {"csp": _breaker(settings, redis)}
    if settings.removes_services:
        breakers["csp_services"] = _services_breaker(settings, redis)
    return CircuitCollector(
        lambda: {name: breaker.state for name, breaker in breakers.items()},
        SystemClock(),
        max_age=settings.pool_gauge_cache_sec,
    )


def build_queue_collector(settings: Settings) -> QueueCollector:
    """Make the metric of the queues' lengths."""
    redis = connect_redis(settings)
    return QueueCollector(lambda: queue_lengths(redis), SystemClock(), max_age=settings.pool_gauge_cache_sec)


def connect_redis(
    settings: Settings, *, timeout_sec: float = REDIS_TIMEOUT_SEC, tries: int = 2, connections: int = 100
) -> Redis:
    """Make a Redis client that fails fast; it connects at its first command.

    It sends a failed command again without a pause, `tries` times in all: after a restart of Redis the pooled
    connections are dead. A command fails while `connections` others run.
    """
    return Redis.from_url(
        settings.redis_url,
        socket_timeout=timeout_sec,
        socket_connect_timeout=timeout_sec,
        retry=Retry(NoBackoff(), tries - 1),
        health_check_interval=30,
        max_connections=connections,
    )


def _store(
    settings: Settings, clock: Clock, rng: Random, recorder: Recorder, traces: Traces, *, threads: int
) -> DynamoStore:
    # Three tries fit into a request's deadline; DynamoDB answers in milliseconds, or not at all.
    timeout_sec = min(STORE_TIMEOUT_SEC, settings.request_deadline_sec / 3)
    client = make_client(
        region=settings.aws_region,
        endpoint_url=settings.ddb_endpoint_url,
        timeout_sec=timeout_sec,
        connections=threads,
    )
    return DynamoStore(
        traces.of_store(client),
        settings.ddb_table_name,
        clock=clock,
        rng=rng,
        recorder=recorder,
        timeout_sec=timeout_sec,
        history_days=settings.history_days,
    )


def _provider(
    settings: Settings,
    clock: Clock,
    redis: Redis,
    recorder: Recorder,
    breaker: RedisBreaker | NoBreaker,
    *,
    connections: int,
) -> CspClient:
    return CspClient(
        base_url=settings.csp_base_url or "",
        token=settings.csp_api_token or "",
        connect_timeout=settings.csp_timeout_connect_sec,
        read_timeout=settings.csp_timeout_read_sec,
        connections=connections,
        slots=RedisSlots(
            redis,
            limit=settings.csp_max_concurrency,
            lease_sec=_longest_call_sec(settings),
            paced_per_minute=settings.csp_deletes_per_minute,
        ),
        recorder=recorder,
        clock=clock,
        breaker=breaker,
    )


def _services(
    settings: Settings, clock: Clock, recorder: Recorder, breaker: RedisBreaker | NoBreaker, *, connections: int
) -> CspServices | None:
    if not settings.removes_services:
        return None
    return CspServices(
        base_url=settings.csp_base_url or "",
        email=settings.csp_services_email or "",
        password=settings.csp_services_password or "",
        name=settings.csp_services_name,
        is_shadow=settings.csp_services_cleanup is ServicesCleanup.SHADOW,
        connect_timeout=settings.csp_timeout_connect_sec,
        read_timeout=settings.csp_timeout_read_sec,
        connections=connections,
        breaker=breaker,
        recorder=recorder,
        clock=clock,
    )


def _breaker(settings: Settings, redis: Redis, key: str = "sandbox-broker:csp:breaker") -> RedisBreaker:
    return RedisBreaker(
        redis,
        threshold=settings.circuit_breaker_threshold,
        timeout_sec=settings.circuit_breaker_timeout_sec,
        trial_sec=_longest_call_sec(settings),
        key=key,
    )


def _services_breaker(settings: Settings, redis: Redis) -> RedisBreaker:
    return _breaker(settings, redis, "sandbox-broker:csp:services-breaker")


def _longest_call_sec(settings: Settings) -> float:
    return settings.csp_slot_limit_sec + MARGIN_SEC
