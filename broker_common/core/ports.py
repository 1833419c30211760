"""What the rules need from the outside but for the store, as protocols; adapters and test doubles implement them.

The store's protocols stand in `store`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Protocol

from broker_common.core.sandbox import account_key

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from broker_common.core.sandbox import Account
    from broker_common.core.telemetry import Event


class Clock(Protocol):
    """Time, so that tests can hold it."""

    def now(self) -> int:
        """Return the time in Unix seconds."""

    def monotonic(self) -> float:
        """Return seconds from an arbitrary start, never running backwards."""

    def sleep(self, seconds: float) -> None:
        """Wait."""


class Recorder(Protocol):
    """Where the core says what happened; metrics and log lines hang on it."""

    def record(self, event: Event) -> None:
        """Take note of an event; never raises."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownTable:
    """What is remembered of the right table."""

    identity: str
    had_records: bool = False
    """A sync had succeeded on it, so it has a record of a sandbox."""
    accepted_at: int = 0
    """When an operator accepted it, in milliseconds by the memory's clock; 0 if nobody had to."""


class TableMemory(Protocol):
    """Which table is the right one, remembered outside of the table, for all processes.

    Every method raises `QueueUnavailable` if the memory does not answer.
    """

    def recall(self) -> KnownTable | None:
        """Return what is remembered; None if that is nothing."""

    def remember(self, table: KnownTable) -> None:
        """Remember a table where none is remembered, and of the same one that it had records."""

    def replace(self, identity: str) -> None:
        """Remember an accepted table in the place of any other."""


@dataclass(frozen=True, slots=True)
class SkippedAccount:
    """An entry of the provider's list that does not parse, and as much of its ids as could be read."""

    reason: str
    sandbox_id: str | None = None
    external_id: str | None = None


@dataclass(frozen=True, slots=True)
class InactiveAccount:
    """An entry of the provider's list that is no active sandbox, with those of its ids that it states."""

    sandbox_id: str | None
    external_id: str | None = None


@dataclass(frozen=True, slots=True)
class AccountListing:
    """What the provider lists, all pages.

    `accounts` are the active sandbox accounts, each id and each account once. `ambiguous` are those that share one of
    both with another entry, which says something else: nothing may be concluded from them. `doubt` says why the list
    may lack accounts; it is None if the list is known to be whole, so that what is not in it is absent.
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
        """Every sandbox id that an entry states, of whatever state and type."""
        return frozenset(entry.sandbox_id for entry in self._entries if entry.sandbox_id is not None)

    @property
    def account_keys(self) -> frozenset[str]:
        """The `account_key` of every account that an entry states, of whatever state and type."""
        return frozenset(account_key(entry.external_id) for entry in self._entries if entry.external_id is not None)


@dataclass(frozen=True, slots=True)
class Allowance:
    """What is left to a caller; durations in whole seconds, rounded up."""

    is_exceeded: bool
    limit: int
    remaining: int
    reset_after: int
    retry_after: int


class RateLimit(Protocol):
    """How many requests each key may make, shared by all processes."""

    def take(self, key: str) -> Allowance | None:
        """Take one request off a key's allowance; None if it cannot be counted now. Never raises, hardly waits."""


class WipeAnswer(Enum):
    """What the provider said to a delete call that it did not refuse."""

    WIPED = "wiped"
    ACCEPTED = "accepted"
    GONE = "gone"


class Provider(Protocol):
    """The provider's account API. Each call is made at most once; whoever calls decides about a retry."""

    def list_accounts(self) -> AccountListing:
        """List the accounts.

        Raises `ListingUnusable` if an answer is cut short or does not parse, or no active sandbox account is listed;
        `ProviderMisconfigured`,
        `ProviderRejected`, `ProviderFailing`, `ProviderBusy`, `ProviderCircuitOpen`, `ProviderSlotsUnavailable`.
        """

    def admit(self) -> AbstractContextManager[None]:
        """Hold one of the call slots that all workers share, for one `delete_account` inside the context.

        Raises `ProviderBusy`, `ProviderCircuitOpen` or `ProviderSlotsUnavailable`; then nothing may be sent.
        """

    def delete_account(self, external_id: str, *, send_within: float) -> WipeAnswer:
        """Ask for an account to be wiped. Call it inside `admit`.

        The request goes out within `send_within` seconds, or not at all.
        Raises `ProviderMisconfigured`, `ProviderRejected` or `ProviderFailing`.
        """
