"""The pages of reservations: the calendar, one reservation, and the forms that book, change and cancel."""

from __future__ import annotations

from datetime import date, datetime, timedelta
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from flask import Blueprint, flash, redirect, render_template, request, url_for

from broker_api.console.booking_form import DEFAULT_LEAD, OVER, TIMES, BookingForm, label_of, new_form, text_of
from broker_api.console.calls import act, ask, call, done, need, read, sending
from broker_api.console.forms import BEFORE, form_key, is_typed, new_key
from broker_api.console.pictures import capacity
from broker_api.console.runtime import runtime
from broker_api.console.zones import reader_zone
from broker_api.tracing import request_id
from broker_common.adapters.broker_http import Refused, Unreachable, quoted

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from zoneinfo import ZoneInfo

    from werkzeug.wrappers import Response

    from broker_api.console.pictures.capacity import Calendar
    from broker_common.adapters.broker_http import Answer

    Page = str | Response | tuple[str, int]

blueprint = Blueprint("reservations", __name__)
STATES = ("scheduled", "filling", "open", "ended", "cancelled")
_DAYS = 7
_LISTED = 50
_PAGE, _MOST_PAGES = 100, 15
"""The API keeps at most 1,000 reservations that have not ended, and those that ended for 90 days."""
_MOST_SANDBOXES = 1000
_MOST_FACTS = 1000
_FACTS = ("reservation.open", "reservation.short", "reservation.ended")


@blueprint.get("/reservations")
def index() -> str:
    """Show the calendar of a week, and the reservations by state."""
    zone, now = reader_zone(), runtime().clock.now()
    today = datetime.fromtimestamp(now, zone).date()
    first = _day(request.args.get("week")) or today
    prefix = request.args.get("prefix", "").strip() or None
    state = request.args.get("state")
    state = state if state in STATES else None
    return render_template(
        "pages/reservations.html",
        calendar=_calendar(first, prefix, zone, now),
        shape=capacity,
        zone=zone.key,
        first=first,
        is_today=first == today,
        last=first + timedelta(days=_DAYS - 1),
        earlier=first - timedelta(days=_DAYS),
        later=first + timedelta(days=_DAYS),
        prefix=prefix,
        state=state,
        states=STATES,
        cursor=request.args.get("cursor"),
        listed=read("/reservations", state=state, limit=_LISTED, cursor=request.args.get("cursor")),
    )


@blueprint.get("/reservations/<reservation_id>")
def show(reservation_id: str) -> str:
    """Show one reservation: what its students must do, its sandboxes, and what happened to it."""
    reservation = read(f"/reservations/{quoted(reservation_id)}")
    sandboxes, looked_at_all = _sandboxes_of(reservation)
    return render_template(
        "pages/reservation.html",
        reservation=reservation,
        sandboxes=sandboxes,
        looked_at_all=looked_at_all,
        most=_MOST_SANDBOXES,
        facts=_facts_of(reservation),
        is_over=reservation["state"] in OVER,
    )


@blueprint.get("/reservations/new")
def new() -> str:
    """Show the form that books a class."""
    need("operator")
    return _booking_page(new_form(), key=new_key())


@blueprint.post("/reservations/new")
def book() -> Page:
    """Book a class, once for each form that was shown; or say whether it fits, if that button was pressed."""
    need("operator")
    key, form = form_key(), BookingForm()
    if "check" in request.form:
        found = _check(form)
        form.name.errors = []
        return _booking_page(form, key=key, found=found)
    if not _is_whole(form):
        return _booking_page(form, key=key), 400
    try:
        with sending(key) as sent_as:
            answer = call("POST", "/reservations", json=form.body(), headers={"Idempotency-Key": key})
    except (Refused, Unreachable) as error:
        if isinstance(error, Refused) and error.code == "IDEMPOTENCY_MISMATCH":
            # What was booked stays. The next try is another booking.
            return _booking_page(form, key=new_key(), problems=[_booked_before(error)]), error.status
        return _booking_page(form, key=key, problems=_explain(form, error)), _status(error)
    done(f"{answer.body['name']} is booked", answer, sent_as=sent_as if answer.status == HTTPStatus.OK else None)
    return redirect(url_for("reservations.show", reservation_id=answer.body["reservation_id"]), code=303)


@blueprint.post("/reservations/check")
def check() -> str:
    """Say whether what is typed so far fits. The form shows it without being sent."""
    need("operator")
    return render_template("pages/booking_check.html", found=_check(BookingForm()))


@blueprint.get("/reservations/<reservation_id>/change")
def change(reservation_id: str) -> str:
    """Show the form that changes a reservation."""
    need("operator")
    reservation = read(f"/reservations/{quoted(reservation_id)}")
    form, before = new_form(), BookingForm(formdata=None, prefix=BEFORE)
    form.show(reservation)
    before.show(reservation)
    return _changing_page(reservation_id, reservation["version"], form, before)


@blueprint.post("/reservations/<reservation_id>/change")
def save(reservation_id: str) -> Page:
    """Change a reservation. Only what was changed in the form is sent, with the version that the form showed."""
    need("operator")
    form, before = BookingForm(), BookingForm(prefix=BEFORE)
    version = request.form.get("version", 0, type=int)
    if "check" in request.form:
        found = _check(form)
        form.name.errors = []
        return _changing_page(reservation_id, version, form, before, found=found)
    if not _is_whole(form, known=before.ends.data):
        return _changing_page(reservation_id, version, form, before), 400
    was = before.body()
    changes = {name: value for name, value in form.body().items() if value != was[name]}
    if not changes:
        flash("Nothing was changed: the form has the values that it had before.", "warning")
        return redirect(url_for("reservations.show", reservation_id=reservation_id), code=303)
    path, sent_as = f"/reservations/{quoted(reservation_id)}", None
    try:
        with sending(f"{path} {version}") as sent_as:
            answer = call("PATCH", path, json=changes | {"version": version})
    except (Refused, Unreachable) as error:
        if isinstance(error, Refused) and error.code == "VERSION_MISMATCH":
            return _changed_meanwhile(reservation_id, form, before, changes, was, error, sent_as)
        problems = _explain(form, error)
        return _changing_page(reservation_id, version, form, before, problems=problems), _status(error)
    done(f"{answer.body['name']} was changed", answer)
    return redirect(url_for("reservations.show", reservation_id=reservation_id), code=303)


@blueprint.post("/reservations/<reservation_id>/cancel")
def cancel(reservation_id: str) -> Response:
    """Cancel a reservation, if its name or id was typed."""
    need("operator")
    name = request.form.get("name") or reservation_id
    typed = request.form.get("typed", "").strip()
    if typed == reservation_id or is_typed(name):
        act(_cancelled, "DELETE", f"/reservations/{quoted(reservation_id)}")
    return redirect(url_for("reservations.show", reservation_id=reservation_id), code=303)


def _day(text: str | None) -> date | None:
    """Return a day of this century that a link names; None if it names none."""
    try:
        day = date.fromisoformat(text or "")
    except ValueError:
        return None
    return day if 2000 < day.year < 2100 else None  # noqa: PLR2004 - the years that the API knows


def _calendar(first: date, prefix: str | None, zone: ZoneInfo, now: int) -> Calendar:
    begins = capacity.days_of(first, _DAYS, zone)
    since, until = begins[0], begins[-1]
    points: Sequence[Mapping[str, int]] = []
    if until > now:
        # From the begin of the day on, so that the question stays the same and its last answer is found again.
        points = read("/capacity", **{"from": since, "to": until, "prefix": prefix})["points"]
    return capacity.draw_calendar(
        points, _reservations_of(since, until, prefix, now), first=first, count=_DAYS, zone=zone, now=now
    )


def _reservations_of(since: int, until: int, prefix: str | None, now: int) -> list[dict[str, Any]]:
    """Return the reservations of a time, in every state but cancelled.

    The API lists first those that have not ended, by their start, then the others, the one that ended last first.
    """
    found: list[dict[str, Any]] = []
    cursor: str | None = None
    for _ in range(_MOST_PAGES):
        page = read("/reservations", limit=_PAGE, cursor=cursor)
        for each in page["reservations"]:
            overlaps = each["starts_at"] < until and since < each["ends_at"] and each["state"] != "cancelled"
            if overlaps and _may_share(prefix or "", each["prefix"]):
                found.append(each)
        cursor = page["cursor"]
        if cursor is None:
            break
        last = page["reservations"][-1]
        if (last["ended_at"] is not None and last["ended_at"] < since) or (
            since >= now and (last["state"] in OVER or last["starts_at"] >= until)
        ):
            break
    return found


def _may_share(one: str, other: str) -> bool:
    """Tell whether sandboxes can have names that start with both."""
    return one.startswith(other) or other.startswith(one)


def _sandboxes_of(reservation: Mapping[str, Any]) -> tuple[list[dict[str, Any]], bool]:
    """Return the sandboxes of a reservation, and whether all were looked at: the API does not list them by it."""
    found: list[dict[str, Any]] = []
    looked_at_all = True
    for status, count in (("reserved", reservation["set_aside"]), ("allocated", reservation["drawn"])):
        if not count:
            continue
        page = read("/sandboxes", status=status, sort="name", name=reservation["prefix"] or None, limit=_MOST_SANDBOXES)
        looked_at_all = looked_at_all and page["cursor"] is None
        found += [each for each in page["sandboxes"] if each["reservation_id"] == reservation["reservation_id"]]
    return found, looked_at_all


def _facts_of(reservation: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """Return the facts that say how a reservation began and ended, oldest first; None if they cannot be read now."""
    now, found = runtime().clock.now(), []
    ended_at = reservation["ended_at"] or reservation["ends_at"]
    since_of = dict(zip(_FACTS, (reservation["starts_at"], reservation["starts_at"], ended_at), strict=True))
    try:
        for kind, since in since_of.items():
            if since <= now:
                feed = read("/events", kind=kind, since=since, limit=_MOST_FACTS)
                found += feed["events"]
    except (Refused, Unreachable):
        return None
    of_this = [each for each in found if each["details"].get("reservation_id") == reservation["reservation_id"]]
    return sorted(of_this, key=lambda each: int(each["at"]))


def _is_whole(form: BookingForm, known: int | None = None) -> bool:
    is_valid = form.validate()
    return form.check_end(known) and is_valid


def _check(form: BookingForm) -> dict[str, Any]:
    """Return what the booking check says of what is typed so far, as `booking_check.html` shows it."""
    form.name.validators = []
    reservation_id = request.form.get("reservation_id") or None
    if not (_is_filled(form.count) and _is_filled(form.starts) and (_is_filled(form.length) or _is_filled(form.ends))):
        return {"missing": True}
    if _is_whole(form, known=BookingForm(prefix=BEFORE).ends.data if reservation_id else None):
        try:
            body = form.body()
            named = {"name": body["name"] or "-", "reservation_id": reservation_id}
            fit = ask("/reservations/check", json=body | named)
        except Refused as error:
            problems = _explain(form, error)
        except Unreachable:
            problems = [
                f"The broker's API does not answer, so it is not known whether it fits. (request {request_id()})"
            ]
        else:
            week = datetime.fromtimestamp(body["starts_at"], reader_zone()).date()
            return fit | {name: body[name] for name in ("count", "starts_at", "ends_at", "prefix")} | {"week": week}
    else:
        problems = []
    return {"problems": problems + [text for texts in form.errors.values() for text in texts]}


def _is_filled(field: Any) -> bool:  # noqa: ANN401 - a field of WTForms
    return bool(field.raw_data and str(field.raw_data[0]).strip())


def _explain(form: BookingForm, error: Refused | Unreachable) -> list[str]:
    """Put a refusal beside the fields that it is about, and return what is about none of them."""
    if isinstance(error, Unreachable):
        again = "If you send the form again, it is still done only once."
        return [f"The broker's API does not answer. {again} (request {request_id()})"]
    if error.code != "CAPACITY_NOT_AVAILABLE":
        return [f"{each} (request {error.request_id})" for each in form.take(error)]
    could_have = error.details["could_have"]
    problem = f"So many do not fit: {could_have} sandboxes could be had for that time. Nothing was saved."
    form.count.errors = [f"{problem} Ask for fewer, or for another time. (request {error.request_id})"]
    return []


def _status(error: Refused | Unreachable) -> int:
    return error.status if isinstance(error, Refused) else HTTPStatus.SERVICE_UNAVAILABLE


def _booked_before(error: Refused) -> str:
    return (
        "This form has booked a class already, as it was filled in before. Look at the list of reservations. If you"
        f" want to book this class, too, send the form again. (request {error.request_id})"
    )


def _changed_meanwhile(  # noqa: PLR0917 - all that the form is made of
    reservation_id: str,
    form: BookingForm,
    before: BookingForm,
    changes: Mapping[str, Any],
    was: Mapping[str, Any],
    error: Refused,
    sent_as: str | None,
) -> Page:
    """Show the form again: with what was typed, and in the other fields with what somebody else has changed.

    If the reservation has all that was typed, an earlier try has saved it.
    """
    try:
        current = call("GET", f"/reservations/{quoted(reservation_id)}").body
    except (Refused, Unreachable):
        problem = (
            f"The reservation has changed, and cannot be read now. Nothing was saved. (request {error.request_id})"
        )
        version = request.form.get("version", 0, type=int)
        return _changing_page(reservation_id, version, form, before, problems=[problem]), error.status
    if all(current[name] == value for name, value in changes.items()):
        said = "The reservation has what you typed: it is saved already."
        flash(f"{said} (request {sent_as or error.request_id})", "success")
        return redirect(url_for("reservations.show", reservation_id=reservation_id), code=303)
    different = [name for name in was if current[name] != was[name]]
    meanwhile = [
        {
            "field": label_of(name),
            "is_time": name in TIMES,
            "was": text_of(name, was[name]),
            "is": text_of(name, current[name]),
            "typed": text_of(name, changes[name]) if name in changes else None,
        }
        for name in different
    ]
    form.show(current, [name for name in was if name not in changes])
    before = BookingForm(formdata=None, prefix=BEFORE)
    before.show(current)
    problem = (
        "Somebody has changed the reservation since you opened this form, so nothing was saved. Look at it, then save"
        f" again. (request {error.request_id})"
    )
    page = _changing_page(reservation_id, current["version"], form, before, problems=[problem], meanwhile=meanwhile)
    return page, error.status


def _booking_page(
    form: BookingForm, *, key: str, found: Mapping[str, Any] | None = None, problems: Sequence[str] = ()
) -> str:
    return render_template(
        "pages/booking.html",
        form=form,
        key=key,
        found=found,
        problems=problems,
        reservation_id=None,
        default_lead=DEFAULT_LEAD,
    )


def _changing_page(  # noqa: PLR0917 - all that the form is made of
    reservation_id: str,
    version: int,
    form: BookingForm,
    before: BookingForm,
    problems: Sequence[str] = (),
    meanwhile: Sequence[Mapping[str, Any]] = (),
    found: Mapping[str, Any] | None = None,
) -> str:
    return render_template(
        "pages/booking.html",
        found=found,
        form=form,
        before=before,
        version=version,
        problems=problems,
        meanwhile=meanwhile,
        reservation_id=reservation_id,
        default_lead=DEFAULT_LEAD,
    )


def _cancelled(answer: Answer) -> str:
    drawn = answer.body["drawn"]
    kept = f"{drawn} of its sandboxes were drawn, and stay with their tracks" if drawn else "None of it was drawn"
    return f"{answer.body['name']} is cancelled. {kept}"
