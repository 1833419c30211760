"""The entry point of the console's WSGI server, loaded after the fork. Only it reads the environment."""

from __future__ import annotations

import os

from prometheus_client import CollectorRegistry

from broker_api.bounds import CONSOLE_CALL_SEC, CONSOLE_THREADS
from broker_api.console.app import create_console
from broker_common.adapters.broker_http import BrokerHttp
from broker_common.adapters.system_clock import SystemClock
from broker_common.logs import configure_logging
from broker_common.settings import Process
from broker_common.startup import read_settings
from broker_common.traces import start_traces

_CONNECT_SEC = 2.0
"""A person waits."""

_settings = read_settings(os.environ, process=Process.CONSOLE)
_traces = start_traces(_settings, Process.CONSOLE)
configure_logging(level=_settings.log_level, fmt=_settings.log_format, fields=_traces.log_fields)
app = create_console(
    _settings,
    BrokerHttp(_settings.broker_api_url, connections=CONSOLE_THREADS, timeout_sec=(_CONNECT_SEC, CONSOLE_CALL_SEC)),
    SystemClock(),
    registry=CollectorRegistry(),
    traces=_traces,
)
