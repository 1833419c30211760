"""`broker reservation` and `broker capacity`, where no broker is needed to see what they do."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import responses
from click.testing import CliRunner
from responses.matchers import header_matcher, json_params_matcher, query_param_matcher

from broker_common.cli import reservations
from broker_common.cli.commands import main
from tests.unit.test_cli import URL, broker, refusal

STARTS_AT, ENDS_AT = 1796112000, 1796122800
"""2026-12-01, from 09:00 to 12:00 in Berlin."""
AT = "2026-12-01 09:00 Europe/Berlin"
ONE = f"{URL}/reservations/one"
BODY = {"name": "Networking 101", "count": 30, "starts_at": STARTS_AT, "ends_at": ENDS_AT}
FOUND: dict[str, Any] = BODY | {
    "reservation_id": "one",
    "prefix": "",
    "track_names": [],
    "state": "scheduled",
    "version": 4,
    "set_aside": 0,
    "drawn": 0,
    "short_by": 30,
}
WANTED = ("--name", "Networking 101", "--count", "30", "--at", AT, "--for", "3h")


@responses.activate
@pytest.mark.parametrize(
    ("words", "more"),
    [
        ((), {}),
        (("--lab", "net-1", "--lab", "net-2"), {"track_names": ["net-1", "net-2"]}),
        (("--prefix", "lab-", "--customer", "acme"), {"prefix": "lab-", "customer": "acme"}),
        (
            ("--lead", "20m", "--hold", "30m", "--note", "third floor"),
            {"lead_sec": 1200, "hold_sec": 1800, "note": "third floor"},
        ),
    ],
)
def test_a_class_is_booked_at_a_time_as_people_write_it(words: tuple[str, ...], more: dict[str, Any]) -> None:
    responses.post(f"{URL}/reservations", json=FOUND, status=201, match=[json_params_matcher(BODY | more)])
    result = broker("reservation", "create", *WANTED, *words)
    assert (result.exit_code, result.stderr) == (0, "")
    assert re.fullmatch(
        r"one is booked: 30 sandboxes from 2026-12-01 08:00:00Z, .*, to 2026-12-01 11:00Z; version 4\n", result.stdout
    )
    assert json.loads(broker("reservation", "create", *WANTED, *words, "--json").stdout) == FOUND


@responses.activate
def test_an_end_may_be_a_time_and_a_start_now() -> None:
    posted = responses.post(f"{URL}/reservations", json=FOUND, status=201)
    assert broker("reservation", "create", *WANTED[:4], "--at", "now", "--until", "2099-12-01T09:00Z").exit_code == 0
    body = json.loads(posted.calls[0].request.body)
    assert body["ends_at"] == 4099798800
    assert body["starts_at"] < 4099798800


@responses.activate
def test_a_key_makes_a_booking_safe_to_repeat() -> None:
    responses.post(f"{URL}/reservations", json=FOUND, match=[header_matcher({"Idempotency-Key": "monday"})])
    assert broker("reservation", "create", *WANTED, "--key", "monday").exit_code == 0


@responses.activate
def test_a_time_without_a_zone_is_said_to_be_this_machine_s() -> None:
    posted = responses.post(f"{URL}/reservations", json=FOUND, status=201)
    result = broker("reservation", "create", *WANTED[:4], "--at", "2026-12-01 09:00", "--for", "3h", "--json")
    assert re.fullmatch(r"taken as 2026-12-01T09:00[+-]\d\d:\d\d \(.+\), by this machine's time zone\n", result.stderr)
    body = json.loads(posted.calls[0].request.body)
    assert body["ends_at"] - body["starts_at"] == 3 * 3600
    assert json.loads(result.stdout) == FOUND


@responses.activate
@pytest.mark.parametrize(
    ("words", "told"),
    [
        (WANTED[:6], "--for, or its end by --until"),
        ((*WANTED, "--until", AT), "--for, or its end by --until"),
        (WANTED[2:], "--name"),
        ((*WANTED[:2], *WANTED[4:]), "--count"),
        ((*WANTED[:4], "--for", "3h"), "--at"),
        ((*WANTED[:4], "--at", "tomorrow", "--for", "3h"), "--at"),
        ((*WANTED[:4], "--at", "2026-03-29 02:30 Europe/Berlin", "--for", "3h"), "does not exist in Europe/Berlin"),
        ((*WANTED[:4], "--at", "2026-10-25 02:30 Europe/Berlin", "--for", "3h"), "comes twice in Europe/Berlin"),
        ((*WANTED[:4], "--at", AT, "--for", "three hours"), "--for"),
        ((*WANTED, "--hold", "soon"), "--hold"),
        ((*WANTED, "--lead", ""), "--lead"),
        ((*WANTED[:2], "--count", "many", *WANTED[4:]), "--count"),
    ],
)
@pytest.mark.parametrize("command", ["create", "check"])
def test_what_is_not_clear_is_not_sent(command: str, words: tuple[str, ...], told: str) -> None:
    result = broker("reservation", command, *words)
    assert result.exit_code == 2
    assert told in " ".join(result.stderr.split())
    assert len(responses.calls) == 0


@responses.activate
def test_a_booking_that_does_not_fit_says_how_many_could_be_had() -> None:
    refused = refusal("CAPACITY_NOT_AVAILABLE", "only 12 sandboxes can be reserved for that time")
    responses.post(f"{URL}/reservations", json=refused, status=409)
    result = broker("reservation", "create", *WANTED)
    assert result.exit_code == 1
    assert "only 12 sandboxes can be reserved for that time (409 CAPACITY_NOT_AVAILABLE" in result.stderr
    assert "`broker capacity` shows when more can be had" in result.stderr


@responses.activate
@pytest.mark.parametrize(("fits", "could_have", "told"), [(True, 64, "it fits"), (False, 12, "it does not fit")])
def test_a_check_says_whether_it_fits_and_how_many_could_be_had(fits: bool, could_have: int, told: str) -> None:
    answer = {"fits": fits, "could_have": could_have}
    responses.post(f"{URL}/reservations/check", json=answer, match=[json_params_matcher(BODY)])
    result = broker("reservation", "check", *WANTED)
    assert result.stdout == f"{told}: {could_have} sandboxes could be had, and 30 are asked for\n"
    assert result.exit_code == (0 if fits else 1)
    assert json.loads(broker("reservation", "check", *WANTED, "--json").stdout) == answer


@responses.activate
def test_reservations_are_listed_page_after_page() -> None:
    for cursor, following in ((None, "next"), ("next", None)):
        asked = {"state": "open", "limit": "100"} | ({"cursor": cursor} if cursor else {})
        page = {"reservations": [FOUND | {"reservation_id": f"after-{cursor}"}], "count": 1, "cursor": following}
        responses.get(f"{URL}/reservations", json=page, match=[query_param_matcher(asked)])
    heading, *rows = broker("reservation", "list", "--state", "open").stdout.splitlines()
    assert heading.split() == list(reservations._COLUMNS)
    assert [re.split("  +", row) for row in rows] == [
        [
            *(f"after-{cursor}", "Networking 101", "scheduled", "30", "0", "0", "30"),
            *("2026-12-01 08:00Z", "2026-12-01 11:00Z"),
        ]
        for cursor in (None, "next")
    ]
    listed = [
        json.loads(line) for line in broker("reservation", "list", "--state", "open", "--json").stdout.splitlines()
    ]
    assert [each["reservation_id"] for each in listed] == ["after-None", "after-next"]


@responses.activate
def test_a_reservation_is_shown_with_every_field_and_any_text_is_a_safe_id() -> None:
    responses.get(f"{URL}/reservations/..%2Fone", json=FOUND)
    shown = dict(
        re.split("  +", line, maxsplit=1) for line in broker("reservation", "show", "../one").stdout.splitlines()
    )
    assert shown.keys() == FOUND.keys()
    assert shown["starts_at"].startswith(f"{STARTS_AT}  (2026-12-01 08:00:00Z, ")
    assert json.loads(broker("reservation", "show", "../one", "--json").stdout) == FOUND


@responses.activate
def test_an_unknown_reservation_is_told_where_the_ids_are() -> None:
    unknown = refusal("RESERVATION_NOT_FOUND", "there is no reservation 'one'")
    responses.get(ONE, json=unknown, status=404)
    result = broker("reservation", "show", "one")
    assert (result.exit_code, "`broker reservation list` lists the ids" in result.stderr) == (1, True)


HOUR = 3600


@responses.activate
@pytest.mark.parametrize(
    ("words", "changes"),
    [
        (("--count", "35"), {"count": 35}),
        (("--at", "2026-12-01 10:00 Europe/Berlin"), {"starts_at": STARTS_AT + HOUR}),
        (
            ("--at", "2026-12-01 10:00 Europe/Berlin", "--for", "3h"),
            {"starts_at": STARTS_AT + HOUR, "ends_at": ENDS_AT + HOUR},
        ),
        (("--for", "4h"), {"ends_at": ENDS_AT + HOUR}),
        (("--until", "2026-12-01 13:00 Europe/Berlin"), {"ends_at": ENDS_AT + HOUR}),
        (("--lab", "net-1"), {"track_names": ["net-1"]}),
        (("--lab", ""), {"track_names": []}),
        (
            ("--customer", "", "--hold", "", "--note", "", "--prefix", ""),
            {"customer": None, "hold_sec": None, "note": None, "prefix": ""},
        ),
    ],
)
def test_a_change_sends_what_was_given_and_the_version_that_was_read(
    words: tuple[str, ...], changes: dict[str, Any]
) -> None:
    responses.get(ONE, json=FOUND)
    responses.patch(ONE, json=FOUND | {"version": 5}, match=[json_params_matcher(changes | {"version": 4})])
    result = broker("reservation", "change", "one", *words)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("one is changed: 30 sandboxes from 2026-12-01 08:00:00Z, ")
    assert result.stdout.endswith("; version 5\n")


@responses.activate
def test_a_change_of_the_version_that_was_looked_at_reads_nothing_more() -> None:
    mismatch = refusal("VERSION_MISMATCH", "the reservation 'one' has another version")
    responses.patch(ONE, json=mismatch, status=409, match=[json_params_matcher({"count": 35, "version": 3})])
    result = broker("reservation", "change", "one", "--count", "35", "--version", "3")
    assert (result.exit_code, "`broker reservation show` or" in result.stderr) == (1, True)


@responses.activate
@pytest.mark.parametrize("words", [(), ("--version", "3"), ("--for", "3h", "--until", AT)])
def test_a_change_of_nothing_or_to_two_ends_is_not_sent(words: tuple[str, ...]) -> None:
    assert broker("reservation", "change", "one", *words).exit_code == 2
    assert len(responses.calls) == 0


@responses.activate
@pytest.mark.parametrize(
    ("is_terminal", "typed", "is_sent"), [(True, "y\n", True), (True, "n\n", False), (False, "", False)]
)
def test_a_cancel_asks_first(monkeypatch: pytest.MonkeyPatch, is_terminal: bool, typed: str, is_sent: bool) -> None:
    monkeypatch.setattr(reservations, "is_terminal", lambda: is_terminal)
    responses.get(ONE, json=FOUND | {"set_aside": 7})
    deleted = responses.delete(ONE, json=FOUND | {"state": "cancelled", "drawn": 5})
    words = ["reservation", "cancel", "one"]
    result = CliRunner().invoke(main, words, env={"BROKER_ADMIN_TOKEN": "a-token"}, input=typed, prog_name="broker")
    assert deleted.call_count == is_sent
    if is_terminal:
        assert "Networking 101: 30 sandboxes from 2026-12-01 08:00:00Z" in result.stderr
        assert "give back 7 sandboxes?" in result.stderr
    if is_sent:
        assert result.stdout == "one is cancelled: 5 of 30 sandboxes were drawn\n"
    else:
        assert result.exit_code == (1 if is_terminal else 2)


@responses.activate
def test_a_cancel_that_is_sure_does_not_ask() -> None:
    responses.delete(ONE, json=FOUND | {"state": "cancelled"})
    assert broker("reservation", "cancel", "one", "--yes").exit_code == 0
    assert len(responses.calls) == 1


@responses.activate
def test_the_capacity_is_a_table_of_what_is_left() -> None:
    points = [
        {"at": STARTS_AT, "reservable": 80, "reserved": 30},
        {"at": ENDS_AT, "reservable": 20, "reserved": 25},
    ]
    asked = {"from": str(STARTS_AT), "to": str(STARTS_AT + 2 * 86400), "prefix": "lab-"}
    responses.get(f"{URL}/capacity", json={"points": points}, match=[query_param_matcher(asked)])
    words = ("capacity", "--at", AT, "--for", "2d", "--prefix", "lab-")
    assert [re.split("  +", line) for line in broker(*words).stdout.splitlines()] == [
        ["from", "reservable", "reserved", "left"],
        ["2026-12-01 08:00Z", "80", "30", "50"],
        ["2026-12-01 11:00Z", "20", "25", "0"],
    ]
    assert [json.loads(line) for line in broker(*words, "--json").stdout.splitlines()] == points


@responses.activate
def test_the_capacity_is_that_of_the_next_day_by_default() -> None:
    asked = responses.get(f"{URL}/capacity", json={"points": []})
    assert broker("capacity").exit_code == 0
    query = asked.calls[0].request.params
    assert int(query["to"]) - int(query["from"]) == 86400
