"""Whose a token is, as the API says, and the session of that person."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

from flask import session

from broker_api.console.reach import READ_SEC
from broker_api.console.runtime import person, runtime
from broker_api.console.session import LONGEST_SEC, LONGEST_TOKEN
from broker_api.tracing import HEADER, request_id
from broker_common.adapters.broker_http import Refused, Unreachable
from broker_common.core.principals import Principal, Role

if TYPE_CHECKING:
    from broker_api.console.runtime import Person
    from broker_common.adapters.oidc_sign_in import Granted

NO_ROLE = "FORBIDDEN"
"""The API's code for a token that does not have the role that the call needs."""
NOT_ACCEPTED = "UNAUTHORIZED"
"""The API's code for a token that it does not accept."""
LEAST_RENEWED_SEC = 120
"""A token that lasts less is not renewed."""
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


def begin_session(token: str, principal: Principal) -> None:
    """Sign the owner of `token` in for a working day."""
    now = runtime().clock.now()
    # Nothing of the session before stays, so nobody can know its tokens for forms.
    end_session()
    session.update(
        token=token,
        principal=principal.name,
        roles=sorted(principal.roles),
        customer=principal.customer,
        began=now,
        ends=now + LONGEST_SEC,
        by_issuer=False,
    )


def begin_session_by_issuer(granted: Granted, principal: Principal) -> None:
    """Sign the person in to whom the issuer gave a token: until it ends, or for a working day if it can be renewed."""
    begin_session(granted.access_token, principal)
    session.update(by_issuer=True, owner=secrets.token_urlsafe(12))
    keep_token(granted, at=session["began"])


def keep_token(granted: Granted, *, at: int) -> None:
    """Put a token that the issuer gave `at` a time into the session, which stays the same otherwise.

    With it goes what renews it, if the cookies have room for both and the token lasts long enough. Else the session
    ends with the token.
    """
    lasts_sec, refresh_token = granted.lasts_sec, granted.refresh_token
    last = session["began"] + LONGEST_SEC
    session["token"] = granted.access_token
    if (
        refresh_token is not None
        and lasts_sec is not None
        and lasts_sec >= LEAST_RENEWED_SEC
        and len(granted.access_token) + len(refresh_token) <= LONGEST_TOKEN
    ):
        session.update(refresh_token=refresh_token, token_ends=at + int(lasts_sec), ends=last)
    else:
        session.pop("refresh_token", None)
        session.pop("token_ends", None)
        session["ends"] = last if lasts_sec is None else min(last, at + int(min(lasts_sec, LONGEST_SEC)))


def end_session() -> None:
    """Sign out who is signed in, and forget what the API told them."""
    who = person()
    if who is not None:
        runtime().last_known.forget(who.owner)
        runtime().kept.forget(who.owner)
    if "refresh_token" in session:
        runtime().renewals.end(session["refresh_token"])
    session.clear()


def renew_roles(who: Person) -> bool:
    """Ask the API which roles a person still has, and offer only what these may do. Returns whether any is left.

    Raises `Refused` and `Unreachable`.
    """
    try:
        session["roles"] = sorted(ask_who(who.token).roles)
    except Refused as error:
        if error.code != NO_ROLE:
            raise
        return False
    return bool(session["roles"])
