"""The parts of the OpenAPI document that calls share: tokens, headers, and the answers that are errors."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, Any

from apispec import BasePlugin

from broker_api import rate_limit, tracing
from broker_api.description_files import read_calls
from broker_api.error_answers import JSON, PROBLEM, Fault
from broker_api.errors import ERROR_CODES
from broker_api.links import LINKS
from broker_api.schemas.errors import ErrorSchema, ProblemSchema
from broker_api.schemas.parts import DELIVERY_ID as EXAMPLE_DELIVERY_ID
from broker_api.schemas.parts import ENDPOINT_ID as EXAMPLE_ENDPOINT_ID
from broker_api.schemas.parts import JOB_ID as EXAMPLE_JOB_ID
from broker_api.schemas.parts import MAX_DELIVERY_ID, PLAIN, REQUEST_ID
from broker_api.schemas.parts import PLACE_ID as EXAMPLE_PLACE_ID
from broker_api.schemas.parts import RESERVATION_ID as EXAMPLE_RESERVATION_ID
from broker_common.core.principals import Role

if TYPE_CHECKING:
    from collections.abc import Iterable

    from apispec import APISpec

SANDBOX_ID = {
    "name": "sandbox_id",
    "in": "path",
    "required": True,
    "description": "The sandbox's id",
    "schema": PLAIN | {"type": "string"},
    "example": "2009521",
}
RESERVATION_ID = {
    "name": "reservation_id",
    "in": "path",
    "required": True,
    "description": "The reservation's id",
    "schema": PLAIN | {"type": "string"},
    "example": EXAMPLE_RESERVATION_ID,
}
ENDPOINT_ID = {
    "name": "endpoint_id",
    "in": "path",
    "required": True,
    "description": "The endpoint's id",
    "schema": PLAIN | {"type": "string"},
    "example": EXAMPLE_ENDPOINT_ID,
}
DELIVERY_ID = {
    "name": "delivery_id",
    "in": "path",
    "required": True,
    "description": "The delivery's id, which was sent as `webhook-id`",
    "schema": {"type": "string", "minLength": 1, "maxLength": MAX_DELIVERY_ID, "pattern": "^[ -~]+$"},
    "example": EXAMPLE_DELIVERY_ID,
}
PLACE_ID = {
    "name": "place_id",
    "in": "path",
    "required": True,
    "description": "The place's id, from the list of the line",
    "schema": PLAIN | {"type": "string"},
    "example": EXAMPLE_PLACE_ID,
}
JOB_ID = {
    "name": "job_id",
    "in": "path",
    "required": True,
    "description": "The run's id, from the answer of the call that started it",
    "schema": PLAIN | {"type": "string"},
    "example": EXAMPLE_JOB_ID,
}

_CALLER_HEADERS: dict[str, dict[str, Any]] = {
    "track_id": {
        "name": "X-Track-ID",
        "required": True,
        "description": "The calling track. `X-Instruqt-Sandbox-ID` may be sent in its place",
        "example": "track-4711",
    },
    "track_id_alias": {
        "name": "X-Instruqt-Sandbox-ID",
        "description": "Another name of `X-Track-ID`. Send one of the two, or both with the same value",
    },
    "track_name": {"name": "X-Instruqt-Track-ID", "description": "The lab's name, kept as `track_name`"},
    "name_prefix": {"name": "X-Sandbox-Name-Prefix", "description": "Only sandboxes whose name starts with this"},
    "idempotency_key": {
        "name": "Idempotency-Key",
        "description": "A track gets one sandbox for each key. Without this header, the key is the track's id",
    },
    "reservation_to_draw_from": {
        "name": "X-Reservation-ID",
        "description": "Draw a sandbox that is set aside for this reservation, even if that is not for the track's lab",
    },
    "booking_key": {
        "name": "Idempotency-Key",
        "description": "A repetition with the same key and the same body books nothing more",
    },
}
_OTHER_HEADERS: dict[str, dict[str, Any]] = {
    "request_id": {
        "name": tracing.HEADER,
        "description": f"The answer has the same id if it matches `{tracing.PATTERN}`, else a new one",
    },
    "prefer": {
        "name": "Prefer",
        "description": "`wait=N`: wait at most N seconds for the end of the run. More than 30 counts as 30",
    },
    "prefer_line": {
        "name": "Prefer",
        "description": "`wait=N`: if no sandbox is free, wait in line. The answer may take N seconds. More than 30"
        " counts as 30",
    },
}
_TEXT = {"type": "string"}
_NUMBER = {"type": "integer"}
_ANSWER_HEADERS: dict[str, dict[str, Any]] = {
    tracing.HEADER: {"required": True, "description": "Leads to the request in the log", "schema": _TEXT},
    "Retry-After": {"required": True, "description": "Seconds after which to repeat the request", "schema": _NUMBER},
    "WWW-Authenticate": {
        "required": True,
        "description": "The scheme to use; with `error` if a token was sent (RFC 6750)",
        "schema": _TEXT | {"enum": ["Bearer", 'Bearer error="invalid_token"']},
    },
    "Idempotent-Replayed": {
        "required": True,
        "description": "The answer is that of an earlier request",
        "schema": _TEXT | {"enum": ["true"]},
    },
    "Preference-Applied": {
        "description": "`wait=N`: the call was ready to wait for N seconds",
        "schema": _TEXT,
    },
    "Vary": {"required": True, "description": "`Accept`: it chooses the shape of errors", "schema": _TEXT},
    "RateLimit-Policy": {
        "description": "How many requests (`q`) the caller may make in how many seconds (`w`), as"
        " draft-ietf-httpapi-ratelimit-headers-10 has it",
        "schema": _TEXT,
        "example": '"default";q=200;w=4',
    },
    "RateLimit": {
        "description": "How many requests (`r`) the caller may make now, and in how many seconds (`t`) it may make"
        " more; from the same draft",
        "schema": _TEXT,
        "example": '"default";r=199;t=1',
    },
    "X-RateLimit-Limit": {"description": "Requests that the caller may make at once", "schema": _NUMBER},
    "X-RateLimit-Remaining": {"description": "Requests that the caller may make now", "schema": _NUMBER},
    "X-RateLimit-Reset": {"description": "Seconds until all of them may be made again", "schema": _NUMBER},
}

_RETRY_AFTER_OF_SOME = "Retry-After-of-some"
"""The name of the description of `Retry-After` for an answer of which only some codes have it."""

_REFUSED_UNREAD = ("REQUEST_TIMEOUT", "URI_TOO_LONG", "EXPECTATION_FAILED", "REQUEST_HEADER_FIELDS_TOO_LARGE")
"""The broker refuses such a request before it counts it."""
_OF_EVERY_CALL = ("VALIDATION_ERROR", *_REFUSED_UNREAD, "INTERNAL_ERROR")
_OF_EVERY_TOKEN = ("UNAUTHORIZED", "FORBIDDEN", "SERVICE_UNAVAILABLE")
_HEADERS_OF_ERRORS = {401: ["WWW-Authenticate"]}
_AS_PROBLEM = "_AS_PROBLEM"
"""The end of the name of an example in RFC 9457's shape."""


def answered_with(*headers: str) -> dict[str, dict[str, str]]:
    """Return what an answer with these headers is described with: references to the shared descriptions."""
    return {header: {"$ref": f"#/components/headers/{header}"} for header in headers}


class SharedDescription(BasePlugin):
    """Completes each call: its text from the files, common headers, its role, its links, and its errors.

    A call declares as `errors` the codes that not all calls answer, and as `role` the role that it needs.
    """

    def __init__(self, base_path: str) -> None:
        """Describe the API under `base_path`."""
        super().__init__()
        self._base_path = base_path
        self._texts = read_calls(base_path)

    def init_spec(self, spec: APISpec) -> None:
        """Keep the document's components, to which answers and examples are added."""
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
            if not operation.get("description"):
                operation["description"] = self._texts[operation["operationId"]]
            _describe_role(operation, operation.pop("role"))
            operation["parameters"] = [*operation.get("parameters", ()), "request_id"]
            codes = {
                *operation.pop("errors", ()),
                *_OF_EVERY_CALL,
                *(["RATE_LIMIT_EXCEEDED"] if is_counted else []),
                *(_OF_EVERY_TOKEN if operation["security"] else ()),
                *(["PAYLOAD_TOO_LARGE"] if method in {"post", "patch"} else []),
            }
            answers = {
                status: answer | {"headers": answer.get("headers", {}) | headers}
                for status, answer in operation["responses"].items()
                if isinstance(answer, dict)
            }
            for status, answer in answers.items():
                if (links := LINKS.get((operation["operationId"], int(status)))) is not None:
                    answer["links"] = links
            operation["responses"] = dict(sorted((self._describe_errors(codes) | answers).items()))

    def _describe_errors(self, codes: Iterable[str]) -> dict[int, str]:
        """Return by status the name of the component that describes the answer with these codes."""
        # In the order of the table, so that the same codes always give a component of the same name.
        by_status = groupby(sorted(codes, key=list(ERROR_CODES).index), _status_of)
        return {status: self._describe_answer(status, list(group)) for status, group in by_status}

    def _describe_answer(self, status: int, codes: list[str]) -> str:
        name = "_or_".join(codes)
        if name not in self._components.responses:
            for code in codes:
                self._show(code)
            waits = [code for code in codes if ERROR_CODES[code].retry_after is not None]
            headers = [*_HEADERS_OF_ERRORS.get(status, ()), *(["Retry-After"] if waits else []), "Vary", tracing.HEADER]
            if not set(codes) <= set(_REFUSED_UNREAD):
                headers += rate_limit.HEADERS
            described = answered_with(*headers)
            if waits and waits != codes:
                described["Retry-After"] = {"$ref": f"#/components/headers/{_RETRY_AFTER_OF_SOME}"}
            answer = {
                "description": "\n\n".join(
                    f"`{code}`: {ERROR_CODES[code].meaning} {ERROR_CODES[code].remedy}" for code in codes
                ),
                "headers": described,
                "content": {
                    JSON: {"schema": ErrorSchema, "examples": {code: _example(code) for code in codes}},
                    PROBLEM: {
                        "schema": ProblemSchema,
                        "examples": {code: _example(code + _AS_PROBLEM) for code in codes},
                    },
                },
            }
            self._components.response(name, answer)
        return name

    def _show(self, code: str) -> None:
        """Add an example of an answer with this code, in both shapes."""
        if code in self._components.examples:
            return
        error = ERROR_CODES[code]
        fault = Fault(
            status=error.status,
            code=code,
            message=error.message,
            request_id=REQUEST_ID,
            retry_after=error.retry_after,
            details=error.details,
        )
        self._components.example(code, {"value": fault.as_json()})
        self._components.example(code + _AS_PROBLEM, {"value": fault.as_problem(self._base_path)})


def _example(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/examples/{name}"}


def _describe_role(operation: dict[str, Any], role: Role | None) -> None:
    """Add the token and the role that a call needs. Source: OpenAPI 3.1, "Security Requirement Object"."""
    if role is None:
        operation["security"] = []
        return
    operation["security"] = [{"trackToken" if role is Role.TRACK else "adminToken": [role.value]}]
    operation["description"] = f"{operation['description']}\n\nNeeds the role `{role}`."


def _status_of(code: str) -> int:
    return ERROR_CODES[code].status.value


def describe_shared_parts(spec: APISpec) -> None:
    """Add the tokens and headers that calls refer to."""
    for scheme, whose in (
        ("trackToken", "A token with the role `track`. It may be limited to tracks whose ids fit its patterns."),
        ("adminToken", "A token with the role `viewer`, `operator` or `admin`."),
    ):
        text = f"{whose} An access token (JWT) of the broker's issuer may have the role, too"
        spec.components.security_scheme(scheme, {"type": "http", "scheme": "bearer", "description": text})
    for name, header in _CALLER_HEADERS.items():
        spec.components.parameter(name, "header", {"schema": PLAIN | _TEXT} | header)
    for name, header in _OTHER_HEADERS.items():
        spec.components.parameter(name, "header", {"schema": _TEXT} | header)
    sometimes = {name: value for name, value in _ANSWER_HEADERS["Retry-After"].items() if name != "required"}
    spec.components.header(_RETRY_AFTER_OF_SOME, sometimes)
    for name, described in _ANSWER_HEADERS.items():
        spec.components.header(name, described)
