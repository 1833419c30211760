"""What our gunicorn worker does to a request before the application sees it."""

from __future__ import annotations

import pytest

from broker_api.gunicorn_worker import fold_repeated


def test_headers_that_stand_once_are_left_alone() -> None:
    headers = [("HOST", "a"), ("X-TRACK-ID", "one, two"), ("VIA", "a"), ("VIA", "b")]
    assert fold_repeated(headers) is headers


def test_equal_caller_headers_become_one() -> None:
    headers = [("X-TRACK-ID", "track"), ("HOST", "a"), ("X-TRACK-ID", " track ")]
    assert sorted(fold_repeated(headers)) == [("HOST", "a"), ("X-TRACK-ID", "track")]


@pytest.mark.parametrize(
    "name",
    ["X-TRACK-ID", "X-INSTRUQT-SANDBOX-ID", "X-INSTRUQT-TRACK-ID", "X-SANDBOX-NAME-PREFIX", "IDEMPOTENCY-KEY"],
)
def test_different_caller_headers_become_one_that_no_client_can_send(name: str) -> None:
    assert fold_repeated([(name, "a"), (name, "b"), (name, "a")]) == [(name, "a\nb")]
