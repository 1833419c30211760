"""The headers that say to which trace a message belongs. A message without them, or with bad ones, begins a new trace.

Source: W3C Trace Context, sections 3.2 and 3.3.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

# Version 00, which is the one that this broker writes. An id of zeros is not valid.
_PARENT = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_KEY = r"([a-z][a-z0-9_*/-]{0,255}|[a-z0-9][a-z0-9_*/-]{0,240}@[a-z][a-z0-9_*/-]{0,13})"
# Printable ASCII without comma and equals sign. The last character is not a space.
_VALUE = r"[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e]"
_MEMBER = re.compile(f"{_KEY}={_VALUE}")
_MOST_MEMBERS = 32
_MOST_CHARACTERS = 512


def read_trace(headers: Mapping[str, object]) -> dict[str, str]:
    """Return the headers `traceparent` and `tracestate` of a message, as far as they are valid. Never raises."""
    parent, state = headers.get("traceparent"), headers.get("tracestate")
    if not isinstance(parent, str) or not _PARENT.fullmatch(parent):
        return {}
    if not isinstance(state, str) or not _is_state(state):
        return {"traceparent": parent}
    return {"traceparent": parent, "tracestate": state}


def _is_state(state: str) -> bool:
    if len(state) > _MOST_CHARACTERS:
        return False
    members = [member.strip(" \t") for member in state.split(",")]
    keys = {member.partition("=")[0] for member in members}
    is_short = len(members) <= _MOST_MEMBERS
    return is_short and len(keys) == len(members) and all(_MEMBER.fullmatch(member) for member in members)
