"""Compare the pool with the provider's list: find the entry of each record, the new accounts, and the missing records.

A clean record is found by the label at the provider (`csp_id`, our sandbox id). A dirty record is found by its account,
because the account must be wiped. Nothing here writes.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from typing import TYPE_CHECKING

from broker_common.core.sandbox import Status
from broker_common.core.telemetry import AccountRefused, RefusalReason

if TYPE_CHECKING:
    from broker_common.core.ports import AccountListing
    from broker_common.core.sandbox import Account, Sandbox
    from broker_common.core.store import Pool


class Comparison:
    """What a list says about the records of the pool: `new` accounts, `refused` ones, and the answers of the methods.

    An account belongs to one record. An entry is refused if another record has its account. It is also refused if its
    own record must keep another account: a record that is held, waits to be wiped, or is dirty.
    """

    def __init__(self, pool: Pool, listing: AccountListing) -> None:
        self._is_whole = listing.doubt is None
        self._records = {record.sandbox_id: record for record in pool.sandboxes}
        self._owners: dict[str, list[str]] = defaultdict(list)
        for record in pool.sandboxes:
            self._owners[record.account_key].append(record.sandbox_id)
        self._active_accounts = {account.key for account in listing.accounts}
        undecided = replace(listing, accounts=(), inactive=())
        self._undecided = undecided.sandbox_ids
        self._ids, self._accounts = listing.sandbox_ids, listing.account_keys
        self._entries: dict[str, Account] = {}
        self.new: list[Account] = []
        self.refused: list[AccountRefused] = [
            AccountRefused(reason=RefusalReason.AMBIGUOUS, sandbox_id=account.sandbox_id)
            for account in listing.ambiguous
        ]
        for account in listing.accounts:
            self._take(account)
        self.without_account_record = [
            self._records[owners[0]] for key, owners in self._owners.items() if pool.accounts.get(key) not in owners
        ]

    def entry_of(self, record: Sandbox) -> Account | None:
        """Return the active entry that a record may follow; None if there is none."""
        return self._entries.get(record.sandbox_id)

    def has_active_account(self, record: Sandbox) -> bool:
        """Tell whether the account of a record is listed as active, under any id, and belongs to no other record."""
        return record.account_key in self._active_accounts and not self.is_shared(record)

    def is_shared(self, record: Sandbox) -> bool:
        """Tell whether another record has the same account. Earlier releases could add such records."""
        return len(self._owners[record.account_key]) > 1

    def is_listed(self, record: Sandbox) -> bool:
        """Tell whether any entry, active or not, has the id or the account of a record."""
        return record.sandbox_id in self._ids or record.account_key in self._accounts

    def count_listed(self, status: Status) -> int:
        """Count the records of a status that are listed."""
        return sum(record.status is status and self.is_listed(record) for record in self._records.values())

    def is_missing(self, record: Sandbox) -> bool:
        """Tell whether a sync must take a record out of service or remove it, if the list is right.

        A record goes out of service if it is not listed as active. It is removed only if it is not listed at all.
        """
        if record.is_free and not self.is_shared(record):
            return record.sandbox_id not in self._entries and record.sandbox_id not in self._undecided
        return record.status in {Status.DELETION_FAILED, Status.DELETED} and not self.is_listed(record)

    def _take(self, account: Account) -> None:
        """Find the record of an active entry, or refuse the entry."""
        record = self._records.get(account.sandbox_id)
        others = [each for each in self._owners.get(account.key, ()) if each != account.sandbox_id]
        if others:
            self._refuse(account, RefusalReason.ID_TAKEN, held_by=others[0])
        elif record is None:
            self.new.append(account)
        elif record.account_key == account.key or self._may_change_account(record):
            self._entries[record.sandbox_id] = account
        else:
            self._refuse(account, RefusalReason.ID_CHANGED, held_by=record.sandbox_id)

    def _may_change_account(self, record: Sandbox) -> bool:
        if record.dirty:
            # A stale and dirty sandbox has an account that answered 404. If this account is not listed either, it is
            # gone. The new account is wiped before a track gets it.
            return record.status is Status.STALE and self._is_whole and record.account_key not in self._accounts
        return record.is_free or record.status in {Status.STALE, Status.DELETION_FAILED}

    def _refuse(self, account: Account, reason: RefusalReason, *, held_by: str) -> None:
        self.refused.append(AccountRefused(reason=reason, sandbox_id=account.sandbox_id, held_by=held_by))


def counts_for_brake(record: Sandbox) -> bool:
    """Tell whether the brake counts a record: a sync takes it out of service or removes it when it is missing.

    A dirty tombstone counts: if a list that was cut short removed it, its sandbox would come back as new and clean. A
    clean tombstone does not count: its account is expected to go. Else normal work under `retire` would pull the brake.
    """
    in_service = record.is_free or record.status is Status.DELETION_FAILED
    return in_service or (record.status is Status.DELETED and record.dirty)
