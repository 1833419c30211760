"""Starts one process of the API, after the fork."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry

from broker_api.app import create_app
from broker_api.runtime import runtime_of
from broker_common.logs import configure_logging
from broker_common.services import build_api_services
from broker_common.settings import Process
from broker_common.traces import start_traces

if TYPE_CHECKING:
    from flask import Flask

    from broker_common.settings import Settings


def build_app(settings: Settings) -> Flask:
    """Configure logging and traces, and return the application with its clients. Call it after the fork."""
    traces = start_traces(settings, Process.API)
    configure_logging(level=settings.log_level, fmt=settings.log_format, fields=traces.log_fields)
    registry = CollectorRegistry()
    services = build_api_services(settings, registry=registry, traces=traces)
    app = create_app(settings, services, registry=registry, traces=traces)
    if (access_tokens := runtime_of(app).access_tokens) is not None:
        access_tokens.prepare()
    return app
