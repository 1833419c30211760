"""Tokens that are bound to tracks, and tokens that come from files."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from tests.api.harness import Api, error_of, make_api

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def status(api: Api, token: str, track_id: str = "track-1") -> int:
    headers = {"Authorization": f"Bearer {token}", "X-Track-ID": track_id}
    return api.call("GET", "/v1/sandboxes", headers=headers).status_code


def with_file(file: Path) -> Api:
    return make_api(BROKER_API_TOKEN="", BROKER_API_TOKEN_FILE=str(file))


def replace(file: Path, text: str) -> None:
    """Change a file as mounted secrets change: another one takes its place."""
    successor = file.with_suffix(".next")
    successor.write_text(text)
    successor.replace(file)


def test_authorizations_that_differ_are_refused_as_such(api: Api) -> None:
    """They come joined by a line feed, which no header can hold by itself (see `gunicorn_worker`)."""
    sent = {"HTTP_AUTHORIZATION": "Bearer one\nBearer another"}
    answer = api.app.test_client().get("/v1/sandboxes", environ_overrides=sent)
    assert (answer.status_code, error_of(answer)["details"].keys()) == (400, {"Authorization"})


def test_a_bound_token_acts_for_the_tracks_of_its_prefix_only() -> None:
    api = make_api(BROKER_API_TOKEN="acme-*=token-of-acme,token-of-all")
    assert status(api, "token-of-acme", "acme-7") == 200
    assert status(api, "token-of-acme", "other-7") == 403
    assert status(api, "token-of-all", "other-7") == 200


def test_a_bound_token_is_refused_for_another_track_on_every_call() -> None:
    api = make_api(BROKER_API_TOKEN="acme-*=token-of-acme,track-token")
    headers = {"Authorization": "Bearer token-of-acme", "X-Track-ID": "other"}
    for method, path in (
        ("POST", "/v1/allocate"),
        ("GET", "/v1/sandboxes"),
        ("GET", "/v1/sandboxes/1"),
        ("POST", "/v1/sandboxes/1/mark-for-deletion"),
    ):
        answer = api.call(method, path, headers=headers)
        assert (answer.status_code, error_of(answer)["code"]) == (403, "FORBIDDEN")


def test_a_bound_token_does_not_use_up_what_another_track_may_ask_for() -> None:
    api = make_api(BROKER_API_TOKEN="acme-*=token-of-acme")
    status(api, "token-of-acme", "acme-7")
    status(api, "token-of-acme", "other-7")
    assert api.rate_limit.keys == ["track:acme-7", "address:127.0.0.1"]


def test_a_token_file_is_read_again_when_it_changes(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_text("the-old-token")
    api = with_file(file)
    assert (status(api, "the-old-token"), status(api, "the-new-token")) == (200, 401)
    replace(file, "the-old-token\nthe-new-token")
    assert (status(api, "the-old-token"), status(api, "the-new-token")) == (200, 200)
    replace(file, "the-new-token")
    assert (status(api, "the-old-token"), status(api, "the-new-token")) == (401, 200)


def test_a_change_that_cannot_be_used_leaves_the_tokens_before_it_valid(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "tokens"
    file.write_text("the-old-token")
    api = with_file(file)
    assert status(api, "the-old-token") == 200
    with caplog.at_level(logging.ERROR):
        replace(file, "the-new-token,sha256:nonsense")
        assert [status(api, "the-old-token") for _ in range(3)] == [200] * 3
        file.unlink()
        assert [status(api, "the-old-token") for _ in range(3)] == [200] * 3
    assert len(caplog.records) == 2
    assert "nonsense" not in caplog.text
    replace(file, "the-new-token")
    assert (status(api, "the-old-token"), status(api, "the-new-token")) == (401, 200)
