"""The page of events."""

from __future__ import annotations

import html
import re
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest

from broker_api.console.moments import parse_moment
from broker_api.console.pages.events import LOOKED_AT_BY_FILTER
from broker_common.core.facts import PoolFact, PoolFactKind
from broker_common.core.sandbox import Status
from tests.fakes import START, make_sandbox

if TYPE_CHECKING:
    import requests

    from tests.console.harness import Console

EVIL = '"><script>alert(1)</script>'


def texts(page: str) -> list[str]:
    """Return the sentences of the facts on a page, from top to bottom."""
    return re.findall(r'<span class="fact">([^<]*)</span>', page)


def add_facts(console: Console, count: int, *, first_at: int = START, apart: int = 1, **details: Any) -> None:
    console.api.store.facts.extend(
        PoolFact(
            kind=PoolFactKind.PAUSED,
            fact_id=f"fact-{first_at + number * apart}-{number}",
            at=first_at + number * apart,
            principal="anna",
            details={"operation": f"op{number}"} | details,
        )
        for number in range(count)
    )


def use(console: Console) -> None:
    """Let track-1 hold sandbox 7 of the lab intro and give it back; then pause the sync."""
    api = console.api
    api.store.seed(make_sandbox("7"))
    api.allocate(X_Request_ID="r-1", X_Instruqt_Track_ID="intro")
    api.clock.advance(60)
    api.track("POST", "/v1/sandboxes/7/mark-for-deletion", headers={"X-Request-ID": "r-2"})
    api.clock.advance(60)
    api.admin("POST", "/v1/admin/pause", json={"sync": True}, headers={"X-Request-ID": "r-3"})
    api.clock.advance(60)


def test_the_newest_facts_come_first_in_words_with_links_to_all_they_name(console: Console) -> None:
    use(console)

    page = console.open("/events").text

    assert texts(page) == ["An operator paused sync.", "The track gave the sandbox back.", "A track got the sandbox."]
    for link in (
        "/sandboxes/7",
        "/sandboxes?track_id=track-1",
        "/sandboxes?track_name=intro",
        "/usage?by=track_name#lab-intro",
        "/events?kind=sandbox.allocated",
    ):
        assert f'href="{link}"' in page
    for words in ("r-1", "r-2", "r-3", "lease ends", "waiting to be wiped", "1 min ago"):
        assert words in page


def test_a_page_without_facts_says_what_to_expect_or_to_do(console: Console) -> None:
    page = console.open("/events").text
    assert "Nothing happened yet." in page
    assert "What happens to a sandbox is shown here at once." in page

    page = console.open("/events?kind=sandbox.marked").text
    assert "Nothing that fits happened yet." in page
    assert "Choose another kind, track or lab" in page


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("kind=sandbox.marked", ["The track gave the sandbox back."]),
        ("track_id=track-1", ["The track gave the sandbox back.", "A track got the sandbox."]),
        ("track_id=nobody", []),
        ("track_name=intro", ["A track got the sandbox."]),
        ("track_name=other", []),
        (f"since={START + 60}", ["The track gave the sandbox back.", "An operator paused sync."]),
        ("since=1m", ["An operator paused sync."]),
        ("since=2025-06-15&kind=pool.paused", ["An operator paused sync."]),
    ],
)
def test_a_filter_leaves_other_facts_out(console: Console, query: str, expected: list[str]) -> None:
    use(console)

    assert texts(console.open(f"/events?{query}").text) == expected


def test_the_form_keeps_what_was_chosen(console: Console) -> None:
    page = console.open("/events?kind=pool.low&track_id=t-9&since=24h").text

    assert '<option value="pool.low" selected>' in page
    assert 'value="t-9"' in page
    assert 'value="24h"' in page


@pytest.mark.parametrize(
    ("query", "words"),
    [("since=yesterday", "this is not a time."), ("kind=pool.painted", "kind"), ("after=nonsense", "after")],
)
def test_what_cannot_be_answered_is_said_above_a_form_that_keeps_it(console: Console, query: str, words: str) -> None:
    page = console.open(f"/events?{query}")

    assert page.status_code == 400
    alert = re.search(r'role="alert">([^<]+)<', page.text)
    assert alert is not None
    assert words in alert[1].lower()
    assert query.partition("=")[2] in page.text or "after" in query


def test_the_feed_is_read_page_by_page_from_a_time_on(console: Console) -> None:
    add_facts(console, 250)
    console.api.clock.advance(1000)
    seen, path = [], f"/events?since={START}"
    for _ in range(3):
        page = console.open(path).text
        seen += texts(page)
        found = re.search(r'href="([^"]+)">Later facts', page)
        path = found[1].replace("&amp;", "&") if found else ""

    assert seen == [f"An operator paused op{number}." for number in range(250)]
    assert not path
    assert "This is the end" in page


def older(page: str) -> str:
    """Return the address of the page with older facts, or an empty string."""
    found = re.search(r'href="([^"]+)">Older facts', page)
    return html.unescape(found[1]) if found else ""


@pytest.mark.parametrize("apart", [0, 1, 3600], ids=str)
def test_the_newest_facts_take_one_call_and_lead_back_to_the_oldest_however_much_happens(
    console: Console, apart: int
) -> None:
    add_facts(console, 250, apart=apart)
    console.api.clock.advance(250 * apart + 7200)
    console.sign_in()
    console.to_api.sent.clear()

    page = console.open("/events").text
    assert len([each for each in console.to_api.sent if "/events" in (each.url or "")]) == 1
    seen = texts(page)
    assert len(seen) == 100
    while path := older(page):
        page = console.open(path).text
        assert "Older facts, from new to old." in page
        seen += texts(page)

    assert sorted(seen) == sorted(f"An operator paused op{number}." for number in range(250))
    if apart:
        assert seen == [f"An operator paused op{number}." for number in range(249, -1, -1)]
    assert "This is the end: no older fact is kept." in page


def test_a_page_of_older_facts_stays_as_it_is_while_new_ones_come(console: Console) -> None:
    add_facts(console, 250)
    path = older(console.open("/events").text)
    before = texts(console.open(path).text)
    add_facts(console, 30, first_at=START + 300)

    assert texts(console.open(path).text) == before


@pytest.mark.parametrize("path", ["/events?kind=sandbox.marked", f"/events?since={START}", ""])
def test_what_takes_many_calls_or_does_not_change_is_not_renewed_by_itself(console: Console, path: str) -> None:
    add_facts(console, 250)
    console.api.clock.advance(1000)

    newest = console.open("/events").text
    assert 'data-live="events"' in newest
    assert 'data-live="events"' not in console.open(path or older(newest)).text


def test_a_filter_looks_through_many_facts_of_other_kinds(console: Console) -> None:
    use(console)
    add_facts(console, 3000, first_at=START + 100)
    console.api.clock.advance(3600)

    assert texts(console.open("/events?kind=sandbox.marked").text) == ["The track gave the sandbox back."]
    assert texts(console.open(f"/events?kind=sandbox.marked&since={START}").text) == [
        "The track gave the sandbox back."
    ]


def slow(console: Console, seconds: float) -> list[str]:
    """Let each look at the feed take `seconds`; return a list of the addresses that are asked from now on."""
    send, asked = console.to_api.send, []

    def hooked(request: requests.PreparedRequest, **options: Any) -> requests.Response:
        if "/events" in (request.url or ""):
            asked.append(str(request.url))
            console.api.clock.advance(seconds)
        return send(request, **options)

    console.to_api.send = hooked  # type: ignore[method-assign] # a hook of this test
    return asked


def test_a_filter_looks_for_a_few_seconds_says_how_far_back_and_goes_on_from_there(console: Console) -> None:
    add_facts(console, 4000, apart=20)
    end = START + 4000 * 20
    console.api.clock.advance(4000 * 20 + 100)
    console.sign_in()
    console.api.store.facts.append(
        PoolFact(kind=PoolFactKind.LOW, fact_id="low", at=end, principal="job:watch", details={})
    )
    asked = slow(console, 1)

    page = console.open("/events?kind=pool.low").text

    assert len(asked) == 3 + 1
    assert len(texts(page)) == 1
    found = re.search(r'The facts back to <time datetime="([^"]+)"', page)
    assert found
    assert parse_moment(found[1], now=0) == end - 20 * 3 * LOOKED_AT_BY_FILTER
    following = console.open(older(page)).text
    found = re.search(r'The facts back to <time datetime="([^"]+)"', following)
    assert found
    assert parse_moment(found[1], now=0) == end - 20 * 6 * LOOKED_AT_BY_FILTER
    assert "Nothing that fits happened in this time." in following
    assert "Read on." in following


def test_a_filter_that_finds_all_in_time_has_nothing_to_go_on_with(console: Console) -> None:
    use(console)
    slow(console, 0.1)
    page = console.open("/events?kind=sandbox.marked").text
    assert "This is the end" in page
    assert "were looked through" not in page


def test_a_filter_that_reads_on_says_to_which_time_it_looked(console: Console) -> None:
    add_facts(console, 4000, apart=1)
    console.api.clock.advance(4000)
    asked = slow(console, 1)

    page = console.open(f"/events?kind=sandbox.marked&since={START}").text

    assert len(asked) == 3 + 1
    found = re.search(r'The facts before <time datetime="([^"]+)"', page)
    assert found
    assert parse_moment(found[1], now=0) == START + 3 * LOOKED_AT_BY_FILTER
    later = re.search(r'href="([^"]+)">Later facts', page)
    assert later
    asked.clear()
    page = console.open(html.unescape(later[1])).text
    found = re.search(r'The facts before <time datetime="([^"]+)"', page)
    assert found
    assert parse_moment(found[1], now=0) == START + 6 * LOOKED_AT_BY_FILTER


def test_a_fact_that_the_feed_has_twice_is_shown_once(console: Console) -> None:
    add_facts(console, 1)
    console.api.store.facts.extend(list(console.api.store.facts))

    assert texts(console.open("/events").text) == ["An operator paused op0."]


def test_planted_names_stay_text(console: Console) -> None:
    api = console.api
    api.store.seed(make_sandbox("7"))
    api.allocate(EVIL, X_Instruqt_Track_ID=EVIL)
    body = {"reason": EVIL}
    assert api.admin("POST", "/v1/admin/sandboxes/7/quarantine", json=body).status_code == 200

    page = console.open(f"/events?track_id={quote(EVIL)}&since=1h").text

    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert len(texts(page)) == 2
    assert "<script>alert" not in console.open(f"/events?kind={quote(EVIL)}&since={quote(EVIL)}").text


def test_what_is_known_stays_on_the_page_while_the_api_is_away(console: Console) -> None:
    use(console)
    console.open("/events")
    console.open("/events?since=1h")
    console.to_api.away = True
    console.api.clock.advance(70)

    for path in ("/events", "/events?since=1h"):
        page = console.open(path)
        assert page.status_code == 200
        assert "This is the last known state" in page.text
        assert len(texts(page.text)) == 3


def test_a_removed_sandbox_and_a_fact_of_a_job_are_said_in_words(console: Console) -> None:
    api = console.api
    api.store.seed(make_sandbox("7", status=Status.STALE))
    api.admin("POST", "/v1/admin/bulk-delete?status=stale")
    api.store.facts.append(PoolFact(kind=PoolFactKind.LOW, fact_id="low", at=START, principal="job:watch", details={}))

    page = console.open("/events").text

    assert "no record any more" in page
    assert 'href="/jobs">job:watch</a>' in page


def test_who_is_not_signed_in_is_sent_to_sign_in(stranger: Console) -> None:
    assert stranger.open("/events?since=1h").headers["Location"] == "/signin?next=/events?since%3D1h"


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("90m", START - 5400),
        ("24 h", START - 86400),
        ("7d", START - 7 * 86400),
        ("99999d", 0),
        ("1750000000", 1750000000),
        ("2025-06-15 08:15", 1749975300),
        (" 2025-06-15T10:15+02:00 ", 1749975300),
        ("2025-06-15", 1749945600),
        ("0001-01-01", 0),
    ],
)
def test_a_time_may_be_written_in_several_ways(text: str, at: int) -> None:
    assert parse_moment(text, now=START) == at


@pytest.mark.parametrize("text", ["", "soon", "2025-13-01", "25:00", "-1h", "1w"])
def test_another_text_is_not_a_time(text: str) -> None:
    with pytest.raises(ValueError, match=r"not a time\. Write"):
        parse_moment(text, now=START)
