"""Serves the API's description, and the page that shows it with all of its files."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import flask_smorest
from flask import Blueprint, Flask, Response, send_from_directory

from broker_api import browsers
from broker_api.bounds import MAX_BODY_BYTES
from broker_api.caller import MAX_LENGTH
from broker_api.errors import ERRORS
from broker_api.openapi import SharedDescription, describe_shared_parts

if TYPE_CHECKING:
    from apispec import APISpec

_FOR_BROWSERS = ", ".join(f"`{name}: {value}`" for name, value in browsers.HEADERS.items())
_ERRORS = "\n".join(
    f'| <a id="{error.code}"></a>`{error.code}` | {error.status} | {error.meaning} | {error.remedy} |'
    for error in ERRORS
    if error.message
)
_INTRODUCTION = f"""\
Hands each pre-created cloud sandbox to exactly one track at a time, takes it back, and has it wiped.

**Tokens.** A caller sends `Authorization: Bearer <token>`. Each call says which role the token needs. With the role
`track` it makes a track's calls, and sends the track's id in `X-Track-ID`. Operators have one of three other roles, and
each may do all that the one before it may: `viewer` reads; `operator` also starts jobs, pauses them, and changes
sandboxes; `admin` also removes records. None of these three makes a track's calls.

**Retries.** Any call may be repeated. After a time-out, a lost connection, a 503, or a 409 `NO_SANDBOXES_AVAILABLE`,
send the same request again, in the latter two after the seconds of `Retry-After`.

**Idempotency.** However often it asks, a track gets one sandbox for each `Idempotency-Key` (its own id if it sends
none) until that allocation has ended; a repeated answer carries `Idempotent-Replayed: true`. A mark for deletion may be
repeated until the sandbox is allocated anew; who may repeat it late sends the `lease_id` that allocate answered.

**Requests.** An id, and the value of a header that names something, is 1 to {MAX_LENGTH} printable ASCII characters. A
body is a JSON object in UTF-8 of at most {MAX_BODY_BYTES} bytes; no call of a track needs one. A field or parameter
that a call does not have is refused, and so is one that is given twice. Times are Unix seconds. `HEAD` answers as `GET`
does, without the body.

**Errors** have one shape and a stable `code`; each call lists those that it may answer. Besides, an unknown path
answers 404 `NOT_FOUND`, and a known one 405 `METHOD_NOT_ALLOWED` to a method that it does not have, with those that it
has in `Allow`. With `Accept: application/problem+json` an error says the same in the shape of RFC 9457; its `type`
leads to this page.

| code | status | meaning | what to do |
|---|---|---|---|
{_ERRORS}

**Every answer** carries `X-Request-ID`, which leads to it in the log, and to requests that are counted the
`RateLimit…` and `X-RateLimit-…` headers; health checks and metrics are not counted. For browsers it carries
{_FOR_BROWSERS}, and over HTTPS `Strict-Transport-Security`; to other sites, if an operator lets them in,
`Access-Control-…`. `Vary` names what else an answer depends on.
"""

_PAGES: dict[str, dict[str, Any]] = {
    "prometheus_metrics": {
        "operationId": "metrics",
        "tags": ["health"],
        "summary": "Show what all of this API's processes have counted, for Prometheus.",
        "description": "The pool's gauges are read from the store, and absent while it is away.",
        "parameters": [
            {
                "name": "name[]",
                "in": "query",
                "description": "Only the series of these names",
                "schema": {"type": "array", "items": {"type": "string"}},
            }
        ],
        "responses": {
            200: {
                "description": "The series, in the format that `Accept` prefers",
                "content": {
                    media_type: {"schema": {"type": "string"}, "example": f"broker_pool_available 42.0\n{end}"}
                    for media_type, end in (("text/plain", ""), ("application/openmetrics-text", "# EOF\n"))
                },
            }
        },
    },
    "api-docs.openapi_json": {
        "operationId": "openapi",
        "tags": ["docs"],
        "summary": "Describe the API: this document.",
        "description": "For tools that make clients, tests and mock servers.",
        "responses": {
            200: {
                "description": "An OpenAPI 3.1 document",
                "content": {
                    "application/json": {
                        "schema": {"type": "object"},
                        "example": {"openapi": "3.1.0", "info": {"title": "Sandbox Broker"}, "paths": {}},
                    }
                },
            }
        },
    },
    browsers.DOCS_PAGE: {
        "operationId": "docs",
        "tags": ["docs"],
        "summary": "Show the description as a page, to read it and to try calls.",
        "description": "Its scripts and styles come from here, too: it needs nothing from another site.",
        "responses": {
            200: {
                "description": "A page for browsers",
                "content": {"text/html": {"schema": {"type": "string"}, "example": "<!DOCTYPE html>"}},
            }
        },
    },
}


class Api(flask_smorest.Api):
    """flask-smorest, with this API's errors, and without the header of paged answers that it has none of."""

    # Each call lists all of its answers: a default would describe every one that it lacks.
    DEFAULT_ERROR_RESPONSE_NAME = None

    def _register_responses(self) -> None:
        """Leave them out: they have names of ours and another shape."""

    def _register_pagination_header(self) -> None:
        """Leave it out: its schema would stand in the description, used by nothing."""

    def _register_error_handlers(self) -> None:
        """Leave errors to `errors`: flask-smorest's own would answer in another shape."""


def make_api(app: Flask, base_path: str) -> Api:
    """Serve the description and its page under the base path, and return what blueprints register with."""
    docs = f"{base_path}/docs"
    app.config.update(
        API_TITLE="Sandbox Broker",
        API_VERSION=_version(),
        OPENAPI_VERSION="3.1.0",
        OPENAPI_URL_PREFIX=base_path,
        OPENAPI_JSON_PATH="openapi.json",
        OPENAPI_SWAGGER_UI_PATH="docs",
        OPENAPI_SWAGGER_UI_URL=f"{docs}/",
        # Without this the page asks a public validator about our description.
        OPENAPI_SWAGGER_UI_CONFIG={
            "validatorUrl": None,
            "deepLinking": True,
            "persistAuthorization": True,
            "defaultModelsExpandDepth": 0,
        },
    )
    page_files = _page_files()
    app.register_blueprint(page_files, url_prefix=docs)
    # The page names no icon of its own, and browsers ask here then.
    app.add_url_rule("/favicon.ico", f"{page_files.name}.page_file", defaults={"filename": "favicon-32x32.png"})
    api = Api(
        app,
        spec_kwargs={
            "info": {"description": _INTRODUCTION},
            "servers": [{"url": "/", "description": "This broker"}],
            "extra_plugins": [SharedDescription(base_path)],
        },
    )
    describe_shared_parts(api.spec)
    return api


def describe_pages(app: Flask, spec: APISpec) -> None:
    """Describe what others than our blueprints serve."""
    spec.tag({"name": "docs", "description": "This description"})
    rules = {rule.endpoint: rule for rule in app.url_map.iter_rules()}
    for endpoint, operation in _PAGES.items():
        spec.path(rule=rules[endpoint], operations={"get": operation | {"role": None}})


def _page_files() -> Blueprint:
    """Serve Swagger UI's own files from the package that ships them."""
    blueprint = Blueprint("docs_files", __name__)
    with as_file(files("flask_swagger_ui") / "dist") as path:
        directory = Path(path)

    @blueprint.get("/<path:filename>")
    def page_file(filename: str) -> Response:
        return send_from_directory(directory, filename)

    return blueprint


def _version() -> str:
    try:
        return version("sandbox-broker")
    except PackageNotFoundError:  # pragma: no cover - run from its source tree, without being installed
        return "unreleased"
