"""The broker's own HTTP API, as the command `broker` and the console call it."""

from __future__ import annotations

from dataclasses import dataclass, field
from http import HTTPStatus
from http.cookiejar import DefaultCookiePolicy
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import requests
from requests.adapters import HTTPAdapter
from urllib3.exceptions import NewConnectionError

if TYPE_CHECKING:
    from collections.abc import Mapping

TIMEOUT_SEC = (5.0, 65.0)
"""To connect, and to answer: bulk calls take up to 30 s, and a proxy may wait for a drained instance."""


class Unreachable(Exception):
    """The broker did not answer; the message names the address and says why.

    `may_pass`: the same call may succeed later. `no_connection`: nothing listens there, so nothing was sent.
    """

    def __init__(self, message: str, *, may_pass: bool = True, no_connection: bool = False) -> None:
        super().__init__(message)
        self.may_pass = may_pass
        self.no_connection = no_connection


class Refused(Exception):
    """The broker did not do what was asked. The message is the broker's own."""

    def __init__(self, status: int, error: Mapping[str, Any]) -> None:
        super().__init__(error["message"])
        self.status = status
        self.code: str = error["code"]
        self.message: str = error["message"]
        self.request_id: str = error["request_id"]
        self.retry_after: int | None = error.get("retry_after")
        self.details: Mapping[str, Any] = error.get("details") or {}

    @property
    def may_pass(self) -> bool:
        """Whether the same call may succeed later: the API is busy or failing."""
        return _may_pass(self.status)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A successful answer: its JSON object, or its text if another type was asked for."""

    status: int
    request_id: str
    body: dict[str, Any] = field(default_factory=dict)
    text: str = ""
    retry_after: int | None = None


class BrokerHttp:
    """Calls the API at `url`, which has the base path, by connections that all threads share.

    `connections` says how many are kept.
    """

    def __init__(self, url: str, *, connections: int = 1, timeout_sec: tuple[float, float] = TIMEOUT_SEC) -> None:
        self.url = url.rstrip("/")
        self._timeout = timeout_sec
        self._session = requests.Session()
        # One person's cookie must never go out with another person's call.
        self._session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, HTTPAdapter(pool_connections=1, pool_maxsize=connections))

    def mount(self, adapter: requests.adapters.BaseAdapter) -> None:
        """Send every call through `adapter`, for an API that has no address."""
        self._session.mount(self.url, adapter)

    def call(
        self,
        method: str,
        path: str,
        *,
        token: str,
        headers: Mapping[str, str] | None = None,
        accept: str = "application/json",
        timeout_sec: tuple[float, float] | None = None,
        **options: Any,  # noqa: ANN401 - requests' own options
    ) -> Answer:
        """Make a call as the owner of `token`, and return the answer. Redirects are not followed.

        With another type than JSON in `accept`, the answer has the text. `timeout_sec` replaces that of all calls.
        Raises `Refused` and `Unreachable`.
        """
        url = f"{self.url}{path}"

        def authorize(request: requests.PreparedRequest) -> requests.PreparedRequest:
            # As a header of the session it would be replaced by an entry of ~/.netrc.
            request.headers["Authorization"] = f"Bearer {token}"
            return request

        given = {"Accept": accept} | dict(headers or {})
        try:
            answer = self._session.request(
                method,
                url,
                headers=given,
                auth=authorize,
                timeout=timeout_sec or self._timeout,
                allow_redirects=False,
                **options,
            )
            request_id = answer.headers.get("X-Request-ID", "")
            if method == "DELETE" and answer.status_code == HTTPStatus.NO_CONTENT:
                return Answer(status=answer.status_code, request_id=request_id)
            if answer.ok and answer.headers.get("Content-Type", "").startswith(accept) and "json" not in accept:
                return Answer(status=answer.status_code, request_id=request_id, text=answer.text)
            body = answer.json()
        except requests.exceptions.JSONDecodeError:
            raise Unreachable(
                f"{url} answered {answer.status_code} without JSON: is this the broker's API?",
                may_pass=_may_pass(answer.status_code),
            ) from None
        except (requests.RequestException, ValueError) as error:  # requests lets some bad addresses end in ValueError
            raise Unreachable(
                f"{url} cannot be reached ({type(error).__name__}): is BROKER_API_URL right?",
                no_connection=_has_no_connection(error),
            ) from error
        # A job's error is a text. An object is a refusal, even if a proxy changed the status to a success.
        if answer.ok and isinstance(body, dict) and not isinstance(body.get("error"), dict):
            wait = answer.headers.get("Retry-After", "")
            return Answer(
                status=answer.status_code,
                request_id=request_id,
                body=body,
                retry_after=int(wait) if wait.isdecimal() else None,
            )
        try:
            raise Refused(answer.status_code, body["error"])
        except (KeyError, TypeError):
            raise Unreachable(
                f"{url} answered {answer.status_code}: is this the broker's API?", may_pass=False
            ) from None


def quoted(part: str) -> str:
    """Return one part of a path; any text is safe.

    "." and ".." would be steps through the path, and clients undo a single encoding of them. Encoded twice, they arrive
    as ids that nothing has.
    """
    return part.replace(".", "%252E") if part in {".", ".."} else quote(part, safe="")


def _has_no_connection(error: Exception) -> bool:
    """Tell whether there was no connection. requests has one class for that and for a connection that broke off."""
    (cause, *_) = error.args or (None,)
    return isinstance(error, requests.ConnectTimeout) or isinstance(getattr(cause, "reason", None), NewConnectionError)


def _may_pass(status: int) -> bool:
    return status == HTTPStatus.TOO_MANY_REQUESTS or status >= HTTPStatus.INTERNAL_SERVER_ERROR
