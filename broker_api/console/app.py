"""Puts the console together: pages, sessions, and what protects them."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

from flask import Flask, g
from flask_bootstrap import Bootstrap5  # type: ignore[import-untyped] # it ships no types
from flask_wtf.csrf import CSRFProtect  # type: ignore[import-untyped] # the same
from prometheus_client import CollectorRegistry

from broker_api.bounds import MAX_BODY_BYTES
from broker_api.console import health, signin
from broker_api.console.errors import register_errors
from broker_api.console.facts import register_facts
from broker_api.console.files import STATIC_PATH, register_files
from broker_api.console.kept import Kept
from broker_api.console.last_known import LastKnown
from broker_api.console.once import Once
from broker_api.console.pages import events, jobs, line, overview, reservations, sandboxes, usage, webhooks
from broker_api.console.pending import KnownBrowsers, PendingSignIns
from broker_api.console.reach import Reach
from broker_api.console.renewal import register_renewal
from broker_api.console.renewals import Renewals
from broker_api.console.runtime import Runtime, attach, person
from broker_api.console.security import register_arrivals, register_headers
from broker_api.console.session import EncryptedSessions
from broker_api.console.texts import register_filters
from broker_api.tracing import register_tracing, request_id
from broker_common.adapters.oidc_sign_in import OidcSignIn
from broker_common.adapters.traces import NO_TRACES

if TYPE_CHECKING:
    from broker_common.adapters.broker_http import BrokerHttp
    from broker_common.adapters.traces import Traces
    from broker_common.core.ports import Clock
    from broker_common.settings import Settings

PAGES = (
    ("overview.show", "Overview"),
    ("sandboxes.index", "Sandboxes"),
    ("line.index", "Line"),
    ("reservations.index", "Reservations"),
    ("jobs.index", "Jobs"),
    ("webhooks.index", "Webhooks"),
    ("events.index", "Events"),
    ("usage.index", "Usage"),
)
"""The pages in the order of the navigation: endpoint and title."""
_BLUEPRINTS = (overview, sandboxes, line, reservations, jobs, webhooks, events, usage, signin, health)


def create_console(
    settings: Settings,
    broker: BrokerHttp,
    clock: Clock,
    *,
    registry: CollectorRegistry | None = None,
    traces: Traces = NO_TRACES,
) -> Flask:
    """Return the application. It opens no connection, and reads no environment variable.

    Without `CONSOLE_SECRET_KEY`, which only development allows, sessions end with the process.
    """
    app = Flask("broker_api.console", static_url_path=STATIC_PATH)
    secure = settings.in_production
    keys = settings.console_secret_key or (secrets.token_urlsafe(32),)
    app.config.update(
        MAX_CONTENT_LENGTH=MAX_BODY_BYTES,
        PROVIDE_AUTOMATIC_OPTIONS=False,
        # The last of these signs the tokens of forms, and all of them check: itsdangerous wants the newest key last.
        WTF_CSRF_SECRET_KEY=keys[::-1],
        WTF_CSRF_TIME_LIMIT=None,
        BOOTSTRAP_SERVE_LOCAL=True,
    )
    shared = Runtime(
        settings=settings,
        broker=broker,
        reach=Reach(clock),
        clock=clock,
        up_since=clock.now(),
        last_known=LastKnown(clock),
        kept=Kept(clock),
        once=Once(clock),
        pending=PendingSignIns(keys, clock, secure=secure),
        known_browsers=KnownBrowsers(keys, clock, secure=secure),
        renewals=Renewals(clock),
        sign_in=_sign_in(settings, clock),
    )
    attach(app, shared)
    app.session_interface = EncryptedSessions(keys, clock, secure=secure)
    traces.of_requests(app)
    register_tracing(app, clock)
    health.register_metrics(app, registry or CollectorRegistry(), clock)
    register_headers(app, secure=secure)
    register_arrivals(app)
    register_renewal(app)
    register_errors(app)
    register_filters(app)
    register_facts(app)
    Bootstrap5(app)
    register_files(app)
    CSRFProtect(app)
    for each in _BLUEPRINTS:
        app.register_blueprint(each.blueprint)

    @app.context_processor
    def _common() -> dict[str, object]:
        return {
            "pages": PAGES,
            "person": person(),
            "now": clock.now,
            "request_id": request_id,
            "known_at": g.get("known_at"),
            "trouble": g.get("trouble"),
        }

    app.jinja_env.trim_blocks = app.jinja_env.lstrip_blocks = True
    return app


def _sign_in(settings: Settings, clock: Clock) -> OidcSignIn | None:
    if settings.oidc_issuer is None or settings.oidc_client_id is None or settings.oidc_audience is None:
        return None
    return OidcSignIn(
        issuer=settings.oidc_issuer,
        client_id=settings.oidc_client_id,
        client_secret=settings.oidc_client_secret,
        audience=settings.oidc_audience,
        scopes=settings.oidc_scopes,
        clock=clock,
    )
