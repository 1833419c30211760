"""The page of one sandbox."""

from __future__ import annotations

import re
from html import unescape
from typing import TYPE_CHECKING, Any

import pytest

from broker_common.core.principals import Role
from broker_common.core.sandbox import DeletionReason, Status
from tests.api.harness import body_of, make_api, named_token
from tests.console.harness import Console, make_console
from tests.fakes import START, make_sandbox

if TYPE_CHECKING:
    from pathlib import Path

EVIL = "\"><script>alert(1)</script><b a='"
FAILED = make_sandbox(
    "7",
    status=Status.DELETION_FAILED,
    dirty=True,
    deletion_reason=DeletionReason.MARKED,
    deletion_last_error="HTTP 422: it has services",
    deletion_retry_count=8,
)
ACTS = {"Release", "Extend", "Set aside (quarantine)", "Lift the quarantine", "Wipe again"}


def text_of(page: str) -> str:
    """Return the words of a page, without its markup."""
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", page)).split())


def offered(page: str) -> set[str]:
    """Return the acts that a page offers."""
    return {name for name in ACTS if re.search(rf"<(button|summary)[^>]*>{re.escape(name)}<", page)}


def held(console: Console, track_id: str = "track-1", **headers: str) -> dict[str, Any]:
    """Let a track hold sandbox 7, and return what it was told."""
    if console.api.store.get("7") is None:
        console.api.store.seed(make_sandbox("7"))
    return console.api.allocate(track_id, **headers)


def as_role(role: Role, tmp_path: Path) -> Console:
    """Return a console in which somebody of one role is signed in."""
    file = tmp_path / "tokens.toml"
    file.write_text(named_token("ada", "token-a", role))
    console = make_console(make_api(BROKER_TOKENS_FILE=str(file)))
    console.sign_in("token-a")
    return console


def change(console: Console, act: str, **form: str) -> Any:
    return console.send(f"/sandboxes/7?act={act}", form, page="/sandboxes/7")


def now_of(console: Console) -> dict[str, Any]:
    return body_of(console.api.admin("GET", "/v1/admin/sandboxes/7"))


# -- reading


def test_all_that_is_known_of_a_held_sandbox_is_shown(console: Console) -> None:
    lease = held(console, X_Instruqt_Track_ID="intro-to-dns", Idempotency_Key="key-9")
    page = console.open("/sandboxes/7")
    words = text_of(page.text)
    assert page.status_code == 200
    for known in ("lab-7", "track-1", "intro-to-dns", "key-9", lease["lease_id"], "uuid-7", "ends in 4 h"):
        assert known in words
    for link in (
        "/events?track_id=track-1",
        "/usage?by=track_name#lab-intro-to-dns",
        "/sandboxes?track_name=intro-to-dns",
    ):
        assert f'href="{link}"' in page.text


def test_a_failed_sandbox_says_at_the_top_why_and_offers_to_wipe_it_again(console: Console) -> None:
    console.api.store.seed(FAILED)
    page = console.open("/sandboxes/7").text
    words = text_of(page)
    assert "It could not be wiped HTTP 422: it has services" in words
    assert words.index("It could not be wiped") < words.index("Wipe again") < words.index("Last lease")
    assert change(console, "retry").status_code == 303
    words = text_of(console.open("/sandboxes/7").text)
    assert re.search(
        r"It was sent to be wiped again\. \(request \S+\)|it was sent to be wiped again\. \(request \S+\)", words
    )
    assert now_of(console)["status"] == "pending_deletion"


def test_a_sandbox_that_an_operator_set_aside_says_so(console: Console) -> None:
    console.api.store.seed(make_sandbox("7"))
    console.api.admin("POST", "/v1/admin/sandboxes/7/quarantine", json={"reason": "it is slow"})
    assert "An operator set it aside it is slow" in text_of(console.open("/sandboxes/7").text)


@pytest.mark.parametrize(
    ("sandbox", "said"),
    [
        (make_sandbox("7", status=Status.RESERVED, reservation_id="monday"), "for the reservation monday"),
        (make_sandbox("7", status=Status.PENDING_DELETION, ready_at=START + 60), "it is wiped, and rests"),
        (
            make_sandbox(
                "7",
                status=Status.PENDING_DELETION,
                dirty=True,
                next_attempt_at=START + 60,
                deletion_last_error="HTTP 503",
            ),
            "The latest try to wipe it failed: HTTP 503",
        ),
        (make_sandbox("7", status=Status.STALE, stale_since=START), "until a sync sees it"),
        (
            make_sandbox("7", status=Status.STALE, dirty=True, deletion_last_error="404"),
            "Why it is out of service: 404",
        ),
        (make_sandbox("7", status=Status.DELETED), "it is out of the pool"),
        (make_sandbox("7", status=Status.ALLOCATED, expires_at=START - 1), "the broker ends its lease soon"),
    ],
)
def test_each_state_says_what_it_means(console: Console, sandbox: Any, said: str) -> None:
    console.api.store.seed(sandbox)
    assert said in text_of(console.open("/sandboxes/7").text)


def test_the_history_says_newest_first_what_happened_by_whom_in_which_request(console: Console) -> None:
    held(console, X_Request_ID="r-1", X_Instruqt_Track_ID="intro")
    console.api.clock.advance(60)
    console.api.track("POST", "/v1/sandboxes/7/mark-for-deletion", headers={"X-Request-ID": "r-2"})
    page = console.open("/sandboxes/7").text
    words = text_of(page)[text_of(page).index("History") :]
    assert words.index("r-2") < words.index("r-1")
    assert words.index("sandbox.marked") < words.index("sandbox.allocated")
    assert 'href="/events?kind=sandbox.marked"' in page
    assert '<svg viewBox="0 0 1000' in page
    assert 'role="img"' in page
    assert "track track-1: 2025-06-15 15:06:40 UTC to 2025-06-15 15:07:40 UTC" in words


def test_the_picture_and_the_form_that_extends_are_in_the_reader_s_zone(console: Console) -> None:
    held(console)
    console.browser.set_cookie("zone", "Asia/Kolkata")
    page = console.open("/sandboxes/7").text
    assert "The axis of the picture is in Asia/Kolkata." in page
    assert "track track-1: 2025-06-15 20:36:40 Asia/Kolkata to" in text_of(page)
    (field,) = re.findall(r'<input[^>]*name="until"[^>]*>', page)
    assert "data-moment" in field
    assert "moments.js" in page


def test_a_long_history_is_read_page_by_page(console: Console) -> None:
    for _ in range(30):
        lease = held(console)
        console.api.admin("POST", "/v1/admin/sandboxes/7/quarantine", json={"reason": "r"})
        console.api.admin("DELETE", "/v1/admin/sandboxes/7/quarantine")
        console.api.admin("POST", "/v1/admin/sandboxes/7/extend", json={"expires_at": lease["expires_at"] + 1})
        console.api.clock.advance(1)
        console.api.admin("POST", "/v1/admin/sandboxes/7/release", json={"lease_id": lease["lease_id"]})
        console.api.store.seed(make_sandbox("7", version=now_of(console)["version"] + 1))
    first = console.open("/sandboxes/7").text
    older = re.search(r'href="(/sandboxes/7\?cursor=[^"]+)"', first)
    assert older is not None
    second = console.open(unescape(older.group(1)))
    assert second.status_code == 200
    assert "Newest facts" in second.text
    assert "Newest facts" not in first


def test_a_history_without_facts_says_so(console: Console) -> None:
    console.api.store.seed(make_sandbox("7"))
    page = console.open("/sandboxes/7").text
    assert "Nothing has happened to it yet" in page
    assert "<svg" not in page


def test_a_removed_sandbox_still_shows_its_history(console: Console) -> None:
    console.api.store.seed(make_sandbox("7", status=Status.STALE))
    console.api.admin("POST", "/v1/admin/bulk-delete?status=stale")
    page = console.open("/sandboxes/7")
    assert page.status_code == 200
    words = text_of(page.text)
    assert "This sandbox is no longer in the pool" in words
    assert "sandbox.removed" in words
    assert offered(page.text) == set()


def test_a_record_that_cannot_be_read_says_why_and_shows_its_history(console: Console) -> None:
    held(console)
    console.api.store.spoil("7")
    page = console.open("/sandboxes/7")
    assert page.status_code == 200
    assert "Sandbox '7' cannot be read" in text_of(page.text)
    assert "sandbox.allocated" in page.text


def test_what_never_was_is_not_found(console: Console) -> None:
    assert console.open("/sandboxes/nope").status_code == 404


def test_while_the_api_is_away_the_last_known_state_is_shown(console: Console) -> None:
    console.api.store.seed(make_sandbox("7"))
    console.open("/sandboxes/7")
    console.to_api.away = True
    page = console.open("/sandboxes/7")
    assert page.status_code == 200
    assert "This is the last known state" in page.text


# -- what is offered


@pytest.mark.parametrize(
    ("status", "more", "acts"),
    [
        (Status.AVAILABLE, {}, {"Set aside (quarantine)"}),
        (Status.RESERVED, {}, {"Set aside (quarantine)"}),
        (Status.STALE, {}, {"Set aside (quarantine)"}),
        (Status.ALLOCATED, {}, {"Release", "Extend", "Set aside (quarantine)"}),
        (Status.ALLOCATED, {"quarantine_reason": "r"}, {"Release", "Extend", "Lift the quarantine"}),
        (Status.PENDING_DELETION, {}, {"Set aside (quarantine)"}),
        (Status.PENDING_DELETION, {"quarantine_reason": "r"}, {"Lift the quarantine"}),
        (Status.DELETION_FAILED, {}, {"Wipe again"}),
        (Status.DELETED, {}, set()),
    ],
)
def test_only_what_the_state_allows_is_offered(
    console: Console, status: Status, more: dict[str, str], acts: set[str]
) -> None:
    console.api.store.seed(make_sandbox("7", status=status, **more))
    assert offered(console.open("/sandboxes/7").text) == acts


@pytest.mark.parametrize("sandbox", [FAILED, make_sandbox("7", status=Status.ALLOCATED)])
def test_a_viewer_is_offered_nothing_and_refused(tmp_path: Path, sandbox: Any) -> None:
    console = as_role(Role.VIEWER, tmp_path)
    console.api.store.seed(sandbox)
    assert offered(console.open("/sandboxes/7").text) == set()
    for act in ("release", "extend", "quarantine", "lift", "retry"):
        assert change(console, act, typed="7", lease_id="lease-1").status_code == 403
    assert now_of(console)["status"] == sandbox.status.value


@pytest.mark.parametrize("act", ["", "destroy"])
def test_an_act_that_is_not_known_is_not_found(console: Console, act: str) -> None:
    console.api.store.seed(make_sandbox("7"))
    assert change(console, act).status_code == 404


# -- acts


def test_a_release_sends_the_lease_that_the_page_showed(console: Console) -> None:
    lease = held(console)
    assert f'name="lease_id" value="{lease["lease_id"]}"' in console.open("/sandboxes/7").text
    answer = change(console, "release", typed=" 7 ", lease_id=lease["lease_id"])
    assert (answer.status_code, answer.location) == (303, "/sandboxes/7")
    assert (now_of(console)["status"], now_of(console)["deletion_reason"]) == (
        "pending_deletion",
        "released_by_operator",
    )


def test_a_release_that_is_not_typed_is_not_done_and_keeps_what_was_typed(console: Console) -> None:
    lease = held(console)
    answer = change(console, "release", typed="wrong", lease_id=lease["lease_id"])
    assert answer.status_code == 400
    assert "Nothing was done: what you typed is not 7." in text_of(answer.text)
    assert re.search(r'<details class="typed" id="release-form" open>', answer.text)
    assert 'name="typed" value="wrong"' in answer.text
    assert now_of(console)["status"] == "allocated"


def test_a_release_of_a_lease_that_ended_meanwhile_changes_nothing_and_says_who_holds_it_now(console: Console) -> None:
    old = held(console)
    console.api.admin("POST", "/v1/admin/sandboxes/7/release", json={"lease_id": old["lease_id"]})
    console.api.store.seed(make_sandbox("7", version=now_of(console)["version"] + 1))
    new = held(console, "track-2")
    answer = change(console, "release", typed="7", lease_id=old["lease_id"])
    words = text_of(answer.text)
    assert answer.status_code == 400
    assert "is not held under this lease_id. (request" in words
    assert "The sandbox changed while this page was open." in words
    assert f"Now track track-2 holds it by the lease {new['lease_id']}" in words
    assert answer.text.index("The sandbox changed") < answer.text.index('data-live="now"'), (
        "it stays while the page renews"
    )
    assert 'name="typed" value="7"' not in answer.text, "the new holder's lease is not one click away"
    assert not re.search(r'<details class="typed" id="release-form" open>', answer.text)
    assert now_of(console)["lease_id"] == new["lease_id"]


def test_an_extension_of_a_lease_that_ended_says_that_nobody_holds_it(console: Console) -> None:
    lease = held(console)
    console.api.track("POST", "/v1/sandboxes/7/mark-for-deletion")
    answer = change(console, "extend", hours="2", lease_id=lease["lease_id"], ends=str(lease["expires_at"]))
    assert "No track holds it now: it is waiting to be wiped." in text_of(answer.text)


@pytest.mark.parametrize(
    ("form", "new_end"),
    [
        ({"hours": "2"}, START + 6 * 3600),
        ({"until": "2025-06-16T00:00"}, 1_750_032_000),
        ({"until": "2025-06-16T00:00", "hours": "1"}, 1_750_032_000),
    ],
)
def test_a_lease_is_extended_by_hours_or_to_a_time(console: Console, form: dict[str, str], new_end: int) -> None:
    lease = held(console)
    for _ in range(2):
        answer = change(console, "extend", lease_id=lease["lease_id"], ends=str(lease["expires_at"]), **form)
        assert answer.status_code == 303
        assert now_of(console)["expires_at"] == new_end


@pytest.mark.parametrize(
    ("form", "said"),
    [
        ({}, "Give hours or a time."),
        ({"hours": "0"}, "1 to 720 hours."),
        ({"hours": "many"}, "Not a valid integer value."),
        ({"until": "tomorrow"}, "Not a valid datetime value."),
    ],
)
def test_an_extension_without_a_new_end_is_not_done(console: Console, form: dict[str, str], said: str) -> None:
    lease = held(console)
    answer = change(console, "extend", lease_id=lease["lease_id"], ends=str(lease["expires_at"]), **form)
    assert answer.status_code == 400
    assert said in text_of(answer.text)
    assert re.search(r'id="extend-form" open>', answer.text)
    assert now_of(console)["expires_at"] == lease["expires_at"]


def test_an_extension_beyond_the_limit_says_the_limit_and_keeps_what_was_typed(console: Console) -> None:
    lease = held(console)
    assert "2025-07-15 15:06:40 UTC" in console.open("/sandboxes/7").text
    answer = change(console, "extend", lease_id=lease["lease_id"], ends=str(lease["expires_at"]), hours="720")
    assert "can last until 2025-07-15 15:06:40 UTC at most" in text_of(answer.text)
    assert 'value="720"' in answer.text


def test_a_quarantine_needs_its_reason_and_the_id(console: Console) -> None:
    held(console)
    refused = change(console, "quarantine", typed="8", reason="it smells")
    assert (refused.status_code, 'value="it smells"' in refused.text) == (400, True)
    refused = change(console, "quarantine", typed="7", reason=" ")
    assert (refused.status_code, 'name="typed" value="7"' in refused.text) == (400, True)
    assert "Must be 1 to 500 characters" in text_of(refused.text)
    assert change(console, "quarantine", typed="7", reason="it smells").status_code == 303
    assert now_of(console)["quarantine_reason"] == "it smells"
    assert "After its wipe, it is set aside: it smells" in text_of(console.open("/sandboxes/7").text)
    assert change(console, "lift").status_code == 303
    assert now_of(console)["quarantine_reason"] is None


def test_an_act_while_the_api_is_away_says_that_its_outcome_is_not_known(console: Console) -> None:
    console.api.store.seed(FAILED)
    console.open("/sandboxes/7")
    console.to_api.away = True
    answer = change(console, "retry")
    assert "It is not known whether this was done" in text_of(answer.text)


def test_each_act_is_one_call_of_the_api(console: Console) -> None:
    console.api.store.seed(FAILED)
    console.to_api.sent.clear()
    change(console, "retry")
    changes = [(each.method, each.path_url) for each in console.to_api.sent if each.method != "GET"]
    assert changes == [("POST", "/v1/admin/sandboxes/7/retry-deletion")]


# -- hostile names


def test_names_that_look_like_markup_are_shown_as_text(console: Console) -> None:
    console.api.store.seed(make_sandbox("7", name=EVIL, external_id=EVIL, sfdc_account_id=EVIL))
    console.api.allocate(EVIL, X_Instruqt_Track_ID=EVIL, Idempotency_Key=EVIL)
    console.api.admin("POST", "/v1/admin/sandboxes/7/quarantine", json={"reason": EVIL})
    for path in ("/sandboxes/7", "/sandboxes/7?act=%22%3E%3Cscript%3Ealert(1)%3C/script%3E"):
        page = console.open(path).text
        assert "<script>alert" not in page
        assert "<b a=" not in page
        assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") > 10


def test_what_was_typed_is_shown_again_as_text(console: Console) -> None:
    held(console)
    for act in ("release", "extend", "quarantine"):
        form = dict.fromkeys(("typed", "lease_id", "reason", "hours", "until", "ends"), EVIL)
        assert "<script>alert" not in change(console, act, **form).text


def test_an_id_that_looks_like_markup_is_not_found_and_harmless(console: Console) -> None:
    page = console.open("/sandboxes/%22%3E%3Cscript%3Ealert(1)%3C%2Fscript%3E")
    assert page.status_code == 404
    assert "<script>alert" not in page.text
