"""Conditions of writes: on the schema of a record, and on a record that an allocation may take."""

from __future__ import annotations

from typing import TYPE_CHECKING

from broker_common.adapters.dynamo_fields import encode
from broker_common.adapters.dynamo_items import SANDBOX_ATTRIBUTES
from broker_common.core import schema
from broker_common.core.sandbox import FREE, ORDER_LIMIT, DeletionReason, Status

if TYPE_CHECKING:
    from broker_common.adapters.dynamo_fields import Item

_RESERVED = {"#status": "status", "#name": "name", "#schema": "schema"}
"""Our attributes whose names DynamoDB reserves, by their placeholders. Source: its guide, "Reserved words"."""


def expression_name(name: str) -> str:
    """Return the name of an attribute in an expression: a placeholder if DynamoDB reserves the word."""
    return f"#{name}" if f"#{name}" in _RESERVED else name


def _allocatable(status: Status) -> str:
    """Return the condition that a record has a status and is clean, and that `decode_sandbox` can read all of it."""
    reasons = ", ".join(f":{reason.name}" for reason in DeletionReason)
    special = {
        "status": "#status = :free",
        "sandbox_id": "sandbox_id = :sandbox_id",
        "dirty": "dirty = :clean",
        "deletion_reason": f"deletion_reason IN ({reasons})",
    }
    usual = {
        "N": "{0} BETWEEN :zero AND :highest",
        "S": "attribute_type({0}, :text)",
        "BOOL": "attribute_type({0}, :bool)",
    }
    # A lease that ended has both.
    both = "attribute_exists(last_lease_id) AND attribute_exists(last_track_id)"
    neither = "attribute_not_exists(last_lease_id) AND attribute_not_exists(last_track_id)"
    terms = [f"({both} OR {neither})"]
    for each in SANDBOX_ATTRIBUTES:
        if each.name == "schema":
            continue  # every update has this condition
        name = expression_name(each.name)
        term = special.get(each.name) or usual[each.tag].format(name)
        terms.append(term if each.is_required else f"(attribute_not_exists({name}) OR {term})")
    if status is Status.RESERVED:
        terms.append("attribute_exists(reservation_id)")
    return " AND ".join(terms)


_ALLOCATABLE = {status: _allocatable(status) for status in FREE}
_ALLOCATABLE_VALUES = {
    ":clean": encode(False),  # noqa: FBT003 - the value itself
    ":zero": encode(0),
    ":highest": encode(ORDER_LIMIT - 1),
    ":text": encode("S"),
    ":bool": encode("BOOL"),
    **{f":{reason.name}": encode(reason) for reason in DeletionReason},
}


def unless_newer(write: Item) -> Item:
    """Return a write that fails where the stored record has a newer schema than this release knows."""
    condition = "attribute_not_exists(#schema) OR #schema BETWEEN :zero AND :known"
    if "ConditionExpression" in write:
        condition = f"({write['ConditionExpression']}) AND ({condition})"
    return write | {
        "ConditionExpression": condition,
        "ExpressionAttributeNames": write.get("ExpressionAttributeNames", {}) | {"#schema": "schema"},
        "ExpressionAttributeValues": write.get("ExpressionAttributeValues", {})
        | {":zero": encode(0), ":known": encode(schema.KNOWN)},
    }


def unless_taken(put: Item, *, place_id: str | None) -> Item:
    """Return a put at a claim's key that fails where there is a claim, or another place than `place_id`."""
    if place_id is None:
        condition = {"ConditionExpression": "attribute_not_exists(PK)"}
    else:
        condition = unless_newer(only_of_place({}, place_id))
    return put | condition | {"ReturnValuesOnConditionCheckFailure": "ALL_OLD"}


def only_of_place(write: Item, place_id: str) -> Item:
    """Return a write at a claim's key that fails unless there is nothing, or the pointer to the place `place_id`."""
    return write | {
        "ConditionExpression": "attribute_not_exists(PK) OR (place_id = :place AND attribute_not_exists(lease_id))",
        "ExpressionAttributeValues": {":place": encode(place_id)},
    }


def only_if_allocatable(update: Item, sandbox_id: str, status: Status) -> Item:
    """Return an update that fails unless the record has this free status, is clean, and can be read.

    The index has only a part of each record. That part may be readable where the rest is not.
    """
    return update | {
        "ConditionExpression": f"{update['ConditionExpression']} AND {_ALLOCATABLE[status]}",
        "ExpressionAttributeNames": _RESERVED | update["ExpressionAttributeNames"],
        "ExpressionAttributeValues": update["ExpressionAttributeValues"]
        | _ALLOCATABLE_VALUES
        | {":sandbox_id": encode(sandbox_id), ":free": encode(status)},
    }
