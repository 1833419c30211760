"""Calls for many sandboxes that one form asks for: each is one call of the API, and none stops the others."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from broker_api.console.calls import is_unsure, known_person, may_have_changed, sentence
from broker_api.console.runtime import runtime
from broker_api.tracing import HEADER, request_id
from broker_common.adapters.broker_http import Refused, Unreachable
from broker_common.core.parallel import for_each

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

MOST = 100
"""How many calls a form may ask for. A page shows fewer sandboxes."""
WITHIN_SEC = 20
"""No call begins later than this, because a person waits for the page."""
_ENDS_SEC = 30
"""No call is waited for longer than this. Afterwards the page is made, which is done within `CONSOLE_ANSWER_SEC`."""
_CONNECT_SEC = 2.0
_THREADS = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A call of the API, without `/admin`. `name` says what it is for."""

    name: str
    method: str
    path: str
    json: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a call went. `text` is for the person, `body` is the answer, `code` is that of the API's error.

    `is_unknown`: it may have been done all the same.
    """

    name: str
    is_done: bool
    is_unknown: bool = False
    text: str = ""
    request_id: str | None = None
    code: str | None = None
    body: Mapping[str, Any] = field(default_factory=dict)


def call_each(calls: Sequence[Call]) -> list[Outcome]:
    """Make the calls as the person who is signed in, a few at a time, and return the outcomes in the same order.

    Each call has a request id of its own, which begins with that of the request to the console. Calls that could not
    begin in time are not made, and their outcome says so. Returns within `_ENDS_SEC`. Raises `SignedOut` if nobody is
    signed in.
    """
    token, broker, clock, base = known_person().token, runtime().broker, runtime().clock, request_id()
    began = clock.monotonic()

    def make(numbered: tuple[int, Call]) -> Outcome:
        number, each = numbered
        passed = clock.monotonic() - began
        if passed >= WITHIN_SEC:
            return Outcome(
                name=each.name, is_done=False, text="Not tried: there was no time left for it. Send it again."
            )
        headers = {HEADER: f"{base}-{number}"}
        limits = (_CONNECT_SEC, _ENDS_SEC - passed - _CONNECT_SEC)
        try:
            answer = broker.call(
                each.method, f"/admin{each.path}", token=token, headers=headers, json=each.json, timeout_sec=limits
            )
        except Refused as error:
            return Outcome(
                name=each.name,
                is_done=False,
                is_unknown=is_unsure(error),
                text=sentence(error.message),
                request_id=error.request_id,
                code=error.code,
            )
        except Unreachable:
            text = "The broker's API did not answer. It is not known whether this was done."
            return Outcome(name=each.name, is_done=False, is_unknown=True, text=text, request_id=headers[HEADER])
        return Outcome(name=each.name, is_done=True, request_id=answer.request_id, body=answer.body)

    may_have_changed()
    return for_each(make, list(enumerate(calls, 1)), threads=_THREADS)
