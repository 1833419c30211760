# ruff: noqa: INP001 - gunicorn reads this file by its path; it is no module
"""Gunicorn's configuration for the console: `gunicorn -c deploy/gunicorn-console.conf.py broker_api.console.wsgi:app`.

Settings come from the environment (`broker_common/settings.py`). Gunicorn's own variables are not needed.
This file checks the settings before gunicorn forks the worker. A fault ends gunicorn with exit code 2.
"""

from __future__ import annotations

import os

# There is one worker process, so its metrics are all metrics: they need no directory. prometheus_client reads this
# variable when it is imported, and the imports below import it.
os.environ.pop("PROMETHEUS_MULTIPROC_DIR", None)

from broker_api.bounds import CONSOLE_ANSWER_SEC, CONSOLE_THREADS
from broker_api.event_loop import EventLoop
from broker_api.serving import common_settings
from broker_common.settings import Process
from broker_common.startup import read_settings

_settings = read_settings(os.environ, process=Process.CONSOLE)

globals().update(common_settings(_settings))
bind = f"{_settings.console_bind}:{_settings.console_port}"
# More processes would not share the last known state, and without CONSOLE_SECRET_KEY not the sessions. To serve more
# people, start more instances.
workers = 1
worker_class = EventLoop
threads = CONSOLE_THREADS
# From SIGTERM to SIGKILL: the longest request that may be running.
graceful_timeout = CONSOLE_ANSWER_SEC
