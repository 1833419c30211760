"""What a WSGI server loads, after it has forked: the only module here that asks the environment for settings."""

from __future__ import annotations

import os

from broker_api.startup import build_app
from broker_common.settings import Process
from broker_common.startup import read_settings

app = build_app(read_settings(os.environ, process=Process.API))
