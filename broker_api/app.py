"""Puts the Flask application together: the routes, their guards, and their description."""

from __future__ import annotations

import threading
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import orjson
from flask import Flask
from flask.json.provider import DefaultJSONProvider
from prometheus_client import CollectorRegistry

from broker_api import admin, health, history, jobs, line, overview, reservations, tracks, usage, webhooks
from broker_api.auth import token_sources
from broker_api.bounds import MAX_BODY_BYTES
from broker_api.browsers import register_browser_policy
from broker_api.docs import describe_pages, make_api
from broker_api.error_answers import register_error_handlers
from broker_api.metrics import register_metrics
from broker_api.rate_limit import register_rate_limit
from broker_api.runtime import Runtime, attach
from broker_api.tracing import register_tracing
from broker_api.webhook_description import describe_webhooks
from broker_common.adapters.traces import NO_TRACES
from broker_common.services import build_access_tokens

if TYPE_CHECKING:
    from collections.abc import Callable

    from broker_api.blueprint import Blueprint
    from broker_common.adapters.traces import Traces
    from broker_common.services import ApiServices
    from broker_common.settings import Settings

_OF_ANSWERS = {"separators": (",", ":")}
"""What Flask's `jsonify` asks for. Other JSON is for people, or for scripts in a page."""


class _Json(DefaultJSONProvider):
    """Writes answers by orjson, which takes a tenth of the time."""

    def dumps(self, obj: Any, **options: Any) -> str:  # noqa: ANN401 - Flask's signature
        """Return JSON, with the names of objects in order."""
        if options == _OF_ANSWERS:
            with suppress(TypeError):  # a lone surrogate, for example
                return orjson.dumps(obj, option=orjson.OPT_SORT_KEYS).decode()
        return super().dumps(obj, **options)


class _Application(Flask):
    json_provider_class = _Json

    def ensure_sync(self, func: Callable[..., Any]) -> Callable[..., Any]:
        """Return `func`: no view or hook is asynchronous. Flask would find that out again at each call."""
        return func


def create_app(
    settings: Settings,
    services: ApiServices,
    *,
    registry: CollectorRegistry | None = None,
    job_calls: Blueprint = jobs.blueprint,
    traces: Traces = NO_TRACES,
) -> Flask:
    """Return the application. It opens no connection, and reads no environment variable of the broker.

    `registry` holds the metrics of `services`, and gets those of the application; without one, there are only the
    application's. `job_calls` are the calls that start jobs and follow their runs.
    """
    app = _Application("broker_api", static_folder=None)
    # One byte more than is allowed, so that the reader of a body sees that it is too large.
    app.config.update(MAX_CONTENT_LENGTH=MAX_BODY_BYTES + 1, PROVIDE_AUTOMATIC_OPTIONS=False)
    # A redirect to the tidy form of a path would be an answer that no call is described with.
    app.url_map.merge_slashes = False
    attach(
        app,
        Runtime(
            settings=settings,
            services=services,
            # A quarter of the threads is left for requests that do not wait.
            job_waits=threading.BoundedSemaphore(settings.api_threads // 2),
            line_waits=threading.BoundedSemaphore(settings.api_threads // 4),
            tokens=token_sources(settings),
            access_tokens=build_access_tokens(settings, services.clock),
        ),
    )
    traces.of_requests(app)
    register_tracing(app, services.clock)
    register_metrics(app, registry or CollectorRegistry())
    register_browser_policy(app, origins=settings.cors_allowed_origins)
    register_rate_limit(app, trusted_proxies=settings.trusted_proxies)
    register_error_handlers(app)
    base_path = settings.api_base_path
    api = make_api(app, base_path)
    api.register_blueprint(tracks.blueprint, url_prefix=base_path)
    api.register_blueprint(overview.blueprint, url_prefix=f"{base_path}/admin")
    api.register_blueprint(admin.blueprint, url_prefix=f"{base_path}/admin")
    api.register_blueprint(history.blueprint, url_prefix=f"{base_path}/admin")
    api.register_blueprint(usage.blueprint, url_prefix=f"{base_path}/admin")
    api.register_blueprint(line.blueprint, url_prefix=f"{base_path}/admin")
    api.register_blueprint(reservations.blueprint, url_prefix=f"{base_path}/admin")
    api.register_blueprint(webhooks.blueprint, url_prefix=f"{base_path}/admin")
    api.register_blueprint(job_calls, url_prefix=f"{base_path}/admin")
    api.register_blueprint(health.blueprint)
    describe_pages(app, api)
    api.describe_later(partial(describe_webhooks, api.spec))
    return app
