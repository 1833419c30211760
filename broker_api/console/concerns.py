"""What an operator must know first: whether tracks are being served, and what needs a person. All from the overview."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from broker_api.console.calls import sentence
from broker_api.console.provider_errors import plain_error
from broker_common.core.job_names import Job
from broker_common.core.job_registry import JOBS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

ASKED = {
    "success": "got a sandbox",
    "idempotent": "asked again for what they hold",
    "waiting": "were told to wait in the line",
    "no_sandboxes": "were refused, because none was free",
    "error": "failed",
}
"""The outcomes of requests to allocate, in words."""
_OLD_SEC = 3600
"""A wipe that waits for longer needs a look."""
_FIRST_RUNS_SEC = 120
"""The job Watch runs once a minute, so it has run by then."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Whether tracks are being served: `good`, `warning` or `bad`, the answer, and the reasons, as sentences.

    `since` (Unix seconds) is since when it is so, if that is known.
    """

    level: str
    answer: str
    reasons: tuple[str, ...] = ()
    since: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Concern:
    """Something that needs a person, as a sentence, and the page that says more. `since` is in Unix seconds."""

    text: str
    endpoint: str
    values: Mapping[str, Any] = field(default_factory=dict)
    since: int | None = None


def judge(overview: Mapping[str, Any], *, waited_before: int | None) -> Verdict:
    """Return whether tracks are being served. `waited_before`: the length of the line a quarter of an hour ago."""
    found = _judge(overview)
    waiting = overview["line"]["waiting"]
    more = []
    if waited_before is not None and waiting > waited_before:
        more.append(f"The line grows: {waited_before:,} waited a quarter of an hour ago, {waiting:,} wait now.")
    if overview["pauses"] is None:
        more.append("It is not known whether allocation is paused.")
    level = "warning" if more and found.level == "good" else found.level
    return Verdict(level=level, answer=found.answer, reasons=(*found.reasons, *more), since=found.since)


def _judge(overview: Mapping[str, Any]) -> Verdict:
    counts, waiting = overview["counts"], overview["line"]["waiting"]
    free, pauses = counts["available"], overview["pauses"]
    paused = {each["operation"]: each for each in pauses["paused"]} if pauses else {}
    if pause := paused.get("allocate"):
        by = f" by {pause['by']}" if pause["by"] else ""
        return Verdict(
            level="bad",
            answer="No. Allocation is paused.",
            reasons=(f"It was paused{by}. Tracks keep what they hold.", _last_hour(overview)),
            since=pause["since"],
        )
    if not counts["total"]:
        return Verdict(
            level="bad",
            answer="No. The pool is empty.",
            reasons=("The broker knows no sandbox yet. Run a sync on the page Jobs, and look at its outcome.",),
        )
    if not free:
        return _judge_without_free(overview)
    return _judge_with_free(overview, f"{_sandboxes(free)} free", waiting)


def _judge_without_free(overview: Mapping[str, Any]) -> Verdict:
    counts, waiting = overview["counts"], overview["line"]["waiting"]
    reasons = (_last_hour(overview), _coming_back(counts))
    if counts["reserved"]:
        return Verdict(
            level="warning",
            answer="Only classes. All sandboxes that are free are set aside for reservations.",
            reasons=reasons,
        )
    if waiting:
        return Verdict(
            level="bad",
            answer=f"Not at once. No sandbox is free, and {_tracks(waiting)} in the line.",
            reasons=reasons,
            since=overview["line"]["longest_waiting_since"],
        )
    return Verdict(
        level="bad",
        answer="Not now. No sandbox is free.",
        reasons=("The next track is refused, or waits in the line.", *reasons),
    )


def _judge_with_free(overview: Mapping[str, Any], free: str, waiting: int) -> Verdict:
    asked = overview["allocates"]
    served, failed, refused = asked["success"], asked["error"], asked["no_sandboxes"]
    reasons = (_last_hour(overview),)
    if failed > served:
        return Verdict(
            level="bad",
            answer=f"Hardly. {failed:,} requests failed in the last hour, although {free}.",
            reasons=reasons,
        )
    if failed:
        return Verdict(
            level="warning", answer=f"Mostly. {free}, but {failed:,} requests failed in the last hour.", reasons=reasons
        )
    if waiting:
        return Verdict(
            level="warning",
            answer=f"Not all. {free}, and {_tracks(waiting)} in the line.",
            reasons=(*reasons, "Who waits gets one within seconds, or needs another kind of sandbox than is free."),
            since=overview["line"]["longest_waiting_since"],
        )
    if refused:
        return Verdict(
            level="warning",
            answer=f"Yes, now. {free}, but {refused:,} requests were refused in the last hour.",
            reasons=reasons,
        )
    return Verdict(level="good", answer=f"Yes. {free}.", reasons=reasons)


def _last_hour(overview: Mapping[str, Any]) -> str:
    asked = overview["allocates"]
    parts = [f"{asked[name]:,} {text}" for name, text in ASKED.items() if asked[name]]
    return f"Requests of the last hour: {', '.join(parts)}." if parts else "No track asked in the last hour."


def _coming_back(counts: Mapping[str, int]) -> str:
    return f"{counts['allocated']:,} are in use, and {counts['pending_deletion']:,} wait to be wiped."


def _sandboxes(count: int) -> str:
    return "1 sandbox is" if count == 1 else f"{count:,} sandboxes are"


def _tracks(count: int) -> str:
    return "1 track waits" if count == 1 else f"{count:,} tracks wait"


def find_concerns(overview: Mapping[str, Any], *, now: int, up_since: int) -> list[Concern]:
    """Return what needs a person, with the most urgent first. `up_since`: when this console was started."""
    return [
        *_of_pauses(overview),
        *_of_jobs(overview, now, up_since),
        *_of_provider(overview),
        *_of_pool(overview, now),
        *_of_classes(overview),
        *_of_webhooks(overview),
    ]


def _of_pauses(overview: Mapping[str, Any]) -> Iterator[Concern]:
    if overview["pauses"] is None:
        yield Concern(text=f"The pauses cannot be read: {sentence(overview['pauses_error'])}", endpoint="jobs.index")
        return
    for each in overview["pauses"]["paused"]:
        name = "Allocation" if each["operation"] == "allocate" else _title(each["operation"])
        by = f" by {each['by']}" if each["by"] else ""
        yield Concern(text=f"{name} is paused{by}.", endpoint="jobs.index", since=each["since"])


def _of_jobs(overview: Mapping[str, Any], now: int, up_since: int) -> Iterator[Concern]:
    if overview["jobs"] is None:
        text = f"The jobs cannot be read: {sentence(overview['jobs_error'])} Tracks are served all the same."
        yield Concern(text=text, endpoint="jobs.index")
        return
    last = {run["job"]: run for run in overview["jobs"]}
    for run in last.values():
        if run["state"] == "failed":
            text = (
                f"{_title(run['job'])} failed: {sentence(plain_error(run.get('error') or 'the reason is not known'))}"
            )
            yield Concern(text=text, endpoint="jobs.show", values={"job_id": run["job_id"]}, since=run.get("ended_at"))
    # Some jobs run every minute or more often, and no setting changes that.
    began = max((run.get("started_at") or 0 for run in last.values() if _is_scheduled(run)), default=None)
    # A broker that was started together with the console needs a moment for its first runs.
    if now - up_since > _FIRST_RUNS_SEC and (began is None or now - began > JOBS[Job.WATCH].overdue_sec):
        text = "The jobs do not run. Look whether beat and a worker for jobs are running."
        yield Concern(text=text, endpoint="jobs.index", since=began)


def _title(job: str) -> str:
    """Return what people call a job. One that only a newer API knows has its own name."""
    return JOBS[job].title if job in JOBS else job.replace("_", " ").capitalize()


def _is_scheduled(run: Mapping[str, Any]) -> bool:
    return str(run["principal"]).startswith("job:")


def _of_provider(overview: Mapping[str, Any]) -> Iterator[Concern]:
    breaker = overview["breaker"]
    if breaker is None and overview["jobs"] is not None:
        yield Concern(text=f"The breaker cannot be read: {sentence(overview['breaker_error'])}", endpoint="jobs.index")
    if breaker is not None and breaker["state"] != "closed":
        why = sentence(plain_error(breaker["reason"] or "the reason is not known"))
        text = f"The breaker of calls to the provider is {breaker['state']}, so wipes wait: {why}"
        yield Concern(text=text, endpoint="jobs.index", values={"job": Job.CLEANUP})


def _of_pool(overview: Mapping[str, Any], now: int) -> Iterator[Concern]:
    failed, oldest = overview["counts"]["deletion_failed"], overview["oldest_pending_deletion_at"]
    if failed:
        text = f"{failed:,} {'sandbox needs' if failed == 1 else 'sandboxes need'} a person: see the reason of each."
        yield Concern(text=text, endpoint="sandboxes.index", values={"status": "deletion_failed"})
    if oldest is not None and now - oldest > _OLD_SEC:
        text = "A sandbox has waited for more than an hour to be wiped."
        yield Concern(text=text, endpoint="sandboxes.index", values={"status": "pending_deletion"}, since=oldest)


def _of_classes(overview: Mapping[str, Any]) -> Iterator[Concern]:
    for each in overview["reservations"]:
        if each["short_by"]:
            text = f"The class {each['name']} lacks {each['short_by']:,} of {each['count']:,} sandboxes."
            yield Concern(
                text=text,
                endpoint="reservations.show",
                values={"reservation_id": each["reservation_id"]},
            )


def _of_webhooks(overview: Mapping[str, Any]) -> Iterator[Concern]:
    hooks = overview["webhooks"]
    for state, words in (("failing", "failing"), ("disabled", "disabled")):
        if hooks[state]:
            text = (
                f"{hooks[state]:,} of {hooks['endpoints']:,} webhooks {'is' if hooks[state] == 1 else 'are'} {words}."
            )
            yield Concern(text=text, endpoint="webhooks.index")
