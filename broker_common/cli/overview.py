"""`broker overview`: the state of the broker on one screen."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from broker_common.cli.api import operators_api
from broker_common.cli.output import json_option, print_json
from broker_common.cli.pool import read_overview

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_IN_SERVICE = ("available", "reserved", "allocated", "pending_deletion")
_WIDTH = 13
_OUTCOMES = {
    "success": "got a sandbox",
    "idempotent": "asked again",
    "waiting": "waiting",
    "no_sandboxes": "refused",
    "error": "failed",
}
_UNITS = ((86400, "d"), (3600, "h"), (60, "min"))
_OLD_SEC = 3600
"""A deletion that waits for longer needs a look."""


@click.command()
@json_option
def overview(*, as_json: bool) -> None:
    """Show on one screen how the broker is, and what needs a look.

    The first lines say what needs a look, and which command says more. All else is as it is now. The requests are those
    of the last hour.

    Example: broker overview

    Every five seconds: watch -n 5 broker overview
    """
    found = read_overview(operators_api())
    if as_json:
        print_json([found])
        return
    concerns = list(_find_concerns(found))
    for concern in concerns:
        click.echo(f"LOOK: {concern}")
    if not concerns:
        click.echo("OK: nothing needs a look")
    click.echo()
    for title, text in _lines(found):
        click.echo(f"{title:<{_WIDTH}} {text}".rstrip())


def _find_concerns(found: Mapping[str, Any]) -> Iterator[str]:
    """Yield what needs a look, and which command says more."""
    yield from _of_pauses(found)
    yield from _of_pool(found)
    yield from _of_redis(found)
    for each in found["reservations"]:
        if each["short_by"]:
            more = f"broker reservation show {each['reservation_id']}"
            yield f"the reservation {each['name']} lacks {each['short_by']}: {more}"
    hooks = found["webhooks"]
    for state, do in (("failing", "fail"), ("disabled", "are disabled")):
        if hooks[state]:
            yield f"{hooks[state]} of {hooks['endpoints']} webhooks {do}: broker webhook list"


def _of_pauses(found: Mapping[str, Any]) -> Iterator[str]:
    if found["pauses"] is None:
        yield f"the pauses cannot be read: {found['pauses_error']}"
        return
    for each in found["pauses"]["paused"]:
        by = f" by {each['by']}" if each["by"] else ""
        since = "" if each["since"] is None else f" for {_length(each['since'])}"
        yield f"{each['operation']} is paused{by}{since}: broker resume {each['operation']}"


def _of_pool(found: Mapping[str, Any]) -> Iterator[str]:
    counts, oldest = found["counts"], found["oldest_pending_deletion_at"]
    if not counts["available"]:
        yield "no sandbox is available: broker sandboxes"
    if found["line"]["waiting"]:
        yield f"{found['line']['waiting']} tracks wait in line: broker line"
    if found["allocates"]["error"]:
        yield f"{found['allocates']['error']} requests to allocate failed in the last hour: read the log of the API"
    if counts["deletion_failed"]:
        yield f"{counts['deletion_failed']} sandboxes need a person: broker sandboxes --status deletion_failed"
    if oldest is not None and time.time() - oldest > _OLD_SEC:
        yield f"a wipe has waited for {_length(oldest)}: broker sandboxes --status pending_deletion"


def _of_redis(found: Mapping[str, Any]) -> Iterator[str]:
    error, breaker = found["jobs_error"] or found["breaker_error"], found["breaker"]
    if error:
        yield f"{error}: broker health"
    if breaker and breaker["state"] != "closed":
        yield f"the provider's circuit breaker is {breaker['state']}: {breaker['reason'] or 'its reason is not known'}"
    for run in found["jobs"] or ():
        if run["state"] == "failed":
            yield f"the job {run['job']} failed: broker jobs --job {run['job'].replace('_', '-')}"


def _lines(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the titles and texts of all lines."""
    counts = found["counts"]
    serving = sum(counts[name] for name in _IN_SERVICE)
    share = f" ({100 * counts['available'] // serving} %)" if serving else ""
    yield "Pool", f"{counts['available']:,} available of {serving:,} in service{share}"
    yield "", ", ".join(f"{counts[name]:,} {_words(name)}" for name in _IN_SERVICE[1:])
    yield "", f"out of service: {counts['stale']:,} stale, {counts['deletion_failed']:,} with a failed deletion"
    yield "", f"counted {_length(found['counted_at'])} ago"
    oldest = found["oldest_pending_deletion_at"]
    yield "Oldest wipe", "-" if oldest is None else f"waits for {_length(oldest)}"
    line = found["line"]
    first = line["longest_waiting_since"]
    yield "Line", f"{line['waiting']:,} wait" + (f", the longest for {_length(first)}" if first is not None else "")
    yield "Last hour", ", ".join(f"{found['allocates'][name]:,} {words}" for name, words in _OUTCOMES.items())
    yield from _titled("Reservations", [_show_reservation(each) for each in found["reservations"]])
    hooks = found["webhooks"]
    yield "Webhooks", "-" if not hooks["endpoints"] else ", ".join(f"{hooks[name]} {name}" for name in hooks)
    paused = "not known" if found["pauses"] is None else ", ".join(e["operation"] for e in found["pauses"]["paused"])
    yield "Paused", paused or "-"
    breaker = found["breaker"]
    yield "Breaker", breaker["state"] if breaker else "not known"
    synced = found["last_sync_at"]
    yield "Last sync", "-" if synced is None else f"{_length(synced)} ago"
    jobs = found["jobs"]
    yield from _titled("Jobs", ["not known"] if jobs is None else [_show_run(run) for run in jobs])


def _titled(title: str, texts: list[str]) -> Iterator[tuple[str, str]]:
    yield title, texts[0] if texts else "-"
    for text in texts[1:]:
        yield "", text


def _show_reservation(each: Mapping[str, Any]) -> str:
    until = f"until {time.strftime('%H:%M', time.gmtime(each['ends_at']))}Z"
    used = f"{each['drawn']} of {each['count']} in use or used, {each['set_aside']} set aside"
    lacks = f", lacks {each['short_by']}" if each["short_by"] else ""
    return f"{each['name']}: {each['state']} {until}, {used}{lacks}"


def _show_run(run: Mapping[str, Any]) -> str:
    at = run.get("ended_at") or run.get("started_at") or run.get("queued_at")
    when = "" if at is None else f"{_length(at)} ago"
    counts = " ".join(f"{name}={count}" for name, count in (run.get("result") or {}).items() if count)
    return f"{run['job']:<12} {run['state']:<10} {when:<12} {run.get('error') or counts}".rstrip()


def _words(status: str) -> str:
    return {"reserved": "set aside", "allocated": "in use", "pending_deletion": "waiting for the wipe"}[status]


def _length(since: float) -> str:
    """Return for how long something has been, in its largest unit."""
    seconds = max(0, round(time.time() - since))
    for unit, name in _UNITS:
        if seconds >= 2 * unit:
            return f"{seconds // unit} {name}"
    return f"{seconds} s"
