"""Pools of realistic sandboxes."""

from __future__ import annotations

import uuid
from random import Random

from broker_common.core.pool import add
from broker_common.core.principals import job_actor
from broker_common.core.sandbox import ORDER_LIMIT, Account, Sandbox

_SYNCED_AT = 1_750_000_000


def make_pool(count: int, *, first: int = 0) -> list[Sandbox]:
    """Return available sandboxes as a sync adds them, numbered from `first`, with the provider's usual names and ids.

    The same call makes the same sandboxes.
    """
    rng = Random(first)
    return [
        add(
            Account(
                sandbox_id=str(2_000_000 + number),
                external_id=f"identity/accounts/{uuid.UUID(int=rng.getrandbits(128), version=4)}",
                name=f"lab-adventure-{number:06}",
                sfdc_account_id=f"0018B{number:013X}",
            ),
            order=rng.randrange(ORDER_LIMIT),
            now=_SYNCED_AT,
            version=_SYNCED_AT * 1000,
            by=job_actor("sync"),
        ).result
        for number in range(first, first + count)
    ]
