"""What `broker check` finds: whether the parts that a broker needs are right, and what to do if not."""

from __future__ import annotations

import functools
from contextlib import suppress
from typing import TYPE_CHECKING

from botocore.exceptions import BotoCoreError, ClientError

from broker_common.adapters.broker_http import BrokerHttp, Refused, Unreachable
from broker_common.adapters.dynamo_table import has_ttl
from broker_common.adapters.dynamo_transport import make_client
from broker_common.adapters.oidc_issuer import IssuerError, fetch_keys
from broker_common.adapters.redis_table_memory import RedisTableMemory
from broker_common.adapters.system_clock import SystemClock
from broker_common.cli.api import TOKEN_VARIABLE, ApiError, operators_api
from broker_common.cli.findings import Finding
from broker_common.core.clock_check import ClockCheck
from broker_common.core.errors import (
    BrokerError,
    ClockWrong,
    QueueUnavailable,
    SignInUnavailable,
    StoreMisconfigured,
    TableChanged,
)
from broker_common.core.schema import UPGRADE
from broker_common.core.table_identity import find_change
from broker_common.services import build_provider, build_runs, build_services, build_store, connect_redis
from broker_common.settings import Process, Settings, SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

PARTS = {
    Process.API: ("table", "index", "history", "redis"),
    Process.WORKER: ("table", "index", "history", "redis", "provider"),
    Process.BEAT: ("redis",),
    Process.CONSOLE: ("api",),
}
"""What each process needs, besides its settings.

With `OIDC_ISSUER`, API and console need the issuer, too. With `CSP_SERVICES_CLEANUP`, a worker needs the user who signs
in.
"""
_ORDER = ("table", "index", "history", "redis", "provider", "api")
_TIMEOUT_SEC = 10.0
_NAMES = {Process.API: "the API", Process.WORKER: "a worker", Process.BEAT: "beat", Process.CONSOLE: "the console"}
_SIGNS = {
    Process.API: ("BROKER_API_TOKEN", "BROKER_API_TOKEN_FILE", "BROKER_TOKENS_FILE"),
    Process.WORKER: ("CSP_BASE_URL", "CSP_API_TOKEN"),
    Process.BEAT: ("REDIS_URL",),
    Process.CONSOLE: ("CONSOLE_SECRET_KEY",),
}
"""If one of these is set, the settings of its process should be there. Operators have an admin token, too: no sign."""
_SIGNS_PEOPLE_IN = ("authorization_endpoint", "token_endpoint")
"""What the console needs of the issuer's discovery document, besides its keys."""
_NO_TOKEN = "broker-check"  # noqa: S105 - it is none, so the API answers that it does not know it
_FIRST = {"index": "table", "history": "table", "provider": "redis"}
"""Which part must be right before another one is looked at. Calls to the provider take slots in Redis."""


def check(environ: Mapping[str, str], process: Process | None = None) -> Iterator[Finding]:
    """Yield a finding for each part that `process` needs, as soon as it is known.

    Without `process`, the parts are those of every process whose settings are there, and the API that an operator
    calls. A process that is left out has a finding, too. Changes nothing, except for a key in Redis that is gone a
    minute later. A part that is wrong is a finding, never an error.
    """
    processes = [process] if process is not None else [each for each in PARTS if _has_sign(each, environ)]
    parts = [part for part in _ORDER if any(part in PARTS[each] for each in processes)]
    if process is None:
        yield from (_leave_out(each) for each in PARTS if each not in processes)
        is_operator = "api" not in parts or environ.get(TOKEN_VARIABLE, "").strip()
        if not processes or (environ.get("BROKER_API_URL") and is_operator):
            yield _ask_api(environ)
            parts = [part for part in parts if part != "api"]
        if not processes:
            return
    if {Process.API, Process.CONSOLE} & set(processes) and environ.get("OIDC_ISSUER", "").strip():
        parts.append("issuer")
    if Process.WORKER in processes and environ.get("CSP_SERVICES_CLEANUP", "").strip() not in {"", "off"}:
        parts.append("services")
    problems = _problems(processes, environ)
    if problems:
        yield from (Finding("settings", ok=False, text=problem) for problem in problems)
        yield from (Finding(part, ok=False, text="not looked at before settings are right") for part in parts)
        return
    who = ", ".join(_NAMES[each] for each in processes)
    yield Finding("settings", ok=True, text=f"{who} can start with them")
    looks = _looks(Settings.from_env(environ, process=processes[0]), signs_people_in=Process.CONSOLE in processes)
    is_right: dict[str, bool] = {}
    for part in parts:
        first = _FIRST.get(part, part)
        if is_right.get(first, True):
            finding = _try(part, *looks[part])
        else:
            finding = Finding(part, ok=False, text=f"not looked at before {first} is right")
        is_right[part] = finding.ok is True
        yield finding


def _has_sign(process: Process, environ: Mapping[str, str]) -> bool:
    return any(environ.get(sign, "").strip() for sign in _SIGNS[process])


def _leave_out(process: Process) -> Finding:
    *signs, last = _SIGNS[process]
    named = f"{', '.join(signs)} or {last}" if signs else last
    text = f"{_NAMES[process]} is left out without {named}; to check it: --process {process}"
    return Finding("settings", ok=None, text=text)


def _ask_api(environ: Mapping[str, str]) -> Finding:
    try:
        stats = operators_api(environ).get("/stats")
    except ApiError as error:
        return Finding("api", ok=False, text=str(error))
    if "total" not in stats:
        return Finding("api", ok=False, text="answers without a total: does BROKER_API_URL lead to the broker's API?")
    return Finding("api", ok=True, text=f"answers, and counts {stats['total']} sandboxes")


def _problems(processes: Iterable[Process], environ: Mapping[str, str]) -> list[str]:
    found: set[str] = set()
    for process in processes:
        try:
            Settings.from_env(environ, process=process)
        except SettingsError as error:
            found.update(error.problems)
    return sorted(found)


def _looks(settings: Settings, *, signs_people_in: bool) -> dict[str, tuple[Callable[[], str], str]]:
    """Return for each part the function that looks at it, and what to do if that fails."""
    # Made late, because making a client fails, too, if its AWS profile is missing. Then that is the part's finding.
    store = functools.cache(lambda: build_store(settings))

    def table() -> str:
        clock = SystemClock()
        times, asked_at = ClockCheck(clock), clock.now()
        state = store().ping()
        times.note(asked_at=asked_at, told=state.time)
        if difference := times.difference():
            raise ClockWrong(f"this machine's clock is {difference:+d} s from the table's")
        known = None
        with suppress(QueueUnavailable):  # the part `redis` reports this
            known = RedisTableMemory(connect_redis(settings), clock).recall()
        if change := find_change(state, known, store()):
            raise TableChanged(change)
        unfinished = "" if state.upgraded >= UPGRADE else "; once no older release runs: `broker upgrade finish`"
        return f"{settings.ddb_table_name} has the layout of this version{unfinished}"

    def history() -> str:
        client = make_client(
            region=settings.aws_region,
            endpoint_url=settings.ddb_endpoint_url,
            timeout_sec=_TIMEOUT_SEC,
            connections=1,
        )
        try:
            removes = has_ttl(client, settings.ddb_table_name)
        except ClientError as error:
            raise StoreMisconfigured(f"DescribeTimeToLive: {error}") from error
        if not removes:
            raise StoreMisconfigured(f"{settings.ddb_table_name} keeps facts for ever: its TTL is not on")
        return f"facts are removed when they are older than {settings.history_days} d"

    def index() -> str:
        return f"counts {sum(store().count().values())} sandboxes"

    def reach_redis() -> str:
        build_runs(settings, connect_redis(settings)).ping()
        return "answers, and takes writes"

    def provider() -> str:
        return f"lists {len(build_provider(settings).list_accounts().accounts)} sandbox accounts"

    return {
        "table": (table, "look at AWS_REGION, DDB_ENDPOINT_URL, DDB_TABLE_NAME, credentials and network"),
        "index": (index, "look at the table's index and at the policy's right to query it"),
        "history": (history, "run `broker table create`, which turns TTL on and changes nothing else"),
        "redis": (reach_redis, "look at REDIS_URL: host, password, TLS; and at Redis itself"),
        "provider": (provider, "look at CSP_BASE_URL and CSP_API_TOKEN, and at the provider itself"),
        "services": (
            lambda: _sign_in_for_services(settings),
            "look at CSP_SERVICES_EMAIL and CSP_SERVICES_PASSWORD, and at the provider itself",
        ),
        "api": (
            lambda: _reach_api(settings.broker_api_url),
            "look at BROKER_API_URL, which has the base path, as in …/v1, and at the API itself",
        ),
        "issuer": (
            lambda: _ask_issuer(settings.oidc_issuer or "", _SIGNS_PEOPLE_IN if signs_people_in else ()),
            "look at OIDC_ISSUER, which must be exactly what the issuer calls itself, and at the issuer",
        ),
    }


def _sign_in_for_services(settings: Settings) -> str:
    if removal := build_services(settings):
        removal.check()
    return f"the user can sign in, for CSP_SERVICES_CLEANUP={settings.csp_services_cleanup}"


def _reach_api(url: str) -> str:
    """Ask the API as nobody. Only the broker's API refuses that by its own code."""
    try:
        BrokerHttp(url, timeout_sec=(_TIMEOUT_SEC, _TIMEOUT_SEC)).call("GET", "/admin/whoami", token=_NO_TOKEN)
    except Refused as error:
        if error.code == "UNAUTHORIZED":
            return f"{url} is the broker's API, and answers"
        raise ApiError(f"{url} answered {error.status} {error.code}") from error
    except Unreachable as error:
        raise ApiError(str(error)) from error
    raise ApiError(f"{url} takes any token")


def _ask_issuer(issuer: str, addresses: Sequence[str]) -> str:
    try:
        keys = fetch_keys(issuer, addresses=addresses)
    except IssuerError as error:
        raise SignInUnavailable(str(error)) from error
    return f"publishes keys that the broker can use: {len(keys)}"


def _try(part: str, look: Callable[[], str], advice: str) -> Finding:
    try:
        return Finding(part, ok=True, text=look())
    except (BrokerError, BotoCoreError, ApiError) as error:
        return Finding(part, ok=False, text=f"{error}: {advice}")
