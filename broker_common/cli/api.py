"""The broker's HTTP API as an operator calls it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from broker_common.adapters.broker_http import BrokerHttp, Refused, Unreachable, quoted
from broker_common.default_url import DEFAULT_URL
from broker_common.tokens import split_tokens

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

UNREADABLE = "unreadable"
"""What stands for a status where a record cannot be read."""
TOKEN_VARIABLE = "BROKER_ADMIN_TOKEN"  # noqa: S105 - the name of a variable
_LISTED_BY = {"status", "track_id"}
"""The filters that the API answers from the table, not from its copy of the pool."""
_LISTED, _FOUND = 100, 1000
"""How many sandboxes a page has at most: from the table, and from the copy."""
_REMEMBERED = 100_000
"""How many facts a follower remembers; the feed repeats those of its last two minutes."""
_ADVICE = {
    "UNAUTHORIZED": "is {token} right?",
    "FORBIDDEN": "use a token that has the role",
    "NOT_FOUND": "is BROKER_API_URL right? It has the base path, as in …/v1",
    "SANDBOX_NOT_FOUND": "`broker sandboxes` lists the ids",
    "RESERVATION_NOT_FOUND": "`broker reservation list` lists the ids",
    "WEBHOOK_NOT_FOUND": "`broker webhook list` lists the ids",
    "DELIVERY_NOT_FOUND": "`broker webhook deliveries` lists the ids",
    "CAPACITY_NOT_AVAILABLE": "`broker capacity` shows when more can be had",
    "VERSION_MISMATCH": "`broker reservation show` or `broker webhook show` says what it is now",
    "LEASE_MISMATCH": "the lease has changed or ended. `broker sandbox show` names the current one",
    "ALLOCATION_ENDED": "`broker sandbox show` says more",
    "INVALID_TRANSITION": "`broker sandbox show` or `broker webhook deliveries` says more",
    "RATE_LIMIT_EXCEEDED": "wait a few seconds, then try again",
    "SERVICE_UNAVAILABLE": "try again; `broker health` says more",
    "QUEUE_UNAVAILABLE": "`broker health` says what is wrong with Redis",
    "TABLE_CHANGED": "the runbook says what to do, under BrokerTableChanged",
    "INTERNAL_ERROR": "look for the request in the API's log",
}
"""What to do about an error, by its code; some messages say it themselves. `{token}` says where the token is from."""


class ApiError(Exception):
    """The API did not do what was asked; the message is for a person.

    `code` is that of the broker's refusal, None if the broker did not answer. `may_pass`: the API is away, busy or
    failing, so the same call may succeed later.
    """

    def __init__(self, message: str, *, code: str | None = None, may_pass: bool = False) -> None:
        super().__init__(message)
        self.code = code
        self.may_pass = may_pass


def api_url(environ: Mapping[str, str] = os.environ) -> str:
    """Return the API's address with its base path, as the environment names it."""
    return environ.get("BROKER_API_URL") or DEFAULT_URL


def operators_api(environ: Mapping[str, str] = os.environ) -> BrokerApi:
    """Return the API that an operator's environment names. Raises `ApiError` without a token that can be sent."""
    (_, token), *_ = split_tokens(environ.get(TOKEN_VARIABLE, "")) or [(None, "")]
    return BrokerApi(api_url(environ), checked_token(token, TOKEN_VARIABLE))


def checked_token(token: str, source: str) -> str:
    """Return a plain token that can be sent. Raises `ApiError` for any other, which names the `source`."""
    if not token or token.startswith("sha256:"):
        raise ApiError(f"{source}: Missing: give a token here, plain and not hashed.")
    if not (token.isascii() and token.isprintable()):
        raise ApiError(f"{source}: Must be printable ASCII.")
    return token


class BrokerApi:
    """Calls the API with a token. `url` has the base path: `https://broker.example.com/v1`.

    `source` says where the token is from, for the message about a token that the API does not know.
    """

    def __init__(self, url: str, token: str, source: str = TOKEN_VARIABLE) -> None:
        self._http = BrokerHttp(url)
        self._token = token
        self._source = source

    def get(self, path: str, **parameters: str | int | None) -> dict[str, Any]:
        """Return what a call of operators reads; parameters that are None are left out. Raises `ApiError`."""
        return self._call("GET", f"/admin{path}", params=parameters)

    def post(self, path: str, body: Mapping[str, Any] | None = None, **parameters: str) -> dict[str, Any]:
        """Make a call of operators that changes something, and return the answer. Raises `ApiError`."""
        return self._call("POST", f"/admin{path}", json=body, params=parameters)

    def patch(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Make a call of operators that changes a record, and return the answer. Raises `ApiError`."""
        return self._call("PATCH", f"/admin{path}", json=body)

    def delete(self, path: str) -> dict[str, Any]:
        """Make a call of operators that takes something back, and return the answer; {} if that is empty.

        Raises `ApiError`.
        """
        return self._call("DELETE", f"/admin{path}")

    def book(self, body: Mapping[str, Any], key: str | None) -> dict[str, Any]:
        """Book a reservation, and return it. With the same `key`, nothing is booked twice. Raises `ApiError`."""
        headers = {} if key is None else {"Idempotency-Key": key}
        return self._call("POST", "/admin/reservations", json=body, headers=headers)

    def reservations(self, *, state: str | None) -> Iterator[dict[str, Any]]:
        """Yield every reservation in a state, or all, page after page. Raises `ApiError`."""
        cursor = None
        while True:
            page = self.get("/reservations", state=state, limit=100, cursor=cursor)
            yield from page["reservations"]
            cursor = page["cursor"]
            if cursor is None:
                return

    def deliveries(self, endpoint_path: str, *, state: str | None, limit: int) -> Iterator[dict[str, Any]]:
        """Yield up to `limit` deliveries to an endpoint, page after page. Raises `ApiError`."""
        cursor, left = None, limit
        while left > 0:
            page = self.get(f"{endpoint_path}/deliveries", state=state, limit=min(left, 100), cursor=cursor)
            yield from page["deliveries"]
            left -= len(page["deliveries"])
            cursor = page["cursor"]
            if cursor is None:
                return

    def held_by(self, track_id: str) -> dict[str, Any]:
        """Return what a track holds, by the call of that track. Raises `ApiError`."""
        return self._call("GET", "/sandboxes", headers={"X-Track-ID": track_id})

    def sandboxes(
        self, *, sort: str | None = None, from_table: bool = False, **filters: str | None
    ) -> Iterator[dict[str, Any]]:
        """Yield every sandbox that fits, page after page. Raises `ApiError`.

        `filters` are those of the API's listing; None is no filter. With `from_table`, or with the filters `status` and
        `track_id` alone, each sandbox is as it is now; else as it was at most five seconds ago. A sandbox whose record
        cannot be read has the status `unreadable`, a `reason`, and its id. One whose status is unknown is only found
        with `from_table` and no filter, which reads the whole table with all its facts.
        """
        given = {name for name, value in filters.items() if value is not None}
        if sort is None and not from_table and not (given and given <= _LISTED_BY):
            sort = "sandbox_id"  # from the API's copy of the pool
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
            page = self.get(f"{sandbox_path(sandbox_id)}/history", limit=100, cursor=cursor)
            yield from page["facts"]
            cursor = page["cursor"]
            if cursor is None:
                return

    def events(self, *, since: int, follow: bool, **filters: str | None) -> Iterator[dict[str, Any] | None]:
        """Yield every fact from `since` (Unix seconds) on, each once; with `follow`, go on for ever.

        Yields None when nothing more is there for now, so that the caller can wait. Raises `ApiError`. With `follow`,
        once a page was read, an API that is away yields None instead.
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

    def _call(self, method: str, path: str, **options: Any) -> dict[str, Any]:  # noqa: ANN401 - requests' own options
        try:
            return self._http.call(method, path, token=self._token, **options).body
        except Unreachable as error:
            raise ApiError(str(error), may_pass=error.may_pass) from error
        except Refused as error:
            about = f"{error.status} {error.code}, request {error.request_id}"
            advice = f": {_ADVICE[error.code].format(token=self._source)}" if error.code in _ADVICE else ""
            message = f"{error.message} ({about}){advice}"
            raise ApiError(message, code=error.code, may_pass=error.may_pass) from error


def sandbox_path(sandbox_id: str) -> str:
    """Return the path of a sandbox for the methods of `BrokerApi`; any text is a safe id."""
    return f"/sandboxes/{quoted(sandbox_id)}"
