"""`broker whoami` and `broker token`: what a token is good for. No command prints a token."""

from __future__ import annotations

import hashlib
import os
import sys

import click

from broker_common.cli.api import ApiError, BrokerApi, api_url, checked_token, operators_api
from broker_common.cli.output import is_terminal

_VARIABLE = "BROKER_ADMIN_TOKEN"


def _print_principal(found: dict[str, str]) -> None:
    for name, value in (("principal", found["principal"]), ("roles", ", ".join(found["roles"]))):
        click.echo(f"{name:<9}  {value}")
    click.echo(f"{'customer':<9}  {found['customer'] or '-'}")


@click.command()
def whoami() -> None:
    """Show whose token BROKER_ADMIN_TOKEN holds, and its roles.

    Example: broker whoami
    """
    _print_principal(operators_api().get("/whoami"))


@click.group()
def token() -> None:
    """Check a token, or hash it. No command prints it.

    The token is read from an environment variable or from standard input, and never from the command line, where other
    users of the machine could see it.

    Example: broker token check --env NEW_TOKEN
    """


_env = click.option(
    "--env", "variable", default=_VARIABLE, show_default=True, help="The variable that holds the token."
)
_stdin = click.option("--stdin", "from_stdin", is_flag=True, help="Read the token from standard input instead.")


def _read(variable: str, *, from_stdin: bool) -> str:
    if not from_stdin:
        return checked_token(os.environ.get(variable, "").strip(), variable)
    if is_terminal():
        return checked_token(click.prompt("token", hide_input=True, err=True).strip(), "standard input")
    return checked_token(sys.stdin.readline().strip(), "standard input")


@token.command(name="check")
@_env
@_stdin
@click.option("--track", "track_id", help="Also check that the token may act for this track.")
def check_command(variable: str, track_id: str | None, *, from_stdin: bool) -> None:
    """Ask the API whether a token is good, and for what.

    Prints the principal and its roles. A token that is for tracks alone is good, too: the API does not tell its name.
    Exits 1 if the token is unknown or has expired, or may not act for the track.

    Example: broker token check --env NEW_TOKEN --track track-4711

    From a file: broker token check --stdin < new-token.txt
    """
    api = BrokerApi(api_url(), _read(variable, from_stdin=from_stdin))
    try:
        _print_principal(api.get("/whoami"))
    except ApiError as error:
        if error.code != "FORBIDDEN":
            raise
        click.echo("the token is good, and for tracks alone")
    if track_id is not None:
        api.held_by(track_id)
        click.echo(f"the token may act for {track_id}")


@token.command(name="hash")
@_env
@_stdin
def hash_command(variable: str, *, from_stdin: bool) -> None:
    """Print the SHA-256 digest of a token, which settings and files may hold in its place.

    BROKER_TOKENS_FILE takes the digest as `sha256`. BROKER_API_TOKEN and BROKER_ADMIN_TOKEN take it after `sha256:`.

    Example: broker token hash --env NEW_TOKEN
    """
    click.echo(hashlib.sha256(_read(variable, from_stdin=from_stdin).encode()).hexdigest())
