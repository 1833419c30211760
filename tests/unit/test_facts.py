"""Facts: what each says, and the change that it belongs to."""

from __future__ import annotations

import pytest

from broker_common.core.facts import Change, FactKind, allocated, change
from broker_common.core.lease import begin, candidate_of
from broker_common.core.principals import Actor, job_actor
from broker_common.core.sandbox import next_version
from tests.fakes import BY, START, make_claim, make_sandbox, removal_of
from tests.lifecycle import A, D
from tests.unit.states import NOW, in_status


def test_a_fact_names_what_was_who_did_it_and_when() -> None:
    before, after = in_status(A), in_status(A, version=9, updated_at=NOW)
    fact = change(before, after, FactKind.UPDATED, by=BY, now=NOW, details={"a": 1, "b": None, "c": False}).fact
    assert fact is not None
    assert (fact.kind, fact.sandbox_id, fact.version, fact.at) == (FactKind.UPDATED, before.sandbox_id, 9, NOW)
    assert (fact.principal, fact.request_id) == (BY.principal, BY.request_id)
    assert (fact.status_before, fact.status, fact.track_id, fact.lease_id) == (A, A, None, None)
    assert fact.details == {"a": 1, "c": False}


def test_a_removal_has_the_version_that_the_next_record_must_be_above() -> None:
    gone = removal_of(in_status(D, version=START * 1000 + 5, updated_at=START))
    assert gone.fact is not None
    assert (gone.fact.version, gone.fact.status) == (START * 1000 + 6, None)


def test_an_allocation_is_told_alike_by_who_read_the_record_and_who_only_saw_a_candidate() -> None:
    sandbox = make_sandbox(version=12)
    claim = make_claim(sandbox, track_name="intro")
    by_candidate = allocated(candidate_of(sandbox), claim, by=BY)
    by_record = begin(sandbox, claim.lease, by=BY)
    assert by_record.fact == by_candidate
    assert by_record.result.version == by_candidate.version


def test_a_job_that_nobody_asked_for_is_named_as_the_job() -> None:
    assert job_actor("sync", "job-sync-1") == Actor(principal="job:sync", request_id="job-sync-1")


def test_a_change_has_a_result_unless_the_record_is_removed() -> None:
    sandbox = in_status(D)
    assert Change(None, sandbox, None).result == sandbox
    removed = Change(sandbox, None, None)
    assert removed.sandbox_id == sandbox.sandbox_id
    with pytest.raises(ValueError, match="removed"):
        _ = removed.result


def test_a_change_of_nothing_does_not_exist() -> None:
    with pytest.raises(ValueError, match="before it, or after it"):
        _ = Change(None, None, None).sandbox_id


@pytest.mark.parametrize(
    ("version", "now", "following"),
    [
        (1, 5, 5000),
        (4999, 5, 5000),
        (5000, 5, 5001),
        (9000, 5, 9001),  # the clock was ahead once, or many changes fell into one second
    ],
)
def test_versions_grow_and_name_the_time_where_they_can(version: int, now: int, following: int) -> None:
    assert next_version(version, now) == following
