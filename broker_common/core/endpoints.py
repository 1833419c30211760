"""Register webhook endpoints, change them, and send them deliveries again.

How facts become deliveries is in `deliveries`. Whether the address of an endpoint may be connected to is decided at
each try, not here.
"""

from __future__ import annotations

import base64
import json
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from broker_common.core.deadline import Backoff, time_left
from broker_common.core.errors import (
    DeliveryNotFound,
    InvalidInput,
    InvalidTransition,
    StoreUnavailable,
    UpgradeUnfinished,
    VersionMismatch,
    WebhookLimit,
    WebhookNotFound,
)
from broker_common.core.facts import FactKind, PoolFactKind, by_sandbox
from broker_common.core.ids import new_id
from broker_common.core.parallel import for_each
from broker_common.core.schema import Upgrade
from broker_common.core.store import Conflict
from broker_common.core.utc import first_kept
from broker_common.core.webhook import ALL_KINDS, MAX_ENDPOINTS, TEST_KIND, DeliveryState, Endpoint, Secret
from broker_common.core.webhook_payload import delivery_of, test_of
from broker_common.core.webhook_url import find_url_fault

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from random import Random

    from broker_common.core.facts import Fact, PoolFact
    from broker_common.core.guard import Guard
    from broker_common.core.ports import Clock
    from broker_common.core.principals import Actor
    from broker_common.core.store import Reports
    from broker_common.core.webhook import Delivery
    from broker_common.core.webhook_store import DeliveryPage, WebhookRecords
    from broker_common.core.webhook_url import AllowedUrls

OLD_SECRET_SEC = 24 * 3600
"""How long a secret goes on signing after it was replaced."""
MAX_SECRETS = 5
"""How many secrets sign at once. More are only there after several rotations in a day."""
SUBSCRIBABLE = (ALL_KINDS, *FactKind, *PoolFactKind, TEST_KIND)
"""What `Endpoint.kinds` may contain."""
_SECRET_BYTES = 32
_REPLAY_PAGE = 100
_REPLAY_SEC = 10.0
"""After so long a replay ends with a cursor."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WantedEndpoint:
    """An endpoint as it is asked for. The fields are those of `Endpoint`."""

    url: str
    kinds: tuple[str, ...]
    description: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointChange:
    """What to change of an endpoint; None leaves a field as it is, and an empty `description` removes it."""

    url: str | None = None
    kinds: tuple[str, ...] | None = None
    description: str | None = None
    enabled: bool | None = None


@dataclass(frozen=True, slots=True)
class Replay:
    """What one call of a replay has done. `cursor` goes on with it; None: it is complete."""

    replayed: int
    cursor: str | None


class Endpoints:
    """Keeps the webhook endpoints for operators; safe to use from many threads."""

    def __init__(
        self,
        *,
        records: WebhookRecords,
        reports: Reports,
        guard: Guard,
        clock: Clock,
        rng: Random,
        random_bytes: Callable[[int], bytes],
        allowed: AllowedUrls,
        history_days: int,
        threads: int,
    ) -> None:
        """`random_bytes` makes secrets, so it must be fit for cryptography. Facts are kept for `history_days`."""
        self._records = records
        self._reports = reports
        self._guard = guard
        self._clock = clock
        self._rng = rng
        self._random_bytes = random_bytes
        self._allowed = allowed
        self._history_days = history_days
        self._threads = threads

    def create(self, wanted: WantedEndpoint, *, by: Actor) -> Endpoint:
        """Register an endpoint with a new secret. It gets every fact from `SETTLED_SEC` later on.

        Raises `InvalidInput`, `WebhookLimit`, `UpgradeUnfinished`, `UnsafeToAct` and `StoreUnavailable`.
        """
        self._check_allowed("register a webhook")
        self._check_url(wanted.url)
        _check_kinds(wanted.kinds)
        endpoint = Endpoint(
            endpoint_id=new_id(self._rng),
            url=wanted.url,
            kinds=wanted.kinds,
            description=wanted.description,
            secrets=(self._new_secret(),),
            created_at=self._clock.now(),
            created_by=by.principal,
        )
        full = WebhookLimit(f"there are {MAX_ENDPOINTS} endpoints already: remove one first")
        if len(self._records.read_endpoints()) >= MAX_ENDPOINTS:
            raise full
        self._records.write_endpoint(None, endpoint)
        # Of those that are added at the same time, the last one sees all others here.
        if len(self._records.read_endpoints()) > MAX_ENDPOINTS:
            self._records.write_endpoint(endpoint, None)
            raise full
        return endpoint

    def list(self) -> list[Endpoint]:
        """Return all endpoints, the oldest first. Raises `StoreUnavailable`."""
        return sorted(self._records.read_endpoints(), key=lambda each: (each.created_at, each.endpoint_id))

    def get(self, endpoint_id: str) -> Endpoint:
        """Return an endpoint. Raises `WebhookNotFound` and `StoreUnavailable`."""
        found = self._records.read_endpoint(endpoint_id)
        if found is None:
            raise WebhookNotFound(f"there is no webhook endpoint {endpoint_id!r}")
        return found

    def change(self, endpoint_id: str, wanted: EndpointChange, *, version: int, by: Actor) -> Endpoint:
        """Change an endpoint that was read at `version`.

        One that is enabled again, or gets another URL, begins without earlier failures. Raises `WebhookNotFound`,
        `VersionMismatch`, `InvalidInput`, `UnsafeToAct` and `StoreUnavailable`.
        """
        if wanted.url is not None:
            self._check_url(wanted.url)
        if wanted.kinds is not None:
            _check_kinds(wanted.kinds)

        def decide(current: Endpoint) -> Endpoint:
            if current.version != version:
                raise VersionMismatch(
                    f"the endpoint has version {current.version}: read it again, then repeat the change",
                    details={"version": current.version},
                )
            return self._changed(current, wanted, by)

        return self._write(endpoint_id, decide)

    def remove(self, endpoint_id: str) -> None:
        """Remove an endpoint. Its deliveries are not sent any more.

        Raises `WebhookNotFound`, `UnsafeToAct` and `StoreUnavailable`.
        """
        self._guard.check()
        backoff = self._backoff()
        while True:
            current = self.get(endpoint_id)
            try:
                self._records.write_endpoint(current, None)
            except Conflict:
                backoff.pause(_busy())
                continue
            return

    def rotate_secret(self, endpoint_id: str) -> Endpoint:
        """Give an endpoint a new secret. The one before signs, too, for `OLD_SECRET_SEC`.

        Raises `WebhookNotFound`, `UnsafeToAct` and `StoreUnavailable`.
        """
        secret = self._new_secret()

        def decide(current: Endpoint) -> Endpoint:
            now = self._clock.now()
            old = [
                replace(each, valid_until=now + OLD_SECRET_SEC) if each.valid_until is None else each
                for each in current.secrets
                if each.valid_until is None or each.valid_until > now
            ]
            return replace(current, secrets=(secret, *old)[:MAX_SECRETS], version=current.version + 1)

        return self._write(endpoint_id, decide)

    def test(self, endpoint_id: str, *, by: Actor) -> Delivery:
        """Send a delivery of kind `test` to an endpoint, and return it. A disabled endpoint gets it once it is enabled.

        Raises `WebhookNotFound`, `UnsafeToAct` and `StoreUnavailable`.
        """
        self._guard.check()
        delivery = test_of(self.get(endpoint_id), f"test-{new_id(self._rng)}", by=by, now=self._clock.now())
        self._records.add_delivery(delivery)
        return delivery

    def deliveries(
        self, endpoint_id: str, *, state: DeliveryState | None, limit: int, cursor: str | None
    ) -> DeliveryPage:
        """List deliveries of an endpoint in one state, or all.

        Raises `WebhookNotFound`, `StoreUnavailable`, and `InvalidInput` for a cursor of another listing.
        """
        self.get(endpoint_id)
        return self._records.list_deliveries(endpoint_id, state=state, limit=limit, cursor=cursor)

    def delivery(self, endpoint_id: str, delivery_id: str) -> Delivery:
        """Return a delivery of an endpoint. Raises `WebhookNotFound`, `DeliveryNotFound` and `StoreUnavailable`."""
        self.get(endpoint_id)
        found = self._records.read_delivery(endpoint_id, delivery_id)
        if found is None:
            raise DeliveryNotFound(f"the endpoint has no delivery {delivery_id!r}")
        return found

    def retry(self, endpoint_id: str, delivery_id: str) -> Delivery:
        """Send a delivery again that has ended, or send one now that waits for its next try; with all its tries.

        What waits for it is then due, too.
        Raises `InvalidTransition` while it is sent, is due, or waits for an older one of its sandbox. Also raises
        `WebhookNotFound`, `DeliveryNotFound`, `UnsafeToAct` and `StoreUnavailable`.
        """
        self._guard.check()
        backoff = self._backoff()
        while True:
            current = self.delivery(endpoint_id, delivery_id)
            newer = self._newer_than(current) if current.state is DeliveryState.PENDING else []
            try:
                again = self._send_again(current)
            except Conflict:
                backoff.pause(_busy())
                continue
            for each in newer:
                with suppress(Conflict):  # It is sent, or was sent, by then.
                    self._records.write_delivery(each, replace(each, next_try_at=again.next_try_at))
            return again

    def _newer_than(self, pending: Delivery) -> Sequence[Delivery]:
        """Return what waits for a delivery. Raises `InvalidTransition` unless that waits for its own next try."""
        at = pending.next_try_at
        if pending.attempt_id is not None or at is None or at <= self._clock.now():
            raise InvalidTransition(
                f"delivery {pending.delivery_id!r} is pending and due: the broker sends it by itself, but not while its"
                " endpoint is disabled, or is down"
            )
        if pending.sandbox_id is None:
            return []
        in_order = self._records.read_pending(pending.endpoint_id, pending.sandbox_id)
        known = [each.delivery_id for each in in_order]
        if pending.delivery_id in known[1:]:
            raise InvalidTransition(f"delivery {pending.delivery_id!r} waits for an older one: retry {known[0]!r}")
        return in_order[1:] if pending.delivery_id in known else []

    def replay(self, endpoint_id: str, *, since: int, cursor: str | None = None) -> Replay:
        """Send the facts since a time (Unix seconds) again: those that are kept, and that the endpoint wants.

        A delivery that has ended becomes pending again, and one that was never made is made. Works for some seconds.
        If the answer has a `cursor`, the next call goes on from there. Each page is written before the cursor passes
        it, so a caller that got no answer repeats its call and misses nothing. Raises `InvalidInput` for a time in the
        future or before the kept facts, and for a cursor of another replay; also `WebhookNotFound`,
        `UpgradeUnfinished`, `UnsafeToAct` and `StoreUnavailable`.
        """
        self._check_allowed("replay facts")
        endpoint = self.get(endpoint_id)
        now = self._clock.now()
        if since > now:
            raise _fault("since", "must not be in the future")
        if cursor is None and since < first_kept(now, days=self._history_days):
            raise _fault("since", f"must not be longer ago than facts are kept: {self._history_days} days")
        at = _read_cursor(endpoint_id, since, cursor)
        ends_at = self._clock.monotonic() + min(_REPLAY_SEC, time_left(self._clock) / 2)
        replayed = 0
        while True:
            page = self._reports.read_feed(since=since, cursor=at, limit=_REPLAY_PAGE)
            wanted = by_sandbox(fact for fact in page.facts if endpoint.wants(fact.kind))
            replayed += sum(for_each(partial(self._replay_facts, endpoint), wanted.values(), threads=self._threads))
            at = page.cursor
            if page.is_last:
                return Replay(replayed, None)
            if self._clock.monotonic() >= ends_at:
                return Replay(replayed, _write_cursor(endpoint_id, since, at))

    def _replay_facts(self, endpoint: Endpoint, facts: Sequence[Fact | PoolFact]) -> int:
        """Make the deliveries of the facts of one sandbox pending, in order: some may never have been sent."""
        return sum(self._replay_fact(endpoint, fact) for fact in facts)

    def _replay_fact(self, endpoint: Endpoint, fact: Fact | PoolFact) -> bool:
        """Make the delivery of a fact pending. Return False if it was already."""
        delivery = delivery_of(fact, endpoint, now=self._clock.now())
        backoff = self._backoff()
        while True:
            if self._records.add_delivery(delivery):
                return True
            current = self._records.read_delivery(endpoint.endpoint_id, delivery.delivery_id)
            if current is not None and current.state is DeliveryState.PENDING:
                return False
            try:
                if current is not None:  # else its time to be kept has just ended
                    self._send_again(current)
                    return True
            except Conflict:
                pass
            backoff.pause(_busy())

    def _send_again(self, before: Delivery) -> Delivery:
        """Make a delivery pending and due, with all its tries. Raises `Conflict`."""
        again = replace(
            before,
            state=DeliveryState.PENDING,
            tries=0,
            next_try_at=self._clock.now(),
            attempt_id=None,
            delivered_at=None,
        )
        self._records.write_delivery(before, again)
        return again

    def _changed(self, current: Endpoint, wanted: EndpointChange, by: Actor) -> Endpoint:
        changed = replace(
            current,
            url=current.url if wanted.url is None else wanted.url,
            kinds=current.kinds if wanted.kinds is None else wanted.kinds,
            description=current.description if wanted.description is None else wanted.description or None,
            version=current.version + 1,
        )
        if changed.url != current.url:
            changed = replace(changed, failing_since=None, probe_at=None)
        if wanted.enabled and current.disabled_at is not None:
            return replace(changed, failing_since=None, probe_at=None, disabled_at=None, disabled_reason=None)
        if wanted.enabled is False and current.disabled_at is None:
            reason = f"disabled by {by.principal}"
            return replace(changed, disabled_at=self._clock.now(), disabled_reason=reason)
        return changed

    def _write(self, endpoint_id: str, decide: Callable[[Endpoint], Endpoint]) -> Endpoint:
        """Change an endpoint as `decide` says of the stored one, as often as another writer comes first."""
        self._guard.check()
        backoff = self._backoff()
        while True:
            current = self.get(endpoint_id)
            changed = decide(current)
            try:
                self._records.write_endpoint(current, changed)
            except Conflict:
                backoff.pause(_busy())
                continue
            return changed

    def _new_secret(self) -> Secret:
        # Standard Webhooks 1.0, "Signature scheme": 24 to 64 random bytes.
        return Secret(value=f"whsec_{base64.b64encode(self._random_bytes(_SECRET_BYTES)).decode()}")

    def _check_url(self, url: str) -> None:
        problem = find_url_fault(url, self._allowed)
        if problem is not None:
            raise _fault("url", problem)

    def _check_allowed(self, refused: str) -> None:
        self._guard.check()
        if not self._guard.is_upgraded(Upgrade.WEBHOOKS):
            raise UpgradeUnfinished(refused)

    def _backoff(self) -> Backoff:
        return Backoff(self._clock, self._rng, base=0.02, limit=0.5)


def _check_kinds(kinds: Sequence[str]) -> None:
    """Raise `InvalidInput` unless these kinds make sense."""
    problems = {
        "must not be empty": not kinds,
        f"must each be {ALL_KINDS!r} or the name of a kind": not set(kinds) <= set(SUBSCRIBABLE),
        "must have each kind once": len(set(kinds)) < len(kinds),
        f"must be {ALL_KINDS!r} alone, or kinds": ALL_KINDS in kinds and len(kinds) > 1,
    }
    for text, is_so in problems.items():
        if is_so:
            raise _fault("kinds", text)


def _write_cursor(endpoint_id: str, since: int, at: str) -> str:
    content = json.dumps(["replay", endpoint_id, since, at], separators=(",", ":"))
    return base64.urlsafe_b64encode(content.encode()).decode()


def _read_cursor(endpoint_id: str, since: int, cursor: str | None) -> str | None:
    """Return the feed's cursor in a cursor of the same replay. Raises `InvalidInput` for any other."""
    if cursor is None:
        return None
    try:
        match json.loads(base64.b64decode(cursor, altchars=b"-_", validate=True)):
            case ["replay", of, from_, str(at)] if (of, from_) == (endpoint_id, since):
                return at
    except (ValueError, RecursionError):
        pass
    raise _fault("cursor", "is not from a replay of the same endpoint since the same time")


def _busy() -> StoreUnavailable:
    return StoreUnavailable("the endpoint is being changed by others; try again")


def _fault(field: str, problem: str) -> InvalidInput:
    return InvalidInput(f"{field}: {problem}", details={field: [problem]})
