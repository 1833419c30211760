"""The flat form of records: nothing is lost on the way there and back, and what cannot be is refused."""

from __future__ import annotations

from typing import Any

import pytest

from broker_common.core.flat import (
    CLAIM_FIELDS,
    OPTIONAL_CLAIM_FIELDS,
    OPTIONAL_SANDBOX_FIELDS,
    SANDBOX_FIELDS,
    claim_of,
    flatten,
    flatten_claim,
    sandbox_of,
)
from broker_common.core.sandbox import DeletionReason, Status
from tests.fakes import LEASE, make_claim, make_sandbox
from tests.lifecycle import A, D, L, P
from tests.unit.states import in_status

WIPED: dict[str, Any] = {
    "deletion_requested_at": 1,
    "deletion_reason": DeletionReason.EXPIRED,
    "deletion_retry_count": 2,
    "deletion_last_error": "500",
    "next_attempt_at": 3,
    "attempt_id": "a",
    "outcome_unknown": True,
    "gone_at": 4,
    "ready_at": 5,
}


@pytest.mark.parametrize("status", Status)
@pytest.mark.parametrize(
    "more", [{}, {"last_lease_id": "l", "last_track_id": "t"}, WIPED, {"quarantine_reason": "odd"}]
)
def test_a_sandbox_comes_back_as_it_was(status: Status, more: dict[str, Any]) -> None:
    sandbox = in_status(status, **more)
    assert sandbox_of(flatten(sandbox)) == sandbox


@pytest.mark.parametrize("status", [L, P])
def test_the_flat_form_has_every_field_and_no_other(status: Status) -> None:
    assert set(flatten(in_status(status))) == set(SANDBOX_FIELDS) | set(OPTIONAL_SANDBOX_FIELDS)
    assert set(flatten_claim(make_claim(make_sandbox()))) == set(CLAIM_FIELDS) | set(OPTIONAL_CLAIM_FIELDS)


def test_what_may_be_missing_may_be_left_out() -> None:
    full = flatten(in_status(D, last_lease_id=None, last_track_id=None, dirty=False))
    bare = {name: full[name] for name in SANDBOX_FIELDS}
    assert sandbox_of(bare) == sandbox_of({**bare, **dict.fromkeys(OPTIONAL_SANDBOX_FIELDS)})


def test_a_claim_comes_back_as_it_was() -> None:
    claim = make_claim(make_sandbox(sfdc_account_id="001"), track_name="intro")
    assert claim_of(flatten_claim(claim)) == claim
    assert flatten_claim(claim)["sfdc_account_id"] == "001"


@pytest.mark.parametrize("name", LEASE)
def test_an_allocated_record_without_a_part_of_its_lease_is_refused_by_name(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} is missing"):
        sandbox_of({**flatten(in_status(L)), name: None})


@pytest.mark.parametrize("status", [A, L, P])
@pytest.mark.parametrize(
    ("present", "missing"), [("last_lease_id", "last_track_id"), ("last_track_id", "last_lease_id")]
)
def test_half_a_last_lease_is_refused_by_name(status: Status, present: str, missing: str) -> None:
    with pytest.raises(ValueError, match=f"{missing} is missing"):
        sandbox_of({**flatten(in_status(status)), present: "x", missing: None})


def test_the_times_of_a_lease_are_those_of_the_present_one_and_else_of_the_last() -> None:
    held = in_status(L, last_lease_id="earlier", last_track_id="other", track_name="intro")
    assert (flatten(held)["allocated_at"], flatten(held)["last_lease_id"]) == (LEASE["allocated_at"], "earlier")
    ended = in_status(P, allocated_at=1, expires_at=2, track_name="intro")
    shown = flatten(ended)
    assert (shown["lease_id"], shown["allocated_at"], shown["expires_at"], shown["track_name"]) == (None, 1, 2, "intro")


def test_a_wipe_that_is_left_on_an_allocated_record_is_forgotten() -> None:
    assert sandbox_of({**flatten(in_status(L)), **WIPED}).wipe is None
