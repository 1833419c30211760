"""`broker webhook`: register endpoints that are told what happens, and look at what was sent to them."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import click

from broker_common.cli.api import operators_api
from broker_common.cli.output import is_terminal, json_option, print_fields, print_json, print_rows, show_time
from broker_common.cli.times import parse_length, parse_moment, say_how_taken
from broker_common.core.webhook import DeliveryState

if TYPE_CHECKING:
    from broker_common.cli.times import Moment

_COLUMNS = ("endpoint_id", "state", "kinds", "url")
_DELIVERIES = ("delivery_id", "kind", "state", "tries", "fact_at", "next_try_at", "last_answer")
_TEST_WAIT_SEC = 30
_TEST_POLL_SEC = 1.0
_kinds = click.option("--kind", "kinds", multiple=True, help="A kind of fact; may be given several times.")
_id = click.argument("endpoint_id")


def _since(_ctx: click.Context, _option: click.Parameter, text: str) -> Moment:
    try:
        length = parse_length(text)
    except click.BadParameter:
        return parse_moment(text)
    return parse_moment(str(int(time.time()) - length))


@click.group()
def webhook() -> None:
    """Register endpoints that are told what happens, and look at what was sent to them.

    Example: broker webhook list
    """


@webhook.command()
@click.argument("url")
@_kinds
@click.option("--description", help="For people, one line.")
@json_option
def add(url: str, kinds: tuple[str, ...], description: str | None, *, as_json: bool) -> None:
    """Register an endpoint. Without --kind, it is told every kind of fact.

    Prints its secret, which the broker does not show again. The endpoint needs it to verify what it gets.

    Example: broker webhook add https://hooks.example.com/broker --kind sandbox.needs_attention --kind pool.low
    """
    body = {"url": url, "kinds": list(kinds) or ["*"]}
    _show_secret(
        operators_api().post("/webhooks", body | ({"description": description} if description else {})),
        as_json=as_json,
    )


@webhook.command(name="list")
@json_option
def list_endpoints(*, as_json: bool) -> None:
    """List all endpoints, the oldest first.

    Example: broker webhook list
    """
    found = operators_api().get("/webhooks")["webhooks"]
    if as_json:
        print_json(found)
    else:
        print_rows(_COLUMNS, ({**each, "kinds": ",".join(each["kinds"]), "state": _state_of(each)} for each in found))


@webhook.command()
@_id
@json_option
def show(endpoint_id: str, *, as_json: bool) -> None:
    """Show every field of an endpoint, except its secret.

    Example: broker webhook show 7c9e6679-7425-40de-944b-e07fc1f90ae7
    """
    _show(operators_api().get(_path(endpoint_id)), as_json=as_json)


@webhook.command()
@_id
@click.option("--url", help="Where deliveries are sent from now on.")
@_kinds
@click.option("--description", help="For people, one line. Empty: no description.")
@click.option("--enable/--disable", default=None, help="Send deliveries, or let them wait.")
@click.option("--version", type=int, help="The version that you looked at. If left out, the present one is changed.")
@json_option
def change(  # noqa: PLR0917 - one for each option
    endpoint_id: str,
    url: str | None,
    kinds: tuple[str, ...],
    description: str | None,
    enable: bool | None,
    version: int | None,
    *,
    as_json: bool,
) -> None:
    """Change an endpoint. What is not given stays as it is; --kind replaces all kinds.

    Example: broker webhook change 7c9e6679-7425-40de-944b-e07fc1f90ae7 --enable
    """
    given = {"url": url, "kinds": list(kinds) or None, "enabled": enable}
    changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if description is not None:
        changes["description"] = description or None
    if not changes:
        raise click.UsageError("give what to change, such as --enable.")
    api = operators_api()
    version = api.get(_path(endpoint_id))["version"] if version is None else version
    _show(api.patch(_path(endpoint_id), {**changes, "version": version}), as_json=as_json)


@webhook.command()
@_id
@click.option("--yes", is_flag=True, help="Do not ask. Needed where there is no terminal.")
def remove(endpoint_id: str, *, yes: bool) -> None:
    """Remove an endpoint. What was not sent yet is not sent any more.

    Example: broker webhook remove 7c9e6679-7425-40de-944b-e07fc1f90ae7
    """
    api = operators_api()
    if not yes:
        if not is_terminal():
            raise click.UsageError("nobody can be asked here: give --yes to remove the endpoint.")
        click.echo(api.get(_path(endpoint_id))["url"], err=True)
        click.confirm("Remove this endpoint?", abort=True, err=True)
    api.delete(_path(endpoint_id))
    click.echo(f"{endpoint_id} is removed")


@webhook.command(name="rotate-secret")
@_id
@json_option
def rotate_secret(endpoint_id: str, *, as_json: bool) -> None:
    """Give an endpoint a new secret. For 24 hours the old one signs, too.

    Prints the new secret, which the broker does not show again.

    Example: broker webhook rotate-secret 7c9e6679-7425-40de-944b-e07fc1f90ae7
    """
    _show_secret(operators_api().post(f"{_path(endpoint_id)}/rotate-secret"), as_json=as_json)


@webhook.command()
@_id
@json_option
def test(endpoint_id: str, *, as_json: bool) -> None:
    """Send a test to an endpoint, and show what came of its first try.

    Waits up to 30 seconds for it. Exits 1 if the try failed, or has not ended by then.

    Example: broker webhook test 7c9e6679-7425-40de-944b-e07fc1f90ae7
    """
    api = operators_api()
    delivery = api.post(f"{_path(endpoint_id)}/test")
    ends_at = time.monotonic() + _TEST_WAIT_SEC
    while delivery["last_try_at"] is None and time.monotonic() < ends_at:
        time.sleep(_TEST_POLL_SEC)
        delivery = api.get(_delivery_path(endpoint_id, delivery["delivery_id"]))
    if as_json:
        print_json([delivery])
    elif delivery["last_try_at"] is None:
        endpoint = api.get(_path(endpoint_id))
        reasons = {
            "disabled": f"the endpoint is disabled. After the repair: broker webhook change {endpoint_id} --enable",
            "failing": "the endpoint is down, and one delivery is tried every 30 seconds, the oldest first",
            "ok": f"later: broker webhook deliveries {endpoint_id}",
        }
        click.echo(f"not tried yet: {reasons[_state_of(endpoint)]}")
    else:
        click.echo(f"{delivery['state']}: {delivery['last_answer'] or delivery['last_status']}")
    sys.exit(0 if delivery["state"] == DeliveryState.DELIVERED else 1)


@webhook.command()
@_id
@click.option(
    "--state", type=click.Choice([str(state) for state in DeliveryState]), help="Only deliveries in this state."
)
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True, help="How many to show at most.")
@json_option
def deliveries(endpoint_id: str, state: str | None, limit: int, *, as_json: bool) -> None:
    """List deliveries to an endpoint, those of each state together. They are kept for 14 days.

    Example: broker webhook deliveries 7c9e6679-7425-40de-944b-e07fc1f90ae7 --state exhausted
    """
    found = operators_api().deliveries(_path(endpoint_id), state=state, limit=limit)
    if as_json:
        print_json(found)
    else:
        times = ("fact_at", "next_try_at")
        print_rows(_DELIVERIES, ({**each, **{name: show_time(each[name]) for name in times}} for each in found))


@webhook.command()
@_id
@click.argument("delivery_id")
def retry(endpoint_id: str, delivery_id: str) -> None:
    """Send a delivery again that has ended, or now if it waits for its next try.

    Example: broker webhook retry 7c9e6679-7425-40de-944b-e07fc1f90ae7 2009521:1759574955000:sandbox_allocated
    """
    done = operators_api().post(f"{_delivery_path(endpoint_id, delivery_id)}/retry")
    click.echo(f"{done['delivery_id']} is {done['state']}")


@webhook.command()
@_id
@click.option(
    "--since",
    callback=_since,
    required=True,
    metavar="TIME",
    help="A length of time back from now, such as 24h, or a time such as 2026-12-01T09:00+01:00.",
)
def replay(endpoint_id: str, since: Moment) -> None:
    """Send all facts since a time again that the endpoint's kinds include.

    May be repeated after it was interrupted: nothing is missed, and some facts may be sent once more.

    Example: broker webhook replay 7c9e6679-7425-40de-944b-e07fc1f90ae7 --since 24h
    """
    say_how_taken(since)
    api = operators_api()
    replayed, cursor = 0, None
    while True:
        body = {"since": since.at} | ({"cursor": cursor} if cursor is not None else {})
        done = api.post(f"{_path(endpoint_id)}/replay", body)
        replayed, cursor = replayed + done["replayed"], done["cursor"]
        if cursor is None:
            break
        click.echo(f"{replayed} so far", err=True)
    click.echo(f"{replayed} deliveries are sent again")


def _path(endpoint_id: str) -> str:
    return f"/webhooks/{quote(endpoint_id, safe='')}"


def _delivery_path(endpoint_id: str, delivery_id: str) -> str:
    return f"{_path(endpoint_id)}/deliveries/{quote(delivery_id, safe='')}"


def _state_of(endpoint: dict[str, Any]) -> str:
    if not endpoint["enabled"]:
        return "disabled"
    return "ok" if endpoint["failing_since"] is None else "failing"


def _show(endpoint: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json([endpoint])
    else:
        print_fields(
            {**endpoint, "kinds": ",".join(endpoint["kinds"])},
            times=("active_from", "failing_since", "previous_secret_valid_until"),
        )


def _show_secret(endpoint: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json([endpoint])
        return
    click.echo(f"{endpoint['endpoint_id']} {endpoint['url']}")
    click.echo(f"secret: {endpoint['secret']}")
    until = endpoint["previous_secret_valid_until"]
    if until is not None:
        click.echo(f"the secret before signs, too: until {show_time(until)}", err=True)
    click.echo("Keep the secret now: it is not shown again.", err=True)
