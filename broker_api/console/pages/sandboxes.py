"""The list of sandboxes: filters, sorting, acts on many at once, and the list as CSV."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Any, NamedTuple

from flask import Blueprint, Response, abort, flash, render_template, request, url_for

from broker_api.console import sandbox_acts
from broker_api.console.calls import SignedOut, act, back, call, need, read, sentence
from broker_api.console.errors import page as error_page
from broker_api.console.forms import is_typed, trimmed
from broker_api.console.many_calls import MOST, Call, Outcome, call_each
from broker_api.console.pages import sandbox
from broker_api.console.people import NOT_ACCEPTED, end_session
from broker_api.console.runtime import runtime
from broker_api.console.texts import STATUS_NAMES
from broker_api.console.unsent import kept_form
from broker_common.adapters.broker_http import Refused, Unreachable
from broker_common.core.purge import BULK_DELETABLE
from broker_common.csv_export import stream_csv

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from werkzeug.wrappers import Response as AnyResponse

blueprint = Blueprint("sandboxes", __name__)
blueprint.add_url_rule("/sandboxes/<sandbox_id>", "show", sandbox.show, methods=["GET"])
blueprint.add_url_rule("/sandboxes/<sandbox_id>", "change", sandbox.change, methods=["POST"])

_PAGE = 50
_CSV_PAGE = 1000
"""As many as the API gives at once."""
_CSV_MOST_BYTES = 16 * 1024 * 1024
"""About 60,000 sandboxes. The event loop holds at most twice as much, of all answers that browsers have not taken."""
_CSV_SEC = 30
"""No page of the API is asked for later than this."""
_UNREADABLE = "unreadable"
_FILTERS = ("status", "name", "track_name", "track_id")
CSV_FIELDS = (
    *("sandbox_id", "name", "status", "dirty", "allocated_to_track", "track_name", "customer", "lease_id"),
    *("allocated_at", "expires_at", "last_track_id", "last_lease_id", "reservation_id", "deletion_requested_at"),
    *("deletion_reason", "deletion_retry_count", "deletion_last_error", "next_attempt_at", "ready_at"),
    *("quarantine_reason", "stale_since", "last_synced", "external_id", "sfdc_account_id", "idempotency_key"),
    *("created_at", "updated_at", "version"),
)


class Column(NamedTuple):
    """A column of the list. `sort` is how the API names its order, if it has one. `first`: `-` for descending."""

    title: str
    sort: str = ""
    first: str = ""


COLUMNS = (
    Column("Sandbox", "name"),
    Column("Status", "status"),
    Column("What is wrong"),
    Column("Track", "allocated_to_track"),
    Column("Lab", "track_name"),
    Column("Lease ends", "expires_at"),
    Column("Wipe asked for", "deletion_requested_at"),
    Column("Failed tries", "deletion_retry_count", "-"),
    Column("Changed", "updated_at", "-"),
)
_ACTS = {
    "release": "Release",
    "extend": "Extend",
    "retry": "Wipe again",
    "quarantine": "Set aside (quarantine)",
}
"""What can be done to many at once."""
_TYPED = frozenset({"release", "quarantine"})
"""What cannot be taken back: how many are chosen must be typed."""

_WIPE_ALL = "wipe all"
"""What must be typed to do so."""


@blueprint.get("/sandboxes")
def index() -> str | tuple[str, int]:
    """Show the sandboxes that fit the filters."""
    return _page()


@blueprint.post("/sandboxes")
def change_chosen() -> str | tuple[str, int]:
    """Do one thing to each chosen sandbox, and say for each how it went. Those that failed stay chosen."""
    need("operator")
    chosen = list(dict.fromkeys(request.form.getlist("chosen")))
    calls = _calls(chosen)
    if calls is None:
        return _page(chosen=frozenset(chosen), status=HTTPStatus.BAD_REQUEST)
    outcomes = call_each(calls)
    left = frozenset(each.name for each in outcomes if not each.is_done)
    try:
        return _page(outcomes=outcomes, chosen=left)
    except (Refused, Unreachable):
        why = "The list of sandboxes cannot be read now."
    except SignedOut as error:
        end_session()
        if all(each.code == NOT_ACCEPTED for each in outcomes):
            return kept_form(HTTPStatus.UNAUTHORIZED, why=str(error))
        why = str(error)
    # What was done must be said all the same.
    return render_template("pages/outcomes.html", outcomes=outcomes, leases=_chosen_leases(left), why=why)


@blueprint.post("/sandboxes/all/retry")
def retry_all() -> AnyResponse:
    """Send every sandbox that needs a person to be wiped again."""
    need("operator")
    if is_typed(_WIPE_ALL):
        act(lambda answer: f"Sandboxes sent to be wiped again: {answer.body['retried']}", "POST", "/bulk-retry")
    return back("sandboxes.index", status="deletion_failed")


@blueprint.post("/sandboxes/all/delete/<which>")
def delete_all(which: str) -> AnyResponse:
    """Remove all records of the status `which`."""
    need("admin")
    if which not in BULK_DELETABLE:
        abort(HTTPStatus.NOT_FOUND)
    if is_typed(which):
        params = {"status": which}
        act(lambda answer: f"Records removed: {answer.body['deleted']}", "POST", "/bulk-delete", params=params)
    return back("sandboxes.index", status=which)


@blueprint.get("/sandboxes.csv")
def as_csv() -> Response | tuple[str, int]:
    """Return all sandboxes that fit the filters as CSV, sorted by their ids.

    In this order, a sandbox that changes meanwhile is still listed once. The file is whole before the answer begins,
    and the answer says its length. So nobody takes a part for the whole: if the API fails midway, the answer is a page.
    """
    filters = {name: value for name, value in _filters().items() if value is not None}
    clock, made = runtime().clock, bytearray()
    ends = clock.monotonic() + _CSV_SEC
    for lines in stream_csv(_csv_pages(filters), fields=(*CSV_FIELDS, "unreadable_because")):
        made += lines.encode()
        if len(made) > _CSV_MOST_BYTES or clock.monotonic() > ends:
            text = "Choose filters, or use the command broker sandboxes --csv."
            return error_page(503, "Too many sandboxes for one file", text)
    return Response(
        bytes(made),
        mimetype="text/csv",
        headers={"Content-Disposition": 'attachment; filename="sandboxes.csv"'},
    )


def _csv_pages(filters: Mapping[str, str]) -> Iterator[list[dict[str, Any]]]:
    page = _csv_page(filters, None)
    only_unreadable = filters.get("status") == _UNREADABLE
    yield [
        {"sandbox_id": each["sandbox_id"], "status": _UNREADABLE, "unreadable_because": each["reason"]}
        for each in page["unreadable"]
    ]
    while not only_unreadable:
        yield page["sandboxes"]
        if page["cursor"] is None:
            return
        page = _csv_page(filters, page["cursor"])


def _csv_page(filters: Mapping[str, str], cursor: str | None) -> dict[str, Any]:
    # Not by `read`, which would keep the pages in memory.
    asked = {name: value for name, value in filters.items() if value != _UNREADABLE or name != "status"}
    more = {} if cursor is None else {"cursor": cursor}
    return call("GET", "/sandboxes", params={**asked, **more, "sort": "sandbox_id", "limit": _CSV_PAGE}).body


def _calls(chosen: Sequence[str]) -> list[Call] | None:
    """Return the calls that the form asks for; None if it lacks something, which the page then says."""
    wanted, fault = request.form.get("act"), None
    reason, hours = trimmed(request.form.get("reason")), request.form.get("hours", "").strip()
    if not chosen:
        fault = "Choose sandboxes first"
    elif len(chosen) > MOST:
        fault = f"At most {MOST} sandboxes can be changed at once, so that the page ends in time"
    elif wanted not in _ACTS:
        fault = "Choose what to do"
    elif wanted == "quarantine" and reason is None:
        fault = "Say why they are set aside"
    elif wanted == "extend" and not (sandbox.is_number(hours) and 1 <= int(hours) <= sandbox.MAX_HOURS):
        fault = f"Say by how many hours: 1 to {sandbox.MAX_HOURS}"
    if fault is not None:
        flash(f"Nothing was done. {sentence(fault)}", "warning")
        return None
    if wanted in _TYPED and not is_typed(str(len(chosen))):
        return None
    return [_call(str(wanted), each, reason=reason or "", hours=hours) for each in chosen]


def _call(wanted: str, sandbox_id: str, *, reason: str, hours: str) -> Call:
    # Without a lease, the API refuses. So a sandbox that nobody held when the page was made is never released.
    lease_id = request.form.get(f"lease-{sandbox_id}", "none")
    if wanted == "release":
        return sandbox_acts.release(sandbox_id, lease_id=lease_id)
    if wanted == "extend":
        ends = request.form.get(f"ends-{sandbox_id}", "")
        expires_at = (int(ends) if sandbox.is_number(ends) else 0) + int(hours) * 3600
        return sandbox_acts.extend(sandbox_id, lease_id=lease_id, expires_at=expires_at)
    if wanted == "quarantine":
        return sandbox_acts.quarantine(sandbox_id, reason=reason)
    return sandbox_acts.retry(sandbox_id)


def _filters() -> dict[str, str | None]:
    return {name: trimmed(request.args.get(name)) for name in _FILTERS}


def _page(
    *, outcomes: Sequence[Outcome] = (), chosen: frozenset[str] = frozenset(), status: int = HTTPStatus.OK
) -> str | tuple[str, int]:
    filters, sort, cursor = _filters(), trimmed(request.args.get("sort")), trimmed(request.args.get("cursor"))
    fault = None
    found: dict[str, Any] = {"sandboxes": [], "unreadable": [], "cursor": None}
    try:
        if filters["status"] == _UNREADABLE:
            # The API has no such status: it lists them with every search.
            found |= {"unreadable": read("/sandboxes", sort="sandbox_id", limit=1)["unreadable"]}
        else:
            found = read("/sandboxes", **filters, sort=sort, cursor=cursor, limit=_PAGE)
    except Refused as error:
        if error.status != HTTPStatus.BAD_REQUEST:
            raise
        fault, status = f"{sentence(error.message)} (request {error.request_id})", error.status
    page = render_template(
        "pages/sandboxes.html",
        filters=filters,
        sort=sort,
        cursor=cursor,
        found=found,
        fault=fault,
        outcomes=outcomes,
        chosen=chosen,
        leases=_chosen_leases(chosen),
        columns=[(each, *_sorting(each, sort)) for each in COLUMNS],
        address=_address,
        acts=_ACTS,
        possible=sandbox_acts.possible,
        statuses=STATUS_NAMES,
        most=MOST,
        max_hours=sandbox.MAX_HOURS,
    )
    return page if status == HTTPStatus.OK else (page, status)


def _chosen_leases(chosen: frozenset[str]) -> dict[str, str]:
    """Return the leases that the form named. They stay as they were chosen, so that no later lease is ended unseen."""
    return {each: request.form[f"lease-{each}"] for each in chosen if f"lease-{each}" in request.form}


def _sorting(column: Column, sort: str | None) -> tuple[str | None, str | None]:
    """Return the order that a click on a column's head asks for, and how the list is sorted by it now."""
    if not column.sort:
        return None, None
    if sort == column.sort:
        return f"-{column.sort}", "ascending"
    if sort == f"-{column.sort}":
        return column.sort, "descending"
    return column.first + column.sort, None


def _address(endpoint: str = "sandboxes.index", **changes: str | None) -> str:
    """Return an address with the filters and the order of this page, and `changes`."""
    given: dict[str, Any] = {**_filters(), "sort": trimmed(request.args.get("sort")), **changes}
    return url_for(endpoint, **{name: value for name, value in given.items() if value is not None})
