"""The calls that pages make to the API, as the person who is signed in.

`read` serves pages. `act` serves forms: one call, whose outcome the next page says.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from flask import abort, flash, g, redirect, request, url_for

from broker_api.console.people import NO_ROLE, NOT_ACCEPTED, renew_roles
from broker_api.console.reach import PATHS_IN_A_ROW, READ_SEC
from broker_api.console.runtime import Person, has_ended, person, runtime
from broker_api.console.security import is_ours
from broker_api.tracing import HEADER, request_id
from broker_common.adapters.broker_http import Answer, Refused, Unreachable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from werkzeug.wrappers import Response


_REPORTS = frozenset({"/usage"})
"""What the API reads for longer than other pages may wait: a month of 100,000 leases takes 7 s."""
UNSURE = "It is not known whether this was done: look before you try again."


class SignedOut(Exception):
    """Nobody is signed in, or the API does not accept the person's token any more. The message is for the person."""


def known_person() -> Person:
    """Return who is signed in. Raises `SignedOut`."""
    found = person()
    if found is None:
        raise SignedOut("Your sign-in has ended. Sign in again." if has_ended() else "Sign in to see this page.")
    return found


def read(path: str, **parameters: str | int | None) -> dict[str, Any]:
    """Return what `GET /admin{path}` answers; parameters that are None are left out.

    While the API is away, the answer is the last known one, and the page says how old it is. Raises `Refused`,
    `SignedOut`, and `Unreachable` if no answer is known.
    """
    given = {name: value for name, value in parameters.items() if value is not None}
    return remember(path, lambda: call("GET", path, params=given).body, **given)


def remember(name: str, ask: Callable[[], dict[str, Any]], /, **parameters: object) -> dict[str, Any]:
    """Return what `ask` returns: calls whose own parameters change with the time.

    While the API is away, it is the last result for this `name` and these `parameters`, as for `read`. Raises what
    `ask` raises, and `SignedOut`.
    """
    owner = known_person().owner
    try:
        body = ask()
    except (Refused, Unreachable) as error:
        known = runtime().last_known.find(owner, name, parameters) if error.may_pass else None
        if known is None:
            raise
        at, body = known
        g.known_at = min(at, g.get("known_at", at))
        g.trouble = _why(error)
        return body
    runtime().last_known.keep(owner, name, parameters, body)
    return body


def call(method: str, path: str, *, headers: Mapping[str, str] | None = None, **options: Any) -> Answer:  # noqa: ANN401 - requests' own options
    """Make the call `method /admin{path}` as the person. Raises `Refused`, `Unreachable` and `SignedOut`.

    The call has the id of the request to the console, so that log lines and facts name it. While the API is away, a
    call that only reads is not made: see `Reach`.
    """
    if method == "GET":
        return _read(method, path, headers=headers, **options)
    try:
        answer = _call(method, path, headers=headers, **options)
    except Refused as error:
        if is_unsure(error):
            may_have_changed()
        raise
    except Unreachable:
        may_have_changed()
        raise
    may_have_changed()
    return answer


def ask(path: str, *, json: Mapping[str, Any]) -> dict[str, Any]:
    """Make the call `POST /admin{path}` that changes nothing, as any other read. Raises as `call` does."""
    return _read("POST", path, headers=None, json=json).body


def _read(method: str, path: str, **options: Any) -> Answer:  # noqa: ANN401 - the same
    reach = runtime().reach
    # A page of many calls waits at most twice.
    if g.get("unanswered", 0) >= PATHS_IN_A_ROW or not reach.may_ask(path):
        raise Unreachable("the API did not answer a moment ago")
    with reach.place() as has_place:
        if not has_place:
            g.unanswered = PATHS_IN_A_ROW
            raise Unreachable("the API is slow, and others wait for it")
        return _call(method, path, **({} if path in _REPORTS else {"timeout_sec": READ_SEC}) | options)


def _call(method: str, path: str, *, headers: Mapping[str, str] | None, **options: Any) -> Answer:  # noqa: ANN401 - the same
    who, reach = known_person(), runtime().reach
    given = {HEADER: request_id()} | dict(headers or {})
    try:
        answer = runtime().broker.call(method, f"/admin{path}", token=who.token, headers=given, **options)
    except Unreachable as error:
        g.unanswered = g.get("unanswered", 0) + 1
        reach.note_silence(path, no_connection=error.no_connection)
        raise
    except Refused as error:
        reach.note_answer(path)
        if error.code == NOT_ACCEPTED:
            raise SignedOut(
                f"You are signed out, because the broker does not accept your token: {error.message}."
            ) from error
        if error.code == NO_ROLE:
            _look_again(who)
        raise
    reach.note_answer(path)
    return answer


def is_unsure(error: Refused) -> bool:
    """Tell whether a call may have been done although the broker refused it: its store or itself failed meanwhile."""
    return error.code in {"SERVICE_UNAVAILABLE", "INTERNAL_ERROR"}


def may_have_changed() -> None:
    """Note that this request may have changed something, so that no page says the opposite."""
    g.may_have_changed = True


def act(said: str | Callable[[Answer], str], method: str, path: str, **options: Any) -> Answer | None:  # noqa: ANN401 - those of `call`
    """Make one call that changes something, and let the next page say how it went.

    Returns the answer; None if the broker refused, or did not answer. `said` is the sentence after a success, or makes
    it of the answer. Raises `SignedOut`.
    """
    try:
        answer = call(method, path, **options)
    except Refused as error:
        unsure = f" {UNSURE}" if is_unsure(error) else ""
        flash(f"{sentence(error.message)}{unsure} (request {error.request_id})", "danger")
        return None
    except Unreachable as error:
        flash(f"{sentence(_why(error))} {UNSURE} (request {request_id()})", "danger")
        return None
    done(said if isinstance(said, str) else said(answer), answer)
    return answer


def done(said: str, answer: Answer, *, sent_as: str | None = None) -> None:
    """Let the next page say what `answer` did, and the id of its request, or `sent_as` if an earlier one did it."""
    flash(f"{sentence(said)} (request {sent_as or answer.request_id})", "success")


@contextmanager
def sending(key: str) -> Iterator[str | None]:
    """Send the form of `key` during the context; yields the id of the request that sent it before, if one did.

    A form that the API refused within the context, or the token of its sender, counts as not sent. A form that may have
    been done all the same counts as sent.
    """
    owner, once = known_person().owner, runtime().once
    first = once.begin(owner, key, request_id())
    try:
        yield first
    except (Refused, SignedOut) as error:
        if first is None and (isinstance(error, SignedOut) or not is_unsure(error)):
            once.free(owner, key)
        raise


def back(endpoint: str, **values: Any) -> Response:  # noqa: ANN401 - values of a path
    """Return the redirect after a form: to the page that it was on, or to `endpoint`."""
    came_from = request.form.get("next", "")
    return redirect(came_from if is_ours(came_from) else url_for(endpoint, **values), code=303)


def need(role: str) -> None:
    """Answer 403 unless the person may make calls that need `role`. The API checks it again."""
    if not known_person().may(role):
        abort(403)


def sentence(text: str) -> str:
    """Return `text` as a sentence: with a capital letter and a full stop."""
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")


def _why(error: Refused | Unreachable) -> str:
    return error.message if isinstance(error, Refused) else "the broker's API does not answer"


def _look_again(who: Person) -> None:
    """Learn that a person has lost a role. Raises `SignedOut` if none is left."""
    try:
        has_roles = renew_roles(who)
    except (Refused, Unreachable):
        return
    if not has_roles:
        raise SignedOut("You are signed out, because your token has no role of an operator any more.")
