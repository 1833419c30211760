"""Logging: one JSON object a line on stdout, from our own code and from every library, or text for a terminal.

Our own lines (`structlog.get_logger("broker")`) do not pass through the standard library's logging, which would take
most of their time. Both ways end in the same processors, so all lines look alike.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from typing import TYPE_CHECKING

import orjson
import structlog
from structlog import DropEvent
from structlog.contextvars import merge_contextvars
from structlog.dev import ConsoleRenderer
from structlog.processors import EventRenamer, TimeStamper, format_exc_info
from structlog.stdlib import ProcessorFormatter, add_log_level, add_logger_name

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from structlog.typing import EventDict, Processor

_LEADING = ("timestamp", "level", "logger", "message")
# Frameworks give these loggers handlers of their own. Here they lose them, so that their lines reach the root logger.
_FRAMEWORKS = (
    "gunicorn",
    "gunicorn.error",
    "gunicorn.access",
    "celery",
    "celery.task",
    "flask.app",
    "werkzeug",
)
# At DEBUG these write request bodies and the signature's headers, with an AWS session token. At INFO every process says
# where it found credentials.
_TALKATIVE = ("boto3", "botocore", "urllib3", "kombu", "amqp")
# `json.dumps` would make an encoder for each line: as much work as to encode it.
_to_ascii = json.JSONEncoder(default=repr, separators=(",", ":")).encode
# A logger that was used keeps this list, so `configure_logging` changes the list, also its level.
_processors: list[Processor] = []


def configure_logging(*, level: str, fmt: str, fields: Sequence[Processor] = ()) -> None:
    """Send all log lines of this process to stdout, from `level` on, as `json` or `text`.

    Each line has the bound context variables (`request_id`, `principal`, `track_id`, ...). Both formats escape control
    characters, so that no client's text can break or forge a line. Text has colours on a terminal, or if `FORCE_COLOR`
    is set (for a terminal behind a pipe), unless `NO_COLOR` is set. `fields` add more to each line. May
    be called again.
    """
    line = _line(fmt, fields)
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(
        ProcessorFormatter(
            processors=[_join_lines, add_logger_name, ProcessorFormatter.remove_processors_meta, *line],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for name in _FRAMEWORKS:
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))
    logging.captureWarnings(capture=True)
    _processors[:] = [_from(root.level), add_logger_name, *line]
    structlog.configure(
        processors=_processors,
        wrapper_class=structlog.make_filtering_bound_logger(logging.NOTSET),
        logger_factory=_Stdout,
        cache_logger_on_first_use=True,
    )


class _Stdout:
    """Writes each line of ours to stdout in one piece.

    A line that cannot be written goes to stderr, and the caller goes on: as with the standard library's handlers.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def _write(self, line: str) -> None:
        try:
            sys.stdout.write(f"{line}\n")
            sys.stdout.flush()
        except Exception:  # noqa: BLE001 - no error of the stream may fail what logs
            _report(line)

    debug = info = warning = error = critical = _write


def _line(fmt: str, fields: Sequence[Processor]) -> list[Processor]:
    """Return the processors that make a line of an event, its level and its logger's name."""
    # The reader of text is at this machine: local time is enough.
    stamp = TimeStamper(fmt="%H:%M:%S", utc=False) if fmt == "text" else TimeStamper(fmt="iso", utc=True)
    render: list[Processor]
    if fmt == "json":
        render = [EventRenamer("message"), _safely(lambda _logger, _method, event: _to_json(_in_order(event)))]
    else:
        to_text = ConsoleRenderer(colors=_has_colours())
        render = [_safely(lambda logger, method, event: to_text(logger, method, _escape(event)))]
    return [merge_contextvars, *fields, add_log_level, stamp, format_exc_info, *render]


def _safely(render: Callable[[object, str, EventDict], str]) -> Processor:
    """Return a processor that renders a line. If a value cannot be rendered, the line has only the strings."""

    def render_safely(logger: object, method: str, event: EventDict) -> str:
        try:
            return render(logger, method, event)
        except Exception:  # noqa: BLE001 - no value may fail what logs it
            texts = {name: value for name, value in event.items() if isinstance(value, str)}
            line = render(logger, method, texts)
            _report(line)
            return line

    return render_safely


def _report(line: str) -> None:
    """Write the current exception and the line that it concerns to stderr, as the standard library's handlers do."""
    logging.Handler().handleError(logging.makeLogRecord({"msg": line}))


def _from(level: int) -> Processor:
    """Return the processor that drops the events below `level`."""
    dropped = {name.lower() for name, number in logging.getLevelNamesMapping().items() if number < level}

    def drop(_logger: object, method: str, event: EventDict) -> EventDict:
        if method in dropped:
            raise DropEvent
        return event

    return drop


def _has_colours() -> bool:
    """See https://no-color.org and https://force-color.org."""
    if os.environ.get("NO_COLOR"):
        return False
    return bool(os.environ.get("FORCE_COLOR")) or sys.stdout.isatty()


def _join_lines(_logger: object, _method: str, event: EventDict) -> EventDict:
    """Join the lines of a library's message."""
    event["event"] = " ".join(line.strip() for line in event["event"].splitlines())
    return event


def _in_order(event: EventDict) -> EventDict:
    """Put the fields of every line first."""
    return {**{name: event[name] for name in _LEADING if name in event}, **event}


def _to_json(event: EventDict) -> str:
    """Return JSON of printable ASCII characters, so that no text breaks the line."""
    try:
        line = orjson.dumps(event, default=repr).decode()
    except TypeError:  # a lone surrogate, for example
        return _to_ascii(event)
    # orjson takes a tenth of the time, but leaves all but the first 32 characters as they are.
    return line if line.isascii() and line.isprintable() else _to_ascii(event)


def _escape(event: EventDict) -> EventDict:
    """Escape unprintable characters in strings; other values are written by their repr, which escapes them, too."""
    escaped = {name: _escaped(value) if isinstance(value, str) else value for name, value in event.items()}
    if isinstance(event.get("exception"), str):
        # Indented, so that no part of an error's text looks like a log line.
        escaped["exception"] = "\n".join(f"  | {_escaped(line)}" for line in event["exception"].split("\n"))
    return escaped


def _escaped(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)
