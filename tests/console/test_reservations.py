"""The pages of reservations: calendar, list, one reservation, and the forms that book, change and cancel."""

from __future__ import annotations

import html
import json
import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
import requests

from tests.api.harness import body_of, make_api, named_token
from tests.api.test_reservations import DAY, ENDS_AT, FULL, HOUR, PATH, STARTS_AT, book, fill
from tests.console.harness import Console, make_console
from tests.fakes import START, make_sandbox

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from werkzeug.test import TestResponse

NEW = "/reservations/new"
_INPUT = re.compile(r"<input[^>]*>|<textarea[^>]*>[^<]*</textarea>")
_ATTRIBUTE = re.compile(r'(\w[\w-]*)="([^"]*)"')


def typed(at: int) -> str:
    """Return a time as a browser sends it."""
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%dT%H:%M:%S}"


FORM = {"name": "Networking 101", "count": "3", "starts": typed(STARTS_AT), "length": "3 h", "lead": "15"}


def form_of(page: str) -> dict[str, str]:
    """Return what a browser would send of a page's form for classes, if nothing more is typed."""
    found: dict[str, str] = {}
    for element in _INPUT.findall(page[page.index("data-moments") :]):
        attributes = dict(_ATTRIBUTE.findall(element))
        text = re.search(r">\s?([^<]*)</textarea>", element)
        value = attributes.get("value", "") if text is None else text[1].strip("\r\n")
        found[attributes["name"]] = html.unescape(value)
    return found


def reservations_of(console: Console) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = body_of(console.api.admin("GET", PATH))["reservations"]
    return found


def page_of(reservation: Mapping[str, Any], part: str = "") -> str:
    return f"/reservations/{reservation['reservation_id']}{part}"


def request_of(page: str) -> str:
    """Return the id of the request that the message of a page names."""
    (found,) = re.findall(r"\(request ([\w-]+)\)", page)
    return str(found)


def send(console: Console, path: str, form: Mapping[str, Any]) -> TestResponse:
    return console.send(path, form, page="/reservations")


@pytest.fixture
def stocked(console: Console) -> Console:
    """Return a console over a pool of ten sandboxes."""
    console.api.store.seed(*(make_sandbox(str(number), name=f"lab-{number}") for number in range(10)))
    return console


@pytest.fixture
def viewer(tmp_path: Path) -> Console:
    """Return a console with ten sandboxes, in which a viewer is signed in."""
    file = tmp_path / "tokens.toml"
    file.write_text(named_token("vera", "of-vera", "viewer"))
    console = make_console(make_api(BROKER_TOKENS_FILE=str(file)))
    console.api.store.seed(*(make_sandbox(str(number), name=f"lab-{number}") for number in range(10)))
    console.sign_in("of-vera")
    return console


# -- the calendar and the list


def test_without_reservations_the_page_says_what_to_do(console: Console) -> None:
    page = console.open("/reservations").text

    assert "Nothing is booked." in page
    assert 'href="/reservations/new"' in page


def test_the_calendar_shows_each_class_and_what_can_be_reserved(stocked: Console) -> None:
    book(stocked.api)

    page = stocked.open("/reservations").text

    assert 'role="group" aria-label="Reservations from' in page
    assert "1 reservation. At most 3 of up to 8 sandboxes are booked at once." in page
    assert "Networking 101: 3</text>" in page
    bars, steps = page[page.index("<caption>") :].split("<caption>How many")
    assert "Networking 101</a>" in bars
    assert re.findall(r'<time datetime="([^"]+)Z"', bars) == [typed(STARTS_AT), typed(ENDS_AT)]
    assert re.findall(r'<td class="number">([^<]+)</td>', bars) == ["3", "\N{EN DASH}"]
    row = steps[steps.index(f'<time datetime="{typed(STARTS_AT)}Z"') :]
    assert re.findall(r'<td class="number">(\d+)</td>', row)[:3] == ["8", "3", "5"]


def test_another_week_is_shown_by_a_link(stocked: Console) -> None:
    book(stocked.api, starts_at=START + 8 * DAY, ends_at=START + 8 * DAY + HOUR)
    this_week = stocked.open("/reservations").text

    next_week = stocked.open(html.unescape(re.findall(r'href="([^"]+)">A week later', this_week)[0])).text

    assert "Networking 101: 3</text>" not in this_week
    assert "Networking 101: 3</text>" in next_week
    assert "From today" in next_week


def test_a_week_that_is_over_shows_its_classes_and_says_that_the_rest_is_not_known(stocked: Console) -> None:
    book(stocked.api)
    stocked.api.clock.advance(10 * DAY)
    fill(stocked.api)
    stocked.sign_in()

    page = stocked.open(f"/reservations?week={datetime.fromtimestamp(START, UTC):%Y-%m-%d}").text

    assert "Networking 101: 3</text>" in page
    assert "This week is over" in page
    assert "The reservations that are drawn as bars" in page
    assert "can be reserved, from each time" not in page


@pytest.mark.parametrize("week", ["", "soon", "0001-01-01", "9999-12-31", "2026-13-01"])
def test_a_week_that_does_not_exist_shows_the_present_one(stocked: Console, week: str) -> None:
    page = stocked.open(f"/reservations?week={week}")

    assert page.status_code == 200
    assert "From today" not in page.text


def test_the_calendar_of_a_prefix_shows_what_shares_its_sandboxes(stocked: Console) -> None:
    stocked.api.store.seed(*(make_sandbox(f"1{number}", name=f"lab-1{number}") for number in range(5)))
    for name, prefix in (("Same", "lab-"), ("Any", ""), ("Part", "lab-1")):
        book(stocked.api, name=name, prefix=prefix, count=1)

    page = stocked.open("/reservations?prefix=lab-2").text

    assert "Same: 1</text>" in page
    assert "Any: 1</text>" in page
    assert "Part: 1</text>" not in page
    assert "named lab-2…" in page


def test_a_cancelled_class_is_in_the_list_but_not_in_the_calendar(stocked: Console) -> None:
    stocked.api.admin("DELETE", f"{PATH}/{book(stocked.api)['reservation_id']}")

    page = stocked.open("/reservations").text

    assert "Networking 101: 3</text>" not in page
    assert 'state-cancelled">cancelled' in page


@pytest.mark.parametrize(
    ("zone", "shown"), [("Asia/Tokyo", "Asia/Tokyo"), ("Europe", "UTC"), ("../etc", "UTC"), ("", "UTC")]
)
def test_days_begin_at_midnight_of_the_reader_s_zone_if_it_is_known(stocked: Console, zone: str, shown: str) -> None:
    stocked.browser.set_cookie("zone", zone)

    page = stocked.open("/reservations").text

    assert f"Days begin at midnight in {shown}." in page


@pytest.mark.parametrize(("later", "pages"), [(0, 3), (1, 2)])
def test_reservations_are_read_page_after_page_as_far_as_the_week_needs(
    stocked: Console, monkeypatch: pytest.MonkeyPatch, later: int, pages: int
) -> None:
    monkeypatch.setattr("broker_api.console.pages.reservations._PAGE", 2)
    for number in range(5):
        starts_at = STARTS_AT + number * 5 * DAY
        book(stocked.api, name=f"Class {number}", count=1, starts_at=starts_at, ends_at=starts_at + HOUR)

    page = stocked.open(f"/reservations?week={datetime.fromtimestamp(START + later * DAY, UTC):%Y-%m-%d}").text

    assert ("Class 0: 1</text>" in page, "Class 1: 1</text>" in page) == (not later, True)
    assert len([each for each in stocked.to_api.sent if "limit=2" in (each.url or "")]) == pages


def test_no_more_pages_are_read_than_the_api_can_have(stocked: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker_api.console.pages.reservations._PAGE", 1)
    monkeypatch.setattr("broker_api.console.pages.reservations._MOST_PAGES", 1)
    for number in range(2):
        book(stocked.api, name=f"Class {number}", starts_at=STARTS_AT + number)

    page = stocked.open("/reservations").text

    assert ("Class 0: 3</text>" in page, "Class 1: 3</text>" in page) == (True, False)


def test_the_page_says_if_not_all_reservations_are_drawn(stocked: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker_api.console.pictures.capacity.MOST_BARS", 1)
    book(stocked.api)
    book(stocked.api)

    assert "Only the first 1 of 2 reservations are drawn." in stocked.open("/reservations").text


def test_the_list_shows_one_state_and_goes_on_page_after_page(
    stocked: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker_api.console.pages.reservations._LISTED", 1)
    for number in range(2):
        book(stocked.api, name=f"Class {number}", starts_at=STARTS_AT + number)

    first = stocked.open("/reservations?state=scheduled").text
    link = html.unescape(re.findall(r'href="([^"]+)">Next page', first)[0])
    second = stocked.open(link).text

    lists = [each.split('data-live="list"')[1] for each in (first, second)]
    assert [(">Class 0</a>" in each, ">Class 1</a>" in each) for each in lists] == [(True, False), (False, True)]
    assert "First page" in second
    assert "No reservation is open." in stocked.open("/reservations?state=open").text


def test_an_unknown_state_shows_all(stocked: Console) -> None:
    book(stocked.api)

    assert "Networking 101</a>" in stocked.open("/reservations?state=painted").text


def test_each_bar_of_the_calendar_is_a_link_to_its_reservation(stocked: Console) -> None:
    made = [book(stocked.api, name=name) for name in ("One", "Two")]
    page = stocked.open("/reservations").text
    bars = re.findall(r'<a href="([^"]+)" class="bar [^"]+">\s*<title>(\w+):', page)
    assert bars == [(page_of(each), each["name"]) for each in sorted(made, key=lambda each: each["reservation_id"])]
    assert 'role="img"' not in page, "a picture with that role hides its links"


def test_names_stay_text_in_picture_and_list(stocked: Console) -> None:
    planted = '"><script>alert(1)</script>'
    made = book(stocked.api, name=planted, track_names=[planted], customer=planted, note=planted)

    for path in ("/reservations", page_of(made), page_of(made, "/change")):
        page = stocked.open(path).text
        assert "<script>alert(1)" not in page
        assert "&lt;script&gt;alert(1)" in page


def test_the_last_known_calendar_is_shown_while_the_api_is_away(stocked: Console) -> None:
    book(stocked.api)
    stocked.open("/reservations")
    stocked.to_api.away = True
    stocked.api.clock.advance(400)

    page = stocked.open("/reservations")

    assert page.status_code == 200
    assert "This is the last known state" in page.text
    assert "Networking 101: 3</text>" in page.text


# -- one reservation


def test_a_reservation_says_what_its_students_must_do(stocked: Console) -> None:
    with_lab, without = book(stocked.api, track_names=["networking-101"], customer="acme"), book(stocked.api)

    page = stocked.open(page_of(with_lab)).text
    assert "X-Instruqt-Track-ID: networking-101" in page
    assert f"X-Reservation-ID: {with_lab['reservation_id']}" in page
    assert "Only tracks of the customer acme can draw." in page
    assert f'<time datetime="{typed(STARTS_AT - 600)}Z"' in page
    page = stocked.open(page_of(without)).text
    assert "No lab is named" in page
    assert "X-Instruqt-Track-ID" not in page


def test_a_reservation_shows_every_field(stocked: Console) -> None:
    made = body_of(stocked.api.admin("POST", PATH, json=FULL), 201)

    page = html.unescape(stocked.open(page_of(made)).text)

    for text in ("lab-…", "networking-102", "acme", "30 min after the start", "Ms. Müller's class", "admin booked it"):
        assert text in page, text
    assert "None yet. They are set aside from" in page


def test_an_open_reservation_shows_its_sandboxes_and_its_events(stocked: Console) -> None:
    made = book(stocked.api, track_names=["networking-101"], prefix="lab-")
    stocked.api.clock.advance(HOUR)
    fill(stocked.api)
    held = stocked.api.allocate("student-1", X_Instruqt_Track_ID="networking-101")

    page = stocked.open(page_of(made)).text

    assert "1 of 3 are drawn, and 2 more are set aside." in page
    assert f'href="/sandboxes/{held["sandbox_id"]}"' in page
    assert page.count("status-reserved") == 2
    assert "student-1" in page
    assert "Networking 101 begins" in page


def test_a_reservation_that_is_short_says_what_it_waits_for(stocked: Console) -> None:
    made = book(stocked.api, count=8, prefix="lab-")
    for number in range(5):
        stocked.api.allocate(f"track-{number}")
    stocked.api.clock.advance(STARTS_AT - 700 - START)
    fill(stocked.api)

    page = stocked.open(page_of(made)).text

    assert "5 of 8 sandboxes are set aside." in page
    assert "It is short by 3." in page


@pytest.mark.parametrize("ends", ["ended", "cancelled"])
def test_a_reservation_that_is_over_offers_nothing_more(stocked: Console, ends: str) -> None:
    made = book(stocked.api)
    if ends == "cancelled":
        stocked.api.admin("DELETE", f"{PATH}/{made['reservation_id']}")
    stocked.api.clock.advance(DAY)
    fill(stocked.api)
    stocked.sign_in()

    page = stocked.open(page_of(made)).text

    assert f"It {'was ' if ends == 'cancelled' else ''}{ends}" in page
    assert "Change</a>" not in page
    assert "What students must do" not in page
    assert "0 of 3 were drawn." in page


def test_a_reservation_is_shown_although_its_events_cannot_be_read(
    stocked: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = book(stocked.api)
    stocked.api.clock.advance(HOUR)
    send_on = stocked.to_api.send

    def send_unless_events(request: requests.PreparedRequest, **options: Any) -> requests.Response:
        if "/events" in (request.url or ""):
            raise requests.ConnectionError("refused")
        return send_on(request, **options)

    monkeypatch.setattr(stocked.to_api, "send", send_unless_events)

    assert "The events cannot be read now." in stocked.open(page_of(made)).text


def test_an_unknown_reservation_is_not_found(console: Console) -> None:
    assert console.open("/reservations/none").status_code == 404


# -- booking


def test_a_class_is_booked_and_its_page_shows_the_id_of_the_request(stocked: Console) -> None:
    answer = send(stocked, NEW, FORM)

    (made,) = reservations_of(stocked)
    assert (answer.status_code, answer.location) == (303, page_of(made))
    assert (made["starts_at"], made["ends_at"], made["lead_sec"], made["hold_sec"]) == (STARTS_AT, ENDS_AT, 900, None)
    page = stocked.open(page_of(made)).text
    assert re.search(r"Networking 101 is booked\. \(request [0-9a-f-]{36}\)", page)


def test_every_field_of_the_form_is_booked(stocked: Console) -> None:
    form = {
        "name": FULL["name"],
        "count": "3",
        "starts": typed(STARTS_AT),
        "ends": typed(ENDS_AT),
        "labs": "networking-101\r\n\r\n networking-102 ",
        "prefix": " lab- ",
        "customer": "acme",
        "lead": "20",
        "hold": "30",
        "note": "Ms. Müller's class",
    }

    send(stocked, NEW, form)

    (made,) = reservations_of(stocked)
    assert {name: made[name] for name in FULL} == FULL


@pytest.mark.parametrize(
    ("length", "seconds"),
    [
        ("3h", 3 * HOUR),
        ("90 min", 5400),
        ("90m", 5400),
        ("1 h 30 min", 5400),
        ("1.5 hours", 5400),
        ("1d 2h", 26 * HOUR),
        ("2 days", 2 * DAY),
    ],
)
def test_a_length_is_read_as_people_write_it(stocked: Console, length: str, seconds: int) -> None:
    send(stocked, NEW, FORM | {"length": length})

    (made,) = reservations_of(stocked)
    assert made["ends_at"] - made["starts_at"] == seconds


@pytest.mark.parametrize(
    ("different", "said"),
    [
        ({"name": " "}, "Give the class a name."),
        ({"name": "Müller"}, "letters without accents"),
        ({"count": ""}, "Say how many sandboxes"),
        ({"count": "many"}, "Not a valid integer"),
        ({"count": "0"}, "Use a number from 1 to 100,000."),
        ({"starts": ""}, "Say when the class starts."),
        ({"starts": "tomorrow"}, "Give a date and a time"),
        ({"starts": typed(START - DAY)}, "Must not be in the past."),
        ({"length": ""}, "Say how long the class lasts, or when it ends."),
        ({"length": "3"}, "Give a length with its unit"),
        ({"length": "0 h"}, "Give a length with its unit"),
        ({"ends": typed(STARTS_AT + 60)}, "not both."),
        ({"length": "", "ends": typed(STARTS_AT - 60)}, "Must be later than the start."),
        ({"lead": "5"}, "Use a number from 10 to 1440."),
        ({"hold": "-1"}, "Use a number from 0 to"),
        ({"labs": "a\na"}, "Must have each name once."),
        ({"note": "x" * 501}, "Use at most 500 characters."),
    ],
)
def test_what_is_wrong_is_said_at_its_field_and_nothing_typed_is_lost(
    stocked: Console, different: dict[str, str], said: str
) -> None:
    form = FORM | {"customer": "acme", "key": "0" * 36} | different

    answer = send(stocked, NEW, form)

    assert answer.status_code == 400
    assert said in html.unescape(answer.text)
    assert 'aria-invalid="true"' in answer.text
    kept = form_of(answer.text)
    assert {name: kept[name] for name in form if name != "name"} == {
        name: value for name, value in form.items() if name != "name"
    }
    assert reservations_of(stocked) == []


def test_what_does_not_fit_says_how_many_could_be_had_and_nothing_typed_is_lost(stocked: Console) -> None:
    answer = send(stocked, NEW, FORM | {"count": "9", "note": "for Ann"})

    assert answer.status_code == 409
    assert "8 sandboxes could be had" in answer.text
    assert "(request " in answer.text
    assert form_of(answer.text)["note"] == "for Ann"
    assert reservations_of(stocked) == []


def test_a_double_click_books_once(stocked: Console) -> None:
    form = form_of(stocked.open(NEW).text) | FORM

    first = send(stocked, NEW, form)
    sent_as = request_of(stocked.open(first.location).text)
    second = send(stocked, NEW, form)

    assert first.location == second.location
    assert len(reservations_of(stocked)) == 1
    assert request_of(stocked.open(second.location).text) == sent_as, "the request that booked it"


def test_each_form_books_a_class_of_its_own(stocked: Console) -> None:
    for _ in range(2):
        send(stocked, NEW, form_of(stocked.open(NEW).text) | FORM)

    assert len(reservations_of(stocked)) == 2


def test_a_form_that_has_booked_and_was_changed_says_so_before_it_books_again(stocked: Console) -> None:
    form = form_of(stocked.open(NEW).text) | FORM
    send(stocked, NEW, form)

    answer = send(stocked, NEW, form | {"count": "2"})

    assert answer.status_code == 422
    assert "This form has booked a class already" in answer.text
    assert len(reservations_of(stocked)) == 1
    assert send(stocked, NEW, form_of(answer.text)).status_code == 303
    assert sorted(each["count"] for each in reservations_of(stocked)) == [2, 3]


def test_a_key_that_is_none_is_replaced(stocked: Console) -> None:
    assert send(stocked, NEW, FORM | {"key": "caf\xe9"}).status_code == 303


def test_while_the_api_is_away_nothing_typed_is_lost_and_the_same_form_books_later(stocked: Console) -> None:
    form = form_of(stocked.open(NEW).text) | FORM
    token = re.findall(r'name="csrf_token" value="([^"]+)"', stocked.open(NEW).text)[0]
    stocked.to_api.away = True

    answer = stocked.browser.post(NEW, data=form | {"csrf_token": token})

    assert answer.status_code == 503
    assert "it is still done only once" in answer.text
    stocked.to_api.away = False
    assert send(stocked, NEW, form_of(answer.text)).status_code == 303


def test_a_refusal_about_no_field_is_said_above_the_form(stocked: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError

    monkeypatch.setattr("broker_common.core.bookings.Bookings.book", fail)

    answer = send(stocked, NEW, FORM)

    assert answer.status_code == 500
    assert "(request " in answer.text
    assert form_of(answer.text)["name"] == "Networking 101"


# -- the booking check


def test_the_check_stands_beside_the_button_and_the_rest_of_the_form_is_folded(stocked: Console) -> None:
    page = stocked.open(NEW).text
    decide = page[page.index('class="decide') :]
    assert decide.index(">Book<") < decide.index('aria-live="polite" data-found')
    assert "<fieldset" not in decide
    assert re.search(r'<details class="mb-3">\s*<summary class="h5">More', page)


@pytest.mark.parametrize("different", [{"prefix": "lab-"}, {"lead": "20"}, {"hold": "x"}])
def test_what_is_more_is_unfolded_if_it_says_something(stocked: Console, different: dict[str, str]) -> None:
    assert '<details class="mb-3" open>' in send(stocked, NEW, FORM | different | {"check": "1"}).text


@pytest.mark.parametrize(
    ("count", "said"), [("8", "It fits:</strong> 8 could be had"), ("9", "It does not fit:</strong> 8 could")]
)
def test_the_check_says_what_booking_would_say_and_books_nothing(stocked: Console, count: str, said: str) -> None:
    answer = send(stocked, "/reservations/check", FORM | {"name": "", "count": count})

    assert answer.status_code == 200
    assert said in answer.text
    assert f'<time datetime="{typed(STARTS_AT)}Z"' in answer.text
    assert "<html" not in answer.text
    assert reservations_of(stocked) == []


def test_what_does_not_fit_leads_to_its_week_of_the_calendar_and_keeps_the_form(stocked: Console) -> None:
    later = FORM | {"count": "9", "starts": typed(START + 8 * DAY), "prefix": "lab-"}

    answer = send(stocked, "/reservations/check", later)

    (link,) = re.findall(r'href="([^"]+)" target="_blank"', answer.text)
    assert (
        html.unescape(link) == f"/reservations?week={datetime.fromtimestamp(START + 8 * DAY, UTC):%Y-%m-%d}&prefix=lab-"
    )


@pytest.mark.parametrize("missing", ["count", "starts", "length"])
def test_the_check_waits_until_enough_is_typed(stocked: Console, missing: str) -> None:
    assert "Then you see here whether it fits." in send(stocked, "/reservations/check", FORM | {missing: ""}).text


@pytest.mark.parametrize(
    ("different", "said"),
    [({"count": "many"}, "Not a valid integer"), ({"starts": typed(START - DAY)}, "Must not be in the past.")],
)
def test_the_check_says_why_it_cannot_be_made(stocked: Console, different: dict[str, str], said: str) -> None:
    assert said in send(stocked, "/reservations/check", FORM | different).text


def test_the_check_says_that_the_api_does_not_answer(stocked: Console) -> None:
    token = re.findall(r'name="csrf_token" value="([^"]+)"', stocked.open(NEW).text)[0]
    stocked.to_api.away = True

    answer = stocked.browser.post("/reservations/check", data=FORM | {"csrf_token": token})
    assert "so it is not known whether it fits. (request " in answer.text
    assert "only once" not in answer.text

    assert "The broker's API does not answer" in html.unescape(answer.text)


def test_without_a_script_a_button_shows_the_same_answer_in_the_form(stocked: Console) -> None:
    form = form_of(stocked.open(NEW).text) | FORM | {"name": ""}

    answer = send(stocked, NEW, form | {"check": "1"})

    assert answer.status_code == 200
    assert "It fits:</strong> 8 could be had" in answer.text
    assert "Give the class a name" not in answer.text
    assert form_of(answer.text)["key"] == form["key"]
    assert reservations_of(stocked) == []


def test_without_a_script_times_are_in_utc_and_the_form_says_so(stocked: Console) -> None:
    page = stocked.open(NEW).text

    assert page.count(">in UTC</span>") == 2


# -- changing


def test_the_form_shows_what_is_booked_and_a_change_sends_only_what_changed(stocked: Console) -> None:
    made = body_of(stocked.api.admin("POST", PATH, json=FULL), 201)
    form = form_of(stocked.open(page_of(made, "/change")).text)
    assert (form["starts"], form["lead"], form["hold"]) == (typed(STARTS_AT).removesuffix(":00"), "20", "30")

    answer = send(stocked, page_of(made, "/change"), form | {"count": "5"})

    assert (answer.status_code, answer.location) == (303, page_of(made))
    (now,) = reservations_of(stocked)
    assert now == made | {"count": 5, "version": 2, "short_by": 5}
    sent = [each for each in stocked.to_api.sent if each.method == "PATCH"]
    assert [json.loads(each.body or b"") for each in sent] == [{"count": 5, "version": 1}]
    assert "Networking 101 was changed. (request " in stocked.open(page_of(made)).text


@pytest.mark.parametrize(
    ("count", "said"), [("8", "It fits:</strong> 8 could be had"), ("9", "It does not fit:</strong> 8 could")]
)
def test_the_form_that_changes_a_class_is_checked_without_what_the_class_takes_now(
    stocked: Console, count: str, said: str
) -> None:
    made = book(stocked.api, count=5)
    form = form_of(stocked.open(page_of(made, "/change")).text) | {"count": count}

    assert said in send(stocked, "/reservations/check", form).text
    by_button = send(stocked, page_of(made, "/change"), form | {"check": "1"})
    assert (by_button.status_code, said in by_button.text) == (200, True)
    assert form_of(by_button.text)["count"] == count
    assert reservations_of(stocked) == [made]


def test_a_check_is_not_made_just_after_the_api_did_not_answer(stocked: Console) -> None:
    token = re.findall(r'name="csrf_token" value="([^"]+)"', stocked.open(NEW).text)[0]
    form = FORM | {"csrf_token": token}
    stocked.to_api.away = True
    stocked.browser.post("/reservations/check", data=form)
    stocked.to_api.away = False
    stocked.to_api.sent.clear()

    answer = stocked.browser.post("/reservations/check", data=form)

    assert "The broker's API does not answer" in html.unescape(answer.get_data(as_text=True))
    assert stocked.to_api.sent == []


def test_a_length_replaces_the_end_that_was_booked(stocked: Console) -> None:
    made = book(stocked.api)
    form = form_of(stocked.open(page_of(made, "/change")).text)

    send(stocked, page_of(made, "/change"), form | {"length": "1 h"})

    assert reservations_of(stocked)[0]["ends_at"] == STARTS_AT + HOUR


def test_odd_seconds_of_a_reservation_survive_a_change(stocked: Console) -> None:
    odd = {"starts_at": STARTS_AT + 7, "ends_at": ENDS_AT + 11, "lead_sec": 650, "hold_sec": 61}
    made = book(stocked.api, **odd)
    form = form_of(stocked.open(page_of(made, "/change")).text)

    send(stocked, page_of(made, "/change"), form | {"name": "Another name"})

    assert {name: reservations_of(stocked)[0][name] for name in ("name", *odd)} == {"name": "Another name"} | odd


def test_a_form_without_changes_changes_nothing_and_says_so(stocked: Console) -> None:
    made = book(stocked.api)

    answer = send(stocked, page_of(made, "/change"), form_of(stocked.open(page_of(made, "/change")).text))

    assert answer.status_code == 303
    assert "Nothing was changed" in stocked.open(page_of(made)).text
    assert reservations_of(stocked) == [made]


def test_what_somebody_else_changed_meanwhile_is_said_and_what_was_typed_is_kept(stocked: Console) -> None:
    made = book(stocked.api)
    form = form_of(stocked.open(page_of(made, "/change")).text) | {"count": "5", "note": "for Ann"}
    body = {"version": 1, "count": 4, "track_names": ["intro"], "ends_at": ENDS_AT + HOUR}
    stocked.api.admin("PATCH", f"{PATH}/{made['reservation_id']}", json=body)

    answer = send(stocked, page_of(made, "/change"), form)

    assert answer.status_code == 409
    assert "How many sandboxes was 3, and is now 4. You typed 5, which is in the form." in answer.text
    assert "Labs of the class was nothing, and is now intro. You did not change it" in answer.text
    assert f'<time datetime="{typed(ENDS_AT + HOUR)}Z"' in answer.text
    again = form_of(answer.text)
    assert (again["count"], again["note"], again["labs"], again["version"]) == ("5", "for Ann", "intro", "2")
    assert send(stocked, page_of(made, "/change"), again).status_code == 303
    (now,) = reservations_of(stocked)
    assert (now["count"], now["note"], now["track_names"]) == (5, "for Ann", ["intro"])
    assert now["ends_at"] == ENDS_AT + HOUR


def test_a_change_that_was_saved_but_not_answered_is_not_called_somebody_else_s(stocked: Console) -> None:
    made = book(stocked.api)
    form = form_of(stocked.open(page_of(made, "/change")).text) | {"count": "4"}
    assert send(stocked, page_of(made, "/change"), form).status_code == 303
    sent_as = request_of(stocked.open(page_of(made)).text)

    again = send(stocked, page_of(made, "/change"), form)

    assert (again.status_code, again.location) == (303, page_of(made))
    page = stocked.open(page_of(made)).text
    assert "it is saved already" in page
    assert request_of(page) == sent_as, "the request that saved it"


def test_what_somebody_else_saved_alike_names_the_request_that_found_it(stocked: Console) -> None:
    made = book(stocked.api)
    form = form_of(stocked.open(page_of(made, "/change")).text) | {"count": "4"}
    stocked.api.admin("PATCH", f"{PATH}/{made['reservation_id']}", json={"version": 1, "count": 4})

    for _ in range(2):
        assert send(stocked, page_of(made, "/change"), form).status_code == 303
        sent = [str(each.headers["X-Request-ID"]) for each in stocked.to_api.sent if each.method == "PATCH"]
        assert request_of(stocked.open(page_of(made)).text) == sent[-1], "a refused one saved nothing"
    assert [each["version"] for each in reservations_of(stocked)] == [2]


def test_what_was_typed_is_kept_also_if_the_change_of_somebody_else_cannot_be_read(stocked: Console) -> None:
    made = book(stocked.api)
    form = form_of(stocked.open(page_of(made, "/change")).text) | {"count": "5"}
    stocked.api.admin("PATCH", f"{PATH}/{made['reservation_id']}", json={"version": 1, "count": 4})
    send_now = stocked.to_api.send

    def refuse_then_leave(request: Any, **options: Any) -> Any:
        answer = send_now(request, **options)
        stocked.to_api.away = request.method == "PATCH"
        return answer

    stocked.to_api.send = refuse_then_leave  # type: ignore[method-assign] # a hook of this test
    answer = send(stocked, page_of(made, "/change"), form)

    assert answer.status_code == 409
    assert "cannot be read now" in answer.text
    assert form_of(answer.text)["count"] == "5"


def test_a_change_that_does_not_fit_says_how_many_could_be_had(stocked: Console) -> None:
    made = book(stocked.api)
    form = form_of(stocked.open(page_of(made, "/change")).text)

    answer = send(stocked, page_of(made, "/change"), form | {"count": "9"})

    assert answer.status_code == 409
    assert "8 sandboxes could be had" in answer.text
    assert form_of(answer.text)["count"] == "9"


def test_a_change_of_what_is_over_is_refused_in_a_sentence(stocked: Console) -> None:
    made = book(stocked.api)
    form = form_of(stocked.open(page_of(made, "/change")).text)
    stocked.api.admin("DELETE", f"{PATH}/{made['reservation_id']}")

    answer = send(stocked, page_of(made, "/change"), form | {"count": "2"})

    assert answer.status_code == 409
    assert "is over: cancelled" in answer.text


def test_a_malformed_change_is_said_at_its_field(stocked: Console) -> None:
    made = book(stocked.api)
    form = form_of(stocked.open(page_of(made, "/change")).text)

    answer = send(stocked, page_of(made, "/change"), form | {"count": "0"})

    assert answer.status_code == 400
    assert "Use a number from 1 to" in answer.text
    assert form_of(answer.text)["version"] == "1"


def test_what_is_wrong_beside_the_fields_is_said_above_the_form(stocked: Console) -> None:
    made = book(stocked.api)
    form = form_of(stocked.open(page_of(made, "/change")).text)

    answer = send(stocked, page_of(made, "/change"), form | {"count": "2", "version": "-1"})

    assert answer.status_code == 400
    assert "version: " in answer.text


# -- cancelling


@pytest.mark.parametrize("by", ["name", "reservation_id"])
def test_a_reservation_is_cancelled_when_its_name_or_id_is_typed(stocked: Console, by: str) -> None:
    made = book(stocked.api)

    answer = send(stocked, page_of(made, "/cancel"), {"name": made["name"], "typed": f" {made[by]} "})

    assert (answer.status_code, answer.location) == (303, page_of(made))
    assert reservations_of(stocked)[0]["state"] == "cancelled"
    assert "Networking 101 is cancelled. None of it was drawn. (request " in stocked.open(page_of(made)).text


def test_a_cancel_says_how_many_were_drawn(stocked: Console) -> None:
    made = book(stocked.api, track_names=["intro"])
    stocked.api.clock.advance(HOUR)
    fill(stocked.api)
    stocked.api.allocate("student-1", X_Instruqt_Track_ID="intro")
    assert (
        "1 of its sandboxes were drawn: their tracks keep them. 2 that are set aside"
        in stocked.open(page_of(made)).text
    )

    send(stocked, page_of(made, "/cancel"), {"name": made["name"], "typed": made["name"]})

    assert "1 of its sandboxes were drawn, and stay with their tracks." in stocked.open(page_of(made)).text


@pytest.mark.parametrize(
    "form", [{"typed": ""}, {"name": "", "typed": ""}, {"name": "Networking 101", "typed": "Class"}]
)
def test_nothing_is_cancelled_unless_the_name_is_typed(stocked: Console, form: dict[str, str]) -> None:
    made = book(stocked.api)

    send(stocked, page_of(made, "/cancel"), form)

    assert reservations_of(stocked) == [made]
    assert "Nothing was done" in stocked.open(page_of(made)).text


# -- roles


def test_a_viewer_sees_everything_and_is_offered_no_act(viewer: Console) -> None:
    made = book(viewer.api)

    listed, one = viewer.open("/reservations").text, viewer.open(page_of(made)).text

    assert "Networking 101" in listed
    assert "Book a class" not in listed
    assert "/change" not in one
    assert "/cancel" not in one


def test_a_viewer_is_refused_every_act(viewer: Console) -> None:
    made = book(viewer.api)

    for path in (NEW, page_of(made, "/change")):
        assert viewer.open(path).status_code == 403
        assert send(viewer, path, FORM).status_code == 403
    assert send(viewer, page_of(made, "/cancel"), {"typed": made["reservation_id"]}).status_code == 403
    assert send(viewer, "/reservations/check", FORM).status_code == 403
    assert reservations_of(viewer) == [made]


def test_a_viewer_is_told_who_books(viewer: Console) -> None:
    assert "An operator books classes." in viewer.open("/reservations").text
