# What the API uses of flask-smorest, which ships no types.

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, TypeAlias

import flask
from apispec import APISpec
from marshmallow import Schema
from webargs.flaskparser import FlaskParser

_View: TypeAlias = Callable[..., Any]
_Decorator: TypeAlias = Callable[[_View], _View]

class Blueprint(flask.Blueprint):
    ARGUMENTS_PARSER: ClassVar[FlaskParser]
    def __init__(
        self,
        name: str,
        import_name: str,
        *,
        url_prefix: str | None = None,
        description: str = ...,
    ) -> None: ...
    def route(  # type: ignore[override] # its decorator keeps Any instead of the view's own type
        self,
        rule: str,
        *,
        parameters: Sequence[Mapping[str, Any] | str] | None = None,
        tags: Sequence[str] | None = None,
        **options: object,
    ) -> _Decorator: ...
    def arguments(self, schema: Schema, *, location: str = "json", **options: object) -> _Decorator: ...
    def response(
        self,
        status_code: int,
        schema: Schema | type[Schema] | None = None,
        *,
        description: str | None = None,
        example: object = None,
        headers: Mapping[str, Any] | None = None,
    ) -> _Decorator: ...
    def alt_response(
        self,
        status_code: int,
        response: str | None = None,
        *,
        schema: Schema | type[Schema] | None = None,
        description: str | None = None,
        example: object = None,
        headers: Mapping[str, Any] | None = None,
        success: bool = False,
    ) -> _Decorator: ...
    @staticmethod
    def doc(**kwargs: object) -> _Decorator: ...
    def register_views_in_doc(self, api: Api, *args: object, **options: object) -> None: ...

class Api:
    spec: APISpec
    def __init__(self, app: flask.Flask | None = None, *, spec_kwargs: Mapping[str, Any] | None = None) -> None: ...
    def register_blueprint(self, blp: Blueprint, *, url_prefix: str | None = None) -> None: ...
    def _openapi_json(self) -> flask.Response: ...
