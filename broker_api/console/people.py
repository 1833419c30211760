"""Whose a token is, as the API says, and the session of that person."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flask import session

from broker_api.console.reach import READ_SEC
from broker_api.console.runtime import runtime
from broker_api.console.session import LONGEST_SEC
from broker_api.tracing import HEADER, request_id
from broker_common.adapters.broker_http import Refused, Unreachable
from broker_common.core.principals import Principal, Role

if TYPE_CHECKING:
    from broker_api.console.runtime import Person

NO_ROLE = "FORBIDDEN"
"""The API's code for a token that does not have the role that the call needs."""
NOT_ACCEPTED = "UNAUTHORIZED"
"""The API's code for a token that it does not accept."""
_OF_PEOPLE = frozenset(Role) - {Role.TRACK}


def ask_who(token: str) -> Principal:
    """Ask the API whose `token` is. The roles are those that the console knows. Raises `Refused` and `Unreachable`.

    It takes a place for reads. So while the API hangs, nobody can hold all threads by signing in.
    """
    given = {HEADER: request_id()}
    with runtime().reach.place() as has_place:
        if not has_place:
            raise Unreachable("the API is slow, and others wait for it")
        found = runtime().broker.call("GET", "/admin/whoami", token=token, headers=given, timeout_sec=READ_SEC).body
    roles = frozenset(role for role in _OF_PEOPLE if role.value in found["roles"])
    return Principal(name=found["principal"], roles=roles, customer=found["customer"])


def begin_session(token: str, principal: Principal, *, lasts_sec: float = LONGEST_SEC, by_issuer: bool = False) -> None:
    """Sign the owner of `token` in for `lasts_sec`, but not for longer than a working day.

    `by_issuer`: the issuer gave the token.
    """
    now = runtime().clock.now()
    # Nothing of the session before stays, so nobody can know its tokens for forms.
    session.clear()
    session.update(
        token=token,
        principal=principal.name,
        roles=sorted(principal.roles),
        customer=principal.customer,
        began=now,
        ends=now + int(min(lasts_sec, LONGEST_SEC)),
        by_issuer=by_issuer,
    )


def end_session() -> None:
    """Sign out who is signed in, and forget what the API told them."""
    if "token" in session:
        runtime().last_known.forget(session["token"])
        runtime().kept.forget(session["token"])
    session.clear()


def renew_roles(person: Person) -> bool:
    """Ask the API which roles a person still has, and offer only what these may do. Returns whether any is left.

    Raises `Refused` and `Unreachable`.
    """
    try:
        session["roles"] = sorted(ask_who(person.token).roles)
    except Refused as error:
        if error.code != NO_ROLE:
            raise
        return False
    return bool(session["roles"])
