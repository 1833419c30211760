"""What the forms of all pages share."""

from __future__ import annotations

import re
import uuid

from flask import flash, request
from flask_wtf import FlaskForm  # type: ignore[import-untyped] # it ships no types

_KEY = re.compile(r"[0-9a-f-]{36}")
BEFORE = "was-"
"""Before the names of the hidden fields that have what the form showed first."""


class Form(FlaskForm):  # type: ignore[misc] # the same
    """A form of WTForms. The check against forged requests is that of the whole console, before any form is read."""

    class Meta:
        """The check is not repeated."""

        csrf = False


def is_typed(expected: str) -> bool:
    """Tell whether the person typed `expected` to confirm; if not, say so on the next page."""
    if request.form.get("typed", "").strip() == expected:
        return True
    flash(f"Nothing was done: what you typed is not {expected}.", "warning")
    return False


def form_key() -> str:
    """Return the key of the form that was sent, by which it is done once; a new one if it has none."""
    key = request.form.get("key", "")
    return key if _KEY.fullmatch(key) else new_key()


def new_key() -> str:
    """Return a key for a form that is shown."""
    return str(uuid.uuid4())


def trimmed(text: str | None) -> str | None:
    """Return a field's text without spaces around it; None if nothing is left. A filter of WTForms."""
    return (text or "").strip() or None
