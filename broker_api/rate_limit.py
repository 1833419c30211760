"""Limits the requests of each caller. They are counted by track, by operator, or by address without a valid token.

Health checks and metrics are exempt, so that monitoring works in the worst moment.
"""

from __future__ import annotations

import ipaddress
import math
from typing import TYPE_CHECKING

from werkzeug.middleware.proxy_fix import ProxyFix

from broker_api.auth import may_act_for, principal
from broker_api.caller import presented_track_id
from broker_api.current import current
from broker_api.runtime import runtime_of, services
from broker_common.core.errors import RateLimitExceeded
from broker_common.core.principals import Role
from broker_common.core.telemetry import RateChecked, RateOutcome

if TYPE_CHECKING:
    from flask import Flask

    from broker_api.answer import Answer

EXEMPT = frozenset({"/healthz", "/readyz", "/metrics"})
HEADERS = ("RateLimit-Policy", "RateLimit", "X-RateLimit-Limit", "X-RateLimit-Remaining", "X-RateLimit-Reset")
"""The first two come from draft-ietf-httpapi-ratelimit-headers-10, and are structured fields (RFC 9651)."""
_IPV6_NETWORK_BITS = 64
"""One subscriber commonly has a network of this size, so all its addresses count as one caller."""


def register_rate_limit(app: Flask, *, trusted_proxies: int) -> None:
    """Limit the requests of `app`. Register this after tracing, and before anything that may refuse a request.

    Behind `trusted_proxies` proxies, of which each adds one value, the caller's address is taken from
    `X-Forwarded-For`, and whether it used HTTPS from `X-Forwarded-Proto`.
    """
    if trusted_proxies:
        app.wsgi_app = ProxyFix(  # type: ignore[method-assign] # as Flask's documentation does it
            app.wsgi_app, x_for=trusted_proxies, x_proto=trusted_proxies, x_host=0, x_port=0, x_prefix=0
        )
    app.before_request(_take)
    settings = runtime_of(app).settings
    # The bucket fills in this time. The reset of the draft is when there is more, the other reset when it is full.
    window = math.ceil(settings.rate_limit_burst / settings.rate_limit_rps)
    policy = f'"default";q={settings.rate_limit_burst};w={window}'

    @app.after_request
    def show(response: Answer) -> Answer:
        allowance = current().allowance
        if allowance is not None:
            more_after = allowance.retry_after if allowance.is_exceeded else min(1, allowance.reset_after)
            values = (
                policy,
                f'"default";r={allowance.remaining};t={more_after}',
                str(allowance.limit),
                str(allowance.remaining),
                str(allowance.reset_after),
            )
            response.more_headers = tuple(zip(HEADERS, values, strict=True))
        return response


def _take() -> None:
    request = current()
    rule = request.url_rule
    if rule is not None and rule.rule in EXEMPT:
        return
    allowance = services().rate_limit.take(_key())
    if allowance is None:
        services().recorder.record(RateChecked(outcome=RateOutcome.UNCHECKED))
        return
    request.allowance = allowance
    if allowance.is_exceeded:
        services().recorder.record(RateChecked(outcome=RateOutcome.LIMITED))
        raise RateLimitExceeded("too many requests", retry_after=allowance.retry_after)


def _key() -> str:
    track_id = presented_track_id()
    if track_id and may_act_for(track_id):
        return f"track:{track_id}"
    found = principal()
    # Many tracks may share a token of the role `track`, so it does not identify the caller.
    if found is not None and found.may(Role.VIEWER):
        return f"principal:{found.name}"
    return f"address:{_address()}"


def _address() -> str:
    try:
        address = ipaddress.ip_address(current().remote_addr or "")
    except ValueError:
        return "unknown"
    if address.version == 4:  # noqa: PLR2004 - the name of the protocol
        return str(address)
    return str(ipaddress.ip_network((address, _IPV6_NETWORK_BITS), strict=False))
