"""All jobs of the broker. Each is declared here, once; `jobs.py` defines what a declaration holds."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from broker_common.core.deliveries import DeliverResult
from broker_common.core.expiry import ExpiryResult
from broker_common.core.job_names import Job
from broker_common.core.jobs import Daily, Dispatch, Every, Flag, JobSpec, declare
from broker_common.core.purge import PurgeResult
from broker_common.core.reserving import ReserveResult
from broker_common.core.runs import CleanupTally
from broker_common.core.sync import SyncResult
from broker_common.core.telemetry import DeleteOutcome
from broker_common.core.watch import WatchResult

if TYPE_CHECKING:
    from collections.abc import Mapping

    from broker_common.core.jobs import Work
    from broker_common.core.principals import Actor


# Jobs call their use cases here and nowhere else, except the deletes of a cleanup: `runner.py` calls those.


def _sync(work: Work, by: Actor, flags: Mapping[str, bool]) -> SyncResult:
    return work.syncer.run(by=by, force=flags.get("force", False))


def _clean_up(work: Work, by: Actor, flags: Mapping[str, bool]) -> Dispatch:  # noqa: ARG001 - all jobs are called alike
    return Dispatch(work.cleaner.find_due)


def _expire(work: Work, by: Actor, flags: Mapping[str, bool]) -> ExpiryResult:  # noqa: ARG001 - the same
    return work.expirer.run(by=by)


def _purge_stale(work: Work, by: Actor, flags: Mapping[str, bool]) -> PurgeResult:  # noqa: ARG001 - the same
    return work.purger.run(by=by)


def _reserve(work: Work, by: Actor, flags: Mapping[str, bool]) -> ReserveResult:  # noqa: ARG001 - the same
    return work.reserver.run(by=by)


def _deliver(work: Work, by: Actor, flags: Mapping[str, bool]) -> DeliverResult:  # noqa: ARG001 - the same
    return work.deliverer.run()


def _watch(work: Work, by: Actor, flags: Mapping[str, bool]) -> WatchResult:  # noqa: ARG001 - the same
    return work.watcher.run(by=by)


JOBS = declare(
    JobSpec(
        name=Job.SYNC,
        title="Sync",
        summary="Update the pool from the provider's list of accounts.",
        description=(
            "A new account becomes an available sandbox. An available sandbox that the list lacks becomes stale. If "
            "too many are missing, the run marks nothing as stale and fails, unless it is forced."
        ),
        schedule=Every(seconds=600, setting="sync_interval_sec"),
        pause="sync",
        flags=(
            Flag(
                name="force",
                help="mark missing sandboxes as stale, even if they are too many",
                description="Mark missing sandboxes as stale, even if they are too many",
            ),
        ),
        work=_sync,
        example=asdict(
            SyncResult(
                synced=50,
                added=2,
                updated=1,
                restored=0,
                contradicted=0,
                stale=1,
                removed=0,
                skipped=0,
                refused=0,
                tombstones_listed=0,
                overtaken=0,
                failed=0,
                missing=1,
                judged=42,
            )
        ),
        log_action="background_sync",
        log_word="sync",
        counter="broker_sync_total",
    ),
    JobSpec(
        name=Job.CLEANUP,
        title="Cleanup",
        summary="Have the provider wipe the sandboxes that are due.",
        description="Each sandbox is a task of its own for the workers. The run ends when its last task ends.",
        schedule=Every(seconds=300, setting="cleanup_interval_sec"),
        pause="cleanup",
        work=_clean_up,
        example=CleanupTally(counts={DeleteOutcome.DELETED: 3, DeleteOutcome.WILL_RETRY: 1}).result,
        log_action="background_cleanup",
        log_word="cleanup",
        counter="broker_cleanup_total",
        # A run ends with its last delete, and the next run cannot start before that.
        overdue_intervals=6,
    ),
    JobSpec(
        name=Job.EXPIRE,
        title="Auto-expiry",
        summary="End the leases whose time is over.",
        description="A lease's time is over when `expires_at` and the buffer have passed. Its sandbox is then wiped.",
        schedule=Every(seconds=300, setting="auto_expiry_interval_sec"),
        pause="expire",
        work=_expire,
        example=asdict(ExpiryResult(expired=2, failed=0)),
        log_action="auto_expiry",
        log_word="expiry",
        counter="broker_expiry_total",
    ),
    JobSpec(
        name=Job.PURGE_STALE,
        title="Purge",
        summary="Remove the records that have been stale for too long.",
        description="A dirty sandbox leaves a tombstone, so that no sync adds it again as a new sandbox.",
        schedule=Daily(hour=2),
        work=_purge_stale,
        example=asdict(PurgeResult(removed=4, failed=0)),
        log_action="purge_stale",
        log_word="purge-stale",
    ),
    JobSpec(
        name=Job.RESERVE,
        title="Reserve",
        summary="Set sandboxes aside for reservations, and return those that are not needed.",
        description="A run also tells that a reservation begins or is short, and ends those whose time is over.",
        schedule=Every(seconds=15),
        work=_reserve,
        example=asdict(ReserveResult(set_aside=50, returned=0, opened=1, short=0, ended=1, failed=0)),
        log_action="reserve",
        log_word="reserve",
        # A run may be delayed by long ones of other jobs; the draws do not depend on it.
        overdue_intervals=20,
    ),
    JobSpec(
        name=Job.DELIVER,
        title="Deliver",
        summary="Make the deliveries of new facts to the endpoints of webhooks.",
        description="A run also hands endpoints with deliveries that are due to the workers that send them.",
        schedule=Every(seconds=2),
        work=_deliver,
        example=asdict(DeliverResult(facts=3, deliveries=6, failed=0)),
        log_action="deliver",
        log_word="deliver",
        # A run may take a minute while there is a flood of facts, and may wait for long ones of other jobs.
        overdue_intervals=90,
        is_frequent=True,
    ),
    JobSpec(
        name=Job.WATCH,
        title="Watch",
        summary="Sample the pool, and tell which leases end soon.",
        description=(
            "A run writes the counts of its minute. It tells each lease that ends within `EXPIRY_WARNING_MINUTES`,"
            " once for each end, and that the pool is low, or has recovered."
        ),
        schedule=Every(seconds=60),
        work=_watch,
        example=asdict(WatchResult(available=42, waiting=0, expiring=3, failed=0)),
        log_action="watch",
        log_word="watch",
        overdue_intervals=5,
    ),
)
"""All jobs by name."""
