#!/usr/bin/env python3
"""A track's life with requests: `track.py setup` gets a sandbox, `track.py cleanup` gives it back.

Both may be repeated. The environment and the exit codes are those of track.sh.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import requests

EX_USAGE, EX_UNAVAILABLE, EX_TEMPFAIL, EX_NOPERM = 64, 69, 75, 77
_REQUIRED = ("BROKER_API_URL", "BROKER_TOKEN", "TRACK_ID")
_LATER = {429, 500, 502, 503, 504}


class Broker:
    """Sends each request until it is answered for good, for `patience_sec` in all.

    An unanswered request is sent again as it is: the broker answers a repetition with what the first one got.
    """

    def __init__(self, url: str, token: str, track_id: str, *, patience_sec: float) -> None:
        self._url = url
        self._give_up_at = time.monotonic() + patience_sec
        self._session = requests.Session()
        self._session.headers.update({"Authorization": f"Bearer {token}", "X-Track-ID": track_id})

    def allocate(self, prefix: str | None) -> dict[str, Any]:
        """Return the track's sandbox; exits if there is none to be had."""
        answer = self._call("/allocate", headers={"X-Sandbox-Name-Prefix": prefix})
        if not answer.ok:
            refuse(answer)
        held: dict[str, Any] = answer.json()
        return held

    def give_back(self, held: dict[str, Any]) -> None:
        """End the allocation, if the broker has not ended it before."""
        path = f"/sandboxes/{held['sandbox_id']}/mark-for-deletion"
        answer = self._call(path, json={"lease_id": held["lease_id"]})
        if answer.status_code in {403, 404, 409}:
            say(f"the broker had taken it back before ({code_of(answer)})")
        elif not answer.ok:
            refuse(answer)

    def _call(self, path: str, **options: Any) -> requests.Response:  # noqa: ANN401 - requests' own options
        pause = 1.0
        while True:
            wait = pause
            try:
                answer = self._session.post(f"{self._url}{path}", timeout=10, **options)
                what = f"{answer.status_code} {code_of(answer)}"
                is_empty = answer.status_code == requests.codes.conflict and code_of(answer) == "NO_SANDBOXES_AVAILABLE"
                if answer.status_code not in _LATER and not is_empty:
                    return answer
                wait = float(answer.headers.get("Retry-After", pause))
            except (requests.ConnectionError, requests.Timeout) as error:
                what = type(error).__name__
            if time.monotonic() + wait > self._give_up_at:
                say(f"gave up: POST {path} last ended with {what}")
                sys.exit(EX_TEMPFAIL)
            time.sleep(wait)
            pause = min(2 * pause, 8)


def code_of(answer: requests.Response) -> str:
    """Return the broker's error code, or nothing where somebody else answered."""
    try:
        return str(answer.json()["error"]["code"])
    except (ValueError, KeyError, TypeError):
        return ""


def refuse(answer: requests.Response) -> None:
    """Say what the broker said, and exit."""
    say(f"{answer.status_code} {answer.text.strip()}")
    sys.exit(EX_NOPERM if answer.status_code == requests.codes.unauthorized else EX_UNAVAILABLE)


def say(text: str) -> None:
    """Write to stderr: stdout is for what the lab reads."""
    sys.stderr.write(f"track.py: {text}\n")


def main(words: list[str]) -> None:
    """Do what is asked for."""
    state = Path(os.environ.get("STATE_FILE", "sandbox.json"))
    for name in _REQUIRED:
        if not os.environ.get(name):
            say(f"{name} is not set")
            sys.exit(EX_USAGE)
    url, token, track_id = (os.environ[name] for name in _REQUIRED)
    broker = Broker(url, token, track_id, patience_sec=float(os.environ.get("PATIENCE_SEC", "120")))
    match words:
        case ["setup"]:
            held = broker.allocate(os.environ.get("NAME_PREFIX"))
            state.touch(mode=0o600)
            state.write_text(json.dumps(held))
            sys.stdout.write(json.dumps(held) + "\n")
        case ["cleanup"] if state.exists():
            broker.give_back(json.loads(state.read_text()))
            state.unlink()
        case ["cleanup"]:
            say(f"nothing to give back: there is no {state}")
        case _:
            say("usage: track.py setup|cleanup")
            sys.exit(EX_USAGE)


if __name__ == "__main__":
    main(sys.argv[1:])
