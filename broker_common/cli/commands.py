"""The command `broker`: all its commands in one place, what they share, and how their errors end."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import click

from broker_common.cli.api import ApiError
from broker_common.cli.health import health
from broker_common.cli.jobs import job_commands
from broker_common.cli.line import line
from broker_common.cli.overview import overview
from broker_common.cli.pauses import pause, resume
from broker_common.cli.pool import events, pool
from broker_common.cli.reservations import capacity, reservation
from broker_common.cli.sandboxes import bulk, sandbox, sandboxes
from broker_common.cli.tokens import token, whoami
from broker_common.cli.usage import usage
from broker_common.cli.webhooks import webhook
from broker_common.core.job_registry import JOBS

_LATE = {"check": "check_command", "table": "table", "upgrade": "upgrade"}
"""The commands of `deployment.py`, which need the clients of AWS, Redis and Celery: importing these takes a second."""


class _Commands(click.Group):
    """Commands that end with one line and exit code 1 when the API is away or refuses."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*super().list_commands(ctx), *_LATE])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in _LATE:
            found: click.Command = getattr(import_module("broker_common.cli.deployment"), _LATE[cmd_name])
            return found
        return super().get_command(ctx, cmd_name)

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401 - click's signature
        try:
            return super().invoke(ctx)
        except ApiError as error:
            raise click.ClickException(str(error)) from error


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="""\b
Examples:
  broker check
  broker health
  broker table create
  broker overview
  broker pool
  broker sandboxes --status deletion_failed
  broker sandbox show 2009521
  broker sandbox history 2009521
  broker sandbox extend 2009521 --for 2h
  broker sandbox release 2009521
  broker bulk retry
  broker line
  broker reservation list
  broker capacity
  broker usage --by lab --since 30d
  broker webhook list
  broker events --follow
  broker job run sync --wait
  broker jobs --job sync
  broker pause cleanup
  broker token check --env NEW_TOKEN
\b
Completion, for a line of ~/.bashrc, ~/.zshrc or ~/.config/fish/config.fish:
  eval "$(_BROKER_COMPLETE=bash_source broker)"
  eval "$(_BROKER_COMPLETE=zsh_source broker)"
  _BROKER_COMPLETE=fish_source broker | source""",
)
def main() -> None:
    """Operate a Sandbox Broker.

    Commands that ask its API read BROKER_API_URL (http://127.0.0.1:8080/v1 by default) and BROKER_ADMIN_TOKEN, which
    may be any operator's token. `check`, `table` and `upgrade` read the settings of the broker's processes. Exit codes:
    0 done, 1 not done, 2 wrong use.
    """


for _command in (
    *(health, overview, pool, events, pause, resume),
    *(sandboxes, sandbox, bulk, line),
    *(reservation, capacity, usage, webhook),
    *job_commands(JOBS),
    *(whoami, token),
):
    main.add_command(_command)
