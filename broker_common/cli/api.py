"""The broker's HTTP API as an operator calls it."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import requests

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

UNREADABLE = "unreadable"
"""What stands for a status where a record cannot be read."""
_LISTED_BY = {"status", "track_id"}
"""The filters that the API answers from the table, not from its copy of the pool."""
_LISTED, _FOUND = 100, 1000
"""How many sandboxes a page has at most: from the table, and from the copy."""
_REMEMBERED = 100_000
"""Facts that a follower knows again; the feed repeats those of its last two minutes."""
_TIMEOUT_SEC = (5, 65)
"""To connect, and to answer: bulk calls take up to 30 s, and a proxy may wait for a drained instance."""


class ApiError(Exception):
    """The API did not do what was asked; the message is for a person.

    `may_pass`: it is away, busy or failing, and the same call may be answered later.
    """

    def __init__(self, message: str, *, may_pass: bool = False) -> None:
        super().__init__(message)
        self.may_pass = may_pass


def operators_api(environ: Mapping[str, str]) -> BrokerApi:
    """Return the API that an operator's environment names. Raises `ApiError` without a token that can be sent."""
    token = environ.get("BROKER_ADMIN_TOKEN", "").split(",")[0].strip()
    if not token or token.startswith("sha256:"):
        raise ApiError("BROKER_ADMIN_TOKEN: Missing: an operator's token, plain.")
    if not (token.isascii() and token.isprintable()):
        raise ApiError("BROKER_ADMIN_TOKEN: Must be printable ASCII.")
    return BrokerApi(environ.get("BROKER_API_URL") or "http://127.0.0.1:8080/v1", token)


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

    def sandboxes(self, *, sort: str | None = None, **filters: str | None) -> Iterator[dict[str, Any]]:
        """Yield every sandbox that fits, page after page. Raises `ApiError`.

        `filters` are those of the API's listing; None is no filter. By `status` and `track_id` alone, each sandbox is
        as it is now; else as it was at most five seconds ago. One whose record cannot be read has the status
        `unreadable`, a `reason`, and nothing else but its id.
        """
        given = {name for name, value in filters.items() if value is not None}
        if sort is None and not (given and given <= _LISTED_BY):
            sort = "sandbox_id"  # from the API's copy: without it, a listing of all walks over every fact in the table
        cursor = None
        while True:
            limit = _LISTED if sort is None else _FOUND
            page = self.get("/sandboxes", **filters, sort=sort, limit=limit, cursor=cursor)
            yield from page["sandboxes"]
            yield from (
                {"sandbox_id": each["sandbox_id"], "status": UNREADABLE, **each} for each in page.get("unreadable", ())
            )
            cursor = page["cursor"]
            if cursor is None:
                return

    def history(self, sandbox_id: str) -> Iterator[dict[str, Any]]:
        """Yield every fact of a sandbox, newest first. Raises `ApiError`."""
        cursor = None
        while True:
            page = self.get(f"/sandboxes/{quote(sandbox_id, safe='')}/history", limit=100, cursor=cursor)
            yield from page["facts"]
            cursor = page["cursor"]
            if cursor is None:
                return

    def events(self, *, since: int, follow: bool, **filters: str | None) -> Iterator[dict[str, Any] | None]:
        """Yield every fact from `since` (Unix seconds) on, each once; with `follow`, go on for ever.

        Yields None where nothing more is there at this moment, so that the caller may wait. Raises `ApiError`; one that
        has begun to follow waits for an API that is away instead.
        """
        after, known = None, dict[tuple[object, ...], None]()
        while True:
            try:
                page = self.get("/events", after=after, since=None if after else since, limit=1000, **filters)
            except ApiError as error:
                if not (follow and after is not None and error.may_pass):
                    raise
                yield None
                continue
            for fact in page["events"]:
                name = tuple(fact[part] for part in ("sandbox_id", "version", "kind", "fact_id"))
                if name not in known:
                    known[name] = None
                    yield fact
            after = page["cursor"]
            if page["is_last"]:
                if not follow:
                    return
                for name in list(known)[:-_REMEMBERED]:
                    del known[name]
                yield None

    def delete(self, path: str) -> dict[str, Any]:
        """Take something back, and return the answer. Raises `ApiError`."""
        return self._call("DELETE", path)

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
            raise ApiError(
                f"{url} answered {answer.status_code} without JSON: is this the broker's API?",
                may_pass=_may_pass(answer),
            ) from None
        except requests.RequestException as error:
            raise ApiError(
                f"{url} cannot be reached ({type(error).__name__}): is BROKER_API_URL right?", may_pass=True
            ) from error
        # A job's error is a text; an object is a refusal, whatever status a proxy made of it.
        if answer.ok and isinstance(body, dict) and not isinstance(body.get("error"), dict):
            return body
        try:
            fault = body["error"]
            told = f"{fault['message']} ({answer.status_code} {fault['code']}, request {fault['request_id']})"
            if fault["code"] == "NOT_FOUND":
                told += ": is BROKER_API_URL right? It has the base path, as in …/v1"
            raise ApiError(told, may_pass=_may_pass(answer))
        except (KeyError, TypeError):
            raise ApiError(f"{url} answered {answer.status_code}: is this the broker's API?") from None


def _may_pass(answer: requests.Response) -> bool:
    return answer.status_code == HTTPStatus.TOO_MANY_REQUESTS or answer.status_code >= HTTPStatus.INTERNAL_SERVER_ERROR
