"""Writes of the store on DynamoDB: a change, its fact, its claim, its account and its usage in one transaction."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

from broker_common.adapters.dynamo_base import DynamoBase
from broker_common.adapters.dynamo_conditions import expression_name, only_if_allocatable, unless_newer, unless_taken
from broker_common.adapters.dynamo_facts import encode_removed
from broker_common.adapters.dynamo_fields import Item, encode
from broker_common.adapters.dynamo_items import (
    account_item_key,
    claim_key,
    encode_account,
    encode_claim,
    encode_sandbox,
    place_of,
    reserved_key,
    sandbox_key,
    shard_of,
    status_key,
)
from broker_common.adapters.dynamo_places import decode_held, place_key
from broker_common.adapters.dynamo_reservations import counters, draw
from broker_common.adapters.dynamo_transport import ConditionFailed
from broker_common.adapters.dynamo_usage import usage_writes
from broker_common.core import schema
from broker_common.core.errors import StoreUnavailable, UnreadableRecord
from broker_common.core.facts import allocated
from broker_common.core.flat import flatten, of_allocation
from broker_common.core.sandbox import Candidate, Claim, Lease, Sandbox, Status
from broker_common.core.store import (
    AllocateAnswer,
    Allocated,
    CandidateGone,
    ClaimHeld,
    Conflict,
    Contended,
    ReservationFull,
    ReservationShut,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from broker_common.core.facts import Change, Fact
    from broker_common.core.principals import Actor

_UNCHANGED = (
    "status_key = :was AND version = :version_was"
    " AND (attribute_not_exists(#schema) OR #schema BETWEEN :zero AND :known)"
)
"""The condition that a record is as it was read, and that this release can write its schema."""

_MOST_UPDATES = 256
"""More than there are sets of attributes that change together."""


class DynamoCommits(DynamoBase):
    """`Commits` on one DynamoDB table."""

    def get(self, sandbox_id: str) -> Sandbox | None:
        """Implement the port: a consistent read."""
        item = self._get(sandbox_key(sandbox_id))
        return self._sandbox(item) if item else None

    def get_claim(self, track_id: str, idempotency_key: str) -> Claim | None:
        """Implement the port: a consistent read."""
        item = self._get(claim_key(track_id, idempotency_key))
        held = self._read(decode_held, item) if item else None
        return held.claim if isinstance(held, ClaimHeld) else None

    def read_claims(self, track_id: str) -> list[Claim]:
        """Implement the port: a consistent query of the track's partition."""
        held = [self._read(decode_held, item) for item in self._query_claims(track_id)]
        return [each.claim for each in held if isinstance(each, ClaimHeld)]

    def allocate(
        self, candidate: Candidate, claim: Claim, *, by: Actor, token: str, place_id: str | None = None
    ) -> AllocateAnswer:
        """Implement the port: one TransactWriteItems, sent once."""
        fact = allocated(candidate, claim, by=by)
        recorded, *marked = self._put_fact(fact)
        changes = self._allocation(candidate, claim, fact.version)
        status, place = Status.AVAILABLE, status_key(Status.AVAILABLE, shard_of(candidate.sandbox_id, self._shards))
        if candidate.reservation_id is not None:
            status, place = Status.RESERVED, reserved_key(candidate.reservation_id)
        update = self._update(candidate.sandbox_id, place, candidate.version, changes)
        reasons = self._transport.transact_once(
            ClientRequestToken=token,
            TransactItems=[
                {"Put": unless_taken({"TableName": self._table, "Item": encode_claim(claim)}, place_id=place_id)},
                {"Update": only_if_allocatable(update, candidate.sandbox_id, status)},
                recorded,
                *self._remove_place(place_id),
                *draw(self._table, candidate, at=claim.lease.allocated_at),
                *marked,
            ],
        )
        return Allocated() if reasons is None else self._refused(reasons, candidate, claim, place_id)

    def _refused(self, reasons: list[Item], candidate: Candidate, claim: Claim, place_id: str | None) -> AllocateAnswer:
        """Return why an allocation was not written, by the result of each of its writes."""
        held, taken, recorded, *others = reasons
        left, drawn = (others[:1], others[1:]) if place_id is not None else ([], others)
        if held["Code"] == "ConditionalCheckFailed":
            return self._held(held)
        if any(map(_has_failed, left)):
            error = UnreadableRecord(f"place {place_id!r}", "its schema is newer", track_id=claim.lease.track_id)
            self._report(error)
            raise error
        if taken["Code"] == "ConditionalCheckFailed":
            return CandidateGone(self._readable(self._decode, taken["Item"]) if taken.get("Item") else None)
        is_too_large = "ValidationError" in {each["Code"] for each in reasons}
        if is_too_large:  # with the fields of an allocation
            self._report(UnreadableRecord("", "it cannot be written", sandbox_id=candidate.sandbox_id))
        if is_too_large or _has_failed(recorded):
            # Or a fact of this name exists already: the record was added again while a clock was behind.
            return CandidateGone(None)
        return ReservationShut() if any(map(_has_failed, drawn)) else Contended()

    def commit(self, *changes: Change) -> None:
        """Implement the port: one TransactWriteItems, or one UpdateItem for a change without a fact."""
        if len(changes) == 1:
            self._commit_one(changes[0])
        else:
            self._write_all(*(action for change in changes for action in self._adding(change)))

    def record_accounts(self, *sandboxes: Sandbox) -> None:
        """Implement the port: one TransactWriteItems over the accounts."""
        if len(sandboxes) == 1:
            self._write_with_account(sandboxes[0])
        else:
            self._write_all(*map(self._put_account, sandboxes))

    def _allocation(self, candidate: Candidate, claim: Claim, version: int) -> Mapping[str, Any]:
        place = status_key(Status.ALLOCATED, shard_of(candidate.sandbox_id, self._shards))
        return {**of_allocation(claim.lease, version=version), "status_key": place}

    def _remove_place(self, place_id: str | None) -> list[Item]:
        if place_id is None:
            return []
        return [{"Delete": unless_newer({"TableName": self._table, "Key": place_key(place_id)})}]

    def _commit_one(self, change: Change) -> None:
        before, after = change.before, change.after
        if change.fact is None and _needs_fact(change):
            raise ValueError(f"sandbox {change.sandbox_id}: a change of status or holder without its fact")
        if before is None and after is not None:
            results = self._write_with_account(after, *self._adding(change)[1:], *self._counters(change))
            if results is not None:
                self._settle(None, after, results)
        elif before is not None and after is None:
            self._remove(before, change.fact)
        elif before is not None and after is not None:
            self._replace(before, after, change)

    def _adding(self, change: Change) -> list[Item]:
        """Build the writes that add a sandbox: its account's record, its own record, and its fact."""
        sandbox = change.result
        put = {
            "Put": {
                "TableName": self._table,
                "Item": encode_sandbox(sandbox, self._shards),
                "ConditionExpression": "attribute_not_exists(PK)",
                "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
            }
        }
        return [self._put_account(sandbox), put, *self._facts(change.fact)]

    def _replace(self, before: Sandbox, after: Sandbox, change: Change) -> None:
        fact = change.fact
        update = {"Update": self._difference(before, after)}
        usage = usage_writes(self._table, change, days=self._history_days)
        writes = [update, *self._facts(fact), *usage, *self._counters(change)]
        if before.account_key != after.account_key:
            results = self._write_with_account(after, *writes, self._remove_account(before))
            if results is not None and not any(map(_has_failed, results[:-1])):
                # The record of its previous account belongs to another sandbox, and stays.
                results = self._write_with_account(after, *writes)
            if results is not None:
                self._settle(before, after, results)
            return
        if fact is None:
            try:
                self._transport.write("update_item", **update["Update"])
            except ConditionFailed as failed:
                self._settle(before, after, [{"Code": "ConditionalCheckFailed", **failed.answer}])
            return
        of_claim = self._keep_in_step(before.lease, after.lease)
        results = self._transact(*writes, *of_claim)
        loose = bool(of_claim) or before.reservation_id is not None
        if results is not None and loose and not any(map(_has_failed, results[:-1])):
            # The claim belongs to another lease or is missing, or the reservation is gone. It must not prevent this.
            results = self._transact(update, *self._facts(fact), *usage)
        if results is not None:
            self._settle(before, after, results)

    def _remove(self, before: Sandbox, fact: Fact | None) -> None:
        delete = {
            "Delete": {
                "TableName": self._table,
                "Key": sandbox_key(before.sandbox_id),
                "ConditionExpression": _UNCHANGED,
                "ExpressionAttributeNames": {"#schema": "schema"},
                "ExpressionAttributeValues": _as_read(place_of(before, self._shards), before.version),
                "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
            }
        }
        facts = self._facts(fact)
        if fact is not None:
            item = encode_removed(fact, days=self._history_days)
            facts.append({"Put": {"TableName": self._table, "Item": item}})
        failed = self._transact(delete, self._remove_account(before), *facts)
        if failed is not None and not _has_failed(failed[0]):
            failed = self._transact(delete, *facts)  # the account's record belongs to another sandbox, and stays
        if failed is not None:
            self._settle(before, None, failed)

    def _write_with_account(self, sandbox: Sandbox, *writes: Item) -> list[Item] | None:
        """Send `writes` in one transaction with a sandbox's account record.

        Returns None if it was applied, or else the result of each write. Raises `Conflict` if only the account is in
        the way.
        """
        failed = self._transact(self._put_account(sandbox), *writes)
        if failed is not None and not any(map(_has_failed, failed[1:])):
            owner_id = failed[0]["Item"]["sandbox_id"]["S"]
            owner = self.get(owner_id)
            if owner is not None and owner.account_key == sandbox.account_key:
                raise Conflict(
                    f"the account of sandbox {sandbox.sandbox_id} belongs to sandbox {owner_id}", current=None
                )
            # The owner's record was removed or changed by hand, or by an earlier release without account records.
            take = self._put_account(sandbox, instead_of=owner_id)
            failed = self._transact(take, *writes, self._unchanged(owner_id, owner))
            if failed is not None and not any(map(_has_failed, failed[1:-1])):
                raise Conflict(f"the account of sandbox {sandbox.sandbox_id} has just got another owner", current=None)
        return failed[1:] if failed else None

    def _write_all(self, *actions: Item) -> None:
        if self._transact(*actions) is not None:
            raise Conflict("another writer has written one of several records", current=None)

    def _counters(self, change: Change) -> list[Item]:
        return counters(self._table, change)

    def _facts(self, fact: Fact | None) -> list[Item]:
        return [] if fact is None else self._put_fact(fact)

    def _keep_in_step(self, before: Lease | None, after: Lease | None) -> list[Item]:
        """Build the write of a claim that follows from the change of its lease, if any."""
        if before is None:
            return []
        if after is None:
            return [self._remove_claim(before.track_id, before.idempotency_key, before.lease_id)]
        return [self._extend_claim(after)] if after.expires_at != before.expires_at else []

    def _extend_claim(self, lease: Lease) -> Item:
        return {
            "Update": unless_newer(
                {
                    "TableName": self._table,
                    "Key": claim_key(lease.track_id, lease.idempotency_key),
                    "UpdateExpression": "SET expires_at = :expires_at",
                    "ConditionExpression": "lease_id = :lease",
                    "ExpressionAttributeValues": {
                        ":lease": {"S": lease.lease_id},
                        ":expires_at": encode(lease.expires_at),
                    },
                }
            )
        }

    def _remove_claim(self, track_id: str, idempotency_key: str, lease_id: str) -> Item:
        return {
            "Delete": unless_newer(
                {
                    "TableName": self._table,
                    "Key": claim_key(track_id, idempotency_key),
                    "ConditionExpression": "attribute_not_exists(PK) OR lease_id = :lease",
                    "ExpressionAttributeValues": {":lease": {"S": lease_id}},
                }
            )
        }

    def _put_account(self, sandbox: Sandbox, *, instead_of: str | None = None) -> Item:
        return {
            "Put": unless_newer(
                {
                    "TableName": self._table,
                    "Item": encode_account(sandbox),
                    "ConditionExpression": "attribute_not_exists(PK) OR sandbox_id = :owner",
                    "ExpressionAttributeValues": {":owner": {"S": instead_of or sandbox.sandbox_id}},
                    "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
                }
            )
        }

    def _remove_account(self, sandbox: Sandbox) -> Item:
        return {
            "Delete": unless_newer(
                {
                    "TableName": self._table,
                    "Key": account_item_key(sandbox.account_key),
                    "ConditionExpression": "attribute_not_exists(PK) OR sandbox_id = :owner",
                    "ExpressionAttributeValues": {":owner": {"S": sandbox.sandbox_id}},
                }
            )
        }

    def _unchanged(self, sandbox_id: str, known: Sandbox | None) -> Item:
        """Build a write that changes nothing, and fails unless a sandbox is as `known`, or has no record."""
        on = {"TableName": self._table, "Key": sandbox_key(sandbox_id)}
        if known is None:
            return {"Delete": {**on, "ConditionExpression": "attribute_not_exists(PK)"}}
        same = {
            **on,
            "UpdateExpression": "SET sandbox_id = :same",
            "ConditionExpression": "version = :version",
            "ExpressionAttributeValues": {":same": {"S": sandbox_id}, ":version": {"N": str(known.version)}},
        }
        return {"Update": unless_newer(same)}

    def _difference(self, before: Sandbox, after: Sandbox) -> Item:
        """Build an update of the fields that differ: attributes that this release does not know stay as they are."""
        old, new = flatten(before), flatten(after)
        changes = {name: value for name, value in new.items() if value != old[name]}
        was, place = place_of(before, self._shards), place_of(after, self._shards)
        if place != was:
            changes["status_key"] = place
        return self._update(before.sandbox_id, was, before.version, changes)

    def _update(self, sandbox_id: str, place: str, version: int, changes: Mapping[str, Any]) -> Item:
        """Build an update that fails unless the sandbox is at `place` of the index, and at `version`."""
        kept = {name: value for name, value in changes.items() if value is not None}
        expression, names = _update_of(tuple(kept), tuple(name for name in changes if name not in kept))
        values = {f":{name}": encode(value) for name, value in kept.items()}
        return {
            "TableName": self._table,
            "Key": sandbox_key(sandbox_id),
            "UpdateExpression": expression,
            "ConditionExpression": _UNCHANGED,
            "ExpressionAttributeNames": names,
            "ExpressionAttributeValues": values | _as_read(place, version),
            "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
        }

    def _settle(self, before: Sandbox | None, after: Sandbox | None, results: list[Item]) -> None:
        """Raise an error for a failed condition, unless the stored record is our own write, whose answer was lost.

        `results` are those of the record, its fact, and the counters of its reservation.
        """
        if not _has_failed(results[0]):
            if any(map(_has_failed, results[2:])):
                raise ReservationFull(
                    "the reservation lacks no sandbox of this name, or is not being filled now", current=before
                )
            # A clock was behind when the record was added again. In the next second the fact has another name.
            raise StoreUnavailable("a fact of the same name exists already")
        item = results[0].get("Item")
        current = self._sandbox(item) if item else None
        if current != after:
            known = before or after
            raise Conflict(
                f"sandbox {known.sandbox_id if known else '?'} was changed by another writer", current=current
            )


@lru_cache(_MOST_UPDATES)
def _update_of(to_set: tuple[str, ...], to_remove: tuple[str, ...]) -> tuple[str, dict[str, str]]:
    """Return the expression that sets and removes these attributes, and the names that it needs."""
    names = {expression_name(name): name for name in (*to_set, *to_remove, "schema") if expression_name(name) != name}
    settings = ", ".join(f"{expression_name(name)} = :{name}" for name in to_set)
    removals = ", ".join(map(expression_name, to_remove))
    return f"SET {settings}{f' REMOVE {removals}' if removals else ''}", names


def _needs_fact(change: Change) -> bool:
    before, after = change.before, change.after
    return before is None or after is None or (before.status, before.lease) != (after.status, after.lease)


def _as_read(place: str, version: int) -> Item:
    """Return the values of `_UNCHANGED` for a record that was read at a place of the index, at a version."""
    return {
        ":was": {"S": place},
        ":version_was": {"N": str(version)},
        ":known": {"N": str(schema.KNOWN)},
        ":zero": {"N": "0"},
    }


def _has_failed(reason: Item) -> bool:
    return bool(reason["Code"] == "ConditionalCheckFailed")
