"""The calls that read facts: the history of a sandbox, and the feed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from broker_common.core.facts import FactKind, PoolFactKind
from broker_common.core.history import READ_AGAIN_SEC
from broker_common.core.sandbox import Status
from tests.api.harness import Api, assert_error, body_of, error_of, make_api, named_token, refusing
from tests.fakes import START, make_sandbox

if TYPE_CHECKING:
    from pathlib import Path

FACT = {
    *("kind", "at", "principal", "request_id", "sandbox_id", "version", "fact_id", "track_id", "lease_id"),
    *("status", "status_before", "details"),
}


def history(api: Api, query: str = "", sandbox_id: str = "7") -> dict[str, Any]:
    body = body_of(api.admin("GET", f"/v1/admin/sandboxes/{sandbox_id}/history{query}"), 200)
    assert set(body) == {"facts", "count", "cursor"}
    assert body["count"] == len(body["facts"])
    return body


def events(api: Api, query: str = "") -> dict[str, Any]:
    body = body_of(api.admin("GET", f"/v1/admin/events{query}"), 200)
    assert set(body) == {"events", "count", "cursor", "is_last"}
    assert body["count"] == len(body["events"])
    return body


def kinds(facts: list[dict[str, Any]]) -> list[str]:
    return [fact["kind"] for fact in facts]


@pytest.fixture
def used(api: Api) -> Api:
    return use(api)


@pytest.fixture(scope="module")
def used_api() -> Api:
    """Return a `used` API for tests whose calls change nothing."""
    return use(make_api())


def use(api: Api) -> Api:
    """Return `api`, where track-1 has given sandbox 7 back and an operator has paused the sync."""
    api.store.seed(make_sandbox("7"))
    api.allocate(X_Request_ID="r-1", X_Instruqt_Track_ID="intro")
    api.clock.advance(60)
    api.track("POST", "/v1/sandboxes/7/mark-for-deletion", headers={"X-Request-ID": "r-2"})
    api.clock.advance(60)
    api.admin("POST", "/v1/admin/pause", json={"sync": True}, headers={"X-Request-ID": "r-3"})
    return api


def test_a_history_tells_newest_first_what_happened_by_whom_and_in_which_request(used: Api) -> None:
    marked, allocated = history(used)["facts"]
    assert set(marked) == set(allocated) == FACT
    lease_id = body_of(used.admin("GET", "/v1/admin/sandboxes/7"))["last_lease_id"]
    assert allocated == {
        "kind": "sandbox.allocated",
        "at": START,
        "principal": "track",
        "request_id": "r-1",
        "sandbox_id": "7",
        "version": START * 1000,
        "fact_id": None,
        "track_id": "track-1",
        "lease_id": lease_id,
        "status": "allocated",
        "status_before": "available",
        "details": {"expires_at": START + 4 * 3600, "track_name": "intro"},
    }
    assert (marked["kind"], marked["at"], marked["request_id"]) == ("sandbox.marked", START + 60, "r-2")
    assert (marked["lease_id"], marked["status"], marked["details"]) == (lease_id, "pending_deletion", {})


def test_a_history_is_walked_page_by_page(used: Api) -> None:
    first = history(used, "?limit=1")
    second = history(used, f"?limit=1&cursor={first['cursor']}")
    assert kinds(first["facts"] + second["facts"]) == ["sandbox.marked", "sandbox.allocated"]
    assert second["cursor"] is None


def test_a_sandbox_without_facts_has_an_empty_history(api: Api) -> None:
    api.store.seed(make_sandbox("7"))
    assert history(api) == {"facts": [], "count": 0, "cursor": None}


def test_a_removed_sandbox_is_not_found_but_its_history_is(api: Api) -> None:
    api.store.seed(make_sandbox("7", status=Status.STALE))
    api.admin("POST", "/v1/admin/bulk-delete?status=stale")
    assert api.admin("GET", "/v1/admin/sandboxes/7").status_code == 404
    (removed,) = history(api)["facts"]
    assert (removed["kind"], removed["status"], removed["status_before"]) == ("sandbox.removed", None, "stale")
    assert removed["principal"] == "admin"


def test_the_history_of_what_never_was_answers_404(api: Api) -> None:
    assert_error(api.admin("GET", "/v1/admin/sandboxes/nope/history"), 404, "SANDBOX_NOT_FOUND")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("cursor", each) for each in ("none", "")),
        *(("limit", each) for each in ("0", "101", "many")),
        ("after", "f1"),
    ],
)
def test_a_bad_query_of_a_history_is_refused_by_name(used_api: Api, name: str, value: str) -> None:
    answer = used_api.admin("GET", "/v1/admin/sandboxes/7/history", query_string={name: value})
    assert set(assert_error(answer, 400, "VALIDATION_ERROR")["details"]) == {name}


def test_the_cursor_of_another_history_is_refused(used_api: Api) -> None:
    cursor = history(used_api, "?limit=1")["cursor"]
    answer = used_api.admin("GET", f"/v1/admin/sandboxes/8/history?cursor={cursor}")
    assert answer.status_code == 400
    assert "this sandbox" in error_of(answer)["details"]["cursor"][0]


# -- the feed


def test_the_feed_tells_all_oldest_first_with_the_facts_of_the_pool(used: Api) -> None:
    body = events(used)
    assert kinds(body["events"]) == ["sandbox.allocated", "sandbox.marked", "pool.paused"]
    assert body["is_last"] is True
    paused = body["events"][2]
    assert set(paused) == FACT
    assert paused["fact_id"]
    assert {name: paused[name] for name in FACT - {"fact_id"}} == {
        "kind": "pool.paused",
        "at": START + 120,
        "principal": "admin",
        "request_id": "r-3",
        "sandbox_id": None,
        "version": None,
        "track_id": None,
        "lease_id": None,
        "status": None,
        "status_before": None,
        "details": {"operation": "sync"},
    }


def test_the_feed_is_read_on_with_its_cursor(used: Api) -> None:
    first = events(used, "?limit=2")
    assert (kinds(first["events"]), first["is_last"]) == (["sandbox.allocated", "sandbox.marked"], False)
    last = events(used, f"?limit=2&after={first['cursor']}")
    assert (kinds(last["events"]), last["is_last"]) == (["pool.paused"], True)


def test_the_end_of_the_feed_reads_the_last_minutes_again(used: Api) -> None:
    used.clock.advance(READ_AGAIN_SEC - 60)
    end = events(used)
    used.admin("POST", "/v1/admin/pause", json={"sync": False})
    again = events(used, f"?after={end['cursor']}")
    assert kinds(again["events"]) == ["sandbox.marked", "pool.paused", "pool.resumed"]


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("kind=sandbox.marked", ["sandbox.marked"]),
        ("kind=pool.paused", ["pool.paused"]),
        ("kind=sync.braked", []),
        ("track_id=track-1", ["sandbox.allocated", "sandbox.marked"]),
        ("track_id=track-2", []),
        ("track_id=track-1&kind=sandbox.allocated", ["sandbox.allocated"]),
        (f"since={START + 61}", ["pool.paused"]),
        (f"since={START + 60}", ["sandbox.marked", "pool.paused"]),
    ],
)
def test_the_feed_can_be_held_to_a_kind_a_track_or_a_time(used_api: Api, query: str, found: list[str]) -> None:
    assert kinds(events(used_api, f"?{query}")["events"]) == found


@pytest.mark.parametrize("kind", [*FactKind, *PoolFactKind])
def test_every_kind_of_fact_can_be_asked_for(shared_api: Api, kind: str) -> None:
    assert events(shared_api, f"?kind={kind}")["events"] == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("after", each) for each in ("none", "", "c!")),
        *(("since", each) for each in ("-1", "yesterday")),
        *(("limit", each) for each in ("0", "1001")),
        ("order", "backwards"),
        *(("kind", "sandbox.exploded"), ("track_id", "\n"), ("cursor", "f1")),
    ],
)
def test_a_bad_query_of_the_feed_is_refused_by_name(used_api: Api, name: str, value: str) -> None:
    answer = used_api.admin("GET", "/v1/admin/events", query_string={name: value})
    assert set(assert_error(answer, 400, "VALIDATION_ERROR")["details"]) == {name}


def test_the_newest_facts_come_first_if_asked_for_and_the_cursor_reads_older_ones(used: Api) -> None:
    first = events(used, "?order=newest_first&limit=2")
    assert (kinds(first["events"]), first["is_last"]) == (["pool.paused", "sandbox.marked"], False)
    used.admin("POST", "/v1/admin/pause", json={"sync": False})
    last = events(used, f"?order=newest_first&limit=2&after={first['cursor']}")
    assert (kinds(last["events"]), last["is_last"]) == (["sandbox.allocated"], True)
    end = events(used, f"?order=newest_first&limit=2&after={last['cursor']}")
    assert (end["events"], end["is_last"]) == ([], True)


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("kind=sandbox.marked", ["sandbox.marked"]),
        ("track_id=track-1", ["sandbox.marked", "sandbox.allocated"]),
        (f"since={START + 60}", ["pool.paused", "sandbox.marked"]),
    ],
)
def test_the_newest_facts_can_be_held_to_a_kind_a_track_or_a_time(used_api: Api, query: str, found: list[str]) -> None:
    assert kinds(events(used_api, f"?order=newest_first&{query}")["events"]) == found


@pytest.mark.parametrize(("given_by", "sent_to"), [("oldest_first", "newest_first"), ("newest_first", "oldest_first")])
def test_a_cursor_of_the_other_order_is_refused(used_api: Api, given_by: str, sent_to: str) -> None:
    cursor = events(used_api, f"?order={given_by}&limit=1")["cursor"]
    answer = used_api.admin("GET", f"/v1/admin/events?order={sent_to}&after={cursor}")
    assert set(assert_error(answer, 400, "VALIDATION_ERROR")["details"]) == {"after"}


# -- by whom


def test_a_fact_names_the_token_and_not_what_it_claims_to_be(tmp_path: Path) -> None:
    file = tmp_path / "tokens.toml"
    file.write_text(named_token("ada", "token-a", "operator") + named_token("lab-7", "token-t", "track"))
    api = make_api(BROKER_TOKENS_FILE=str(file))
    api.store.seed(make_sandbox("7"))
    api.call("POST", "/v1/allocate", headers={"Authorization": "Bearer token-t", "X-Track-ID": "ada"})
    api.call(
        "POST",
        "/v1/admin/sandboxes/7/quarantine",
        json={"reason": "odd"},
        headers={"Authorization": "Bearer token-a"},
    )
    facts = history(api)["facts"]
    assert [(fact["kind"], fact["principal"], fact["track_id"]) for fact in facts] == [
        ("sandbox.quarantined", "ada", "ada"),
        ("sandbox.allocated", "lab-7", "ada"),
    ]


def test_no_fact_has_a_token_in_it(used: Api) -> None:
    told = str(events(used))
    assert "track-token" not in told
    assert "admin-token" not in told


# -- when facts cannot be read


@pytest.mark.parametrize("path", ["/v1/admin/events", "/v1/admin/sandboxes/7/history"])
def test_nothing_is_told_until_the_upgrade_is_finished(used: Api, path: str) -> None:
    used.store.upgraded = 0
    used.clock.advance(5)
    answer = used.admin("GET", path)
    assert answer.status_code == 503
    error = error_of(answer)
    assert (error["code"], "broker upgrade finish" in error["message"]) == ("UPGRADE_UNFINISHED", True)


@pytest.mark.parametrize(
    ("path", "fails"), [("/v1/admin/events", "read_feed"), ("/v1/admin/sandboxes/7/history", "read_history")]
)
def test_a_store_that_is_away_answers_503(path: str, fails: str) -> None:
    assert_error(make_api(around=refusing(fails)).admin("GET", path), 503, "SERVICE_UNAVAILABLE")
