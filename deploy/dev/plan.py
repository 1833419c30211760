"""What `make run` is to start: the development defaults, with the caller's environment over them.

- `REDIS_URL` or `CSP_BASE_URL` given: that part is not started, the given one is used.
- DynamoDB is embedded, unless `DDB_ENDPOINT_URL` is given, or `DYNAMODB=aws` says that real AWS is meant. AWS
  credentials or a profile in the environment are no such word: they are hidden from everything that is started.
- `METRICS_PORT` is the worker's; beat's is `BEAT_METRICS_PORT` here, where both have one environment.
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
    "METRICS_PORT": "9101",
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
    "METRICS_PORT": _PORT,
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
    """The environment of every broker process, and which parts are started beside them."""

    env: Mapping[str, str] = field(repr=False)
    given: frozenset[str]
    """The variables that the caller has set."""
    settings: Settings
    """The worker's settings: the API's and beat's differ from them in no field that is used here."""
    embeds_dynamodb: bool
    embeds_redis: bool
    embeds_csp: bool
    operator_token: str = field(repr=False)
    """An admin token of this run alone. The caller's may be known to us by its hash only."""

    def number(self, name: str) -> int:
        """Return a variable that is a number."""
        return int(self.env[name])

    @property
    def api_url(self) -> str:
        """Where the API answers on this machine."""
        return self.url("API_PORT")

    def url(self, port: str) -> str:
        """Return the address of what listens on a port of `API_BIND`: the API, and the metrics of worker and beat."""
        host = self.settings.api_bind
        return f"http://{LOOPBACK if host == '0.0.0.0' else host}:{self.env[port]}"  # noqa: S104 - compared, not bound

    @property
    def flower_url(self) -> str:
        """Where Flower answers on this machine."""
        return f"http://{self.env['FLOWER_ADDRESS']}:{self.env['FLOWER_PORT']}"


def make_plan(environ: Mapping[str, str]) -> Plan:
    """Decide what to start.

    Raises `SettingsError` with every problem of every process, and of the settings of `make run` itself.
    """
    given = {name: value for name, value in environ.items() if value.strip()}
    env = DEFAULTS | given
    problems = _own_problems(env)
    embeds_dynamodb = env["DYNAMODB"] == "embedded" and "DDB_ENDPOINT_URL" not in given
    _point_at_parts(env, embeds_dynamodb=embeds_dynamodb)
    settings = None
    for process in (Process.API, Process.BEAT, Process.WORKER):
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
    """Check the variables that no process of the broker reads."""
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
    """Add the addresses of what is started here, and keep what is not meant for it out."""
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


def _give_credentials(env: dict[str, str]) -> None:
    """Add credentials, which boto3 insists on, where DynamoDB is an engine of this machine and there are none."""
    at_hand = urlsplit(env.get("DDB_ENDPOINT_URL", "")).hostname in {LOOPBACK, "localhost", "::1"}
    if at_hand and not {"AWS_ACCESS_KEY_ID", "AWS_PROFILE"} & env.keys():
        env |= _DUMMY_CREDENTIALS
