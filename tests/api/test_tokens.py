"""Tokens for some tracks only, tokens from files, and named tokens."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import pytest
from structlog.contextvars import merge_contextvars
from structlog.testing import capture_logs

from broker_api.auth import actor
from broker_common.core.principals import Actor
from tests.api.harness import Api, assert_error, body_of, error_of, make_api, named_token
from tests.fakes import StoreWrapper

if TYPE_CHECKING:
    from pathlib import Path

    from broker_common.core.facts import PoolFact
    from broker_common.core.store import Pauses


def status(api: Api, token: str, track_id: str = "track-1") -> int:
    headers = {"Authorization": f"Bearer {token}", "X-Track-ID": track_id}
    return api.call("GET", "/v1/sandboxes", headers=headers).status_code


def with_file(file: Path) -> Api:
    return make_api(BROKER_API_TOKEN="", BROKER_API_TOKEN_FILE=str(file))


def replace(file: Path, text: str) -> None:
    """Replace a file, as mounted secrets are replaced."""
    successor = file.with_suffix(".next")
    successor.write_text(text)
    successor.replace(file)


def test_authorizations_that_differ_are_refused_as_such(api: Api) -> None:
    """`gunicorn_worker` joins them by a line feed, which no single header can hold."""
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
        assert_error(answer, 403, "FORBIDDEN")


def test_a_bound_token_does_not_use_up_what_another_track_may_ask_for() -> None:
    api = make_api(BROKER_API_TOKEN="acme-*=token-of-acme")
    status(api, "token-of-acme", "acme-7")
    status(api, "token-of-acme", "other-7")
    assert api.rate_limit.keys == ["track:acme-7", "address:127.0.0.1"]


def test_a_prefix_binds_as_it_stands_with_any_characters() -> None:
    api = make_api(BROKER_API_TOKEN="a[b]?*=token-of-odd")
    assert status(api, "token-of-odd", "a[b]?-7") == 200
    assert status(api, "token-of-odd", "abx-7") == 403


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


# -- named tokens


def named(file: Path, *tables: str, around: Any = None, **environment: str) -> Api:
    """Return an API that has only named tokens, including one for tracks and one for an admin."""
    needed = named_token("labs", "token-of-labs", "track") + named_token("chief", "token-of-chief", "admin")
    file.write_text(needed + "".join(tables))
    named_alone = {"BROKER_API_TOKEN": "", "BROKER_ADMIN_TOKEN": "", "BROKER_TOKENS_FILE": str(file)}
    return make_api(around=around, **named_alone | environment)


def whoami(api: Api, token: str) -> tuple[int, Any]:
    answer = api.call("GET", "/v1/admin/whoami", headers={"Authorization": f"Bearer {token}"})
    return answer.status_code, body_of(answer)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "tokens.toml"


def test_named_tokens_serve_tracks_and_operators_without_any_other(file: Path) -> None:
    api = named(file, named_token("anna", "token-of-anna", "viewer", "track", more='customer = "acme"'))
    assert status(api, "token-of-labs") == status(api, "token-of-anna") == 200
    assert whoami(api, "token-of-anna") == (
        200,
        {"principal": "anna", "roles": ["track", "viewer"], "customer": "acme"},
    )
    assert whoami(api, "token-of-chief") == (200, {"principal": "chief", "roles": ["admin"], "customer": None})


def test_tokens_without_a_name_are_those_of_the_principals_track_and_admin(file: Path) -> None:
    api = named(file, BROKER_API_TOKEN="track-token", BROKER_ADMIN_TOKEN="admin-token")
    assert status(api, "track-token") == status(api, "token-of-labs") == 200
    assert whoami(api, "admin-token")[1] == {"principal": "admin", "roles": ["admin"], "customer": None}
    assert whoami(api, "track-token")[0] == 403


def test_who_may_not_make_a_call_is_told_the_role_that_it_needs(api: Api) -> None:
    for answer, told in (
        (api.admin("POST", "/v1/allocate"), "this call needs the role track, and the token has only admin"),
        (api.track("GET", "/v1/admin/stats"), "this call needs the role viewer, and the token has only track"),
    ):
        assert (answer.status_code, error_of(answer)["message"]) == (403, told)


def test_a_named_token_acts_for_the_tracks_of_its_patterns_only(file: Path) -> None:
    api = named(file, named_token("acme", "token-of-acme", "track", more='tracks = ["acme-*", "intro-?"]'))
    assert status(api, "token-of-acme", "acme-7") == status(api, "token-of-acme", "intro-1") == 200
    assert status(api, "token-of-acme", "intro-12") == 403
    assert api.rate_limit.keys == ["track:acme-7", "track:intro-1", "address:127.0.0.1"]


def test_operators_are_counted_by_their_names(file: Path) -> None:
    api = named(file, named_token("anna", "token-of-anna", "viewer", "track"))
    for token in ("token-of-anna", "token-of-chief"):
        whoami(api, token)
    status(api, "token-of-anna", "track-1")
    assert api.rate_limit.keys == ["principal:anna", "principal:chief", "track:track-1"]


def test_an_expired_token_is_refused_from_that_second_on_and_told_so(file: Path) -> None:
    api = named(file)
    file.write_text(
        file.read_text() + named_token("anna", "token-of-anna", "viewer", more=f"expires_at = {api.clock.now() + 60}")
    )
    assert whoami(api, "token-of-anna")[0] == 200
    api.clock.advance(59)
    assert whoami(api, "token-of-anna")[0] == 200
    api.clock.advance(1)
    answer = api.call("GET", "/v1/admin/whoami", headers={"Authorization": "Bearer token-of-anna"})
    assert answer.status_code == 401
    assert (error_of(answer)["code"], error_of(answer)["message"]) == ("UNAUTHORIZED", "the token has expired")
    assert api.rate_limit.keys[-1] == "address:127.0.0.1"


def test_named_tokens_are_read_again_when_their_file_changes(file: Path) -> None:
    api = named(file, named_token("anna", "token-of-anna", "viewer"))
    assert whoami(api, "token-of-anna")[0] == 200
    replace(file, file.read_text().replace("anna", "bob"))
    assert whoami(api, "token-of-anna")[1]["principal"] == "bob"
    replace(file, file.read_text().split('[[token]]\nname = "bob"')[0])
    assert whoami(api, "token-of-anna")[0] == 401


def test_a_change_with_a_mistake_is_told_by_line_and_leaves_the_named_tokens_before_it_valid(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    api = named(file)
    assert whoami(api, "token-of-chief")[0] == 200
    with caplog.at_level(logging.ERROR):
        replace(file, named_token("eve", "token-of-eve", "track", "admin", more="colour = 1"))
        assert [whoami(api, token)[0] for token in ("token-of-chief", "token-of-eve")] == [200, 401]
        replace(file, named_token("eve", "token-of-eve", "track"))
        assert [whoami(api, token)[0] for token in ("token-of-chief", "token-of-eve")] == [200, 401]
    first, second = (record.getMessage() for record in caplog.records)
    assert "line 5: colour: Unknown field." in first
    assert "Holds no token with the role admin" in second


def test_every_log_line_of_a_call_names_its_principal(file: Path) -> None:
    api = named(file, named_token("anna", "token-of-anna", "viewer"))
    with capture_logs(processors=[merge_contextvars]) as lines:
        whoami(api, "token-of-anna")
        api.call("POST", "/v1/admin/sync", headers={"Authorization": "Bearer token-of-anna"})
        status(api, "token-of-labs")
        status(api, "guessed")
    assert [(line.get("principal"), line["status"]) for line in lines] == [
        ("anna", 200),
        ("anna", 403),
        ("labs", 200),
        (None, 401),
    ]


def test_what_a_request_changes_is_changed_by_its_principal_under_its_id(file: Path) -> None:
    actors: list[Actor] = []

    class Watching(StoreWrapper):
        def set_pauses(self, before: Pauses, after: Pauses, *facts: PoolFact) -> Pauses:
            actors.append(actor())
            return super().set_pauses(before, after, *facts)

    api = named(file, named_token("anna", "token-of-anna", "operator"), around=Watching)
    headers = {"Authorization": "Bearer token-of-anna", "X-Request-ID": "req-1"}
    assert api.call("POST", "/v1/admin/pause", headers=headers, json={"sync": True}).status_code == 200
    assert actors == [Actor(principal="anna", request_id="req-1")]
