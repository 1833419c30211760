"""What schemathesis must not do to the broker that it tests, or nothing would be left to test."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import schemathesis

if TYPE_CHECKING:
    from schemathesis import Case, HookContext

_VALID = re.compile(r"[ -~]{1,128}")


@schemathesis.hook
def before_call(context: HookContext, case: Case[Any], kwargs: dict[str, Any]) -> None:
    """Resume what would be paused, and send no second name of a track.

    A paused allocate answers the same 503 to everything. The alias of `X-Track-ID` is refused beside another track's
    id, and stands for one that is missing, which no schema can say.
    """
    if case.operation.path.endswith("/admin/pause") and isinstance(case.body, dict):
        case.body = {name: False if value is True else value for name, value in case.body.items()}
    if _VALID.fullmatch(str(case.headers.get("X-Instruqt-Sandbox-ID", "")).strip(" \t")):
        del case.headers["X-Instruqt-Sandbox-ID"]
