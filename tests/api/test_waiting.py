"""Tracks that wait in line: the answers of allocate, and the calls about places."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from broker_api.holding import IS_CLIENT_THERE
from broker_api.limits import ARRIVED_AT
from broker_api.runtime import runtime_of
from broker_common.core.sandbox import Status
from tests.api.harness import ALLOCATION, Api, assert_error, body_of, error_of, make_api, named_token
from tests.fakes import BY, START, Fault, FlakyStore, make_sandbox
from tests.world import World

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from werkzeug.test import TestResponse

WAITING = {"state", "position", "waiting", "joined_at", "place_kept_until", "expected_by", "details"}
WHY = {"available", "reserved", "waiting", "pending_deletion", "next_due_at"}
FRONT_RETRY = 1
MALFORMED = ["wait", "wait=", "wait=soon", "wait=-1", "wait=1.5", "wait=+1", "wait=\xb2", "wait=abc", "foo, wait=abc"]
IGNORED = ["", "respond-async", "waiting=5", ",;=", '"wait=5', "return=minimal; wait=5"]
APPLIED = [
    ("wait=5", 5),
    ("wait=5, respond-async", 5),
    ("respond-async, WAIT = 5", 5),
    ('wait="5"', 5),
    ("wait=5; foo=bar", 5),
    ("wait=5, wait=9", 5),
    ("wait=5, wait=abc", 5),
    ('foo="a, wait=9", wait=5', 5),
    ("wait=0005", 5),
    ("wait=0", 0),
    ("wait=31", 30),
    ("wait=" + "9" * 5000, 30),
]


def wait(
    api: Api, track_id: str = "track-1", seconds: int = 0, *, headers: dict[str, str] | None = None, **options: Any
) -> TestResponse:
    """Allocate as a track that waits in line."""
    return api.track(
        "POST", "/v1/allocate", track_id, headers={"Prefer": f"wait={seconds}"} | (headers or {}), **options
    )


def at_each_sleep(api: Api, act: Callable[[float], None]) -> None:
    """Have `act` called with the time that has passed whenever a held call sleeps."""
    sleep = api.clock.sleep

    def sleep_and_act(seconds: float) -> None:
        sleep(seconds)
        # In another thread: Flask would take a call within a call for a part of the same request.
        with ThreadPoolExecutor(1) as another:
            another.submit(act, api.clock.monotonic()).result()

    api.clock.sleep = sleep_and_act  # type: ignore[method-assign] # things happen while a call is held


def line_of(api: Api) -> list[str]:
    """Return the ids of the tracks that wait, in their order."""
    return [each["track_id"] for each in body_of(api.admin("GET", "/v1/admin/waiting"), 200)["places"]]


def test_a_track_that_waits_is_answered_202_with_its_place_and_why_there_is_no_sandbox(api: Api) -> None:
    api.store.seed(
        make_sandbox("1", status=Status.ALLOCATED),
        make_sandbox("2", status=Status.PENDING_DELETION, dirty=True),
    )
    answer = wait(api, "track-9")
    body = body_of(answer, 202)
    assert set(body) == WAITING
    assert (answer.headers["Retry-After"], answer.headers["Preference-Applied"]) == (str(FRONT_RETRY), "wait=0")
    assert body | {"details": None, "expected_by": None} == {
        "state": "waiting",
        "position": 1,
        "waiting": 1,
        "joined_at": START,
        "place_kept_until": START + FRONT_RETRY + 600,
        "expected_by": None,
        "details": None,
    }
    assert set(body["details"]) == WHY
    assert (body["details"]["available"], body["details"]["pending_deletion"], body["details"]["waiting"]) == (0, 1, 1)


def test_a_track_that_does_not_wait_is_refused_as_ever_and_told_why(api: Api) -> None:
    wait(api, "track-9")
    answer = api.track("POST", "/v1/allocate")
    error = assert_error(answer, 409, "NO_SANDBOXES_AVAILABLE")
    assert (error["retry_after"], set(error["details"])) == (30, WHY)
    assert (error["details"]["available"], error["details"]["waiting"]) == (0, 1)
    assert "Preference-Applied" not in answer.headers
    assert line_of(api) == ["track-9"], "who does not ask to wait takes no place"


def test_a_problem_has_the_same_details(api: Api) -> None:
    api.accept = "application/problem+json"
    problem = body_of(api.track("POST", "/v1/allocate"), 409)
    assert (problem["code"], set(problem["details"])) == ("NO_SANDBOXES_AVAILABLE", WHY)


def test_a_free_sandbox_is_allocated_at_once_to_a_track_that_would_wait(api: Api) -> None:
    api.store.seed(make_sandbox("1"))
    answer = wait(api, seconds=30)
    assert set(body_of(answer, 201)) == ALLOCATION
    assert answer.headers["Preference-Applied"] == "wait=30"
    assert "Retry-After" not in answer.headers
    assert api.clock.monotonic() == 0


def test_a_held_call_is_answered_201_once_a_sandbox_was_given_back_and_wiped(api: Api) -> None:
    api.store.seed(make_sandbox("1"))
    api.allocate("holder")
    world = World(clock=api.clock, memory=api.store)

    def give_back(passed: float) -> None:
        if passed >= 4 and api.store.dump()[0]["1"].status is Status.ALLOCATED:
            assert api.track("POST", "/v1/sandboxes/1/mark-for-deletion", "holder").status_code == 200
            world.cleaner.delete_sandbox("1", by=BY)

    at_each_sleep(api, give_back)
    answer = wait(api, seconds=30)
    assert (body_of(answer, 201)["sandbox_id"], answer.headers["Preference-Applied"]) == ("1", "wait=30")
    assert 4 <= api.clock.monotonic() < 8
    assert line_of(api) == []
    again = wait(api, seconds=30)
    assert (again.status_code, again.headers["Idempotent-Replayed"]) == (200, "true")


@pytest.mark.parametrize(("prefer", "seconds"), APPLIED)
def test_a_call_is_held_as_long_as_asked_and_at_most_thirty_seconds_past_the_deadline_of_its_work(
    api: Api, prefer: str, seconds: int
) -> None:
    answer = api.track("POST", "/v1/allocate", headers={"Prefer": prefer})
    assert (answer.status_code, answer.headers["Preference-Applied"]) == (202, f"wait={seconds}")
    assert api.clock.monotonic() == pytest.approx(seconds)


def test_several_headers_are_one_list_of_preferences(api: Api) -> None:
    headers = [*api.track_headers.items(), ("X-Track-ID", "t"), ("Prefer", "respond-async"), ("Prefer", "wait=0")]
    answer = api.app.test_client().post("/v1/allocate", headers=headers)
    assert (answer.status_code, answer.headers["Preference-Applied"]) == (202, "wait=0")


@pytest.mark.parametrize("prefer", MALFORMED)
def test_a_malformed_wait_is_refused_by_name_and_gets_no_place(shared_api: Api, prefer: str) -> None:
    answer = shared_api.track("POST", "/v1/allocate", headers={"Prefer": prefer})
    error = assert_error(answer, 400, "VALIDATION_ERROR")
    assert error["details"] == {"Prefer": ["wait: Must be a number of seconds, as in wait=30."]}
    assert line_of(shared_api) == []


@pytest.mark.parametrize("prefer", IGNORED)
def test_other_preferences_are_ignored(shared_api: Api, prefer: str) -> None:
    answer = shared_api.track("POST", "/v1/allocate", headers={"Prefer": prefer})
    assert_error(answer, 409, "NO_SANDBOXES_AVAILABLE")


def test_a_repeated_request_waits_on_at_the_same_place(api: Api) -> None:
    wait(api, "track-1")
    wait(api, "track-2")
    api.clock.advance(3)
    assert [body_of(wait(api, each), 202)["position"] for each in ("track-2", "track-1")] == [2, 1]
    again = body_of(wait(api, "track-2"), 202)
    assert (again["joined_at"], again["waiting"], again["place_kept_until"]) == (START, 2, START + 3 + 1 + 600)


def test_a_call_that_was_held_is_told_its_position_of_that_moment(api: Api) -> None:
    wait(api, "track-1")

    def give_up(passed: float) -> None:
        if passed >= 1:
            assert api.track("DELETE", "/v1/waiting", "track-1").status_code == 204

    at_each_sleep(api, give_up)
    assert body_of(wait(api, "track-2", seconds=2), 202)["position"] == 1


def test_places_are_served_in_their_order_and_a_newcomer_takes_nothing_that_is_due(api: Api) -> None:
    wait(api, "track-1")
    wait(api, "track-2")
    api.clock.advance(2)
    api.store.seed(make_sandbox("1"))
    refused = assert_error(api.track("POST", "/v1/allocate", "newcomer"), 409, "NO_SANDBOXES_AVAILABLE")
    assert refused["details"]["waiting"] == 2
    assert wait(api, "track-2").status_code == 202
    assert wait(api, "track-1").status_code == 201


def test_a_track_that_is_late_is_passed_over_and_keeps_its_place(api: Api) -> None:
    wait(api, "late")
    api.clock.advance(FRONT_RETRY + 6)
    wait(api, "there")
    api.store.seed(make_sandbox("1"))
    api.clock.advance(2)
    assert wait(api, "there").status_code == 201
    assert (line_of(api), body_of(wait(api, "late"), 202)["joined_at"]) == (["late"], START)


def test_a_place_is_lost_once_its_grace_is_over(api: Api) -> None:
    api = make_api(LINE_GRACE_SEC="60")
    body = body_of(wait(api), 202)
    assert body["place_kept_until"] == START + FRONT_RETRY + 60
    api.clock.advance(FRONT_RETRY + 61)
    assert body_of(wait(api), 202)["joined_at"] == START + FRONT_RETRY + 61


def test_each_key_of_a_track_has_a_place_of_its_own(api: Api) -> None:
    for key in ("a", "b", "a"):
        assert wait(api, headers={"Idempotency-Key": key}).status_code == 202
    places = body_of(api.track("GET", "/v1/waiting"), 200)
    assert [each["idempotency_key"] for each in places["places"]] == ["a", "b"]
    assert places["count"] == 2


def test_a_track_that_wants_other_names_gets_a_new_place_at_the_end(api: Api) -> None:
    wait(api, "track-1")
    wait(api, "track-2")
    assert body_of(wait(api, "track-1", headers={"X-Sandbox-Name-Prefix": "blue-"}), 202)["position"] == 2
    api.store.seed(make_sandbox("1", name="blue-1"))
    api.clock.advance(2)
    assert wait(api, "track-2").status_code == 201, "it is first now, and any name will do"


def test_a_pause_is_answered_503_and_keeps_the_place(api: Api) -> None:
    api = make_api(LINE_GRACE_SEC="60")
    wait(api)
    assert api.admin("POST", "/v1/admin/pause", json={"allocate": True}).status_code == 200
    for _ in range(4):
        assert_error(wait(api), 503, "PAUSED")
        api.clock.advance(30)
    assert api.admin("POST", "/v1/admin/pause", json={"allocate": False}).status_code == 200
    api.clock.advance(5)
    assert body_of(wait(api), 202)["joined_at"] == START


def test_a_held_call_ends_with_a_pause(api: Api) -> None:
    def pause(passed: float) -> None:
        if passed >= 1 and not api.store.read_pauses().allocate:
            assert api.admin("POST", "/v1/admin/pause", json={"allocate": True}).status_code == 200

    at_each_sleep(api, pause)
    assert_error(wait(api, seconds=30), 503, "PAUSED")
    assert line_of(api) == ["track-1"]


def test_customers_take_turns(tmp_path: Path) -> None:
    file = tmp_path / "tokens.toml"
    file.write_text(
        "".join(named_token(name, f"of-{name}", "track", more=f'customer = "{name}"') for name in ("acme", "beta"))
    )
    api = make_api(BROKER_TOKENS_FILE=str(file))
    for customer, track_id in (("acme", "a1"), ("acme", "a2"), ("acme", "a3"), ("beta", "b1"), ("beta", "b2")):
        headers = {"Authorization": f"Bearer of-{customer}", "X-Track-ID": track_id, "Prefer": "wait=0"}
        assert api.call("POST", "/v1/allocate", headers=headers).status_code == 202
        api.clock.advance(0.5)
    places = body_of(api.admin("GET", "/v1/admin/waiting"), 200)["places"]
    assert [(each["track_id"], each["customer"]) for each in places] == [
        ("a1", "acme"),
        ("b1", "beta"),
        ("a2", "acme"),
        ("b2", "beta"),
        ("a3", "acme"),
    ]
    api.store.seed(make_sandbox("1"), make_sandbox("2"))
    api.clock.advance(1)
    got = {}
    for customer, track_id in (("acme", "a3"), ("acme", "a2"), ("beta", "b1"), ("acme", "a1")):
        headers = {"Authorization": f"Bearer of-{customer}", "X-Track-ID": track_id, "Prefer": "wait=0"}
        got[track_id] = api.call("POST", "/v1/allocate", headers=headers).status_code
    assert got == {"a3": 202, "a2": 202, "b1": 201, "a1": 201}


def test_a_full_line_refuses_the_next_track_and_says_that_it_is_full(api: Api) -> None:
    api = make_api(LINE_MAX="2")
    wait(api, "track-1")
    wait(api, "track-2")
    answer = wait(api, "track-3")
    error = assert_error(answer, 409, "NO_SANDBOXES_AVAILABLE")
    assert (error["details"]["line"], error["details"]["waiting"]) == ("full", 2)
    assert wait(api, "track-2").status_code == 202, "who has a place keeps it"


def test_nobody_joins_the_line_before_the_upgrade_is_finished(api: Api) -> None:
    api.store.upgraded = 0
    assert_error(wait(api), 503, "UPGRADE_UNFINISHED")
    assert_error(api.track("POST", "/v1/allocate"), 409, "NO_SANDBOXES_AVAILABLE")


def test_a_call_that_waited_past_its_deadline_for_a_thread_is_refused(api: Api) -> None:
    api.clock.advance(100)
    answer = wait(api, seconds=30, environ_overrides={ARRIVED_AT: api.clock.monotonic() - 3})
    assert_error(answer, 503, "SERVICE_UNAVAILABLE")
    assert line_of(api) == []


# -- holding


def test_no_call_is_held_while_the_process_is_about_to_stop(api: Api) -> None:
    runtime_of(api.app).draining = True
    answer = wait(api, seconds=30)
    assert (answer.status_code, answer.headers["Preference-Applied"]) == (202, "wait=30")
    assert api.clock.monotonic() == 0


def test_a_held_call_is_answered_within_a_second_once_the_process_is_about_to_stop(api: Api) -> None:
    def drain(passed: float) -> None:
        runtime_of(api.app).draining = passed >= 2

    at_each_sleep(api, drain)
    assert wait(api, seconds=30).status_code == 202
    assert 2 <= api.clock.monotonic() <= 3


def test_a_client_that_hung_up_while_it_was_held_gets_no_sandbox(api: Api) -> None:
    is_there = True

    def hang_up(passed: float) -> None:
        nonlocal is_there
        if passed >= 2:
            is_there = False
            api.store.seed(make_sandbox("1"))

    at_each_sleep(api, hang_up)
    assert wait(api, seconds=30, environ_overrides={IS_CLIENT_THERE: lambda: is_there}).status_code == 202
    assert api.store.dump()[0]["1"].status is Status.AVAILABLE
    assert api.clock.monotonic() < 4


def test_held_calls_have_a_quarter_of_the_threads_and_the_rest_is_answered_at_once() -> None:
    api = make_api(API_THREADS="8")
    inside, go_on = threading.Semaphore(0), threading.Event()
    answers: list[int] = []

    def hold(seconds: float) -> None:
        inside.release()
        assert go_on.wait(30)
        api.clock.advance(seconds + 30)

    api.clock.sleep = hold  # type: ignore[method-assign] # holds the waiting calls
    held = [
        threading.Thread(target=lambda name=name: answers.append(wait(api, name, 5).status_code))
        for name in ("track-1", "track-2")
    ]
    for thread in held:
        thread.start()
    for _ in held:
        assert inside.acquire(timeout=30)
    at_once = wait(api, "track-3", 5)
    assert (at_once.status_code, at_once.headers["Preference-Applied"]) == (202, "wait=5")
    go_on.set()
    for thread in held:
        thread.join(30)
    assert answers == [202, 202]
    api.clock.sleep = api.clock.advance  # type: ignore[method-assign]
    before = api.clock.monotonic()
    wait(api, "track-3", 5)
    assert api.clock.monotonic() == pytest.approx(before + 5), "the threads are free again"


def test_a_store_that_fails_while_a_call_is_held_ends_the_call_and_keeps_the_place() -> None:
    made: list[FlakyStore] = []

    def around(store: Any) -> FlakyStore:
        made.append(FlakyStore(store))
        return made[0]

    api = make_api(around=around)
    at_each_sleep(api, lambda passed: made[0].fail("read_line", Fault.REFUSED) if passed >= 2 else None)
    assert wait(api, seconds=30).status_code == 202
    assert api.clock.monotonic() < 4
    assert [each.track_id for each in api.store.read_line()] == ["track-1"]


# -- giving up


def test_a_track_gives_its_place_up_and_may_repeat_that(api: Api) -> None:
    wait(api, "track-1")
    wait(api, "track-2")
    for _ in range(2):
        answer = api.track("DELETE", "/v1/waiting", "track-1")
        assert (answer.status_code, answer.data) == (204, b"")
        assert "Content-Type" not in answer.headers
    assert line_of(api) == ["track-2"]
    assert body_of(api.track("GET", "/v1/waiting", "track-1")) == {"places": [], "count": 0}


def test_a_track_gives_up_the_place_of_the_key_that_it_names(api: Api) -> None:
    wait(api)
    wait(api, headers={"Idempotency-Key": "other"})
    assert api.track("DELETE", "/v1/waiting", headers={"Idempotency-Key": "other"}).status_code == 204
    (left,) = body_of(api.track("GET", "/v1/waiting"))["places"]
    assert left["idempotency_key"] == "track-1"


@pytest.mark.parametrize("ends", ["its track", "an operator"])
def test_a_held_call_whose_place_is_gone_ends_with_409_and_gets_no_sandbox(api: Api, ends: str) -> None:
    def end(passed: float) -> None:
        if passed < 2 or not api.store.read_line():
            return
        if ends == "its track":
            assert api.track("DELETE", "/v1/waiting").status_code == 204
        else:
            (place,) = body_of(api.admin("GET", "/v1/admin/waiting"))["places"]
            assert api.admin("DELETE", f"/v1/admin/waiting/{place['place_id']}").status_code == 204
        api.store.seed(make_sandbox("1"))

    at_each_sleep(api, end)
    error = assert_error(wait(api, seconds=30), 409, "NO_SANDBOXES_AVAILABLE")
    assert error["message"] == "the place in the line was given up or removed"
    assert (api.store.read_line(), api.store.dump()[0]["1"].status) == ([], Status.AVAILABLE)
    assert api.clock.monotonic() < 4


def test_copies_of_a_held_call_get_the_same_sandbox(api: Api) -> None:
    copied: list[dict[str, Any]] = []

    def copy(passed: float) -> None:
        if passed >= 2 and not copied:
            api.store.seed(make_sandbox("1"), make_sandbox("2"))
            api.clock.advance(2)
            copied.append(body_of(wait(api), 201))

    at_each_sleep(api, copy)
    answer = wait(api, seconds=30)
    assert (answer.status_code, answer.headers["Idempotent-Replayed"]) == (200, "true")
    assert body_of(answer) == copied[0]


# -- the lists


def test_a_track_reads_its_own_places_only(api: Api) -> None:
    wait(api, "track-1")
    wait(api, "track-2", headers={"X-Sandbox-Name-Prefix": "blue-"})
    assert body_of(api.track("GET", "/v1/waiting", "track-2"), 200) == {
        "places": [
            {
                "idempotency_key": "track-2",
                "name_prefix": "blue-",
                "position": 2,
                "waiting": 2,
                "joined_at": START,
                "place_kept_until": START + FRONT_RETRY + 600,
                "expected_by": None,
            }
        ],
        "count": 1,
    }


def test_an_operator_reads_who_waits_for_what_since_when_and_where(api: Api) -> None:
    wait(api, "track-1")
    wait(api, "track-2", headers={"X-Sandbox-Name-Prefix": "blue-", "X-Instruqt-Track-ID": "intro-to-dns"})
    line = body_of(api.admin("GET", "/v1/admin/waiting"), 200)
    assert (line["count"], line["waiting"]) == (2, 2)
    shown = line["places"][1]
    assert shown.pop("place_id")
    assert shown == {
        "position": 2,
        "track_id": "track-2",
        "idempotency_key": "track-2",
        "track_name": "intro-to-dns",
        "customer": None,
        "name_prefix": "blue-",
        "joined_at": START,
        "back_by": START + FRONT_RETRY,
        "place_kept_until": START + FRONT_RETRY + 600,
        "late": False,
    }


def test_a_limit_shows_the_begin_of_the_line(api: Api) -> None:
    for number in range(5):
        wait(api, f"track-{number}")
    line = body_of(api.admin("GET", "/v1/admin/waiting?limit=2"), 200)
    assert [each["track_id"] for each in line["places"]] == ["track-0", "track-1"]
    assert (line["count"], line["waiting"]) == (2, 5)


def test_a_place_whose_time_is_over_is_not_listed(api: Api) -> None:
    wait(api)
    api.clock.advance(FRONT_RETRY + 601)
    assert line_of(api) == []
    assert body_of(api.track("GET", "/v1/waiting"))["count"] == 0


@pytest.mark.parametrize("query", ["limit=0", "limit=1001", "limit=-1", "limit=many", "limit=1&limit=2", "cursor=x"])
def test_a_malformed_listing_of_the_line_is_refused_and_the_parameter_named(shared_api: Api, query: str) -> None:
    error = assert_error(shared_api.admin("GET", f"/v1/admin/waiting?{query}"), 400, "VALIDATION_ERROR")
    assert list(error["details"]) == [query.partition("=")[0]]


def test_an_operator_removes_a_place_and_may_repeat_that(api: Api) -> None:
    wait(api, "track-1")
    wait(api, "track-2")
    first = body_of(api.admin("GET", "/v1/admin/waiting"))["places"][0]["place_id"]
    for _ in range(2):
        answer = api.admin("DELETE", f"/v1/admin/waiting/{first}")
        assert (answer.status_code, answer.data) == (204, b"")
    assert line_of(api) == ["track-2"]
    assert body_of(wait(api, "track-1"), 202)["position"] == 2, "it waits at the end now"


def test_a_place_that_never_was_is_removed_too(api: Api) -> None:
    assert api.admin("DELETE", "/v1/admin/waiting/nobody").status_code == 204


@pytest.mark.parametrize("place_id", ["x" * 129, "%C3%A9", "%00", "a%0Ab"])
def test_an_impossible_place_id_is_refused(shared_api: Api, place_id: str) -> None:
    answer = shared_api.admin("DELETE", f"/v1/admin/waiting/{place_id}")
    assert answer.status_code == 400
    assert list(error_of(answer)["details"]) == ["place_id"]


@pytest.mark.parametrize("path", ["/v1/waiting", "/v1/admin/waiting/nobody"])
def test_a_body_of_a_call_that_reads_none_is_refused(shared_api: Api, path: str) -> None:
    call = shared_api.admin if "admin" in path else shared_api.track
    answer = call("DELETE", path, json={"reason": "tired"})
    assert answer.status_code == 400
    assert list(error_of(answer)["details"]) == ["reason"]
