"""The bodies of a track's calls."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from marshmallow import Schema, fields, pre_dump

from broker_api.schemas.parts import (
    LEASE_ID,
    enum_field,
    given_number_field,
    number_field,
    optional_text_field,
    optional_time_field,
    plain_field,
    text_field,
    time_field,
)
from broker_common.core.flat import flatten, flatten_claim
from broker_common.core.policy import MIN_LAB_DURATION_SEC
from broker_common.core.sandbox import ORDER_LIMIT, Status

if TYPE_CHECKING:
    from broker_common.core.flat import Flat
    from broker_common.core.leases import Extension
    from broker_common.core.sandbox import Claim, Sandbox

_STATUS = "The sandbox's status"


class _AccountSchema(Schema):
    """What every answer says of a sandbox."""

    sandbox_id = text_field("2009521", "The provider's `csp_id` of the account")
    name = text_field("lab-adventure-0087", "The provider's name of the account; its id if it has no name")
    external_id = text_field(
        "identity/accounts/7d2f0c7e-0000-4000-8000-000000000000", "The provider's `id` of the account"
    )
    sfdc_account_id = optional_text_field("0010CBF5B44E795C05", "The provider's, if the provider gave one; else null")
    track_name = optional_text_field("intro-to-dns", "From the header `X-Instruqt-Track-ID` of allocate; else null")

    def get_attribute(self, obj: Flat, attr: str, default: Any) -> Any:  # noqa: ANN401 - marshmallow's signature
        """Return a field of what `_flatten` returns. marshmallow would also look for an attribute."""
        return obj.get(attr, default)


class AllocationInputSchema(Schema):
    """What a track asks for."""

    duration_sec = given_number_field(
        {
            "example": 7200,
            "description": "How long the lease lasts, in seconds: at most `MAX_LAB_DURATION_HOURS`. Without it,"
            " `LAB_DURATION_HOURS`",
        },
        low=MIN_LAB_DURATION_SEC,
    )


class AllocationSchema(_AccountSchema):
    """An allocated sandbox."""

    @pre_dump
    def _flatten(self, claim: Claim, **_: Any) -> Flat:  # noqa: ANN401 - marshmallow's options
        return flatten_claim(claim)

    lease_id = text_field(LEASE_ID, "New for every allocation; send it in a mark for deletion that may be late")
    allocated_at = time_field("When the allocation began")
    expires_at = time_field("Until when the track may use the sandbox", 1759589355)


class HeldSandboxSchema(_AccountSchema):
    """A sandbox, as its holder or its last holder reads it."""

    @pre_dump
    def _flatten(self, sandbox: Sandbox, **_: Any) -> Flat:  # noqa: ANN401 - marshmallow's options
        return {**flatten(sandbox), "latest_lease_id": sandbox.latest_lease_id}

    lease_id = optional_text_field(
        LEASE_ID, "The lease that the track holds, or held last", attribute="latest_lease_id"
    )
    allocated_at = optional_time_field("When the latest allocation began", 1759574955)
    expires_at = optional_time_field("Until when the latest allocation may be used", 1759589355)
    status = enum_field(Status, {"description": _STATUS, "example": Status.ALLOCATED.value}, required=True)
    allocated_to_track = optional_text_field(
        "track-4711", "The track that holds it; null once its allocation has ended"
    )


class HeldSandboxesSchema(Schema):
    """The sandboxes that the calling track holds."""

    sandboxes = fields.List(fields.Nested(HeldSandboxSchema), required=True)
    count = number_field("How many are in `sandboxes`", 1)


class ExtendInputSchema(Schema):
    """Until when a lease must last."""

    expires_at = given_number_field(
        {"example": 1759592955, "description": "The new end of the lease, in Unix seconds"},
        low=0,
        high=ORDER_LIMIT - 1,
        required=True,
    )
    lease_id = plain_field(
        {"example": LEASE_ID, "description": "The lease to extend. Without it, the lease that is read first"}
    )


class ExtendedSchema(Schema):
    """A lease that lasts at least as long as asked."""

    @pre_dump
    def _flatten(self, extension: Extension, **_: Any) -> Flat:  # noqa: ANN401 - marshmallow's options
        lease = extension.lease
        return {"sandbox_id": extension.sandbox_id, "lease_id": lease.lease_id, "expires_at": lease.expires_at}

    sandbox_id = text_field("2009521", "As in the path")
    lease_id = text_field(LEASE_ID, "The lease that was extended")
    expires_at = time_field("Until when the track may use the sandbox", 1759592955)


class MarkInputSchema(Schema):
    """The lease that a mark for deletion is meant for."""

    lease_id = plain_field(
        {
            "example": LEASE_ID,
            "description": "The lease to end. Without it, the mark ends the lease that it reads first",
        }
    )


class MarkedSchema(Schema):
    """A sandbox that its track has given back."""

    @pre_dump
    def _flatten(self, sandbox: Sandbox, **_: Any) -> Flat:  # noqa: ANN401 - marshmallow's options
        return {**flatten(sandbox), "latest_lease_id": sandbox.latest_lease_id}

    sandbox_id = text_field("2009521", "As in the path")
    status = enum_field(Status, {"description": _STATUS, "example": Status.PENDING_DELETION.value}, required=True)
    lease_id = optional_text_field(LEASE_ID, "The lease that the track held", attribute="latest_lease_id")
    deletion_requested_at = optional_time_field("When the allocation ended", 1759580000)
