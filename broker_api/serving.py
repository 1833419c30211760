"""What the gunicorn configurations of the API and of the console share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gunicorn import glogging  # type: ignore[import-untyped] # it ships no types

from broker_common.logs import configure_logging

if TYPE_CHECKING:
    from broker_common.settings import Settings


def common_settings(settings: Settings) -> dict[str, Any]:
    """Return gunicorn's settings that both processes have: what a request may hold, whom to trust, how to log."""
    return {
        # Longer than load balancers keep an idle connection (60 s is common), so that they close it, not we.
        "keepalive": 75,
        # For each process. It is less if the limit of file descriptors does not allow so many.
        "worker_connections": 1000,
        # Answers are built in memory, and the event loop sends them.
        "sendfile": False,
        # By default gunicorn takes a parser in C where one is installed. The API's own reader finds the end of a
        # request as this one does.
        "http_parser": "python",
        "limit_request_line": 4094,
        "limit_request_fields": 64,
        "limit_request_field_size": 8190,
        # Gunicorn does not take the caller's address or the path from headers of any sender. With a header
        # `SCRIPT_NAME` a caller could get around a proxy's rules. The API itself reads what trusted proxies add
        # (TRUSTED_PROXIES).
        "forwarded_allow_ips": "",
        "forwarder_headers": "",
        "secure_scheme_headers": {},
        # In WSGI a header with an underscore has the same name as one with a hyphen.
        "header_map": "drop",
        "logger_class": _logger_of(settings),
        "loglevel": settings.log_level.lower(),
        # Otherwise gunicorn makes a socket in the home directory.
        "control_socket_disable": True,
    }


def _logger_of(settings: Settings) -> type[glogging.Logger]:
    class Logger(glogging.Logger):  # type: ignore[misc] # gunicorn ships no types
        """gunicorn's logger, in the log format of the broker."""

        def setup(self, cfg: Any) -> None:  # noqa: ANN401 - gunicorn's configuration
            """Send gunicorn's lines to the log handler of the process."""
            super().setup(cfg)
            configure_logging(level=settings.log_level, fmt=settings.log_format)

    return Logger
