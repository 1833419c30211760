"""What schemathesis gets beside the API's description: links between calls, and limits to what it may do."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import schemathesis

from tests.e2e.schemathesis_links import add_links

if TYPE_CHECKING:
    from schemathesis import Case, HookContext

_VALID = re.compile(r"[ -~]{1,128}")


@schemathesis.hook
def before_load_schema(context: HookContext, raw_schema: dict[str, Any]) -> None:
    """Add links, so that calls follow each other with ids that exist."""
    add_links(raw_schema)


@schemathesis.hook
def before_call(context: HookContext, case: Case[Any], kwargs: dict[str, Any]) -> None:
    """Resume what the call would pause, send no second name of a track, and wait in line without being held.

    A paused allocate answers the same 503 to everything. The alias of `X-Track-ID` is refused beside another track's
    id, and is accepted in place of a missing one. No schema can say that.
    """
    if case.operation.path.endswith("/admin/pause") and isinstance(case.body, dict):
        case.body = {name: False if value is True else value for name, value in case.body.items()}
    if case.operation.path.endswith("/allocate") and "Prefer" in case.headers:
        # Half a minute for each of hundreds of calls would be too long. No schema says that a `wait` is a number.
        case.headers["Prefer"] = "wait=0"
    if _VALID.fullmatch(str(case.headers.get("X-Instruqt-Sandbox-ID", "")).strip(" \t")):
        del case.headers["X-Instruqt-Sandbox-ID"]
