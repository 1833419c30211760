"""The flat form of sandboxes and claims: one field for each value, as the table, the API and exported files have it.

A field without a value is None. The values of a lease and of a wipe are fields of the sandbox, with their own names.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from broker_common.core.sandbox import Claim, DeletionReason, EndedLease, Lease, Sandbox, Status, Wipe

if TYPE_CHECKING:
    from collections.abc import Mapping

Value = str | int | bool | None
Flat = dict[str, Value]

SANDBOX_FIELDS: Mapping[str, type] = {
    "sandbox_id": str,
    "name": str,
    "external_id": str,
    "status": Status,
    "status_order": int,
    "version": int,
    "created_at": int,
    "updated_at": int,
}
"""The fields that every record of a sandbox has."""
OPTIONAL_SANDBOX_FIELDS: Mapping[str, type] = {
    "dirty": bool,
    "sfdc_account_id": str,
    "lease_id": str,
    "allocated_to_track": str,
    "idempotency_key": str,
    "track_name": str,
    "customer": str,
    "customer_lease_id": str,
    "allocated_at": int,
    "expires_at": int,
    "last_track_id": str,
    "last_lease_id": str,
    "deletion_requested_at": int,
    "deletion_reason": DeletionReason,
    "deletion_retry_count": int,
    "deletion_last_error": str,
    "next_attempt_at": int,
    "attempt_id": str,
    "outcome_unknown": bool,
    "gone_at": int,
    "ready_at": int,
    "quarantine_reason": str,
    "stale_since": int,
    "last_synced": int,
    "reservation_id": str,
    "warned_for": int,
}
"""The fields that a record of a sandbox may lack."""
CLAIM_FIELDS: Mapping[str, type] = {
    "track_id": str,
    "idempotency_key": str,
    "sandbox_id": str,
    "lease_id": str,
    "allocated_at": int,
    "expires_at": int,
    "name": str,
    "external_id": str,
}
"""The fields that every record of a claim has."""
OPTIONAL_CLAIM_FIELDS: Mapping[str, type] = {
    "track_name": str,
    "customer": str,
    "sfdc_account_id": str,
    "reservation_id": str,
}
"""The fields that a record of a claim may lack."""
_LEASE_FIELDS = ("lease_id", "allocated_to_track", "idempotency_key", "allocated_at", "expires_at")


def flatten(sandbox: Sandbox) -> Flat:
    """Return every field of `sandbox`."""
    return {
        "sandbox_id": sandbox.sandbox_id,
        "name": sandbox.name,
        "external_id": sandbox.external_id,
        "sfdc_account_id": sandbox.sfdc_account_id,
        "status": sandbox.status,
        "status_order": sandbox.status_order,
        "version": sandbox.version,
        "created_at": sandbox.created_at,
        "updated_at": sandbox.updated_at,
        "dirty": sandbox.dirty,
        **_of_leases(sandbox.lease, sandbox.last_lease),
        **of_wipe(sandbox.wipe),
        "quarantine_reason": sandbox.quarantine,
        "stale_since": sandbox.stale_since,
        "last_synced": sandbox.last_synced,
        "reservation_id": sandbox.lease.reservation_id if sandbox.lease else sandbox.reservation_id,
    }


def of_lease(lease: Lease | None) -> Flat:
    """Return the fields of a sandbox that describe its current lease; all None if it has no lease."""
    return {
        "lease_id": lease.lease_id if lease else None,
        "allocated_to_track": lease.track_id if lease else None,
        "idempotency_key": lease.idempotency_key if lease else None,
        "track_name": lease.track_name if lease else None,
        **_of_customer(lease),
        "allocated_at": lease.allocated_at if lease else None,
        "expires_at": lease.expires_at if lease else None,
        "warned_for": lease.warned_for if lease else None,
    }


def of_wipe(wipe: Wipe | None) -> Flat:
    """Return the fields of a sandbox that describe its wipe; without a wipe, those that clear one."""
    return dict(_NO_WIPE) if wipe is None else _of_wipe(wipe)


def _of_wipe(wipe: Wipe) -> Flat:
    return {
        "deletion_requested_at": wipe.requested_at,
        "deletion_reason": wipe.reason,
        "deletion_retry_count": wipe.tries,
        "deletion_last_error": wipe.last_error,
        "next_attempt_at": wipe.next_attempt_at,
        "attempt_id": wipe.attempt_id,
        "outcome_unknown": wipe.outcome_unknown,
        "gone_at": wipe.gone_at,
        "ready_at": wipe.ready_at,
    }


_NO_WIPE = _of_wipe(Wipe())


def of_allocation(lease: Lease, *, version: int) -> Flat:
    """Return every field of a sandbox that an allocation changes, so that allocate need not read the record first."""
    return {
        "status": Status.ALLOCATED,
        "status_order": lease.expires_at,
        "version": version,
        "updated_at": lease.allocated_at,
        "dirty": True,
        **of_lease(lease),
        **of_wipe(None),
        "stale_since": None,
        "reservation_id": lease.reservation_id,
    }


def flatten_claim(claim: Claim) -> Flat:
    """Return every field of `claim`."""
    lease = claim.lease
    return {
        "track_id": lease.track_id,
        "idempotency_key": lease.idempotency_key,
        "sandbox_id": claim.sandbox_id,
        "lease_id": lease.lease_id,
        "allocated_at": lease.allocated_at,
        "expires_at": lease.expires_at,
        "name": claim.name,
        "external_id": claim.external_id,
        "track_name": lease.track_name,
        "customer": lease.customer,
        "sfdc_account_id": claim.sfdc_account_id,
        "reservation_id": lease.reservation_id,
    }


def sandbox_of(flat: Mapping[str, Any]) -> Sandbox:
    """Return the sandbox that these fields describe. Optional fields may be left out; the types must be right.

    Raises `ValueError` if a field is missing that the status needs, and names it. Raises `InvalidTransition` if the
    fields contradict each other.
    """
    status = flat["status"]
    lease = None
    if status is Status.ALLOCATED:
        missing = [name for name in _LEASE_FIELDS if flat.get(name) is None]
        if missing:
            raise ValueError(f"{missing[0]} is missing")
        lease = Lease(
            lease_id=flat["lease_id"],
            track_id=flat["allocated_to_track"],
            idempotency_key=flat["idempotency_key"],
            allocated_at=flat["allocated_at"],
            expires_at=flat["expires_at"],
            track_name=flat.get("track_name"),
            customer=_customer_of(flat, flat["lease_id"]),
            reservation_id=flat.get("reservation_id"),
            warned_for=flat.get("warned_for"),
        )
    wipe = Wipe(
        requested_at=flat.get("deletion_requested_at"),
        reason=flat.get("deletion_reason"),
        tries=flat.get("deletion_retry_count") or 0,
        last_error=flat.get("deletion_last_error"),
        next_attempt_at=flat.get("next_attempt_at"),
        attempt_id=flat.get("attempt_id"),
        outcome_unknown=flat.get("outcome_unknown") or False,
        gone_at=flat.get("gone_at"),
        ready_at=flat.get("ready_at"),
    )
    return Sandbox(
        sandbox_id=flat["sandbox_id"],
        name=flat["name"],
        external_id=flat["external_id"],
        sfdc_account_id=flat.get("sfdc_account_id"),
        status=status,
        status_order=flat["status_order"],
        version=flat["version"],
        created_at=flat["created_at"],
        updated_at=flat["updated_at"],
        dirty=flat.get("dirty") or False,
        lease=lease,
        last_lease=_ended_lease_of(flat, has_lease=lease is not None),
        wipe=None if lease or wipe == Wipe() else wipe,
        quarantine=flat.get("quarantine_reason"),
        stale_since=flat.get("stale_since"),
        last_synced=flat.get("last_synced"),
        reservation_id=flat.get("reservation_id") if status is Status.RESERVED else None,
    )


def claim_of(flat: Mapping[str, Any]) -> Claim:
    """Return the claim that these fields describe. Optional fields may be left out; the types must be right."""
    return Claim(
        sandbox_id=flat["sandbox_id"],
        name=flat["name"],
        external_id=flat["external_id"],
        sfdc_account_id=flat.get("sfdc_account_id"),
        lease=Lease(
            lease_id=flat["lease_id"],
            track_id=flat["track_id"],
            idempotency_key=flat["idempotency_key"],
            allocated_at=flat["allocated_at"],
            expires_at=flat["expires_at"],
            track_name=flat.get("track_name"),
            customer=flat.get("customer"),
            reservation_id=flat.get("reservation_id"),
        ),
    )


def _of_leases(lease: Lease | None, last: EndedLease | None) -> Flat:
    """Return the fields of both leases; times, lab and customer are the current lease's, or else the last one's."""
    flat = of_lease(lease)
    if lease is None and last is not None:
        flat |= {"track_name": last.track_name, "allocated_at": last.allocated_at, "expires_at": last.expires_at}
        flat |= _of_customer(last)
    flat |= {"last_track_id": last.track_id if last else None, "last_lease_id": last.lease_id if last else None}
    return flat


def _of_customer(lease: Lease | EndedLease | None) -> Flat:
    """Return the fields with the customer of a lease. They name the lease, too.

    A release that does not know these fields leaves them in the record, also when it allocates the sandbox again.
    """
    customer = lease.customer if lease else None
    return {"customer": customer, "customer_lease_id": lease.lease_id if lease and customer is not None else None}


def _customer_of(flat: Mapping[str, Any], lease_id: str) -> str | None:
    customer: str | None = flat.get("customer")
    return customer if flat.get("customer_lease_id") == lease_id else None


def _ended_lease_of(flat: Mapping[str, Any], *, has_lease: bool) -> EndedLease | None:
    lease_id, track_id = flat.get("last_lease_id"), flat.get("last_track_id")
    if lease_id is None and track_id is None:
        return None
    if lease_id is None or track_id is None:
        raise ValueError(f"{'last_track_id' if lease_id else 'last_lease_id'} is missing")
    if has_lease:
        return EndedLease(lease_id=lease_id, track_id=track_id)
    return EndedLease(
        lease_id=lease_id,
        track_id=track_id,
        allocated_at=flat.get("allocated_at"),
        expires_at=flat.get("expires_at"),
        track_name=flat.get("track_name"),
        customer=_customer_of(flat, lease_id),
    )
