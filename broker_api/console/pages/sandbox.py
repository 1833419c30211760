"""The page of one sandbox: all that is known, its history, and what can be done to it."""

from __future__ import annotations

from datetime import UTC
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from flask import abort, flash, render_template, request
from wtforms import DateTimeLocalField, IntegerField
from wtforms.validators import NumberRange, Optional

from broker_api.console import sandbox_acts
from broker_api.console.calls import act, back, need, read, sentence
from broker_api.console.forms import Form, is_typed, trimmed
from broker_api.console.pictures.life import draw_life
from broker_api.console.runtime import runtime
from broker_api.console.zones import reader_zone
from broker_common.adapters.broker_http import Answer, Refused, quoted
from broker_common.core.policy import OPERATOR_MAX_SEC

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from werkzeug.wrappers import Response

    from broker_api.console.many_calls import Call

_PAGE = 50
MAX_HOURS = OPERATOR_MAX_SEC // 3600
_MOST_DIGITS = 15
"""Of a number in a form: more than any time in seconds has."""
_GONE: Mapping[int, str] = {
    HTTPStatus.NOT_FOUND: "This sandbox is no longer in the pool: its record was removed. Its history is still kept.",
}
REASONS = {
    "marked_by_track": "its track gave it back",
    "released_by_operator": "an operator released it",
    "expired": "the time of its lease was over",
    "seen_again_while_dirty": "a sync saw it again, and nobody had wiped it",
    "retried_by_operator": "an operator sent it to be wiped again",
    "quarantined_by_operator": "an operator set it aside (quarantine)",
}


class ExtendForm(Form):
    """The new end of a lease: so many hours more, or a time."""

    hours = IntegerField("Hours more", validators=[Optional(), NumberRange(1, MAX_HOURS, f"1 to {MAX_HOURS} hours.")])
    until = DateTimeLocalField("Or until", format=["%Y-%m-%dT%H:%M", "%Y-%m-%dT%H:%M:%S"], validators=[Optional()])

    def expires_at(self, *, ends: int) -> int | None:
        """Return the new end of a lease that ends at `ends`. None, with an error in a field, if the form says none."""
        if not self.validate():
            return None
        if self.until.data is not None:
            return int(self.until.data.replace(tzinfo=UTC).timestamp())
        if self.hours.data is None:
            self.hours.errors = ["Give hours or a time."]
            return None
        return ends + int(self.hours.data) * 3600


def is_number(text: str) -> bool:
    """Tell whether a field of a form is a number that is not absurdly long."""
    return text.isdecimal() and len(text) <= _MOST_DIGITS


def show(sandbox_id: str) -> str:
    """Show one sandbox."""
    return _page(sandbox_id, ExtendForm(formdata=None))


def change(sandbox_id: str) -> str | Response | tuple[str, int]:
    """Do to the sandbox what the form asks for. If it is not done, show the form again with what was typed."""
    need("operator")
    form = ExtendForm()
    work = _WORK.get(request.args.get("act", ""))
    if work is None:
        abort(HTTPStatus.NOT_FOUND)
    if work(sandbox_id, form) is not None:
        return back("sandboxes.show", sandbox_id=sandbox_id)
    return _page(sandbox_id, form, is_refused=True), HTTPStatus.BAD_REQUEST


def _release(sandbox_id: str, _form: ExtendForm) -> Answer | None:
    if not is_typed(sandbox_id):
        return None
    lease_id = request.form.get("lease_id", "")
    return _do("its lease was ended, and it waits to be wiped", sandbox_acts.release(sandbox_id, lease_id=lease_id))


def _extend(sandbox_id: str, form: ExtendForm) -> Answer | None:
    ends = request.form.get("ends", "")
    expires_at = form.expires_at(ends=int(ends) if is_number(ends) else 0)
    if expires_at is None:
        flash("Nothing was done: the form lacks the new end.", "warning")
        return None
    lease_id = request.form.get("lease_id", "")
    wanted = sandbox_acts.extend(sandbox_id, lease_id=lease_id, expires_at=expires_at)
    return _do("its lease lasts at least until the time that you asked for", wanted)


def _quarantine(sandbox_id: str, _form: ExtendForm) -> Answer | None:
    if not is_typed(sandbox_id):
        return None
    reason = trimmed(request.form.get("reason")) or ""
    return _do("it is set aside, or will be after its wipe", sandbox_acts.quarantine(sandbox_id, reason=reason))


def _lift(sandbox_id: str, _form: ExtendForm) -> Answer | None:
    return _do("the quarantine was lifted", sandbox_acts.lift(sandbox_id))


def _retry(sandbox_id: str, _form: ExtendForm) -> Answer | None:
    return _do("it was sent to be wiped again", sandbox_acts.retry(sandbox_id))


_WORK: Mapping[str, Callable[[str, ExtendForm], Answer | None]] = {
    "release": _release,
    "extend": _extend,
    "quarantine": _quarantine,
    "lift": _lift,
    "retry": _retry,
}


def _do(said: str, wanted: Call) -> Answer | None:
    return act(f"Sandbox {wanted.name}: {said}", wanted.method, wanted.path, json=wanted.json)


def _page(sandbox_id: str, form: ExtendForm, *, is_refused: bool = False) -> str:
    path = f"/sandboxes/{quoted(sandbox_id)}"
    record: dict[str, Any] | None = None
    why_not = None
    try:
        record = read(path)
    except Refused as error:
        # If the history cannot be read either, the page of the error is shown.
        why_not = _GONE.get(error.status, sentence(error.message))
    cursor = trimmed(request.args.get("cursor"))
    history = read(f"{path}/history", limit=_PAGE, cursor=cursor)
    facts, now = history["facts"], round(runtime().clock.now())
    # An older page of the history ends with its newest fact: what came next is on the page before.
    until = now if cursor is None else (facts[0]["at"] if facts else now)
    lease_of_form = request.form.get("lease_id")
    return render_template(
        "pages/sandbox.html",
        sandbox_id=sandbox_id,
        record=record,
        why_not=why_not,
        reasons=REASONS,
        facts=facts,
        cursor=cursor,
        next_cursor=history["cursor"],
        life=draw_life(facts, until=until, zone=reader_zone()),
        acts=sandbox_acts.possible(record) if record else [],
        opened=request.args.get("act"),
        is_changed=is_refused and record is not None and lease_of_form not in {None, record["lease_id"]},
        lease_of_form=lease_of_form,
        form=form,
        zone=reader_zone().key,
        latest_end=_latest_end(record),
    )


def _latest_end(record: Mapping[str, Any] | None) -> int | None:
    """Return until when an operator can extend the lease. The API may allow more, if tracks may hold so long."""
    if record is None or record["status"] != "allocated":
        return None
    return max(int(record["allocated_at"]) + OPERATOR_MAX_SEC, int(record["expires_at"]))
