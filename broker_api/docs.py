"""Serves the API's description, the page that shows it, and the files of that page."""

from __future__ import annotations

import threading
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import flask_smorest
from flask import Blueprint, Flask, Response, send_from_directory

from broker_api import browsers
from broker_api.answer import HEADERS
from broker_api.bounds import MAX_BODY_BYTES
from broker_api.caller import MAX_LENGTH
from broker_api.description_files import read_introduction, read_tag
from broker_api.errors import ERRORS
from broker_api.openapi import SharedDescription, describe_shared_parts

if TYPE_CHECKING:
    from collections.abc import Callable

    from apispec import APISpec

_FOR_BROWSERS = ", ".join(f"`{name}: {value}`" for name, value in HEADERS.items())
_ERRORS = "\n".join(
    [
        "| code | status | meaning | what to do |",
        "|---|---|---|---|",
        *(
            f'| <a id="{error.code}"></a>`{error.code}` | {error.status} | {error.meaning} | {error.remedy} |'
            for error in ERRORS
            if error.message
        ),
    ]
)

_PAGES: dict[str, dict[str, Any]] = {
    "prometheus_metrics": {
        "operationId": "metrics",
        "tags": ["health"],
        "summary": "Show the metrics of all processes of this API, for Prometheus.",
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
        "summary": "Show this description as a page, to read it and to try calls.",
        "responses": {
            200: {
                "description": "A page for browsers",
                "content": {"text/html": {"schema": {"type": "string"}, "example": "<!DOCTYPE html>"}},
            }
        },
    },
}


class Api(flask_smorest.Api):
    """flask-smorest without its own errors and its own header of paged answers.

    It describes the routes when the description is first asked for: that takes longer than all else at a start.
    """

    # Each call lists all of its answers. A default answer would permit every answer that a call does not list.
    DEFAULT_ERROR_RESPONSE_NAME = None

    def __init__(self, app: Flask, **options: Any) -> None:  # noqa: ANN401 - flask-smorest's
        self._undescribed: list[Callable[[], None]] = []
        self._describing = threading.Lock()
        super().__init__(app, **options)

    def describe_later(self, describe: Callable[[], None]) -> None:
        """Call `describe` before the description is first shown. The calls come in the order of their registration."""
        self._undescribed.append(describe)

    def _openapi_json(self) -> Response:
        with self._describing:
            while self._undescribed:
                self._undescribed[0]()
                self._undescribed.pop(0)
        answer: Response = super()._openapi_json()
        return answer

    def _register_responses(self) -> None:
        """Add no answers: `openapi.py` describes errors in this API's own shape."""

    def _register_pagination_header(self) -> None:
        """Add no schema: no call uses it."""

    def _register_error_handlers(self) -> None:
        """Add no handlers: `error_answers.py` answers errors in this API's own shape."""


def make_api(app: Flask, base_path: str) -> Api:
    """Serve the description and its page under `base_path`, and return the API that blueprints are registered with."""
    docs = f"{base_path}/docs"
    app.config.update(
        API_TITLE="Sandbox Broker",
        API_VERSION=_version(),
        OPENAPI_VERSION="3.1.0",
        OPENAPI_URL_PREFIX=base_path,
        OPENAPI_JSON_PATH="openapi.json",
        OPENAPI_SWAGGER_UI_PATH="docs",
        OPENAPI_SWAGGER_UI_URL=f"{docs}/",
        # Without this, the page sends the description to a public validator.
        OPENAPI_SWAGGER_UI_CONFIG={
            "validatorUrl": None,
            "deepLinking": True,
            "persistAuthorization": True,
            "defaultModelsExpandDepth": 0,
        },
    )
    page_files = _page_files()
    app.register_blueprint(page_files, url_prefix=docs)
    # The page names no icon, so browsers ask for this path.
    app.add_url_rule("/favicon.ico", f"{page_files.name}.page_file", defaults={"filename": "favicon-32x32.png"})
    api = Api(
        app,
        spec_kwargs={
            "info": {
                "description": read_introduction(
                    base_path,
                    max_length=MAX_LENGTH,
                    max_body_bytes=MAX_BODY_BYTES,
                    errors=_ERRORS,
                    browser_headers=_FOR_BROWSERS,
                )
            },
            "servers": [{"url": "/", "description": "This broker"}],
            "extra_plugins": [SharedDescription(base_path)],
        },
    )
    describe_shared_parts(api.spec)
    return api


def describe_pages(app: Flask, api: Api) -> None:
    """Describe the pages that are not routes of a blueprint."""
    api.spec.tag({"name": "docs", "description": read_tag("docs")})
    api.describe_later(partial(_describe_pages, app, api.spec))


def _describe_pages(app: Flask, spec: APISpec) -> None:
    rules = {rule.endpoint: rule for rule in app.url_map.iter_rules()}
    for endpoint, operation in _PAGES.items():
        spec.path(rule=rules[endpoint], operations={"get": operation | {"role": None}})


def _page_files() -> Blueprint:
    """Return a blueprint that serves Swagger UI's files from the package that ships them."""
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
    except PackageNotFoundError:  # pragma: no cover - it runs from its source tree, and is not installed
        return "unreleased"
