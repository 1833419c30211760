"""`broker health`: whether API, workers and beat are well, by their own answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import requests

from broker_common.cli.check import Finding

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_TIMEOUT_SEC = (5, 10)


def look(api_url: str, workers: Sequence[str], beats: Sequence[str]) -> Iterator[Finding]:
    """Yield a finding for the API's /healthz and /readyz, and for each worker's and beat's /healthz.

    Needs no token. The API answers /healthz and /readyz outside of its base path, so only scheme and host of `api_url`
    count. Of workers and beats the URL of the metrics' port is given.
    """
    parts = urlsplit(api_url)
    origin = f"{parts.scheme}://{parts.netloc}"
    yield from (_ask("api", f"{origin}{path}") for path in ("/healthz", "/readyz"))
    yield from (_ask("worker", f"{url.rstrip('/')}/healthz") for url in workers)
    yield from (_ask("beat", f"{url.rstrip('/')}/healthz") for url in beats)


def _ask(part: str, url: str) -> Finding:
    try:
        answer = requests.get(url, timeout=_TIMEOUT_SEC, allow_redirects=False)
        told = _told(answer.json())
    except requests.exceptions.JSONDecodeError:
        told = None
    except requests.RequestException as error:
        text = f"{url} cannot be reached ({type(error).__name__}): does it run, and is the address right?"
        return Finding(part, ok=False, text=text)
    if told is None:
        return Finding(part, ok=False, text=f"{url} answered {answer.status_code}: is this a broker's address?")
    return Finding(part, ok=answer.ok, text=f"{url} {told}")


def _told(body: Any) -> str | None:  # noqa: ANN401 - any JSON
    """Return an answer in words; None if it is not a broker's."""
    if not isinstance(body, dict) or not isinstance(body.get("status"), str):
        return None
    checks = body.get("checks")
    details = [f"{name} {told}" for name, told in checks.items()] if isinstance(checks, dict) else []
    if "error" in body:
        details.append(str(body["error"]))
    return f"{body['status']}{': ' if details else ''}{', '.join(details)}"
