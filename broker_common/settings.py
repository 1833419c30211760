"""The broker's settings: parsed once from the environment, strictly, and passed down as one frozen object.

Each field is the environment variable with its name in capitals. Only command lines and entry points call `from_env`.
"""

from __future__ import annotations

import ipaddress
import os
import re
from dataclasses import MISSING, Field, dataclass, field, fields
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import parse_qs, urlsplit

import redis
from marshmallow import EXCLUDE, Schema, ValidationError, validate
from marshmallow import fields as ma

from broker_common.core.policy import Policy, RecyclePolicy
from broker_common.core.principals import Role
from broker_common.default_url import DEFAULT_URL
from broker_common.principals_file import read_principals
from broker_common.tokens import BadTokenError, Token, find_faults, parse_tokens, read_tokens

if TYPE_CHECKING:
    from collections.abc import Mapping
    from urllib.parse import SplitResult

_LABEL = r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_HOST_NAME = re.compile(rf"{_LABEL}(\.{_LABEL})*\.?")
_SCOPE = r"[!#-\[\]-~]+"
"""RFC 6749, section 3.3."""
_LISTENING = r"[0-9A-Za-z.:\[\]-]+\Z"
_DAY_SEC, _WEEK_SEC = 24 * 3600, 7 * 24 * 3600
_YEAR_HOURS = 366 * 24
_MAX_WORKERS = 256
_SHORTEST_KEY = 32
_SERVICES_LIMIT_SEC = 20
"""For all services of an account together. A worker that stops finishes its wipe: Fargate waits for 120 s at most."""
_COMPRESSIONS = r"(?i:none|gzip|deflate)\Z"
_SAMPLERS = r"(?i:(parentbased_)?(always_on|always_off|traceidratio))\Z"
_SAMPLERS_TEXT = "always_on, always_off or traceidratio, each also with parentbased_ before it"
_MOST_SPANS = 1_000_000
_DAY_MILLIS = 1000 * _DAY_SEC
_TRACES = "OTEL_"
_SWITCH = "OTEL_SDK_DISABLED:"
_ASKING = ("OTEL_TRACES_EXPORTER", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_WITH_ISSUER = ("OIDC_ROLES_CLAIM", "OIDC_CLIENT_ID", "OIDC_CLIENT_SECRET", "OIDC_SCOPES")


class Environment(StrEnum):
    """Where the broker runs; `production` refuses values that only fit development."""

    PRODUCTION = "production"
    DEVELOPMENT = "development"


class ServicesCleanup(StrEnum):
    """Whether the services that a student left are removed before an account is deleted; in `shadow` only counted."""

    OFF = "off"
    SHADOW = "shadow"
    ON = "on"


class Process(StrEnum):
    """The process that reads the settings; it must be given only the settings that it needs."""

    API = "api"
    WORKER = "worker"
    BEAT = "beat"
    CONSOLE = "console"
    TOOL = "tool"
    """A command line, or Flower: needs no tokens and no provider."""


class SettingsError(Exception):
    """The environment has mistakes; `problems` has one line for each variable, without values of secrets."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


class _Tokens(ma.Field[tuple[Token, ...]]):
    """Tokens as `parse_tokens` reads them, kept as SHA-256 digests only."""

    def __init__(self, role: Role) -> None:
        super().__init__()
        self._role = role

    def _deserialize(self, value: Any, *_: Any, **__: Any) -> tuple[Token, ...]:  # noqa: ANN401 - marshmallow's signature
        try:
            return parse_tokens(str(value), self._role)
        except BadTokenError as error:
            raise ValidationError(str(error)) from error


class _SecretKeys(ma.Field[tuple[str, ...]]):
    """Comma-separated keys, the newest first. An error never contains the value."""

    def _deserialize(self, value: Any, *_: Any, **__: Any) -> tuple[str, ...]:  # noqa: ANN401 - marshmallow's signature
        keys = tuple(key.strip() for key in str(value).split(",") if key.strip())
        if not keys or any(len(key) < _SHORTEST_KEY for key in keys):
            raise ValidationError(
                f"Each key must have at least {_SHORTEST_KEY} characters: python -c 'import secrets; "
                "print(secrets.token_urlsafe(48))' makes one."
            )
        return keys


class _HttpUrl(ma.Field[str]):
    """An http or https URL that boto3 and requests can use as it is. An error never contains the value."""

    def _deserialize(self, value: Any, *_: Any, **__: Any) -> str:  # noqa: ANN401 - marshmallow's signature
        url = str(value)
        parts = _split(url, {"http", "https"})
        if parts is None or parts.username is not None or parts.password is not None or parts.query or parts.fragment:
            raise ValidationError("Must be an http or https URL of a host, without a user, a query or a fragment.")
        return url


class _RedisUrl(ma.Field[str]):
    """A redis or rediss URL that redis-py and Celery can both use. An error never contains the value."""

    def _deserialize(self, value: Any, *_: Any, **__: Any) -> str:  # noqa: ANN401 - marshmallow's signature
        url = str(value)
        if not _is_for_redis(url):
            raise ValidationError(
                "Must be a redis or rediss URL such as redis://:password@host:6379/0, the password percent-encoded; "
                "a rediss URL may have options of TLS (ssl_...)."
            )
        return url


class _Origins(ma.Field[tuple[str, ...]]):
    """Comma-separated origins as browsers send them: scheme, host and port (RFC 6454, section 6.1), nothing else."""

    def _deserialize(self, value: Any, *_: Any, **__: Any) -> tuple[str, ...]:  # noqa: ANN401 - marshmallow's signature
        origins = tuple(dict.fromkeys(origin.strip() for origin in str(value).split(",") if origin.strip()))
        for origin in origins:
            parts = _split(origin, {"http", "https"})
            if parts is None or origin != f"{parts.scheme}://{parts.netloc}".lower() or "@" in parts.netloc:
                raise ValidationError(
                    f"{origin!r} is not an origin such as https://lab.example.com (exact, lower-case)."
                )
        return origins


class _Hosts(ma.Field[tuple[str, ...]]):
    """Comma-separated host names and addresses without ports; kept in lower case, without a dot at the end."""

    def _deserialize(self, value: Any, *_: Any, **__: Any) -> tuple[str, ...]:  # noqa: ANN401 - marshmallow's signature
        hosts = tuple(dict.fromkeys(host.strip() for host in str(value).split(",") if host.strip()))
        for host in hosts:
            if not _is_host(host):
                raise ValidationError(f"{host!r} is not a host name or address such as hooks.example.com or 10.0.0.5.")
        return tuple(host.lower().rstrip(".") for host in hosts)


def _split(url: str, schemes: set[str]) -> SplitResult | None:
    """Split a URL; returns None if its scheme is not in `schemes`, or its host or port is not valid."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return None
    is_fit = parts.scheme in schemes and port != 0 and _is_host(parts.hostname or "")
    # urlsplit drops tabs and line feeds, but the URL's users may not.
    return parts if is_fit and re.fullmatch(r"[!-~]+", url) else None


def _is_host(text: str) -> bool:
    if ":" not in text:
        return bool(_HOST_NAME.fullmatch(text))
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return True


def _is_for_redis(url: str) -> bool:
    parts = _split(url, {"redis", "rediss"})
    if parts is None or parts.fragment or not re.fullmatch(r"/?[0-9]{0,6}", parts.path):
        return False
    # Celery knows only the options of TLS, and takes them only for rediss.
    if any(parts.scheme == "redis" or not name.startswith("ssl_") for name in parse_qs(parts.query)):
        return False
    try:
        redis.ConnectionPool.from_url(url).make_connection()  # connects to nothing yet
    except (TypeError, ValueError, redis.RedisError):
        return False
    return True


def _count_processors() -> int:
    """Return how many processors this process may use. It does not see a CPU limit of a container."""
    # macOS has no `sched_getaffinity`.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _var(default: object, kind: ma.Field[Any], *, secret: bool = False) -> Any:  # noqa: ANN401 - like dataclasses.field
    return field(default=default, repr=not secret, metadata={"kind": kind})


def _integer(default: int, low: int, high: int) -> Any:  # noqa: ANN401 - like dataclasses.field
    return _var(default, ma.Integer(validate=validate.Range(min=low, max=high)))


def _number(default: float | None, low: float, high: float, *, inclusive: bool = False) -> Any:  # noqa: ANN401 - like dataclasses.field
    in_range = validate.Range(min=low, max=high, min_inclusive=inclusive)
    return _var(default, ma.Float(allow_nan=False, validate=in_range))


def _text(default: str | None, pattern: str, what: str, *, secret: bool = False) -> Any:  # noqa: ANN401 - like dataclasses.field
    return _var(default, ma.String(validate=validate.Regexp(pattern, error=f"Must be {what}.")), secret=secret)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All settings. Each duration's unit is in its name; secrets are left out of `repr`."""

    broker_env: Environment = _var(Environment.PRODUCTION, ma.Enum(Environment, by_value=True))
    broker_api_token: tuple[Token, ...] = _var((), _Tokens(Role.TRACK), secret=True)
    broker_api_token_file: str | None = _var(None, ma.String())
    broker_admin_token: tuple[Token, ...] = _var((), _Tokens(Role.ADMIN), secret=True)
    broker_admin_token_file: str | None = _var(None, ma.String())
    broker_tokens_file: str | None = _var(None, ma.String())
    oidc_issuer: str | None = _var(None, _HttpUrl())
    oidc_audience: str | None = _text(None, r"[!-~]{1,256}\Z", "1 to 256 printable ASCII characters without spaces")
    oidc_roles_claim: str = _text(
        "broker_roles", r"[!-~]{1,128}\Z", "1 to 128 printable ASCII characters without spaces"
    )
    oidc_client_id: str | None = _text(None, r"[!-~]{1,256}\Z", "1 to 256 printable ASCII characters without spaces")
    oidc_client_secret: str | None = _text(None, r"[ -~]+\Z", "printable ASCII", secret=True)
    oidc_scopes: str = _text(
        "openid", rf"(?=(.* )?openid( |\Z)){_SCOPE}( {_SCOPE})*\Z", "scopes separated by one space, one of them openid"
    )

    console_bind: str = _text("0.0.0.0", _LISTENING, "a host name or address to listen on")  # noqa: S104 - a container listens on all its addresses
    console_port: int = _integer(8081, 1, 65535)
    console_secret_key: tuple[str, ...] = _var((), _SecretKeys(), secret=True)
    broker_api_url: str = _var(DEFAULT_URL, _HttpUrl())

    api_bind: str = _text("0.0.0.0", _LISTENING, "a host name or address to listen on")  # noqa: S104 - the same
    api_port: int = _integer(8080, 1, 65535)
    api_base_path: str = _text("/v1", r"(/[A-Za-z0-9._~-]+)+\Z", "a path such as /v1, without a slash at its end")
    api_workers: int = _integer(min(_count_processors(), _MAX_WORKERS), 1, _MAX_WORKERS)
    api_threads: int = _integer(16, 3, 256)
    request_deadline_sec: float = _number(3, 0, 60)
    rate_limit_rps: int = _integer(50, 1, 1_000_000)
    rate_limit_burst: int = _integer(200, 1, 1_000_000)
    trusted_proxies: int = _integer(0, 0, 16)
    cors_allowed_origins: tuple[str, ...] = _var((), _Origins())
    shutdown_drain_sec: float = _number(5, 0, 600, inclusive=True)

    ddb_table_name: str = _text("SandboxPool", r"[A-Za-z0-9_.-]{3,255}\Z", "3 to 255 of A-Z a-z 0-9 _ . -")
    ddb_endpoint_url: str | None = _var(None, _HttpUrl())
    aws_region: str = _text("us-east-1", r"[a-z0-9-]{2,40}\Z", "a region such as eu-central-1")
    redis_url: str = _var("redis://127.0.0.1:6379/0", _RedisUrl(), secret=True)

    lab_duration_hours: float = _number(4, 0, _YEAR_HOURS)
    max_lab_duration_hours: float | None = _number(None, 0, _YEAR_HOURS)
    """None: twice `lab_duration_hours`."""
    expiry_buffer_hours: float = _number(0.5, 0, _YEAR_HOURS, inclusive=True)
    cool_down_sec: int = _integer(0, 0, _WEEK_SEC)
    history_days: int = _integer(90, 1, 3660)
    k_candidates: int = _integer(15, 1, 1000)
    line_grace_sec: int = _integer(600, 10, _DAY_SEC)
    line_max: int = _integer(10_000, 1, 100_000)
    reservable_percent: int = _integer(80, 0, 100)
    expiry_warning_minutes: int = _integer(15, 0, _DAY_SEC // 60)
    pool_low_percent: int = _integer(10, 0, 66)
    """At most two thirds, because the pool has recovered at one and a half times this."""
    recycle_policy: RecyclePolicy = _var(RecyclePolicy.REUSE, ma.Enum(RecyclePolicy, by_value=True))

    sync_interval_sec: int = _integer(600, 1, _WEEK_SEC)
    cleanup_interval_sec: int = _integer(300, 1, _WEEK_SEC)
    auto_expiry_interval_sec: int = _integer(300, 1, _WEEK_SEC)
    stale_grace_hours: float = _number(24, 0, _YEAR_HOURS, inclusive=True)
    stale_brake_percent: int = _integer(50, 0, 100)
    stale_brake_min: int = _integer(5, 1, 1_000_000)

    deletion_retry_max_attempts: int = _integer(8, 1, 1000)
    deletion_backoff_base_sec: float = _number(60, 0, _WEEK_SEC, inclusive=True)
    deletion_backoff_max_sec: float = _number(3600, 0, _WEEK_SEC, inclusive=True)

    csp_base_url: str | None = _var(None, _HttpUrl())
    csp_api_token: str | None = _text(None, r"[\x21-\x7e]+\Z", "printable ASCII without spaces", secret=True)
    csp_timeout_connect_sec: float = _number(5, 0, 300)
    csp_timeout_read_sec: float = _number(15, 0, 300)
    csp_max_concurrency: int = _integer(10, 1, 10_000)
    csp_deletes_per_minute: int = _integer(0, 0, 60_000)
    """0: no pace."""
    csp_services_cleanup: ServicesCleanup = _var(ServicesCleanup.OFF, ma.Enum(ServicesCleanup, by_value=True))
    csp_services_name: str | None = _text(None, r"[ -~]{1,256}\Z", "1 to 256 printable ASCII characters")
    csp_services_email: str | None = _text(None, r"[!-~]{1,256}\Z", "printable ASCII without spaces", secret=True)
    csp_services_password: str | None = _text(None, r"[ -~]{1,1024}\Z", "printable ASCII", secret=True)
    circuit_breaker_threshold: int = _integer(5, 1, 10_000)
    circuit_breaker_timeout_sec: float = _number(60, 0, _DAY_SEC)

    webhook_allowed_hosts: tuple[str, ...] = _var((), _Hosts())

    log_level: str = _var("INFO", ma.String(validate=validate.OneOf(["DEBUG", "INFO", "WARNING", "ERROR"])))
    log_format: str = _var("json", ma.String(validate=validate.OneOf(["json", "text"])))
    metrics_port: int = _integer(0, 0, 65535)
    otel_sdk_disabled: bool = _var(
        default=False, kind=ma.Boolean(truthy={"true", "True", "TRUE"}, falsy={"false", "False", "FALSE"})
    )
    otel_traces_exporter: str | None = _var(None, ma.String(validate=validate.OneOf(["otlp", "none"])))
    otel_exporter_otlp_endpoint: str | None = _var(None, _HttpUrl())
    otel_exporter_otlp_traces_endpoint: str | None = _var(None, _HttpUrl())
    otel_exporter_otlp_protocol: str | None = _var(None, ma.String(validate=validate.OneOf(["http/protobuf"])))
    otel_exporter_otlp_traces_protocol: str | None = _var(None, ma.String(validate=validate.OneOf(["http/protobuf"])))
    # OpenTelemetry reads the rest. It falls back to other values without a word, or raises once the process runs.
    otel_exporter_otlp_timeout: float = _number(10, 0, 600)
    otel_exporter_otlp_traces_timeout: float | None = _number(None, 0, 600)
    otel_exporter_otlp_compression: str = _text("none", _COMPRESSIONS, "none, gzip or deflate")
    otel_exporter_otlp_traces_compression: str | None = _text(None, _COMPRESSIONS, "none, gzip or deflate")
    otel_traces_sampler: str = _text("parentbased_always_on", _SAMPLERS, _SAMPLERS_TEXT)
    otel_traces_sampler_arg: float = _number(1, 0, 1, inclusive=True)
    otel_bsp_max_queue_size: int = _integer(2048, 1, _MOST_SPANS)
    otel_bsp_max_export_batch_size: int = _integer(512, 1, _MOST_SPANS)
    otel_bsp_schedule_delay: int = _integer(5000, 1, _DAY_MILLIS)
    otel_bsp_export_timeout: int = _integer(30_000, 1, _DAY_MILLIS)
    pool_gauge_cache_sec: float = _number(2, 0, 3600, inclusive=True)
    liveness_limit_sec: float = _number(60, 0, 3600)

    @classmethod
    def from_env(cls, environ: Mapping[str, str], *, process: Process) -> Self:
        """Parse the environment for one process; an empty variable counts as missing.

        Raises `SettingsError`, which names every variable that is bad or missing, all at once.
        """
        given = {name: value.strip() for name, value in environ.items() if value.strip()}
        kinds: dict[str, ma.Field[Any]] = {item.name.upper(): item.metadata["kind"] for item in fields(cls)}
        problems: list[str] = []
        parsed: dict[str, Any] = {}
        try:
            parsed = Schema.from_dict(kinds)().load(given, unknown=EXCLUDE)
        except ValidationError as error:
            messages: dict[str, list[str]] = error.normalized_messages()  # type: ignore[no-untyped-call] # marshmallow leaves it untyped
            problems = [f"{name}: {' '.join(texts)}" for name, texts in messages.items()]
            parsed = error.valid_data if isinstance(error.valid_data, dict) else {}
        defaults = {item.name: _default(item) for item in fields(cls)}
        defaults["metrics_port"] = {Process.WORKER: 9101, Process.BEAT: 9102}.get(process, 0)
        if parsed.get("BROKER_ENV") is Environment.DEVELOPMENT:
            defaults["shutdown_drain_sec"] = 0
        settings = cls(**(defaults | {name.lower(): value for name, value in parsed.items()}))
        named = {problem.split(":", 1)[0] for problem in problems}
        problems += [
            problem
            for problem in settings._check_together(process, set(parsed))
            if problem.split(":", 1)[0] not in named
        ]
        if not settings._asks_for_traces(given):
            problems = [each for each in problems if not each.startswith(_TRACES) or each.startswith(_SWITCH)]
        if problems:
            raise SettingsError(sorted(problems))
        return settings

    @property
    def in_production(self) -> bool:
        """Whether values that only fit development are refused."""
        return self.broker_env is Environment.PRODUCTION

    @property
    def roles_for_tokens_file(self) -> frozenset[Role]:
        """The roles for which only `broker_tokens_file` gives tokens."""
        given = {
            Role.TRACK: self.broker_api_token or self.broker_api_token_file,
            Role.ADMIN: self.broker_admin_token or self.broker_admin_token_file,
        }
        return frozenset(role for role, source in given.items() if not source)

    @property
    def traces_variable(self) -> str | None:
        """The variable that asks for traces; None if there are to be none."""
        if self._has_traces_off:
            return None
        return next((name for name in _ASKING if getattr(self, name.lower()) is not None), None)

    @property
    def _has_traces_off(self) -> bool:
        return self.otel_sdk_disabled or self.otel_traces_exporter == "none"

    def _asks_for_traces(self, given: Mapping[str, str]) -> bool:
        """Tell whether traces are asked for, also if the value that asks is a bad one."""
        return not self._has_traces_off and not given.keys().isdisjoint(_ASKING)

    @property
    def policy(self) -> Policy:
        """The numbers that the core's rules depend on."""
        return Policy(
            cool_down_sec=self.cool_down_sec,
            lab_duration_sec=round(self.lab_duration_hours * 3600),
            max_lab_duration_sec=round((self.max_lab_duration_hours or 2 * self.lab_duration_hours) * 3600),
            expiry_buffer_sec=round(self.expiry_buffer_hours * 3600),
            stale_grace_sec=round(self.stale_grace_hours * 3600),
            stale_brake_percent=self.stale_brake_percent,
            stale_brake_min=self.stale_brake_min,
            reservable_percent=self.reservable_percent,
            expiry_warning_sec=self.expiry_warning_minutes * 60,
            pool_low_percent=self.pool_low_percent,
            recycle=self.recycle_policy,
            deletion_max_attempts=self.deletion_retry_max_attempts,
            deletion_backoff_base_sec=self.deletion_backoff_base_sec,
            deletion_backoff_max_sec=self.deletion_backoff_max_sec,
            attempt_window_sec=round(self.csp_call_limit_sec) + self._services_limit_sec + 30,
            services_limit_sec=self._services_limit_sec,
            k_candidates=self.k_candidates,
            line_grace_sec=self.line_grace_sec,
            line_max=self.line_max,
        )

    @property
    def csp_call_limit_sec(self) -> float:
        """The longest that one call to the provider can last."""
        return self.csp_timeout_connect_sec + self.csp_timeout_read_sec

    @property
    def csp_slot_limit_sec(self) -> float:
        """The longest that one wipe's calls to the provider can last."""
        return self.csp_call_limit_sec + self._services_limit_sec

    @property
    def removes_services(self) -> bool:
        """Whether services are removed, or counted, before an account is deleted."""
        return self.csp_services_cleanup is not ServicesCleanup.OFF

    @property
    def _services_limit_sec(self) -> int:
        return _SERVICES_LIMIT_SEC if self.removes_services else 0

    def _check_together(self, process: Process, given: set[str]) -> list[str]:
        """Check the rules that no variable can break alone."""
        problems = []
        if process is Process.API:
            problems += self._check_tokens()
        problems += self._check_sign_in(given)
        if process is Process.WORKER:
            problems += self._check_provider()
        if process is Process.CONSOLE:
            problems += self._check_console(given)
        if process in {Process.API, Process.WORKER} and self.in_production and "RECYCLE_POLICY" not in given:
            problems.append(
                "RECYCLE_POLICY: Missing: give reuse, confirm or retire, by what the provider's delete does."
            )
        if self.max_lab_duration_hours is not None and self.max_lab_duration_hours < self.lab_duration_hours:
            problems.append("MAX_LAB_DURATION_HOURS: Must not be less than LAB_DURATION_HOURS.")
        if self.deletion_backoff_base_sec > self.deletion_backoff_max_sec:
            problems.append("DELETION_BACKOFF_MAX_SEC: Must not be less than DELETION_BACKOFF_BASE_SEC.")
        if self.otel_bsp_max_queue_size < self.otel_bsp_max_export_batch_size:
            problems.append(
                "OTEL_BSP_MAX_QUEUE_SIZE: Must not be less than OTEL_BSP_MAX_EXPORT_BATCH_SIZE, "
                f"which is {self.otel_bsp_max_export_batch_size}."
            )
        return problems

    def _check_tokens(self) -> list[str]:
        problems: list[str] = []
        track, admin = self._check_token(Role.TRACK, problems), self._check_token(Role.ADMIN, problems)
        if _digests(track) & _digests(admin):
            problems.append("BROKER_ADMIN_TOKEN: Has a token of BROKER_API_TOKEN: give another one.")
        if any(token.principal.tracks is not None for token in admin):
            problems.append("BROKER_ADMIN_TOKEN: An admin's token cannot be bound to tracks.")
        if self.broker_tokens_file is not None:
            problems += self._check_tokens_file(self.broker_tokens_file, _digests(track) | _digests(admin))
        return problems

    def _check_sign_in(self, given: set[str]) -> list[str]:
        problems = []
        if self.oidc_issuer is not None:
            is_safe = urlsplit(self.oidc_issuer).scheme == "https"
            if not is_safe and (self.in_production or not _is_safe(self.oidc_issuer)):
                problems.append("OIDC_ISSUER: Must be https; in development it may be http on loopback.")
            if "OIDC_AUDIENCE" not in given:
                problems.append("OIDC_AUDIENCE: Missing: give it with OIDC_ISSUER.")
        elif "OIDC_AUDIENCE" in given:
            problems.append("OIDC_ISSUER: Missing: give it with OIDC_AUDIENCE.")
        else:
            alone = [name for name in _WITH_ISSUER if name in given]
            problems += [f"OIDC_ISSUER: Missing: {name} has no effect without it." for name in alone]
        return problems

    def _check_console(self, given: set[str]) -> list[str]:
        problems = []
        if not self.console_secret_key and self.in_production:
            problems.append("CONSOLE_SECRET_KEY: Missing: give a random text of at least 32 characters.")
        if self.in_production and "BROKER_API_URL" not in given:
            problems.append("BROKER_API_URL: Missing: give the API's address with its base path.")
        if self.oidc_issuer is not None and self.oidc_client_id is None:
            problems.append("OIDC_CLIENT_ID: Missing: give the console's client id at OIDC_ISSUER.")
        return problems

    def _check_token(self, role: Role, problems: list[str]) -> tuple[Token, ...]:
        """Return the tokens of one setting, and add their mistakes to `problems`."""
        if role is Role.TRACK:
            name, tokens, file = "BROKER_API_TOKEN", self.broker_api_token, self.broker_api_token_file
        else:
            name, tokens, file = "BROKER_ADMIN_TOKEN", self.broker_admin_token, self.broker_admin_token_file
        if file is None:
            if tokens or self.broker_tokens_file is None:
                problems += [f"{name}: {fault}" for fault in find_faults(tokens, production=self.in_production)]
            return tokens
        if tokens:
            problems.append(f"{name}: Given beside {name}_FILE: give one of them.")
            return tokens
        try:
            return read_tokens(file, role, production=self.in_production)
        except BadTokenError as error:
            problems.append(f"{name}_FILE: {error}")
            return ()

    def _check_tokens_file(self, file: str, others: set[bytes]) -> list[str]:
        try:
            tokens = read_principals(file, production=self.in_production, required=self.roles_for_tokens_file)
        except BadTokenError as error:
            return [f"BROKER_TOKENS_FILE: {error}"]
        twice = [token.principal.name for token in tokens if token.digest in others]
        if twice:
            return [f"BROKER_TOKENS_FILE: Another setting holds the token of {', '.join(twice)}, too."]
        return []

    def _check_provider(self) -> list[str]:
        problems = []
        if self.csp_base_url is None:
            problems.append("CSP_BASE_URL: Missing: give the provider's address.")
        elif self.in_production and not _is_safe(self.csp_base_url):
            problems.append("CSP_BASE_URL: Must be https, unless the provider is on loopback.")
        if self.csp_api_token is None:
            problems.append("CSP_API_TOKEN: Missing: give the provider's token.")
        if self.removes_services:
            of_user = {
                "CSP_SERVICES_EMAIL": self.csp_services_email,
                "CSP_SERVICES_PASSWORD": self.csp_services_password,
            }
            needed = f"CSP_SERVICES_CLEANUP={self.csp_services_cleanup} needs it."
            problems += [f"{name}: Missing: {needed}" for name, value in of_user.items() if value is None]
        return problems


def _default(item: Field[Any]) -> Any:  # noqa: ANN401 - any field's value
    assert item.default is not MISSING  # noqa: S101 - every setting has a default; what is required is checked later
    return item.default


def _digests(tokens: tuple[Token, ...]) -> set[bytes]:
    return {token.digest for token in tokens}


def _is_safe(url: str) -> bool:
    parts = urlsplit(url)
    if parts.scheme == "https" or parts.hostname == "localhost":
        return True
    try:
        return ipaddress.ip_address(parts.hostname or "").is_loopback
    except ValueError:
        return False
