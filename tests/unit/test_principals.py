"""What each role allows, and which tracks a principal may act for."""

from __future__ import annotations

import pytest

from broker_common.core.principals import Actor, Principal, Role, job_actor


def principal(*roles: Role, tracks: tuple[str, ...] | None = None) -> Principal:
    return Principal(name="anna", roles=frozenset(roles), tracks=tracks)


@pytest.mark.parametrize(
    ("role", "allowed"),
    [
        (Role.TRACK, {Role.TRACK}),
        (Role.VIEWER, {Role.VIEWER}),
        (Role.OPERATOR, {Role.VIEWER, Role.OPERATOR}),
        (Role.ADMIN, {Role.VIEWER, Role.OPERATOR, Role.ADMIN}),
    ],
)
def test_each_operators_role_allows_what_the_one_before_it_does_and_none_allows_a_tracks_calls(
    role: Role, allowed: set[Role]
) -> None:
    assert {needed for needed in Role if principal(role).may(needed)} == allowed


def test_several_roles_allow_what_each_of_them_does() -> None:
    both = principal(Role.TRACK, Role.VIEWER)
    assert {needed for needed in Role if both.may(needed)} == {Role.TRACK, Role.VIEWER}


def test_who_is_bound_to_no_track_may_act_for_all() -> None:
    assert principal(Role.TRACK).may_act_for("any-track")


@pytest.mark.parametrize(
    ("track_id", "is_allowed"),
    [("acme-7", True), ("acme-", True), ("intro-1", True), ("intro-12", False), ("Acme-7", False), ("x-acme-7", False)],
)
def test_who_is_bound_may_act_for_the_tracks_whose_whole_id_fits_a_pattern(track_id: str, is_allowed: bool) -> None:
    assert principal(Role.TRACK, tracks=("acme-*", "intro-?")).may_act_for(track_id) is is_allowed


@pytest.mark.parametrize("role", [Role.VIEWER, Role.OPERATOR, Role.ADMIN])
def test_an_operator_may_act_for_no_track(role: Role) -> None:
    assert not principal(role).may_act_for("any-track")


def test_a_job_that_nobody_asked_for_is_its_own_principal() -> None:
    assert job_actor("sync", "job-sync-1") == Actor(principal="job:sync", request_id="job-sync-1")
