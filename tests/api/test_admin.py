"""What an operator sees and does."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any

import pytest

from broker_common.core.errors import UnreadableRecord
from broker_common.core.principals import Role
from broker_common.core.sandbox import DeletionReason, Status
from broker_common.core.store import Pause, Pauses, Watermark
from tests.api.harness import ALLOCATION, Api, assert_error, body_of, error_of, make_api, named_token, refusing
from tests.fakes import SPOILED, START, StoreWrapper, make_sandbox

if TYPE_CHECKING:
    from pathlib import Path

EVERY_FIELD = ALLOCATION | {
    *("status", "allocated_to_track", "idempotency_key", "dirty", "version", "created_at", "updated_at"),
    *("deletion_requested_at", "deletion_reason", "deletion_retry_count", "deletion_last_error", "next_attempt_at"),
    *("last_synced", "stale_since", "last_track_id", "last_lease_id", "ready_at", "quarantine_reason"),
    *("reservation_id", "customer"),
}
ON_ONE_SANDBOX = [
    ("GET", "", None),
    ("POST", "/release", {"lease_id": "l"}),
    ("POST", "/quarantine", {"reason": "r"}),
    ("DELETE", "/quarantine", None),
    ("POST", "/retry-deletion", None),
]
FAILED = make_sandbox(
    "f",
    status=Status.DELETION_FAILED,
    dirty=True,
    deletion_reason=DeletionReason.MARKED,
    deletion_last_error="HTTP 422",
    deletion_retry_count=8,
    last_track_id="track-9",
    last_lease_id="lease-9",
)


def listed(api: Api, query: str) -> dict[str, Any]:
    body = body_of(api.admin("GET", f"/v1/admin/sandboxes{query}"), 200)
    assert set(body) == {"sandboxes", "count", "unreadable", "cursor"}
    assert body["count"] == len(body["sandboxes"])
    return body


def sandbox_of(api: Api, method: str, path: str, **options: Any) -> dict[str, Any]:
    """Make a call that answers a sandbox, and return the sandbox after checking that it has every field."""
    sandbox = body_of(api.admin(method, f"/v1/admin/sandboxes/{path}", **options), 200)
    assert set(sandbox) == EVERY_FIELD
    return sandbox


def ids(body: dict[str, Any]) -> set[str]:
    return {sandbox["sandbox_id"] for sandbox in body["sandboxes"]}


def walk(api: Api, query: str) -> list[str]:
    found: list[str] = []
    cursor = ""
    while True:
        body = listed(api, f"?{query}{cursor}")
        found += [sandbox["sandbox_id"] for sandbox in body["sandboxes"]]
        if body["cursor"] is None:
            return found
        cursor = f"&cursor={body['cursor']}"


def test_an_operator_reads_every_field(api: Api) -> None:
    api.store.seed(FAILED)
    body = sandbox_of(api, "GET", "f")
    assert body["deletion_reason"] == "marked_by_track"
    assert body["deletion_last_error"] == "HTTP 422"
    assert (body["deletion_retry_count"], body["dirty"], body["version"]) == (8, True, 1)


def test_an_operator_sees_the_present_lease_and_key_of_an_allocated_sandbox(api: Api) -> None:
    api.store.seed(make_sandbox("7"))
    lease_id = api.allocate(Idempotency_Key="k")["lease_id"]
    body = body_of(api.admin("GET", "/v1/admin/sandboxes/7"))
    assert (body["lease_id"], body["idempotency_key"], body["allocated_to_track"]) == (lease_id, "k", "track-1")
    api.track("POST", "/v1/sandboxes/7/mark-for-deletion")
    body = body_of(api.admin("GET", "/v1/admin/sandboxes/7"))
    assert (body["lease_id"], body["last_lease_id"], body["last_track_id"]) == (None, lease_id, "track-1")


def test_an_operator_sees_which_reservation_a_sandbox_is_set_aside_for(api: Api) -> None:
    api.store.seed(make_sandbox("r", status=Status.RESERVED, reservation_id="monday"), make_sandbox("a"))
    assert {each: sandbox_of(api, "GET", each)["reservation_id"] for each in ("r", "a")} == {"r": "monday", "a": None}
    assert body_of(api.admin("GET", "/v1/admin/stats"))["reserved"] == 1


def test_an_operator_reads_tombstones_too(api: Api) -> None:
    api.store.seed(make_sandbox("t", status=Status.DELETED))
    assert body_of(api.admin("GET", "/v1/admin/sandboxes/t"))["status"] == "deleted"


@pytest.mark.parametrize(("method", "action", "body"), ON_ONE_SANDBOX)
def test_an_operation_on_a_sandbox_that_is_not_there_answers_404(
    shared_api: Api, method: str, action: str, body: dict[str, str] | None
) -> None:
    assert_error(shared_api.admin(method, f"/v1/admin/sandboxes/nope{action}", json=body), 404, "SANDBOX_NOT_FOUND")


def test_the_last_sync_counts_for_available_sandboxes_that_it_did_not_have_to_write(api: Api) -> None:
    api.store.seed(make_sandbox("a", last_synced=100), FAILED)
    api.store.write_watermark(Watermark(synced_at=START, accounts=2))
    assert body_of(api.admin("GET", "/v1/admin/sandboxes/a"))["last_synced"] == START
    assert body_of(api.admin("GET", "/v1/admin/sandboxes/f"))["last_synced"] == FAILED.last_synced
    assert {each["sandbox_id"]: each["last_synced"] for each in listed(api, "")["sandboxes"]} == {
        "a": START,
        "f": FAILED.last_synced,
    }


def test_a_record_newer_than_the_last_sync_keeps_its_own_time(api: Api) -> None:
    api.store.seed(make_sandbox("a", last_synced=START + 5))
    api.store.write_watermark(Watermark(synced_at=START, accounts=2))
    assert body_of(api.admin("GET", "/v1/admin/sandboxes/a"))["last_synced"] == START + 5


def test_a_listing_shows_all_sandboxes_with_every_field(api: Api) -> None:
    api.store.seed(make_sandbox("a"), FAILED)
    body = listed(api, "")
    assert ids(body) == {"a", "f"}
    assert all(set(sandbox) == EVERY_FIELD for sandbox in body["sandboxes"])


@pytest.mark.parametrize("status", list(Status))
def test_a_listing_can_be_held_to_one_status(api: Api, status: Status) -> None:
    api.store.seed(*(make_sandbox(each.value, status=each) for each in Status))
    assert ids(listed(api, f"?status={status}")) == {status.value}


@pytest.mark.parametrize("query", ["limit=7", "limit=7&status=available"])
def test_a_listing_is_walked_page_by_page_and_shows_each_sandbox_once(api: Api, query: str) -> None:
    api.store.seed(*(make_sandbox(str(number)) for number in range(30)))
    found = walk(api, query)
    assert sorted(found) == sorted(str(number) for number in range(30))


def test_a_page_holds_fifty_sandboxes_if_not_told_otherwise_and_a_hundred_at_most(api: Api) -> None:
    api.store.seed(*(make_sandbox(str(number)) for number in range(120)))
    assert listed(api, "")["count"] == 50
    assert listed(api, "?limit=100")["count"] == 100


def test_a_listing_can_be_held_to_what_a_track_holds(api: Api) -> None:
    api.store.seed(*(make_sandbox(str(number)) for number in range(9)))
    held = {api.allocate("track-1", Idempotency_Key=f"k{number}")["sandbox_id"] for number in range(5)}
    api.allocate("track-2")
    assert ids(listed(api, "?track_id=track-1")) == held
    assert ids(listed(api, "?track_id=track-1&status=allocated")) == held
    assert ids(listed(api, "?track_id=track-1&status=available")) == set()
    assert ids(listed(api, "?track_id=nobody")) == set()
    found = walk(api, "track_id=track-1&limit=2")
    assert len(found) == 5
    assert set(found) == held


def cursor_of(*content: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(content, separators=(",", ":")).encode()).decode()


@pytest.fixture
def held_by_one_track(api: Api) -> Api:
    return hold_three(api)


@pytest.fixture(scope="module")
def held_api() -> Api:
    """Return an API where track-1 holds three sandboxes, for tests whose calls change nothing."""
    return hold_three(make_api())


def hold_three(api: Api) -> Api:
    """Return `api`, where track-1 now holds three sandboxes."""
    api.store.seed(*(make_sandbox(str(number)) for number in range(3)))
    for number in range(3):
        api.allocate("track-1", Idempotency_Key=f"k{number}")
    return api


def test_a_tracks_cursor_leads_past_the_sandbox_that_it_names(held_by_one_track: Api) -> None:
    page = listed(held_by_one_track, "?track_id=track-1&limit=1")
    assert [sandbox["sandbox_id"] for sandbox in page["sandboxes"]] == ["0"]
    assert ids(listed(held_by_one_track, f"?track_id=track-1&cursor={page['cursor']}")) == {"1", "2"}


@pytest.mark.parametrize(
    "cursor",
    [
        cursor_of("track", "track-2", "1"),
        cursor_of("another", "track-1", "1"),
        cursor_of("track", "track-1"),
        cursor_of("track", "track-1", 1),
        cursor_of("track", "track-1", None),
        cursor_of("track", "track-1", "1", "2"),
        cursor_of("track", "track-1", "1")[:-4],
        cursor_of("track", "track-1", "1") + "AAAA",
        cursor_of("track", "track-1", "1").rstrip("=") + "!",
        base64.urlsafe_b64encode(b"1").decode(),
        base64.urlsafe_b64encode(b'{"track": "track-1"}').decode(),
        base64.urlsafe_b64encode(b'[ "track", "track-1", "1" ]').decode(),
        base64.urlsafe_b64encode(b"[" * 1500).decode(),
        base64.urlsafe_b64encode(b"\xff\xfe").decode(),
        "abc",
        "ü",
    ],
)
def test_a_cursor_that_no_listing_of_the_track_gave_is_refused(held_api: Api, cursor: str) -> None:
    answer = held_api.admin("GET", "/v1/admin/sandboxes", query_string={"track_id": "track-1", "cursor": cursor})
    assert answer.status_code == 400
    error = error_of(answer)
    assert (error["code"], set(error["details"])) == ("VALIDATION_ERROR", {"cursor"})


def test_a_listing_of_all_and_one_of_a_track_do_not_take_each_others_cursors(held_by_one_track: Api) -> None:
    for given_by, taken_by in (("?limit=1&", "?track_id=track-1&"), ("?track_id=track-1&limit=1&", "?")):
        cursor = listed(held_by_one_track, given_by)["cursor"]
        answer = held_by_one_track.admin("GET", f"/v1/admin/sandboxes{taken_by}cursor={cursor}")
        assert answer.status_code == 400
        assert "cursor" in error_of(answer)["message"]


@pytest.mark.parametrize("query", ["?", "?status=allocated", "?track_id=track-1", "?track_id=track-1&status=allocated"])
def test_a_listing_has_the_rest_and_names_what_cannot_be_read(held_by_one_track: Api, query: str) -> None:
    held_by_one_track.store.spoil("1")
    body = listed(held_by_one_track, query)
    assert body["unreadable"] == [{"sandbox_id": "1", "reason": SPOILED}]
    assert (ids(body), body["count"], body["cursor"]) == ({"0", "2"}, 2, None)


def test_a_listing_of_a_track_goes_past_what_cannot_be_read(held_by_one_track: Api) -> None:
    held_by_one_track.store.spoil("0")
    first = listed(held_by_one_track, "?track_id=track-1&limit=1")
    assert (first["sandboxes"], first["unreadable"]) == ([], [{"sandbox_id": "0", "reason": SPOILED}])
    assert ids(listed(held_by_one_track, f"?track_id=track-1&cursor={first['cursor']}")) == {"1", "2"}


@pytest.mark.parametrize(("method", "action", "body"), ON_ONE_SANDBOX)
def test_a_record_that_cannot_be_read_answers_503_and_says_why(
    api: Api, method: str, action: str, body: dict[str, str] | None
) -> None:
    api.store.seed(make_sandbox("7"))
    api.store.spoil("7")
    answer = api.admin(method, f"/v1/admin/sandboxes/7{action}", json=body)
    assert answer.status_code == 503
    error = error_of(answer)
    assert (error["code"], error["message"]) == ("SERVICE_UNAVAILABLE", f"sandbox '7' cannot be read: {SPOILED}")


def test_stats_count_the_pool_by_status_without_tombstones(api: Api) -> None:
    api.store.seed(make_sandbox("1"), make_sandbox("2"), FAILED, make_sandbox("t", status=Status.DELETED))
    assert body_of(api.admin("GET", "/v1/admin/stats"), 200) == {
        "available": 2,
        "reserved": 0,
        "allocated": 0,
        "pending_deletion": 0,
        "stale": 0,
        "deletion_failed": 1,
        "total": 3,
    }


def test_the_overview_of_a_new_pool_knows_no_times_and_no_pauses(api: Api) -> None:
    overview = body_of(api.admin("GET", "/v1/admin/overview"))
    assert overview["counts"] == body_of(api.admin("GET", "/v1/admin/stats"))
    assert (overview["oldest_pending_deletion_at"], overview["last_sync_at"]) == (None, None)
    assert overview["pauses"] == body_of(api.admin("GET", "/v1/admin/pause"))
    assert overview["pauses_error"] is None


def test_the_overview_says_why_damaged_pauses_cannot_be_read_and_shows_the_rest() -> None:
    class Damaged(StoreWrapper):
        def read_pauses(self) -> Pauses:
            raise UnreadableRecord("the record of the pauses", "allocate is no boolean")

    overview = body_of(make_api(around=Damaged).admin("GET", "/v1/admin/overview"))
    assert (overview["counts"]["total"], overview["pauses"]) == (0, None)
    assert "allocate is no boolean" in overview["pauses_error"]


def test_the_overview_says_which_deletion_waits_longest_when_a_sync_last_succeeded_and_what_is_paused(api: Api) -> None:
    api.store.seed(*(make_sandbox(str(number)) for number in range(3)))
    asked = [api.clock.now()]
    for _ in range(2):
        held = api.allocate()
        api.admin("POST", f"/v1/admin/sandboxes/{held['sandbox_id']}/release", json={"lease_id": held["lease_id"]})
        api.clock.advance(60)
    api.store.write_watermark(Watermark(synced_at=asked[0] + 30, accounts=3))
    api.admin("POST", "/v1/admin/pause", json={"sync": True})
    overview = body_of(api.admin("GET", "/v1/admin/overview"))
    assert overview["counts"]["pending_deletion"] == 2
    assert (overview["oldest_pending_deletion_at"], overview["last_sync_at"]) == (asked[0], asked[0] + 30)
    assert [each["operation"] for each in overview["pauses"]["paused"]] == ["sync"]


def test_a_release_ends_the_allocation_under_the_lease(api: Api) -> None:
    api.store.seed(make_sandbox("7"))
    lease_id = api.allocate()["lease_id"]
    for _ in range(2):
        body = sandbox_of(api, "POST", "7/release", json={"lease_id": lease_id})
        assert (body["status"], body["deletion_reason"]) == ("pending_deletion", "released_by_operator")
        assert body["last_lease_id"] == lease_id
    assert body_of(api.track("GET", "/v1/sandboxes"))["count"] == 0


def test_a_release_under_another_lease_answers_409(api: Api) -> None:
    api.store.seed(make_sandbox("7"))
    api.allocate()
    answer = api.admin("POST", "/v1/admin/sandboxes/7/release", json={"lease_id": "another"})
    assert_error(answer, 409, "LEASE_MISMATCH")


@pytest.mark.parametrize("status", [Status.AVAILABLE, Status.STALE])
def test_a_quarantined_sandbox_keeps_the_reason(api: Api, status: Status) -> None:
    api.store.seed(make_sandbox("7", status=status))
    reason = "naïve user broke it - " + "x" * 478
    body = sandbox_of(api, "POST", "7/quarantine", json={"reason": reason})
    assert (body["status"], body["deletion_last_error"]) == ("deletion_failed", reason)


@pytest.mark.parametrize("status", [Status.DELETION_FAILED, Status.DELETED])
def test_what_is_set_aside_or_removed_already_cannot_be_quarantined(api: Api, status: Status) -> None:
    api.store.seed(make_sandbox("7", status=status))
    assert_error(api.admin("POST", "/v1/admin/sandboxes/7/quarantine", json={"reason": "r"}), 409, "INVALID_TRANSITION")


@pytest.fixture
def quarantined(api: Api) -> Api:
    """Return an API where track-1 holds sandbox 7, and an operator wants it set aside."""
    api.store.seed(make_sandbox("7"))
    api.allocate()
    body = sandbox_of(api, "POST", "7/quarantine", json={"reason": "it smells"})
    assert (body["status"], body["quarantine_reason"]) == ("allocated", "it smells")
    return api


def test_a_held_sandbox_that_is_quarantined_stays_with_its_track_which_is_not_told(quarantined: Api) -> None:
    shown = body_of(quarantined.track("GET", "/v1/sandboxes/7"))
    assert shown["status"] == "allocated"
    assert "it smells" not in str(shown)
    marked = quarantined.track("POST", "/v1/sandboxes/7/mark-for-deletion")
    assert (marked.status_code, body_of(marked)["status"]) == (200, "pending_deletion")
    assert body_of(quarantined.admin("GET", "/v1/admin/sandboxes/7"))["quarantine_reason"] == "it smells"


def test_a_quarantine_is_lifted_and_that_may_be_repeated(quarantined: Api) -> None:
    for _ in range(2):
        body = sandbox_of(quarantined, "DELETE", "7/quarantine")
        assert (body["status"], body["quarantine_reason"]) == ("allocated", None)


@pytest.mark.parametrize("status", [Status.AVAILABLE, Status.STALE, Status.DELETION_FAILED, Status.DELETED])
def test_what_nobody_uses_has_no_quarantine_to_be_lifted(api: Api, status: Status) -> None:
    api.store.seed(make_sandbox("7", status=status))
    assert_error(api.admin("DELETE", "/v1/admin/sandboxes/7/quarantine"), 409, "INVALID_TRANSITION")


def test_what_is_held_cannot_be_quarantined_while_a_release_before_this_one_may_run(api: Api) -> None:
    api.store.seed(make_sandbox("7"))
    api.allocate()
    api.store.upgraded = 0
    api.clock.advance(5)
    answer = api.admin("POST", "/v1/admin/sandboxes/7/quarantine", json={"reason": "r"})
    error = assert_error(answer, 503, "UPGRADE_UNFINISHED")
    assert "broker upgrade finish" in error["message"]


def test_a_sandbox_that_rests_says_until_when(api: Api) -> None:
    api.store.seed(make_sandbox("7", status=Status.PENDING_DELETION, ready_at=START + 60))
    body = body_of(api.admin("GET", "/v1/admin/sandboxes/7"))
    assert (body["status"], body["dirty"], body["ready_at"]) == ("pending_deletion", False, START + 60)


def test_a_failed_deletion_is_tried_again(api: Api) -> None:
    api.store.seed(FAILED)
    body = sandbox_of(api, "POST", "f/retry-deletion")
    assert (body["status"], body["deletion_retry_count"]) == ("pending_deletion", 0)


def test_only_a_failed_deletion_can_be_tried_again(api: Api) -> None:
    api.store.seed(make_sandbox("7"))
    assert_error(api.admin("POST", "/v1/admin/sandboxes/7/retry-deletion"), 409, "INVALID_TRANSITION")


def test_a_bulk_retry_says_how_many_it_sent_back(api: Api) -> None:
    api.store.seed(FAILED, make_sandbox("g", status=Status.DELETION_FAILED), make_sandbox("7"))
    body = body_of(api.admin("POST", "/v1/admin/bulk-retry"), 200)
    assert set(body) == {"retried", "duration_ms"}
    assert body["retried"] == 2
    assert body_of(api.admin("GET", "/v1/admin/stats"))["pending_deletion"] == 2


@pytest.mark.parametrize("status", [Status.STALE, Status.DELETION_FAILED])
def test_a_bulk_delete_removes_the_records_of_one_status(api: Api, status: Status) -> None:
    api.store.seed(make_sandbox("1", status=status), make_sandbox("2", status=status, dirty=True), make_sandbox("3"))
    body = body_of(api.admin("POST", f"/v1/admin/bulk-delete?status={status}"), 200)
    assert set(body) == {"deleted", "duration_ms"}
    assert body["deleted"] == 2
    left = {sandbox_id: sandbox.status for sandbox_id, sandbox in api.store.dump()[0].items()}
    assert left == {"2": Status.DELETED, "3": Status.AVAILABLE}


def test_pauses_are_set_one_by_one_and_all_are_told(api: Api) -> None:
    nothing = {"allocate": False, "sync": False, "cleanup": False, "expire": False, "paused": []}
    by_us = [{"operation": name, "by": "admin", "since": START} for name in ("sync", "expire")]
    assert body_of(api.admin("GET", "/v1/admin/pause")) == nothing
    set_two = api.admin("POST", "/v1/admin/pause", json={"sync": True, "expire": True})
    assert (set_two.status_code, body_of(set_two)) == (200, nothing | {"sync": True, "expire": True, "paused": by_us})
    set_one = api.admin("POST", "/v1/admin/pause", json={"sync": False})
    left = nothing | {"expire": True, "paused": by_us[1:]}
    assert body_of(set_one) == body_of(api.admin("GET", "/v1/admin/pause")) == left
    assert body_of(api.admin("POST", "/v1/admin/pause", json={})) == left


def test_a_pause_names_who_made_it_first_and_when(tmp_path: Path) -> None:
    file = tmp_path / "tokens.toml"
    file.write_text(named_token("ada", "token-a", Role.OPERATOR) + named_token("bob", "token-b", Role.OPERATOR))
    api = make_api(BROKER_TOKENS_FILE=str(file))
    for token in ("token-a", "token-b"):
        headers = {"Authorization": f"Bearer {token}"}
        answer = api.call("POST", "/v1/admin/pause", json={"allocate": True}, headers=headers)
        assert body_of(answer)["paused"] == [{"operation": "allocate", "by": "ada", "since": START}]
        api.clock.advance(60)


def test_a_pause_of_a_release_before_this_one_names_nobody(api: Api) -> None:
    api.store.set_pauses(Pauses(), Pauses(sync=Pause()))
    body = body_of(api.admin("GET", "/v1/admin/pause"))
    assert (body["sync"], body["paused"]) == (True, [{"operation": "sync", "by": None, "since": None}])


def test_pauses_are_read_from_the_store_each_time(api: Api) -> None:
    api.admin("GET", "/v1/admin/pause")
    api.store.set_pauses(Pauses(), Pauses(cleanup=Pause()))
    assert body_of(api.admin("GET", "/v1/admin/pause"))["cleanup"] is True


@pytest.mark.parametrize(
    ("method", "path", "fails"),
    [
        ("GET", "/v1/admin/sandboxes", "list_sandboxes"),
        ("GET", "/v1/admin/sandboxes/7", "get"),
        ("GET", "/v1/admin/stats", "count"),
        ("GET", "/v1/admin/overview", "oldest_pending_deletion"),
        ("GET", "/v1/admin/pause", "read_pauses"),
        ("POST", "/v1/admin/bulk-retry", "read_due"),
        ("POST", "/v1/admin/bulk-delete?status=stale", "read_due"),
    ],
)
def test_an_admin_call_while_the_store_is_away_answers_503(method: str, path: str, fails: str) -> None:
    api = make_api(around=refusing(fails))
    answer = api.admin(method, path)
    assert_error(answer, 503, "SERVICE_UNAVAILABLE")
    assert int(answer.headers["Retry-After"]) > 0
