"""The services in an account at the provider (the ENG CSP): removes those that a student left.

They are not gone with the account, and the token that deletes accounts cannot reach them. So a user signs in, and
switches to the account. No error has anything of an answer in it but its status, because an answer may hold a secret.
"""

from __future__ import annotations

import json
import re
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import requests

from broker_common.adapters.csp_json import states_failure
from broker_common.adapters.csp_listing import account_uuid
from broker_common.adapters.csp_recording import recorded
from broker_common.adapters.csp_transport import CspTransport
from broker_common.core.errors import (
    ProviderCircuitOpen,
    ProviderError,
    ProviderFailing,
    ProviderMisconfigured,
    ProviderRejected,
)
from broker_common.core.ports import ServicesRemoval
from broker_common.core.telemetry import ServicesOutcome

if TYPE_CHECKING:
    from collections.abc import Mapping

    from broker_common.adapters.csp_transport import Answer
    from broker_common.adapters.redis_breaker import NoBreaker, RedisBreaker
    from broker_common.core.ports import Clock, Recorder

_SIGN_IN, _SWITCH, _LIST, _DELETE = "sign in", "switch account", "list services", "delete service"
_SIGN_IN_PATH, _SWITCH_PATH = "/v2/session/users/sign_in", "/v2/session/account_switch"
_SERVICES = "/api/universalinfra/v1/universalservices"
_UUID = r"[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}"
_SERVICE_ID = re.compile(rf"(?:[A-Za-z0-9._/-]*/)?({_UUID})")
_TOKEN = re.compile(r"[!-~]{1,16384}")
_LIST_BYTES = 8 * 2**20
_OTHER_BYTES = 64 * 2**10
_GONE = frozenset({HTTPStatus.OK, HTTPStatus.NO_CONTENT, HTTPStatus.NOT_FOUND})
_TRANSIENT = frozenset({HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS})


class CspServices:
    """Implements the `Services` port, by calls that follow one another in the caller's thread.

    Each removal signs in for itself, so that no account that is switched to is switched away by another thread. One
    circuit breaker is for removals alone. It opens if nobody can sign in, or if nothing could be removed because the
    provider fails. An account that refuses the switch, and a service that cannot be deleted, say nothing about others.
    """

    def __init__(
        self,
        *,
        base_url: str,
        email: str,
        password: str,
        name: str | None,
        is_shadow: bool,
        connect_timeout: float,
        read_timeout: float,
        connections: int,
        breaker: RedisBreaker | NoBreaker,
        recorder: Recorder,
        clock: Clock,
    ) -> None:
        """Remove only services that are called `name`; None: all."""
        parts = urlsplit(base_url)
        self._origin = f"{parts.scheme}://{parts.netloc}"
        self._credentials = {"email": email, "password": password}
        self._name = name
        self._is_shadow = is_shadow
        self._limit_sec = connect_timeout + read_timeout
        self._breaker = breaker
        self._recorded = partial(recorded, recorder=recorder, clock=clock)
        self._clock = clock
        self._transport = CspTransport(
            connect_timeout=connect_timeout, read_timeout=read_timeout, connections=connections
        )

    def check(self) -> None:
        """Make sure that one can sign in. Raises `ProviderMisconfigured`, `ProviderRejected` or `ProviderFailing`."""
        self._sign_in(_Time(self._clock, self._limit_sec))

    def remove(self, external_id: str, *, within: float) -> ServicesRemoval:
        """Remove the services of an account, or count them in shadow mode, within `within` seconds."""
        tally = _Tally()
        try:
            with self._breaker.admit() as permit, permit.call():
                self._remove(external_id, _Time(self._clock, within), tally)
        except ProviderCircuitOpen:
            skipped = "the circuit breaker of the removal of services is open"
            return ServicesRemoval(outcome=ServicesOutcome.SKIPPED, error=skipped)
        except ProviderError as error:
            if not tally.is_listed:
                return ServicesRemoval(outcome=ServicesOutcome.FAILED, error=error.message)
            tally.note(error.message)
        return ServicesRemoval(
            outcome=tally.outcome(is_shadow=self._is_shadow),
            removed=tally.removed,
            left=tally.left,
            error=tally.error,
        )

    def _remove(self, external_id: str, time: _Time, tally: _Tally) -> None:
        if account_uuid(external_id) is None:
            raise ProviderRejected(f"{_SWITCH}: its external id is not identity/accounts/<uuid>; nothing was sent")
        signed_in = self._sign_in(time)
        switched = self._switch(external_id, signed_in, time)
        if switched == signed_in:
            # By this token, the services of another account would be removed.
            raise ProviderMisconfigured(f"{_SWITCH}: the answer has the same token as before, so nothing was switched")
        service_ids = self._list(switched, time, tally)
        if self._is_shadow:
            return
        failure: ProviderFailing | None = None
        for service_id in service_ids:
            if time.left() <= 0:
                tally.note("the time for the removal is over")
                break
            try:
                self._delete(service_id, switched, time)
            except (ProviderFailing, ProviderRejected) as error:
                tally.note(error.message)
                failure = error if isinstance(error, ProviderFailing) else failure
            else:
                tally.removed += 1
        if failure is not None and not tally.removed:
            raise failure  # the breaker counts it

    def _sign_in(self, time: _Time) -> str:
        with self._recorded("sign_in"):
            try:
                return _read_token(_SIGN_IN, self._send(_SIGN_IN, "POST", _SIGN_IN_PATH, time, body=self._credentials))
            except ProviderRejected as error:
                # It is the same request each time.
                raise ProviderMisconfigured(error.message) from error

    def _switch(self, external_id: str, token: str, time: _Time) -> str:
        with self._recorded("switch_account"):
            body = {"id": external_id}
            return _read_token(_SWITCH, self._send(_SWITCH, "POST", _SWITCH_PATH, time, token=token, body=body))

    def _list(self, token: str, time: _Time, tally: _Tally) -> list[str]:
        """Return the ids of the services to remove, and count those whose id cannot be read."""
        with self._recorded("list_services"):
            fields = _read(_LIST, self._send(_LIST, "GET", _SERVICES, time, token=token, max_bytes=_LIST_BYTES))
            entries = fields.get("results")
            if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
                raise ProviderFailing(f"{_LIST}: the answer holds no list of results", outcome_unknown=False)
        tally.is_listed = True
        found: list[str] = []
        for entry in entries:
            if self._name is not None and entry.get("name") != self._name:
                continue
            tally.found += 1
            service_id = entry.get("id")
            match = _SERVICE_ID.fullmatch(service_id) if isinstance(service_id, str) else None
            if match:
                found.append(match[1])
            else:
                tally.note(f"{_LIST}: the id of a service cannot be read")
        return found

    def _delete(self, service_id: str, token: str, time: _Time) -> None:
        with self._recorded("delete_service"):
            answer = self._send(_DELETE, "DELETE", f"{_SERVICES}/{service_id}", time, token=token)
            if answer.is_html and answer.status in _GONE:
                raise ProviderFailing(f"{_DELETE}: HTTP {answer.status} with an HTML page", outcome_unknown=True)
            if answer.status not in _GONE:
                raise _refusal(_DELETE, answer)

    def _send(
        self,
        operation: str,
        method: str,
        path: str,
        time: _Time,
        *,
        token: str | None = None,
        body: Mapping[str, str] | None = None,
        max_bytes: int = _OTHER_BYTES,
    ) -> Answer:
        left = time.left()
        if left <= 0:
            raise ProviderFailing(f"{operation}: no time is left for it", outcome_unknown=False)
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        request = requests.Request(method, self._origin + path, headers=headers, json=body)
        return self._transport.send(operation, request, max_bytes=max_bytes, end_within=left)


class _Time:
    """The time that all calls of one removal have together."""

    def __init__(self, clock: Clock, seconds: float) -> None:
        self._clock = clock
        self._end = clock.monotonic() + seconds

    def left(self) -> float:
        return self._end - self._clock.monotonic()


class _Tally:
    """Counts the services of one removal, and keeps the first error."""

    def __init__(self) -> None:
        self.is_listed = False
        self.found = 0
        self.removed = 0
        self.error: str | None = None

    @property
    def left(self) -> int:
        return self.found - self.removed

    def note(self, error: str) -> None:
        self.error = self.error or error

    def outcome(self, *, is_shadow: bool) -> ServicesOutcome:
        if not self.found:
            return ServicesOutcome.NONE
        if is_shadow:
            return ServicesOutcome.SHADOW
        return ServicesOutcome.PARTIAL if self.left else ServicesOutcome.REMOVED


def _read(operation: str, answer: Answer) -> dict[str, Any]:
    """Return the JSON object of a success."""
    if not HTTPStatus(200) <= answer.status < HTTPStatus(300):
        raise _refusal(operation, answer)
    if answer.is_html:
        raise ProviderMisconfigured(f"{operation}: HTTP {answer.status} with an HTML page, such as a login page")
    unusable = ProviderFailing(f"{operation}: HTTP {answer.status} without a usable answer", outcome_unknown=False)
    try:
        document = json.loads(answer.body)
    except (ValueError, RecursionError) as error:
        raise unusable from error
    if not answer.is_complete or not isinstance(document, dict) or states_failure(document.items()):
        raise unusable
    return document


def _read_token(operation: str, answer: Answer) -> str:
    token = _read(operation, answer).get("jwt")
    # In a header, any other character would be an error whose text has the token in it.
    if not isinstance(token, str) or not _TOKEN.fullmatch(token):
        raise ProviderFailing(f"{operation}: the answer holds no jwt", outcome_unknown=False)
    return token


def _refusal(operation: str, answer: Answer) -> ProviderError:
    message = f"{operation}: HTTP {answer.status}" + (" with an HTML page" if answer.is_html else "")
    if HTTPStatus(300) <= answer.status < HTTPStatus(400):
        return ProviderMisconfigured(message)
    if answer.status in _TRANSIENT or answer.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return ProviderFailing(message, outcome_unknown=False)
    return ProviderRejected(message)
