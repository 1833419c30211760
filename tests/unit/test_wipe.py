"""How a sandbox is wiped: attempts, their outcomes, and what becomes of it."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pytest

from broker_common.core.errors import InvalidTransition
from broker_common.core.facts import FactKind
from broker_common.core.pool import quarantine, restore
from broker_common.core.sandbox import DeletionReason, Sandbox, Status, Wipe
from broker_common.core.wipe import (
    account_gone,
    backoff_seconds,
    begin_attempt,
    cancel_attempt,
    confirm_wipe,
    contradict,
    fail_attempt,
    finish_cooling,
    is_thought_gone,
    reject_deletion,
    retry_deletion,
    sent_to_wipe,
)
from tests.fakes import BY, changed, flat, make_account
from tests.lifecycle import A, D, F, P, S
from tests.unit.states import CONFIRM, COOLING, NOW, RETIRE, REUSE, flagged, in_status, rested, taken

if TYPE_CHECKING:
    from collections.abc import Callable

    from broker_common.core.facts import Change
    from broker_common.core.policy import Policy


def begin(sandbox: Sandbox, attempt_id: str = "a") -> Change:
    return begin_attempt(sandbox, attempt_id=attempt_id, by=BY, now=NOW, policy=REUSE)


def wipe(sandbox: Sandbox, policy: Policy, *, accepted_only: bool = False) -> Change:
    return confirm_wipe(sandbox, accepted_only=accepted_only, order=9, by=BY, now=NOW, policy=policy)


def test_an_attempt_moves_the_next_one_beyond_its_window() -> None:
    after = begin(in_status(P), "a1").result
    assert flat(after).attempt_id == "a1"
    assert flat(after).next_attempt_at == after.status_order == NOW + REUSE.attempt_window_sec
    assert flat(after).deletion_retry_count == 0
    assert not after.is_due_for_deletion(NOW + REUSE.attempt_window_sec - 1)
    assert after.is_due_for_deletion(NOW + REUSE.attempt_window_sec)


def test_what_was_never_asked_to_be_wiped_is_due_and_counts_from_zero() -> None:
    bare = in_status(P, next_attempt_at=None)
    assert bare.wipe is None
    assert bare.is_due_for_deletion(NOW)
    assert begin(bare).result.wipe == Wipe(attempt_id="a", next_attempt_at=NOW + REUSE.attempt_window_sec)


@pytest.mark.parametrize(
    "outcome",
    [
        lambda each: cancel_attempt(each, error="401", now=NOW),
        lambda each: reject_deletion(each, error="400", by=BY, now=NOW),
        lambda each: account_gone(each, by=BY, now=NOW, policy=REUSE),
        partial(wipe, policy=REUSE),
        partial(fail_attempt, error="500", outcome_unknown=False, retry_at=NOW, by=BY, now=NOW, policy=REUSE),
    ],
    ids=["cancel", "reject", "gone", "wiped", "fail"],
)
@pytest.mark.parametrize("asked", [True, False])
def test_an_outcome_without_an_attempt_is_refused(outcome: Callable[[Sandbox], Change], asked: bool) -> None:
    with pytest.raises(InvalidTransition, match="attempt"):
        outcome(in_status(P) if asked else in_status(P, next_attempt_at=None))


def test_a_sandbox_that_is_not_due_yet_is_not_taken() -> None:
    with pytest.raises(InvalidTransition):
        begin(in_status(P, next_attempt_at=NOW + 1))


def test_an_attempt_that_was_lost_counts_and_leaves_a_doubt() -> None:
    after = flat(begin(in_status(P, attempt_id="lost"), "a2").result)
    assert (after.attempt_id, after.deletion_retry_count, after.outcome_unknown) == ("a2", 1, True)


def test_a_lost_attempt_that_was_the_last_one_sets_the_sandbox_aside() -> None:
    change = begin(in_status(P, attempt_id="lost", deletion_retry_count=7), "a9")
    after = flat(change.result)
    assert (after.status, after.deletion_retry_count, after.attempt_id) == (F, 8, None)
    assert after.outcome_unknown
    assert change.fact is not None
    assert change.fact.details == {"tries": 8, "error": after.deletion_last_error}


def test_a_cancelled_attempt_is_not_counted_and_due_again() -> None:
    after = cancel_attempt(begin(in_status(P)).result, error="401", now=NOW + 1).result
    assert (flat(after).deletion_retry_count, flat(after).attempt_id) == (0, None)
    assert flat(after).deletion_last_error == "401"
    assert after.is_due_for_deletion(NOW + 1)
    assert not flat(after).outcome_unknown


def test_a_cancelled_attempt_whose_answer_never_came_leaves_a_doubt() -> None:
    after = cancel_attempt(begin(in_status(P)).result, error="401", now=NOW, outcome_unknown=True).result
    assert flat(after).outcome_unknown


@pytest.mark.parametrize("unknown", [True, False])
def test_a_failed_attempt_is_counted_and_its_doubt_kept(unknown: bool) -> None:
    fail = partial(fail_attempt, by=BY, now=NOW, policy=REUSE)
    change = fail(begin(in_status(P)).result, error="500", outcome_unknown=unknown, retry_at=NOW + 77)
    after = flat(change.result)
    assert (after.status, after.deletion_retry_count, after.next_attempt_at) == (P, 1, NOW + 77)
    assert (after.attempt_id, after.deletion_last_error, after.outcome_unknown) == (None, "500", unknown)
    assert change.fact is not None
    assert change.fact.details == {"tries": 1, "error": "500"}
    again = fail(taken(change.result), error="x", outcome_unknown=False, retry_at=NOW)
    assert flat(again.result).outcome_unknown == unknown


def test_a_rejected_deletion_keeps_what_the_provider_said() -> None:
    change = reject_deletion(in_status(P, attempt_id="a", deletion_retry_count=2), error="400", by=BY, now=NOW)
    assert (flat(change.result).deletion_last_error, flat(change.result).deletion_retry_count) == ("400", 2)
    assert change.fact is not None
    assert change.fact.details == {"tries": 2, "error": "400"}


def test_a_wipe_cleans_and_ends_the_attempt() -> None:
    change = wipe(in_status(P, attempt_id="a", deletion_last_error="500", gone_at=1), REUSE)
    after = change.result
    assert not after.dirty
    assert after.status_order == 9
    assert (flat(after).attempt_id, flat(after).next_attempt_at, flat(after).deletion_last_error) == (None, None, None)
    assert flat(after).gone_at is None
    assert after.latest_track_id == "track-1"
    assert change.fact is not None
    assert change.fact.details == {}


def test_a_wipe_that_was_only_accepted_is_told_so() -> None:
    fact = wipe(taken(in_status(P)), REUSE, accepted_only=True).fact
    assert fact is not None
    assert fact.details == {"accepted_only": True}


@pytest.mark.parametrize(
    ("policy", "status"),
    [(REUSE, S), (CONFIRM, S), (RETIRE, D), (COOLING, S)],
    ids=["reuse", "confirm", "retire", "cool"],
)
def test_a_wipe_after_an_unanswered_attempt_waits_for_a_sync(policy: Policy, status: Status) -> None:
    after = wipe(in_status(P, attempt_id="a", outcome_unknown=True), policy).result
    assert after.status is status
    assert not after.dirty


def test_a_doubt_lasts_until_a_sync_sees_the_sandbox() -> None:
    doubtful = wipe(taken(in_status(P)), REUSE, accepted_only=True).result
    aside = quarantine(doubtful, reason="odd", by=BY, now=NOW).result
    again = wipe(taken(retry_deletion(aside, by=BY, now=NOW).result), REUSE).result
    assert again.status is S
    seen = restore(again, make_account(), order=9, by=BY, now=NOW).result
    assert (seen.status, flat(seen).outcome_unknown) == (A, False)


# -- cooling


def test_a_wiped_sandbox_cools_clean_until_its_time_has_come() -> None:
    after = wipe(in_status(P, attempt_id="a", deletion_last_error="500"), COOLING).result
    ready_at = NOW + COOLING.cool_down_sec
    assert (after.status, after.dirty, after.is_cooling) == (P, False, True)
    assert (flat(after).ready_at, after.status_order) == (ready_at, ready_at)
    assert (flat(after).attempt_id, flat(after).next_attempt_at, flat(after).deletion_last_error) == (None, None, None)
    assert not after.is_due_for_deletion(ready_at + 9999)
    assert (after.is_rested(ready_at - 1), after.is_rested(ready_at)) == (False, True)


def test_a_sandbox_does_not_stop_cooling_before_its_time() -> None:
    cooling = changed(rested(in_status(P)), ready_at=NOW + 1)
    with pytest.raises(InvalidTransition):
        finish_cooling(cooling, order=9, by=BY, now=NOW)


def test_a_sandbox_that_has_cooled_is_available_at_its_new_place() -> None:
    after = finish_cooling(rested(in_status(P)), order=9, by=BY, now=NOW).result
    assert (after.status, after.status_order, flat(after).ready_at, after.latest_track_id) == (A, 9, None, "track-1")


# -- set aside once it is wiped


@pytest.mark.parametrize("policy", [REUSE, CONFIRM, RETIRE], ids=["reuse", "confirm", "retire"])
def test_an_account_that_is_gone_goes_to_a_person_too_and_stays_dirty(policy: Policy) -> None:
    change = account_gone(flagged(taken(in_status(P))), by=BY, now=NOW, policy=policy)
    after = change.result
    assert (after.status, after.dirty, after.quarantine) == (F, True, None)
    assert (flat(after).deletion_reason, flat(after).deletion_last_error) == (DeletionReason.QUARANTINED, "smells")
    assert change.fact is not None
    assert "404" in str(change.fact.details["error"])


def test_a_sandbox_that_cooled_and_is_to_be_set_aside_goes_to_a_person() -> None:
    change = finish_cooling(flagged(rested(in_status(P))), order=9, by=BY, now=NOW)
    assert (change.result.status, change.result.dirty, flat(change.result).ready_at) == (F, False, None)
    assert change.fact is not None
    assert (change.fact.kind, change.fact.details) == (FactKind.NEEDS_ATTENTION, {"error": "smells"})


# -- 404


def test_an_account_that_is_gone_was_wiped_by_nobody() -> None:
    change = account_gone(in_status(P, attempt_id="a"), by=BY, now=NOW, policy=REUSE)
    after = change.result
    assert (after.status, after.dirty, after.stale_since, flat(after).gone_at) == (S, True, NOW, NOW)
    assert flat(after).attempt_id is None
    assert change.fact is not None
    assert change.fact.details == {"error": flat(after).deletion_last_error}


@pytest.mark.parametrize(
    ("sandbox", "gone"),
    [
        (in_status(S, dirty=True), True),
        (in_status(S), False),
        (in_status(D, gone_at=NOW), True),
        (in_status(D, gone_at=NOW, dirty=False), False),
        (in_status(D, deletion_requested_at=NOW), False),
        (in_status(D), False),
        (in_status(F, gone_at=NOW), False),
        (in_status(P, gone_at=NOW), False),
    ],
)
def test_what_is_dirty_and_stale_is_thought_gone_and_a_tombstone_only_after_a_404(sandbox: Sandbox, gone: bool) -> None:
    assert is_thought_gone(sandbox) == gone


def test_a_404_that_the_list_contradicts_counts_as_a_failed_attempt() -> None:
    change = contradict(
        in_status(S, dirty=True, gone_at=NOW - 9, deletion_retry_count=2, stale_since=5),
        retry_at=NOW + 60,
        by=BY,
        now=NOW,
        policy=REUSE,
    )
    after = flat(change.result)
    assert (after.status, after.deletion_retry_count, after.next_attempt_at, after.gone_at) == (P, 3, NOW + 60, None)
    assert (after.stale_since, after.last_synced, after.deletion_requested_at) == (None, NOW, NOW)
    assert change.fact is not None
    assert change.fact.details == {"tries": 3, "error": after.deletion_last_error}


def test_a_record_without_a_word_of_its_wipe_can_be_contradicted_and_sent_again() -> None:
    bare = in_status(S, dirty=True)
    assert bare.wipe is None
    after = contradict(bare, retry_at=NOW, by=BY, now=NOW, policy=REUSE).result
    assert (flat(after).deletion_retry_count, flat(after).deletion_reason) == (1, DeletionReason.FOUND_DIRTY)
    sent = sent_to_wipe(bare, now=NOW)
    assert (flat(sent).deletion_requested_at, flat(sent).deletion_retry_count) == (NOW, 0)


# -- again


def test_a_retry_of_a_deletion_starts_counting_again_and_forgets_who_wanted_it_set_aside() -> None:
    after = retry_deletion(flagged(in_status(F, deletion_retry_count=8)), by=BY, now=NOW).result
    assert (flat(after).deletion_retry_count, flat(after).next_attempt_at) == (0, NOW)
    assert (flat(after).deletion_requested_at, flat(after).deletion_reason) == (NOW, DeletionReason.RETRIED)
    assert (after.dirty, after.quarantine) == (True, None)


def test_the_pause_between_attempts_doubles_up_to_its_limit() -> None:
    pauses = [backoff_seconds(in_status(P, deletion_retry_count=tries), jitter=1, policy=REUSE) for tries in range(8)]
    assert pauses == [60, 120, 240, 480, 960, 1920, 3600, 3600]
    assert backoff_seconds(in_status(P, next_attempt_at=None), jitter=1.5, policy=REUSE) == 90
