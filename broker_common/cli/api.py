"""The broker's HTTP API as an operator calls it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import requests

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

UNREADABLE = "unreadable"
"""What stands for a status where a record cannot be read."""
_TIMEOUT_SEC = (5, 65)
"""To connect, and to answer: bulk calls take up to 30 s, and a proxy may wait for a drained instance."""


class ApiError(Exception):
    """The API did not do what was asked; the message is for a person."""


class BrokerApi:
    """Calls the API with an admin token. `url` has the base path: `https://broker.example.com/v1`."""

    def __init__(self, url: str, token: str) -> None:
        self._url = f"{url.rstrip('/')}/admin"
        self._token = token
        self._session = requests.Session()
        self._session.auth = self._authorize

    def get(self, path: str, **parameters: str | int | None) -> dict[str, Any]:
        """Return what a call reads; parameters that are None are left out. Raises `ApiError`."""
        return self._call("GET", path, params=parameters)

    def post(self, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Have something done, and return the answer. Raises `ApiError`."""
        return self._call("POST", path, json=body)

    def sandboxes(self, *, status: str | None = None, track_id: str | None = None) -> Iterator[dict[str, Any]]:
        """Yield every sandbox of a listing, page after page. Raises `ApiError`.

        One whose record cannot be read has the status `unreadable`, a `reason`, and nothing else but its id.
        """
        cursor = None
        while True:
            page = self.get("/sandboxes", status=status, track_id=track_id, limit=100, cursor=cursor)
            yield from page["sandboxes"]
            yield from (
                {"sandbox_id": each["sandbox_id"], "status": UNREADABLE, **each} for each in page.get("unreadable", ())
            )
            cursor = page["cursor"]
            if cursor is None:
                return

    def _authorize(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """Set the token; were it a header of the session, an entry of ~/.netrc would take its place."""
        request.headers["Authorization"] = f"Bearer {self._token}"
        return request

    def _call(self, method: str, path: str, **options: Any) -> dict[str, Any]:  # noqa: ANN401 - requests' own options
        url = f"{self._url}{path}"
        try:
            answer = self._session.request(method, url, timeout=_TIMEOUT_SEC, allow_redirects=False, **options)
            body = answer.json()
        except requests.exceptions.JSONDecodeError:
            raise ApiError(f"{url} answered {answer.status_code} without JSON: is this the broker's API?") from None
        except requests.RequestException as error:
            raise ApiError(f"{url} cannot be reached ({type(error).__name__}): is BROKER_API_URL right?") from error
        if answer.ok and isinstance(body, dict):
            return body
        try:
            fault = body["error"]
            told = f"{fault['message']} ({answer.status_code} {fault['code']}, request {fault['request_id']})"
            if fault["code"] == "NOT_FOUND":
                told += ": is BROKER_API_URL right? It has the base path, as in …/v1"
            raise ApiError(told)
        except (KeyError, TypeError):
            raise ApiError(f"{url} answered {answer.status_code}: is this the broker's API?") from None
