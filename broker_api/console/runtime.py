"""The objects that all requests to the console share, and the person of the current one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from flask import current_app, session

from broker_api.console.session import Session
from broker_common.core.principals import Principal, Role

if TYPE_CHECKING:
    from flask import Flask

    from broker_api.console.kept import Kept
    from broker_api.console.last_known import LastKnown
    from broker_api.console.once import Once
    from broker_api.console.pending import KnownBrowsers, PendingSignIns
    from broker_api.console.reach import Reach
    from broker_api.console.renewals import Renewals
    from broker_common.adapters.broker_http import BrokerHttp
    from broker_common.adapters.oidc_sign_in import OidcSignIn
    from broker_common.core.ports import Clock
    from broker_common.settings import Settings

_EXTENSION = "broker_console"


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """The shared objects of one console."""

    settings: Settings
    broker: BrokerHttp
    reach: Reach
    clock: Clock
    up_since: int
    """When this process was started (Unix seconds)."""
    last_known: LastKnown
    kept: Kept
    once: Once
    pending: PendingSignIns
    known_browsers: KnownBrowsers
    renewals: Renewals
    sign_in: OidcSignIn | None
    """None: people sign in by tokens only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Person:
    """Who is signed in: the token for the API's calls, and what the API said of it."""

    token: str
    owner: str
    """By what the console remembers answers to this person: it stays the same when the issuer renews the token."""
    principal: Principal

    def may(self, role: str) -> bool:
        """Tell whether the person may make calls that need `role`. The API has the last word."""
        return self.principal.may(Role(role))


def attach(app: Flask, runtime: Runtime) -> None:
    """Store the runtime of an application."""
    app.extensions[_EXTENSION] = runtime


def runtime() -> Runtime:
    """Return the runtime of the current request."""
    return cast("Runtime", current_app.extensions[_EXTENSION])


def person() -> Person | None:
    """Return who is signed in; None if nobody is."""
    if "token" not in session:
        return None
    principal = Principal(
        name=session["principal"],
        # Another release may have written roles that this one does not know.
        roles=frozenset(role for role in Role if role.value in session["roles"]),
        customer=session["customer"],
    )
    token = session["token"]
    return Person(token=token, owner=session.get("owner", token), principal=principal)


def has_ended() -> bool:
    """Tell whether the person of the current request was signed in, and the time of that is over."""
    return isinstance(session, Session) and session.has_ended


def token_has_ended() -> bool:
    """Tell whether the person's token has ended and was not renewed. Only the page to sign in meets such a one."""
    return bool(runtime().clock.now() >= session.get("token_ends", math.inf))


def has_sent_session() -> bool:
    """Tell whether the browser sent a session with the current request, of any content."""
    return isinstance(session, Session) and bool(session.parts)
