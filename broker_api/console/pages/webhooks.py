"""The pages of webhooks: the endpoints, one endpoint with its deliveries, one delivery, and the forms of an admin."""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from flask import Blueprint, flash, g, redirect, render_template, request, url_for
from wtforms import RadioField, SelectMultipleField, StringField
from wtforms.validators import InputRequired

from broker_api.console.calls import (
    UNSURE,
    act,
    back,
    call,
    done,
    is_unsure,
    need,
    read,
    sending,
    sentence,
)
from broker_api.console.facts import kind_meaning
from broker_api.console.forms import BEFORE, Form, form_key, is_typed, new_key, trimmed
from broker_api.console.moments import parse_moment
from broker_api.console.runtime import runtime
from broker_api.tracing import request_id
from broker_common.adapters.broker_http import Refused, Unreachable, quoted
from broker_common.core.endpoints import OLD_SECRET_SEC, SUBSCRIBABLE
from broker_common.core.webhook import ALL_KINDS, TEST_KIND, DeliveryState

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from werkzeug.wrappers import Response

    Page = str | Response | tuple[str, int]

blueprint = Blueprint("webhooks", __name__)

STATES = {
    DeliveryState.PENDING: "waiting",
    DeliveryState.DELIVERED: "delivered",
    DeliveryState.EXHAUSTED: "given up",
}
"""The states of a delivery, and what people call them."""
_COUNTED = 100
"""How many waiting deliveries of an endpoint the list counts."""
_PAGE = 50
_TEST_MEANING = "An operator tries the endpoint. A test is sent to its endpoint in any case."
_LABELS = {"url": "Address", "kinds": "What it is told", "description": "Description"}
_SENT_BEFORE = (
    "This form was sent already, so nothing was added now (request {sent_as}). Look at the webhooks. If you did not see"
    " the secret of the new one, rotate it. To add this endpoint, too, send the form again."
)
_NO_ANSWER = (
    "The broker's API did not answer. It is not known whether this was done: look at the webhooks before you try again."
)


class EndpointForm(Form):
    """The form that adds or changes an endpoint."""

    url = StringField("Address", validators=[InputRequired("Write the address.")], filters=[trimmed])
    scope = RadioField(
        "Kinds",
        choices={"all": "every kind, also those that a later release adds", "some": "only these kinds:"},
        default="all",
    )
    kinds = SelectMultipleField("Kinds", validate_choice=False)
    description = StringField("Description", filters=[trimmed])

    def wanted(self) -> dict[str, Any]:
        """Return the body for the API, which checks it. Kinds are in the order in which the form lists them."""
        kinds = [ALL_KINDS] if self.scope.data == "all" else sorted(self.kinds.data or [], key=_place_of)
        return {"url": self.url.data, "kinds": kinds, "description": self.description.data}

    def show(self, endpoint: Mapping[str, Any], names: Collection[str]) -> None:
        """Put what an endpoint is into the fields that `names` has, over what was typed."""
        if "url" in names:
            self.url.data = endpoint["url"]
        if "description" in names:
            self.description.data = endpoint["description"]
        if "kinds" in names:
            is_all = endpoint["kinds"] == [ALL_KINDS]
            self.scope.data, self.kinds.data = ("all", []) if is_all else ("some", endpoint["kinds"])

    def say(self, error: Refused) -> str | None:
        """Put the API's words at the fields that they are about; return what is about none of them."""
        about = {name: texts for name, texts in error.details.items() if name in self._fields}
        for name, texts in about.items():
            self[name].errors = [sentence(str(text)) for text in texts]
        return None if about else _words(error)


@blueprint.get("/webhooks")
def index() -> str:
    """Show all endpoints, and what waits for each."""
    endpoints = read("/webhooks")["webhooks"]
    waiting = {each["endpoint_id"]: _waiting(each["endpoint_id"]) for each in endpoints}
    return render_template("pages/webhooks.html", endpoints=endpoints, waiting=waiting, kind_meaning=meaning)


@blueprint.get("/webhooks/<endpoint_id>")
def show(endpoint_id: str) -> str:
    """Show an endpoint and a page of its deliveries."""
    state, cursor = request.args.get("state") or None, request.args.get("cursor") or None
    endpoint = read(_path(endpoint_id))
    return render_template(
        "pages/webhook.html",
        endpoint=endpoint,
        waiting=_waiting(endpoint_id),
        page=read(f"{_path(endpoint_id)}/deliveries", state=state, cursor=cursor, limit=_PAGE),
        state=state,
        cursor=cursor,
        states=STATES,
        kind_meaning=meaning,
    )


@blueprint.get("/webhooks/<endpoint_id>/deliveries/<delivery_id>")
def delivery(endpoint_id: str, delivery_id: str) -> str:
    """Show a delivery with its tries and its body."""
    found = read(_delivery_path(endpoint_id, delivery_id))
    try:
        payload = json.loads(found["payload"])
    except ValueError:
        payload = None
    is_fact = isinstance(payload, dict) and found["kind"] != TEST_KIND and "details" in payload.get("data", {})
    return render_template(
        "pages/delivery.html",
        endpoint=read(_path(endpoint_id)),
        delivery=found,
        fact=payload["data"] if is_fact else None,
        body=found["payload"] if payload is None else json.dumps(payload, indent=2, ensure_ascii=False),
        states=STATES,
        meaning=meaning(found["kind"]),
    )


@blueprint.route("/webhooks/new", methods=["GET", "POST"])
def new() -> Page:
    """Show the form that adds an endpoint; add it once, and show its secret in the answer, and nowhere else."""
    need("admin")
    form, key = EndpointForm(), form_key()
    if request.method == "GET" or not form.validate():
        page = _new_page(form, key)
        return page if request.method == "GET" else (page, HTTPStatus.BAD_REQUEST)
    try:
        with sending(key) as sent_as:
            if sent_as is not None:
                problem = _SENT_BEFORE.format(sent_as=sent_as)
                return _new_page(form, new_key(), problem=problem, was_sent=True), HTTPStatus.CONFLICT
            answer = call("POST", "/webhooks", json=form.wanted())
    except Refused as error:
        if is_unsure(error):
            key = new_key()
        return _new_page(form, key, problem=form.say(error), was_sent=is_unsure(error)), HTTPStatus.BAD_REQUEST
    except Unreachable:
        problem = f"{_NO_ANSWER} (request {request_id()})"
        return _new_page(form, new_key(), problem=problem, was_sent=True), HTTPStatus.BAD_REQUEST
    return render_template("pages/webhook_secret.html", made=answer.body, sent_as=answer.request_id)


@blueprint.get("/webhooks/<endpoint_id>/change")
def change(endpoint_id: str) -> str:
    """Show the form that changes an endpoint, as it is now."""
    need("admin")
    # Not by `read`: on what was known before, a change would be refused or undo another.
    endpoint = call("GET", _path(endpoint_id)).body
    return _change_page(endpoint_id, endpoint["version"], _form_of(endpoint), _form_of(endpoint, prefix=BEFORE))


@blueprint.post("/webhooks/<endpoint_id>/change")
def save(endpoint_id: str) -> Page:
    """Change an endpoint. Only what was changed in the form is sent, with the version that the form showed."""
    need("admin")
    form, before = EndpointForm(), EndpointForm(prefix=BEFORE)
    version = request.form.get("version", 0, type=int)
    if not form.validate():
        return _change_page(endpoint_id, version, form, before), HTTPStatus.BAD_REQUEST
    was = before.wanted()
    changes = {name: value for name, value in form.wanted().items() if value != was[name]}
    if not changes:
        flash("Nothing was changed: the form has the values that it had before.", "warning")
        return redirect(url_for("webhooks.show", endpoint_id=endpoint_id), code=303)
    sent_as = None
    try:
        with sending(f"{_path(endpoint_id)} {version}") as sent_as:
            answer = call("PATCH", _path(endpoint_id), json=changes | {"version": version})
    except Refused as error:
        if error.code == "VERSION_MISMATCH":
            return _changed_meanwhile(endpoint_id, form, before, changes, error, sent_as)
        return _change_page(endpoint_id, version, form, before, problem=form.say(error)), HTTPStatus.BAD_REQUEST
    except Unreachable:
        problem = f"{_NO_ANSWER} (request {request_id()})"
        return _change_page(endpoint_id, version, form, before, problem=problem), HTTPStatus.BAD_REQUEST
    done("the endpoint is changed", answer)
    return redirect(url_for("webhooks.show", endpoint_id=endpoint_id), code=303)


@blueprint.post("/webhooks/<endpoint_id>/enabled")
def enable(endpoint_id: str) -> Response:
    """Enable or disable an endpoint."""
    need("admin")
    enabled, version = request.form.get("enabled") == "yes", request.form.get("version", 0, type=int)
    said = "the endpoint is enabled. What waits is sent" if enabled else "the endpoint is disabled. What happens waits"
    act(said, "PATCH", _path(endpoint_id), json={"enabled": enabled, "version": version})
    return back("webhooks.show", endpoint_id=endpoint_id)


@blueprint.route("/webhooks/<endpoint_id>/rotate-secret", methods=["GET", "POST"])
def rotate(endpoint_id: str) -> str | tuple[str, int]:
    """Say what a new secret means; make one if the id was typed, and show it in the answer, and nowhere else."""
    need("admin")
    problem = None
    if request.method == "POST" and is_typed(endpoint_id):
        try:
            answer = call("POST", f"{_path(endpoint_id)}/rotate-secret")
        except Refused as error:
            problem = _words(error)
        except Unreachable:
            problem = (
                "The broker's API did not answer. There may be a new secret that nobody knows. Rotate again: the secret"
                f" that your receiver has still signs for a day. (request {request_id()})"
            )
        else:
            return render_template("pages/webhook_secret.html", made=answer.body, sent_as=answer.request_id)
    page = render_template(
        "pages/webhook_rotate.html", endpoint=_named(endpoint_id), problem=problem, old_secret_sec=OLD_SECRET_SEC
    )
    return page if request.method == "GET" else (page, 400)


@blueprint.route("/webhooks/<endpoint_id>/replay", methods=["GET", "POST"])
def replay(endpoint_id: str) -> str | Response | tuple[str, int]:
    """Ask from when on; send the facts since then again. A long replay goes on by a button: one call at a time."""
    need("admin")
    since, problem, cursor = request.values.get("since", "").strip(), None, request.form.get("cursor") or None
    so_far = max(0, request.form.get("so_far", 0, type=int))
    if request.method == "POST":
        try:
            at = parse_moment(since, now=runtime().clock.now())
            body = {"since": at} | ({} if cursor is None else {"cursor": cursor})
            answer = call("POST", f"{_path(endpoint_id)}/replay", json=body)
        except ValueError as error:
            problem = str(error)
        except Refused as error:
            problem = _words(error)
        except Unreachable:
            again = "Send the form again: nothing is missed by that."
            problem = f"The broker's API did not answer. {again} (request {request_id()})"
        else:
            # The next call must name the same time, also if this one was given as a length of time.
            since, cursor, so_far = str(at), answer.body["cursor"], so_far + answer.body["replayed"]
            if cursor is None:
                flash(f"{_deliveries(so_far)} sent again. (request {answer.request_id})", "success")
                return redirect(url_for("webhooks.show", endpoint_id=endpoint_id, state="pending"), code=303)
    page = render_template(
        "pages/webhook_replay.html",
        endpoint=_named(endpoint_id),
        problem=problem,
        since=since,
        cursor=cursor,
        so_far=_deliveries(so_far),
    )
    return page if problem is None else (page, 400)


@blueprint.post("/webhooks/<endpoint_id>/test")
def test(endpoint_id: str) -> Response:
    """Send a test, and lead to its delivery, which shows what came of it."""
    need("admin")
    answer = act("the test is sent in a moment. This page shows what comes of it", "POST", f"{_path(endpoint_id)}/test")
    if answer is None:
        return back("webhooks.show", endpoint_id=endpoint_id)
    made = answer.body["delivery_id"]
    return redirect(url_for("webhooks.delivery", endpoint_id=endpoint_id, delivery_id=made), code=303)


@blueprint.post("/webhooks/<endpoint_id>/deliveries/<delivery_id>/retry")
def retry(endpoint_id: str, delivery_id: str) -> Response:
    """Send one delivery again."""
    need("admin")
    act("the delivery is sent again in a moment", "POST", f"{_delivery_path(endpoint_id, delivery_id)}/retry")
    return back("webhooks.delivery", endpoint_id=endpoint_id, delivery_id=delivery_id)


@blueprint.post("/webhooks/<endpoint_id>/remove")
def remove(endpoint_id: str) -> Response:
    """Remove an endpoint whose id was typed."""
    need("admin")
    is_done = is_typed(endpoint_id) and act("the endpoint is removed", "DELETE", _path(endpoint_id)) is not None
    if is_done:
        return redirect(url_for("webhooks.index"), code=303)
    return redirect(url_for("webhooks.show", endpoint_id=endpoint_id), code=303)


def meaning(kind: str) -> str:
    """Return what a kind means, also that of tests and of all kinds together."""
    return {TEST_KIND: _TEST_MEANING, ALL_KINDS: "every kind"}.get(kind) or kind_meaning(kind)


def _changed_meanwhile(  # noqa: PLR0917 - all that the form is made of
    endpoint_id: str,
    form: EndpointForm,
    before: EndpointForm,
    changes: Mapping[str, Any],
    error: Refused,
    sent_as: str | None,
) -> Page:
    """Show the form again: with what was typed, and in the other fields with what somebody else has changed.

    If the endpoint has all that was typed, an earlier try has saved it.
    """
    try:
        current = call("GET", _path(endpoint_id)).body
    except (Refused, Unreachable):
        problem = f"The endpoint has changed, and cannot be read now. Nothing was saved. (request {error.request_id})"
        version = request.form.get("version", 0, type=int)
        return _change_page(endpoint_id, version, form, before, problem=problem), error.status
    now = _form_of(current, prefix=BEFORE)
    was, is_now = before.wanted(), now.wanted()
    if all(is_now[name] == value for name, value in changes.items()):
        said = "The endpoint has what you typed: it is saved already."
        flash(f"{said} (request {sent_as or error.request_id})", "success")
        return redirect(url_for("webhooks.show", endpoint_id=endpoint_id), code=303)
    meanwhile = [
        {
            "field": _LABELS[name],
            "was": _text_of(was[name]),
            "is": _text_of(is_now[name]),
            "typed": _text_of(changes[name]) if name in changes else None,
        }
        for name in was
        if is_now[name] != was[name]
    ]
    form.show(current, [name for name in was if name not in changes])
    problem = (
        "Somebody else changed this endpoint since you opened this form, so nothing was saved. Look at it, then send"
        f" the form again. (request {error.request_id})"
    )
    page = _change_page(endpoint_id, current["version"], form, now, problem=problem, meanwhile=meanwhile)
    return page, error.status


def _form_of(endpoint: Mapping[str, Any], *, prefix: str = "") -> EndpointForm:
    """Return a form with what an endpoint is, not with what was sent."""
    form = EndpointForm(formdata=None, prefix=prefix)
    form.show(endpoint, ("url", "kinds", "description"))
    return form


def _new_page(form: EndpointForm, key: str, *, problem: str | None = None, was_sent: bool = False) -> str:
    return _form_page(form, key=key, problem=problem, was_sent=was_sent)


def _change_page(  # noqa: PLR0917 - all that the form is made of
    endpoint_id: str,
    version: int,
    form: EndpointForm,
    before: EndpointForm,
    problem: str | None = None,
    meanwhile: Sequence[Mapping[str, Any]] = (),
) -> str:
    return _form_page(
        form, endpoint_id=endpoint_id, version=version, before=before, problem=problem, meanwhile=meanwhile
    )


def _form_page(form: EndpointForm, **values: Any) -> str:  # noqa: ANN401 - what the template takes
    offered = [kind for kind in SUBSCRIBABLE if kind != ALL_KINDS]
    chosen = form.kinds.data or []
    return render_template(
        "pages/webhook_form.html",
        form=form,
        # A kind that this release does not know stays chosen.
        kinds={kind: meaning(kind) for kind in (*offered, *(kind for kind in chosen if kind not in offered))},
        chosen=chosen,
        **values,
    )


def _named(endpoint_id: str) -> dict[str, Any]:
    """Return an endpoint; after a form also one that cannot be read now, because its page says what was done."""
    unnamed = {"endpoint_id": endpoint_id, "url": endpoint_id}
    if g.get("unanswered"):
        return unnamed  # proxies do not wait for a second call that has no answer
    try:
        return read(_path(endpoint_id))
    except (Refused, Unreachable):
        if request.method == "GET":
            raise
        return unnamed


def _waiting(endpoint_id: str) -> dict[str, Any]:
    """Return how many deliveries of an endpoint wait, and since when the oldest of those that were read."""
    page = read(f"{_path(endpoint_id)}/deliveries", state=DeliveryState.PENDING.value, limit=_COUNTED)
    oldest = min((each["fact_at"] for each in page["deliveries"]), default=None)
    return {"count": page["count"], "is_all": page["cursor"] is None, "oldest": oldest}


def _words(error: Refused) -> str:
    unsure = f" {UNSURE}" if is_unsure(error) else ""
    return f"{sentence(error.message)}{unsure} (request {error.request_id})"


def _deliveries(count: int) -> str:
    return "1 delivery is" if count == 1 else f"{count} deliveries are"


def _text_of(value: str | Sequence[str] | None) -> str:
    """Return a value of an endpoint as people read it."""
    if isinstance(value, str):
        return value
    return ", ".join("every kind" if each == ALL_KINDS else each for each in value or ()) or "nothing"


def _place_of(kind: str) -> tuple[int, str]:
    return (SUBSCRIBABLE.index(kind) if kind in SUBSCRIBABLE else len(SUBSCRIBABLE), kind)


def _path(endpoint_id: str) -> str:
    return f"/webhooks/{quoted(endpoint_id)}"


def _delivery_path(endpoint_id: str, delivery_id: str) -> str:
    return f"{_path(endpoint_id)}/deliveries/{quoted(delivery_id)}"
