"""What a request finds in its process: settings, services, tokens, the threads' budget, and whether it must stop."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

from flask import current_app

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flask import Flask

    from broker_api.threads import ThreadBudget
    from broker_common.services import ApiServices
    from broker_common.settings import Settings
    from broker_common.tokens import TokenSource

_EXTENSION = "sandbox_broker"


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """One application's surroundings; made once, never changed, but for `draining`."""

    settings: Settings
    services: ApiServices
    threads: ThreadBudget
    tokens: Sequence[TokenSource]
    draining: threading.Event = field(default_factory=threading.Event)
    """Set once the process has been told to stop."""


def attach(app: Flask, runtime: Runtime) -> None:
    """Give an application its surroundings."""
    app.extensions[_EXTENSION] = runtime


def runtime_of(app: Flask) -> Runtime:
    """Return an application's surroundings."""
    return cast("Runtime", app.extensions[_EXTENSION])


def runtime() -> Runtime:
    """Return the surroundings of the present request."""
    return cast("Runtime", current_app.extensions[_EXTENSION])


def services() -> ApiServices:
    """Return the services that the present request calls."""
    return runtime().services
