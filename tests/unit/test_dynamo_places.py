"""Which items of the line can be read, and what is said of the others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from broker_common.adapters.dynamo_items import encode_claim
from broker_common.adapters.dynamo_places import decode_held, decode_place, encode_place, encode_pointer
from broker_common.core.errors import UnreadableRecord
from broker_common.core.line import Wish
from broker_common.core.store import ClaimHeld, PlaceHeld
from tests.contract.line import make_place
from tests.fakes import make_claim, make_sandbox

if TYPE_CHECKING:
    from broker_common.adapters.dynamo_fields import Item

PLACE = make_place(wish=Wish(prefix="lab", reservations=("one", "two")), customer="acme", track_name="intro", round_=3)
CLAIM = make_claim(make_sandbox())
NUMBER, TEXT = "is not a whole number that is not negative", "is not a text"
NEWER = "schema is 3, newer than this release knows"
KEY = "round and joined_at are not those of its key"


def changed(item: Item, attribute: str, value: Item | None) -> Item:
    kept = {name: content for name, content in item.items() if name != attribute}
    return kept if value is None else {**kept, attribute: value}


@pytest.mark.parametrize(
    ("attribute", "value", "reason"),
    [
        ("track_id", {"N": "1"}, f"track_id {TEXT}"),
        ("idempotency_key", None, "idempotency_key is missing"),
        ("prefix", None, "prefix is missing"),
        ("back_by", {"N": "-1"}, f"back_by {NUMBER}"),
        ("back_by", None, "back_by is missing"),
        ("round", {"N": "4"}, KEY),
        ("joined_at", {"N": "5"}, KEY),
        ("SK", {"S": "00000003-000000000005-a"}, KEY),
        ("SK", {"S": "anything"}, KEY),
        ("reservations", {"L": []}, f"reservations {TEXT}"),
        ("schema", {"N": "3"}, NEWER),
    ],
)
def test_an_item_that_is_no_place_of_ours_is_refused_by_its_field(attribute: str, value: Any, reason: str) -> None:
    with pytest.raises(UnreadableRecord) as raised:
        decode_place(changed(encode_place(PLACE), attribute, value))
    assert raised.value.reason == reason
    assert raised.value.track_id == (None if attribute == "track_id" else "track-1")


def test_what_this_release_does_not_know_of_a_place_is_ignored() -> None:
    assert decode_place({**encode_place(PLACE), "colour": {"L": []}, "schema": {"N": "2"}}) == PLACE
    assert decode_place(changed(encode_place(PLACE), "schema", None)) == PLACE


def test_the_item_at_a_claim_s_key_is_a_claim_or_names_a_place() -> None:
    assert decode_held(encode_pointer(PLACE)) == PlaceHeld(PLACE.place_id)
    assert decode_held({**encode_pointer(PLACE), "colour": {"L": []}}) == PlaceHeld(PLACE.place_id)
    assert decode_held(encode_claim(CLAIM)) == ClaimHeld(CLAIM)
    assert decode_held({**encode_claim(CLAIM), "place_id": {"S": PLACE.place_id}}) == ClaimHeld(CLAIM)


@pytest.mark.parametrize(
    ("attribute", "value", "reason"),
    [
        ("place_id", {"N": "1"}, f"place_id {TEXT}"),
        ("place_id", None, "track_id is missing"),
        ("schema", {"N": "3"}, NEWER),
        ("lease_id", {"S": "lease"}, "track_id is missing"),
    ],
)
def test_an_item_that_is_no_claim_and_no_pointer_is_its_track_s_trouble(
    attribute: str, value: Any, reason: str
) -> None:
    with pytest.raises(UnreadableRecord) as raised:
        decode_held(changed(encode_pointer(PLACE), attribute, value))
    assert (raised.value.reason, raised.value.track_id) == (reason, "track-1")
