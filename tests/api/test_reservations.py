"""The calls that book sandboxes for a class, and the header by which a track draws one."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING, Any

import pytest

from broker_api.runtime import runtime_of
from broker_common.core.principals import Actor
from broker_common.core.reserving import Reserver
from tests.api.harness import Api, assert_error, body_of, make_api, named_token
from tests.fakes import START, make_sandbox

if TYPE_CHECKING:
    from pathlib import Path

    from werkzeug.test import TestResponse

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
    return make_stocked_api()


def make_stocked_api() -> Api:
    """Return an API whose pool has ten sandboxes."""
    made = make_api()
    made.store.seed(*(make_sandbox(str(number), name=f"lab-{number}") for number in range(10)))
    return made


@pytest.fixture(scope="module")
def api_with_one() -> tuple[Api, dict[str, Any]]:
    """Return an API with one reservation, and the reservation, for tests whose calls change nothing."""
    api = make_stocked_api()
    return api, book(api)


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


def test_a_booking_is_repeated_by_its_key_even_after_the_class_has_begun(api: Api) -> None:
    key = {"Idempotency-Key": "monday"}
    made = body_of(api.admin("POST", PATH, json=A_CLASS, headers=key), 201)
    api.clock.advance(2 * HOUR)
    again = body_of(api.admin("POST", PATH, json=A_CLASS, headers=key), 200)
    assert (again["reservation_id"], again["state"]) == (made["reservation_id"], "open")


def test_without_a_key_each_call_books_another(api: Api) -> None:
    assert book(api)["reservation_id"] != book(api)["reservation_id"]


@pytest.mark.parametrize("key", ["", "x" * 129, "caf\xe9"])
def test_a_malformed_key_is_refused(shared_api: Api, key: str) -> None:
    error = assert_error(
        shared_api.admin("POST", PATH, json=A_CLASS, headers={"Idempotency-Key": key}), 400, "VALIDATION_ERROR"
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
    nothing: dict[str, Any] = {"prefix": "", "track_names": [], "customer": None, "hold_sec": None, "note": None}
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
def test_an_unknown_reservation_answers_404_and_an_impossible_id_400(shared_api: Api, method: str) -> None:
    options: dict[str, Any] = {"json": {"version": 1, "count": 1}} if method == "PATCH" else {}
    assert_error(shared_api.admin(method, f"{PATH}/none", **options), 404, "RESERVATION_NOT_FOUND")
    for reservation_id in ("x" * 129, "%C3%A9", "a%0Ab", "%00"):
        error = assert_error(shared_api.admin(method, f"{PATH}/{reservation_id}", **options), 400, "VALIDATION_ERROR")
        assert list(error["details"]) == ["reservation_id"]


NO_NUMBERS: list[Any] = [None, "1", 1.5, True, [1], {}]
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
def test_a_malformed_booking_is_refused_and_the_field_named(
    shared_api: Api, path: str, field: str, value: object
) -> None:
    error = assert_error(shared_api.admin("POST", path, json=A_CLASS | {field: value}), 400, "VALIDATION_ERROR")
    assert list(error["details"]) == [field]
    assert error["message"].startswith(f"{field}: ")
    assert body_of(shared_api.admin("GET", PATH))["count"] == 0


@pytest.mark.parametrize("field", A_CLASS)
def test_a_booking_without_what_it_needs_is_refused_and_the_field_named(shared_api: Api, field: str) -> None:
    body = {name: value for name, value in A_CLASS.items() if name != field}
    error = assert_error(shared_api.admin("POST", PATH, json=body), 400, "VALIDATION_ERROR")
    assert list(error["details"]) == [field]


@pytest.mark.parametrize(
    ("field", "value"), [each for each in MALFORMED if each[0] != "version" and each != ("ends_at", STARTS_AT - 1)]
)
def test_a_malformed_change_is_refused_and_the_field_named(
    api_with_one: tuple[Api, dict[str, Any]], field: str, value: object
) -> None:
    api, made = api_with_one
    # Without its start beside it, the end is checked against the stored one.
    times = {"starts_at": STARTS_AT} if field == "ends_at" else {}
    answer = api.admin("PATCH", f"{PATH}/{made['reservation_id']}", json={"version": 1, **times, field: value})
    error = assert_error(answer, 400, "VALIDATION_ERROR")
    assert list(error["details"]) == [field]
    assert body_of(api.admin("GET", f"{PATH}/{made['reservation_id']}")) == made


@pytest.mark.parametrize("body", [{"count": 2}, *({"count": 2, "version": each} for each in (*NO_NUMBERS, -1, 10**30))])
def test_a_change_needs_a_version(api_with_one: tuple[Api, dict[str, Any]], body: dict[str, Any]) -> None:
    api, made = api_with_one
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
def test_a_malformed_look_at_the_capacity_is_refused(shared_api: Api, field: str, query: str) -> None:
    error = assert_error(shared_api.admin("GET", f"/v1/admin/capacity?{query}"), 400, "VALIDATION_ERROR")
    assert list(error["details"]) == [field]


@pytest.mark.parametrize(
    ("field", "query"),
    [
        *(("state", f"state={each}") for each in ("", "booked", "OPEN", "open&state=open")),
        *(("limit", f"limit={each}") for each in ("0", "101", "many")),
        ("name", "name=x"),
    ],
)
def test_a_malformed_listing_is_refused(shared_api: Api, field: str, query: str) -> None:
    error = assert_error(shared_api.admin("GET", f"{PATH}?{query}"), 400, "VALIDATION_ERROR")
    assert list(error["details"]) == [field]


def test_times_in_the_past_are_refused_for_a_change_too(api: Api) -> None:
    made = book(api)
    one = f"{PATH}/{made['reservation_id']}"
    for field in ("starts_at", "ends_at"):
        error = assert_error(api.admin("PATCH", one, json={"version": 1, field: START - 61}), 400, "VALIDATION_ERROR")
        assert list(error["details"]) == [field]


# -- tracks that draw


def fill(api: Api) -> None:
    """Let the job run that sets sandboxes aside and ends reservations, and every process read what it did."""
    services = runtime_of(api.app).services
    Reserver(
        store=services.store,
        guard=services.guard,
        recorder=services.recorder,
        clock=api.clock,
        rng=Random(3),
        threads=1,
    ).run(by=Actor(principal="job:reserve"))
    api.clock.advance(5)


def opened(api: Api, **different: Any) -> dict[str, Any]:
    """Return a reservation that is open and filled."""
    made = book(api, **different)
    api.clock.advance(STARTS_AT - 600 - START)
    fill(api)
    found = body_of(api.admin("GET", f"{PATH}/{made['reservation_id']}"))
    assert (found["state"], found["set_aside"], found["short_by"]) == ("open", made["count"], 0)
    return found


def reservation_of(api: Api, sandbox_id: str) -> str | None:
    (found,) = [each for each in api.store.dump()[0].values() if each.sandbox_id == sandbox_id]
    return found.lease.reservation_id if found.lease else found.reservation_id


def test_a_track_draws_by_naming_the_reservation_or_by_its_lab(api: Api) -> None:
    reservation_id = opened(api, track_names=["networking-101"])["reservation_id"]
    for track_id, headers in (
        ("by-header", {"X-Reservation-ID": reservation_id}),
        ("by-lab", {"X-Instruqt-Track-ID": "networking-101"}),
        ("by-both", {"X-Reservation-ID": f" {reservation_id} ", "X-Instruqt-Track-ID": "another-lab"}),
    ):
        assert reservation_of(api, api.allocate(track_id, **headers)["sandbox_id"]) == reservation_id
    found = body_of(api.admin("GET", f"{PATH}/{reservation_id}"))
    assert (found["set_aside"], found["drawn"], found["short_by"]) == (0, 3, 0)


def test_strangers_never_draw_and_a_class_that_is_used_up_goes_on_as_any_other(api: Api) -> None:
    reservation_id = opened(api, count=8, track_names=["networking-101"])["reservation_id"]
    strangers = [api.allocate(f"stranger-{number}")["sandbox_id"] for number in range(2)]
    assert {reservation_of(api, each) for each in strangers} == {None}
    assert_error(api.track("POST", "/v1/allocate", "stranger-3"), 409, "NO_SANDBOXES_AVAILABLE")
    lab = {"X-Instruqt-Track-ID": "networking-101"}
    drawn = [api.allocate(f"student-{number}", **lab)["sandbox_id"] for number in range(8)]
    assert {reservation_of(api, each) for each in drawn} == {reservation_id}
    assert_error(api.track("POST", "/v1/allocate", "student-9", headers=lab), 409, "NO_SANDBOXES_AVAILABLE")


def test_a_cancel_gives_back_what_is_set_aside_at_once_and_tracks_keep_theirs(api: Api) -> None:
    reservation_id = opened(api, count=8)["reservation_id"]
    held = api.allocate("student", **{"X-Reservation-ID": reservation_id})
    cancelled = body_of(api.admin("DELETE", f"{PATH}/{reservation_id}"), 200)
    assert (cancelled["state"], cancelled["set_aside"], cancelled["drawn"]) == ("cancelled", 0, 1)
    assert body_of(api.admin("GET", "/v1/admin/stats"))["available"] == 9
    assert body_of(api.track("GET", f"/v1/sandboxes/{held['sandbox_id']}", "student"))["status"] == "allocated"


def test_an_unknown_reservation_in_the_header_answers_404(api: Api) -> None:
    for named in ("none", "x" * 128):
        answer = api.track("POST", "/v1/allocate", headers={"X-Reservation-ID": named})
        assert_error(answer, 404, "RESERVATION_NOT_FOUND")
    assert api.store.dump()[1] == {}


@pytest.mark.parametrize(
    ("moment", "state"),
    [(START, "scheduled"), (STARTS_AT - 601, "filling"), (ENDS_AT, "ended"), (ENDS_AT + DAY, "ended")],
)
def test_a_reservation_outside_its_time_answers_409_and_when_it_opens(api: Api, moment: int, state: str) -> None:
    made = book(api)
    api.clock.advance(moment - START)
    answer = api.track("POST", "/v1/allocate", headers={"X-Reservation-ID": made["reservation_id"]})
    error = assert_error(answer, 409, "RESERVATION_NOT_OPEN")
    assert error["details"] == {"opens_at": STARTS_AT - 600, "state": state}


def test_what_a_track_holds_is_answered_with_any_reservation_named(api: Api) -> None:
    held = api.allocate()
    answer = api.track("POST", "/v1/allocate", headers={"X-Reservation-ID": "none"})
    assert (body_of(answer, 200), answer.headers["Idempotent-Replayed"]) == (held, "true")


def test_another_customer_s_reservation_is_as_one_that_does_not_exist(tmp_path: Path) -> None:
    file = tmp_path / "tokens.toml"
    file.write_text(
        named_token("acme", "of-acme", "track", more='customer = "acme"')
        + named_token("other", "of-other", "track", more='customer = "other"')
    )
    api = make_api(BROKER_TOKENS_FILE=str(file))
    api.store.seed(*(make_sandbox(str(number)) for number in range(10)))
    reservation_id = opened(api, customer="acme", track_names=["networking-101"])["reservation_id"]

    def allocate(token: str, **headers: str) -> TestResponse:
        return api.call(
            "POST",
            "/v1/allocate",
            headers={"Authorization": f"Bearer {token}", "X-Track-ID": token, **headers},
        )

    named = {"X-Reservation-ID": reservation_id}
    assert_error(allocate("of-other", **named), 404, "RESERVATION_NOT_FOUND")
    stranger = body_of(allocate("of-other", **{"X-Instruqt-Track-ID": "networking-101"}), 201)
    assert reservation_of(api, stranger["sandbox_id"]) is None
    student = body_of(allocate("of-acme", **named), 201)
    assert reservation_of(api, student["sandbox_id"]) == reservation_id
