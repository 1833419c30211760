"""The objects that all requests of an application share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from broker_api.current import current

if TYPE_CHECKING:
    import threading
    from collections.abc import Sequence

    from flask import Flask

    from broker_common.adapters.oidc_tokens import AccessTokens
    from broker_common.services import ApiServices
    from broker_common.settings import Settings
    from broker_common.tokens import TokenSource

_EXTENSION = "sandbox_broker"


@dataclass(slots=True, kw_only=True)
class Runtime:
    """The shared objects of one application. Only `draining` ever changes."""

    settings: Settings
    services: ApiServices
    job_waits: threading.BoundedSemaphore
    """One for each request that may keep its thread until a job has ended."""
    line_waits: threading.BoundedSemaphore
    """One for each request that may keep its thread while its track waits in line."""
    tokens: Sequence[TokenSource]
    access_tokens: AccessTokens | None
    """Checks the tokens of the issuer, if there is one."""
    draining: bool = False
    """Whether the process must stop. The handler of a signal sets this, so it must not need a lock."""


def attach(app: Flask, runtime: Runtime) -> None:
    """Store the runtime of an application."""
    app.extensions[_EXTENSION] = runtime


def runtime_of(app: Flask) -> Runtime:
    """Return the runtime of an application."""
    found: Runtime = app.extensions[_EXTENSION]
    return found


def runtime() -> Runtime:
    """Return the runtime of the current request."""
    return runtime_of(current().app)


def services() -> ApiServices:
    """Return the services of the current request."""
    return runtime().services
