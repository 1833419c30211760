"""The calls that book sandboxes for a class, and the header by which a track draws one."""

from __future__ import annotations

from typing import Any

import pytest

from tests.api.harness import Api, assert_error, body_of, make_api
from tests.fakes import START, make_sandbox

PATH = "/v1/admin/reservations"
HOUR, DAY = 3600, 24 * 3600
STARTS_AT, ENDS_AT = START + HOUR, START + 4 * HOUR
A_CLASS = {"name": "Networking 101", "count": 3, "starts_at": STARTS_AT, "ends_at": ENDS_AT}
FULL = A_CLASS | {
    "prefix": "lab-",
    "track_names": ["networking-101", "networking-102"],
    "customer": "acme",
    "lead_sec": 1200,
    "hold_sec": 1800,
    "note": "Ms. Müller's class",
}


@pytest.fixture
def api() -> Api:
    made = make_api()
    made.store.seed(*(make_sandbox(str(number), name=f"lab-{number}") for number in range(10)))
    return made


def book(api: Api, **different: Any) -> dict[str, Any]:
    """Book a reservation, and return it."""
    return body_of(api.admin("POST", PATH, json=A_CLASS | different), 201)


def test_a_reservation_is_booked_with_defaults(api: Api) -> None:
    made = book(api)
    assert made == A_CLASS | {
        "reservation_id": made["reservation_id"],
        "prefix": "",
        "track_names": [],
        "customer": None,
        "lead_sec": 900,
        "hold_sec": None,
        "note": None,
        "state": "scheduled",
        "version": 1,
        "set_aside": 0,
        "drawn": 0,
        "short_by": 3,
        "fills_at": STARTS_AT - 900,
        "opens_at": STARTS_AT - 600,
        "created_at": START,
        "created_by": "admin",
        "ended_at": None,
    }


def test_a_reservation_keeps_every_field_that_is_sent(api: Api) -> None:
    made = body_of(api.admin("POST", PATH, json=FULL), 201)
    assert {name: made[name] for name in FULL} == FULL
    assert made["fills_at"] == STARTS_AT - 1200
    assert body_of(api.admin("GET", f"{PATH}/{made['reservation_id']}"), 200) == made


@pytest.mark.parametrize(
    ("moment", "state"),
    [
        (STARTS_AT - 901, "scheduled"),
        (STARTS_AT - 900, "filling"),
        (STARTS_AT - 600, "open"),
        (ENDS_AT - 1, "open"),
        (ENDS_AT, "ended"),
    ],
)
def test_the_state_is_that_of_the_time(api: Api, moment: int, state: str) -> None:
    made = book(api)
    api.clock.advance(moment - START)
    assert body_of(api.admin("GET", f"{PATH}/{made['reservation_id']}"))["state"] == state


def test_more_than_may_be_reserved_answers_409_and_how_many_could_be_had(api: Api) -> None:
    error = assert_error(api.admin("POST", PATH, json=A_CLASS | {"count": 9}), 409, "CAPACITY_NOT_AVAILABLE")
    assert error["details"] == {"could_have": 8}
    assert body_of(api.admin("GET", PATH))["reservations"] == []


def test_the_check_says_what_booking_would_say_and_books_nothing(api: Api) -> None:
    assert body_of(api.admin("POST", f"{PATH}/check", json=A_CLASS), 200) == {"fits": True, "could_have": 8}
    book(api)
    assert body_of(api.admin("POST", f"{PATH}/check", json=A_CLASS | {"count": 6}), 200) == {
        "fits": False,
        "could_have": 5,
    }
    assert len(body_of(api.admin("GET", PATH))["reservations"]) == 1


def test_a_repeated_booking_with_the_same_key_books_once(api: Api) -> None:
    key = {"Idempotency-Key": "monday"}
    first = api.admin("POST", PATH, json=A_CLASS, headers=key)
    again = api.admin("POST", PATH, json=A_CLASS, headers=key)
    assert (first.status_code, "Idempotent-Replayed" in first.headers) == (201, False)
    assert (again.status_code, again.headers["Idempotent-Replayed"]) == (200, "true")
    assert body_of(first) == body_of(again)
    assert_error(api.admin("POST", PATH, json=A_CLASS | {"count": 2}, headers=key), 422, "IDEMPOTENCY_MISMATCH")
    assert body_of(api.admin("GET", PATH))["count"] == 1


def test_without_a_key_each_call_books_another(api: Api) -> None:
    assert book(api)["reservation_id"] != book(api)["reservation_id"]


@pytest.mark.parametrize("key", ["", "x" * 129, "caf\xe9"])
def test_a_malformed_key_is_refused(api: Api, key: str) -> None:
    error = assert_error(
        api.admin("POST", PATH, json=A_CLASS, headers={"Idempotency-Key": key}), 400, "VALIDATION_ERROR"
    )
    assert list(error["details"]) == ["Idempotency-Key"]


def test_a_change_takes_the_version_that_was_read(api: Api) -> None:
    made = book(api)
    one = f"{PATH}/{made['reservation_id']}"
    changed = body_of(api.admin("PATCH", one, json={"version": 1, "count": 5, "track_names": ["intro"]}), 200)
    assert changed == made | {"version": 2, "count": 5, "track_names": ["intro"], "short_by": 5}
    assert_error(api.admin("PATCH", one, json={"version": 1, "count": 6}), 409, "VERSION_MISMATCH")
    assert body_of(api.admin("GET", one)) == changed


def test_a_change_may_take_back_what_is_optional(api: Api) -> None:
    made = body_of(api.admin("POST", PATH, json=FULL), 201)
    nothing = {"prefix": "", "track_names": [], "customer": None, "hold_sec": None, "note": None}
    changed = body_of(api.admin("PATCH", f"{PATH}/{made['reservation_id']}", json={"version": 1, **nothing}), 200)
    assert {name: changed[name] for name in nothing} == nothing


def test_a_change_that_does_not_fit_answers_409_and_changes_nothing(api: Api) -> None:
    made = book(api)
    one = f"{PATH}/{made['reservation_id']}"
    error = assert_error(api.admin("PATCH", one, json={"version": 1, "count": 9}), 409, "CAPACITY_NOT_AVAILABLE")
    assert error["details"] == {"could_have": 8}
    assert body_of(api.admin("GET", one)) == made


@pytest.mark.parametrize("changes", [{"ends_at": STARTS_AT}, {"starts_at": ENDS_AT}])
def test_a_change_cannot_put_the_end_before_the_start(api: Api, changes: dict[str, int]) -> None:
    made = book(api)
    one = f"{PATH}/{made['reservation_id']}"
    error = assert_error(api.admin("PATCH", one, json={"version": 1, **changes}), 400, "VALIDATION_ERROR")
    assert "ends_at" in error["message"]
    assert body_of(api.admin("GET", one)) == made


def test_a_cancel_may_be_repeated_and_a_cancelled_one_is_not_changed(api: Api) -> None:
    made = book(api)
    one = f"{PATH}/{made['reservation_id']}"
    api.clock.advance(5)
    cancelled = body_of(api.admin("DELETE", one), 200)
    assert cancelled == made | {"state": "cancelled", "version": 2, "short_by": 0, "ended_at": START + 5}
    assert body_of(api.admin("DELETE", one), 200) == cancelled
    assert_error(api.admin("PATCH", one, json={"version": 2, "count": 1}), 409, "RESERVATION_NOT_OPEN")
    assert book(api, count=8)["count"] == 8


def test_reservations_are_listed_page_after_page_by_state(api: Api) -> None:
    made = [book(api, count=1)["reservation_id"] for _ in range(3)]
    api.admin("DELETE", f"{PATH}/{made[0]}")
    seen, cursor = [], ""
    while cursor is not None:
        page = body_of(api.admin("GET", f"{PATH}?limit=1{cursor and '&cursor=' + cursor}"), 200)
        assert page["count"] == len(page["reservations"]) <= 1
        seen += [each["reservation_id"] for each in page["reservations"]]
        cursor = page["cursor"]
    assert sorted(seen) == sorted(made)
    for state, expected in (("cancelled", made[:1]), ("scheduled", made[1:]), ("open", [])):
        page = body_of(api.admin("GET", f"{PATH}?state={state}"))
        assert [each["reservation_id"] for each in page["reservations"]] == expected


def test_a_cursor_of_another_listing_is_refused(api: Api) -> None:
    for _ in range(2):
        book(api, count=1)
    cursor = body_of(api.admin("GET", f"{PATH}?limit=1"))["cursor"]
    for query in (f"state=ended&cursor={cursor}", "cursor=nonsense", "cursor=%00", "cursor="):
        error = assert_error(api.admin("GET", f"{PATH}?{query}"), 400, "VALIDATION_ERROR")
        assert list(error["details"]) == ["cursor"]


def test_the_capacity_is_a_curve_of_what_is_booked_and_what_can_be(api: Api) -> None:
    book(api)
    points = body_of(api.admin("GET", f"/v1/admin/capacity?from={START}&to={ENDS_AT + HOUR}"), 200)["points"]
    assert [each["at"] for each in points] == sorted(each["at"] for each in points)
    assert points[0]["at"] == START
    at_class = [each["reserved"] for each in points if STARTS_AT <= each["at"] < ENDS_AT]
    assert set(at_class) == {3}
    assert points[-1]["reserved"] == 0
    assert {each["reservable"] for each in points} == {8}


@pytest.mark.parametrize("method", ["GET", "PATCH", "DELETE"])
def test_an_unknown_reservation_answers_404_and_an_impossible_id_400(api: Api, method: str) -> None:
    options = {"json": {"version": 1, "count": 1}} if method == "PATCH" else {}
    assert_error(api.admin(method, f"{PATH}/none", **options), 404, "RESERVATION_NOT_FOUND")
    for reservation_id in ("x" * 129, "%C3%A9", "a%0Ab", "%00"):
        error = assert_error(api.admin(method, f"{PATH}/{reservation_id}", **options), 400, "VALIDATION_ERROR")
        assert list(error["details"]) == ["reservation_id"]


NO_NUMBERS = [None, "1", 1.5, True, [1], {}]
NO_NAMES = ["", "x" * 129, "café", "two\nlines", 1, ["list"]]
MALFORMED: list[tuple[str, Any]] = [
    *(("name", each) for each in (*NO_NAMES, None)),
    *(("count", each) for each in (*NO_NUMBERS, 0, -1, 100_001, 1_000_000)),
    *(("starts_at", each) for each in (*NO_NUMBERS, -1, START - 61, 10**12, "2026-12-01")),
    *(("ends_at", each) for each in (*NO_NUMBERS, STARTS_AT, STARTS_AT - 1, STARTS_AT + 90 * DAY + 1, 10**12)),
    *(("prefix", each) for each in ("x" * 129, "é", "a\tb", 1, None)),
    *(("customer", each) for each in NO_NAMES),
    *(("track_names", each) for each in ("intro", None, [""], ["é"], [1], ["x" * 129], ["a", "a"])),
    ("track_names", [f"lab-{number}" for number in range(21)]),
    *(("lead_sec", each) for each in (*NO_NUMBERS, 599, 0, -1, DAY + 1)),
    *(("hold_sec", each) for each in (*NO_NUMBERS[1:], -1, 10**9)),
    *(("note", each) for each in ("", " ", "x" * 501, "two\nlines", "escape \x1b[31m", 1)),
    *((name, 1) for name in ("colour", "state", "version", "reservation_id", "set_aside", "created_by")),
]


@pytest.mark.parametrize("path", [PATH, f"{PATH}/check"])
@pytest.mark.parametrize(("field", "value"), MALFORMED)
def test_a_malformed_booking_is_refused_and_the_field_named(api: Api, path: str, field: str, value: object) -> None:
    error = assert_error(api.admin("POST", path, json=A_CLASS | {field: value}), 400, "VALIDATION_ERROR")
    assert list(error["details"]) == [field]
    assert error["message"].startswith(f"{field}: ")
    assert body_of(api.admin("GET", PATH))["count"] == 0


@pytest.mark.parametrize("field", A_CLASS)
def test_a_booking_without_what_it_needs_is_refused_and_the_field_named(api: Api, field: str) -> None:
    body = {name: value for name, value in A_CLASS.items() if name != field}
    error = assert_error(api.admin("POST", PATH, json=body), 400, "VALIDATION_ERROR")
    assert list(error["details"]) == [field]


@pytest.mark.parametrize(
    ("field", "value"), [each for each in MALFORMED if each[0] != "version" and each != ("ends_at", STARTS_AT - 1)]
)
def test_a_malformed_change_is_refused_and_the_field_named(api: Api, field: str, value: object) -> None:
    made = book(api)
    # Without its start beside it, the end is checked against the stored one.
    times = {"starts_at": STARTS_AT} if field == "ends_at" else {}
    answer = api.admin("PATCH", f"{PATH}/{made['reservation_id']}", json={"version": 1, **times, field: value})
    error = assert_error(answer, 400, "VALIDATION_ERROR")
    assert list(error["details"]) == [field]
    assert body_of(api.admin("GET", f"{PATH}/{made['reservation_id']}")) == made


@pytest.mark.parametrize("body", [{"count": 2}, *({"count": 2, "version": each} for each in (*NO_NUMBERS, -1, 10**30))])
def test_a_change_needs_a_version(api: Api, body: dict[str, Any]) -> None:
    made = book(api)
    error = assert_error(api.admin("PATCH", f"{PATH}/{made['reservation_id']}", json=body), 400, "VALIDATION_ERROR")
    assert list(error["details"]) == ["version"]


def test_a_class_may_start_now_and_must_end_later(api: Api) -> None:
    book(api, starts_at=START - 60, ends_at=START + 1, count=1)
    error = assert_error(
        api.admin("POST", PATH, json=A_CLASS | {"starts_at": START - 60, "ends_at": START}), 400, "VALIDATION_ERROR"
    )
    assert error["details"] == {"ends_at": ["must be later than starts_at, and in the future"]}


def test_the_longest_of_everything_is_accepted(api: Api) -> None:
    longest = {
        "name": "n" * 128,
        "ends_at": STARTS_AT + 90 * DAY,
        "track_names": [f"{number:0>128}" for number in range(20)],
        "lead_sec": DAY,
        "hold_sec": 90 * DAY,
        "note": "x" * 500,
    }
    made = book(api, **longest)
    assert {name: made[name] for name in longest} == longest


RANGE = f"from={START}&to={START + HOUR}"


@pytest.mark.parametrize(
    ("field", "query"),
    [
        *(("from", each) for each in ("to=5", "from=&to=5", "from=-1&to=5", "from=now&to=5", "from=1.5&to=5")),
        *(("to", f"from=5{each}") for each in ("", "&to=", "&to=5", "&to=4", "&to=5&to=6", f"&to={90 * DAY + 6}")),
        *(("prefix", f"{RANGE}&prefix={each}") for each in ("", "%C3%A9", "x" * 129)),
        ("by", f"{RANGE}&by=day"),
    ],
)
def test_a_malformed_look_at_the_capacity_is_refused(api: Api, field: str, query: str) -> None:
    error = assert_error(api.admin("GET", f"/v1/admin/capacity?{query}"), 400, "VALIDATION_ERROR")
    assert list(error["details"]) == [field]


@pytest.mark.parametrize(
    ("field", "query"),
    [
        *(("state", f"state={each}") for each in ("", "booked", "OPEN", "open&state=open")),
        *(("limit", f"limit={each}") for each in ("0", "101", "many")),
        ("name", "name=x"),
    ],
)
def test_a_malformed_listing_is_refused(api: Api, field: str, query: str) -> None:
    error = assert_error(api.admin("GET", f"{PATH}?{query}"), 400, "VALIDATION_ERROR")
    assert list(error["details"]) == [field]


def test_times_in_the_past_are_refused_for_a_change_too(api: Api) -> None:
    made = book(api)
    one = f"{PATH}/{made['reservation_id']}"
    for field in ("starts_at", "ends_at"):
        error = assert_error(api.admin("PATCH", one, json={"version": 1, field: START - 61}), 400, "VALIDATION_ERROR")
        assert list(error["details"]) == [field]
