"""How a lease begins and ends."""

from __future__ import annotations

from dataclasses import replace

import pytest

from broker_common.core.facts import FactKind
from broker_common.core.lease import begin, candidate_of, claim_on, end, extend
from broker_common.core.sandbox import DeletionReason, EndedLease
from tests.fakes import BY, changed, flat, make_claim, make_sandbox
from tests.lifecycle import L
from tests.unit.states import NOW, REUSE, in_status


def test_a_lease_makes_dirty_and_forgets_the_last_wipe() -> None:
    before = make_sandbox(
        deletion_requested_at=1,
        deletion_reason=DeletionReason.EXPIRED,
        deletion_last_error="once",
        outcome_unknown=True,
        last_track_id="earlier",
        last_lease_id="earlier-lease",
    )
    claim = make_claim(before, track_name="intro")
    after = begin(before, claim.lease, by=BY).result
    assert after.dirty
    assert after.lease == claim.lease
    assert after.status_order == claim.lease.expires_at
    assert after.wipe is None
    assert (after.latest_track_id, after.latest_lease_id) == ("track-1", claim.lease.lease_id)


def test_of_the_lease_before_only_its_name_and_track_are_kept_once_the_next_one_has_begun() -> None:
    before = changed(make_sandbox(), last_lease_id="l", last_track_id="t", track_name="old", allocated_at=1)
    after = begin(before, make_claim(before).lease, by=BY).result
    assert after.last_lease == EndedLease(lease_id="l", track_id="t")


def test_a_lease_that_began_is_told_with_its_end_and_its_lab() -> None:
    claim = make_claim(make_sandbox(), track_name="intro")
    fact = begin(make_sandbox(), claim.lease, by=BY).fact
    assert fact is not None
    assert (fact.kind, fact.track_id, fact.lease_id) == (FactKind.ALLOCATED, "track-1", claim.lease.lease_id)
    assert fact.details == {"expires_at": claim.lease.expires_at, "track_name": "intro"}
    unnamed = begin(make_sandbox(), make_claim(make_sandbox()).lease, by=BY).fact
    assert unnamed is not None
    assert unnamed.details == {"expires_at": claim.lease.expires_at}


def test_a_lease_that_is_extended_stays_the_same_and_ends_later() -> None:
    before = in_status(L, track_name="intro", quarantine_reason="smells")
    assert before.lease is not None
    longer = extend(before, expires_at=before.lease.expires_at + 60, by=BY, now=NOW)
    after = longer.result
    assert after.lease == replace(before.lease, expires_at=before.lease.expires_at + 60)
    assert (after.status_order, after.updated_at) == (before.lease.expires_at + 60, NOW)
    assert after.version > before.version
    assert longer.fact is not None
    assert longer.fact.details == {
        "expires_at": before.lease.expires_at + 60,
        "expires_at_before": before.lease.expires_at,
    }


@pytest.mark.parametrize("earlier", [0, 1])
def test_a_lease_is_never_shortened(earlier: int) -> None:
    before = in_status(L)
    with pytest.raises(ValueError, match="never shortened"):
        extend(before, expires_at=flat(before).expires_at - earlier, by=BY, now=NOW)


def test_an_ended_lease_is_due_at_once_and_its_sandbox_still_answers_to_its_last_holder() -> None:
    before = in_status(L, track_name="intro")
    after = end(before, reason=DeletionReason.RELEASED, by=BY, now=NOW).result
    assert after.dirty
    assert after.lease is None
    assert (after.latest_track_id, after.latest_lease_id) == ("track-1", flat(before).lease_id)
    assert (flat(after).next_attempt_at, after.status_order, flat(after).deletion_requested_at) == (NOW, NOW, NOW)
    assert flat(after).deletion_reason is DeletionReason.RELEASED
    assert (flat(after).allocated_at, flat(after).expires_at, flat(after).track_name) == (
        flat(before).allocated_at,
        flat(before).expires_at,
        "intro",
    )


def test_a_lease_is_overdue_once_the_buffer_has_passed() -> None:
    lease = make_claim(make_sandbox()).lease
    edge = lease.expires_at + REUSE.expiry_buffer_sec
    assert not lease.is_overdue(edge - 1, REUSE)
    assert lease.is_overdue(edge, REUSE)


def test_a_claim_repeats_all_that_its_track_was_answered() -> None:
    sandbox = make_sandbox(sfdc_account_id="001")
    claim = claim_on(candidate_of(sandbox), make_claim(sandbox).lease)
    assert claim == claim_on(sandbox, claim.lease)
    assert (claim.sandbox_id, claim.name, claim.external_id, claim.sfdc_account_id) == (
        sandbox.sandbox_id,
        sandbox.name,
        sandbox.external_id,
        "001",
    )


def test_a_sandbox_that_nobody_ever_held_answers_to_nobody() -> None:
    assert (make_sandbox().latest_track_id, make_sandbox().latest_lease_id) == (None, None)
