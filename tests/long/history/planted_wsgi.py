"""The API with a planted bug: `gunicorn … tests.long.history.planted_wsgi:app`, the bug in `PLANTED_BUG`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from broker_api.startup import build_app
from broker_common import services
from broker_common.settings import Process
from broker_common.startup import read_settings
from tests.long.history.planted import Bug, DynamoTable, break_store

if TYPE_CHECKING:
    from broker_common.core.store import SandboxStore

_sound_store = services._store


def _broken_store(*args: Any, **options: Any) -> SandboxStore:
    store = _sound_store(*args, **options)
    return break_store(Bug(os.environ["PLANTED_BUG"]), store, DynamoTable(store))


with patch.object(services, "_store", _broken_store):
    app = build_app(read_settings(os.environ, process=Process.API))
