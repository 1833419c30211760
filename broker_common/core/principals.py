"""Principals and roles: who makes a call, and what the caller may do."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase


class Role(StrEnum):
    """What a principal may do."""

    TRACK = "track"
    """The calls of a track."""
    VIEWER = "viewer"
    """Every GET of the operators' calls."""
    OPERATOR = "operator"
    """Also: jobs, pauses, release, extend, quarantine, retry, the line, reservations."""
    ADMIN = "admin"
    """Also: bulk delete, and webhooks."""


_ROLES_THAT_ALLOW = {
    Role.TRACK: frozenset({Role.TRACK}),
    Role.VIEWER: frozenset({Role.VIEWER, Role.OPERATOR, Role.ADMIN}),
    Role.OPERATOR: frozenset({Role.OPERATOR, Role.ADMIN}),
    Role.ADMIN: frozenset({Role.ADMIN}),
}
"""For each role that a call needs: the roles that allow it. A role for operators never allows the calls of tracks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """A token, or a person who signed in: its name and roles.

    `tracks`: glob patterns of the track ids that it may act for; None means every track.
    """

    name: str
    roles: frozenset[Role]
    tracks: tuple[str, ...] | None = None
    customer: str | None = None

    def may(self, role: Role) -> bool:
        """Tell whether this principal may make a call that needs `role`."""
        return not self.roles.isdisjoint(_ROLES_THAT_ALLOW[role])

    def may_act_for(self, track_id: str) -> bool:
        """Tell whether this principal may make the calls of the track."""
        if not self.may(Role.TRACK):
            return False
        return self.tracks is None or any(fnmatchcase(track_id, pattern) for pattern in self.tracks)


@dataclass(frozen=True, slots=True, kw_only=True)
class Actor:
    """Who makes a change, and by which request or run of a job. Every fact stores this."""

    principal: str
    request_id: str | None = None


def job_actor(job: str, request_id: str | None = None) -> Actor:
    """Return the actor of a scheduled run of a job."""
    return Actor(principal=f"job:{job}", request_id=request_id)
