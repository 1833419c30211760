"""A blueprint that takes nothing it did not ask for: strict JSON bodies, strict query strings, 400 for the rest."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NoReturn

import flask_smorest
from flask import current_app, request
from marshmallow import RAISE
from webargs.core import is_json
from webargs.flaskparser import FlaskParser

from broker_api.caller import MAX_LENGTH, is_plain
from broker_api.errors import RequestInvalid

if TYPE_CHECKING:
    from collections.abc import Callable

    from flask import Request
    from marshmallow import Schema, ValidationError

_UNKNOWN = "Unknown field."


class StrictParser(FlaskParser):
    """Parses bodies and query strings so that nothing is silently dropped or overridden."""

    DEFAULT_VALIDATION_STATUS = 400
    DEFAULT_UNKNOWN_BY_LOCATION = {"json": RAISE, "query": RAISE}  # noqa: RUF012 - as the parent class declares it

    def load_json(self, req: Request, schema: Schema) -> dict[str, Any]:  # noqa: ARG002 - webargs' signature
        """Return the body, an empty one as {}."""
        return _read_body(req)

    def load_querystring(self, req: Request, schema: Schema) -> dict[str, str]:  # noqa: ARG002 - webargs' signature
        """Return the query's parameters, each given once."""
        return _read_query(req)

    def handle_error(self, error: ValidationError, *_args: object, **_options: object) -> NoReturn:
        """Raise `RequestInvalid` with the messages by field."""
        # webargs files the messages under their location, which tells a caller nothing.
        (messages,) = error.normalized_messages().values()  # type: ignore[no-untyped-call] # marshmallow leaves it untyped
        raise RequestInvalid({str(name): _flatten(texts) for name, texts in messages.items()}) from error


class Blueprint(flask_smorest.Blueprint):
    """A blueprint whose views declare, by `arguments`, all that they read of a query or body."""

    ARGUMENTS_PARSER = StrictParser()

    def arguments(self, schema: Schema, *, location: str = "json", **options: Any) -> Callable[[Any], Any]:  # noqa: ANN401 - flask-smorest's
        """Declare what a view reads; see flask-smorest."""
        decorate = super().arguments(schema, location=location, **options)

        def declare(view: Any) -> Any:  # noqa: ANN401 - flask-smorest's views
            reads = getattr(view, "reads", frozenset()) | {location}
            view = decorate(view)
            view.reads = reads
            return view

        return declare


def refuse_surplus() -> None:
    """Refuse a query or body that the view does not read; an empty body, and an empty object, are nothing."""
    reads = getattr(current_app.view_functions[request.endpoint or ""], "reads", ())
    if "query" not in reads and request.environ.get("QUERY_STRING"):
        _refuse(_read_query(request))
    if "json" not in reads and request.method == "POST":
        _refuse(_read_body(request))


def require_plain(name: str, value: str) -> None:
    """Raise `RequestInvalid` unless a part of the path is 1 to 128 printable ASCII characters."""
    if not is_plain(value):
        raise RequestInvalid({name: [f"Must be 1 to {MAX_LENGTH} printable ASCII characters."]})


def _refuse(surplus: dict[str, Any]) -> None:
    if surplus:
        raise RequestInvalid({name: [_UNKNOWN] for name in surplus})


def _read_query(req: Request) -> dict[str, str]:
    parameters = dict(req.args.lists())
    repeated = {name: ["Must be given once."] for name, values in parameters.items() if len(values) > 1}
    if repeated:
        raise RequestInvalid(repeated)
    return {name: values[0] for name, values in parameters.items()}


def _read_body(req: Request) -> dict[str, Any]:
    data = req.get_data()
    if not data:
        return {}
    if not is_json(req.mimetype):
        raise RequestInvalid({"Content-Type": ["Must be application/json."]})
    try:
        body = json.loads(data, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise RequestInvalid({"body": ["Must be JSON."]}) from error
    if not isinstance(body, dict):
        raise RequestInvalid({"body": ["Must be a JSON object."]})
    return body


def _refuse_constant(name: str) -> NoReturn:
    # NaN and Infinity are Python's, not JSON's (RFC 8259, section 6).
    raise ValueError(f"{name} is not JSON")


def _flatten(texts: Any) -> list[str]:  # noqa: ANN401 - marshmallow nests messages as the data is nested
    if isinstance(texts, dict):
        return [text for nested in texts.values() for text in _flatten(nested)]
    return [str(text) for text in texts]
