"""The list of sandboxes: filters, order, pages, CSV, and acts on many at once."""

from __future__ import annotations

import csv
import io
import itertools
import re
from html import unescape
from typing import TYPE_CHECKING, Any

import pytest
import requests

from broker_api.bounds import CONSOLE_ANSWER_SEC
from broker_api.console import many_calls
from broker_common.core.principals import Role
from broker_common.core.sandbox import Status
from tests.api.harness import body_of, make_api, named_token, refusing
from tests.console.harness import Console, make_console
from tests.fakes import SPOILED, START, make_sandbox

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from werkzeug.test import TestResponse

    from broker_common.core.sandbox import Sandbox

EVIL = "\"><script>alert(1)</script><b a='"
_ROW = re.compile(r'<th scope="row"><a href="/sandboxes/([^"]+)">')


def text_of(page: str) -> str:
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", page)).split())


def listed(console: Console, query: str = "") -> list[str]:
    """Return the ids that a list shows, in its order."""
    page = console.open(f"/sandboxes{query}")
    assert page.status_code == 200, page.text
    return _ROW.findall(table_of(page.text))


def table_of(page: str) -> str:
    return page[page.index('data-live="sandboxes"') :]


def address_of(page: str, text: str) -> str | None:
    """Return where the link `text` leads."""
    found = re.search(rf'href="([^"]+)"[^>]*>{text}', page)
    return unescape(found.group(1)) if found else None


def chosen_in(page: str) -> set[str]:
    return set(re.findall(r'name="chosen" value="([^"]+)"[^>]* checked', page))


def failed(sandbox_id: str, **more: Any) -> Sandbox:
    return make_sandbox(sandbox_id, status=Status.DELETION_FAILED, dirty=True, deletion_last_error="HTTP 422", **more)


def held(console: Console, count: int, **headers: str) -> list[dict[str, Any]]:
    """Let `track-0` hold sandbox `0`, and so on, and return what they were told."""
    console.api.store.seed(*(make_sandbox(str(number)) for number in range(count)))
    return [
        console.api.allocate(f"track-{number}", X_Sandbox_Name_Prefix=f"lab-{number}", **headers)
        for number in range(count)
    ]


def many(console: Console, act: str, *leases: dict[str, Any], query: str = "", **form: Any) -> TestResponse:
    """Send the form for many sandboxes, with the leases that the page showed."""
    more = {f"lease-{each['sandbox_id']}": each["lease_id"] for each in leases if "lease_id" in each}
    ends = {f"ends-{each['sandbox_id']}": str(each["expires_at"]) for each in leases if "expires_at" in each}
    ids = [each["sandbox_id"] for each in leases]
    return console.send(f"/sandboxes{query}", {"act": act, "chosen": ids} | more | ends | form, page="/sandboxes")


def statuses(console: Console) -> dict[str, str]:
    return {name: sandbox.status.value for name, sandbox in console.api.store.dump()[0].items()}


@pytest.fixture
def operator(tmp_path: Path) -> Console:
    return signed_in(Role.OPERATOR, tmp_path)


def signed_in(role: Role, tmp_path: Path) -> Console:
    file = tmp_path / "tokens.toml"
    file.write_text(named_token("ada", "token-a", role))
    console = make_console(make_api(BROKER_TOKENS_FILE=str(file)))
    console.sign_in("token-a")
    return console


# -- finding


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("", {"0", "1", "2", "f"}),
        ("?status=deletion_failed", {"f"}),
        ("?status=&name=&track_name=&track_id=", {"0", "1", "2", "f"}),
        ("?name=LAB-1", {"1"}),
        ("?track_name=intro", {"0", "1", "2"}),
        ("?track_id=track-1", {"1"}),
        ("?track_name=intro&status=allocated&name=2", {"2"}),
        ("?name=nothing", set()),
    ],
)
def test_the_list_is_filtered_by_status_name_lab_and_track(console: Console, query: str, found: set[str]) -> None:
    held(console, 3, X_Instruqt_Track_ID="intro")
    console.api.store.seed(failed("f"))
    assert set(listed(console, query)) == found


def test_the_form_of_filters_keeps_what_was_asked(console: Console) -> None:
    page = console.open("/sandboxes?status=stale&name=lab&track_name=intro&track_id=t-1&sort=-name").text
    assert '<option value="stale" selected>' in page
    for field, value in (("name", "lab"), ("track_name", "intro"), ("track_id", "t-1"), ("sort", "-name")):
        assert re.search(rf'name="{field}" value="{value}"', page)
    assert "No sandbox fits" in page


def test_an_empty_pool_says_what_to_do(console: Console) -> None:
    page = console.open("/sandboxes").text
    assert "The pool is empty" in page
    assert 'id="bulk"' not in page


def test_a_click_on_a_columns_head_sorts_and_a_second_one_turns_the_order(console: Console) -> None:
    console.api.store.seed(*(make_sandbox(each, name=f"n-{each}") for each in "bca"))
    up = address_of(table_of(console.open("/sandboxes").text), "Sandbox")
    assert up == "/sandboxes?sort=name"
    page = console.open(up).text
    assert re.search(r'<th scope="col" aria-sort="ascending"><a href="[^"]*">Sandbox ', page)
    assert page.count("aria-sort") == 1
    assert listed(console, "?sort=name") == ["a", "b", "c"]
    down = address_of(table_of(page), "Sandbox ")
    assert down == "/sandboxes?sort=-name"
    assert re.search(r'aria-sort="descending"', console.open(down).text)
    assert listed(console, "?sort=-name") == ["c", "b", "a"]


def test_the_most_failed_tries_come_first(console: Console) -> None:
    console.api.store.seed(failed("a", deletion_retry_count=1), failed("b", deletion_retry_count=8))
    link = address_of(console.open("/sandboxes?status=deletion_failed").text, "Failed tries")
    assert link == "/sandboxes?status=deletion_failed&sort=-deletion_retry_count"
    assert listed(console, link.removeprefix("/sandboxes")) == ["b", "a"]


@pytest.mark.parametrize("query", ["", "?sort=name", "?status=available", "?name=lab&sort=-updated_at"])
def test_the_list_is_read_page_by_page_and_back_to_the_first(console: Console, query: str) -> None:
    console.api.store.seed(*(make_sandbox(str(number)) for number in range(120)))
    found: list[str] = []
    link: str | None = f"/sandboxes{query}"
    while link is not None:
        found += listed(console, link.removeprefix("/sandboxes"))
        page = console.open(link).text
        link = address_of(page, "Next page")
    assert sorted(found) == sorted(str(number) for number in range(120))
    assert address_of(page, "First page") == f"/sandboxes{query}"
    assert "First page" not in console.open(f"/sandboxes{query}").text


def test_the_age_of_the_copy_that_was_searched_is_said_and_how_many_were_found(console: Console) -> None:
    console.api.store.seed(*(make_sandbox(str(number)) for number in range(60)))
    listed(console, "?sort=name")
    console.api.clock.advance(3)
    words = text_of(console.open("/sandboxes?sort=name").text)
    assert "60 found. This page shows 50. The broker searched a copy of the pool that was 3.0 s old." in words
    assert "copy of the pool" not in console.open("/sandboxes").text


@pytest.mark.parametrize("query", ["?track_id=%C3%BC", "?sort=colour", "?cursor=none", "?status=broken"])
def test_a_bad_address_says_what_is_wrong_and_shows_the_filters(console: Console, query: str) -> None:
    page = console.open(f"/sandboxes{query}")
    assert page.status_code == 400
    assert re.search(r"\(request \S+\)", text_of(page.text))
    assert 'id="filter-name"' in page.text
    assert "To the first page" in page.text


def test_an_error_that_is_not_the_addresss_has_a_page_of_its_own() -> None:
    console = make_console(make_api(around=refusing("list_sandboxes")))
    console.sign_in()
    page = console.open("/sandboxes")
    assert page.status_code == 503
    assert "Try again" in page.text


@pytest.mark.parametrize("query", ["", "?status=unreadable", "?sort=name"])
def test_records_that_cannot_be_read_are_listed_with_their_reason(console: Console, query: str) -> None:
    console.api.store.seed(make_sandbox("7"), make_sandbox("8"))
    console.api.store.spoil("7")
    page = console.open(f"/sandboxes{query}").text
    assert f"7 : {SPOILED}" in text_of(page)
    assert "Records that cannot be read: 1" in page
    assert ("lab-8" in page) == (query != "?status=unreadable")


def test_what_is_wrong_is_said_in_the_list_with_the_way_out(console: Console) -> None:
    held(console, 1)
    console.api.admin("POST", "/v1/admin/sandboxes/0/quarantine", json={"reason": "it smells"})
    console.api.store.seed(failed("f"))
    words = text_of(table_of(console.open("/sandboxes").text))
    assert "set aside after its wipe it smells" in words
    assert "HTTP 422 Wipe again lab-f" in words
    answer = console.send("/sandboxes/f?act=retry", {"next": "/sandboxes?status=deletion_failed"})
    assert answer.location == "/sandboxes?status=deletion_failed"
    assert statuses(console)["f"] == "pending_deletion"


# -- CSV


def rows_of(answer: TestResponse) -> list[dict[str, str]]:
    assert answer.status_code == 200
    assert answer.mimetype == "text/csv"
    assert "attachment" in answer.headers["Content-Disposition"]
    return list(csv.DictReader(io.StringIO(answer.text, newline="")))


def test_the_csv_has_all_pages_of_what_the_filters_find(console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker_api.console.pages.sandboxes._CSV_PAGE", 7)
    console.api.store.seed(*(make_sandbox(f"{number:02}") for number in range(30)), failed("f"))
    link = address_of(console.open("/sandboxes?status=available&sort=-name").text, "CSV")
    assert link == "/sandboxes.csv?status=available"
    rows = rows_of(console.open(link))
    assert [each["sandbox_id"] for each in rows] == [f"{number:02}" for number in range(30)]
    assert len(rows_of(console.open("/sandboxes.csv"))) == 31


def test_the_csv_names_what_cannot_be_read(console: Console) -> None:
    console.api.store.seed(make_sandbox("7"), make_sandbox("8"))
    console.api.store.spoil("7")
    bad, good = rows_of(console.open("/sandboxes.csv"))
    assert (bad["sandbox_id"], bad["status"], bad["unreadable_because"]) == ("7", "unreadable", SPOILED)
    assert (good["sandbox_id"], good["unreadable_because"]) == ("8", "")
    assert len(rows_of(console.open("/sandboxes.csv?status=unreadable"))) == 1


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@SUM(A1)", ' =cmd|"x"'])
def test_no_cell_of_the_csv_runs_in_a_spreadsheet(console: Console, name: str) -> None:
    console.api.store.seed(make_sandbox("7", name=name))
    (row,) = rows_of(console.open("/sandboxes.csv"))
    assert row["name"] == f"'{name}"


def test_a_csv_of_a_bad_filter_is_refused_by_a_page(console: Console) -> None:
    page = console.open("/sandboxes.csv?track_id=%C3%BC")
    assert page.status_code == 400
    assert page.mimetype == "text/html"


@pytest.mark.parametrize("how", ["away", "slow"])
def test_a_csv_that_the_api_stops_midway_is_a_page_that_says_so_and_no_part_of_a_file(
    console: Console, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr("broker_api.console.pages.sandboxes._CSV_PAGE", 2)
    console.api.store.seed(*(make_sandbox(str(number)) for number in range(6)))
    send, pages = console.to_api.send, itertools.count(1)

    def hooked(request: requests.PreparedRequest, **options: Any) -> requests.Response:
        if how == "slow":
            console.api.clock.advance(16)
        console.to_api.away = how == "away" and next(pages) == 2
        return send(request, **options)

    monkeypatch.setattr(console.to_api, "send", hooked)
    answer = console.open("/sandboxes.csv")
    assert (answer.status_code, answer.mimetype) == (503, "text/html")
    assert "Content-Disposition" not in answer.headers
    assert ("The broker does not answer" if how == "away" else "Choose filters") in text_of(answer.text)


def test_a_csv_says_how_long_it_is_so_that_a_part_is_never_taken_for_the_whole(console: Console) -> None:
    console.api.store.seed(make_sandbox("7", name="größer"))
    answer = console.open("/sandboxes.csv")
    assert answer.headers["Content-Length"] == str(len(answer.data))
    assert "größer" in answer.text


def test_a_csv_that_is_too_long_for_one_answer_is_refused_with_a_way_out(
    console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker_api.console.pages.sandboxes._CSV_MOST_BYTES", 2000)
    console.api.store.seed(*(make_sandbox(f"{number:02}") for number in range(40)))
    answer = console.open("/sandboxes.csv")
    assert answer.status_code == 503
    assert "Choose filters, or use the command broker sandboxes --csv." in text_of(answer.text)


# -- many at once


def test_chosen_leases_are_released_each_by_its_own_call_with_its_own_request_id(console: Console) -> None:
    leases = held(console, 3)
    console.to_api.sent.clear()
    answer = many(console, "release", *leases[:2], typed="2")
    words = text_of(answer.text)
    assert answer.status_code == 200
    assert "2 of 2 done" in words
    assert words.count("Done. It is now waiting to be wiped") == 2
    calls = [each for each in console.to_api.sent if each.method == "POST"]
    assert len(calls) == 2
    ids = {str(each.headers["X-Request-ID"]) for each in calls}
    assert len(ids) == 2
    assert all(each in answer.text for each in ids)
    assert sorted(statuses(console).values()) == ["allocated", "pending_deletion", "pending_deletion"]
    assert chosen_in(answer.text) == set()


def test_the_page_has_the_lease_of_each_held_sandbox(console: Console) -> None:
    (lease,) = held(console, 1)
    page = console.open("/sandboxes").text
    assert f'form="bulk" name="lease-0" value="{lease["lease_id"]}"' in page
    assert f'form="bulk" name="ends-0" value="{lease["expires_at"]}"' in page


def test_how_many_leases_are_ended_must_be_typed(console: Console) -> None:
    leases = held(console, 2)
    answer = many(console, "release", *leases, typed="1")
    assert answer.status_code == 400
    assert "what you typed is not 2" in text_of(answer.text)
    assert chosen_in(answer.text) == {"0", "1"}
    assert set(statuses(console).values()) == {"allocated"}


def test_one_that_fails_does_not_stop_the_others_and_stays_chosen(console: Console) -> None:
    leases = held(console, 3)
    old = leases[1]["lease_id"]
    name = leases[1]["sandbox_id"]
    console.api.admin("POST", f"/v1/admin/sandboxes/{name}/release", json={"lease_id": old})
    version = body_of(console.api.admin("GET", f"/v1/admin/sandboxes/{name}"))["version"]
    console.api.store.seed(make_sandbox(name, version=version + 1))
    console.api.allocate("track-new")
    answer = many(console, "release", *leases, typed="3", query="?status=allocated")
    words = text_of(answer.text)
    assert "2 of 3 done. The others stay chosen" in words
    assert "The lease that you chose has ended. Open the sandbox to see who holds it now." in words
    assert chosen_in(answer.text) == {name}
    # What was not done must not end the next lease unseen, if the form is sent again.
    assert f'name="lease-{name}" value="{old}"' in answer.text
    assert statuses(console)[name] == "allocated"


def test_many_are_set_aside_with_one_reason(console: Console) -> None:
    held(console, 1)
    console.api.store.seed(make_sandbox("a"), make_sandbox("d", status=Status.DELETED))
    answer = many(console, "quarantine", *({"sandbox_id": each} for each in ("0", "a", "d")), reason="slow", typed="3")
    words = text_of(answer.text)
    assert "2 of 3 done" in words
    assert "It is now allocated , and is set aside after its wipe" in words
    assert "It is now needs a person" in words
    assert 'name="reason" maxlength="500" value="slow"' in answer.text
    assert statuses(console)["a"] == "deletion_failed"


def test_many_are_wiped_again(console: Console) -> None:
    console.api.store.seed(failed("a"), failed("b"), make_sandbox("c"))
    answer = many(console, "retry", *({"sandbox_id": each} for each in ("a", "b", "c")))
    assert "2 of 3 done" in text_of(answer.text)
    assert "Sandbox c is available and cannot become pending_deletion" in answer.text
    assert chosen_in(answer.text) == {"c"}


def test_many_leases_are_extended_from_their_own_ends(console: Console) -> None:
    leases = held(console, 2)
    answer = many(console, "extend", *leases, hours="3")
    assert text_of(answer.text).count("Done. Its lease lasts until 2025-06-15 22:06:40 UTC") == 2
    assert console.api.admin("GET", "/v1/admin/sandboxes/0").get_json()["expires_at"] == START + 7 * 3600


def test_a_sandbox_that_nobody_held_when_the_page_was_made_is_not_released(console: Console) -> None:
    held(console, 1)
    for act, more in (("release", {"typed": "1"}), ("extend", {"hours": "1"})):
        answer = many(console, act, {"sandbox_id": "0"}, **more)
        assert "0 of 1 done" in text_of(answer.text)
        assert "No track held it when this list was made." in text_of(answer.text)
    assert statuses(console) == {"0": "allocated"}


@pytest.mark.parametrize(
    ("act", "ids", "form", "said"),
    [
        ("retry", [], {}, "Choose sandboxes first."),
        ("", ["0"], {}, "Choose what to do."),
        ("destroy", ["0"], {}, "Choose what to do."),
        ("quarantine", ["0"], {"reason": " "}, "Say why they are set aside."),
        ("extend", ["0"], {"hours": "0"}, "Say by how many hours: 1 to 720."),
        ("extend", ["0"], {"hours": "x"}, "Say by how many hours: 1 to 720."),
        ("retry", [str(number) for number in range(101)], {}, "At most 100 sandboxes can be changed at once"),
    ],
)
def test_a_form_that_lacks_something_makes_no_call_and_keeps_the_choice(
    console: Console, act: str, ids: list[str], form: dict[str, str], said: str
) -> None:
    held(console, 1)
    console.to_api.sent.clear()
    answer = many(console, act, *({"sandbox_id": each} for each in ids), **form)
    assert answer.status_code == 400
    assert f"Nothing was done. {said}" in text_of(answer.text)
    assert {each.method for each in console.to_api.sent} == {"GET"}
    assert chosen_in(answer.text) == set(ids) & {"0"}


def test_calls_that_could_not_begin_in_time_are_not_made_and_stay_chosen(
    console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(many_calls, "_THREADS", 1)
    console.api.store.seed(failed("a"), failed("b"))
    slow(console, lambda: console.api.clock.advance(many_calls.WITHIN_SEC))
    answer = many(console, "retry", {"sandbox_id": "a"}, {"sandbox_id": "b"})
    words = text_of(answer.text)
    assert "1 of 2 done" in words
    assert "Not tried: there was no time left for it." in words
    assert chosen_in(answer.text) == {"b"}


def test_a_form_for_many_ends_before_proxies_give_up_also_if_every_call_hangs(
    console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(many_calls, "_THREADS", 1)
    monkeypatch.setattr("broker_api.console.reach._PLACE_SEC", 0.01)
    console.api.store.seed(*(failed(f"f-{number}") for number in range(40)))
    console.open("/sandboxes")
    send, clock = console.to_api.send, console.api.clock

    def hang(request: requests.PreparedRequest, **options: Any) -> requests.Response:
        if request.method == "GET" and clock.monotonic() == began:
            return send(request, **options)
        # The first ones are slow, and the last one does not answer.
        clock.advance(min(19, sum(options["timeout"])) if clock.monotonic() == began else sum(options["timeout"]))
        raise requests.ReadTimeout("no answer in time")

    began = clock.monotonic()
    monkeypatch.setattr(console.to_api, "send", hang)
    answer = many(console, "retry", *({"sandbox_id": f"f-{number}"} for number in range(40)))
    words = text_of(answer.text)
    assert words.count("It is not known whether this was done.") == 2
    assert words.count("Not tried: there was no time left for it.") == 38
    assert clock.monotonic() - began <= CONSOLE_ANSWER_SEC


def test_a_call_without_an_answer_says_that_its_outcome_is_not_known(console: Console) -> None:
    console.api.store.seed(failed("a"), failed("b"))
    console.open("/sandboxes")

    def break_off() -> None:
        raise requests.ConnectionError("reset")

    slow(console, break_off)
    answer = many(console, "retry", {"sandbox_id": "a"})
    words = text_of(answer.text)
    assert "Perhaps done. The broker's API did not answer. It is not known whether this was done." in words
    assert "Not done." not in words
    assert chosen_in(answer.text) == {"a"}


def test_what_was_done_to_many_is_said_also_if_the_list_cannot_be_read_afterwards(console: Console) -> None:
    console.api.store.seed(failed("a"), failed("b"))
    # The page that has the form's token, and the two acts. Nothing is known of a list with this filter.
    console.to_api.answers_left = 1 + 2
    answer = many(console, "retry", {"sandbox_id": "a"}, {"sandbox_id": "b"}, query="?name=other")
    words = text_of(answer.text)
    assert "2 of 2 done" in words
    assert len(set(re.findall(r"<code>([0-9a-f-]+-[12])</code>", answer.text))) == 2


def slow(console: Console, work: Callable[[], object]) -> None:
    """Do `work` before each call that changes something."""
    send = console.to_api.send

    def hooked(request: requests.PreparedRequest, **options: Any) -> requests.Response:
        if request.method == "POST":
            work()
        return send(request, **options)

    console.to_api.send = hooked  # type: ignore[method-assign] # a hook of this test


# -- the whole pool


def test_all_that_need_a_person_are_wiped_again_by_one_call(operator: Console) -> None:
    operator.api.store.seed(failed("a"), failed("b"), make_sandbox("c"))
    operator.send("/sandboxes/all/retry", {"typed": "wipe"}, page="/sandboxes")
    assert statuses(operator)["a"] == "deletion_failed"
    answer = operator.send("/sandboxes/all/retry", {"typed": "wipe all"}, page="/sandboxes")
    assert (answer.status_code, answer.location) == (303, "/sandboxes?status=deletion_failed")
    assert re.search(r"Sandboxes sent to be wiped again: 2\. \(request \S+\)", text_of(operator.said()))
    assert statuses(operator) == {"a": "pending_deletion", "b": "pending_deletion", "c": "available"}


@pytest.mark.parametrize("status", ["stale", "deletion_failed"])
def test_an_admin_who_types_the_status_removes_its_records(console: Console, status: str) -> None:
    console.api.store.seed(make_sandbox("a", status=Status(status)), make_sandbox("c"))
    path = f"/sandboxes/all/delete/{status}"
    console.send(path, {"typed": "all"}, page="/sandboxes")
    assert f"what you typed is not {status}" in text_of(console.said())
    assert set(statuses(console)) == {"a", "c"}
    answer = console.send(path, {"typed": status}, page="/sandboxes")
    assert answer.location == f"/sandboxes?status={status}"
    assert re.search(r"Records removed: 1\. \(request \S+\)", text_of(console.said()))
    assert set(statuses(console)) == {"c"}


def test_records_of_no_other_status_can_be_removed(console: Console) -> None:
    console.api.store.seed(make_sandbox("c"))
    assert console.send("/sandboxes/all/delete/available", {"typed": "available"}).status_code == 404
    assert set(statuses(console)) == {"c"}


# -- roles


def test_an_operator_is_not_offered_to_remove_records_and_is_refused(operator: Console) -> None:
    operator.api.store.seed(make_sandbox("a", status=Status.STALE))
    page = operator.open("/sandboxes").text
    assert "Remove all" not in page
    assert 'name="chosen"' in page
    assert operator.send("/sandboxes/all/delete/stale", {"typed": "stale"}, page="/sandboxes").status_code == 403
    assert set(statuses(operator)) == {"a"}


def test_a_viewer_reads_the_list_and_is_offered_nothing(tmp_path: Path) -> None:
    viewer = signed_in(Role.VIEWER, tmp_path)
    viewer.api.store.seed(failed("a"))
    page = viewer.open("/sandboxes").text
    assert "lab-a" in page
    assert not re.search(r'name="chosen"|id="bulk"|Wipe again|Wipe all', page)
    assert many(viewer, "retry", {"sandbox_id": "a"}).status_code == 403
    assert viewer.send("/sandboxes/all/retry", page="/sandboxes").status_code == 403
    assert viewer.open("/sandboxes.csv").status_code == 200
    assert statuses(viewer) == {"a": "deletion_failed"}


@pytest.mark.parametrize("path", ["/sandboxes", "/sandboxes?act=retry", "/sandboxes/all/retry"])
def test_a_form_without_its_token_changes_nothing(console: Console, path: str) -> None:
    console.api.store.seed(failed("a"))
    assert console.browser.post(path, data={"act": "retry", "chosen": "a"}).status_code == 400
    assert statuses(console) == {"a": "deletion_failed"}


# -- hostile names


def test_names_that_look_like_markup_are_shown_as_text(console: Console) -> None:
    console.api.store.seed(make_sandbox("7", name=EVIL), failed("8", name=EVIL))
    console.api.allocate(EVIL, X_Instruqt_Track_ID=EVIL)
    console.api.admin("POST", "/v1/admin/sandboxes/7/quarantine", json={"reason": EVIL})
    query = dict.fromkeys(("name", "track_name", "track_id", "sort", "cursor", "status"), EVIL)
    pages = [
        console.open("/sandboxes"),
        console.open("/sandboxes?sort=name"),
        console.open("/sandboxes", query_string=query),
    ]
    pages += [many(console, EVIL, {"sandbox_id": EVIL}, reason=EVIL, hours=EVIL, typed=EVIL)]
    pages += [
        many(console, "retry", {"sandbox_id": EVIL}),
        many(console, "quarantine", {"sandbox_id": "7"}, reason=EVIL),
    ]
    for page in pages:
        assert "<script>alert" not in page.text
        assert "<b a=" not in page.text
    assert pages[0].text.count("&lt;script&gt;alert(1)&lt;/script&gt;") > 4
