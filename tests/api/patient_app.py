"""The API as it is deployed, but a process leaves a connection to another one until that one takes it.

On a busy machine a process may have no turn for so long that it would count as one that hangs.
"""

from __future__ import annotations

from broker_api import sharing
from broker_api.wsgi import app as app  # noqa: PLC0414 - what gunicorn looks for

sharing._IN_VAIN_SEC = 3600
