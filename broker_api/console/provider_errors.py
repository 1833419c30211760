"""Errors of the provider as people read them: its message, without the JSON around it."""

from __future__ import annotations

import json
import re
from typing import Any

_NAMES = ("message", "error", "errors", "detail", "success", "title")
"""Where providers put their message: the first that has words counts."""
_CUT_OFF = re.compile(r'"(?:message|error|detail|title)"\s*:\s*"((?:[^"\\]|\\.)*)')


def plain_error(text: str) -> str:
    """Return an error of a sandbox or a job with the provider's message in place of the JSON that it sent.

    A text without such JSON stays as it is. The broker cuts long answers off, so the JSON may lack its end.
    """
    before, brace, _ = text.partition("{")
    if not brace:
        return text
    try:
        document, length = json.JSONDecoder().raw_decode(text[len(before) :])
    except ValueError:
        found = _CUT_OFF.search(text)
        return f"{before}{_decoded(found[1].removesuffix('…'))}…" if found else text
    message = _message_of(document)
    return text if message is None else before + message + text[len(before) + length :]


def _message_of(value: Any) -> str | None:  # noqa: ANN401 - values of JSON
    if isinstance(value, str):
        return value.strip() or None
    if isinstance(value, dict):
        value = [value[name] for name in _NAMES if name in value]
    if isinstance(value, list):
        return next((found for each in value if (found := _message_of(each))), None)
    return None


def _decoded(inside: str) -> str:
    """Return what stands between the quotes of a string of JSON; as it is, if that ends within an escape."""
    try:
        return str(json.loads(f'"{inside}"'))
    except ValueError:
        return inside
