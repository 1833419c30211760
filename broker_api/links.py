"""Links from answers to the calls that take parts of them, as the API's description has them.

Source: OpenAPI 3.1, "Link Object" and "Runtime Expressions".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping


def _link(operation: str, parameters: dict[str, str], body: dict[str, str] | None = None) -> dict[str, dict[str, Any]]:
    link: dict[str, Any] = {"operationId": operation, "parameters": parameters}
    return {operation: link | ({"requestBody": body} if body else {})}


_AS_TRACK = {"X-Track-ID": "$request.header.X-Track-ID"}


def _to_calls_of_the_track(sandbox: str) -> dict[str, Any]:
    """Return the links of an answer whose body has, at the JSON pointer `sandbox`, a sandbox of the calling track."""
    lease = {"lease_id": f"$response.body#{sandbox}/lease_id"}
    own = {"sandbox_id": f"$response.body#{sandbox}/sandbox_id"}
    as_track = own | _AS_TRACK
    return (
        _link("readSandbox", as_track)
        | _link("extend", as_track)
        | _link("markForDeletion", as_track, lease)
        | _link("adminReadSandbox", own)
        | _link("adminExtend", own)
        | _link("adminRelease", own, lease)
    )


_FIRST = {"sandbox_id": "$response.body#/sandboxes/0/sandbox_id"}
_SAME = {"sandbox_id": "$response.body#/sandbox_id"}
_TO_SAME = _link("adminReadSandbox", _SAME)

_RESERVATION = {"reservation_id": "$response.body#/reservation_id"}
_VERSION = {"version": "$response.body#/version"}
_TO_RESERVATION = (
    _link("adminReadReservation", _RESERVATION)
    | _link("adminChangeReservation", _RESERVATION, _VERSION)
    | _link("adminCancelReservation", _RESERVATION)
)

_ENDPOINT = {"endpoint_id": "$response.body#/endpoint_id"}
_TO_ENDPOINT = (
    _link("adminReadWebhook", _ENDPOINT)
    | _link("adminChangeWebhook", _ENDPOINT, _VERSION)
    | _link("adminRotateWebhookSecret", _ENDPOINT)
    | _link("adminTestWebhook", _ENDPOINT)
    | _link("adminReplayWebhook", _ENDPOINT)
    | _link("adminListDeliveries", _ENDPOINT)
    | _link("adminRemoveWebhook", _ENDPOINT)
)
_DELIVERY = {"endpoint_id": "$request.path.endpoint_id", "delivery_id": "$response.body#/delivery_id"}

LINKS: Mapping[tuple[str, int], Mapping[str, Any]] = {
    ("allocate", 201): _to_calls_of_the_track(""),
    ("allocate", 200): _to_calls_of_the_track(""),
    ("allocate", 202): _link("listWaiting", _AS_TRACK) | _link("giveUpWaiting", _AS_TRACK),
    ("extend", 200): _to_calls_of_the_track(""),
    ("listHeldSandboxes", 200): _to_calls_of_the_track("/sandboxes/0"),
    ("adminListWaiting", 200): _link("adminRemovePlace", {"place_id": "$response.body#/places/0/place_id"}),
    ("adminListSandboxes", 200): _link("adminReadSandbox", _FIRST)
    | _link("adminQuarantine", _FIRST)
    | _link("adminRetryDeletion", _FIRST)
    | _link("adminRelease", _FIRST, {"lease_id": "$response.body#/sandboxes/0/lease_id"})
    | _link("adminListSandboxes", {"cursor": "$response.body#/cursor", "status": "$request.query.status"}),
    ("adminRelease", 200): _TO_SAME,
    ("adminRetryDeletion", 200): _TO_SAME,
    ("adminLiftQuarantine", 200): _TO_SAME,
    ("adminQuarantine", 200): _link("adminRetryDeletion", _SAME) | _link("adminLiftQuarantine", _SAME),
    ("adminReadEvents", 200): _link(
        "adminReadEvents", {"after": "$response.body#/cursor", "order": "$request.query.order"}
    ),
    ("adminBook", 201): _TO_RESERVATION | _link("allocate", {"X-Reservation-ID": "$response.body#/reservation_id"}),
    ("adminChangeReservation", 200): _TO_RESERVATION,
    ("adminListReservations", 200): _link(
        "adminReadReservation", {"reservation_id": "$response.body#/reservations/0/reservation_id"}
    )
    | _link("adminListReservations", {"cursor": "$response.body#/cursor", "state": "$request.query.state"}),
    ("adminAddWebhook", 201): _TO_ENDPOINT,
    ("adminChangeWebhook", 200): _TO_ENDPOINT,
    ("adminListWebhooks", 200): _link("adminReadWebhook", {"endpoint_id": "$response.body#/webhooks/0/endpoint_id"}),
    ("adminTestWebhook", 202): _link("adminReadDelivery", _DELIVERY) | _link("adminRetryDelivery", _DELIVERY),
    ("adminListJobs", 200): _link("adminReadJob", {"job_id": "$response.body#/runs/0/job_id"}),
}
"""By the operation and the status of the answer. Those of the calls that start jobs are `TO_RUN`."""
TO_RUN = _link("adminReadJob", {"job_id": "$response.body#/job_id"})
