"""The words for facts, which several pages show."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from broker_api.console.facts import fact_details, fact_name, fact_sentence, kind_meaning
from broker_api.webhook_description import KINDS
from broker_common.core.facts import FactKind, PoolFactKind

if TYPE_CHECKING:
    from broker_api.console.facts import Detail


def fact_of(kind: str, **details: Any) -> dict[str, Any]:
    return {"kind": kind, "details": details}


def fallback(kind: str) -> str:
    return f"{kind.replace('_', ' ').replace('.', ': ')}."


@pytest.mark.parametrize("kind", [*FactKind, *PoolFactKind])
def test_each_kind_has_a_sentence_that_needs_no_detail_beyond_those_described(kind: str) -> None:
    told = fact_sentence(fact_of(kind, **KINDS[kind].details))

    assert told != fallback(kind)
    assert "unknown" not in told
    assert kind_meaning(kind) == KINDS[kind].meaning.replace("`", "")


def test_a_kind_that_this_release_does_not_know_is_shown_by_its_name() -> None:
    assert fact_sentence(fact_of("sandbox.painted_red", colour="red")) == "sandbox: painted red."
    assert fact_details(fact_of("sandbox.painted_red", new_colour="red")) == [("new colour", "text", "red")]
    assert kind_meaning("sandbox.painted_red") == "sandbox.painted_red"


def test_a_detail_that_is_missing_does_not_break_the_page() -> None:
    assert fact_sentence(fact_of("pool.paused")) == "An operator paused (operation unknown)."


def test_what_the_sentence_says_is_not_said_again() -> None:
    fact = fact_of("reservation.short", name="Class 1", count=30, short_by=4, set_aside=26, reservation_id="r-1")

    assert fact_sentence(fact) == "The class Class 1 begins, and lacks 4 of its 30 sandboxes."
    expected: list[tuple[str, str, str | int] | Detail] = [
        ("set aside now", "text", 26),
        ("reservation", "reservation", "r-1"),
    ]
    assert fact_details(fact) == expected


def test_braces_in_a_detail_stay_text() -> None:
    assert fact_sentence(fact_of("sandbox.quarantined", reason="{tries} {0.__class__}")).endswith(
        "{tries} {0.__class__}"
    )


@pytest.mark.parametrize(
    ("kind", "details", "words"),
    [
        ("sandbox.updated", {"quarantine": "lifted"}, "lifted the quarantine"),
        ("sandbox.updated", {"name": "lab-1"}, "name or an id"),
        ("sandbox.wiped", {"accepted_only": True}, "did not say that it is done"),
        ("sandbox.stale", {"error": "the provider answered 404"}, "the provider answered 404."),
        ("sandbox.removed", {"tombstone": True}, "last record"),
        ("reservation.ended", {"cancelled": True, "name": "C", "drawn": 1, "count": 2}, "C was cancelled"),
    ],
)
def test_a_sentence_says_which_of_two_things_happened(kind: str, details: dict[str, Any], words: str) -> None:
    fact = fact_of(kind, **details)

    assert words in fact_sentence(fact)
    assert [each.label for each in fact_details(fact)] in ([], ["name before"])


def test_the_name_of_a_fact_tells_it_from_others() -> None:
    of_pool = {"fact_id": "one", "kind": "pool.low", "sandbox_id": None, "version": None}
    of_sandbox = {"fact_id": None, "kind": "sandbox.added", "sandbox_id": "7", "version": 3}

    assert (fact_name(of_pool), fact_name(of_sandbox)) == ("one", "7:3:sandbox.added")
