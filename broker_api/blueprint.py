"""A blueprint whose views read only what they declare: anything else in a query or JSON body is answered 400.

Each route declares the role that its calls need. Each body that a view reads or answers is described with an example.
"""

from __future__ import annotations

import json
from collections import Counter
from functools import partial, wraps
from typing import TYPE_CHECKING, Any, NoReturn

import flask_smorest
from flask import Response
from marshmallow import RAISE
from webargs.core import is_json
from webargs.flaskparser import FlaskParser
from werkzeug.exceptions import RequestEntityTooLarge

from broker_api.auth import require_role
from broker_api.bounds import MAX_BODY_BYTES
from broker_api.caller import MAX_LENGTH, find_fault
from broker_api.current import current
from broker_api.description_files import read_tag
from broker_api.errors import RequestInvalid
from broker_api.schemas.parts import example_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from flask import Request
    from marshmallow import Schema, ValidationError

    from broker_common.core.principals import Role

_UNKNOWN = "Unknown field."
_REPEATED = "Must be given once."


class StrictParser(FlaskParser):
    """Parses bodies and query strings. It never drops or overrides anything silently."""

    DEFAULT_VALIDATION_STATUS = 400
    DEFAULT_UNKNOWN_BY_LOCATION = {"json": RAISE, "query": RAISE}  # noqa: RUF012 - as the parent class declares it

    def load_json(self, req: Request, schema: Schema) -> dict[str, Any]:  # noqa: ARG002 - webargs' signature
        """Return the body; {} if it is empty."""
        return _read_body(req)

    def load_querystring(self, req: Request, schema: Schema) -> dict[str, str]:  # noqa: ARG002 - webargs' signature
        """Return the query's parameters. Raises `RequestInvalid` if one is given twice."""
        return _read_query(req)

    def handle_error(self, error: ValidationError, *_args: object, **_options: object) -> NoReturn:
        """Raise `RequestInvalid` with the messages by field."""
        # webargs groups the messages by their location, which does not help a caller.
        (messages,) = error.normalized_messages().values()  # type: ignore[no-untyped-call] # marshmallow leaves it untyped
        raise RequestInvalid({name: _flatten(texts) for name, texts in sorted(messages.items())}) from error


class Blueprint(flask_smorest.Blueprint):
    """A blueprint whose views declare, by `arguments`, everything that they read of a query or body.

    Its name is also its tag in the API's description.
    """

    ARGUMENTS_PARSER = StrictParser()

    def __init__(self, name: str, import_name: str) -> None:
        super().__init__(name, import_name, description=read_tag(name))
        self.before_request(require_role)

    def register_views_in_doc(self, api: Any, *args: Any, **options: Any) -> None:  # noqa: ANN401 - flask-smorest's
        """Have the views described when the description is first asked for."""
        api.describe_later(partial(super().register_views_in_doc, api, *args, **options))

    def route(self, rule: str, *, role: Role | None, **options: Any) -> Callable[[Any], Any]:  # type: ignore[override] # noqa: ANN401 - flask-smorest's; no route of ours may be without a role
        """Declare a route and the role that its calls need; with None they need no token. See flask-smorest."""
        register = super().route(rule, **options)

        def declare(view: Any) -> Any:  # noqa: ANN401 - flask-smorest's views
            view = self.doc(role=role)(view)
            view.role = role
            return register(view)

        return declare

    def arguments(self, schema: Schema, *, location: str = "json", **options: Any) -> Callable[[Any], Any]:  # noqa: ANN401 - flask-smorest's
        """Declare what a view reads; see flask-smorest. Without a body, one that is not required costs no parsing."""
        if location == "json":
            options = {"example": example_of(schema)} | options
        is_optional = location == "json" and not options.get("required", True)
        decorate = super().arguments(schema, location=location, **options)

        def declare(view: Any) -> Any:  # noqa: ANN401 - flask-smorest's views
            reads = getattr(view, "reads", frozenset()) | {location}
            view = _unless_empty(decorate(view), view, schema.load({})) if is_optional else decorate(view)
            view.reads = reads
            return view

        return declare

    def response(self, status_code: int, schema: type[Schema], **options: Any) -> Callable[[Any], Any]:  # type: ignore[override] # noqa: ANN401 - flask-smorest's; every answer of ours has a schema
        """Declare what a view answers; see flask-smorest."""
        return super().response(status_code, schema, **{"example": example_of(schema())} | options)

    def alt_response(self, status_code: int, *, schema: type[Schema], **options: Any) -> Callable[[Any], Any]:  # type: ignore[override] # noqa: ANN401 - the same
        """Declare what a view may answer as well; see flask-smorest."""
        return super().alt_response(status_code, schema=schema, **{"example": example_of(schema())} | options)

    def empty_response(self, *, description: str) -> Callable[[Any], Any]:
        """Declare that a view, which returns nothing, is answered 204 without a body."""
        describe = super().response(204, description=description)

        def declare(view: Any) -> Any:  # noqa: ANN401 - flask-smorest's views
            @wraps(view)
            def answer(*args: Any, **kwargs: Any) -> Response:  # noqa: ANN401 - the view's
                view(*args, **kwargs)
                response = Response(status=204)
                del response.headers["Content-Type"]
                return response

            return describe(answer)

        return declare


def refuse_surplus() -> None:
    """Refuse a query or body that the view does not read. An empty body and an empty object are accepted.

    Raises `RequestInvalid`.
    """
    request = current()
    reads = getattr(request.app.view_functions[request.endpoint or ""], "reads", ())
    if "query" not in reads and request.environ.get("QUERY_STRING"):
        _refuse(_read_query(request))
    if "json" not in reads and request.method not in {"GET", "HEAD"}:
        _refuse(_read_body(request))


def require_plain(name: str, value: str, *, max_length: int = MAX_LENGTH) -> None:
    """Raise `RequestInvalid` unless `value`, a part of the path, is 1 to `max_length` printable ASCII characters."""
    fault = find_fault(value, max_length=max_length)
    if fault is not None:
        raise RequestInvalid({name: [fault]})


def _flatten(texts: Any) -> list[str]:  # noqa: ANN401 - marshmallow's messages
    """Return the messages about a field; those about the items of a list stand by their positions."""
    if isinstance(texts, dict):
        return [f"Item {position + 1}: {text}" for position, found in texts.items() for text in _flatten(found)]
    return [str(text) for text in texts]


def _refuse(surplus: dict[str, Any]) -> None:
    if surplus:
        raise RequestInvalid({name: [_UNKNOWN] for name in surplus})


def _read_query(req: Request) -> dict[str, str]:
    parameters = dict(req.args.lists())
    repeated = {name: [_REPEATED] for name, values in parameters.items() if len(values) > 1}
    if repeated:
        raise RequestInvalid(repeated)
    return {name: values[0] for name, values in parameters.items()}


def _unless_empty(parsing: Callable[..., Any], view: Callable[..., Any], empty: dict[str, Any]) -> Callable[..., Any]:
    """Return a view that parses the request's body, or gets `empty` if there is none."""

    @wraps(parsing)
    def read(*args: Any, **of_path: Any) -> Any:  # noqa: ANN401 - flask-smorest's views
        return parsing(*args, **of_path) if _has_body(current()) else view(*args, dict(empty), **of_path)

    return read


def _has_body(req: Request) -> bool:
    # RFC 9112, section 6.3: without both headers a request has no body. werkzeug would make a stream that is empty.
    wsgi = req.environ
    return wsgi.get("CONTENT_LENGTH", "0") not in {"", "0"} or "HTTP_TRANSFER_ENCODING" in wsgi


def _read_body(req: Request) -> dict[str, Any]:
    if not _has_body(req):
        return {}
    data = req.get_data()
    # If a body comes in chunks, werkzeug reads up to its limit and does not report the rest.
    if len(data) > MAX_BODY_BYTES:
        raise RequestEntityTooLarge
    # RFC 9112, section 8: a request is incomplete if its body is shorter than its Content-Length.
    if len(data) < (req.content_length or 0):
        raise RequestInvalid({"body": ["Must be as long as Content-Length says."]})
    if not data:
        return {}
    if not is_json(req.mimetype):
        raise RequestInvalid({"Content-Type": ["Must be application/json."]})
    try:
        # RFC 8259, section 8.1: JSON is UTF-8 without a byte order mark. From bytes, `loads` would guess the encoding.
        body = json.loads(data.decode(), parse_constant=_refuse_constant, object_pairs_hook=_make_object)
    except (ValueError, RecursionError) as error:
        raise RequestInvalid({"body": ["Must be JSON."]}) from error
    if not isinstance(body, dict):
        raise RequestInvalid({"body": ["Must be a JSON object."]})
    return body


def _make_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # If a name stands twice, Python takes the last value. Another reader may take the first (RFC 8259, section 4).
    made = dict(pairs)
    if len(made) < len(pairs):
        raise RequestInvalid(
            {name: [_REPEATED] for name, count in Counter(name for name, _ in pairs).items() if count > 1}
        )
    return made


def _refuse_constant(name: str) -> NoReturn:
    # Python reads NaN and Infinity, which are not JSON (RFC 8259, section 6).
    raise ValueError(f"{name} is not JSON")
