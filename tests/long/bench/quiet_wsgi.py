"""The API without metrics and log lines, to be compared with the real one: `gunicorn … tests.long.bench.quiet_wsgi:app`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING
from unittest.mock import patch

from broker_api import app as api
from broker_common import services
from broker_common.adapters.recorders import Recorders
from broker_common.logs import configure_logging
from broker_common.settings import Process
from broker_common.startup import read_settings

if TYPE_CHECKING:
    from flask import Flask

    from broker_common.settings import Settings


def _build(settings: Settings) -> Flask:
    configure_logging(level="ERROR", fmt=settings.log_format)
    with (
        patch.object(services, "Recorders", lambda _: Recorders([])),
        patch.object(api, "register_metrics"),
        # It describes /metrics, which this application does not serve.
        patch.object(api, "describe_pages"),
    ):
        return api.create_app(settings, services.build_api_services(settings))


app = _build(read_settings(os.environ, process=Process.API))
