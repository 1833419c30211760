"""A form that was sent without a session: nothing is done, and nothing that was typed in it is lost.

The answer has the form's fields. It can be sent again after its sender has signed in, in another tab. Then it has the
token of an older session. So it is shown once more, with a token of this session, and the person sends it from there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from flask import render_template, request

from broker_api.console.forms import BEFORE
from broker_api.console.runtime import has_ended, person
from broker_api.console.security import SIGN_IN, is_from_here, this_address

if TYPE_CHECKING:
    from collections.abc import Iterator

_CSRF = "csrf_token"
_CONFIRMS = "typed"
"""What a person types to confirm. It is typed again after signing in: by then, somebody else may sit there."""
_NOT_TYPED = frozenset(
    {
        *("check", "cursor", "endpoint_id", "ends", "key", "lease_id", "next"),
        *("reservation_id", "so_far", "track_id", "version"),
    }
)
"""Fields that forms have beside what a person types or chooses."""
_PREFIXES_NOT_TYPED = (BEFORE, "lease-", "ends-")


def can_be_kept() -> bool:
    """Tell whether the fields of the form that came may be shown again.

    Not those that another site wrote, and not a token to sign in.
    """
    return request.method == "POST" and request.blueprint != SIGN_IN and is_from_here()


def kept_form(status: int, *, why: str | None = None) -> tuple[str, int]:
    """Return a page that says that nothing was changed, and from which the form can be sent again.

    `why`: a sentence that says why the person is not signed in, or why nothing can be sent now.
    """
    is_signed_in = person() is not None
    left_out = {_CSRF, _CONFIRMS} if is_signed_in else {_CSRF}
    fields = [(name, value) for name, value in request.form.items(multi=True) if name not in left_out]
    if why is None and not is_signed_in:
        why = "Your sign-in has ended." if has_ended() else "You are not signed in."
    page = render_template(
        "unsent.html",
        title="You are signed out" if not is_signed_in else "This form is too old" if why is None else "Not sent",
        is_signed_in=is_signed_in,
        why=why,
        address=this_address(),
        fields=fields,
        typed=list(_typed(fields)),
        confirms=request.form.get(_CONFIRMS) if is_signed_in else None,
    )
    return page, status


def _typed(fields: list[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """Yield what the person typed or chose, each with words for its field."""
    for name, value in fields:
        if value.strip() and name not in _NOT_TYPED and not name.startswith(_PREFIXES_NOT_TYPED):
            yield name.replace("_", " ").capitalize(), value
