"""The Flask application: puts the routes, what guards them, and their description together."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flask import Flask

from broker_api import admin, health, jobs, tracks
from broker_api.errors import register_error_handlers
from broker_api.limits import MAX_BODY_BYTES, ThreadBudget
from broker_api.metrics import register_metrics
from broker_api.openapi import make_api
from broker_api.runtime import Runtime, attach
from broker_api.tracing import register_tracing

if TYPE_CHECKING:
    from broker_common.services import ApiServices
    from broker_common.settings import Settings


def create_app(settings: Settings, services: ApiServices) -> Flask:
    """Make the application; nothing is connected to and no environment variable of ours is read."""
    app = Flask("broker_api", static_folder=None)
    app.config.update(MAX_CONTENT_LENGTH=MAX_BODY_BYTES, PROVIDE_AUTOMATIC_OPTIONS=False)
    # A redirect to a path's tidier form would be an answer that no call has.
    app.url_map.merge_slashes = False
    attach(
        app,
        Runtime(settings=settings, services=services, threads=ThreadBudget(settings.api_threads, services.clock)),
    )
    register_tracing(app)
    register_metrics(app)
    register_error_handlers(app)
    base_path = settings.api_base_path
    api = make_api(app, base_path)
    api.register_blueprint(tracks.blueprint, url_prefix=base_path)
    api.register_blueprint(admin.blueprint, url_prefix=f"{base_path}/admin")
    api.register_blueprint(jobs.blueprint, url_prefix=f"{base_path}/admin")
    api.register_blueprint(health.blueprint)
    return app
