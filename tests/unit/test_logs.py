"""What a log line looks like, and what cannot break one."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import structlog
from structlog.contextvars import bound_contextvars

from broker_common.logs import configure_logging

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import TextIO

FORGED = 'x\n{"level": "error"}\r\x1b[31m\u2028\x00'


# Four processes, of four threads each, write lines of both ways to one pipe.
CROWD = """
import contextlib, logging, os, sys, threading, structlog
from broker_common.logs import configure_logging

def write():
    for _ in range(50):
        structlog.get_logger("broker").info("ours", text="x" * 200)
        logging.getLogger("library").info("theirs")

sys.setswitchinterval(1e-6)
configure_logging(level="INFO", fmt="json")
for _ in range(2):
    os.fork()
threads = [threading.Thread(target=write) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
with contextlib.suppress(ChildProcessError):  # when all children of this process have ended
    while True:
        os.wait()
"""


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    """Leave logging as it was: it belongs to the whole process."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(capture=False)
    structlog.reset_defaults()


def read(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_a_line_is_one_json_object_with_its_fields_and_the_context(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(level="INFO", fmt="json")
    with bound_contextvars(request_id="req-1", track_id="track-1"):
        structlog.get_logger("broker").info("Allocate ended", action="allocate", latency_ms=2.5)
    (line,) = read(capsys)
    assert list(line)[:4] == ["timestamp", "level", "logger", "message"]
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "level": "info",
        "logger": "broker",
        "message": "Allocate ended",
        "action": "allocate",
        "latency_ms": 2.5,
        "request_id": "req-1",
        "track_id": "track-1",
    }


@pytest.mark.parametrize("name", ["gunicorn.error", "gunicorn.access", "celery", "werkzeug", "flask.app", "anything"])
def test_libraries_log_in_the_same_format_once(capsys: pytest.CaptureFixture[str], name: str) -> None:
    logger = logging.getLogger(name)
    own = logging.StreamHandler()
    logger.addHandler(own)
    configure_logging(level="INFO", fmt="json")
    with bound_contextvars(request_id="req-1"):
        logger.warning("%s of %s", 1, 2)
    logger.removeHandler(own)
    (line,) = read(capsys)
    assert (line["logger"], line["level"], line["message"], line["request_id"]) == (name, "warning", "1 of 2", "req-1")


@pytest.mark.parametrize("fmt", ["json", "text"])
def test_a_client_s_text_never_breaks_a_line(capsys: pytest.CaptureFixture[str], fmt: str) -> None:
    configure_logging(level="INFO", fmt=fmt)
    structlog.get_logger("broker").info(FORGED, track_id=FORGED, details={"key": FORGED})
    logging.getLogger("library").info("said %s", FORGED)
    written = capsys.readouterr().out
    assert len(written.splitlines()) == 2
    assert not any(character in written for character in "\r\x1b\x00\u2028")


@pytest.mark.parametrize("text", ["plain", "\x7f", "Zoë", "\u2028", "\ud800"])
def test_every_text_is_written_in_printable_ascii_and_read_as_it_was(
    capsys: pytest.CaptureFixture[str], text: str
) -> None:
    configure_logging(level="INFO", fmt="json")
    structlog.get_logger("broker").info("ours", details={"key": text})
    written = capsys.readouterr().out
    assert written.rstrip("\n").isprintable()
    assert written.isascii()
    assert json.loads(written)["details"] == {"key": text}


@pytest.mark.parametrize("fmt", ["json", "text"])
def test_a_traceback_s_text_cannot_pass_for_a_line(capsys: pytest.CaptureFixture[str], fmt: str) -> None:
    def fail() -> None:
        raise ValueError(FORGED)

    configure_logging(level="INFO", fmt=fmt)
    try:
        fail()
    except ValueError:
        structlog.get_logger("broker").exception("Something failed")
    first, *rest = capsys.readouterr().out.splitlines()
    assert "Something failed" in first
    if fmt == "json":
        assert "ValueError" in json.loads(first)["exception"]
    assert all(line.startswith("  | ") for line in rest)
    assert bool(rest) == (fmt == "text")


@pytest.mark.parametrize(
    ("environment", "coloured"),
    [({}, False), ({"FORCE_COLOR": "1"}, True), ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, False)],
)
def test_text_behind_a_pipe_has_colours_only_where_they_are_asked_for_and_not_forbidden(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    environment: dict[str, str],
    coloured: bool,
) -> None:
    for name in ("FORCE_COLOR", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    configure_logging(level="INFO", fmt="text")
    structlog.get_logger("broker").info("Allocate ended")
    assert ("\x1b" in capsys.readouterr().out) is coloured


@pytest.mark.parametrize("fmt", ["json", "text"])
def test_a_library_s_message_of_several_lines_is_made_one(capsys: pytest.CaptureFixture[str], fmt: str) -> None:
    configure_logging(level="INFO", fmt=fmt)
    logging.getLogger("library").warning("No answer.\nTrying again in %s s\n", 2)
    written = capsys.readouterr().out
    assert "No answer. Trying again in 2 s" in written
    assert "\\n" not in written


def test_text_keeps_letters(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(level="INFO", fmt="text")
    structlog.get_logger("broker").info("Grüße", track_id="läuft")
    written = capsys.readouterr().out
    assert "Grüße" in written
    assert "track_id=läuft" in written


def test_what_is_below_the_level_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(level="WARNING", fmt="json")
    structlog.get_logger("broker").info("low")
    logging.getLogger("library").info("low")
    structlog.get_logger("broker").warning("high")
    assert [line["message"] for line in read(capsys)] == ["high"]


def test_libraries_that_would_write_credentials_do_not_debug(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(level="DEBUG", fmt="json")
    logging.getLogger("botocore.auth").debug("x-amz-security-token:secret")
    logging.getLogger("library").debug("shown")
    assert [line["message"] for line in read(capsys)] == ["shown"]


def test_it_may_be_called_again(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(level="INFO", fmt="text")
    configure_logging(level="INFO", fmt="json")
    logging.getLogger("library").info("once")
    assert [line["message"] for line in read(capsys)] == ["once"]


def test_a_logger_that_was_used_follows_when_it_is_called_again(capsys: pytest.CaptureFixture[str]) -> None:
    log = structlog.get_logger("broker")
    configure_logging(level="WARNING", fmt="text")
    log.info("low")
    log.warning("as text")
    assert "as text" in capsys.readouterr().out
    configure_logging(level="INFO", fmt="json")
    log.info("as json")
    assert [line["message"] for line in read(capsys)] == ["as json"]


@pytest.mark.parametrize("fmt", ["json", "text"])
def test_our_lines_and_those_of_libraries_are_written_alike(capsys: pytest.CaptureFixture[str], fmt: str) -> None:
    def fail() -> None:
        raise ValueError(FORGED)

    configure_logging(level="INFO", fmt=fmt)
    with bound_contextvars(request_id="req-1", track_id=FORGED):
        try:
            fail()
        except ValueError:
            structlog.get_logger("one").exception("Grüße %s")
            ours = capsys.readouterr().out
            logging.getLogger("one").exception("Grüße %s")
            theirs = capsys.readouterr().out
    assert without_time(ours, fmt) == without_time(theirs, fmt)


def without_time(written: str, fmt: str) -> str:
    return written.partition("," if fmt == "json" else " ")[2]


def test_a_line_goes_to_the_stdout_of_its_moment() -> None:
    configure_logging(level="INFO", fmt="json")
    with contextlib.redirect_stdout(io.StringIO()) as replaced:
        structlog.get_logger("broker").info("there")
    assert json.loads(replaced.getvalue())["message"] == "there"


def closed() -> TextIO:
    stream = io.StringIO()
    stream.close()
    return stream


def unread() -> TextIO:
    reading, writing = os.pipe()
    os.close(reading)
    return os.fdopen(writing, "w", encoding="utf-8")


@pytest.mark.parametrize("stdout", [closed, unread, lambda: None], ids=["closed", "without a reader", "none"])
def test_a_line_that_cannot_be_written_fails_no_caller_and_goes_to_stderr(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, stdout: Callable[[], TextIO | None]
) -> None:
    configure_logging(level="INFO", fmt="json")
    stream = stdout()
    monkeypatch.setattr(sys, "stdout", stream)
    structlog.get_logger("broker").info("Allocate ended")
    monkeypatch.undo()
    with contextlib.suppress(BrokenPipeError, AttributeError):
        stream.close()  # type: ignore[union-attr]
    assert "Allocate ended" in capsys.readouterr().err


class Unwritable:
    def __repr__(self) -> str:
        raise RuntimeError("this object has no text")


def circular() -> dict[str, Any]:
    found: dict[str, Any] = {}
    found["itself"] = found
    return found


@pytest.mark.parametrize("fmt", ["json", "text"])
@pytest.mark.parametrize("value", [Unwritable(), {"inner": Unwritable()}], ids=["field", "inside"])
def test_a_value_without_a_text_fails_no_caller_and_the_rest_of_the_line_is_written(
    capsys: pytest.CaptureFixture[str], fmt: str, value: object
) -> None:
    configure_logging(level="INFO", fmt=fmt)
    structlog.get_logger("broker").info("Allocate ended", details=value)
    written = capsys.readouterr()
    assert len(written.out.splitlines()) == 1
    assert all(part in written.out for part in ("Allocate ended", "info", "broker"))
    assert "this object has no text" in written.err


@pytest.mark.parametrize("value", [circular(), {(1, 2): 3}], ids=["circular", "key"])
def test_what_json_cannot_hold_fails_no_caller(capsys: pytest.CaptureFixture[str], value: object) -> None:
    configure_logging(level="INFO", fmt="json")
    structlog.get_logger("broker").info("Allocate ended", details=value)
    written = capsys.readouterr()
    assert json.loads(written.out)["message"] == "Allocate ended"
    assert "Allocate ended" in written.err


@pytest.mark.parametrize("unbuffered", ["", "1"], ids=["buffered", "unbuffered"])
def test_lines_of_threads_and_of_forked_processes_do_not_mix(unbuffered: str) -> None:
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    ended = subprocess.run([sys.executable, "-c", CROWD], env=environment, capture_output=True, timeout=60, check=True)
    messages = [json.loads(line)["message"] for line in ended.stdout.splitlines()]
    assert messages.count("ours") == messages.count("theirs") == 4 * 4 * 50
