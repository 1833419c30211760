"""What OpenAPI says that the API's calls share: tokens, headers, links, and the answers that are errors."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, Any

from apispec import BasePlugin

from broker_api import rate_limit, tracing
from broker_api.error_answers import JSON, PROBLEM, Fault
from broker_api.errors import ERROR_CODES
from broker_api.schemas import EXAMPLE_REQUEST_ID, PLAIN, ErrorSchema, ProblemSchema
from broker_common.core.principals import Role

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from apispec import APISpec

SANDBOX_ID = {
    "name": "sandbox_id",
    "in": "path",
    "required": True,
    "description": "The sandbox's id",
    "schema": PLAIN | {"type": "string"},
    "example": "2009521",
}
JOB_ID = {
    "name": "job_id",
    "in": "path",
    "required": True,
    "description": "The run's id, as the call that started it answered",
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
        "description": f"Comes back with the answer if it matches `{tracing.PATTERN}`; else the answer has a new one",
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
    "Vary": {"required": True, "description": "`Accept`: it says in which shape errors come", "schema": _TEXT},
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

_REFUSED_UNREAD = ("REQUEST_TIMEOUT", "URI_TOO_LONG", "EXPECTATION_FAILED", "REQUEST_HEADER_FIELDS_TOO_LARGE")
"""Before the request is counted."""
_OF_EVERY_CALL = ("VALIDATION_ERROR", *_REFUSED_UNREAD, "INTERNAL_ERROR")
_HEADERS_OF_ERRORS = {401: ["WWW-Authenticate"]}
_AS_PROBLEM = "_AS_PROBLEM"
"""Ends the name of an example in RFC 9457's shape."""


def answered_with(*headers: str) -> dict[str, dict[str, str]]:
    """Return references to the descriptions of these headers of an answer."""
    return {header: {"$ref": f"#/components/headers/{header}"} for header in headers}


def link_to(
    operation: str, parameters: Mapping[str, str], body: Mapping[str, str] | None = None
) -> dict[str, dict[str, Any]]:
    """Return the link from an answer to the call that takes these parts of it, or of its request.

    Source: OpenAPI 3.1, "Link Object" and "Runtime Expressions".
    """
    link: dict[str, Any] = {"operationId": operation, "parameters": dict(parameters)}
    return {operation: link | ({"requestBody": dict(body)} if body else {})}


class SharedDescription(BasePlugin):
    """Describes what no call has for itself: the header that all read, those that all answer, and their errors.

    A call names, as `errors`, the codes that only some calls answer, and as `role` the one that it needs.
    """

    def __init__(self, base_path: str) -> None:
        """Describe the API under `base_path`."""
        super().__init__()
        self._base_path = base_path

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
            _describe_role(operation, operation.pop("role"))
            operation["parameters"] = [*operation.get("parameters", ()), "request_id"]
            codes = {
                *operation.pop("errors", ()),
                *_OF_EVERY_CALL,
                *(["RATE_LIMIT_EXCEEDED"] if is_counted else []),
                *(["UNAUTHORIZED", "FORBIDDEN"] if operation["security"] else []),
                *(["PAYLOAD_TOO_LARGE"] if method == "post" else []),
            }
            answers = {
                status: answer | {"headers": answer.get("headers", {}) | headers}
                for status, answer in operation["responses"].items()
                if isinstance(answer, dict)
            }
            operation["responses"] = dict(sorted((self._describe_errors(codes) | answers).items()))

    def _describe_errors(self, codes: Iterable[str]) -> dict[int, str]:
        """Return the answers that have these codes, by status, each by the name of the component that describes it."""
        # In the order of the table, so that a component has the same name wherever it is wanted.
        by_status = groupby(sorted(codes, key=list(ERROR_CODES).index), _status_of)
        return {status: self._describe_answer(status, list(its)) for status, its in by_status}

    def _describe_answer(self, status: int, codes: list[str]) -> str:
        name = "_or_".join(codes)
        if name not in self._components.responses:
            for code in codes:
                self._show(code)
            waits = [code for code in codes if ERROR_CODES[code].retry_after is not None]
            headers = [*_HEADERS_OF_ERRORS.get(status, ()), *(["Retry-After"] if waits else []), "Vary", tracing.HEADER]
            if not set(codes) <= set(_REFUSED_UNREAD):
                headers += rate_limit.HEADERS
            answer = {
                "description": "\n\n".join(
                    f"`{code}`: {ERROR_CODES[code].meaning} {ERROR_CODES[code].remedy}" for code in codes
                ),
                "headers": answered_with(*headers),
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
        """Add what an answer with this code looks like, in both shapes."""
        if code in self._components.examples:
            return
        error = ERROR_CODES[code]
        fault = Fault(
            status=error.status,
            code=code,
            message=error.message,
            request_id=EXAMPLE_REQUEST_ID,
            retry_after=error.retry_after,
            details=error.details,
        )
        self._components.example(code, {"value": fault.as_json()})
        self._components.example(code + _AS_PROBLEM, {"value": fault.as_problem(self._base_path)})


def _example(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/examples/{name}"}


def _describe_role(operation: dict[str, Any], role: Role | None) -> None:
    """Say which token a call needs, and with which role. Source: OpenAPI 3.1, "Security Requirement Object"."""
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
        ("trackToken", "A token with the role `track`; it may be bound to some tracks by patterns of their ids"),
        ("adminToken", "A token with the role `viewer`, `operator` or `admin`"),
    ):
        spec.components.security_scheme(scheme, {"type": "http", "scheme": "bearer", "description": whose})
    for name, header in _CALLER_HEADERS.items():
        spec.components.parameter(name, "header", {"schema": PLAIN | _TEXT} | header)
    for name, header in _OTHER_HEADERS.items():
        spec.components.parameter(name, "header", {"schema": _TEXT} | header)
    for name, described in _ANSWER_HEADERS.items():
        spec.components.header(name, described)
