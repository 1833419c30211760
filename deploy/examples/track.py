#!/usr/bin/env python3
"""A track's life with requests: `track.py setup` gets a sandbox, `track.py cleanup` gives all of the track's back.

In between, `track.py extend SECONDS` keeps them for so long from now. Each may be repeated. The environment and the
exit codes are those of track.sh.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import requests
from requests.exceptions import ChunkedEncodingError, ConnectionError, Timeout  # noqa: A004 - of requests, as below

EX_USAGE, EX_UNAVAILABLE, EX_CANTCREAT, EX_TEMPFAIL, EX_NOPERM = 64, 69, 73, 75, 77
_REQUIRED = ("BROKER_API_URL", "BROKER_TOKEN", "TRACK_ID")
_WANTED = {
    "NAME_PREFIX": "X-Sandbox-Name-Prefix",
    "LAB_NAME": "X-Instruqt-Track-ID",
    "RESERVATION_ID": "X-Reservation-ID",
}
"""What the environment may say about the wanted sandbox, and the header that says it to the broker."""
_LATER = {429, 500, 502, 503, 504}
_HELD_SEC = 30
_TAKEN_BACK = {"NOT_SANDBOX_OWNER", "SANDBOX_NOT_FOUND", "LEASE_MISMATCH"}


class Broker:
    """Sends each request until it has a final answer, for at most `patience_sec` in all.

    If there is no answer, it sends the same request again: the broker gives a repetition the answer of the first one.
    """

    def __init__(self, url: str, token: str, track_id: str, *, patience_sec: float) -> None:
        self._url = url.rstrip("/")
        self._token = token
        self._give_up_at = time.monotonic() + patience_sec
        self._session = requests.Session()
        self._session.headers["X-Track-ID"] = track_id
        self._session.auth = self._authorize

    def allocate(self, wanted: dict[str, str]) -> dict[str, Any]:
        """Return the track's sandbox, and wait in line for it if there is patience. Exits if no sandbox can be had.

        `wanted`: headers that say which sandbox the track wants.
        """
        may_have_place = self._time_left() > 0
        try:
            answer = self._call("POST", "/allocate", waits=may_have_place, headers=wanted)
            may_have_place = False
        finally:
            if may_have_place:  # so that no other track waits for this one
                with suppress(requests.RequestException):
                    self._session.delete(f"{self._url}/waiting", timeout=5)
        held = body_of(answer)
        if answer.status_code not in {200, 201} or "lease_id" not in held:
            refuse(answer)
        return held

    def held(self) -> list[dict[str, Any]]:
        """Return the sandboxes that the track holds."""
        answer = self._call("GET", "/sandboxes")
        sandboxes = body_of(answer).get("sandboxes")
        if answer.status_code != requests.codes.ok or code_of(answer) or not isinstance(sandboxes, list):
            refuse(answer)
        if not all(isinstance(each, dict) and each.keys() >= {"sandbox_id", "lease_id"} for each in sandboxes):
            refuse(answer)
        return sandboxes

    def extend(self, held: dict[str, Any], expires_at: int) -> dict[str, Any]:
        """Have the lease last until `expires_at` at least, and return what the broker says. Exits if it may not."""
        path = f"/sandboxes/{held['sandbox_id']}/extend"
        answer = self._call("POST", path, json={"expires_at": expires_at, "lease_id": held["lease_id"]})
        if answer.status_code != requests.codes.ok or body_of(answer).get("lease_id") != held["lease_id"]:
            refuse(answer)
        return body_of(answer)

    def give_back(self, held: dict[str, Any]) -> None:
        """End the lease, unless the broker has already ended it."""
        path = f"/sandboxes/{held['sandbox_id']}/mark-for-deletion"
        answer = self._call("POST", path, json={"lease_id": held["lease_id"]})
        if code_of(answer) in _TAKEN_BACK:
            say(f"the broker had already taken it back ({code_of(answer)})")
        elif answer.status_code != requests.codes.ok or body_of(answer).get("lease_id") != held["lease_id"]:
            refuse(answer)

    def _authorize(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """Set the token. In a header of the session, an entry of ~/.netrc would replace it."""
        request.headers["Authorization"] = f"Bearer {self._token}"
        return request

    def _time_left(self) -> float:
        return max(0.0, self._give_up_at - time.monotonic())

    def _call(self, method: str, path: str, *, waits: bool = False, **options: Any) -> requests.Response:  # noqa: ANN401 - requests' own options
        headers = options.pop("headers", {})
        pause = 1.0
        while True:
            wait = pause
            # Wait in line, and let the broker hold the request for so long.
            held = min(_HELD_SEC, int(self._time_left())) if waits else 0
            prefer = {"Prefer": f"wait={held}"} if waits else {}
            try:
                answer = self._session.request(
                    method,
                    f"{self._url}{path}",
                    headers={**headers, **prefer},
                    timeout=10 + held,
                    allow_redirects=False,
                    **options,
                )
                state = str(body_of(answer).get("state", ""))
                what = f"{answer.status_code} {code_of(answer) or state}"
                is_waiting = (answer.status_code, state) == (requests.codes.accepted, "waiting")
                is_final = answer.status_code not in _LATER and code_of(answer) != "NO_SANDBOXES_AVAILABLE"
                if is_final and not is_waiting:
                    return answer
                # In seconds. A date, which a proxy may send, is ignored.
                retry_after = answer.headers.get("Retry-After", "")
                wait = float(retry_after) if retry_after.isdecimal() else pause
            except (ConnectionError, Timeout, ChunkedEncodingError) as error:
                what = type(error).__name__
            if time.monotonic() + wait > self._give_up_at:
                say(f"gave up: {method} {path} last ended with {what}")
                sys.exit(EX_TEMPFAIL)
            time.sleep(wait)
            pause = min(2 * pause, 8)


def body_of(answer: requests.Response) -> dict[str, Any]:
    """Return the JSON object of an answer. It is empty if the answer is not the broker's."""
    try:
        body = answer.json()
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}


def code_of(answer: requests.Response) -> str:
    """Return the broker's error code, or an empty text if there is no error."""
    error = body_of(answer).get("error")
    return str(error.get("code", "")) if isinstance(error, dict) else ""


def refuse(answer: requests.Response) -> NoReturn:
    """Print the broker's answer, and exit."""
    if code_of(answer):
        say(f"{answer.status_code} {answer.text.strip()}")
    else:
        say(f"{answer.status_code}, and this is not an answer of the broker: is BROKER_API_URL right?")
    sys.exit(EX_NOPERM if answer.status_code == requests.codes.unauthorized else EX_UNAVAILABLE)


def say(text: str) -> None:
    """Write to stderr, because the lab reads stdout."""
    sys.stderr.write(f"track.py: {text}\n")


def expect(text: str, pattern: str, fault: str) -> None:
    """Print `fault` and exit, unless the whole of `text` matches `pattern`."""
    if not re.fullmatch(pattern, text):
        say(fault)
        sys.exit(EX_USAGE)


def extend_all(broker: Broker, *, until: int) -> None:
    """Have all leases of the track last until then at least, and print the broker's answers."""
    mine = broker.held()
    if not mine:
        say("nothing to extend: the track holds no sandbox")
        sys.exit(EX_UNAVAILABLE)
    for held in mine:
        sys.stdout.write(json.dumps(broker.extend(held, until)) + "\n")


def main(words: list[str]) -> None:
    """Run `setup`, `extend` or `cleanup`."""
    for name in _REQUIRED:
        expect(os.environ.get(name, ""), "[ -~]+", f"{name} is not set, or is not printable ASCII")
    url, token, track_id = (os.environ[name] for name in _REQUIRED)
    wanted = {header: value for name, header in _WANTED.items() if (value := os.environ.get(name, ""))}
    patience = os.environ.get("PATIENCE_SEC") or "120"
    for name, header in _WANTED.items():
        expect(wanted.get(header, ""), "[ -~]*", f"{name} is not printable ASCII")
    expect(url, "https?://.+", "BROKER_API_URL is not the URL of an API, such as https://broker.example.com/v1")
    expect(patience, "[0-9]+", "PATIENCE_SEC is not a number of seconds")
    state = Path(os.environ.get("STATE_FILE") or "sandbox.json")
    broker = Broker(url, token, track_id, patience_sec=float(patience))
    match words:
        case ["setup"]:
            try:
                # Empty the file before the call: if no answer comes, the file must not hold the answer of an earlier
                # setup.
                state.touch(mode=0o600)
                state.write_text("")
            except OSError as error:
                say(f"{state} cannot be written: {error}")
                sys.exit(EX_CANTCREAT)
            held = broker.allocate(wanted)
            state.write_text(json.dumps(held))
            sys.stdout.write(json.dumps(held) + "\n")
        case ["extend", seconds] if re.fullmatch("[0-9]{1,9}", seconds):
            extend_all(broker, until=int(time.time()) + int(seconds))
        case ["cleanup"]:
            # Ask the broker what the track holds. The state file may be missing, or older than a setup without answer.
            given_back = None
            while mine := broker.held():
                held = mine[-1]
                if held["lease_id"] == given_back:
                    say(f"gave up: {held['sandbox_id']} was given back, but the broker still lists it as held")
                    sys.exit(EX_TEMPFAIL)
                broker.give_back(held)
                given_back = held["lease_id"]
            if given_back is None:
                say("nothing to give back: the track holds no sandbox")
            state.unlink(missing_ok=True)
        case _:
            say("usage: track.py setup | extend SECONDS | cleanup")
            sys.exit(EX_USAGE)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as in a shell; and it gives up its place in the line
    try:
        main(sys.argv[1:])
    except KeyboardInterrupt:
        sys.exit(130)  # as in a shell
