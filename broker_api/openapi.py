"""The API's description: what OpenAPI says about headers, tokens and errors, and the page that shows it."""

from __future__ import annotations

from http import HTTPStatus
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import flask_smorest
from flask import Blueprint, Flask, Response, send_from_directory

from broker_api import tracing
from broker_api.schemas import PLAIN, ErrorSchema

if TYPE_CHECKING:
    from apispec import APISpec

TRACK_SECURITY: list[dict[str, list[str]]] = [{"trackToken": []}]
ADMIN_SECURITY: list[dict[str, list[str]]] = [{"adminToken": []}]
SANDBOX_ID = {"name": "sandbox_id", "in": "path", "required": True, "schema": PLAIN | {"type": "string"}}
JOB_ID = {"name": "job_id", "in": "path", "required": True, "schema": PLAIN | {"type": "string"}}

_HEADERS = {
    "track_id": (
        "X-Track-ID",
        "The calling track; X-Instruqt-Sandbox-ID is an alias, and both must agree",
    ),
    "track_name": ("X-Instruqt-Track-ID", "The lab's name, kept as `track_name`"),
    "name_prefix": ("X-Sandbox-Name-Prefix", "Only sandboxes whose name starts so"),
    "idempotency_key": ("Idempotency-Key", "One sandbox for each key of a track; the track id if left out"),
}


class Api(flask_smorest.Api):
    """flask-smorest, with this API's errors."""

    ERROR_SCHEMA = ErrorSchema

    def _register_error_handlers(self) -> None:
        """Leave errors to `errors`: flask-smorest's own would answer in another shape."""


def errors(*statuses: int) -> dict[int, Any]:
    """Return the documented responses of a call's errors."""
    return {status: HTTPStatus(status).name for status in statuses}


def make_api(app: Flask, base_path: str) -> Api:
    """Serve the description and its page under the base path, and return what blueprints register with."""
    docs = f"{base_path}/docs"
    app.config.update(
        API_TITLE="Sandbox Broker",
        API_VERSION="1",
        OPENAPI_VERSION="3.1.0",
        OPENAPI_URL_PREFIX=base_path,
        OPENAPI_JSON_PATH="openapi.json",
        OPENAPI_SWAGGER_UI_PATH="docs",
        OPENAPI_SWAGGER_UI_URL=f"{docs}/",
        # Without this the page asks a public validator about our description.
        OPENAPI_SWAGGER_UI_CONFIG={"validatorUrl": None, "deepLinking": True, "persistAuthorization": True},
    )
    app.register_blueprint(_page_files(), url_prefix=docs)
    api = Api(app)
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


def _describe_common(spec: APISpec) -> None:
    for scheme, whose in (("trackToken", "A track's token"), ("adminToken", "An operator's token")):
        spec.components.security_scheme(scheme, {"type": "http", "scheme": "bearer", "description": whose})
    for component, (header, description) in _HEADERS.items():
        _describe_header(spec, component, header, description, PLAIN | {"type": "string"})
    comes_back = f"Comes back with the answer; another does, unless it matches {tracing.PATTERN}"
    _describe_header(spec, "request_id", tracing.HEADER, comes_back, {"type": "string"})
    _describe_header(
        spec, "prefer", "Prefer", "`wait=N`: wait up to N (at most 30) seconds for the result", {"type": "string"}
    )


def _describe_header(spec: APISpec, component: str, header: str, description: str, schema: dict[str, Any]) -> None:
    parameter = {"name": header, "required": component == "track_id", "description": description, "schema": schema}
    spec.components.parameter(component, "header", parameter)
