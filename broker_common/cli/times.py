"""Times and lengths of time, as people write them on the command line."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from difflib import get_close_matches
from zoneinfo import ZoneInfo, available_timezones

import click

_UNITS = {"d": 86400, "h": 3600, "m": 60, "s": 1}
_LENGTH = re.compile("".join(rf"(?:(\d{{1,9}}){unit})?" for unit in _UNITS), re.ASCII)
_MOMENT = re.compile(
    r"(\d{4}-\d\d-\d\d)[ T](\d\d?):(\d\d)(?::(\d\d))?(?:\s*(Z|[+-]\d\d(?::?\d\d)?)|\s+([A-Za-z][\w+/-]*))?",
    re.ASCII,
)
_EXAMPLES = "now, 2026-12-01 09:00 Europe/Berlin, or 2026-12-01T09:00+01:00"


def parse_length(text: str) -> int:
    """Return the seconds of a length of time such as 90s, 10m, 24h, 7d or 1d2h. A day has 24 hours."""
    found = _LENGTH.fullmatch(text)
    if found is None or not text:
        raise click.BadParameter("must be a length of time, such as 90s, 10m, 24h, 7d or 1d2h")
    return sum(int(count) * seconds for count, seconds in zip(found.groups(0), _UNITS.values(), strict=True))


@dataclass(frozen=True, slots=True)
class Moment:
    """A time in Unix seconds. `taken_as` says how it was understood, if its text left that open."""

    at: int
    taken_as: str | None = None


def parse_moment(text: str) -> Moment:
    """Return the moment of a date and time, in the time zone that is named, or else in that of this machine.

    A zone is a name of the IANA database, or a distance from UTC. `now` and Unix seconds are moments, too. Raises
    `BadParameter` for a time that the zone's clocks skip, or that they show twice.
    """
    if text == "now":
        return Moment(int(datetime.now(UTC).timestamp()))
    if re.fullmatch(r"[0-9]{9,12}", text):
        return Moment(int(text))
    found = _MOMENT.fullmatch(text.strip())
    if found is None:
        raise click.BadParameter(f"must be a time, such as {_EXAMPLES}")
    date, hour, minute, second, distance, name = found.groups()
    try:
        shown = datetime.fromisoformat(f"{date}T{hour:>02}:{minute}:{second or '00'}")
        if distance is not None:
            return Moment(int(datetime.fromisoformat(f"{shown.isoformat()}{distance}").timestamp()))
        return _only_moment(shown, name)
    except (ValueError, OverflowError, OSError) as error:
        raise click.BadParameter(f"there is no such time. Give one such as {_EXAMPLES}") from error


def say_how_taken(moment: Moment | None) -> None:
    """Print on stderr how a moment was understood, if its text left that open."""
    if moment is not None and moment.taken_as is not None:
        click.echo(f"taken as {moment.taken_as}", err=True)


def _only_moment(shown: datetime, name: str | None) -> Moment:
    """Return the one moment at which the clocks of a zone show this. Without a name, it is the zone of this machine."""
    zone = None if name is None else _find_zone(name)
    where = name or "the time zone of this machine"
    # PEP 495: if the clocks skip or repeat a time, `fold` chooses between the distances before and after the change.
    first, second = (shown.replace(tzinfo=zone, fold=fold).timestamp() for fold in (0, 1))
    if first > second:
        raise click.BadParameter(
            f"{shown:%Y-%m-%d %H:%M} does not exist in {where}, because the clocks go forward then. Did you mean"
            f" {_at(first, zone):%H:%M}?"
        )
    if first < second:
        choices = " or ".join(_at(each, zone).isoformat(timespec="minutes") for each in (first, second))
        raise click.BadParameter(
            f"{shown:%Y-%m-%d %H:%M} comes twice in {where}, because the clocks go back then. Give {choices}"
        )
    if zone is not None:
        return Moment(int(first))
    here = _at(first, None)
    return Moment(int(first), f"{here.isoformat(timespec='minutes')} ({here.tzname()}), by this machine's time zone")


def _at(moment: float, zone: ZoneInfo | None) -> datetime:
    """Return what the clocks of a zone show; None is the zone of this machine."""
    return datetime.fromtimestamp(moment, UTC).astimezone(zone)


def _find_zone(name: str) -> ZoneInfo:
    known = available_timezones()
    if name in known:
        return ZoneInfo(name)
    alike = {zone.lower(): zone for zone in known}
    close = [alike[each] for each in get_close_matches(name.lower(), alike, n=3, cutoff=0.8)]
    advice = f"Did you mean {' or '.join(close)}?" if close else "Give one such as Europe/Berlin, or +01:00"
    raise click.BadParameter(f"{name} is no time zone that is known here. {advice}")
