"""Starts one process of the API, after the fork."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry

from broker_api.app import create_app
from broker_api.runtime import runtime_of
from broker_common.logs import configure_logging
from broker_common.services import build_api_services

if TYPE_CHECKING:
    from flask import Flask

    from broker_common.settings import Settings


def build_app(settings: Settings) -> Flask:
    """Configure logging, and return the application with its clients. Call it after the fork."""
    configure_logging(level=settings.log_level, fmt=settings.log_format)
    registry = CollectorRegistry()
    app = create_app(settings, build_api_services(settings, registry=registry), registry=registry)
    if (access_tokens := runtime_of(app).access_tokens) is not None:
        access_tokens.prepare()
    return app
