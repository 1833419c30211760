"""Which URLs a webhook endpoint may have. Whether its address may be connected to is decided at each try, not here."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Collection
    from urllib.parse import SplitResult

MAX_URL = 2000
_URL = re.compile(r"[A-Za-z0-9._~:/?\[\]@!$&'()*+,;=%-]+")
"""The characters of a URI, without those of a fragment (RFC 3986, section 2)."""
_HOST_NAME = re.compile(r"(?=.{1,253}\Z)[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*")


@dataclass(frozen=True, slots=True, kw_only=True)
class AllowedUrls:
    """Which addresses may be registered beside https on the internet: any on these hosts, or on loopback.

    `hosts` are names or addresses in lower case, without a dot at the end.
    """

    hosts: Collection[str] = ()
    loopback: bool = False


def find_url_fault(url: str, allowed: AllowedUrls) -> str | None:
    """Return why an endpoint cannot have this URL, without the URL, which may hold a password; None if it can."""
    parts = _split(url)
    if parts is None:
        return f"must be a URL of at most {MAX_URL} characters, without spaces, control characters and fragment"
    host = (parts.hostname or "").rstrip(".")
    address = _address(host)
    # Clients take a name for an address if its last label is a number (WHATWG URL, "ends in a number checker").
    is_name = _HOST_NAME.fullmatch(host) and not host.rpartition(".")[2][0].isdigit()
    is_local = host == "localhost" or (address is not None and address.is_loopback)
    is_allowed = host in allowed.hosts or (allowed.loopback and is_local)
    problems = {
        "must not have a user or password": "@" in parts.netloc,
        "must name a host": address is None and not is_name,
        "must begin with https://": parts.scheme not in ({"https", "http"} if is_allowed else {"https"}),
        "must be on a public address, unless WEBHOOK_ALLOWED_HOSTS names the host": not is_allowed
        and (is_local or (address is not None and not address.is_global)),
    }
    return next((text for text, is_so in problems.items() if is_so), None)


def _split(url: str) -> SplitResult | None:
    """Return the parts of a URL; None if it is too long, or no URL."""
    if len(url) > MAX_URL or not _URL.fullmatch(url):
        return None
    try:
        parts = urlsplit(url)
        is_fit = parts.port != 0
    except ValueError:
        return None
    return parts if is_fit else None


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
