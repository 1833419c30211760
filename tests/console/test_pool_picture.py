"""The picture of the pool over a day: what it draws, what it leaves out, and its numbers."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from broker_api.console.texts import iso
from broker_common.core.samples import Sample
from broker_common.core.sandbox import Status
from tests.fakes import START, Fault, FlakyStore

if TYPE_CHECKING:
    from tests.console.harness import Console

STEP = 300
NOW = START - START % STEP


def add(console: Console, steps_ago: int, waiting: int = 0, **counts: int) -> None:
    by_status = {status: counts.get(status.value, 0) for status in Status}
    console.api.store.write_sample(Sample(at=NOW - steps_ago * STEP, by_status=by_status, waiting=waiting))


def picture_of(console: Console) -> str:
    return console.open("/").text.split('data-live="picture"')[1].split("</section>")[0]


def shape_of(picture: str, kind: str) -> str:
    found = re.search(rf'class="{kind}" d="([^"]*)"', picture)
    assert found is not None, picture
    return found.group(1)


def test_statuses_are_stacked_from_the_available_ones_up(console: Console) -> None:
    add(console, 0, available=50, allocated=50)
    picture = picture_of(console)
    assert shape_of(picture, "band band-available") == "M1435 500V500H1440V1000H1435Z"
    assert shape_of(picture, "band band-allocated") == "M1435 0V0H1440V500H1435Z"
    assert "band-stale" not in picture


def test_a_time_that_nobody_counted_is_left_empty_not_drawn_as_an_empty_pool(console: Console) -> None:
    for steps_ago in (10, 9, 2):
        add(console, steps_ago, available=100)
    assert shape_of(picture_of(console), "band band-available") == (
        "M1385 0V0H1390V0H1395V1000H1390V1000H1385ZM1425 0V0H1430V1000H1425Z"
    )


def test_the_length_of_the_line_is_drawn_over_it_on_a_scale_of_its_own(console: Console) -> None:
    add(console, 1, available=1000)
    add(console, 0, waiting=5, allocated=1000)
    picture = picture_of(console)
    assert shape_of(picture, "line-length") == "M1430 1000V1000H1435V500H1440"
    assert "10 waiting" in picture
    assert "1,000 sandboxes" in picture
    assert "Longest line: 5, at" in picture


def test_without_a_line_none_is_drawn(console: Console) -> None:
    add(console, 0, available=3)
    picture = picture_of(console)
    assert "line-length" not in picture
    assert "Nobody waited in the line." in picture


def test_the_picture_says_in_words_what_it_shows(console: Console) -> None:
    add(console, 1, waiting=4, allocated=7)
    add(console, 0, available=5, allocated=2)
    label = re.search(r'role="img" aria-label="([^"]*)"', picture_of(console))
    assert label is not None
    assert label.group(1) == (
        "The pool over the last 24 hours, stacked by status. At its end: 5 available, 2 allocated."
        " At most 4 tracks waited in the line."
    )


def test_its_numbers_are_a_table_with_each_moment_that_is_drawn_the_newest_first(console: Console) -> None:
    for steps_ago in range(288):
        add(console, steps_ago, waiting=steps_ago, available=1000 + steps_ago, allocated=7)
    rows = re.findall(r'<tr><th scope="row".*?</tr>', picture_of(console))
    assert [re.findall(r"<td>([^<]*)<", row) for row in rows] == [
        [f"{1000 + ago:,}", "0", "7", "0", "0", "0", f"{1007 + ago:,}", str(ago)] for ago in range(288)
    ]
    assert f'<time datetime="{iso(NOW - STEP)}"' in rows[1]


def test_a_moment_whose_line_was_not_counted_says_so_in_the_table(console: Console) -> None:
    console.api.store.write_sample(Sample(at=NOW, by_status=dict.fromkeys(Status, 0), waiting=None))
    (row,) = re.findall(r'<tr><th scope="row".*?</tr>', picture_of(console))
    assert re.findall(r"<td>([^<]*)<", row)[-2:] == ["0", "-"]


def test_its_numbers_are_a_csv_too(console: Console) -> None:
    assert 'href="/pool.csv"' not in picture_of(console), "there are no numbers yet"
    console.api.clock.advance(60)
    add(console, 1, waiting=4, available=5, allocated=2)
    console.api.store.write_sample(Sample(at=NOW, by_status=dict.fromkeys(Status, 0), waiting=None))
    assert 'href="/pool.csv"' in picture_of(console)
    answer = console.open("/pool.csv")
    assert (answer.mimetype, 'filename="pool.csv"' in answer.headers["Content-Disposition"]) == ("text/csv", True)
    assert answer.text.splitlines() == [
        "at,available,reserved,allocated,pending_deletion,stale,deletion_failed,total,waiting",
        f"{iso(NOW - STEP)},5,0,2,0,0,0,7,4",
        f"{iso(NOW)},0,0,0,0,0,0,0,",
    ]


def test_while_the_api_is_away_there_is_no_csv_of_what_was_known_before(console: Console) -> None:
    assert console.open("/pool.csv").status_code == 200
    console.to_api.away = True
    answer = console.open("/pool.csv")
    assert (answer.status_code, answer.mimetype) == (503, "text/html")


def test_a_csv_without_samples_has_a_heading_and_needs_a_sign_in(console: Console) -> None:
    assert console.open("/pool.csv").text.splitlines()[0].startswith("at,available")
    console.send("/signout")
    assert console.open("/pool.csv").status_code == 303


def test_a_name_stands_on_a_band_only_where_it_is_high_enough(console: Console) -> None:
    for steps_ago in range(3):
        add(console, steps_ago, available=95, allocated=5)
    picture = picture_of(console)
    assert re.findall(r'class="name"[^>]*>([^<]*)<', picture) == ["available"]
    assert 'text-anchor="middle" x="86%"' in picture


@pytest.mark.parametrize(("total", "top"), [(1, 2), (9, 10), (11, 12), (300, 300), (301, 400), (9_999, "10,000")])
def test_the_scale_ends_at_a_round_number(console: Console, total: int, top: int | str) -> None:
    add(console, 0, available=total)
    assert f">{top} sandboxes<" in picture_of(console)


def test_without_any_sample_the_page_says_what_to_look_at(console: Console) -> None:
    picture = picture_of(console)
    assert "Nothing was counted in the last 24 hours." in picture
    assert 'aria-label="The pool over the last 24 hours. Nothing was counted in this time."' in picture
    assert "<table" not in picture


def test_an_empty_pool_that_was_counted_is_drawn_as_one(console: Console) -> None:
    add(console, 0)
    assert "At its end: no sandbox. Nobody waited." in picture_of(console)


def test_the_marks_of_the_hours_say_which_they_are(console: Console) -> None:
    add(console, 0, available=1)
    marks = re.findall(r'data-clock="([^"]*)">([^<]*)<', picture_of(console))
    assert 7 <= len(marks) <= 9
    assert all(iso[11:16] == shown and int(shown[:2]) % 3 == 0 for iso, shown in marks)


def test_the_picture_is_kept_for_a_minute_and_for_its_person_alone(console: Console) -> None:
    add(console, 0, available=4)
    picture_of(console)
    picture_of(console)
    assert sum("/samples" in (request.url or "") for request in console.to_api.sent) == 1
    add(console, 0, available=8)
    assert "4 available" in picture_of(console)
    console.api.clock.advance(60)
    assert "8 available" in picture_of(console)
    add(console, 0, available=6)
    console.send("/signout")
    console.sign_in()
    assert "6 available" in picture_of(console)


def test_no_more_pictures_are_kept_than_memory_allows(console: Console) -> None:
    with console.app.app_context():
        kept = console.app.extensions["broker_console"].kept
        made = [kept.get(f"token-{number}", "pool", lambda: number) for number in range(60)]  # noqa: B023 - called at once
        assert made == list(range(60))
        assert kept.get("token-59", "pool", lambda: "again") == 59
        assert kept.get("token-0", "pool", lambda: "again") == "again"
        assert kept.get("token-1", "pool", lambda: None) is None
        assert kept.get("token-1", "pool", lambda: "now") == "now"


def test_samples_that_cannot_be_read_do_not_take_the_page_away(
    console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    flaky = FlakyStore(console.api.store)
    flaky.fail("read_samples", *[Fault.REFUSED] * 9)
    read, looks = console.api.store.read_samples, iter(range(9))

    def sometimes(**options: int) -> object:
        # The first look is that of the overview.
        return read(**options) if next(looks) == 0 else flaky.read_samples(**options)

    monkeypatch.setattr(console.api.store, "read_samples", sometimes)
    page = console.open("/")
    assert page.status_code == 200
    assert "The samples cannot be read at the moment" in page.text
