"""`broker check`: whether the parts that a broker needs are there, and what to do about those that are not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import redis

from broker_common.core.errors import BrokerError
from broker_common.services import build_provider, build_store, connect_redis
from broker_common.settings import Process, Settings, SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping


@dataclass(frozen=True, slots=True)
class Finding:
    """One part: what is right about it, or what to do."""

    part: str
    ok: bool
    text: str


def check(environ: Mapping[str, str]) -> Iterator[Finding]:
    """Yield a finding a part, as soon as it is known. Writes nothing, and never raises for what it finds."""
    problems = _problems(environ)
    if problems:
        yield from (Finding("settings", ok=False, text=problem) for problem in problems)
        return
    yield Finding("settings", ok=True, text="the API, workers and beat can start with them")
    settings = Settings.from_env(environ, process=Process.WORKER)
    store = build_store(settings)

    def table() -> str:
        store.ping()
        return f"{settings.ddb_table_name} has the layout of this version"

    def index() -> str:
        return f"counts {sum(store.count().values())} sandboxes"

    def reach_redis() -> str:
        connect_redis(settings).ping()
        return "answers"

    def provider() -> str:
        listing = build_provider(settings).list_accounts()
        return f"lists {len(listing.accounts)} sandbox accounts"

    yield _try("table", table, "look at AWS_REGION, DDB_ENDPOINT_URL, DDB_TABLE_NAME, credentials and network")
    yield _try("index", index, "look at the table's index and at the policy's right to query it")
    yield _try("redis", reach_redis, "look at REDIS_URL: host, password, TLS")
    yield _try("provider", provider, "look at CSP_BASE_URL and CSP_API_TOKEN, and at the provider itself")


def _problems(environ: Mapping[str, str]) -> list[str]:
    found: set[str] = set()
    for process in (Process.API, Process.WORKER, Process.BEAT):
        try:
            Settings.from_env(environ, process=process)
        except SettingsError as error:
            found.update(error.problems)
    return sorted(found)


def _try(part: str, look: Callable[[], str], advice: str) -> Finding:
    try:
        return Finding(part, ok=True, text=look())
    except (BrokerError, redis.RedisError) as error:
        return Finding(part, ok=False, text=f"{error}: {advice}")
