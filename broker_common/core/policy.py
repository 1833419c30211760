"""The settings of the core's rules, and their fixed bounds."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

MIN_LAB_DURATION_SEC = 300
"""The shortest lease that a track may ask for."""
OPERATOR_MAX_SEC = 30 * 24 * 3600
"""How long a lease may last if an operator extends it. A longer `max_lab_duration_sec` holds for operators, too."""


class RecyclePolicy(StrEnum):
    """What happens to a sandbox after its wipe: it is leased again, waits for a sync to confirm it, or is removed."""

    REUSE = "reuse"
    CONFIRM = "confirm"
    RETIRE = "retire"


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """The settings of the rules. Durations are in seconds."""

    lab_duration_sec: int = 4 * 3600
    max_lab_duration_sec: int = 8 * 3600
    """How long a lease may last at most, with all that its track extends it by."""
    expiry_buffer_sec: int = 1800
    stale_grace_sec: int = 24 * 3600
    stale_brake_percent: int = 50
    stale_brake_min: int = 5
    recycle: RecyclePolicy = RecyclePolicy.REUSE
    deletion_max_attempts: int = 8
    deletion_backoff_base_sec: float = 60
    deletion_backoff_max_sec: float = 3600
    attempt_window_sec: int = 60
    """No second wipe attempt may start within this time. It is longer than a delete call with the removal before it."""
    services_limit_sec: int = 0
    """How long the removal of a student's services may take before the delete call; 0: nothing is removed."""
    cool_down_sec: int = 0
    """How long a wiped sandbox rests before it is available again."""
    k_candidates: int = 15
    line_grace_sec: int = 600
    """How long a place in the line is kept after its track should have been back."""
    line_max: int = 10_000
    """How many places the line may have."""
    reservable_percent: int = 80
    """How much of the pool may be reserved at a time."""
    expiry_warning_sec: int = 15 * 60
    """How long before its end a lease is told to end soon; 0: never."""
    pool_low_percent: int = 10
    """The pool is low while less than this of the sandboxes in service is available; 0: never."""
