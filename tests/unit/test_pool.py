"""How a sandbox enters the pool, is out of service, is set aside, and leaves."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from broker_common.core.errors import InvalidTransition
from broker_common.core.pool import (
    add,
    differs,
    lift_quarantine,
    mark_stale,
    quarantine,
    remove,
    restore,
    update_account,
)
from broker_common.core.sandbox import DeletionReason, Status
from tests.fakes import BY, changed, flat, make_account, make_sandbox
from tests.lifecycle import A, D, F, L, P, S
from tests.unit.states import NOW, RETIRE, REUSE, flagged, in_status

if TYPE_CHECKING:
    from broker_common.core.policy import Policy


def test_a_new_account_is_available_clean_and_seen_now() -> None:
    account = make_account(sfdc_account_id="001")
    sandbox = add(account, order=42, by=BY, now=NOW, version=7000).result
    assert (sandbox.status, sandbox.dirty, sandbox.status_order, sandbox.version) == (A, False, 42, 7000)
    assert (sandbox.name, sandbox.external_id, sandbox.sfdc_account_id) == (account.name, account.external_id, "001")
    assert (sandbox.created_at, sandbox.updated_at, sandbox.last_synced) == (NOW, NOW, NOW)


def test_going_stale_keeps_when_the_sandbox_was_last_seen() -> None:
    before = make_sandbox(last_synced=50)
    assert mark_stale(before, by=BY, now=NOW, last_seen=80).result.last_synced == 80
    assert mark_stale(before, by=BY, now=NOW, last_seen=None).result.last_synced == 50
    assert mark_stale(changed(before, last_synced=None), by=BY, now=NOW, last_seen=None).result.last_synced is None


def test_restoring_takes_over_the_present_name() -> None:
    account = make_account(name="new", external_id="new-uuid", sfdc_account_id="001")
    after = restore(in_status(S, stale_since=5), account, order=42, by=BY, now=NOW).result
    assert (after.name, after.external_id, after.sfdc_account_id) == ("new", "new-uuid", "001")
    assert (after.status_order, after.stale_since, after.last_synced) == (42, None, NOW)


def test_restoring_ends_a_doubt() -> None:
    after = restore(in_status(S, outcome_unknown=True, gone_at=1), make_account(), order=9, by=BY, now=NOW).result
    assert (flat(after).outcome_unknown, flat(after).gone_at) == (False, None)


@pytest.mark.parametrize("asked", [True, False])
def test_a_dirty_sandbox_that_is_seen_again_is_wiped_with_a_fresh_count(asked: bool) -> None:
    before = in_status(S, dirty=True, deletion_retry_count=5 if asked else 0)
    after = restore(before, make_account(), order=42, by=BY, now=NOW).result
    assert (after.status, flat(after).next_attempt_at, flat(after).deletion_retry_count) == (P, NOW, 0)
    assert (flat(after).deletion_reason, flat(after).deletion_requested_at) == (DeletionReason.FOUND_DIRTY, NOW)


def test_describing_what_has_not_changed_changes_nothing() -> None:
    assert not differs(make_sandbox(), make_account())


def test_a_description_tells_what_was_there_before_it() -> None:
    change = update_account(make_sandbox(), make_account(name="new", sfdc_account_id="001"), by=BY, now=NOW)
    assert change is not None
    assert (change.result.name, change.result.sfdc_account_id, change.result.status) == ("new", "001", A)
    assert change.result.last_synced == NOW
    assert change.fact is not None
    assert change.fact.details == {"name_before": "lab-2009521"}
    back = update_account(change.result, make_account(external_id="other"), by=BY, now=NOW)
    assert back is not None
    assert back.fact is not None
    assert back.fact.details == {
        "name_before": "new",
        "external_id_before": "uuid-2009521",
        "sfdc_account_id_before": "001",
    }


@pytest.mark.parametrize("status", [A, S])
def test_a_quarantine_of_what_nobody_uses_keeps_its_reason(status: Status) -> None:
    change = quarantine(in_status(status, gone_at=5, stale_since=5), reason="smells", by=BY, now=NOW)
    after = flat(change.result)
    assert (after.deletion_reason, after.deletion_last_error) == (DeletionReason.QUARANTINED, "smells")
    assert (after.gone_at, after.stale_since, after.quarantine_reason) == (None, None, None)
    assert change.fact is not None
    assert change.fact.details == {"reason": "smells"}


@pytest.mark.parametrize("status", [L, P])
def test_a_quarantine_of_what_is_in_use_is_a_flag_and_changes_nothing_else(status: Status) -> None:
    before = in_status(status)
    after = quarantine(before, reason="smells", by=BY, now=NOW).result
    assert after.quarantine == "smells"
    assert changed(after, quarantine_reason=None, version=before.version, updated_at=before.updated_at) == before


@pytest.mark.parametrize("status", [L, P])
def test_a_quarantine_that_is_lifted_leaves_nothing_behind_and_is_told(status: Status) -> None:
    before = in_status(status)
    change = lift_quarantine(flagged(before), by=BY, now=NOW)
    assert change is not None
    after = change.result
    assert changed(after, version=before.version, updated_at=before.updated_at) == before
    assert change.fact is not None
    assert change.fact.details == {"quarantine": "lifted"}
    assert lift_quarantine(after, by=BY, now=NOW) is None


@pytest.mark.parametrize("status", [A, S, F, D])
def test_only_what_is_held_or_waits_to_be_wiped_can_be_let_go_again(status: Status) -> None:
    with pytest.raises(InvalidTransition, match="retry-deletion"):
        lift_quarantine(in_status(status), by=BY, now=NOW)


@pytest.mark.parametrize(
    ("policy", "dirty", "left"), [(REUSE, False, None), (REUSE, True, D), (RETIRE, False, D), (RETIRE, True, D)]
)
@pytest.mark.parametrize("status", [S, F])
def test_a_used_or_retired_sandbox_leaves_a_tombstone(
    status: Status, policy: Policy, dirty: bool, left: Status | None
) -> None:
    change = remove(in_status(status, dirty=dirty, stale_since=5), by=BY, now=NOW, policy=policy)
    assert (change.after and change.after.status) == left
    if change.after:
        assert (change.after.stale_since, change.after.dirty) == (None, dirty)


@pytest.mark.parametrize("status", [S, F])
def test_the_tombstone_of_a_removed_sandbox_is_not_brought_back_by_an_old_404(status: Status) -> None:
    after = remove(in_status(status, dirty=True, gone_at=5), by=BY, now=NOW, policy=REUSE).result
    assert flat(after).gone_at is None


def test_a_tombstone_that_is_removed_is_told_as_one() -> None:
    fact = remove(in_status(D), by=BY, now=NOW, policy=REUSE).fact
    assert fact is not None
    assert (fact.status_before, fact.status, fact.details) == (D, None, {"tombstone": True})
