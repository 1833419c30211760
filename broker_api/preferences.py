"""The header `Prefer`, by which a caller says how long it is ready to wait for an answer."""

from __future__ import annotations

from werkzeug.http import parse_list_header, unquote_header_value

from broker_api.current import current
from broker_api.errors import RequestInvalid

MAX_WAIT_SEC = 30
_MAX_DIGITS = len(str(MAX_WAIT_SEC))


def preferred_wait() -> int | None:
    """Return the seconds that the caller of the current request prefers to wait, at most 30; None without `wait`.

    Other preferences are ignored. If `wait` stands several times, also in several headers, the first one counts. Raises
    `RequestInvalid` if that one is no number of seconds: a caller that asks to wait should learn that it does not.
    Source: RFC 7240, sections 2 and 4.3.
    """
    given = current().environ.get("HTTP_PREFER")
    for preference in parse_list_header(given) if given else ():
        name, _, value = preference.partition(";")[0].partition("=")
        if name.strip().lower() == "wait":
            return _read_seconds(unquote_header_value(value.strip()))
    return None


def wait_applied(seconds: int | None) -> dict[str, str]:
    """Return the header that tells the caller that its preference counted; none if it stated none."""
    return {} if seconds is None else {"Preference-Applied": f"wait={seconds}"}


def _read_seconds(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise RequestInvalid({"Prefer": ["wait: Must be a number of seconds, as in wait=30."]})
    digits = text.lstrip("0")
    # Python refuses to read numbers of thousands of digits.
    return MAX_WAIT_SEC if len(digits) > _MAX_DIGITS else min(int(text[-_MAX_DIGITS:]), MAX_WAIT_SEC)
