"""`broker reservation` and `broker capacity`: book sandboxes for a class, and see what can be booked."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import click

from broker_common.cli.api import operators_api
from broker_common.cli.output import is_terminal, json_option, print_fields, print_json, print_rows, show_time
from broker_common.cli.times import Moment, parse_length, parse_moment, say_how_taken
from broker_common.core.reservation import ReservationState

if TYPE_CHECKING:
    from collections.abc import Callable

    Command = Callable[..., None]

_COLUMNS = ("reservation_id", "name", "state", "count", "set_aside", "drawn", "short_by", "starts_at", "ends_at")
_CURVE = ("from", "reservable", "reserved", "left")
_DAY_SEC = 24 * 3600


def _moment(_ctx: click.Context, _option: click.Parameter, text: str | None) -> Moment | None:
    return None if text is None else parse_moment(text)


def _length(_ctx: click.Context, _option: click.Parameter, text: str | None) -> int | None:
    return None if text is None else parse_length(text)


def _length_or_empty(_ctx: click.Context, _option: click.Parameter, text: str | None) -> int | str | None:
    return parse_length(text) if text else text


def _what_to_book(*, is_new: bool) -> Callable[[Command], Command]:
    """Add the options that say what to book. For a new reservation, some must be given."""
    empty = "" if is_new else " Empty: "
    options = (
        click.option("--name", required=is_new, help="What people call it."),
        click.option("--count", type=int, required=is_new, help="How many sandboxes to set aside."),
        click.option(
            "--at",
            callback=_moment,
            required=is_new,
            metavar="TIME",
            help='When it starts: now, "2026-12-01 09:00 Europe/Berlin", or 2026-12-01T09:00+01:00.',
        ),
        click.option("--for", "length", callback=_length, metavar="LENGTH", help="How long it lasts: 90m, 3h, 1d2h."),
        click.option("--until", callback=_moment, metavar="TIME", help="When it ends, in place of --for."),
        click.option("--prefix", help=f"Only sandboxes whose name starts so.{empty and empty + 'any name.'}"),
        click.option(
            "--lab",
            "labs",
            multiple=True,
            help="A lab whose tracks draw from it; may be given several times."
            f"{empty and ' These replace those before.' + empty + 'no lab.'}",
        ),
        click.option("--customer", help=f"Only tracks of this customer may draw.{empty and empty + 'all customers.'}"),
        click.option(
            "--lead", callback=_length, metavar="LENGTH", help="How long before its start it is filled; 15m by default."
        ),
        click.option(
            "--hold",
            callback=_length_or_empty,
            metavar="LENGTH",
            help="What is not drawn so long after its start is given back; by default only at the end."
            f"{empty and empty + 'at the end.'}",
        ),
        click.option("--note", help=f"For people, one line.{empty and empty + 'no note.'}"),
    )

    def add(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return add


@click.group()
def reservation() -> None:
    """Book sandboxes for a class, and look at what is booked.

    Example: broker reservation list
    """


@reservation.command()
@_what_to_book(is_new=True)
@click.option("--key", help="Makes the command safe to repeat: with the same key, nothing is booked twice.")
@json_option
def create(key: str | None, *, as_json: bool, **given: Any) -> None:  # noqa: ANN401 - click's values
    """Book sandboxes for a class.

    A time without a zone is in the time zone of this machine. A day of --for has 24 hours, also when the clocks change.

    Example: broker reservation create --name "Networking 101" --count 30 --lab networking-101
    --at "2026-12-01 09:00 Europe/Berlin" --for 3h
    """
    _show(operators_api().book(_wanted(given), key), "is booked", as_json=as_json)


@reservation.command()
@_what_to_book(is_new=True)
@json_option
def check(*, as_json: bool, **given: Any) -> None:  # noqa: ANN401 - click's values
    """Say whether a reservation could be booked, and book nothing.

    Exits 1 if it could not be booked.

    Example: broker reservation check --name "Networking 101" --count 30 --at "2026-12-01 09:00 Europe/Berlin" --for 3h
    """
    body = _wanted(given)
    found = operators_api().post("/reservations/check", body)
    if as_json:
        print_json([found])
    else:
        fits = "it fits" if found["fits"] else "it does not fit"
        click.echo(f"{fits}: {found['could_have']} sandboxes could be had, and {body['count']} are asked for")
    sys.exit(0 if found["fits"] else 1)


@reservation.command(name="list")
@click.option(
    "--state", type=click.Choice([str(state) for state in ReservationState]), help="Only reservations in this state."
)
@json_option
def list_reservations(state: str | None, *, as_json: bool) -> None:
    """List reservations, the next ones first.

    Those that ended or were cancelled are kept for 90 days. Times are in UTC.

    Example: broker reservation list --state open
    """
    found = operators_api().reservations(state=state)
    if as_json:
        print_json(found)
    else:
        print_rows(_COLUMNS, ({**each, **_in_utc(each, "starts_at", "ends_at")} for each in found))


_id = click.argument("reservation_id")


@reservation.command()
@_id
@json_option
def show(reservation_id: str, *, as_json: bool) -> None:
    """Show every field of a reservation.

    Example: broker reservation show 0f6f6a52-9a3e-4c55-8a9f-6f0d3d0c1b7e
    """
    found = operators_api().get(_path(reservation_id))
    if as_json:
        print_json([found])
    else:
        print_fields(found)


@reservation.command()
@_id
@_what_to_book(is_new=False)
@click.option("--version", type=int, help="The version that you looked at. If left out, the present one is changed.")
@json_option
def change(reservation_id: str, version: int | None, *, as_json: bool, **given: Any) -> None:  # noqa: ANN401 - click's values
    """Change a reservation that has not ended.

    What is not given stays as it is. --at alone moves the start and not the end. Tracks keep what they have drawn.

    Example: broker reservation change 0f6f6a52-9a3e-4c55-8a9f-6f0d3d0c1b7e --count 35

    An hour later: broker reservation change 0f6f6a52-9a3e-4c55-8a9f-6f0d3d0c1b7e
    --at "2026-12-01 10:00 Europe/Berlin" --for 3h
    """
    api = operators_api()
    length = given["length"]
    changes = _changes(given)
    if not changes and length is None:
        raise click.UsageError("give what to change, such as --count 35.")
    if version is None or (length is not None and "starts_at" not in changes):
        found = api.get(_path(reservation_id))
        version = found["version"] if version is None else version
        if length is not None:
            changes["ends_at"] = changes.get("starts_at", found["starts_at"]) + length
    _show(api.patch(_path(reservation_id), {**changes, "version": version}), "is changed", as_json=as_json)


@reservation.command()
@_id
@click.option("--yes", is_flag=True, help="Do not ask. Needed where there is no terminal.")
def cancel(reservation_id: str, *, yes: bool) -> None:
    """Cancel a reservation, and make available what is set aside for it.

    Tracks keep what they have drawn. May be repeated.

    Example: broker reservation cancel 0f6f6a52-9a3e-4c55-8a9f-6f0d3d0c1b7e
    """
    api = operators_api()
    if not yes:
        if not is_terminal():
            raise click.UsageError("nobody can be asked here: give --yes to cancel the reservation.")
        found = api.get(_path(reservation_id))
        click.echo(f"{found['name']}: {found['count']} sandboxes from {show_time(found['starts_at'])}", err=True)
        click.confirm(f"Cancel this reservation, and give back {found['set_aside']} sandboxes?", abort=True, err=True)
    done = api.delete(_path(reservation_id))
    click.echo(f"{done['reservation_id']} is {done['state']}: {done['drawn']} of {done['count']} sandboxes were drawn")


@click.command()
@click.option("--at", callback=_moment, default="now", metavar="TIME", help="Where to begin; now by default.")
@click.option(
    "--for", "length", callback=_length, default="1d", metavar="LENGTH", help="How far to look; 1d by default."
)
@click.option("--prefix", help="Only sandboxes whose name starts so.")
@json_option
def capacity(at: Moment, length: int, prefix: str | None, *, as_json: bool) -> None:
    """Show how many sandboxes can be reserved, and how many are, over a time.

    Each line holds until the next one. Times are in UTC.

    Example: broker capacity --at "2026-12-01 00:00 Europe/Berlin" --for 1d
    """
    say_how_taken(at)
    points = operators_api().get("/capacity", **{"from": at.at, "to": at.at + length}, prefix=prefix)["points"]
    if as_json:
        print_json(points)
        return
    print_rows(
        _CURVE,
        (
            {**each, "from": _in_utc(each, "at")["at"], "left": max(0, each["reservable"] - each["reserved"])}
            for each in points
        ),
    )


def _path(reservation_id: str) -> str:
    return f"/reservations/{quote(reservation_id, safe='')}"


def _wanted(given: dict[str, Any]) -> dict[str, Any]:
    """Return the body for a new reservation. Raises `UsageError` without one clear end."""
    if (given["length"] is None) == (given["until"] is None):
        raise click.UsageError("give how long it lasts by --for, or its end by --until.")
    return _changes(given)


def _changes(given: dict[str, Any]) -> dict[str, Any]:
    """Return the fields that were given, as the API takes them. Says how times without a zone were understood."""
    at, length, until = given["at"], given["length"], given["until"]
    if length is not None and until is not None:
        raise click.UsageError("give --for or --until, not both.")
    for moment in (at, until):
        say_how_taken(moment)
    ends_at = until.at if until else at.at + length if at and length is not None else None
    labs = given["labs"] or None
    fields = {
        "name": given["name"],
        "count": given["count"],
        "starts_at": at.at if at else None,
        "ends_at": ends_at,
        "prefix": given["prefix"],
        "track_names": None if labs is None else [each for each in labs if each],
        "lead_sec": given["lead"],
    }
    can_be_null = {"customer": given["customer"], "hold_sec": given["hold"], "note": given["note"]}
    return {name: value for name, value in fields.items() if value is not None} | {
        name: None if value == "" else value for name, value in can_be_null.items() if value is not None
    }


def _show(found: dict[str, Any], done: str, *, as_json: bool) -> None:
    if as_json:
        print_json([found])
        return
    click.echo(
        f"{found['reservation_id']} {done}: {found['count']} sandboxes from {show_time(found['starts_at'])}, to"
        f" {_in_utc(found, 'ends_at')['ends_at']}; version {found['version']}"
    )


def _in_utc(record: dict[str, Any], *names: str) -> dict[str, str]:
    return {name: f"{datetime.fromtimestamp(record[name], UTC):%Y-%m-%d %H:%M}Z" for name in names}
