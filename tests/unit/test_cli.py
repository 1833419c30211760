"""The operator's command line, where no broker is needed to see what it does."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import responses
from click.testing import CliRunner, Result

from broker_common.cli import commands

if TYPE_CHECKING:
    import pytest

URL = "http://127.0.0.1:8080/v1/admin"


def broker(*words: str, **env: str) -> Result:
    return CliRunner().invoke(commands.main, words, env={"BROKER_ADMIN_TOKEN": "a-token"} | env, prog_name="broker")


@responses.activate
def test_a_listing_is_read_page_after_page() -> None:
    for cursor, following in ((None, "next"), ("next", None)):
        query: dict[str, Any] = {"limit": "100"} | ({"cursor": cursor} if cursor else {})
        page = {"sandboxes": [{"sandbox_id": f"after-{cursor}"}], "cursor": following}
        responses.get(f"{URL}/sandboxes", json=page, match=[responses.matchers.query_param_matcher(query)])
    listed = [json.loads(line)["sandbox_id"] for line in broker("sandboxes", "--json").stdout.splitlines()]
    assert listed == ["after-None", "after-next"]


@responses.activate
def test_a_csv_holds_no_formula() -> None:
    page = {"sandboxes": [{"sandbox_id": "7", "name": "=1+1", "dirty": False, "version": -5}], "cursor": None}
    responses.get(f"{URL}/sandboxes", json=page)
    assert broker("sandboxes", "--csv").stdout.splitlines() == ["sandbox_id,name,dirty,version", "7,'=1+1,False,-5"]


@responses.activate
def test_an_error_that_is_not_the_broker_s_is_told_apart() -> None:
    responses.get(f"{URL}/stats", json={"detail": "a proxy's"}, status=502)
    result = broker("pool")
    assert result.exit_code == 1
    assert "answered 502: is this the broker's API?" in result.stderr


@responses.activate
def test_a_refusal_is_none_the_less_one_with_the_status_of_a_success() -> None:
    refusal = {"error": {"code": "UNAUTHORIZED", "message": "no such token", "request_id": "r"}}
    responses.post(f"{URL}/sync", json=refusal, status=200)
    result = broker("job", "run", "sync")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "no such token (200 UNAUTHORIZED, request r)" in result.stderr


@responses.activate
def test_a_job_s_state_is_said_once_until_it_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "_LOOK_AGAIN_SEC", 0)
    monkeypatch.setattr(commands, "_SAY_AGAIN_SEC", 3600)
    responses.post(f"{URL}/sync", json={"job_id": "7"}, status=202)
    for state in ("queued", "running", "running", "succeeded"):
        responses.get(f"{URL}/jobs/7", json={"state": state})
    result = broker("job", "run", "sync", "--wait")
    said = [line.partition(" … ")[0] for line in result.stderr.splitlines()]
    assert said == ["7 is asked for", "queued", "running", "succeeded"]


def test_a_table_is_not_created_with_bad_settings() -> None:
    result = broker("table", "create", DDB_TABLE_NAME="no good", AWS_REGION="")
    assert result.exit_code == 2
    assert any(line.startswith("DDB_TABLE_NAME: ") for line in result.stderr.splitlines())


def test_a_table_that_cannot_be_created_is_told_in_one_line(aws_environment: dict[str, str]) -> None:
    result = broker("table", "create", DDB_ENDPOINT_URL="http://127.0.0.1:1", **aws_environment)
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith("table SandboxPool could not be created: ")
