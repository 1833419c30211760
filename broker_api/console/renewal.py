"""Renews the token of a person who signed in at the issuer, so that a console that is left open all day goes on.

What renews it is in the session's cookie, as the token is. It is used a minute before the token ends. One request waits
for the issuer's answer. The others go on with the token of before, as long as that lasts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from flask import request, session

from broker_api.console.people import ask_who, end_session, keep_token
from broker_api.console.runtime import runtime
from broker_api.console.security import NO_PAGES, SIGN_IN
from broker_api.console.session import LONGEST_TOKEN, drop_without_a_word
from broker_common.adapters.broker_http import Refused, Unreachable
from broker_common.adapters.oidc_sign_in import NotRenewed, SignInFailed

if TYPE_CHECKING:
    from flask import Flask

    from broker_common.adapters.oidc_sign_in import Granted
    from broker_common.core.principals import Principal

EARLY_SEC = 60
"""A token is renewed so long before its end."""
_UNCHECKED = "unchecked"
"""In the session, if the API could not say whose the renewed token is."""


class TokenNotRenewed(Exception):
    """The person's token has ended, and the issuer does not answer. The message is for the person."""


def register_renewal(app: Flask) -> None:
    """Renew the token of a person who opens a page or sends a form, if it ends soon."""

    @app.before_request
    def renew() -> None:
        if request.blueprint not in NO_PAGES | {SIGN_IN}:
            _renew()


def _renew() -> None:
    if session.get(_UNCHECKED):
        _check_owner()
    issuer, refresh_token, now = runtime().sign_in, session.get("refresh_token"), runtime().clock.now()
    if issuer is None or refresh_token is None or now < session["token_ends"] - EARLY_SEC:
        return
    has_ended = now >= session["token_ends"]
    try:
        found = runtime().renewals.renew(refresh_token, issuer.renew, waits=has_ended)
        if found is not None:
            _take(found.granted, at=found.at)
    except NotRenewed:
        # Another instance may have renewed it. Then the next request comes with that cookie.
        if has_ended:
            drop_without_a_word(session)
    except SignInFailed as error:
        if has_ended:
            raise TokenNotRenewed(f"Your sign-in must be renewed, which does not work now. {error}") from error


def _take(granted: Granted, *, at: int) -> None:
    """Go on with a token of this time, and with the roles that it has. Raises `NotRenewed` if it is of no use."""
    if len(granted.access_token) > LONGEST_TOKEN:
        raise NotRenewed
    try:
        found = ask_who(granted.access_token)
    except (Refused, Unreachable):
        # The calls of the page say more.
        keep_token(granted, at=at)
        session[_UNCHECKED] = True
        return
    if found.name != session["principal"]:
        raise NotRenewed
    keep_token(granted, at=at)
    session.pop(_UNCHECKED, None)
    _keep_rights(found)


def _check_owner() -> None:
    """Ask the API whose the token is, if it could not be asked when that came. Ends the session of another person."""
    try:
        found = ask_who(session["token"])
    except (Refused, Unreachable):
        return
    if found.name != session["principal"]:
        end_session()
        return
    del session[_UNCHECKED]
    _keep_rights(found)


def _keep_rights(found: Principal) -> None:
    session.update(roles=sorted(found.roles), customer=found.customer)
