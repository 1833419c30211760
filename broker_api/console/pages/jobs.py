"""The page jobs: the last runs, one run until it ends, starting a run, and pauses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flask import Blueprint, abort, render_template, request, url_for
from werkzeug.utils import redirect

from broker_api.console.calls import act, back, need, read, sentence
from broker_api.console.forms import is_typed
from broker_api.console.texts import span
from broker_common.adapters.broker_http import Refused, quoted
from broker_common.core.job_names import Job
from broker_common.core.job_registry import JOBS
from broker_common.core.jobs import Daily, JobState

if TYPE_CHECKING:
    from collections.abc import Mapping

    from werkzeug.wrappers import Response

blueprint = Blueprint("jobs", __name__)
FORCE = "force"
"""What must be typed before a sync is forced."""
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
    "failed": "{} failed",
    "partial": "some wipes did not report",
}
"""The counts of all jobs in words. `{}` is the count."""


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
    return render_template("pages/job_run.html", job_id=job_id, run=run, spec=JOBS.get(run["job"]))


@blueprint.post("/jobs/<job>/run")
def run(job: str) -> Response:
    """Start a run, and go to its page."""
    need("operator")
    if job not in JOBS:
        abort(404)
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
def run_outcome(run: Mapping[str, Any]) -> str:
    """Return why a run failed or was skipped, or what it did, in words."""
    if run.get("error"):
        return sentence(run["error"])
    if run["state"] in {JobState.QUEUED, JobState.RUNNING}:
        return ""
    done = [count_words(name, count) for name, count in in_order(run.get("result") or {}) if count and name != "judged"]
    return sentence(", ".join(done) or "There was nothing to do")


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
    """Return how often a job runs unless the settings say otherwise."""
    schedule = JOBS[job].schedule
    return f"daily at {schedule.hour:02}:00 UTC" if isinstance(schedule, Daily) else f"every {span(schedule.seconds)}"
