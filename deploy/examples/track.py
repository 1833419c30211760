#!/usr/bin/env python3
"""A client of the Sandbox Broker in one file to copy. It needs requests, and Python 3.10 or newer.

In a program:

    with Broker("https://broker.example.com/v1", token).sandbox("one-id-per-lab", wait=600) as sandbox:
        use(sandbox.external_id)

As a lab's script: `track.py setup` gets a sandbox, `track.py extend SECONDS` keeps all of the track's for so long from
now, and `track.py cleanup` gives them back. Each may be repeated. The environment and the exit codes are those of
track.sh.
"""

from __future__ import annotations

import json
import logging
import os
import random
import re
import signal
import sys
import threading
import time
from contextlib import contextmanager, suppress
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import quote

import requests
from requests.exceptions import (
    ChunkedEncodingError,
    ConnectionError,  # noqa: A004 - of requests, not of Python
    ContentDecodingError,
    Timeout,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

EX_USAGE, EX_UNAVAILABLE, EX_CANTCREAT, EX_TEMPFAIL, EX_NOPERM = 64, 69, 73, 75, 77
_REQUIRED = ("BROKER_API_URL", "BROKER_TOKEN", "TRACK_ID")
_OPTIONAL = ("LAB_NAME", "NAME_PREFIX", "RESERVATION_ID")
_LATER = {408, 429, 500, 502, 503, 504}
_HELD_SEC = 30
_LOOK_SEC = 60
_LOG = logging.getLogger("sandbox_broker")


class BrokerError(Exception):
    """The broker's answer is not what was asked for.

    `code`, `message`, `details` and `request_id` are the broker's, and empty if it gave none. `status` is HTTP's. It is
    None if there was no answer.
    """

    code = ""

    def __init__(self, message: str, *, status: int | None = None, error: Mapping[str, Any] | None = None) -> None:
        said = error or {}
        self.message = message
        self.status = status
        self.code = str(said.get("code", self.code))
        self.details: dict[str, Any] = said.get("details") or {}
        self.request_id = str(said.get("request_id", ""))
        super().__init__(message)

    def __str__(self) -> str:
        named = " ".join(str(each) for each in (self.status, self.code) if each)
        request = f" (request {self.request_id})" if self.request_id else ""
        return f"{named}: {self.message}{request}" if named else self.message


class NotTheBroker(BrokerError):
    """Something else answered. The URL may be wrong."""


class TryLater(BrokerError):
    """The call was repeated until its time was over. `code` and `status` are those of the last answer."""


class NoSandboxesAvailable(TryLater):
    """No sandbox came free in time. After a wait in line, `details` has the last `position`."""

    code = "NO_SANDBOXES_AVAILABLE"


class InvalidRequest(BrokerError):
    """The request is malformed. `details` has the faults by field."""

    code = "VALIDATION_ERROR"


class Unauthorized(BrokerError):
    """The token is unknown or expired."""

    code = "UNAUTHORIZED"


class Forbidden(BrokerError):
    """The token is not for this track."""

    code = "FORBIDDEN"


class ReservationNotFound(BrokerError):
    """There is no such reservation."""

    code = "RESERVATION_NOT_FOUND"


class ReservationNotOpen(BrokerError):
    """The reservation is not open. `details` has `opens_at`."""

    code = "RESERVATION_NOT_OPEN"


class DurationLimit(BrokerError):
    """The lease may not last so long. `details` has the latest end as `latest_expires_at`."""

    code = "DURATION_LIMIT"


class LeaseLost(BrokerError):
    """Base of the errors that say that the track no longer holds this lease."""


class AllocationEnded(LeaseLost):
    """The lease has ended."""

    code = "ALLOCATION_ENDED"


class LeaseMismatch(LeaseLost):
    """The sandbox was allocated again."""

    code = "LEASE_MISMATCH"


class NotSandboxOwner(LeaseLost):
    """Another track holds the sandbox."""

    code = "NOT_SANDBOX_OWNER"


class SandboxNotFound(LeaseLost):
    """The sandbox was removed from the pool."""

    code = "SANDBOX_NOT_FOUND"


_KINDS: dict[str, type[BrokerError]] = {
    kind.code: kind
    for kind in (
        *(InvalidRequest, Unauthorized, Forbidden, NoSandboxesAvailable, ReservationNotFound, ReservationNotOpen),
        *(DurationLimit, AllocationEnded, LeaseMismatch, NotSandboxOwner, SandboxNotFound),
    )
}


class Broker:
    """The API at `url`, which ends with /v1. Threads may share it.

    A call that gets no final answer is repeated as it was for `patience` seconds: the broker gives a repetition the
    answer of the first one.
    """

    def __init__(self, url: str, token: str, *, patience: float = 60) -> None:
        self._url = url.rstrip("/")
        self._token = token
        self._patience = patience

    @contextmanager
    def sandbox(
        self,
        track_id: str,
        *,
        wait: float = 0,
        duration: int | None = None,
        keep: float | None = None,
        lab: str = "",
        prefix: str = "",
        reservation_id: str = "",
        key: str = "",
    ) -> Iterator[Sandbox]:
        """Hold a sandbox during the block. Give it back at the end, also if the block raises.

        All parameters but `keep` are those of `allocate`. With `keep`, a thread has the lease last at least `keep` / 2
        seconds longer than now until the block ends. It stops when the lease is lost, or cannot last longer:
        `sandbox.not_kept` and a warning in the log say so.

        If the sandbox cannot be given back within the broker's patience, the error is raised at the end of the block.
        If the block itself has raised, its error goes on and the other is logged. The sandbox expires in any case.
        """
        if keep is not None and keep <= 0:
            raise ValueError("keep must be positive")
        call = self._calls(track_id)
        wanted = _Wanted(duration=duration, lab=lab, prefix=prefix, reservation_id=reservation_id, key=key)
        try:
            sandbox = call.allocate(wanted, wait=wait)
        except BaseException:
            if call.may_have_allocated:
                _give_back_unknown(self._calls(track_id, patience=5), wanted)
            raise
        with _at_end(sandbox):
            if keep is None:
                yield sandbox
            else:
                with _kept(self._calls(track_id), sandbox, keep):
                    yield sandbox

    def allocate(
        self,
        track_id: str,
        *,
        wait: float = 0,
        duration: int | None = None,
        lab: str = "",
        prefix: str = "",
        reservation_id: str = "",
        key: str = "",
    ) -> Sandbox:
        """Return a sandbox, which the caller gives back: the one that this (track, key) holds already, or a new one.

        `wait`: seconds to wait in line while no sandbox is free. The place is given up if no sandbox comes in time, or
        the call is interrupted. `duration`: seconds that the lease lasts. `lab`: the lab's name; a class that is booked
        for it draws from its reservation. `reservation_id`: the reservation to draw from. `prefix`: only sandboxes
        whose name starts with it. `key`: a different one for each of several sandboxes of the track.

        Raises `NoSandboxesAvailable`; `TryLater`, after which the track may hold a sandbox: repeat the call, or give
        back what `held` lists.
        """
        wanted = _Wanted(duration=duration, lab=lab, prefix=prefix, reservation_id=reservation_id, key=key)
        return self._calls(track_id).allocate(wanted, wait=wait)

    def held(self, track_id: str) -> list[Sandbox]:
        """Return the sandboxes that the track holds."""
        call = self._calls(track_id)
        answer = call.send("GET", "/sandboxes")
        listed = _body_of(answer).get("sandboxes")
        if answer.status_code != requests.codes.ok or _error_of(answer) or not isinstance(listed, list):
            raise _fault(answer)
        if not all(isinstance(each, dict) and each.keys() >= {"sandbox_id", "lease_id"} for each in listed):
            raise _fault(answer)
        return [Sandbox(call, each) for each in listed]

    def _calls(self, track_id: str, *, patience: float | None = None) -> _Calls:
        return _Calls(self._url, self._token, track_id, self._patience if patience is None else patience)


class Sandbox:
    """A sandbox that the track holds. `answer` is what the broker said of it."""

    def __init__(self, call: _Calls, answer: dict[str, Any]) -> None:
        self._call = call
        self._lock = threading.Lock()
        self.answer = answer
        self.sandbox_id = str(answer["sandbox_id"])
        self.lease_id = str(answer["lease_id"])
        self.external_id = str(answer.get("external_id", ""))
        self.name = str(answer.get("name", ""))
        self.expires_at = int(answer.get("expires_at", 0))
        """The latest known end of the lease, in Unix seconds."""
        self.not_kept: BrokerError | None = None
        """Why the lease is no longer extended automatically. None: it is, or was never to be."""

    def now(self) -> float:
        """Return the time by the broker's clock, in Unix seconds."""
        return time.time() + self._call.clock_behind

    def extend(self, seconds: float) -> int:
        """Have the lease last at least so long from now, and return its end. It never becomes shorter.

        Raises `DurationLimit`, `LeaseLost`, `TryLater`.
        """
        return self.extend_until(int(self.now() + seconds))

    def extend_until(self, expires_at: int) -> int:
        """Have the lease last at least until then, in Unix seconds; else as `extend`."""
        body = {"expires_at": expires_at, "lease_id": self.lease_id}
        answer = self._call.send("POST", f"/sandboxes/{quote(self.sandbox_id, safe='')}/extend", json=body)
        extended = _body_of(answer)
        end = extended.get("expires_at")
        if answer.status_code != requests.codes.ok or extended.get("lease_id") != self.lease_id or type(end) is not int:
            raise _fault(answer)
        self.note_end(end)
        return end

    def note_end(self, expires_at: int) -> None:
        """Remember an end that the broker has said. Of two answers, an older one may come last."""
        with self._lock:
            self.expires_at = max(self.expires_at, expires_at)

    def give_back(self) -> bool:
        """End the lease. Return False if it had ended before, or another lease has begun. May be repeated."""
        path = f"/sandboxes/{quote(self.sandbox_id, safe='')}/mark-for-deletion"
        answer = self._call.send("POST", path, json={"lease_id": self.lease_id})
        if answer.status_code == requests.codes.ok and _body_of(answer).get("lease_id") == self.lease_id:
            return True
        fault = _fault(answer)
        if not isinstance(fault, LeaseLost):
            raise fault
        _LOG.info("the broker had already taken it back: %s", fault)
        return False


class _Wanted:
    """What an allocate asks for. Each repetition says the same."""

    def __init__(self, *, duration: int | None, lab: str, prefix: str, reservation_id: str, key: str) -> None:
        headers = {
            "X-Instruqt-Track-ID": lab,
            "X-Sandbox-Name-Prefix": prefix,
            "X-Reservation-ID": reservation_id,
            "Idempotency-Key": key,
        }
        self.headers = {name: value for name, value in headers.items() if value}
        self.body = None if duration is None else {"duration_sec": duration}


class _Calls:
    """Sends the calls of one track."""

    def __init__(self, url: str, token: str, track_id: str, patience: float) -> None:
        self._url = url
        self._token = token
        self._patience = patience
        self._session = requests.Session()
        self._session.headers["X-Track-ID"] = track_id
        self._session.auth = self._authorize
        self.sleep: Callable[[float], object] = time.sleep
        self.clock_behind = 0.0
        """How many seconds this machine's clock is behind the broker's."""
        self._last: requests.Response | None = None
        """The answer of the last request; None while there is none."""

    @property
    def may_have_allocated(self) -> bool:
        """Tell whether an allocate that raised may have got a sandbox all the same."""
        return self._last is None or self._last.status_code in _LATER

    def allocate(self, wanted: _Wanted, *, wait: float) -> Sandbox:
        may_have_place = wait > 0
        try:
            answer = self.send("POST", "/allocate", wait=wait, headers=wanted.headers, json=wanted.body)
            may_have_place = False
        finally:
            if may_have_place:  # so that no other track waits for this one
                key = {name: wanted.headers[name] for name in ("Idempotency-Key",) if name in wanted.headers}
                with suppress(requests.RequestException):
                    self._session.delete(f"{self._url}/waiting", headers=key, timeout=5, allow_redirects=False)
        held = _body_of(answer)
        if answer.status_code not in {200, 201} or not held.keys() >= {"sandbox_id", "lease_id"}:
            raise _fault(answer)
        return Sandbox(self, held)

    def send(
        self,
        method: str,
        path: str,
        *,
        wait: float = 0,
        headers: Mapping[str, str] | None = None,
        json: Mapping[str, Any] | None = None,
    ) -> requests.Response:
        """Return the first final answer. Raise `TryLater` if there is none in time."""
        began = time.monotonic()
        pause = 1.0
        while True:
            left = began + wait - time.monotonic()
            # Wait in line, and let the broker hold the request for so long.
            held = max(0, min(_HELD_SEC, int(left)))
            prefer = {"Prefer": f"wait={held}"} if wait > 0 else {}
            waits = False
            later = pause * random.uniform(0.5, 1)
            self._last = None
            try:
                self._last = answer = self._session.request(
                    method,
                    f"{self._url}{path}",
                    headers={**(headers or {}), **prefer},
                    json=json,
                    timeout=10 + held,
                    allow_redirects=False,
                )
            except (ConnectionError, Timeout, ChunkedEncodingError, ContentDecodingError) as error:
                fault: BrokerError = TryLater(f"gave up: {method} {path} last ended with {type(error).__name__}")
            else:
                self._read_clock(answer)
                waits = answer.status_code == requests.codes.accepted and _body_of(answer).get("state") == "waiting"
                is_empty = _error_of(answer).get("code") == NoSandboxesAvailable.code
                if not waits and not is_empty and answer.status_code not in _LATER:
                    return answer
                fault = _temporary_fault(method, path, answer, waits=waits)
                if is_empty and wait <= 0:
                    raise fault
                # In seconds. A date, which a proxy may send, is ignored.
                retry_after = answer.headers.get("Retry-After", "")
                if retry_after.isdecimal():
                    # Come back to the line just in time. Otherwise not all at once.
                    spread = 0.0 if waits else min(pause, 2)
                    later = int(retry_after) + random.uniform(0, spread)
            patience = wait if isinstance(fault, NoSandboxesAvailable) else max(wait, self._patience)
            left = began + patience - time.monotonic()
            if left <= 0 or (later > left and not waits):
                raise fault
            self.sleep(min(later, left))
            pause = min(2 * pause, 8)

    def _authorize(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """Set the token. In a header of the session, an entry of ~/.netrc would replace it."""
        request.headers["Authorization"] = f"Bearer {self._token}"
        return request

    def _read_clock(self, answer: requests.Response) -> None:
        with suppress(TypeError, ValueError):  # no date, or none that is one
            self.clock_behind = parsedate_to_datetime(answer.headers.get("Date", "")).timestamp() - time.time()


class _Stopped(Exception):
    """The block has ended while the keeper was waiting to repeat a call."""


class _Keeper:
    """Has a lease last long enough, by calls of its own, in a thread of its own."""

    def __init__(self, call: _Calls, sandbox: Sandbox, keep: float) -> None:
        call.sleep = self._sleep
        self._own = Sandbox(call, sandbox.answer)
        self._sandbox = sandbox
        self._keep = keep
        self._ended = threading.Event()

    def end(self) -> None:
        """Let the thread end soon."""
        self._ended.set()

    def run(self) -> None:
        """Extend the lease whenever less than half of `keep` is left, until the end."""
        with suppress(_Stopped):
            while self._sandbox.not_kept is None:
                due_in = self._sandbox.expires_at - self._sandbox.now() - self._keep / 2
                if due_in > 0:
                    self._sleep(min(due_in, _LOOK_SEC))  # a machine that was suspended wakes up late
                else:
                    self._extend()

    def _extend(self) -> None:
        try:
            try:
                end = self._own.extend_until(int(self._sandbox.now() + self._keep))
            except DurationLimit as limit:
                end = self._own.extend_until(int(limit.details["latest_expires_at"]))
                self._stop_keeping(limit)
            self._sandbox.note_end(end)
        except LeaseLost as lost:
            self._stop_keeping(lost)
        except Exception as error:  # noqa: BLE001 - a later try may succeed
            _LOG.warning("sandbox %s is not extended, but will be tried again: %s", self._sandbox.sandbox_id, error)
            self._sleep(min(self._keep / 8, _LOOK_SEC))

    def _stop_keeping(self, why: BrokerError) -> None:
        self._sandbox.not_kept = why
        _LOG.warning("sandbox %s is no longer extended: %s", self._sandbox.sandbox_id, why)

    def _sleep(self, seconds: float) -> None:
        if self._ended.wait(seconds):
            raise _Stopped


@contextmanager
def _kept(call: _Calls, sandbox: Sandbox, keep: float) -> Iterator[None]:
    """Extend the lease automatically during the block."""
    keeper = _Keeper(call, sandbox, keep)
    thread = threading.Thread(target=keeper.run, name=f"keeps sandbox {sandbox.sandbox_id}", daemon=True)
    thread.start()
    try:
        yield
    finally:
        keeper.end()
        thread.join(_HELD_SEC)


@contextmanager
def _at_end(sandbox: Sandbox) -> Iterator[None]:
    """Give the sandbox back at the end of the block. An error of the block itself goes on."""
    try:
        yield
    except BaseException:
        try:
            sandbox.give_back()
        except (BrokerError, requests.RequestException) as error:
            _LOG.warning("sandbox %s is not given back, and will expire: %s", sandbox.sandbox_id, error)
        raise
    sandbox.give_back()


def _give_back_unknown(call: _Calls, wanted: _Wanted) -> None:
    """Give back what an allocate without an answer may have got. To learn of it, send that allocate once more."""
    try:
        call.allocate(wanted, wait=0).give_back()
    except NoSandboxesAvailable:
        pass
    except (BrokerError, requests.RequestException) as error:
        _LOG.warning("the track may hold a sandbox, which will expire: %s", error)


def _body_of(answer: requests.Response) -> dict[str, Any]:
    """Return the JSON object of an answer. It is empty if the answer is not the broker's."""
    try:
        body = answer.json()
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}


def _error_of(answer: requests.Response) -> dict[str, Any]:
    """Return the broker's error; it is empty if there is none."""
    error = _body_of(answer).get("error")
    return error if isinstance(error, dict) and error.get("code") else {}


def _fault(answer: requests.Response) -> BrokerError:
    """Return the error of a final answer."""
    error = _error_of(answer)
    if not error:
        return NotTheBroker("this is not an answer of the broker", status=answer.status_code)
    kind = _KINDS.get(str(error["code"]), BrokerError)
    return kind(str(error.get("message", "")), status=answer.status_code, error=error)


def _temporary_fault(method: str, path: str, answer: requests.Response, *, waits: bool) -> BrokerError:
    """Return the error to raise if there is no time for another try."""
    gave_up = f"gave up {method} {path}"
    if waits:
        said = {"details": _body_of(answer)}
        return NoSandboxesAvailable(
            f"{gave_up}: the last answer was 202 waiting, and no sandbox came free in time",
            status=answer.status_code,
            error=said,
        )
    error = _error_of(answer)
    kind = NoSandboxesAvailable if error.get("code") == NoSandboxesAvailable.code else TryLater
    return kind(f"{gave_up}: {error.get('message') or 'no final answer'}", status=answer.status_code, error=error)


def say(text: str) -> None:
    """Write to stderr, because the lab reads stdout."""
    sys.stderr.write(f"track.py: {text}\n")


def leave(code: int, text: str) -> NoReturn:
    """Say why, and exit."""
    say(text)
    sys.exit(code)


def expect(text: str, pattern: str, fault: str) -> None:
    """Print `fault` and exit, unless the whole of `text` matches `pattern`."""
    if not re.fullmatch(pattern, text):
        leave(EX_USAGE, fault)


def set_up(broker: Broker, track_id: str, *, wait: float, state: Path) -> None:
    """Get a sandbox; print it and keep it in the file `state`."""
    try:
        # Empty the file before the call: if no answer comes, the file must not hold the answer of an earlier setup.
        state.touch(mode=0o600)
        state.write_text("")
    except OSError as error:
        leave(EX_CANTCREAT, f"{state} cannot be written: {error}")
    lab, prefix, reservation_id = (os.environ.get(name, "") for name in _OPTIONAL)
    sandbox = broker.allocate(track_id, wait=wait, lab=lab, prefix=prefix, reservation_id=reservation_id)
    held = json.dumps(sandbox.answer)
    state.write_text(held)
    sys.stdout.write(held + "\n")


def extend_all(broker: Broker, track_id: str, *, seconds: int) -> None:
    """Have all leases of the track last so long from now, and print their ends."""
    mine = broker.held(track_id)
    if not mine:
        leave(EX_UNAVAILABLE, "nothing to extend: the track holds no sandbox")
    until = int(mine[0].now()) + seconds
    for held in mine:
        ends = {"sandbox_id": held.sandbox_id, "lease_id": held.lease_id, "expires_at": held.extend_until(until)}
        sys.stdout.write(json.dumps(ends) + "\n")


def clean_up(broker: Broker, track_id: str, *, state: Path) -> None:
    """Give back all that the broker says that the track holds, and remove the file `state`.

    The file may be missing, or older than a setup that got no answer.
    """
    given_back = None
    while mine := broker.held(track_id):
        held = mine[-1]
        if held.lease_id == given_back:
            leave(EX_TEMPFAIL, f"gave up: {held.sandbox_id} was given back, but the broker still lists it as held")
        if not held.give_back():
            say("the broker had already taken it back")
        given_back = held.lease_id
    if given_back is None:
        say("nothing to give back: the track holds no sandbox")
    state.unlink(missing_ok=True)


def main(words: list[str]) -> None:
    """Run `setup`, `extend` or `cleanup`."""
    for name in _REQUIRED:
        expect(os.environ.get(name, ""), "[ -~]+", f"{name} is not set, or is not printable ASCII")
    for name in _OPTIONAL:
        expect(os.environ.get(name, ""), "[ -~]*", f"{name} is not printable ASCII")
    url, token, track_id = (os.environ[name] for name in _REQUIRED)
    patience = os.environ.get("PATIENCE_SEC") or "120"
    expect(url, "https?://.+", "BROKER_API_URL is not the URL of an API, such as https://broker.example.com/v1")
    expect(patience, "[0-9]+", "PATIENCE_SEC is not a number of seconds")
    state = Path(os.environ.get("STATE_FILE") or "sandbox.json")
    broker = Broker(url, token, patience=float(patience))
    match words:
        case ["setup"]:
            set_up(broker, track_id, wait=float(patience), state=state)
        case ["extend", seconds] if re.fullmatch("[0-9]{1,9}", seconds):
            extend_all(broker, track_id, seconds=int(seconds))
        case ["cleanup"]:
            clean_up(broker, track_id, state=state)
        case _:
            leave(EX_USAGE, "usage: track.py setup | extend SECONDS | cleanup")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as in a shell; and it gives up its place in the line
    try:
        main(sys.argv[1:])
    except TryLater as error:
        leave(EX_TEMPFAIL, str(error))
    except NotTheBroker as error:
        leave(EX_UNAVAILABLE, f"{error}: is BROKER_API_URL right?")
    except BrokerError as error:
        leave(EX_NOPERM if error.status == requests.codes.unauthorized else EX_UNAVAILABLE, str(error))
    except KeyboardInterrupt:
        sys.exit(130)  # as in a shell
