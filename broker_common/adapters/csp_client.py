"""The provider's HTTP API (the ENG CSP): its only client, which lists the accounts and wipes one.

This file builds the requests and judges the answers. `csp_transport` sends and receives, `csp_listing` reads the list,
`csp_json` reads JSON objects.
"""

from __future__ import annotations

import threading
from contextlib import contextmanager
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING

import requests

from broker_common.adapters.csp_json import read_fields, states_failure
from broker_common.adapters.csp_listing import Listing, account_uuid
from broker_common.adapters.csp_recording import recorded
from broker_common.adapters.csp_transport import CspTransport
from broker_common.core.errors import (
    ListingUnusable,
    ProviderError,
    ProviderFailing,
    ProviderMisconfigured,
    ProviderRejected,
)
from broker_common.core.ports import WipeAnswer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from broker_common.adapters.csp_transport import Answer
    from broker_common.adapters.redis_breaker import NoBreaker, Permit, RedisBreaker
    from broker_common.adapters.redis_slots import RedisSlots, Slot
    from broker_common.core.ports import AccountListing, Clock, Recorder

_LIST = "list accounts"
_DELETE = "delete account"
_LIST_BYTES = 64 * 2**20
_DELETE_BYTES = 64 * 2**10
_MAX_PAGES = 10_000
_SNIPPET_CHARACTERS = 160
_LIST_WAIT_SEC = 30.0
# A worker that must stop first finishes its tasks: a delete that waits for a slot or for the pace must not delay that.
_DELETE_WAIT_SEC = 3.0

_WIPE_ANSWERS: dict[int, WipeAnswer] = {
    HTTPStatus.OK: WipeAnswer.WIPED,
    HTTPStatus.NO_CONTENT: WipeAnswer.WIPED,
    HTTPStatus.ACCEPTED: WipeAnswer.ACCEPTED,
    HTTPStatus.NOT_FOUND: WipeAnswer.GONE,
}
_CONFIGURATION_FAULTS = frozenset({HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN})
_TRANSIENT = frozenset({HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS})
# RFC 9110, 15.6.3 and 15.6.5: a gateway got no valid or no timely answer, so the outcome is not known. Codes above
# 519 are not registered; proxies use them with much the same meaning.
_OUTCOME_UNKNOWN = frozenset({HTTPStatus.BAD_GATEWAY, HTTPStatus.GATEWAY_TIMEOUT, *range(520, 600)})


class CspClient:
    """Implements the `Provider` port.

    Each request passes the circuit breaker, holds a call slot, and is sent once. The first request connects.
    """

    def __init__(
        self,
        *,
        base_url: str,
        token: str,
        connect_timeout: float,
        read_timeout: float,
        connections: int,
        slots: RedisSlots,
        breaker: RedisBreaker | NoBreaker,
        recorder: Recorder,
        clock: Clock,
    ) -> None:
        self._base_url = base_url.rstrip("/")
        self._token = token
        self._slots = slots
        self._breaker = breaker
        self._recorded = partial(recorded, recorder=recorder, clock=clock)
        self._admitted = threading.local()
        self._transport = CspTransport(
            token=token, connect_timeout=connect_timeout, read_timeout=read_timeout, connections=connections
        )

    def list_accounts(self) -> AccountListing:
        """Return the active sandbox accounts of all pages; waits up to 30 s for a call slot.

        Skips an entry that does not parse, or whose id was listed before. Raises the errors that the port names.
        """
        first = f"{self._base_url}/current_user/accounts"
        listing = Listing(self._base_url)
        asked: set[str] = set()
        url, parameters = first, None
        self._breaker.check()
        with self._slots.hold(wait_sec=_LIST_WAIT_SEC) as slot:
            while True:
                request = requests.Request("GET", url, params=parameters)
                answer = self._get_page(request, slot)
                if answer.url in asked or len(asked) >= _MAX_PAGES:
                    raise ListingUnusable(f"{_LIST}: the provider's paging does not end")
                asked.add(answer.url)
                following = listing.take(answer.body, url=answer.url, link=answer.next_link)
                if following is None:
                    return listing.finish()
                url, parameters = (following, None) if isinstance(following, str) else (first, following)

    @contextmanager
    def admit(self) -> Iterator[None]:
        """Hold a call slot for one `delete_account` of this thread.

        Waits up to 3 s until a slot is free and the pace of deletes allows the call. Raises the errors that the port
        names.
        """
        self._breaker.check()
        with self._slots.hold(wait_sec=_DELETE_WAIT_SEC, is_paced=True), self._breaker.admit() as permit:
            self._admitted.permit = permit
            try:
                yield
            finally:
                self._admitted.permit = None

    def delete_account(self, external_id: str, *, send_within: float) -> WipeAnswer:
        """Request the wipe of an account, inside `admit`. Raises the errors that the port names.

        Rejects an `external_id` that is not `identity/accounts/<uuid>`, and then sends nothing. A wipe is a 200, 202
        or 204 with an empty body, or with a JSON object that states no failure. With an HTML page it is a login page.
        An account is gone by a 404 with a JSON object. Any other body with one of these statuses leaves the outcome
        unknown.
        """
        permit: Permit | None = getattr(self._admitted, "permit", None)
        if permit is None:
            raise RuntimeError("delete_account was called outside admit")
        uuid = account_uuid(external_id)
        if uuid is None:
            raise ProviderRejected(f"{_DELETE}: its external id is not identity/accounts/<uuid>; nothing was sent")
        with permit.call(), self._recorded("delete"):
            request = requests.Request("DELETE", f"{self._base_url}/sandbox/accounts/{uuid}")
            answer = self._transport.send(_DELETE, request, max_bytes=_DELETE_BYTES, send_within=send_within)
            return self._judge_delete(answer)

    def _get_page(self, request: requests.Request, slot: Slot) -> Answer:
        slot.renew()
        with self._breaker.admit() as permit, permit.call(), self._recorded("list"):
            answer = self._transport.send(_LIST, request, max_bytes=_LIST_BYTES)
            if not HTTPStatus(200) <= answer.status < HTTPStatus(300):
                raise self._refusal(_LIST, answer)
            if answer.is_late:
                raise ProviderFailing(f"{_LIST}: timed out in the middle of the answer", outcome_unknown=True)
            if answer.status != HTTPStatus.OK:
                raise ListingUnusable(f"{_LIST}: HTTP {answer.status} instead of a list")
            if not answer.is_complete:
                raise ListingUnusable(f"{_LIST}: the answer was cut short, or is longer than {_LIST_BYTES} bytes")
            return answer

    def _judge_delete(self, answer: Answer) -> WipeAnswer:
        meant = _WIPE_ANSWERS.get(answer.status)
        if meant is None:
            raise self._refusal(_DELETE, answer)
        if answer.is_html and meant is not WipeAnswer.GONE:
            page = f"{_DELETE}: HTTP {answer.status} with an HTML page, such as a login page"
            raise ProviderMisconfigured(page, outcome_unknown=True)
        if not answer.is_complete:
            # RFC 9112, section 8: an incomplete answer must not be used.
            cut = (
                f"{_DELETE}: HTTP {answer.status}, but the answer was cut short or is longer than {_DELETE_BYTES} bytes"
            )
            raise ProviderFailing(cut, outcome_unknown=True)
        fields = read_fields(answer.body)
        if meant is WipeAnswer.GONE:
            # A proxy that finds no server answers 404, too: Envoy with an empty body, others with a page or a line.
            is_clear, doubt = fields is not None, "not the provider's JSON, so the account may still be there"
        else:
            is_clear = not answer.body or (fields is not None and not states_failure(fields))
            doubt = "which does not confirm that the account was wiped"
        if not is_clear:
            raise ProviderFailing(f"{self._summary(_DELETE, answer)} ({doubt})", outcome_unknown=True)
        return meant

    def _summary(self, operation: str, answer: Answer) -> str:
        """Describe an answer in one short line, without the token."""
        text = answer.body.decode("utf-8", "replace").replace(self._token, "***")
        text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
        if len(text) > _SNIPPET_CHARACTERS:
            text = f"{text[:_SNIPPET_CHARACTERS]}…"
        return f"{operation}: HTTP {answer.status}" + (f": {text}" if text else "")

    def _refusal(self, operation: str, answer: Answer) -> ProviderError:
        status, message = answer.status, self._summary(operation, answer)
        if status in _CONFIGURATION_FAULTS or HTTPStatus(300) <= status < HTTPStatus(400):
            return ProviderMisconfigured(message)
        if status in _TRANSIENT or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            return ProviderFailing(message, outcome_unknown=status in _OUTCOME_UNKNOWN)
        return ProviderRejected(message)
