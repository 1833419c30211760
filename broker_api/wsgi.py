"""The entry point of the WSGI server, loaded after the fork. Only this module reads settings from the environment."""

from __future__ import annotations

import os

from broker_api.startup import build_app
from broker_common.settings import Process
from broker_common.startup import read_settings

app = build_app(read_settings(os.environ, process=Process.API))
