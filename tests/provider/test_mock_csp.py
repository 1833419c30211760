"""The mock CSP as a process: its data, its switches, and how it starts and stops."""

from __future__ import annotations

import re
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import requests

from deploy.dev.processes import Process, free_ports, wait_until
from tests.provider.conftest import TOKEN, MockCsp, mock_program, running_mock

SERVICES = "/api/universalinfra/v1/universalservices"
HEADERS = {"Authorization": f"Token {TOKEN}"}


def listed(mock: MockCsp) -> list[dict[str, Any]]:
    answer = requests.get(f"{mock.url}/current_user/accounts", headers=HEADERS, timeout=30)
    answer.raise_for_status()
    found: list[dict[str, Any]] = answer.json()["results"]
    return found


def delete(mock: MockCsp, account: dict[str, Any]) -> requests.Response:
    uuid = account["id"].rpartition("/")[2]
    return requests.delete(f"{mock.url}/sandbox/accounts/{uuid}", headers=HEADERS, timeout=30)


def sandbox(mock: MockCsp) -> dict[str, Any]:
    return next(iter(mock.sandboxes().values()))


def run_to_its_end(**environ: str) -> tuple[int | None, list[str]]:
    lines: list[str] = []
    process = Process(mock_program(free_ports(1)[0], environ), lambda _, line: lines.append(line))
    process.start()
    assert wait_until(process.has_ended, 15)
    process.stop()
    return process.poll(), lines


def test_accounts_look_like_the_providers_and_most_do_not_count(mock: MockCsp) -> None:
    accounts = listed(mock)
    assert len(accounts) == 350
    assert len({account["csp_id"] for account in accounts}) == 350
    assert len(mock.sandboxes()) == 50
    assert {account["account_type"] for account in accounts} > {"sandbox"}
    assert {account["state"] for account in accounts} > {"active"}
    for account in accounts:
        assert re.fullmatch(r"identity/accounts/[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", account["id"])
        assert re.fullmatch(r"lab-(adventure|expedition)-\d{4}", account["name"])
        assert re.fullmatch(r"202[56]-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", account["created_at"])
        assert 2009521 <= account["csp_id"] < 2013000


def test_the_same_seed_makes_the_same_accounts_and_another_does_not() -> None:
    with running_mock(MOCK_CSP_SEED="7") as one, running_mock(MOCK_CSP_SEED="7") as same, running_mock() as other:
        assert listed(one) == listed(same) != listed(other)


def test_a_wrong_token_is_refused_in_json(mock: MockCsp) -> None:
    answer = requests.get(f"{mock.url}/current_user/accounts", headers={"Authorization": "Token x"}, timeout=10)
    assert answer.status_code == 401
    assert answer.json()["error"]


def test_unknown_and_bad_switches_are_refused_by_name_and_change_nothing(mock: MockCsp) -> None:
    url = f"{mock.url}/_mock/switches"
    before = requests.get(url, timeout=10).json()
    wrong = {
        "delete_second": 1,
        "paging": "x",
        "html_errors": 1,
        "page_size": 0,
        "fail_next_deletes": -1,
        "delete_seconds": True,
        "list_seconds": 9,
    }
    answer = requests.patch(url, json=wrong, timeout=10)
    assert answer.status_code == 400
    for name in set(wrong) - {"list_seconds"}:
        assert name in answer.json()["error"]
    assert "list_seconds" not in answer.json()["error"]
    assert requests.patch(url, json=[], timeout=10).status_code == 400
    assert requests.get(url, timeout=10).json() == before


def test_patch_keeps_the_other_switches_and_put_resets_them(mock: MockCsp) -> None:
    url = f"{mock.url}/_mock/switches"
    requests.patch(url, json={"page_size": 7}, timeout=10)
    after = requests.patch(url, json={"html_errors": True}, timeout=10).json()
    assert (after["page_size"], after["html_errors"]) == (7, True)
    after = requests.put(url, json={"html_errors": True}, timeout=10).json()
    assert (after["page_size"], after["html_errors"]) == (100, True)


def test_a_delete_resets_the_account_in_place_and_is_logged(mock: MockCsp) -> None:
    account = sandbox(mock)
    assert delete(mock, account).status_code == 200
    (entry,) = mock.deletes()
    assert (entry["external_id"], entry["csp_id"]) == (account["id"], account["csp_id"])
    assert (entry["answer"], entry["applied"]) == (200, True)
    assert entry["started_at"] <= entry["ended_at"]
    assert mock.sandboxes()[str(account["csp_id"])]["wiped_at"] is not None
    assert account["id"] in {one["id"] for one in listed(mock)}


def test_a_delete_may_remove_the_account_instead() -> None:
    with running_mock(MOCK_CSP_ON_DELETE="remove", MOCK_CSP_DELETE_SECONDS="0") as mock:
        account = sandbox(mock)
        assert delete(mock, account).status_code == 200
        assert delete(mock, account).status_code == 404
        assert account["id"] not in {one["id"] for one in listed(mock)}


def test_a_burst_of_errors_ends_after_so_many_deletes(mock: MockCsp) -> None:
    mock.switch(fail_next_deletes=2, html_errors=True)
    answers = [delete(mock, sandbox(mock)) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [500, 500, 200]
    assert answers[0].text.startswith("<html>")
    assert [entry["applied"] for entry in mock.deletes()] == [False, False, True]


def test_a_delete_may_be_refused_by_a_success_with_an_error_in_it(mock: MockCsp) -> None:
    mock.switch(fail_next_deletes=1, fail_status=200)
    answer = delete(mock, sandbox(mock))
    assert (answer.status_code, list(answer.json())) == (200, ["error"])
    assert [entry["applied"] for entry in mock.deletes()] == [False]


def test_a_burst_of_errors_may_last_for_a_time(mock: MockCsp) -> None:
    mock.switch(fail_deletes_for_seconds=0.5)
    assert delete(mock, sandbox(mock)).status_code == 500
    assert wait_until(lambda: delete(mock, sandbox(mock)).status_code == 200, 15)


def test_a_held_delete_ends_while_as_many_are_under_way_as_the_switch_says_or_accounts_are_left_the_oldest_first() -> (
    None
):
    with running_mock(
        MOCK_CSP_POOL="5",
        MOCK_CSP_OTHERS="0",
        MOCK_CSP_ON_DELETE="remove",
        MOCK_CSP_DELETE_SECONDS="0",
        MOCK_CSP_HOLD_DELETES_UNTIL="3",
    ) as mock:
        with ThreadPoolExecutor(3) as pool:
            answers = list(pool.map(lambda account: delete(mock, account).status_code, mock.sandboxes().values()))
        assert answers == [200] * 5
        in_order = sorted(mock.deletes(), key=lambda entry: entry["ended_at"])
        assert [entry["held_with"] for entry in in_order] == [3, 3, 3, 2, 1]


def test_accounts_come_and_go_by_request(mock: MockCsp) -> None:
    added = requests.post(f"{mock.url}/_mock/accounts", json={"name": "lab-other-1"}, timeout=10).json()
    assert mock.sandboxes()[str(added["csp_id"])]["name"] == "lab-other-1"
    url = f"{mock.url}/_mock/accounts/{added['csp_id']}"
    assert requests.delete(url, timeout=10).status_code == 200
    assert requests.delete(url, timeout=10).status_code == 404
    assert str(added["csp_id"]) not in mock.sandboxes()


# -- services


def signed_in(mock: MockCsp) -> str:
    user = {"email": "cleaner@example.com", "password": "services_password_123"}
    answer = requests.post(f"{mock.url}/v2/session/users/sign_in", json=user, timeout=10)
    assert answer.status_code == 200
    return str(answer.json()["jwt"])


def with_jwt(mock: MockCsp, method: str, path: str, jwt: str, **kwargs: Any) -> requests.Response:
    return requests.request(
        method, f"{mock.url}{path}", headers={"Authorization": f"Bearer {jwt}"}, timeout=10, **kwargs
    )


def test_a_user_signs_in_switches_lists_and_deletes_services_of_that_account_alone(mock: MockCsp) -> None:
    account, other = (str(each["id"]) for each in list(mock.sandboxes().values())[:2])
    for each in (account, other):
        requests.post(f"{mock.url}/_mock/services", json={"id": each, "names": ["one"]}, timeout=10).raise_for_status()
    first = signed_in(mock)
    switched = with_jwt(mock, "POST", "/v2/session/account_switch", first, json={"id": account}).json()["jwt"]
    assert switched != first
    (service,) = with_jwt(mock, "GET", SERVICES, switched).json()["results"]
    assert service["name"] == "one"
    path = f"{SERVICES}/{service['id'].rpartition('/')[2]}"
    assert with_jwt(mock, "DELETE", path, first).status_code == 404, "it is in another account"
    assert [with_jwt(mock, "DELETE", path, switched).status_code for _ in range(2)] == [204, 404]
    kept = requests.get(f"{mock.url}/_mock/services", timeout=10).json()["services"]
    assert kept[account.rpartition("/")[2]] == []
    assert kept[other.rpartition("/")[2]] == ["one"]
    assert kept["home"] == ["the user's own"]


def test_without_a_sign_in_services_are_not_shown(mock: MockCsp) -> None:
    wrong = {"email": "cleaner@example.com", "password": "wrong"}
    assert requests.post(f"{mock.url}/v2/session/users/sign_in", json=wrong, timeout=10).status_code == 401
    calls = [
        ("POST", "/v2/session/account_switch"),
        ("GET", SERVICES),
        ("DELETE", f"{SERVICES}/0b1f5cf8-6c3e-4f0e-9a53-6f0f8d8e1c11"),
    ]
    for method, path in calls:
        assert with_jwt(mock, method, path, "unknown", json={"id": mock.any_account()}).status_code == 401
    unknown = {"id": "identity/accounts/0b1f5cf8-6c3e-4f0e-9a53-6f0f8d8e1c11"}
    switch = "/v2/session/account_switch"
    assert with_jwt(mock, "POST", switch, signed_in(mock), json=unknown).status_code == 403


def test_256_deletes_run_at_once_in_a_pool_of_10000() -> None:
    with running_mock(MOCK_CSP_POOL="10000", MOCK_CSP_DELETE_SECONDS="3") as mock:
        accounts = list(mock.sandboxes().values())
        assert len(accounts) == 10_000
        with ThreadPoolExecutor(256) as pool:
            answers = list(pool.map(lambda account: delete(mock, account).status_code, accounts[:256]))
        assert answers == [200] * 256
        assert mock.log()["highest_in_flight"] > 100


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_it_stops_cleanly_also_in_the_middle_of_a_delete(signum: signal.Signals) -> None:
    with running_mock(MOCK_CSP_DELETE_SECONDS="600") as mock:
        account = sandbox(mock)
        failed = threading.Event()

        def ask() -> None:
            with pytest.raises(requests.ConnectionError):
                delete(mock, account)
            failed.set()

        asking = threading.Thread(target=ask)
        asking.start()
        assert wait_until(lambda: bool(mock.deletes()), 10)
        mock.process.kill(signum)
        assert wait_until(mock.process.has_ended, 5)
        asking.join(10)
        assert failed.is_set()
        assert mock.process.poll() == 0


def test_it_prints_one_ready_line_and_one_short_line_a_request() -> None:
    with running_mock(MOCK_CSP_POOL="3", MOCK_CSP_OTHERS="2") as mock:
        listed(mock)
        assert wait_until(lambda: len(mock.lines) == 2, 10)
        assert mock.lines == [
            f"mock-csp ready on {mock.url}: 3 active sandbox accounts of 5",
            "mock-csp GET /current_user/accounts 200",
        ]


def test_bad_environment_is_named_all_at_once() -> None:
    code, lines = run_to_its_end(MOCK_CSP_POOL="many", MOCK_CSP_PAGING="sideways", MOCK_CSP_NONSENSE="1")
    assert code == 2
    assert [line.partition(":")[0] for line in sorted(lines)] == [
        "MOCK_CSP_NONSENSE",
        "MOCK_CSP_PAGING",
        "MOCK_CSP_POOL",
    ]


def test_an_address_of_another_machine_is_one_clear_line() -> None:
    code, (line,) = run_to_its_end(MOCK_CSP_BIND="203.0.113.1")
    assert code == 1
    assert "MOCK_CSP_BIND" in line


def test_a_busy_port_is_one_clear_line(mock: MockCsp) -> None:
    code, lines = run_to_its_end(MOCK_CSP_PORT=mock.url.rpartition(":")[2])
    assert code == 1
    assert len(lines) == 1
    assert "MOCK_CSP_PORT" in lines[0]
