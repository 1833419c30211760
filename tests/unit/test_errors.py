"""What the errors tell their callers by themselves."""

from __future__ import annotations

import pytest

from broker_common.core.errors import (
    BrokerError,
    QueueUnavailable,
    SandboxNotFound,
    SignInUnavailable,
    StoreMisconfigured,
    StoreUnavailable,
    UpgradeUnfinished,
)


@pytest.mark.parametrize("kind", [StoreUnavailable, QueueUnavailable, SignInUnavailable, StoreMisconfigured])
def test_what_may_pass_says_when_to_come_back(
    kind: type[StoreUnavailable | QueueUnavailable | SignInUnavailable],
) -> None:
    assert (kind("away").retry_after or 0) >= 1
    assert kind("away", retry_after=9).retry_after == 9


def test_what_a_person_must_repair_is_asked_for_again_later_than_what_repairs_itself() -> None:
    assert (StoreMisconfigured("no table").retry_after or 0) > (StoreUnavailable("throttled").retry_after or 0)


@pytest.mark.parametrize("kind", [BrokerError, SandboxNotFound])
def test_where_repeating_is_no_remedy_no_time_is_named(kind: type[BrokerError]) -> None:
    assert kind("gone").retry_after is None


def test_what_an_upgrade_refuses_is_named_with_the_command_that_ends_it() -> None:
    error = UpgradeUnfinished("reserve sandboxes")
    assert error.message.startswith("cannot reserve sandboxes: the upgrade is not finished")
    assert "`broker upgrade finish`" in error.message
    assert (error.code, error.retry_after) == ("UPGRADE_UNFINISHED", 30)
    assert UpgradeUnfinished("reserve sandboxes", retry_after=5).retry_after == 5
