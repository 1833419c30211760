"""Facts of sandboxes in words, for every page that shows facts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from broker_api.console.texts import utc

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

Fact = dict[str, Any]
"""A fact as the API answers it."""


def fact_text(fact: Fact) -> str:
    """Return what happened as a sentence. A filter of templates.

    A kind that is not known here is shown by its name and its details, because the API may be newer than the console.
    """
    say = _SENTENCES.get(fact["kind"])
    if say is not None:
        return say(fact)
    details = ", ".join(f"{name}: {value}" for name, value in fact["details"].items())
    return f"{fact['kind']} ({details})." if details else f"{fact['kind']}."


def _allocated(fact: Fact) -> str:
    details = fact["details"]
    lab = f" for the lab {details['track_name']}" if "track_name" in details else ""
    source = ", from a reservation" if "reservation_id" in details else ""
    until = f", until {utc(details['expires_at'])}" if "expires_at" in details else ""
    return f"{_track(fact)} got it{lab}{source}{until}."


def _extended(fact: Fact) -> str:
    before = fact["details"].get("expires_at_before")
    instead = f" instead of {utc(before)}" if before is not None else ""
    return f"The lease of {_track(fact)} lasts until {_end(fact)}{instead}."


def _wiped(fact: Fact) -> str:
    doubt = " The provider only said that it will." if fact["details"].get("accepted_only") else ""
    return f"The provider wiped it.{doubt}{_AFTER_WIPE.get(fact['status'], '')}"


def _wipe_failed(fact: Fact) -> str:
    return f"Try {fact['details'].get('tries', '?')} to wipe it failed: {_error(fact)}."


def _needs_attention(fact: Fact) -> str:
    tries = fact["details"].get("tries")
    after = f", after {tries} failed tries" if tries and tries > 1 else ""
    return f"It needs a person{after}: {_error(fact)}."


def _stale(fact: Fact) -> str:
    why = fact["details"].get("error") or "the provider does not list it as active, or another record has its account"
    return f"It went out of service: {why}."


def _updated(fact: Fact) -> str:
    details = fact["details"]
    if details.get("quarantine") == "lifted":
        return "The quarantine was lifted: it will go the usual way after its wipe."
    return f"The provider changed it.{_before(details)}"


def _restored(fact: Fact) -> str:
    then = " It is dirty, so it waits to be wiped." if fact["status"] == "pending_deletion" else ""
    return f"The provider lists it again.{_before(fact['details'])}{then}"


def _removed(fact: Fact) -> str:
    if fact["details"].get("error"):
        return f"It was removed from the pool: {_error(fact)}."
    if fact["details"].get("tombstone"):
        return "The provider no longer lists it: the record of its removal was removed, too."
    if fact["status"] == "deleted":
        return "It was removed from the pool. A tombstone stays, so that a sync does not add it again."
    return "It was removed from the pool."


def _quarantined(fact: Fact) -> str:
    when = "It was set aside" if fact["status"] == "deletion_failed" else "It will be set aside after its wipe"
    return f"{when}: {fact['details'].get('reason', 'no reason is kept')}."


def _fixed(text: str) -> Callable[[Fact], str]:
    return lambda _: text


def _track(fact: Fact) -> str:
    return f"Track {fact['track_id']}" if fact["track_id"] else "A track"


def _end(fact: Fact) -> str:
    at = fact["details"].get("expires_at")
    return utc(at) if at is not None else "a time that is not kept"


def _error(fact: Fact) -> str:
    return str(fact["details"].get("error", "the reason is not kept")).rstrip(".")


def _before(details: Mapping[str, Any]) -> str:
    old = [
        f" Its {name} was {details[f'{field}_before']}."
        for field, name in _ACCOUNT.items()
        if f"{field}_before" in details
    ]
    return "".join(old)


_ACCOUNT = {"name": "name", "external_id": "external id", "sfdc_account_id": "Salesforce account"}
_AFTER_WIPE = {
    "available": " It is available again.",
    "reserved": " It is set aside for a reservation.",
    "stale": " It is out of service until a sync sees it.",
    "pending_deletion": " It rests before it is available again.",
    "deletion_failed": " It is set aside, as an operator wanted.",
    "deleted": " It is used once only, so it was removed from the pool.",
}
_SENTENCES: Mapping[str, Callable[[Fact], str]] = {
    "sandbox.added": _fixed("A sync found it at the provider, and added it to the pool."),
    "sandbox.updated": _updated,
    "sandbox.allocated": _allocated,
    "sandbox.extended": _extended,
    "sandbox.expiring": lambda fact: f"The lease of {_track(fact)} ends soon: at {_end(fact)}.",
    "sandbox.marked": lambda fact: f"{_track(fact)} gave it back. It waits to be wiped.",
    "sandbox.released": lambda fact: f"An operator ended the lease of {_track(fact)}. It waits to be wiped.",
    "sandbox.expired": lambda fact: f"The time of {_track(fact)} was over. It waits to be wiped.",
    "sandbox.wiped": _wiped,
    "sandbox.wipe_failed": _wipe_failed,
    "sandbox.needs_attention": _needs_attention,
    "sandbox.available": _fixed("Its rest after the wipe is over. It is available."),
    "sandbox.reserved": _fixed("It was set aside for a reservation."),
    "sandbox.unreserved": _fixed("It is no longer set aside for a reservation. It is available."),
    "sandbox.retried": _fixed("An operator sent it to be wiped again."),
    "sandbox.stale": _stale,
    "sandbox.restored": _restored,
    "sandbox.removed": _removed,
    "sandbox.quarantined": _quarantined,
}
