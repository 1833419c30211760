"""The page of usage."""

from __future__ import annotations

import html
import re
from typing import TYPE_CHECKING, Any

import pytest

from broker_common.core.ports import Allowance
from broker_common.core.sandbox import DeletionReason
from broker_common.core.usage import UsageLine
from broker_common.core.utc import DAY_SEC
from tests.api.harness import make_api
from tests.console.filled import TOKENS
from tests.console.harness import Console, make_console
from tests.fakes import START

if TYPE_CHECKING:
    from collections.abc import Sequence

MIDNIGHT = START - START % DAY_SEC
EVIL = '"><script>alert(1)</script>'


def add(console: Console, track_name: str | None = "intro", *, hours: float = 1.0, **changes: Any) -> None:
    """Add a lease that ended an hour before the test begins."""
    ended_at = changes.pop("ended_at", START - 3600)
    line = UsageLine(
        lease_id=str(len(console.api.store.usage)),
        track_name=track_name,
        allocated_at=ended_at - round(hours * 3600),
        ended_at=ended_at,
        ending=changes.pop("ending", DeletionReason.MARKED),
        **changes,
    )
    console.api.store.usage[line.lease_id] = line


def table(page: str) -> list[list[str]]:
    """Return the texts of the table's cells, row by row, with the total last."""
    body = page[page.index("<tbody>") : page.index("</table>")]
    rows = re.findall(r"<tr[^>]*>(.*?)</tr>", body, re.DOTALL)
    cells = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL) for row in rows]
    return [[" ".join(re.sub(r"<[^>]+>", "", cell).split()) for cell in row] for row in cells]


def names(page: str) -> Sequence[str]:
    return [row[0].removesuffix(f" events of {row[0].split(' events')[0]}") for row in table(page)]


def test_leases_are_counted_by_lab_in_words_that_people_read(console: Console) -> None:
    add(console, hours=1.5, wiped_at=START - 3555)
    add(console, hours=0.5, ending=DeletionReason.EXPIRED)
    add(console, "dns", hours=0.25, ending=DeletionReason.RELEASED)

    page = console.open("/usage").text

    assert table(page) == [
        ["intro events of intro", "2", "2.00", "1", "0", "1", "30 min", "1 h 30 min", "1", "45 s", "45 s"],
        ["dns events of dns", "1", "0.25", "0", "1", "0", "15 min", "15 min", "0", *2 * ["\N{EN DASH}"]],
        ["Total", "3", "2.25", "1", "1", "1", "30 min", "1 h 30 min", "1", "45 s", "45 s"],
    ]
    for link in ("/sandboxes?track_name=intro", f"/events?track_name=intro&amp;since={MIDNIGHT - 7 * DAY_SEC}"):
        assert f'href="{link}"' in page
    assert 'id="lab-intro"' in page
    assert "<svg" in page


def test_customers_and_days_have_rows_too(console: Console) -> None:
    add(console, customer="acme")
    add(console, None)
    add(console, ended_at=START - 3 * DAY_SEC)

    assert names(console.open("/usage?by=customer").text) == ["not known", "acme", "Total"]
    days = console.open("/usage?by=day").text
    assert names(days) == ["2025-06-12", "2025-06-15", "Total"]
    assert 'href="/usage?by=track_name&amp;to=2025-06-12&amp;from=2025-06-12"' in days


def test_a_customer_leads_to_its_labs_and_these_to_their_sandboxes(console: Console) -> None:
    add(console, "intro", customer="acme & co")
    add(console, "dns", customer="other")

    customers = console.open("/usage?by=customer&from=2025-06-10").text
    link = "/usage?by=track_name&amp;customer=acme+%26+co&amp;from=2025-06-10"
    assert f'href="{link}"' in customers
    page = console.open(html.unescape(link)).text

    assert names(page) == ["intro", "Total"]
    assert "Leases of the customer <strong>acme &amp; co</strong> that ended" in page
    assert 'href="/sandboxes?track_name=intro"' in page
    assert 'href="/usage?by=customer&amp;from=2025-06-10">All customers</a>' in page
    found = re.search(r'href="(/usage/csv[^"]*)"', page)
    assert found
    assert "dns" not in console.open(html.unescape(found[1])).text
    assert "intro" in console.open(html.unescape(found[1])).text


@pytest.mark.parametrize(
    "address", ["/sandboxes/held", "/line", "/reservations", "/reservations/res-1", "/events?kind=sandbox.allocated"]
)
def test_a_customer_is_a_link_to_its_usage_on_every_page_that_names_it(filled: Console, address: str) -> None:
    filled.sign_in(TOKENS["vera"])
    page = filled.open(address).text
    assert re.search(r'<a href="/usage\?by=track_name&amp;customer=[^"]+">', page), page


def test_a_lab_that_is_not_known_has_a_row_without_links(console: Console) -> None:
    add(console, None)

    assert names(console.open("/usage").text) == ["not known", "Total"]


@pytest.mark.parametrize(
    ("sort", "expected"),
    [
        ("", ["a", "c", "b"]),
        ("group", ["a", "b", "c"]),
        ("-group", ["c", "b", "a"]),
        ("-leases", ["b", "a", "c"]),
        ("sandbox_hours", ["b", "c", "a"]),
        ("wipe_median_sec", ["c", "a", "b"]),
        ("-wipe_median_sec", ["c", "a", "b"]),
        ("colour", ["a", "c", "b"]),
    ],
)
def test_the_table_is_sorted_by_a_link(console: Console, sort: str, expected: list[str]) -> None:
    add(console, "a", hours=3)
    add(console, "b", hours=0.5)
    add(console, "b", hours=0.5)
    add(console, "c", hours=2, wiped_at=START)

    assert names(console.open(f"/usage?sort={sort}").text)[:3] == expected


def test_a_heading_says_how_the_table_is_sorted_and_links_to_the_other_way(console: Console) -> None:
    add(console)

    page = console.open("/usage?sort=-leases&from=2025-06-10").text

    assert (
        'aria-sort="descending"><a class="sort" href="/usage?by=track_name&amp;sort=leases&amp;from=2025-06-10"' in page
    )
    assert 'aria-sort="ascending"' in console.open("/usage?sort=leases").text
    assert 'href="/usage?by=track_name&amp;sort=-leases"' in console.open("/usage?sort=leases").text


def test_from_and_to_are_days_that_both_count(console: Console) -> None:
    for back in range(4):
        add(console, ended_at=MIDNIGHT - back * DAY_SEC + 60)

    page = console.open("/usage?by=day&from=2025-06-13&to=2025-06-14").text

    assert names(page) == ["2025-06-13", "2025-06-14", "Total"]
    assert 'type="date" id="from" name="from" value="2025-06-13"' in page
    assert 'type="date" id="to" name="to" value="2025-06-14"' in page
    assert names(console.open("/usage?by=day&from=2025-06-15&to=2025-06-15").text) == ["2025-06-15", "Total"]
    assert names(console.open(f"/usage?by=day&from={MIDNIGHT}").text) == ["2025-06-15", "Total"]
    for days, day in ((7, "2025-06-08"), (30, "2025-05-16")):
        assert f'href="/usage?by=day&amp;from={day}">{days} days</a>' in page


def test_a_time_without_leases_says_what_to_do(console: Console) -> None:
    page = console.open("/usage").text

    assert "No lease ended in this time." in page
    assert "Choose a longer time." in page
    assert 'value="2025-06-08"' in page


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("from=2020-01-01", "earlier leases are not kept"),
        ("from=2025-06-16", "before `to`"),
        ("from=soon", "This is not a date."),
        ("from=9999-12-31&to=9999-12-31", "This is not a date."),
        ("by=colour", "One of"),
    ],
)
def test_what_cannot_be_reported_is_said_above_a_form_that_keeps_it(console: Console, query: str, words: str) -> None:
    page = console.open(f"/usage?{query}")

    assert page.status_code == 400
    assert words.lower() in page.text.lower()
    if query.startswith("from"):
        assert f'name="from" value="{query.split("&", maxsplit=1)[0].partition("=")[2]}"' in page.text


def test_a_broker_that_keeps_less_than_a_week_is_asked_for_what_it_keeps() -> None:
    console = make_console(make_api(HISTORY_DAYS="1"))
    console.sign_in()
    add(console)

    page = console.open("/usage")

    assert page.status_code == 200
    assert names(page.text) == ["intro", "Total"]
    assert 'value="2025-06-14"' in page.text
    assert console.open("/usage?from=2025-06-08").status_code == 400


def test_the_csv_is_the_one_of_the_api(console: Console) -> None:
    add(console, "Übung, eins")

    page = console.open("/usage?from=2025-06-10").text
    found = re.search(r'href="(/usage/csv[^"]+)"', page)
    assert found is not None
    answer = console.open(found[1].replace("&amp;", "&"))

    assert answer.headers["Content-Type"] == "text/csv; charset=utf-8"
    assert answer.headers["Content-Disposition"] == 'attachment; filename="usage-by-lab-2025-06-10.csv"'
    assert answer.text.splitlines()[0].startswith("group,leases,")
    assert answer.text.splitlines()[1].startswith('"Übung, eins",1,1.0,')
    assert console.open("/usage/csv?by=day&from=soon").status_code == 400
    assert console.open("/usage/csv?by=day&from=2020-01-01").status_code == 400


def test_a_csv_without_a_time_has_what_a_broker_keeps_that_keeps_less_than_a_week() -> None:
    console = make_console(make_api(HISTORY_DAYS="1"))
    console.sign_in()
    answer = console.open("/usage/csv")
    assert answer.status_code == 200
    assert answer.text.startswith("group,")
    assert 'filename="usage-by-lab-2025-06-14.csv"' in answer.headers["Content-Disposition"]
    assert console.open("/usage/csv?from=2025-06-01").status_code == 400


def test_the_row_of_a_lab_has_a_valid_id_also_if_its_name_has_spaces(console: Console) -> None:
    add(console, "Größe 1.20")
    page = console.open("/usage").text
    assert 'id="lab-Gr.f6..df.e.20.1.2e.20"' in page


def test_planted_names_stay_text(console: Console) -> None:
    add(console, EVIL, customer=EVIL)
    add(console, "{{ 7 * 7 }}")

    for path in ("/usage", "/usage?by=customer", f"/usage?from={EVIL}", f"/usage?by={EVIL}", f"/usage?sort={EVIL}"):
        page = console.open(path).text
        assert "<script>alert" not in page
        assert ">49<" not in page
    assert "&lt;script&gt;alert(1)" in console.open("/usage").text


def test_more_rows_than_a_page_has_are_in_the_csv(console: Console) -> None:
    for number in range(501):
        add(console, f"lab-{number}")

    page = console.open("/usage").text

    assert len(table(page)) == 501
    assert "the first 500 of 501 rows" in page


def test_the_last_report_stays_while_the_api_is_away(console: Console) -> None:
    add(console)
    console.open("/usage")
    console.to_api.away = True

    page = console.open("/usage")

    assert page.status_code == 200
    assert "This is the last known state" in page.text
    assert names(page.text) == ["intro", "Total"]


@pytest.mark.parametrize("path", ["/usage", "/usage?from=2025-06-10"])
def test_an_error_that_is_not_about_the_form_is_a_page_of_its_own(console: Console, path: str) -> None:
    console.api.rate_limit.answer = Allowance(is_exceeded=True, limit=1, remaining=0, reset_after=1, retry_after=1)

    page = console.open(path)

    assert page.status_code == 429
    assert "The broker refused this" in page.text
