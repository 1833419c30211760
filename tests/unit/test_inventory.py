"""What an operator is shown of the pool: whole records, one or a page of them."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING

import pytest

from broker_common.core.errors import InvalidInput, SandboxNotFound
from broker_common.core.sandbox import Status
from broker_common.core.store import Watermark
from tests.fakes import START, make_account, make_sandbox

if TYPE_CHECKING:
    from tests.world import World


@pytest.fixture
def held(plain: World) -> World:
    """Give a world in which a track holds three sandboxes, and another track one."""
    plain.memory.seed(*[make_sandbox(str(number)) for number in range(4)])
    for key in ("a", "b", "c"):
        plain.allocate("track-1", key=key)
    plain.allocate("track-2")
    return plain


@pytest.mark.parametrize("status", Status)
def test_an_operator_reads_any_record_tombstones_included(plain: World, status: Status) -> None:
    sandbox = make_sandbox(status=status)
    plain.memory.seed(sandbox)
    assert plain.inventory.read(sandbox.sandbox_id) == sandbox


def test_a_sandbox_without_a_record_is_not_found(plain: World) -> None:
    with pytest.raises(SandboxNotFound):
        plain.inventory.read("nobody")


def test_an_available_sandbox_that_sync_did_not_have_to_write_was_seen_by_the_last_sync(plain: World) -> None:
    plain.memory.seed(make_sandbox("1"), make_sandbox("2", status=Status.STALE))
    plain.store.write_watermark(Watermark(synced_at=START, accounts=2))

    page = plain.inventory.list_sandboxes(None, limit=10, cursor=None)

    assert {each.sandbox_id: each.last_synced for each in page.sandboxes} == {"1": START, "2": START - 3600}


def test_before_the_first_sync_every_record_is_shown_as_it_is(plain: World) -> None:
    plain.memory.seed(make_sandbox("1"))

    assert plain.inventory.list_sandboxes(None, limit=10, cursor=None).sandboxes == (plain.record("1"),)


def test_a_listing_without_an_available_sandbox_needs_no_watermark(plain: World) -> None:
    plain.memory.seed(make_sandbox("1", status=Status.STALE))

    assert plain.inventory.list_sandboxes(Status.STALE, limit=10, cursor=None).sandboxes == (plain.record("1"),)
    assert plain.memory.calls["read_watermark"] == 0


def test_the_last_sync_is_known_after_the_first_one(plain: World) -> None:
    assert plain.inventory.last_sync() is None
    plain.sync([make_account("1")])
    assert plain.inventory.last_sync() == START


def test_what_a_track_holds_is_listed_page_by_page_in_the_order_of_the_ids(held: World) -> None:
    expected = sorted(each.sandbox_id for each in held.leases.list_held(track_id="track-1"))

    first = held.inventory.list_of_track("track-1", None, limit=2, cursor=None)
    last = held.inventory.list_of_track("track-1", None, limit=2, cursor=first.cursor)

    assert [each.sandbox_id for each in first.sandboxes + last.sandboxes] == expected
    assert len(first.sandboxes) == 2
    assert last.cursor is None


def test_what_a_track_holds_can_be_held_to_one_status(held: World) -> None:
    assert len(held.inventory.list_of_track("track-1", Status.ALLOCATED, limit=10, cursor=None).sandboxes) == 3
    assert held.inventory.list_of_track("track-1", Status.STALE, limit=10, cursor=None).sandboxes == ()


def test_a_cursor_of_another_tracks_listing_is_refused(held: World) -> None:
    cursor = held.inventory.list_of_track("track-1", None, limit=1, cursor=None).cursor

    with pytest.raises(InvalidInput, match="cursor"):
        held.inventory.list_of_track("track-2", None, limit=1, cursor=cursor)


@pytest.mark.parametrize("cursor", ["", "!", base64.b64encode(b"[").decode(), base64.b64encode(b"{}").decode()])
def test_a_cursor_that_is_none_is_refused(held: World, cursor: str) -> None:
    with pytest.raises(InvalidInput, match="cursor"):
        held.inventory.list_of_track("track-1", None, limit=1, cursor=cursor)
