"""A console in this process that calls an API in this process, whose store, queue and clock a test controls."""

from __future__ import annotations

import io
import math
import re
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import requests
from jinja2.bccache import BytecodeCache
from requests.adapters import BaseAdapter
from urllib3 import HTTPConnectionPool, HTTPResponse
from urllib3.connection import HTTPConnection
from urllib3.exceptions import MaxRetryError, NewConnectionError
from werkzeug.serving import make_server

from broker_api.console.app import create_console
from broker_common.adapters.broker_http import BrokerHttp
from broker_common.settings import Process, Settings
from tests.api.harness import ADMIN_TOKEN, Api, make_api

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from types import CodeType

    from flask import Flask
    from flask.testing import FlaskClient
    from jinja2.bccache import Bucket
    from werkzeug.test import TestResponse

API_URL = "http://broker.test/v1"
_TOKEN = re.compile(r'name="csrf_token"[^>]*value="([^"]+)"')


class ToApi(BaseAdapter):
    """Hands requests to an API in this process. While `away`, they fail as if nothing listened.

    So they do after `answers_left` answers. If it `hangs`, they end by time, and so do those to paths that `hang`.
    `waited` has the limits of all `tries`, and `tried` has their paths.
    """

    def __init__(self, api: Api) -> None:
        super().__init__()
        self.away = False
        self.hangs = False
        self.hang: set[str] = set()
        self.tries = 0
        self.tried: list[str] = []
        self.waited: list[object] = []
        self.answers_left = math.inf
        self.sent: list[requests.PreparedRequest] = []
        self._api = api

    def send(self, request: requests.PreparedRequest, **options: Any) -> requests.Response:  # type: ignore[override]
        self.tries += 1
        self.waited.append(options.get("timeout"))
        parts = urlsplit(request.url or "")
        path = parts.path.removeprefix("/v1/admin")
        self.tried.append(path)
        if self.hangs or path in self.hang:
            raise requests.ReadTimeout("no answer in time")
        if self.away or self.answers_left < 1:
            refused = NewConnectionError(HTTPConnection("broker.test"), "refused")
            raise requests.ConnectionError(MaxRetryError(HTTPConnectionPool("broker.test"), path, refused))
        self.answers_left -= 1
        self.sent.append(request)
        answer = self._api.app.test_client().open(
            f"{parts.path}?{parts.query}",
            method=request.method,
            headers=list((request.headers or {}).items()),
            data=request.body,
        )
        found = requests.Response()
        found.status_code = answer.status_code
        found.headers.update(answer.headers)
        found.raw = HTTPResponse(body=io.BytesIO(answer.get_data()), preload_content=False)
        found.url, found.request = request.url or "", request
        return found

    def close(self) -> None:
        """Close nothing."""


@dataclass
class Console:
    """A console, and the API behind it. `open` and `send` act as one browser, which keeps its cookies.

    The browser says, as browsers do, that its requests come from the console's own pages.
    """

    app: Flask
    api: Api
    to_api: ToApi

    def __post_init__(self) -> None:
        self.browser = self.new_browser()

    def new_browser(self) -> FlaskClient:
        """Return another browser, without cookies."""
        browser = self.app.test_client()
        browser.environ_base["HTTP_SEC_FETCH_SITE"] = "same-origin"
        return browser

    def open(self, path: str, **options: Any) -> TestResponse:
        """Get a page, without following redirects."""
        return self.browser.get(path, **options)

    def send(
        self, path: str, form: Mapping[str, Any] | None = None, *, page: str = "/", **options: Any
    ) -> TestResponse:
        """Send a form with the token that `page` has, without following redirects."""
        found = _TOKEN.search(self.browser.get(page).text)
        data = {"csrf_token": found.group(1) if found else ""} | dict(form or {})
        return self.browser.post(path, data=data, **options)

    def sign_in(self, token: str = ADMIN_TOKEN) -> TestResponse:
        """Sign in by a token."""
        return self.send("/signin", {"token": token}, page="/signin")

    def said(self) -> str:
        """Return the text of the overview with the messages that wait for it."""
        return self.browser.get("/").text


class _Compiled(BytecodeCache):
    """Keeps the compiled templates for every console of a test run. To compile them takes longer than most tests."""

    def __init__(self) -> None:
        self._codes: dict[tuple[str, str], CodeType | None] = {}

    def load_bytecode(self, bucket: Bucket) -> None:
        bucket.code = self._codes.get((bucket.key, bucket.checksum))

    def dump_bytecode(self, bucket: Bucket) -> None:
        self._codes[bucket.key, bucket.checksum] = bucket.code


_COMPILED = _Compiled()


def make_console(api: Api | None = None, environ: Mapping[str, str] | None = None) -> Console:
    """Return a console over `api`, or over a new one."""
    api = api or make_api()
    given = {"BROKER_ENV": "development", "BROKER_API_URL": API_URL, "CONSOLE_SECRET_KEY": "k" * 40} | dict(
        environ or {}
    )
    settings = Settings.from_env(given, process=Process.CONSOLE)
    broker, to_api = BrokerHttp(API_URL), ToApi(api)
    broker.mount(to_api)
    app = create_console(settings, broker, api.clock)
    app.jinja_env.bytecode_cache = _COMPILED
    return Console(app, api, to_api)


@contextmanager
def served(app: Flask) -> Iterator[str]:
    """Serve an application on loopback; yields its address."""
    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
