"""The protocols through which the core uses the outside world. Adapters and test doubles implement them.

The protocols of the store are in `store`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Protocol

from broker_common.core.sandbox import account_key

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from broker_common.core.sandbox import Account
    from broker_common.core.telemetry import Event, ServicesOutcome


class Clock(Protocol):
    """The time, which tests can replace."""

    def now(self) -> int:
        """Return the time in Unix seconds."""

    def monotonic(self) -> float:
        """Return seconds since an arbitrary start. They never decrease."""

    def sleep(self, seconds: float) -> None:
        """Wait for `seconds`."""


class Recorder(Protocol):
    """Takes the core's telemetry, and makes metrics and log lines from it."""

    def record(self, event: Event) -> None:
        """Count or log an event. Never raises."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownTable:
    """What is remembered of the table that the broker uses."""

    identity: str
    had_records: bool = False
    """A sync has succeeded on the table, so it must have a record of a sandbox."""
    accepted_at: int = 0
    """When an operator accepted the table, in milliseconds of the memory's clock; 0 if no operator had to."""


class TableMemory(Protocol):
    """Remembers for all processes, and outside of the table, which table they use.

    Every method raises `QueueUnavailable` if the memory does not answer.
    """

    def recall(self) -> KnownTable | None:
        """Return the remembered table; None if there is none."""

    def remember(self, table: KnownTable) -> None:
        """Remember `table` if no table is remembered. If it is remembered already, only add `had_records`."""

    def replace(self, identity: str) -> None:
        """Remember an accepted table instead of any other."""


@dataclass(frozen=True, slots=True)
class SkippedAccount:
    """An entry of the provider's list that does not parse. Its ids are set if they could be read."""

    reason: str
    sandbox_id: str | None = None
    external_id: str | None = None


@dataclass(frozen=True, slots=True)
class InactiveAccount:
    """An entry of the provider's list that is not an active sandbox. Its ids are set if it has them."""

    sandbox_id: str | None
    external_id: str | None = None


@dataclass(frozen=True, slots=True)
class AccountListing:
    """All pages of the provider's list.

    `accounts` are the active sandbox accounts. No two have the same sandbox id or the same account. `ambiguous` are
    those that share a sandbox id or an account with a different entry, so that a sync must not rely on them. `doubt`
    says why the list may lack accounts. If it is None, the list is whole: an account that is not in it does not exist.
    """

    accounts: tuple[Account, ...]
    skipped: tuple[SkippedAccount, ...] = ()
    inactive: tuple[InactiveAccount, ...] = ()
    ambiguous: tuple[Account, ...] = ()
    doubt: str | None = None

    @property
    def _entries(self) -> tuple[Account | SkippedAccount | InactiveAccount, ...]:
        return (*self.accounts, *self.skipped, *self.inactive, *self.ambiguous)

    @property
    def sandbox_ids(self) -> frozenset[str]:
        """The sandbox ids of all entries, of any state and type."""
        return frozenset(entry.sandbox_id for entry in self._entries if entry.sandbox_id is not None)

    @property
    def account_keys(self) -> frozenset[str]:
        """The `account_key` of the accounts of all entries, of any state and type."""
        return frozenset(account_key(entry.external_id) for entry in self._entries if entry.external_id is not None)


@dataclass(frozen=True, slots=True)
class Allowance:
    """What the rate limit leaves to a caller. Durations are whole seconds, rounded up."""

    is_exceeded: bool
    limit: int
    remaining: int
    reset_after: int
    retry_after: int


class RateLimit(Protocol):
    """Limits the requests of each key, over all processes."""

    def take(self, key: str) -> Allowance | None:
        """Count one request of `key`, and return what is left. Return None if it cannot be counted now.

        Never raises, and hardly waits.
        """


class WipeAnswer(Enum):
    """The provider's answer to a delete call that did not fail."""

    WIPED = "wiped"
    ACCEPTED = "accepted"
    GONE = "gone"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServicesRemoval:
    """What became of the services that a student left in an account. `removed` and `left` are numbers of services.

    `error` says in a few words why some are left. It has nothing of the provider's answer in it.
    """

    outcome: ServicesOutcome
    removed: int = 0
    left: int = 0
    error: str | None = None


class Services(Protocol):
    """The provider's API for the services in an account, which are not gone with the account."""

    def remove(self, external_id: str, *, within: float) -> ServicesRemoval:
        """Remove the services of an account; in shadow mode only count them. Call this inside `Provider.admit`.

        Ends within `within` seconds. A failure of the provider is an outcome, and raises nothing.
        """


class Provider(Protocol):
    """The provider's account API. Each call is sent at most once; the caller decides about a retry."""

    def list_accounts(self) -> AccountListing:
        """List the accounts.

        Raises `ListingUnusable` if an answer is cut short or does not parse, or if the list has no active sandbox
        account. Raises also `ProviderMisconfigured`, `ProviderRejected`, `ProviderFailing`, `ProviderBusy`,
        `ProviderCircuitOpen` and `ProviderSlotsUnavailable`.
        """

    def admit(self) -> AbstractContextManager[None]:
        """Hold one of the call slots that all workers share, for one `delete_account` call inside the context.

        Waits a little until a slot is free and the pace of deletes allows the call. Raises `ProviderBusy`,
        `ProviderCircuitOpen` or `ProviderSlotsUnavailable`. Then the caller must not send.
        """

    def delete_account(self, external_id: str, *, send_within: float) -> WipeAnswer:
        """Ask the provider to wipe an account. Call this inside `admit`.

        The request is sent within `send_within` seconds, or not at all.
        Raises `ProviderMisconfigured`, `ProviderRejected` or `ProviderFailing`.
        """
