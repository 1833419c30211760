"""The worker with a planted bug: `celery -A tests.long.history.planted_celery worker`, the bug in `PLANTED_BUG`.

Only the use case that the bug belongs to gets the broken store.
"""

from __future__ import annotations

import os
from copy import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from broker_common import services
from tests.long.history.planted import Bug, DynamoTable, break_store

if TYPE_CHECKING:
    from broker_common.services import WorkerServices
    from broker_common.settings import Settings

_build_sound = services.build_worker_services


def _build_broken(settings: Settings, *, tasks: int) -> WorkerServices:
    sound, bug = _build_sound(settings, tasks=tasks), Bug(os.environ["PLANTED_BUG"])
    store: Any = sound.store
    broken: Any = copy(getattr(sound, bug.place))
    broken._store = break_store(bug, store, DynamoTable(store))
    changes: dict[str, Any] = {bug.place.value: broken}
    return replace(sound, **changes)


with patch.object(services, "build_worker_services", _build_broken):
    from broker_worker.celery_app import app as app  # noqa: PLC0414 - what `celery -A` looks for
