"""The API's description: what OpenAPI says that calls share, and the page that shows it."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from importlib.resources import as_file, files
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import flask_smorest
from apispec import BasePlugin
from flask import Blueprint, Flask, Response, send_from_directory

from broker_api import browsers, rate_limit, tracing
from broker_api.caller import MAX_LENGTH
from broker_api.error_codes import ERROR_CODES, example_of_error
from broker_api.limits import MAX_BODY_BYTES
from broker_api.schemas import PLAIN, ErrorSchema

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from apispec import APISpec

TRACK_SECURITY: list[dict[str, list[str]]] = [{"trackToken": []}]
ADMIN_SECURITY: list[dict[str, list[str]]] = [{"adminToken": []}]
SANDBOX_ID = {
    "name": "sandbox_id",
    "in": "path",
    "required": True,
    "description": "The sandbox",
    "schema": PLAIN | {"type": "string"},
    "example": "2009521",
}
JOB_ID = {
    "name": "job_id",
    "in": "path",
    "required": True,
    "description": "The run, as the call that started it answered",
    "schema": PLAIN | {"type": "string"},
    "example": "3f4d9f0a-3f2b-4dd1-9a54-3d1d8d0f6c11",
}

_CALLER_HEADERS: dict[str, dict[str, Any]] = {
    "track_id": {
        "name": "X-Track-ID",
        "required": True,
        "description": "The calling track. `X-Instruqt-Sandbox-ID` may stand for it",
        "example": "track-4711",
    },
    "track_id_alias": {
        "name": "X-Instruqt-Sandbox-ID",
        "description": "Another name of `X-Track-ID`, which is then not needed; sent beside it, it must say the same",
    },
    "track_name": {"name": "X-Instruqt-Track-ID", "description": "The lab's name, kept as `track_name`"},
    "name_prefix": {"name": "X-Sandbox-Name-Prefix", "description": "Only sandboxes whose name starts with this"},
    "idempotency_key": {
        "name": "Idempotency-Key",
        "description": "A track gets one sandbox for each; the track's id if left out",
    },
}
_OTHER_HEADERS: dict[str, dict[str, Any]] = {
    "request_id": {
        "name": tracing.HEADER,
        "description": "Comes back with the answer if it is 1 to 128 letters, digits, dots, underscores and hyphens; "
        "else the answer has a new one",
    },
    "prefer": {
        "name": "Prefer",
        "description": "`wait=N`: wait for the run's end, for N seconds at most; more than 30 count as 30",
    },
}
_TEXT = {"type": "string"}
_NUMBER = {"type": "integer"}
_ANSWER_HEADERS: dict[str, dict[str, Any]] = {
    tracing.HEADER: {"required": True, "description": "Leads to the request in the log", "schema": _TEXT},
    "Retry-After": {"required": True, "description": "Seconds after which to repeat the request", "schema": _NUMBER},
    "WWW-Authenticate": {
        "required": True,
        "description": "The scheme to use",
        "schema": _TEXT | {"enum": ["Bearer"]},
    },
    "Idempotent-Replayed": {
        "required": True,
        "description": "The answer is what an earlier request was given",
        "schema": _TEXT | {"enum": ["true"]},
    },
    "Preference-Applied": {
        "description": "`wait=N`, with the seconds that the call would wait, if it waited",
        "schema": _TEXT,
    },
    "X-RateLimit-Limit": {"description": "Requests that the caller may make at once", "schema": _NUMBER},
    "X-RateLimit-Remaining": {"description": "Requests that the caller may make now", "schema": _NUMBER},
    "X-RateLimit-Reset": {"description": "Seconds until all of them may be made again", "schema": _NUMBER},
}

_FOR_BROWSERS = ", ".join(f"`{name}: {value}`" for name, value in browsers.HEADERS.items())
_INTRODUCTION = f"""\
Hands each pre-created cloud sandbox to exactly one track at a time, takes it back, and has it wiped.

**Tokens.** A track sends `Authorization: Bearer <track token>` and its id in `X-Track-ID`; an operator sends an admin
token. Neither can make the other's calls.

**Retries.** Any call may be repeated. After a time-out, a lost connection, a 503, or a 409 `NO_SANDBOXES_AVAILABLE`,
send the same request again, in the latter two after the seconds of `Retry-After`.

**Idempotency.** However often it asks, a track gets one sandbox for each `Idempotency-Key` (its own id if it sends
none) until that allocation has ended; a repeated answer carries `Idempotent-Replayed: true`. A mark for deletion may be
repeated until the sandbox is allocated anew; who may repeat it late sends the `lease_id` that allocate answered.

**Requests.** A header's value is 1 to {MAX_LENGTH} printable ASCII characters. A body is a JSON object in UTF-8 of at
most {MAX_BODY_BYTES} bytes; no call of a track needs one. A field or parameter that a call does not have is refused,
and so is one that is given twice. Times are Unix seconds. `HEAD` answers as `GET` does, without the body.

**Errors** have one shape and a stable `code`; each call lists those that it may answer. Besides, an unknown path
answers 404 `NOT_FOUND`, and a known one 405 `METHOD_NOT_ALLOWED` to a method that it does not have, with those that it
has in `Allow`.

**Every answer** carries `X-Request-ID`, which leads to it in the log, and to requests that are counted the
`X-RateLimit-…` headers; health checks and metrics are not counted. For browsers it carries
{_FOR_BROWSERS}, and over HTTPS `Strict-Transport-Security`; to other sites, if an operator lets them in,
`Access-Control-…` and `Vary`.
"""

_OF_EVERY_CALL = (
    "VALIDATION_ERROR",
    "URI_TOO_LONG",
    "EXPECTATION_FAILED",
    "REQUEST_HEADER_FIELDS_TOO_LARGE",
    "INTERNAL_ERROR",
)
_OF_COUNTED_CALLS = ("RATE_LIMIT_EXCEEDED",)
_OF_CALLS_WITH_TOKENS = ("UNAUTHORIZED", "FORBIDDEN")
_OF_CALLS_WITH_BODIES = ("PAYLOAD_TOO_LARGE",)
_HEADERS_OF_ERRORS = {401: ["WWW-Authenticate"]}


def answered_with(*headers: str) -> dict[str, dict[str, str]]:
    """Return references to the descriptions of these headers of an answer."""
    return {header: {"$ref": f"#/components/headers/{header}"} for header in headers}


class _WhatCallsShare(BasePlugin):
    """Describes what no call has for itself: the header that all read, those that all answer, and their errors.

    A call names, as `errors`, the codes that only some calls answer.
    """

    def init_spec(self, spec: APISpec) -> None:
        """Keep the description that answers are added to."""
        super().init_spec(spec)
        self._components = spec.components

    def operation_helper(
        self,
        path: str | None = None,
        operations: dict[str, Any] | None = None,
        **_: Any,  # noqa: ANN401 - apispec's signature
    ) -> None:
        """Complete the operations of a path."""
        is_counted = path not in rate_limit.EXEMPT
        headers = answered_with(tracing.HEADER, *(rate_limit.HEADERS if is_counted else ()))
        for method, operation in (operations or {}).items():
            operation["parameters"] = [*operation.get("parameters", ()), "request_id"]
            codes = {*operation.pop("errors", ()), *_OF_EVERY_CALL}
            codes |= {*(_OF_COUNTED_CALLS if is_counted else ())}
            codes |= {*(_OF_CALLS_WITH_TOKENS if operation["security"] else ())}
            codes |= {*(_OF_CALLS_WITH_BODIES if method == "post" else ())}
            answers = {
                status: answer | {"headers": answer.get("headers", {}) | headers}
                for status, answer in operation["responses"].items()
                if isinstance(answer, dict)
            }
            operation["responses"] = dict(sorted((self._describe_errors(codes) | answers).items()))

    def _describe_errors(self, codes: Iterable[str]) -> dict[int, str]:
        """Return the answers that have these codes, by status, each by the name of the component that describes it."""
        known = [code for code in ERROR_CODES if code in set(codes)]
        by_status = groupby(sorted(known, key=_status_of), _status_of)
        return {status: self._describe_answer(status, list(its)) for status, its in by_status}

    def _describe_answer(self, status: int, codes: list[str]) -> str:
        name = "_or_".join(codes)
        if name not in self._components.responses:
            for code in codes:
                if code not in self._components.examples:
                    self._components.example(code, {"value": example_of_error(code)})
            waits = [code for code in codes if ERROR_CODES[code].retry_after is not None]
            headers = [*_HEADERS_OF_ERRORS.get(status, ()), *(["Retry-After"] if waits else [])]
            examples = {code: {"$ref": f"#/components/examples/{code}"} for code in codes}
            answer = {
                "description": "\n\n".join(
                    f"`{code}`: {ERROR_CODES[code].meaning} {ERROR_CODES[code].remedy}" for code in codes
                ),
                "headers": answered_with(*headers, tracing.HEADER, *rate_limit.HEADERS),
                "content": {"application/json": {"schema": ErrorSchema, "examples": examples}},
            }
            self._components.response(name, answer)
        return name


def _status_of(code: str) -> int:
    return ERROR_CODES[code].status.value


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


def leads_to(
    operation: str, parameters: Mapping[str, str], body: Mapping[str, str] | None = None
) -> dict[str, dict[str, Any]]:
    """Return the link from an answer to the call that takes these parts of it, or of its request.

    Source: OpenAPI 3.1, "Link Object" and "Runtime Expressions".
    """
    link: dict[str, Any] = {"operationId": operation, "parameters": dict(parameters)}
    return {operation: link | ({"requestBody": dict(body)} if body else {})}


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
                    media_type: {"schema": _TEXT, "example": f"broker_pool_available 42.0\n{end}"}
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
                "content": {"text/html": {"schema": _TEXT, "example": "<!DOCTYPE html>"}},
            }
        },
    },
}


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
            "showCommonExtensions": True,
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
            "extra_plugins": [_WhatCallsShare()],
        },
    )
    _describe_common(api.spec)
    return api


def describe_pages(app: Flask, spec: APISpec) -> None:
    """Describe what others than our blueprints serve."""
    spec.tag({"name": "docs", "description": "This description"})
    rules = {rule.endpoint: rule for rule in app.url_map.iter_rules()}
    for endpoint, operation in _PAGES.items():
        spec.path(rule=rules[endpoint], operations={"get": operation | {"security": []}})


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
    except PackageNotFoundError:  # run from its source tree, without being installed
        return "unreleased"


def _describe_common(spec: APISpec) -> None:
    for scheme, whose in (
        ("trackToken", "A track's token; it may be bound to the tracks whose id begins with a prefix"),
        ("adminToken", "An operator's token"),
    ):
        spec.components.security_scheme(scheme, {"type": "http", "scheme": "bearer", "description": whose})
    for name, header in _CALLER_HEADERS.items():
        spec.components.parameter(name, "header", {"schema": PLAIN | _TEXT} | header)
    for name, header in _OTHER_HEADERS.items():
        spec.components.parameter(name, "header", {"schema": _TEXT} | header)
    for name, described in _ANSWER_HEADERS.items():
        spec.components.header(name, described)
