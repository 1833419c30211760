"""Facts in words: what a page says about each fact of the feed or of a sandbox's history.

A fact is the dictionary that the API answers. A kind or a detail that this release does not know is shown by its name.
"""

from __future__ import annotations

from string import Formatter
from typing import TYPE_CHECKING, Any, NamedTuple

from broker_api.console.provider_errors import plain_error
from broker_api.webhook_description import KINDS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from flask import Flask

_SENTENCES = {
    "sandbox.added": "A sync found this new sandbox.",
    "sandbox.updated": "The provider changed the name or an id of the sandbox.",
    "sandbox.allocated": "A track got the sandbox.",
    "sandbox.extended": "The lease was extended.",
    "sandbox.expiring": "The lease ends soon.",
    "sandbox.marked": "The track gave the sandbox back.",
    "sandbox.released": "An operator ended the lease.",
    "sandbox.expired": "The time of the lease was over, and the broker ended it.",
    "sandbox.wiped": "The provider wiped the sandbox.",
    "sandbox.wipe_failed": "The wipe failed ({tries} so far). The broker tries again.",
    "sandbox.needs_attention": "The sandbox needs a person.",
    "sandbox.available": "The sandbox has rested after its wipe.",
    "sandbox.reserved": "The sandbox was set aside for a reservation.",
    "sandbox.unreserved": "The sandbox was returned from a reservation.",
    "sandbox.retried": "An operator sent the sandbox to be wiped again.",
    "sandbox.stale": "The sandbox is out of service, because the provider does not list it as active.",
    "sandbox.restored": "A sync saw the sandbox again.",
    "sandbox.removed": "The sandbox left the pool.",
    "sandbox.quarantined": "An operator put the sandbox into quarantine: {reason}",
    "pool.paused": "An operator paused {operation}.",
    "pool.resumed": "An operator resumed {operation}.",
    "pool.low": "Few sandboxes are available: {available} of {in_service} in service. The limit is {low_percent} %.",
    "pool.recovered": "Enough sandboxes are available again: {available} of {in_service} in service.",
    "sync.braked": "A sync missed {missing} of {judged} sandboxes, which is too many. It took none out of service.",
    "reservation.open": "The class {name} begins, and its {count} sandboxes are set aside.",
    "reservation.short": "The class {name} begins, and lacks {short_by} of its {count} sandboxes.",
    "reservation.ended": "The class {name} ended. It drew {drawn} of its {count} sandboxes.",
    "webhook.disabled": "The broker sends nothing more to a webhook: {reason}.",
}
"""By kind. In braces: a detail of the fact."""
_IF = {
    ("sandbox.updated", "quarantine"): "An operator lifted the quarantine.",
    ("sandbox.wiped", "accepted_only"): "The provider accepted the wipe, but did not say that it is done.",
    ("sandbox.stale", "error"): "The sandbox is out of service: {error}.",
    ("sandbox.removed", "tombstone"): "The last record of the removed sandbox is gone.",
    (
        "reservation.ended",
        "cancelled",
    ): "The class {name} was cancelled. It had drawn {drawn} of its {count} sandboxes.",
}
"""The sentence of a kind whose fact has a certain detail."""
_LABELS = {
    "expires_at": ("lease ends", "time"),
    "expires_at_before": ("it would have ended", "time"),
    "latest_expires_at": ("can be extended to", "time"),
    "track_name": ("lab", "lab"),
    "customer": ("customer", "customer"),
    "reservation_id": ("reservation", "reservation"),
    "endpoint_id": ("webhook", "webhook"),
    "tries": ("failed attempts", "text"),
    "error": ("error", "text"),
    "name": ("name before", "text"),
    "external_id": ("id at the provider before", "text"),
    "sfdc_account_id": ("Salesforce account before", "text"),
    "services": ("services the student left", "text"),
    "services_removed": ("services removed", "text"),
    "services_left": ("services left", "text"),
    "services_error": ("why services are left", "text"),
    "set_aside": ("set aside now", "text"),
    "pending_deletion": ("waiting to be wiped", "text"),
    "waiting": ("tracks in line", "text"),
    "in_service": ("in service", "text"),
    "low_percent": ("limit in %", "text"),
    "short_by": ("lacks", "text"),
}
"""Details that have another name on pages, or are links or times."""


class Detail(NamedTuple):
    """A detail that the sentence of its fact leaves out.

    `form` says what the value is: `time`, `lab`, `customer`, `reservation`, `webhook`, or `text`.
    """

    label: str
    form: str
    value: str | int


class _Known(dict[str, Any]):
    """The details of a fact, for a sentence. One that is missing does not break the page."""

    def __missing__(self, name: str) -> str:
        return f"({name.replace('_', ' ')} unknown)"


def register_facts(app: Flask) -> None:
    """Give templates the filters `fact_sentence` and `fact_details`. The macros in `facts.html` use them."""
    app.add_template_filter(fact_sentence)
    app.add_template_filter(fact_details)


def fact_name(fact: Mapping[str, Any]) -> str:
    """Return what tells a fact from all others. A reader of the feed drops a fact whose name it has seen."""
    return fact["fact_id"] or f"{fact['sandbox_id']}:{fact['version']}:{fact['kind']}"


def fact_sentence(fact: Mapping[str, Any]) -> str:
    """Return what happened, as a sentence without links."""
    return _pattern(fact).format_map(_Known(_details(fact)))


def fact_details(fact: Mapping[str, Any]) -> list[Detail]:
    """Return the details that the sentence leaves out."""
    pattern = _pattern(fact)
    told = {name for _, name, _, _ in Formatter().parse(pattern)}
    found = []
    for name, value in _details(fact).items():
        is_told = name in told or (fact["kind"], name) in _IF
        label, form = _LABELS.get(name, (name.replace("_", " "), "text"))
        if not is_told:
            found.append(Detail(label, form, value))
    return found


def kind_meaning(kind: str) -> str:
    """Return what a kind of fact means, as the API's description says it; its name if it is not known."""
    return KINDS[kind].meaning.replace("`", "") if kind in KINDS else kind


def _details(fact: Mapping[str, Any]) -> dict[str, Any]:
    given: dict[str, Any] = dict(fact["details"])
    return given | {name: plain_error(given[name]) for name in ("error",) if isinstance(given.get(name), str)}


def _pattern(fact: Mapping[str, Any]) -> str:
    kind, details = fact["kind"], fact["details"]
    special = (text for (of, detail), text in _IF.items() if of == kind and detail in details)
    return next(special, _SENTENCES.get(kind, f"{kind.replace('_', ' ').replace('.', ': ')}."))
