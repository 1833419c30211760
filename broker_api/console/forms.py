"""What the forms of all pages share."""

from __future__ import annotations

from flask import flash, request
from flask_wtf import FlaskForm  # type: ignore[import-untyped] # it ships no types


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


def trimmed(text: str | None) -> str | None:
    """Return a field's text without spaces around it; None if nothing is left. A filter of WTForms."""
    return (text or "").strip() or None
