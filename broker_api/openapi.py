"""The API's description: what OpenAPI says about headers, tokens and errors, and the page that shows it."""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import flask_smorest
from apispec import BasePlugin
from flask import Blueprint, Flask, Response, send_from_directory

from broker_api import tracing
from broker_api.errors import describe, make_body
from broker_api.schemas import PLAIN, ErrorSchema

if TYPE_CHECKING:
    from collections.abc import Mapping

    from apispec import APISpec

TRACK_SECURITY: list[dict[str, list[str]]] = [{"trackToken": []}]
ADMIN_SECURITY: list[dict[str, list[str]]] = [{"adminToken": []}]
DOCS_PAGE = "api-docs.openapi_swagger_ui"
"""The page's endpoint, as flask-smorest names it."""
SANDBOX_ID = {"name": "sandbox_id", "in": "path", "required": True, "schema": PLAIN | {"type": "string"}}
JOB_ID = {"name": "job_id", "in": "path", "required": True, "schema": PLAIN | {"type": "string"}}

_HEADERS = {
    "track_id": ("X-Track-ID", "The calling track. Its alias X-Instruqt-Sandbox-ID may stand for it; both must agree"),
    "track_name": ("X-Instruqt-Track-ID", "The lab's name, kept as `track_name`"),
    "name_prefix": ("X-Sandbox-Name-Prefix", "Only sandboxes whose name starts so"),
    "idempotency_key": ("Idempotency-Key", "One sandbox for each key of a track; the track id if left out"),
}


_INTRODUCTION = """\
Hands each pre-created cloud sandbox to exactly one track at a time, takes it back, and has it wiped.

**Tokens.** A track sends `Authorization: Bearer <track token>` and its id in `X-Track-ID`; an operator sends an admin
token. Neither can make the other's calls.

**Retries.** Any call may be repeated. After a time-out, a lost connection, a 503, or a 409 `NO_SANDBOXES_AVAILABLE`,
send the same request again, in the latter two after the seconds of `Retry-After`.

**Idempotency.** However often it asks, a track gets one sandbox for each `Idempotency-Key` (its own id if it sends
none) until that allocation has ended; a repeated answer carries `Idempotent-Replayed: true`. A mark for deletion may be
repeated until the sandbox is allocated anew; who may repeat it late sends the `lease_id` that allocate answered.

**Errors** have one shape and a stable `code`. Every answer carries `X-Request-ID`, which leads to it in the log.
"""


@dataclass(frozen=True, slots=True)
class _Example:
    """An error as it may be met."""

    status: HTTPStatus
    message: str
    retry_after: int | None = None
    details: dict[str, list[str]] | None = None


EXAMPLES = {
    "VALIDATION_ERROR": _Example(
        HTTPStatus.BAD_REQUEST,
        "X-Track-ID: Missing: the calling track's id.",
        details={"X-Track-ID": ["Missing: the calling track's id."]},
    ),
    "UNAUTHORIZED": _Example(HTTPStatus.UNAUTHORIZED, "the token is unknown"),
    "FORBIDDEN": _Example(HTTPStatus.FORBIDDEN, "the token is not meant for this call"),
    "NOT_SANDBOX_OWNER": _Example(HTTPStatus.FORBIDDEN, "sandbox '2009521' is not held by this track"),
    "SANDBOX_NOT_FOUND": _Example(HTTPStatus.NOT_FOUND, "there is no sandbox '2009521'"),
    "JOB_NOT_FOUND": _Example(HTTPStatus.NOT_FOUND, "there is no job '3f4d9f0a-3f2b-4dd1-9a54-3d1d8d0f6c11'"),
    "NO_SANDBOXES_AVAILABLE": _Example(HTTPStatus.CONFLICT, "no sandbox is available", retry_after=30),
    "LEASE_MISMATCH": _Example(HTTPStatus.CONFLICT, "sandbox '2009521' is not held under this lease_id"),
    "INVALID_TRANSITION": _Example(HTTPStatus.CONFLICT, "a sandbox that is allocated cannot be quarantined"),
    "RATE_LIMIT_EXCEEDED": _Example(HTTPStatus.TOO_MANY_REQUESTS, "too many requests", retry_after=1),
    "PAYLOAD_TOO_LARGE": _Example(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, describe(413)[1]),
    "URI_TOO_LONG": _Example(HTTPStatus.REQUEST_URI_TOO_LONG, describe(414)[1]),
    "REQUEST_HEADER_FIELDS_TOO_LARGE": _Example(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, describe(431)[1]),
    "INTERNAL_ERROR": _Example(HTTPStatus.INTERNAL_SERVER_ERROR, describe(500)[1]),
    "SERVICE_UNAVAILABLE": _Example(HTTPStatus.SERVICE_UNAVAILABLE, "DynamoDB does not answer", retry_after=1),
    "PAUSED": _Example(HTTPStatus.SERVICE_UNAVAILABLE, "allocation is paused by an operator", retry_after=30),
    "QUEUE_UNAVAILABLE": _Example(
        HTTPStatus.SERVICE_UNAVAILABLE, "the job queue cannot be reached; nothing was started", retry_after=5
    ),
}
"""One of every error code that a call is described with."""
_OF_EVERY_CALL = (
    "VALIDATION_ERROR",
    "UNAUTHORIZED",
    "FORBIDDEN",
    "URI_TOO_LONG",
    "REQUEST_HEADER_FIELDS_TOO_LARGE",
    "RATE_LIMIT_EXCEEDED",
    "INTERNAL_ERROR",
)
RATE_LIMIT_HEADERS = {
    "X-RateLimit-Limit": "Requests that may be made at once",
    "X-RateLimit-Remaining": "Requests that may be made now",
    "X-RateLimit-Reset": "Seconds until all of them may be made again",
}


def _refer_to(header: str) -> dict[str, str]:
    return {"$ref": f"#/components/headers/{header}"}


_REQUEST_ID = {tracing.HEADER: _refer_to(tracing.HEADER)}
_RATE_LIMIT = {name: _refer_to(name) for name in RATE_LIMIT_HEADERS}
_RETRY_AFTER = {"Retry-After": _refer_to("Retry-After")}
_WWW_AUTHENTICATE = {"WWW-Authenticate": _refer_to("WWW-Authenticate")}


class _HeadersOfEveryAnswer(BasePlugin):
    """Describes the headers that every answer carries; the rate limit's only where there is one."""

    def operation_helper(
        self,
        path: str | None = None,  # noqa: ARG002 - apispec's signature
        operations: dict[str, Any] | None = None,
        **_: Any,  # noqa: ANN401 - the same
    ) -> None:
        """Add it to the answers of a path's operations."""
        for operation in (operations or {}).values():
            carried = _REQUEST_ID | (_RATE_LIMIT if operation["security"] else {})
            for response in operation["responses"].values():
                if isinstance(response, dict):  # pragma: no branch - apispec has references too, and we have none
                    response["headers"] = response.get("headers", {}) | carried


class Api(flask_smorest.Api):
    """flask-smorest, with this API's errors, and without the header of paged answers that it has none of."""

    ERROR_SCHEMA = ErrorSchema
    # Each call lists all of its answers: a default would describe every one that it lacks.
    DEFAULT_ERROR_RESPONSE_NAME = None

    def _register_pagination_header(self) -> None:
        """Leave it out: its schema would stand in the description, used by nothing."""

    def _register_error_handlers(self) -> None:
        """Leave errors to `errors`: flask-smorest's own would answer in another shape."""


def errors(*codes: str) -> dict[int, Any]:
    """Return the documented responses of a call's errors: those with these codes, and those that any call may have."""
    responses: dict[int, Any] = {}
    for code in sorted({*_OF_EVERY_CALL, *codes}, key=list(EXAMPLES).index):
        example = EXAMPLES[code]
        response = responses.setdefault(example.status.value, _describe_error(example.status.phrase))
        if example.retry_after is not None:
            response["headers"] = _RETRY_AFTER
        if example.status is HTTPStatus.UNAUTHORIZED:
            response["headers"] = _WWW_AUTHENTICATE
        response["content"]["application/json"]["examples"][code] = {"$ref": f"#/components/examples/{code}"}
    return responses


def leads_to(
    operation: str, parameters: Mapping[str, str], body: Mapping[str, str] | None = None
) -> dict[str, dict[str, Any]]:
    """Return the link from an answer to the call that takes these parts of it, or of its request.

    Source: OpenAPI 3.1, "Link Object" and "Runtime Expressions".
    """
    link: dict[str, Any] = {"operationId": operation, "parameters": dict(parameters)}
    return {operation: link | ({"requestBody": dict(body)} if body else {})}


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
        OPENAPI_SWAGGER_UI_CONFIG={"validatorUrl": None, "deepLinking": True, "persistAuthorization": True},
    )
    page_files = _page_files()
    app.register_blueprint(page_files, url_prefix=docs)
    # The page names no icon of its own, and browsers ask here then.
    app.add_url_rule("/favicon.ico", f"{page_files.name}.page_file", defaults={"filename": "favicon-32x32.png"})
    api = Api(app, spec_kwargs={"info": {"description": _INTRODUCTION}, "extra_plugins": [_HeadersOfEveryAnswer()]})
    _describe_common(api.spec)
    return api


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


def _describe_error(description: str) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": ErrorSchema, "examples": {}}}}


def _describe_common(spec: APISpec) -> None:
    for scheme, whose in (("trackToken", "A track's token"), ("adminToken", "An operator's token")):
        spec.components.security_scheme(scheme, {"type": "http", "scheme": "bearer", "description": whose})
    for component, (header, description) in _HEADERS.items():
        required = header == "X-Track-ID"
        _describe_header(spec, component, header, description, PLAIN | {"type": "string"}, required=required)
    for code, example in EXAMPLES.items():
        body = make_body(code, example.message, "0f3c1f0e-6f0a-4f5e-9a4e-2f1d8d0f6c11")
        optional = {"retry_after": example.retry_after, "details": example.details}
        body |= {name: value for name, value in optional.items() if value is not None}
        spec.components.example(code, {"value": {"error": body}})
    spec.components.header(
        tracing.HEADER,
        {"description": "The request's id, for whoever reads the log", "required": True, "schema": {"type": "string"}},
    )
    for header, description in RATE_LIMIT_HEADERS.items():
        spec.components.header(header, {"description": description, "schema": {"type": "integer"}})
    spec.components.header(
        "Retry-After",
        {"description": "Seconds after which to repeat the request", "required": True, "schema": {"type": "integer"}},
    )
    spec.components.header(
        "WWW-Authenticate",
        {"description": "The scheme to use", "required": True, "schema": {"type": "string", "enum": ["Bearer"]}},
    )
    comes_back = f"Comes back with the answer; another does, unless it matches {tracing.PATTERN}"
    _describe_header(spec, "request_id", tracing.HEADER, comes_back, {"type": "string"})
    _describe_header(
        spec, "prefer", "Prefer", "`wait=N`: wait up to N (at most 30) seconds for the result", {"type": "string"}
    )


def _describe_header(
    spec: APISpec, component: str, header: str, description: str, schema: dict[str, Any], *, required: bool = False
) -> None:
    parameter = {"name": header, "required": required, "description": description, "schema": schema}
    spec.components.parameter(component, "header", parameter)
