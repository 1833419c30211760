"""The page jobs: the last runs, one run until it ends, starting a run, and pauses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flask import Blueprint, abort, render_template, request, url_for
from werkzeug.utils import redirect

from broker_api.console.calls import act, back, need, read
from broker_api.console.forms import is_typed
from broker_api.console.texts import span
from broker_common.adapters.broker_http import Refused, Unreachable, quoted
from broker_common.core.job_names import Job
from broker_common.core.job_registry import JOBS
from broker_common.core.jobs import Daily, JobState

if TYPE_CHECKING:
    from collections.abc import Mapping

    from werkzeug.wrappers import Response

blueprint = Blueprint("jobs", __name__)
FORCE = "force"
"""What must be typed before a sync is forced."""
TYPED: Mapping[str, tuple[str, str]] = {
    Job.PURGE_STALE: (
        "purge",
        "It removes the records of sandboxes that are out of service for too long. No act takes that back.",
    )
}
"""The jobs whose word must be typed before they run, and why.

The others do nothing that they do not do within minutes anyway. A paused one is skipped.
"""
PAUSABLE = {
    "allocate": (
        "Allocation",
        "No track gets a sandbox. Tracks keep what they hold, can give it back, and keep their places in the line.",
    ),
    "sync": ("Sync", "The pool does not learn of new, changed or missing accounts at the provider."),
    "cleanup": (
        "Cleanup",
        "The provider is not asked to wipe anything. Returned sandboxes wait, and the pool shrinks.",
    ),
    "expire": ("Auto-expiry", "Leases whose time is over do not end by themselves."),
}
"""What can be paused: its name, and what a pause means."""
_ONE_JOB_LIMIT, _EACH_JOB_LIMIT = 50, 15
_OFTEN_SEC = 60
_RESULTS = {
    "synced": "{} listed by the provider",
    "added": "{} added",
    "updated": "{} updated",
    "restored": "{} back in service",
    "contradicted": "{} to be wiped again, because the provider still lists them",
    "stale": "{} taken out of service",
    "removed": "{} records removed",
    "skipped": "{} entries of the list skipped",
    "refused": "{} listed accounts not taken",
    "tombstones_listed": "{} still listed, although removed",
    "overtaken": "{} changed by others at the same time",
    "missing": "{} missing from the list",
    "judged": "{} compared with the list",
    "deleted": "{} wiped",
    "gone": "{} unknown to the provider",
    "will_retry": "{} to be tried again",
    "gave_up": "{} given up, a person must look",
    "misconfigured": "{} refused, because the provider does not accept the broker",
    "postponed": "{} postponed",
    "rested": "{} rested and free again",
    "not_due": "{} not due any more",
    "expired": "{} leases ended",
    "set_aside": "{} set aside",
    "returned": "{} given back to the pool",
    "opened": "{} reservations opened",
    "short": "{} reservations short",
    "ended": "{} reservations ended",
    "facts": "{} facts read",
    "deliveries": "{} deliveries made",
    "available": "{} available",
    "waiting": "{} waiting in the line",
    "expiring": "{} leases said to end soon",
    "failed": "{} failed in all",
    "partial": "some wipes did not report",
}
"""The counts of all jobs in words. `{}` is the count."""
_STATUS_OF = {
    "stale": "stale",
    "gave_up": "deletion_failed",
    "will_retry": "pending_deletion",
    "postponed": "pending_deletion",
    "contradicted": "pending_deletion",
    "expired": "pending_deletion",
    "set_aside": "reserved",
    "available": "available",
}
"""The status that the counted sandboxes got."""
_PAGE_OF = {
    "waiting": "line.index",
    "opened": "reservations.index",
    "short": "reservations.index",
    "ended": "reservations.index",
}
"""The page of what else is counted."""


@blueprint.get("/jobs")
def index() -> str:
    """Show the last run of each job, the runs of one or of the main jobs, and the pauses."""
    job = request.args.get("job") or None
    if job is not None and job not in JOBS:
        abort(404)
    overview = read("/overview")
    last = overview["jobs"]
    return render_template(
        "pages/jobs.html",
        jobs=JOBS.values(),
        chosen=job,
        main=[JOBS[name].title for name in _main_jobs()],
        last=None if last is None else {run["job"]: run for run in last},
        why_not=overview["jobs_error"],
        runs=[] if last is None else _runs_of(job),
        pauses=overview["pauses"],
        pauses_error=overview["pauses_error"],
        by_operation={each["operation"]: each for each in (overview["pauses"] or {}).get("paused", ())},
        pausable=PAUSABLE,
        typed_jobs=TYPED,
        force=FORCE,
    )


@blueprint.get("/jobs/runs/<job_id>")
def show(job_id: str) -> str | tuple[str, int]:
    """Show one run. The page renews itself until the run has ended."""
    try:
        run = read(f"/jobs/{quoted(job_id)}")
    except Refused as error:
        if error.code != "JOB_NOT_FOUND":
            raise
        return render_template("pages/job_run.html", job_id=job_id, run=None), 404
    spec, has_ended = JOBS.get(run["job"]), JobState(run["state"]).is_final
    return render_template(
        "pages/job_run.html",
        job_id=job_id,
        run=run,
        spec=spec,
        typed_jobs=TYPED,
        has_ended=has_ended,
        is_paused=has_ended and spec is not None and _is_paused(spec.pause),
    )


@blueprint.post("/jobs/<job>/run")
def run(job: str) -> Response:
    """Start a run, and go to its page. For some jobs a word must be typed."""
    need("operator")
    if job not in JOBS:
        abort(404)
    if job in TYPED and not is_typed(TYPED[job][0]):
        return back("jobs.index")
    return _start(job)


@blueprint.post("/jobs/sync/force")
def force() -> Response:
    """Start a sync that takes missing sandboxes out of service, however many they are. Its name must be typed."""
    need("operator")
    if not is_typed(FORCE):
        return back("jobs.index")
    return _start(Job.SYNC, json={"force": True})


@blueprint.post("/jobs/pauses/<operation>")
def pause(operation: str) -> Response:
    """Pause an operation, or let it go on, as the field `paused` says."""
    need("operator")
    if operation not in PAUSABLE:
        abort(404)
    wanted, name = request.form.get("paused") == "yes", PAUSABLE[operation][0]
    said = f"{name} {'is paused' if wanted else 'goes on'}. Every process follows within 5 seconds"
    act(said, "POST", "/pause", json={operation: wanted})
    return back("jobs.index")


def _start(job: str, **options: Any) -> Response:  # noqa: ANN401 - those of `act`
    started = act(f"{JOBS[job].title} is asked for. This page follows it", "POST", f"/{JOBS[job].path}", **options)
    if started is None:
        return back("jobs.index")
    return redirect(url_for("jobs.show", job_id=started.body["job_id"]), code=303)


def _is_paused(operation: str | None) -> bool:
    """Tell whether an operation is known to be paused."""
    if operation is None:
        return False
    try:
        return bool(read("/pause")[operation])
    except (Refused, Unreachable):
        return False


def _address_of(count: str) -> str | None:
    if count in _STATUS_OF:
        return url_for("sandboxes.index", status=_STATUS_OF[count])
    return url_for(_PAGE_OF[count]) if count in _PAGE_OF else None


def _main_jobs() -> list[str]:
    """Return the jobs that do not run every minute or more often: those others would fill every list."""
    return [job.name for job in JOBS.values() if isinstance(job.schedule, Daily) or job.schedule.seconds > _OFTEN_SEC]


def _runs_of(job: str | None) -> list[dict[str, Any]]:
    """Return the last runs of one job, or of the main jobs, newest first."""
    if job is not None:
        return list(read("/jobs", job=job, limit=_ONE_JOB_LIMIT)["runs"])
    runs = [run for name in _main_jobs() for run in read("/jobs", job=name, limit=_EACH_JOB_LIMIT)["runs"]]
    return sorted(runs, key=_asked_at, reverse=True)


def _asked_at(run: Mapping[str, Any]) -> int:
    return int(run.get("queued_at") or run.get("started_at") or 0)


@blueprint.app_template_filter()
def job_title(job: str) -> str:
    """Return what people call a job."""
    return JOBS[job].title if job in JOBS else job


@blueprint.app_template_filter()
def asked_by(run: Mapping[str, Any]) -> str:
    """Return who asked for a run: a name, or the schedule."""
    return "the schedule" if run["principal"].startswith("job:") else str(run["principal"])


@blueprint.app_template_filter()
def run_length(run: Mapping[str, Any]) -> str:
    """Return how long a run took: whole seconds are known."""
    if not run.get("ended_at") or not run.get("started_at"):
        return "-"
    seconds = run["ended_at"] - run["started_at"]
    return span(seconds) if seconds > 0 else "under 1 s"


@blueprint.app_template_filter()
def run_counts(run: Mapping[str, Any]) -> list[tuple[str, str | None]]:
    """Return what a run did: each count in words, and the address of what was counted, if a page shows it."""
    # The failures of a cleanup are also counted by what comes of each.
    left_out = {"judged", "failed"} if run["job"] == Job.CLEANUP else {"judged"}
    return [
        (count_words(name, count), _address_of(name))
        for name, count in in_order(run.get("result") or {})
        if count and name not in left_out
    ]


@blueprint.app_template_filter()
def in_order(result: Mapping[str, int]) -> list[tuple[str, int]]:
    """Return the counts of a run in the order in which they are best read. Unknown ones are last."""
    order = list(_RESULTS)
    return sorted(result.items(), key=lambda each: order.index(each[0]) if each[0] in _RESULTS else len(order))


@blueprint.app_template_filter()
def count_words(name: str, count: int) -> str:
    """Return one count of a run in words."""
    return _RESULTS.get(name, "{} " + name.replace("_", " ")).format(f"{count:,}")


@blueprint.app_template_filter()
def schedule_words(job: str) -> str:
    """Return how often a job runs. The API does not say what a setting makes of it."""
    schedule = JOBS[job].schedule
    if isinstance(schedule, Daily):
        return f"daily at {schedule.hour:02}:00 UTC"
    return f"every {span(schedule.seconds)}{', unless a setting says otherwise' if schedule.setting else ''}"
