"""Reads the provider's account list: which entries count, and where the next page is. No network here."""

from __future__ import annotations

import json
import re
import uuid
from collections import Counter, defaultdict
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

from broker_common.adapters.csp_json import states_failure
from broker_common.core.errors import ListingUnusable
from broker_common.core.ports import AccountListing, InactiveAccount, SkippedAccount
from broker_common.core.sandbox import Account, account_key

if TYPE_CHECKING:
    from collections.abc import Mapping

_EXTERNAL_ID = re.compile(
    r"identity/accounts/([0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12})"
)
_SANDBOX_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_HIGHEST_ID = 2**63 - 1
"""The highest number of 63 bits, as databases keep ids; a higher one may have been rounded (RFC 8259, section 6)."""
_LABEL_LIMIT = 256
# Control characters, line separators and lone surrogates: they break logs, terminals and encoders.
_UNFIT_FOR_TEXT = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_TOTALS = ("total", "total_size", "total_count", "total_results")
_TOTAL_PAGES = ("total_pages", "page_count", "pages")
_PAGE_SIZES = ("page_size", "per_page", "limit", "_limit")
_ATLAS_PAGE = {"page_token", "size", "offset"}


def account_uuid(external_id: str) -> str | None:
    """Return the uuid of an external id `identity/accounts/<uuid>`, or None if it is anything else."""
    match = _EXTERNAL_ID.fullmatch(external_id)
    return str(uuid.UUID(match[1])) if match else None


_Ids = tuple[str | None, str | None]
"""An entry's `csp_id` as it stands there, and the key of its account. Both identify the entry."""


class Listing:
    """Collects the list page by page, and tells whether it is whole.

    A list is whole unless it shows that it may lack an account: the number of its entries is not the total that its
    answers state, an entry is listed twice, an entry has no id, a page repeats another, or the last page that was read
    says that there are more. A list that changes while its pages are read shows one of these signs.

    The next page is named by a link (`next`, `links.next`, `_links.next` or a `Link` header); by the `offset` of a
    `page` object as in Infoblox' atlas-app-toolkit (`collection_operators.proto`: null means that there is no more,
    `size` is the total); by a `page` number; or by `_offset` and `_limit`. Every page must be on the origin of
    `base_url`.
    """

    def __init__(self, base_url: str) -> None:
        self._base_url = base_url
        self._entries: Counter[_Ids] = Counter()
        self._accounts: dict[_Ids, Account] = {}
        self._skipped: list[SkippedAccount] = []
        self._inactive: dict[_Ids, InactiveAccount] = {}
        self._doubt: str | None = None
        self._pages = 0
        self._read = 0
        self._least = 0
        """At least so many accounts the list must have, by the `size` of a `page` object."""
        self._totals: set[int] = set()
        self._total_pages = 0
        self._last: list[Any] = []

    def take(self, body: bytes, *, url: str, link: str | None) -> str | Mapping[str, int] | None:
        """Add the page that was read from `url`, and whose `Link` header names `link` as the next page.

        Returns the next page as a URL, or as parameters for the first page's URL. Returns None at the end, and where
        a page repeats the page before it. Raises `ListingUnusable` if the page does not parse or leads to another
        origin.
        """
        answer = _parse(body)
        entries: list[Any] = answer["results"]
        if entries and entries == self._last:
            self._doubt = "its paging repeats the same page"
            return None
        self._last = entries
        self._pages += 1
        before, self._read = self._read, self._read + len(entries)
        for entry in entries:
            self._take_entry(entry)
        self._take_numbers(answer)
        named = _next_link(answer) or link
        following = self._follow(url, named) if named else self._next_parameters(answer, before)
        if following is None and _names_token(answer.get("page")):
            self._doubt = self._doubt or "it names a next page by a page_token, which the broker does not read"
        return following

    def finish(self) -> AccountListing:
        """Return the accounts that were read; raises `ListingUnusable` if none of them is an active sandbox."""
        if not self._accounts:
            raise ListingUnusable(
                f"list accounts: no active sandbox account in the provider's list of {self._read} accounts, "
                f"{len(self._skipped)} of which could not be read"
            )
        unclear = self._find_unclear()
        return AccountListing(
            accounts=tuple(account for ids, account in self._accounts.items() if ids not in unclear),
            skipped=tuple(self._skipped),
            inactive=tuple(self._inactive.values()),
            ambiguous=tuple(account for ids, account in self._accounts.items() if ids in unclear),
            doubt=self._find_doubt(),
        )

    def _take_entry(self, entry: Any) -> None:  # noqa: ANN401 - JSON
        read, ids = _read_entry(entry), _ids_of(entry)
        self._entries[ids] += 1
        if ids == (None, None) or (isinstance(read, SkippedAccount) and ids[0] is None):
            self._doubt = self._doubt or "it has entries whose id cannot be read"
        if isinstance(read, SkippedAccount):
            self._skipped.append(replace(read, external_id=ids[1]))
        elif read is None:
            self._inactive[ids] = InactiveAccount(*ids)
        else:
            self._accounts.setdefault(ids, read)

    def _take_numbers(self, answer: dict[str, Any]) -> None:
        page = answer.get("page")
        stated = _first_number(answer, _TOTALS)
        if stated is None and isinstance(page, dict):
            stated = _first_number(page, _TOTALS)
            if stated is None and set(page) <= _ATLAS_PAGE:
                self._least = max(self._least, _number(page.get("size")) or 0)
        if stated is not None:
            self._totals.add(stated)
        if _number(page) is not None:
            self._total_pages = max(self._total_pages, _first_number(answer, _TOTAL_PAGES) or 0)

    def _find_unclear(self) -> set[_Ids]:
        """Find the entries that share one id with another entry, and those listed both as active and as not active."""
        unclear = set(self._inactive)
        for place in (0, 1):
            sharing: dict[str, list[_Ids]] = defaultdict(list)
            for ids in self._entries:
                if (shared := ids[place]) is not None:
                    sharing[shared].append(ids)
            unclear |= {ids for group in sharing.values() if len(group) > 1 for ids in group}
        return unclear

    def _find_doubt(self) -> str | None:
        """Say why the list may lack accounts, if it may."""
        distinct, entries = len(self._entries), self._entries.total()
        if self._doubt is not None:
            return self._doubt
        if distinct < entries:
            return f"only {distinct} of its {entries} entries are different, the others are listed twice"
        if distinct < (least := max(self._least, *self._totals, 0)):
            return f"it has only {distinct} of the {least} accounts that it says there are"
        if self._totals - {distinct}:
            stated = ", ".join(map(str, sorted(self._totals)))
            return f"it has {distinct} accounts, and says that there are {stated}"
        if self._pages < self._total_pages:
            return f"it has only {self._pages} of the {self._total_pages} pages that it says there are"
        return None

    def _follow(self, url: str, link: str) -> str:
        try:
            following = urljoin(url, link)
            is_elsewhere = _origin(following) != _origin(self._base_url)
        except ValueError as error:
            raise ListingUnusable("list accounts: the link to the next page cannot be read") from error
        if is_elsewhere:
            raise ListingUnusable("list accounts: the provider's next page is on another origin")
        return following

    def _next_parameters(self, answer: dict[str, Any], before: int) -> Mapping[str, int] | None:
        page, entries = answer.get("page"), answer["results"]
        total = max(self._totals, default=0)
        is_end = not entries or 0 < total <= self._read
        if isinstance(page, dict):
            offset = _number(page.get("offset"))
            if offset is not None and offset > before:
                return {"_offset": offset}
            # An offset that is this page's own does not name the next page, and its `size` may be the page's or the
            # whole list's: only an empty page is the end.
            return {"_offset": self._read} if offset == before and not is_end else None
        number, size = _number(page), _first_number(answer, _PAGE_SIZES)
        # A stated total is believed before the number and the size of pages, which also mean other things elsewhere.
        if number is not None and self._total_pages and not total:
            is_end = is_end or self._pages >= self._total_pages
        elif size is not None and not total:
            is_end = is_end or len(entries) < size
        if is_end:
            return None
        if number is not None:
            return {"page": number + 1}
        if "_offset" in answer or "_limit" in answer:
            return {"_offset": self._read} | ({} if size is None else {"_limit": size})
        return None


def _parse(body: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ListingUnusable("list accounts: the answer is not JSON, or cut short") from error
    if not isinstance(answer, dict) or not isinstance(answer.get("results"), list):
        raise ListingUnusable("list accounts: the answer holds no list of results")
    if states_failure(answer.items()):
        raise ListingUnusable("list accounts: the answer holds an error beside its results, or no success")
    return answer


def _read_entry(entry: Any) -> Account | SkippedAccount | None:  # noqa: ANN401 - JSON
    """Return an entry's account, the reason why it cannot be read, or None if it is no active sandbox.

    The name of an account that has none is its id.
    """
    if not isinstance(entry, dict):
        return SkippedAccount("it is not an object")
    kind, state = entry.get("account_type"), entry.get("state")
    if (isinstance(kind, str) and kind != "sandbox") or (isinstance(state, str) and state != "active"):
        return None
    csp_id = entry.get("csp_id")
    sandbox_id = str(csp_id) if isinstance(csp_id, (int, str)) and not isinstance(csp_id, bool) else ""
    if not _SANDBOX_ID.fullmatch(sandbox_id):
        return SkippedAccount("its csp_id cannot be read")
    external_id = entry.get("id")
    account = account_uuid(external_id) if isinstance(external_id, str) else None
    checks = {
        # Clients and proxies remove `.` and `..` from a path (RFC 3986, section 5.2.4), and to a command line a hyphen
        # begins an option.
        "its csp_id begins with a dot or a hyphen, so that calls cannot name it": sandbox_id[0] not in ".-",
        # Another list may spell the same number in another way.
        "its csp_id is a number with leading zeros, or of more than 63 bits": not sandbox_id.isdigit()
        or sandbox_id == str(min(int(sandbox_id), _HIGHEST_ID)),
        "its account_type or state cannot be read": isinstance(kind, str) and isinstance(state, str),
        "its id is not identity/accounts/<uuid>": account is not None,
    }
    for reason, holds in checks.items():
        if not holds:
            return SkippedAccount(reason, sandbox_id)
    return Account(
        sandbox_id=sandbox_id,
        # A uuid may be in capitals or not, and an account must have one record.
        external_id=f"identity/accounts/{account}",
        name=_read_label(entry.get("name")) or sandbox_id,
        sfdc_account_id=_read_label(entry.get("sfdc_account_id")),
    )


def _ids_of(entry: Any) -> _Ids:  # noqa: ANN401 - JSON
    """Return the `csp_id` of any entry, and the key that its `id` gives; None for one that it does not state."""
    csp_id, external_id = (entry.get("csp_id"), entry.get("id")) if isinstance(entry, dict) else (None, None)
    is_stated = (isinstance(csp_id, int) and not isinstance(csp_id, bool)) or (isinstance(csp_id, str) and csp_id)
    return (
        str(csp_id) if is_stated else None,
        account_key(external_id) if isinstance(external_id, str) and external_id else None,
    )


def _read_label(value: Any) -> str | None:  # noqa: ANN401 - JSON
    """Return at most 256 characters of a text or number that only people read, with U+FFFD for control characters.

    Returns None for an empty text and for any other value: a label never keeps an account out of the pool.
    """
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not value:
        return None
    return _UNFIT_FOR_TEXT.sub("\ufffd", value[:_LABEL_LIMIT])


def _next_link(answer: dict[str, Any]) -> str | None:
    places = [answer, *(links for key in ("links", "_links") if isinstance(links := answer.get(key), dict))]
    for place in places:
        named = place.get("next")
        link = named.get("href") if isinstance(named, dict) else named
        if isinstance(link, str) and link:
            return link
        if link:
            raise ListingUnusable("list accounts: the link to the next page cannot be read")
    return None


def _names_token(page: Any) -> bool:  # noqa: ANN401 - JSON
    return isinstance(page, dict) and page.get("page_token") not in {None, "", "null"}


def _first_number(values: dict[str, Any], keys: tuple[str, ...]) -> int | None:
    return next((number for key in keys if (number := _number(values.get(key))) is not None), None)


def _number(value: Any) -> int | None:  # noqa: ANN401 - JSON
    """Return a number that is not negative, or None. It may be a string: protobuf's JSON writes 64-bit ones so."""
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,15}", value):
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)
