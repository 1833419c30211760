"""Who makes a call, and what that principal may do."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Role(StrEnum):
    """What a principal may do."""

    TRACK = "track"
    """The calls of a track."""
    VIEWER = "viewer"
    """Every GET of the operators' calls."""
    OPERATOR = "operator"
    """Also: jobs, pauses, release, extend, quarantine, retry."""
    ADMIN = "admin"
    """Also: bulk delete, and what configures the broker."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """The name of a token, or of a person who signed in, with its roles.

    `tracks`: glob patterns of the track ids that it may act for; None: every track.
    """

    name: str
    roles: frozenset[Role]
    tracks: tuple[str, ...] | None = None
    customer: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Actor:
    """By whom, and by which request or run of a job, a change is made: what every fact says of its origin."""

    principal: str
    request_id: str | None = None


def job_actor(job: str, request_id: str | None = None) -> Actor:
    """Return the actor of a job's run that nobody asked for."""
    return Actor(principal=f"job:{job}", request_id=request_id)
