"""The API with the textbook broker behind it: `gunicorn … tests.long.bench.textbook_wsgi:app`."""

from __future__ import annotations

import os
from unittest.mock import patch

from broker_api.startup import build_app
from broker_common import services
from broker_common.settings import Process
from broker_common.startup import read_settings
from tests.long.bench.textbook import TextbookAllocator

with patch.object(services, "Allocator", TextbookAllocator):
    app = build_app(read_settings(os.environ, process=Process.API))
