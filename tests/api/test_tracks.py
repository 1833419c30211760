"""The calls of a track."""

from __future__ import annotations

import pytest

from broker_common.core.sandbox import Status
from tests.api.harness import ALLOCATION, Api, assert_error, body_of, error_of, make_api, refusing
from tests.fakes import START, make_sandbox

FOUR_HOURS = 4 * 3600
PAST_BUFFER = FOUR_HOURS + 1801


def test_a_track_is_allocated_a_sandbox(api: Api) -> None:
    api.store.seed(make_sandbox("7", sfdc_account_id="sf-1"))
    answer = api.track("POST", "/v1/allocate", headers={"X-Instruqt-Track-ID": "intro-to-dns"})
    body = body_of(answer, 201)
    assert "Idempotent-Replayed" not in answer.headers
    assert set(body) == ALLOCATION
    assert body["lease_id"]
    assert body | {"lease_id": None} == {
        "sandbox_id": "7",
        "name": "lab-7",
        "external_id": "uuid-7",
        "lease_id": None,
        "allocated_at": START,
        "expires_at": START + FOUR_HOURS,
        "track_name": "intro-to-dns",
        "sfdc_account_id": "sf-1",
    }


def test_what_is_unknown_about_an_allocation_is_null(api: Api) -> None:
    api.store.seed(make_sandbox())
    body = api.allocate()
    assert body["track_name"] is None
    assert body["sfdc_account_id"] is None


def test_a_repeated_allocate_is_answered_with_what_is_held_and_says_so(api: Api) -> None:
    api.store.seed(make_sandbox("1"), make_sandbox("2"))
    first = api.allocate()
    again = api.track("POST", "/v1/allocate", headers={"X-Sandbox-Name-Prefix": "other"})
    assert again.status_code == 200
    assert again.headers["Idempotent-Replayed"] == "true"
    assert body_of(again) == first


def test_each_idempotency_key_of_a_track_holds_a_sandbox_of_its_own(api: Api) -> None:
    api.store.seed(make_sandbox("1"), make_sandbox("2"), make_sandbox("3"))
    ids = {api.allocate(Idempotency_Key="a")["sandbox_id"], api.allocate(Idempotency_Key="b")["sandbox_id"]}
    assert len(ids) == 2


def test_the_idempotency_key_of_a_track_that_sends_none_is_its_id(api: Api) -> None:
    api.store.seed(make_sandbox("1"), make_sandbox("2"))
    first = api.allocate("track-1")
    again = api.track("POST", "/v1/allocate", "track-1", headers={"Idempotency-Key": "track-1"})
    assert body_of(again) == first


def test_tracks_do_not_share_idempotency_keys(api: Api) -> None:
    api.store.seed(make_sandbox("1"), make_sandbox("2"))
    first, second = api.allocate("track-1", Idempotency_Key="k"), api.allocate("track-2", Idempotency_Key="k")
    assert first["sandbox_id"] != second["sandbox_id"]


def test_a_prefix_chooses_among_the_names(api: Api) -> None:
    api.store.seed(make_sandbox("1", name="red-1"), make_sandbox("2", name="blue-1"))
    assert api.allocate(X_Sandbox_Name_Prefix="blue-")["name"] == "blue-1"


def test_an_empty_pool_answers_409_and_when_to_come_back(api: Api) -> None:
    answer = api.track("POST", "/v1/allocate")
    assert_error(answer, 409, "NO_SANDBOXES_AVAILABLE")
    assert int(answer.headers["Retry-After"]) > 0


def test_a_paused_allocate_answers_503_and_still_replays(api: Api) -> None:
    api.store.seed(make_sandbox("1"), make_sandbox("2"))
    held = api.allocate("holder")
    assert api.admin("POST", "/v1/admin/pause", json={"allocate": True}).status_code == 200
    refused = api.track("POST", "/v1/allocate", "newcomer")
    assert_error(refused, 503, "PAUSED")
    assert int(refused.headers["Retry-After"]) > 0
    replayed = api.track("POST", "/v1/allocate", "holder")
    assert replayed.status_code == 200
    assert body_of(replayed) == held


def test_a_store_that_is_away_answers_503_and_when_to_come_back() -> None:
    api = make_api(around=refusing("read_pauses"))
    answer = api.track("POST", "/v1/allocate")
    assert_error(answer, 503, "SERVICE_UNAVAILABLE")
    assert int(answer.headers["Retry-After"]) > 0


def test_a_record_that_cannot_be_read_is_its_own_tracks_trouble(api: Api) -> None:
    api.store.seed(make_sandbox("7"))
    api.allocate("track-1")
    api.store.spoil("7")
    for method, path in (
        ("GET", "/v1/sandboxes/7"),
        ("POST", "/v1/sandboxes/7/mark-for-deletion"),
        ("GET", "/v1/sandboxes"),
    ):
        answer = api.track(method, path)
        assert_error(answer, 503, "SERVICE_UNAVAILABLE")
    assert api.track("POST", "/v1/allocate").status_code == 200
    api.store.spoil_claim("track-1", "track-1")
    assert api.track("POST", "/v1/allocate").status_code == 503
    api.store.seed(make_sandbox("8"), make_sandbox("9"))
    api.store.spoil("9")
    api.clock.advance(2)
    assert api.allocate("track-2")["sandbox_id"] == "8"
    assert api.track("POST", "/v1/allocate", "track-3").status_code == 409


def test_a_holder_reads_its_sandbox(api: Api) -> None:
    api.store.seed(make_sandbox("7"))
    allocation = api.allocate()
    answer = api.track("GET", "/v1/sandboxes/7")
    assert answer.status_code == 200
    assert body_of(answer) == allocation | {"status": "allocated", "allocated_to_track": "track-1"}


def test_the_last_holder_reads_its_sandbox_until_it_is_allocated_again(api: Api) -> None:
    api.store.seed(make_sandbox("7"))
    lease_id = api.allocate()["lease_id"]
    api.track("POST", "/v1/sandboxes/7/mark-for-deletion")
    body = body_of(api.track("GET", "/v1/sandboxes/7"))
    assert (body["status"], body["lease_id"], body["allocated_to_track"]) == ("pending_deletion", lease_id, None)
    api.clock.advance(1)
    api.store.seed(make_sandbox("7", version=50, last_track_id="track-1", last_lease_id=lease_id))
    assert body_of(api.track("GET", "/v1/sandboxes/7"))["status"] == "available"
    api.allocate("track-2")
    assert error_of(api.track("GET", "/v1/sandboxes/7"))["code"] == "NOT_SANDBOX_OWNER"


def test_a_held_sandbox_is_not_shown_to_another_track(api: Api) -> None:
    api.store.seed(make_sandbox("7"))
    api.allocate("track-1")
    assert_error(api.track("GET", "/v1/sandboxes/7", "track-2"), 403, "NOT_SANDBOX_OWNER")


@pytest.mark.parametrize("path", ["/v1/sandboxes/nope", "/v1/sandboxes/tombstone"])
def test_a_sandbox_that_is_not_there_or_only_a_tombstone_answers_404(api: Api, path: str) -> None:
    api.store.seed(make_sandbox("tombstone", status=Status.DELETED, last_track_id="track-1", last_lease_id="l"))
    assert_error(api.track("GET", path), 404, "SANDBOX_NOT_FOUND")


def test_a_track_lists_what_it_holds_and_nothing_else(api: Api) -> None:
    api.store.seed(*(make_sandbox(str(number)) for number in range(5)))
    held = {api.allocate("track-1", Idempotency_Key=key)["sandbox_id"] for key in ("a", "b")}
    api.allocate("track-2")
    body = body_of(api.track("GET", "/v1/sandboxes"), 200)
    assert set(body) == {"sandboxes", "count"}
    assert body["count"] == 2
    assert {sandbox["sandbox_id"] for sandbox in body["sandboxes"]} == held
    assert set(body["sandboxes"][0]) == ALLOCATION | {"status", "allocated_to_track"}


def test_a_track_that_holds_nothing_is_shown_an_empty_list(api: Api) -> None:
    assert body_of(api.track("GET", "/v1/sandboxes")) == {"sandboxes": [], "count": 0}


def test_a_mark_is_answered_with_the_status_the_lease_and_the_time(api: Api) -> None:
    api.store.seed(make_sandbox("7"))
    lease_id = api.allocate()["lease_id"]
    api.clock.advance(60)
    assert body_of(api.track("POST", "/v1/sandboxes/7/mark-for-deletion"), 200) == {
        "sandbox_id": "7",
        "status": "pending_deletion",
        "lease_id": lease_id,
        "deletion_requested_at": START + 60,
    }


def test_a_repeated_mark_is_answered_with_the_present_status(api: Api) -> None:
    api.store.seed(make_sandbox("7"))
    lease_id = api.allocate()["lease_id"]
    first = body_of(api.track("POST", "/v1/sandboxes/7/mark-for-deletion"))
    api.clock.advance(60)
    assert body_of(api.track("POST", "/v1/sandboxes/7/mark-for-deletion")) == first
    wiped = make_sandbox("7", version=50, last_track_id="track-1", last_lease_id=lease_id)
    api.store.seed(wiped)
    answer = api.track("POST", "/v1/sandboxes/7/mark-for-deletion")
    assert (answer.status_code, body_of(answer)["status"]) == (200, "available")


def test_the_last_holder_of_a_tombstone_may_repeat_its_mark(api: Api) -> None:
    api.store.seed(make_sandbox("7", status=Status.DELETED, last_track_id="track-1", last_lease_id="l"))
    answer = api.track("POST", "/v1/sandboxes/7/mark-for-deletion")
    assert (answer.status_code, body_of(answer)["status"]) == (200, "deleted")
    assert api.track("POST", "/v1/sandboxes/7/mark-for-deletion", "track-2").status_code == 404


def test_a_mark_past_the_expiry_is_accepted(api: Api) -> None:
    api.store.seed(make_sandbox("7"))
    api.allocate()
    api.clock.advance(PAST_BUFFER)
    assert api.track("POST", "/v1/sandboxes/7/mark-for-deletion").status_code == 200


def test_a_mark_may_name_its_lease(api: Api) -> None:
    api.store.seed(make_sandbox("7"))
    lease_id = api.allocate()["lease_id"]
    answer = api.track("POST", "/v1/sandboxes/7/mark-for-deletion", json={"lease_id": lease_id})
    assert answer.status_code == 200


def test_a_mark_that_names_another_lease_answers_409(api: Api) -> None:
    api.store.seed(make_sandbox("7"))
    api.allocate()
    answer = api.track("POST", "/v1/sandboxes/7/mark-for-deletion", json={"lease_id": "another"})
    assert_error(answer, 409, "LEASE_MISMATCH")
    assert body_of(api.track("GET", "/v1/sandboxes/7"))["status"] == "allocated"


def test_a_mark_of_a_sandbox_that_is_not_there_answers_404(api: Api) -> None:
    assert api.track("POST", "/v1/sandboxes/7/mark-for-deletion").status_code == 404


@pytest.mark.parametrize("body", [b'{"lease_id": "another"}', b'{"lease_id": 1}', b"{", b'{"other": 1}'])
def test_another_track_is_told_nothing_about_the_lease_or_its_malformed_body(api: Api, body: bytes) -> None:
    api.store.seed(make_sandbox("7"))
    api.allocate("track-1")
    path = "/v1/sandboxes/7/mark-for-deletion"
    answer = api.track("POST", path, "track-2", data=body, content_type="application/json")
    assert_error(answer, 403, "NOT_SANDBOX_OWNER")


@pytest.mark.parametrize("content_type", [None, "text/plain", "application/x-www-form-urlencoded", "nonsense"])
@pytest.mark.parametrize("path", ["/v1/allocate", "/v1/sandboxes/7/mark-for-deletion"])
def test_an_empty_body_is_accepted_with_any_content_type(api: Api, path: str, content_type: str | None) -> None:
    api.store.seed(make_sandbox("7"))
    api.allocate()
    assert api.track("POST", path, data=b"", content_type=content_type).status_code == 200


def test_an_empty_object_is_accepted_where_no_body_is_read(api: Api) -> None:
    api.store.seed(make_sandbox("7"))
    assert api.track("POST", "/v1/allocate", json={}).status_code == 201


# -- how long a lease lasts


@pytest.mark.parametrize("duration_sec", [300, 300.0, 7200, 8 * 3600])
def test_a_track_may_say_how_long_its_lease_lasts(api: Api, duration_sec: int) -> None:
    api.store.seed(make_sandbox("7"))
    body = body_of(api.track("POST", "/v1/allocate", json={"duration_sec": duration_sec}), 201)
    assert body["expires_at"] == body["allocated_at"] + duration_sec


def test_a_replay_ignores_another_duration(api: Api) -> None:
    api.store.seed(make_sandbox("7"))
    held = api.allocate()
    answer = api.track("POST", "/v1/allocate", json={"duration_sec": 300})
    assert (body_of(answer, 200), answer.headers["Idempotent-Replayed"]) == (held, "true")


def test_the_longest_duration_is_the_settings(api: Api) -> None:
    for hours, longest in (("8", 8 * 3600), ("4.5", 16200)):
        made = make_api(MAX_LAB_DURATION_HOURS=hours)
        made.store.seed(make_sandbox("7"))
        error = error_of(made.track("POST", "/v1/allocate", json={"duration_sec": longest + 1}))
        assert error["details"] == {"duration_sec": [f"Must be at most {longest} (MAX_LAB_DURATION_HOURS)."]}
        assert made.track("POST", "/v1/allocate", json={"duration_sec": longest}).status_code == 201


EXTEND = "/v1/sandboxes/7/extend"


def test_a_holder_extends_its_lease(api: Api) -> None:
    api.store.seed(make_sandbox("7"))
    held = api.allocate()
    until = held["expires_at"] + 3600
    expected = {"sandbox_id": "7", "lease_id": held["lease_id"], "expires_at": until}
    for body in ({"expires_at": until}, {"expires_at": until, "lease_id": held["lease_id"]}, {"expires_at": START}):
        assert body_of(api.track("POST", EXTEND, json=body), 200) == expected
    assert body_of(api.track("POST", "/v1/allocate"), 200) == held | {"expires_at": until}
    assert body_of(api.track("GET", "/v1/sandboxes/7"))["expires_at"] == until


def test_a_lease_past_its_end_is_extended_while_nobody_has_ended_it(api: Api) -> None:
    api.store.seed(make_sandbox("7"))
    held = api.allocate()
    api.clock.advance(PAST_BUFFER)
    until = held["expires_at"] + FOUR_HOURS
    assert body_of(api.track("POST", EXTEND, json={"expires_at": until}), 200)["expires_at"] == until
    assert body_of(api.track("POST", "/v1/allocate"), 200)["lease_id"] == held["lease_id"]


@pytest.mark.parametrize("accept", [None, "application/problem+json"])
def test_an_extension_beyond_the_limit_answers_409_and_the_latest_end(api: Api, accept: str | None) -> None:
    api.accept = accept
    api.store.seed(make_sandbox("7"))
    limit = api.allocate()["allocated_at"] + 8 * 3600
    body = body_of(api.track("POST", EXTEND, json={"expires_at": limit + 1}), 409)
    error = body if accept else body["error"]
    assert (error["code"], error["details"]) == ("DURATION_LIMIT", {"latest_expires_at": limit})
    assert "retry_after" not in error
    assert body_of(api.track("POST", EXTEND, json={"expires_at": limit}), 200)["expires_at"] == limit


def test_an_extension_under_another_lease_or_of_an_ended_one_answers_409(api: Api) -> None:
    api.store.seed(make_sandbox("7"))
    held = api.allocate()
    assert_error(api.track("POST", EXTEND, json={"expires_at": START, "lease_id": "another"}), 409, "LEASE_MISMATCH")
    api.track("POST", "/v1/sandboxes/7/mark-for-deletion")
    for named in ({}, {"lease_id": held["lease_id"]}):
        answer = api.track("POST", EXTEND, json={"expires_at": START + FOUR_HOURS, **named})
        assert_error(answer, 409, "ALLOCATION_ENDED")


@pytest.mark.parametrize("body", [b'{"expires_at": 1}', b'{"expires_at": "no"}', b"{", b'{"other": 1}', b""])
def test_an_extension_tells_another_track_nothing_about_the_lease_or_its_malformed_body(api: Api, body: bytes) -> None:
    api.store.seed(make_sandbox("7"))
    api.allocate("track-1")
    answer = api.track("POST", EXTEND, "track-2", data=body, content_type="application/json")
    assert_error(answer, 403, "NOT_SANDBOX_OWNER")


def test_an_extension_of_a_sandbox_that_is_not_there_answers_404(api: Api) -> None:
    assert_error(api.track("POST", EXTEND, json={"expires_at": START}), 404, "SANDBOX_NOT_FOUND")


def test_an_operator_extends_a_tracks_lease_up_to_thirty_days(api: Api) -> None:
    api.store.seed(make_sandbox("7"))
    held = api.allocate()
    limit = held["allocated_at"] + 30 * 24 * 3600
    path = "/v1/admin/sandboxes/7/extend"
    assert body_of(api.admin("POST", path, json={"expires_at": limit}), 200) == {
        "sandbox_id": "7",
        "lease_id": held["lease_id"],
        "expires_at": limit,
    }
    error = assert_error(api.admin("POST", path, json={"expires_at": limit + 1}), 409, "DURATION_LIMIT")
    assert error["details"] == {"latest_expires_at": limit}
    assert body_of(api.track("POST", "/v1/allocate"), 200)["expires_at"] == limit
    (fact,) = body_of(api.admin("GET", "/v1/admin/events?kind=sandbox.extended"))["events"]
    assert (fact["principal"], fact["details"]) == (
        "admin",
        {"expires_at": limit, "expires_at_before": held["expires_at"]},
    )


def test_a_body_is_read_only_where_there_is_one(api: Api) -> None:
    """A track that asks for nothing special pays for no parsing."""
    api.store.seed(make_sandbox("7"))

    class Unread:
        def read(self, *_: int) -> bytes:
            raise AssertionError("read")

    assert api.track("POST", "/v1/allocate", environ_overrides={"wsgi.input": Unread()}).status_code == 201
