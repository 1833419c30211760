"""The plan of `make run`: the development defaults, which the caller's environment overrides.

- With `REDIS_URL` or `CSP_BASE_URL` set, that part is not started: the given one is used.
- DynamoDB is embedded, unless `DDB_ENDPOINT_URL` is set, or `DYNAMODB=aws` chooses real AWS. AWS credentials or a
  profile in the environment do not choose AWS: they are hidden from all processes.
- `METRICS_PORT` is that of the worker for jobs. The workers for deletions and for webhooks, and beat, have
  `DELETIONS_METRICS_PORT`, `WEBHOOKS_METRICS_PORT` and `BEAT_METRICS_PORT`, since all share one environment here.
- The console calls the API of this run: `BROKER_API_URL` is only for the command `broker`. Without
  `CONSOLE_SECRET_KEY`, sessions end with the run.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from broker_common.settings import Process, Settings, SettingsError
from broker_common.tokens import DEVELOPMENT_ADMIN_TOKEN, DEVELOPMENT_TRACK_TOKEN

if TYPE_CHECKING:
    from collections.abc import Mapping

LOOPBACK = "127.0.0.1"
DEFAULTS = {
    "BROKER_ENV": "development",
    "BROKER_API_TOKEN": DEVELOPMENT_TRACK_TOKEN,
    "BROKER_ADMIN_TOKEN": DEVELOPMENT_ADMIN_TOKEN,
    "LOG_FORMAT": "text",
    "HISTORY_DAYS": "1",
    "API_BIND": LOOPBACK,
    "API_PORT": "8080",
    "API_WORKERS": "2",
    "CONSOLE_BIND": LOOPBACK,
    "CONSOLE_PORT": "8081",
    "METRICS_PORT": "9101",
    "DELETIONS_METRICS_PORT": "9103",
    "WEBHOOKS_METRICS_PORT": "9104",
    "BEAT_METRICS_PORT": "9102",
    "FLOWER_ADDRESS": LOOPBACK,
    "FLOWER_PORT": "5555",
    "DYNAMODB": "embedded",
    "DYNAMODB_PORT": "14566",
    "REDIS_PORT": "16379",
    "MOCK_CSP_PORT": "18080",
    "POOL": "50",
}
_PORT = (1, 65535)
_NUMBERS = {
    "API_PORT": _PORT,
    "CONSOLE_PORT": _PORT,
    "METRICS_PORT": _PORT,
    "DELETIONS_METRICS_PORT": _PORT,
    "WEBHOOKS_METRICS_PORT": _PORT,
    "BEAT_METRICS_PORT": _PORT,
    "FLOWER_PORT": _PORT,
    "DYNAMODB_PORT": _PORT,
    "REDIS_PORT": _PORT,
    "MOCK_CSP_PORT": _PORT,
    "POOL": (0, 100_000),
}
_DUMMY_CREDENTIALS = {"AWS_ACCESS_KEY_ID": "development", "AWS_SECRET_ACCESS_KEY": "development"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The environment of every broker process, and the parts that are started beside them."""

    env: Mapping[str, str] = field(repr=False)
    given: frozenset[str]
    """The names of the variables that the caller has set."""
    settings: Settings
    """The worker's settings. All fields that are used here are the same for all processes."""
    embeds_dynamodb: bool
    embeds_redis: bool
    embeds_csp: bool
    operator_token: str = field(repr=False)
    """An admin token of this run alone: of the caller's token, the settings may have only the hash."""

    def number(self, name: str) -> int:
        """Return the variable `name` as a number."""
        return int(self.env[name])

    @property
    def api_url(self) -> str:
        """The URL of the API on this machine."""
        return self.url("API_PORT")

    def url(self, port: str) -> str:
        """Return the URL of the API, or of the metrics of a worker or beat, by the variable of its port."""
        return _url(self.settings.api_bind, self.env[port])

    @property
    def console_url(self) -> str:
        """The URL of the console on this machine."""
        return _url(self.settings.console_bind, self.env["CONSOLE_PORT"])

    @property
    def flower_url(self) -> str:
        """The URL of Flower on this machine."""
        return f"http://{self.env['FLOWER_ADDRESS']}:{self.env['FLOWER_PORT']}"


def make_plan(environ: Mapping[str, str]) -> Plan:
    """Return the plan for this environment.

    Raises `SettingsError` with all problems of all processes' settings, and of those of `make run` itself.
    """
    given = {name: value for name, value in environ.items() if value.strip()}
    env = DEFAULTS | given
    problems = _own_problems(env)
    embeds_dynamodb = env["DYNAMODB"] == "embedded" and "DDB_ENDPOINT_URL" not in given
    _point_at_parts(env, embeds_dynamodb=embeds_dynamodb)
    settings = None
    for process in (Process.API, Process.CONSOLE, Process.BEAT, Process.WORKER):
        try:
            settings = Settings.from_env(env, process=process)
        except SettingsError as error:
            named = {problem.split(":", 1)[0] for problem in problems}
            problems += [problem for problem in error.problems if problem.split(":", 1)[0] not in named]
    if problems or settings is None:
        raise SettingsError(sorted(problems))
    _give_credentials(env)
    return Plan(
        env=env,
        given=frozenset(given),
        settings=settings,
        embeds_dynamodb=embeds_dynamodb,
        embeds_redis="REDIS_URL" not in given,
        embeds_csp="CSP_BASE_URL" not in given,
        operator_token=secrets.token_urlsafe(24),
    )


def _own_problems(env: Mapping[str, str]) -> list[str]:
    """Return the problems of the variables that only `make run` reads."""
    problems = [
        f"{name}: Must be an integer from {low} to {high}."
        for name, (low, high) in _NUMBERS.items()
        if not (env[name].isascii() and env[name].isdigit() and low <= int(env[name]) <= high)
    ]
    if env["DYNAMODB"] not in {"embedded", "aws"}:
        problems.append("DYNAMODB: Must be one of: embedded, aws.")
    elif env["DYNAMODB"] == "aws" and "DDB_ENDPOINT_URL" in env:
        problems.append("DYNAMODB: aws and a DDB_ENDPOINT_URL contradict each other; give one of them.")
    return problems


def _point_at_parts(env: dict[str, str], *, embeds_dynamodb: bool) -> None:
    """Add the addresses of the parts that are started; hide AWS settings from an embedded DynamoDB."""
    if embeds_dynamodb:
        for name in [name for name in env if name.startswith("AWS_") and name != "AWS_REGION"]:
            del env[name]
        env["DDB_ENDPOINT_URL"] = f"http://{LOOPBACK}:{env['DYNAMODB_PORT']}"
    env.setdefault("REDIS_URL", f"redis://{LOOPBACK}:{env['REDIS_PORT']}/0")
    if "CSP_BASE_URL" not in env:
        env["CSP_BASE_URL"] = f"http://{LOOPBACK}:{env['MOCK_CSP_PORT']}"
        env.setdefault("CSP_API_TOKEN", "development-csp-token")
    for name in ("NO_PROXY", "no_proxy"):
        env[name] = ",".join(filter(None, [env.get(name), LOOPBACK, "localhost"]))
    env["PYTHONUNBUFFERED"] = "1"
    # So that sessions outlast the console's process, which is started again when it ends.
    env.setdefault("CONSOLE_SECRET_KEY", secrets.token_urlsafe(32))


def _url(host: str, port: str) -> str:
    return f"http://{LOOPBACK if host == '0.0.0.0' else host}:{port}"  # noqa: S104 - compared, not bound


def _give_credentials(env: dict[str, str]) -> None:
    """Add dummy credentials for a DynamoDB on this machine if the caller has none: boto3 requires some."""
    is_local = urlsplit(env.get("DDB_ENDPOINT_URL", "")).hostname in {LOOPBACK, "localhost", "::1"}
    if is_local and not {"AWS_ACCESS_KEY_ID", "AWS_PROFILE"} & env.keys():
        env |= _DUMMY_CREDENTIALS
