"""Which items of the table can be read, and what is said of the others: a field's name, and nothing that it holds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from broker_common.adapters.dynamo_items import (
    ELSEWHERE,
    decode_claim,
    decode_cursor,
    decode_sandbox,
    encode_claim,
    encode_cursor,
    encode_sandbox,
    sandbox_key,
)
from broker_common.core.errors import InvalidInput, UnreadableRecord
from broker_common.core.sandbox import Status
from tests.fakes import make_claim, make_sandbox

if TYPE_CHECKING:
    from broker_common.adapters.dynamo_fields import Item

SECRET = "a-secret-value"
HELD = make_sandbox("7", status=Status.ALLOCATED, dirty=True)
NUMBER, TEXT, TRUTH = "is not a whole number that is not negative", "is not a text", "is not true or false"


def changed(item: Item, attribute: str, value: Item | None) -> Item:
    kept = {name: content for name, content in item.items() if name != attribute}
    return kept if value is None else {**kept, attribute: value}


@pytest.mark.parametrize(
    ("attribute", "value", "reason"),
    [
        ("name", None, "name is missing"),
        ("name", {"N": "1"}, f"name {TEXT}"),
        ("name", {"S": 1}, f"name {TEXT}"),
        ("lease_id", None, "lease_id is missing"),
        ("expires_at", None, "expires_at is missing"),
        ("expires_at", {"S": SECRET}, f"expires_at {NUMBER}"),
        ("expires_at", {"N": SECRET}, f"expires_at {NUMBER}"),
        ("expires_at", {"N": "NaN"}, f"expires_at {NUMBER}"),
        ("expires_at", {"N": 5}, f"expires_at {NUMBER}"),
        ("expires_at", {"N": "-1"}, f"expires_at {NUMBER}"),
        ("expires_at", {"N": str(2**53)}, f"expires_at {NUMBER}"),
        ("version", {"N": "1.5"}, f"version {NUMBER}"),
        ("version", {"N": "1E0"}, f"version {NUMBER}"),
        ("dirty", {"S": "false"}, f"dirty {TRUTH}"),
        ("dirty", {"BOOL": 0}, f"dirty {TRUTH}"),
        ("track_name", {"NULL": True}, f"track_name {TEXT}"),
        ("sandbox_id", {"S": "8"}, "sandbox_id is not that of its key"),
        ("status_key", None, "status_key does not follow from its status"),
        ("status_key", {"S": "available#0"}, "status_key does not follow from its status"),
        ("status_key", {"S": "allocated#9"}, "status_key does not follow from its status"),
        ("status", {"S": "leased"}, "status is not one that this release knows"),
        ("deletion_reason", {"S": "boredom"}, "deletion_reason is not one that this release knows"),
    ],
)
def test_an_item_that_is_no_sandbox_of_ours_is_refused_by_its_field(attribute: str, value: Any, reason: str) -> None:
    item = changed(encode_sandbox(HELD, 4), attribute, value)
    with pytest.raises(UnreadableRecord) as raised:
        decode_sandbox(item, 4)
    assert (raised.value.reason, raised.value.sandbox_id) == (reason, "7")


@pytest.mark.parametrize("value", [{"N": "1E3"}, {"N": "1000.75"}])
def test_a_time_is_read_as_whole_seconds_however_its_number_is_written(value: Item) -> None:
    assert decode_sandbox(changed(encode_sandbox(HELD, 4), "created_at", value), 4).created_at == 1000


def test_what_this_release_does_not_know_is_ignored() -> None:
    assert decode_sandbox({**encode_sandbox(HELD, 4), "colour": {"L": []}}, 4) == HELD


@pytest.mark.parametrize(
    ("attribute", "value", "reason"),
    [
        ("expires_at", None, "expires_at is missing"),
        ("track_id", {"S": "another"}, "track_id and idempotency_key are not those of its key"),
        ("idempotency_key", {"S": "another"}, "track_id and idempotency_key are not those of its key"),
    ],
)
def test_an_item_that_is_no_claim_of_ours_is_refused_by_its_field(attribute: str, value: Any, reason: str) -> None:
    item = changed(encode_claim(make_claim(HELD)), attribute, value)
    with pytest.raises(UnreadableRecord) as raised:
        decode_claim(item)
    assert (raised.value.reason, raised.value.track_id) == (reason, "track-1")


def test_a_cursor_names_a_place_of_its_own_part() -> None:
    parts = ["available#0", ELSEWHERE]
    key = sandbox_key("7")
    in_index = {**key, "status_key": {"S": "available#0"}, "status_order": {"N": "5"}}
    assert decode_cursor(encode_cursor(None, ELSEWHERE, key), None, parts) == (1, key)
    assert decode_cursor(encode_cursor(None, "available#0", in_index), None, parts) == (0, in_index)
    for part, other in ((ELSEWHERE, in_index), ("available#0", key)):
        with pytest.raises(InvalidInput):
            decode_cursor(encode_cursor(None, part, other), None, parts)
