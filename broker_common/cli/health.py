"""`broker health`: whether API, workers and beat are well, by their own answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import click
import requests

from broker_common.cli.api import api_url
from broker_common.cli.findings import Finding, print_findings
from broker_common.cli.output import json_option

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_TIMEOUT_SEC = (5, 10)


@click.command()
@click.option("--worker", "workers", multiple=True, envvar="BROKER_WORKER_URL", help="A worker's metrics URL.")
@click.option("--beat", "beats", multiple=True, envvar="BROKER_BEAT_URL", help="Beat's metrics URL.")
@json_option
def health(workers: tuple[str, ...], beats: tuple[str, ...], *, as_json: bool) -> None:
    """Ask API, workers and beat whether they are well.

    Asks the API of BROKER_API_URL for /healthz (does it run?) and /readyz (does it reach DynamoDB and Redis?). Asks
    workers and beat for /healthz if their URLs are given; several in BROKER_WORKER_URL are separated by blanks. Needs
    no token. Exits 1 when one is not well.

    Example: broker health --worker http://127.0.0.1:9101 --beat http://127.0.0.1:9102
    """
    print_findings(_look(api_url(), workers, beats), as_json=as_json)


def _look(url: str, workers: Sequence[str], beats: Sequence[str]) -> Iterator[Finding]:
    """Yield a finding for the API's /healthz and /readyz, and for each worker's and beat's /healthz.

    The API answers /healthz and /readyz outside of its base path, so only scheme and host of its `url` count. `workers`
    and `beats` are the URLs of their metrics' ports.
    """
    try:
        parts = urlsplit(url)
    except ValueError as error:
        yield Finding("api", ok=False, text=f"{url} is not an address ({error}): is BROKER_API_URL right?")
    else:
        origin = f"{parts.scheme}://{parts.netloc}"
        yield from (_ask("api", f"{origin}{path}") for path in ("/healthz", "/readyz"))
    yield from (_ask("worker", f"{each.rstrip('/')}/healthz") for each in workers)
    yield from (_ask("beat", f"{each.rstrip('/')}/healthz") for each in beats)


def _ask(part: str, url: str) -> Finding:
    try:
        answer = requests.get(url, timeout=_TIMEOUT_SEC, allow_redirects=False)
        told = _told(answer.json())
    except requests.exceptions.JSONDecodeError:
        told = None
    except (requests.RequestException, ValueError) as error:  # requests lets some bad addresses end in ValueError
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
