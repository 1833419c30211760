"""The page of the line of waiting tracks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import requests

from broker_common.core.sandbox import Status
from tests.api.harness import Api, make_api, named_token
from tests.console.harness import Console, make_console
from tests.fakes import START, make_sandbox

if TYPE_CHECKING:
    from pathlib import Path


def wait(api: Api, track_id: str, **headers: str) -> None:
    """Let a track join the line."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    assert api.track("POST", "/v1/allocate", track_id, headers={"Prefer": "wait=0"} | named).status_code == 202


def place_of(console: Console, track_id: str) -> str:
    """Return the id of a track's place."""
    places = console.api.admin("GET", "/v1/admin/waiting").get_json()["places"]
    return next(str(each["place_id"]) for each in places if each["track_id"] == track_id)


@pytest.fixture
def waiting(console: Console) -> Console:
    """Return a console whose line has two tracks, of which the first one is late."""
    console.api.store.seed(
        make_sandbox("1", status=Status.ALLOCATED), make_sandbox("2", status=Status.PENDING_DELETION)
    )
    wait(console.api, "track-8", X_Instruqt_Track_ID="intro-to-dns", X_Sandbox_Name_Prefix="lab-")
    console.api.clock.advance(60)
    wait(console.api, "track-9", Idempotency_Key="second")
    return console


def test_an_empty_line_says_when_tracks_wait(console: Console) -> None:
    page = console.open("/line").text

    assert "No track waits." in page
    assert "if no sandbox is free that it may have" in page


def test_the_line_says_who_waits_for_what_since_when_and_who_is_late(waiting: Console) -> None:
    page = waiting.open("/line").text

    first, second = page.index("track-8"), page.index("track-9")
    assert first < second
    assert "a sandbox named" in page[first:second]
    assert "intro-to-dns" in page[first:second]
    assert "late" in page[first:second]
    assert "1 min ago" in page[first:second]
    assert "any sandbox" in page[second:]
    assert "key second" in page[second:]
    assert "in time" in page[second:]


def test_the_line_says_how_long_it_is_and_what_it_waits_for(waiting: Console) -> None:
    page = waiting.open("/line").text

    assert "2 tracks wait" in page
    assert "0 are available" in page
    assert "1 waits to be wiped" in page
    assert "The next lease ends" in page
    assert 'href="/sandboxes/1"' in page


def test_the_line_is_shown_although_the_next_end_of_a_lease_is_not_known(
    waiting: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    send = waiting.to_api.send

    def send_unless_search(request: requests.PreparedRequest, **options: Any) -> requests.Response:
        if "/sandboxes?" in (request.url or ""):
            raise requests.ConnectionError("refused")
        return send(request, **options)

    monkeypatch.setattr(waiting.to_api, "send", send_unless_search)

    page = waiting.open("/line")

    assert page.status_code == 200
    assert "2 tracks wait" in page.text
    assert "The next lease ends" not in page.text


def test_a_pause_is_said_because_it_is_why_nobody_is_served(waiting: Console) -> None:
    waiting.api.admin("POST", "/v1/admin/pause", json={"allocate": True})

    assert "Allocation is paused" in waiting.open("/line").text


def test_a_place_is_removed_when_the_id_of_its_track_is_typed(waiting: Console) -> None:
    path = f"/line/{place_of(waiting, 'track-8')}/remove"

    answer = waiting.send(path, {"typed": "track-8", "track_id": "track-8", "next": "/line"}, page="/line")

    assert (answer.status_code, answer.location) == (303, "/line")
    page = waiting.open("/line").text
    assert "The place of track track-8 was removed from the line. (request " in page
    assert "1 track waits" in page


@pytest.mark.parametrize("form", [{"typed": "track-9", "track_id": "track-8"}, {"typed": "", "track_id": ""}])
def test_a_place_stays_unless_the_id_of_its_track_is_typed(waiting: Console, form: dict[str, str]) -> None:
    waiting.send(f"/line/{place_of(waiting, 'track-8')}/remove", form, page="/line")

    assert "2 tracks wait" in waiting.open("/line").text


def test_a_viewer_is_offered_no_remove_and_is_refused_it(tmp_path: Path) -> None:
    file = tmp_path / "tokens.toml"
    file.write_text(named_token("vera", "of-vera", "viewer"))
    console = make_console(make_api(BROKER_TOKENS_FILE=str(file)))
    console.sign_in("of-vera")
    wait(console.api, "track-8")

    assert "Remove" not in console.open("/line").text
    path = f"/line/{place_of(console, 'track-8')}/remove"
    assert console.send(path, {"typed": "track-8", "track_id": "track-8"}, page="/line").status_code == 403


def test_a_long_line_shows_its_begin_and_can_be_shown_whole(console: Console) -> None:
    for number in range(201):
        wait(console.api, f"track-{number}")

    page = console.open("/line").text
    assert "These are the first 200 of 201 places." in page
    assert page.count("place is kept") + page.count('class="typed"') == 200
    assert "These are the first" not in console.open("/line?all=1").text


def test_names_of_tracks_and_labs_stay_text(console: Console) -> None:
    planted = "<script>alert(1)</script>"
    wait(console.api, planted, X_Instruqt_Track_ID=planted, X_Sandbox_Name_Prefix=planted)

    page = console.open("/line").text

    assert planted not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert console.api.clock.now() == START
