"""`broker whoami` and `broker token`: what a token is good for. No command prints a token."""

from __future__ import annotations

import hashlib
import os
import sys

import click

from broker_common.cli.api import (
    TOKEN_VARIABLE,
    ApiError,
    BrokerApi,
    api_url,
    checked_token,
    operators_api,
)
from broker_common.cli.output import is_terminal
from broker_common.tokens import split_tokens


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
    users of the machine could see it. Several tokens, as settings and token files hold them, are taken one by one.

    Example: broker token check --env NEW_TOKEN
    """


_env = click.option(
    "--env", "variable", default=TOKEN_VARIABLE, show_default=True, help="The variable that holds the token."
)
_stdin = click.option("--stdin", "from_stdin", is_flag=True, help="Read the token from standard input instead.")


def _read(variable: str, *, from_stdin: bool) -> dict[str, str]:
    """Return the tokens that are given, in their order, by the words that tell each apart. Raises `ApiError`."""
    source = "standard input" if from_stdin else variable
    if not from_stdin:
        text = os.environ.get(variable, "")
    else:
        text = click.prompt("token", hide_input=True, err=True) if is_terminal() else sys.stdin.read()
    found = [secret for _, secret in split_tokens(text)]
    if len(found) <= 1:
        name = "the token on standard input" if from_stdin else source
        return {name: checked_token("".join(found), name)}
    named = {f"token {position} of {source}": each for position, each in enumerate(found, 1)}
    return {name: checked_token(each, name) for name, each in named.items()}


@token.command(name="check")
@_env
@_stdin
@click.option("--track", "track_id", help="Also check that the token may act for this track.")
def check_command(variable: str, track_id: str | None, *, from_stdin: bool) -> None:
    """Ask the API whether a token is good, and for what.

    Prints the principal and its roles. A token that is for tracks alone is good, too: the API does not tell its name.
    Exits 1 if the token is unknown or has expired, or may not act for the track. Each of several tokens is checked.

    Example: broker token check --env NEW_TOKEN --track track-4711

    From a file: broker token check --stdin < new-token.txt
    """
    given = _read(variable, from_stdin=from_stdin)
    is_good = True
    for source, secret in given.items():
        if len(given) > 1:
            click.echo(f"{source}:")
        try:
            _check(BrokerApi(api_url(), secret, source), track_id)
        except ApiError as error:
            if error.code is None or len(given) == 1:
                raise
            click.echo(f"Error: {source}: {error}", err=True)
            is_good = False
    if not is_good:
        sys.exit(1)


def _check(api: BrokerApi, track_id: str | None) -> None:
    """Print what a token is good for. Raises `ApiError` if it is not good, or may not act for the track."""
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
    Each of several tokens is hashed, and its digest stands after its position. A prefix such as `acme-*=` is not a part
    of the token: keep it in front of the digest.

    Example: broker token hash --env NEW_TOKEN
    """
    given = _read(variable, from_stdin=from_stdin)
    for source, secret in given.items():
        click.echo(f"{f'{source}: ' if len(given) > 1 else ''}{hashlib.sha256(secret.encode()).hexdigest()}")
