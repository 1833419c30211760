"""The API of one process whose pool is in memory, for tests with a real server. `POST /free` adds a free sandbox."""

from __future__ import annotations

import os
from itertools import count

from broker_api.app import create_app
from broker_common.adapters.system_clock import SystemClock
from broker_common.settings import Process, Settings
from tests.api.harness import FakeQueue, FakeRateLimit, make_services
from tests.fakes import MemoryStore, RecordingRecorder, make_sandbox

_clock = SystemClock()
_settings = Settings.from_env(os.environ, process=Process.API)
_store = MemoryStore(_clock)
_numbers = count()
app = create_app(_settings, make_services(_store, _clock, FakeQueue(), RecordingRecorder(), _settings, FakeRateLimit()))


@app.post("/free")
def free() -> tuple[str, int]:
    """Add a free sandbox."""
    _store.seed(make_sandbox(f"sbx-{next(_numbers)}"))
    return "", 204
