"""The client against the mock CSP, over HTTP; and against bare sockets where no proper server would behave so."""

from __future__ import annotations

import gzip
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest

from broker_common.adapters.redis_slots import RedisSlots
from broker_common.core.errors import (
    ListingUnusable,
    ProviderBusy,
    ProviderCircuitOpen,
    ProviderError,
    ProviderFailing,
    ProviderMisconfigured,
    ProviderRejected,
    ProviderSlotsUnavailable,
)
from broker_common.core.ports import AccountListing, InactiveAccount, WipeAnswer
from deploy.dev.processes import free_ports
from tests.provider.conftest import TOKEN, MockCsp, OwnRedis, connected

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from redis import Redis

    from broker_common.adapters.csp_client import CspClient

    MakeClient = Callable[..., CspClient]

EXTERNAL_ID = "identity/accounts/0b1f5cf8-6c3e-4f0e-9a53-6f0f8d8e1c11"
ACCOUNT = {
    "account_type": "sandbox",
    "state": "active",
    "id": EXTERNAL_ID,
    "name": "lab-adventure-0087",
    "csp_id": 2009521,
    "created_at": "2025-03-27T16:53:47.605459Z",
    "sfdc_account_id": None,
}


def account(number: int, **changes: object) -> dict[str, object]:
    """Return an entry like `ACCOUNT` with ids of its own."""
    return {**ACCOUNT, "csp_id": number, "id": f"{EXTERNAL_ID[:-4]}{number:04}", **changes}


def delete(client: CspClient, external_id: str = EXTERNAL_ID) -> WipeAnswer:
    with client.admit():
        return client.delete_account(external_id, send_within=5)


def failure(client: CspClient, external_id: str = EXTERNAL_ID) -> ProviderError:
    with pytest.raises(ProviderError) as raised:
        delete(client, external_id)
    return raised.value


def assert_failing(error: ProviderError, *, outcome_unknown: bool) -> None:
    assert isinstance(error, ProviderFailing)
    assert error.outcome_unknown is outcome_unknown


class RawServer:
    """Accepts connections, reads one request each, and answers as a test says."""

    def __init__(self, behave: Callable[[socket.socket, str], None]) -> None:
        self._behave = behave
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.requests: list[str] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(connection,))
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            connection.settimeout(20)
            received = b""
            try:
                while b"\r\n\r\n" not in received:
                    part = connection.recv(65536)
                    if not part:
                        return
                    received += part
                self.requests.append(received.decode())
                self._behave(connection, received.decode())
            except OSError:
                return  # the client has gone

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(25)


@contextmanager
def raw_server(behave: Callable[[socket.socket, str], None]) -> Iterator[RawServer]:
    server = RawServer(behave)
    try:
        yield server
    finally:
        server.close()


def answering(body: bytes, *, status: str = "200 OK", headers: str = "Content-Type: application/json\r\n") -> Any:
    """Answer every request with this."""
    head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n{headers}\r\n"
    return sending(head.encode() + body)


def sending(raw: bytes) -> Callable[[socket.socket, str], None]:
    """Answer every request with these bytes, and close the connection."""
    return lambda connection, _: connection.sendall(raw)


def listing(*accounts: object, **rest: object) -> bytes:
    return json.dumps({"results": accounts, **rest}).encode()


def drip(connection: socket.socket, head: bytes) -> None:
    """Send a beginning, and then a byte now and then, for as long as anybody listens."""
    connection.sendall(head)
    while True:
        connection.sendall(b"x")
        time.sleep(0.05)


# --- list_accounts ---------------------------------------------------------------------------------------------------


def test_only_active_sandbox_accounts_are_listed(client: CspClient, mock: MockCsp) -> None:
    found = client.list_accounts()
    assert len(mock.accounts()) == 350
    assert len(found.accounts) == 50
    assert found.skipped == ()
    expected = mock.sandboxes()
    for account in found.accounts:
        sent = expected.pop(account.sandbox_id)
        assert (account.external_id, account.name, account.sfdc_account_id) == (
            sent["id"],
            sent["name"],
            sent["sfdc_account_id"],
        )
    assert not expected


@pytest.mark.parametrize("paging", ["offset", "link", "limit", "number"])
@pytest.mark.parametrize("page_size", [1, 70, 350, 1000])
def test_all_pages_are_read(client: CspClient, mock: MockCsp, paging: str, page_size: int) -> None:
    mock.switch(paging=paging, page_size=page_size)
    found = client.list_accounts()
    assert {account.sandbox_id for account in found.accounts} == set(mock.sandboxes())
    assert found.skipped == ()


def test_a_malformed_account_is_skipped_with_its_id(client: CspClient, mock: MockCsp) -> None:
    mock.switch(malformed_account=True)
    found = client.list_accounts()
    assert len(found.skipped) == 1
    assert found.skipped[0].sandbox_id == str(mock.accounts()[0]["csp_id"])
    assert found.skipped[0].sandbox_id not in {account.sandbox_id for account in found.accounts}


@pytest.mark.parametrize(
    "changes",
    [
        *({"csp_id": each} for each in (None, True, 1.5, "a/b", "")),
        *({"id": each} for each in (None, "identity/accounts/../users", EXTERNAL_ID.removeprefix("identity/"))),
        *({"state": None}, {"account_type": 7}),
    ],
)
def test_an_entry_that_does_not_parse_is_skipped_and_the_rest_go_on(
    make_client: MakeClient, changes: dict[str, Any]
) -> None:
    bad = account(1, **changes)
    found = read(make_client, listing(bad, "nonsense", None, ACCOUNT))
    assert [account.sandbox_id for account in found.accounts] == ["2009521"]
    assert len(found.skipped) == 3
    assert found.skipped[0].sandbox_id == (None if "csp_id" in changes else "1")


@pytest.mark.parametrize(
    ("csp_id", "why"),
    [
        *((each, "begins with a dot or a hyphen") for each in (".", "..", "-5", -5, "-")),
        *((each, "more than 63 bits") for each in (2**63, str(2**63), 1180591620717411303424)),
        *((each, "leading zeros") for each in ("007", "00")),
    ],
)
def test_an_id_that_calls_cannot_name_plainly_is_skipped_with_the_reason(
    make_client: MakeClient, csp_id: str | int, why: str
) -> None:
    found = read(make_client, listing(account(1, csp_id=csp_id), ACCOUNT))
    assert [account.sandbox_id for account in found.accounts] == ["2009521"]
    (skipped,) = found.skipped
    assert skipped.sandbox_id == str(csp_id)
    assert why in skipped.reason


@pytest.mark.parametrize("csp_id", [0, 7, "7", 2**63 - 1, "7a", "0x7", "a..b", "_", "A-1.b"])
def test_an_id_that_calls_can_name_is_taken_in(make_client: MakeClient, csp_id: str | int) -> None:
    found = read(make_client, listing({**ACCOUNT, "csp_id": csp_id}))
    assert [account.sandbox_id for account in found.accounts] == [str(csp_id)]


@pytest.mark.parametrize(
    ("label", "shown"),
    [
        *(
            (each, each)
            for each in ("a\xa0b", "\u3000", "a\u200db", "\u200fa", "a\u202eb", "\ue000", "=1+1", "\U0001f600")
        ),
        ("a\nb", "a�b"),
        ("\x00\x1b[31m\x7f", "��[31m�"),
        ("a\x85\u2028\u2029b", "a���b"),
        ("\ud800", "�"),
        ("x" * 300, "x" * 256),
        (42, "42"),
        (0, "0"),
        (-1.5, "-1.5"),
        *((each, None) for each in ("", None, True, ["x"], {"x": 1})),
    ],
)
def test_a_label_is_made_fit_and_keeps_no_account_out(make_client: MakeClient, label: Any, shown: str | None) -> None:
    (account,) = read(make_client, listing({**ACCOUNT, "name": label, "sfdc_account_id": label})).accounts
    assert (account.name, account.sfdc_account_id) == (shown or "2009521", shown)


def test_an_account_without_labels_is_named_by_its_id(make_client: MakeClient) -> None:
    bare = {name: value for name, value in ACCOUNT.items() if name not in {"name", "sfdc_account_id"}}
    (account,) = read(make_client, listing(bare)).accounts
    assert (account.name, account.sfdc_account_id) == ("2009521", None)


def test_an_account_has_one_external_id_however_its_digits_are_spelled(make_client: MakeClient) -> None:
    spelled = EXTERNAL_ID.removeprefix("identity/accounts/").upper()
    (account,) = read(make_client, listing({**ACCOUNT, "id": f"identity/accounts/{spelled}"})).accounts
    assert account.external_id == EXTERNAL_ID


# --- whole or not ----------------------------------------------------------------------------------------------------


def read(make_client: MakeClient, *pages: bytes) -> AccountListing:
    """Read a list whose pages are answered one after the other."""
    with raw_server(paged(*pages)) as server:
        return make_client(server.url).list_accounts()


NEXT = {"next": "?more"}


@pytest.mark.parametrize(
    ("pages", "doubt"),
    [
        ([listing(ACCOUNT, {**ACCOUNT, "name": "renamed"})], "only 1 of its 2 entries are different"),
        ([listing(ACCOUNT, {**ACCOUNT, "id": EXTERNAL_ID.upper().replace("IDENTITY/ACCOUNTS", "identity/accounts")})],
         "only 1 of its 2 entries are different"),
        ([listing(account(1), account(2), **NEXT), listing(account(2), account(3))], "only 3 of its 4 entries"),
        ([listing(account(1), account(2), total=4, _limit=2), listing(account(2), account(3), total=4, _limit=2)],
         "only 3 of its 4 entries"),
        ([listing(account(1), **NEXT), listing(account(1), **NEXT)], "its paging repeats the same page"),
        ([listing(account(1), **NEXT), listing(account(2), next="?b"), listing(account(1))], "only 2 of its 3 entries"),
        ([listing(ACCOUNT, total=3)], "only 1 of the 3 accounts"),
        ([listing(ACCOUNT, account(1), total=1)], "it has 2 accounts, and says that there are 1"),
        ([listing(account(1), account(2), total=4, _limit=2), listing(account(4), total=3, _limit=2),
          listing(total=3, _limit=2)], "only 3 of the 4 accounts"),
        ([listing(account(1), total=1, **NEXT), listing(account(2), total=2)], "says that there are 1, 2"),
        ([listing(ACCOUNT, page={"page_token": "null", "size": 2})], "only 1 of the 2 accounts"),
        ([listing(ACCOUNT, page={"page_token": "x"})], "names a next page by a page_token"),
        ([listing(account(1), page=1, total_pages=3), listing(page=2, total_pages=3)], "only 2 of the 3 pages"),
        ([listing(ACCOUNT, account(1, csp_id=None))], "id cannot be read"),
        ([listing(ACCOUNT, "nonsense")], "id cannot be read"),
        ([listing(ACCOUNT, {"account_type": "partner"})], "id cannot be read"),
    ],
    ids=str,
)  # fmt: skip
def test_a_list_that_may_lack_accounts_says_why(make_client: MakeClient, pages: list[bytes], doubt: str) -> None:
    found = read(make_client, *pages)
    assert found.doubt is not None
    assert doubt in found.doubt
    assert found.accounts


@pytest.mark.parametrize(
    "pages",
    [
        [listing(ACCOUNT)],
        [listing(ACCOUNT, account(1), total=2)],
        [listing(ACCOUNT, {"account_type": "partner", "id": "x"}, {"account_type": "partner", "csp_id": 0}, total=3)],
        [listing(account(1), total=2, **NEXT), listing(account(2), total=2)],
        [listing(ACCOUNT, links={"next": None}, _links={}, page={"page_token": ""})],
        [listing(ACCOUNT, account(1, name="")), listing(ACCOUNT)],
        [listing(ACCOUNT, account(1, csp_id="a/b"))],
        [listing(ACCOUNT, account(1), account(2, csp_id=1))],
        [listing(ACCOUNT, success={"status": 200, "code": "OK"})],
    ],
    ids=str,
)
def test_a_list_of_which_nothing_says_that_it_lacks_accounts_is_whole(
    make_client: MakeClient, pages: list[bytes]
) -> None:
    found = read(make_client, *pages)
    assert found.doubt is None
    assert found.accounts


@pytest.mark.parametrize(
    "pages",
    [
        [listing(account(1), page=1), listing(account(2), page=2), listing(page=3)],
        [listing(account(1), page=1, total_pages=2), listing(account(2), page=2, total_pages=2)],
        [listing(account(1), links={"next": "?x"}), listing(account(2), links={"next": None})],
        [listing(account(1), _links={"next": {"href": "?x"}}), listing(account(2), _links={"next": {"href": None}})],
        [listing(account(1), account(3), page=1, per_page=2), listing(account(2), page=2, per_page=2)],
        [listing(account(1), page=1, total=2, total_pages=1), listing(account(2), page=2, total=2, total_pages=1)],
        [listing(account(1), _limit=1, pages=1), listing(account(2), _limit=2, pages=1)],
    ],
    ids=str,
)
def test_a_list_that_says_how_it_is_paged_is_read_to_its_end(make_client: MakeClient, pages: list[bytes]) -> None:
    found = read(make_client, *pages)
    assert found.doubt is None
    assert {"1", "2"} <= found.sandbox_ids


def test_a_list_whose_pages_come_in_another_order_each_time_is_not_taken_for_whole(
    client: CspClient, mock: MockCsp
) -> None:
    mock.switch(paging="number", page_size=70, shuffled_list=True)
    found = client.list_accounts()
    assert found.doubt is not None
    assert "listed twice" in found.doubt
    assert {each.sandbox_id for each in found.accounts} < set(mock.sandboxes())


def test_what_is_no_active_sandbox_is_listed_by_the_ids_that_it_states(make_client: MakeClient) -> None:
    off = account(1, state="disabled")
    others = [{"account_type": "partner", "csp_id": 7}, {"account_type": "partner", "id": "X"}]
    found = read(make_client, listing(ACCOUNT, off, *others))
    assert [each.sandbox_id for each in found.accounts] == ["2009521"]
    assert found.inactive == (
        InactiveAccount("1", str(off["id"])),
        InactiveAccount("7", None),
        InactiveAccount(None, "x"),
    )


@pytest.mark.parametrize(
    ("others", "ambiguous"),
    [
        ([account(1, id=EXTERNAL_ID)], ["2009521", "1"]),
        ([account(1, csp_id=2009521)], ["2009521", "2009521"]),
        ([account(1, csp_id="2009521", state="disabled")], ["2009521"]),
        ([{**ACCOUNT, "csp_id": "007"}], ["2009521"]),
        ([{**ACCOUNT, "state": "disabled"}], ["2009521"]),
        ([account(1, id=EXTERNAL_ID), account(2, csp_id=1)], ["2009521", "1", "1"]),
        ([account(1)], []),
    ],
)
def test_entries_that_share_an_id_and_are_not_the_same_are_told_apart_from_the_rest(
    make_client: MakeClient, others: list[dict[str, object]], ambiguous: list[str]
) -> None:
    rest = [account(8), account(9)]
    found = read(make_client, listing(rest[0], ACCOUNT, *others, rest[1]))
    assert [each.sandbox_id for each in found.ambiguous] == ambiguous
    assert {"8", "9"} <= {each.sandbox_id for each in found.accounts}
    assert not {each.sandbox_id for each in found.accounts} & set(ambiguous)


def test_an_account_that_is_listed_twice_is_taken_once(make_client: MakeClient) -> None:
    found = read(make_client, listing(ACCOUNT, {**ACCOUNT, "name": "lab-adventure-0088"}))
    assert [each.name for each in found.accounts] == ["lab-adventure-0087"]
    assert (found.skipped, found.ambiguous) == ((), ())


# --- answers that are no list ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("switch", ["empty_list", "truncated_list", "login_page"])
def test_a_list_that_cannot_be_right_is_unusable(client: CspClient, mock: MockCsp, switch: str) -> None:
    mock.switch(**{switch: True})
    with pytest.raises(ListingUnusable):
        client.list_accounts()


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"null", b"[]", b"{}", b'{"results": {}}', b"\xff", b"[" * 100_000),
        listing(),
        listing({**ACCOUNT, "state": "disabled"}),
        listing({**ACCOUNT, "id": 1}),
        listing(ACCOUNT, next=7),
        listing(ACCOUNT, error=[{"message": "One shard did not answer."}]),
        listing(ACCOUNT, errors=None),
        listing(ACCOUNT, success=False),
    ],
    ids=lambda body: body[:50],
)
def test_a_body_of_the_wrong_shape_is_unusable(make_client: MakeClient, body: bytes) -> None:
    with pytest.raises(ListingUnusable):
        read(make_client, body)


def test_a_list_shorter_than_it_says_is_unusable(make_client: MakeClient) -> None:
    body = listing(ACCOUNT)
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body) + 1, body)
    with raw_server(sending(answer)) as server, pytest.raises(ListingUnusable):
        make_client(server.url).list_accounts()


@pytest.mark.parametrize("status", ["204 No Content", "206 Partial Content"])
def test_another_success_than_200_is_no_list(make_client: MakeClient, status: str) -> None:
    body = b"" if "204" in status else listing(ACCOUNT)
    with raw_server(answering(body, status=status)) as server, pytest.raises(ListingUnusable):
        make_client(server.url).list_accounts()


@pytest.mark.parametrize(
    "link", ["http://other.example/accounts", "//other.example/x", "https://127.0.0.1/x", "http://127.0.0.1:99999/"]
)
def test_a_next_link_to_another_origin_is_never_followed(make_client: MakeClient, link: str) -> None:
    with raw_server(answering(listing(ACCOUNT, next=link))) as server:
        with pytest.raises(ListingUnusable):
            make_client(server.url).list_accounts()
        assert len(server.requests) == 1


@pytest.mark.parametrize(
    "paging",
    [
        {"next": "?again"},
        {"next": "/current_user/accounts"},
        {"page": {"offset": 5}},
        {"_offset": 0, "_limit": 1},
        {"page": 1},
        {"total": 9},
    ],
    ids=str,
)
def test_paging_that_leads_in_a_circle_ends_and_the_list_is_not_whole(
    make_client: MakeClient, paging: dict[str, Any]
) -> None:
    with raw_server(answering(listing(ACCOUNT, **paging))) as server:
        try:
            assert make_client(server.url).list_accounts().doubt
        except ListingUnusable as error:
            assert "does not end" in error.message  # noqa: PT017 - the first page's own address again
        assert len(server.requests) <= 3


def test_a_link_header_names_the_next_page(make_client: MakeClient) -> None:
    def behave(connection: socket.socket, request: str) -> None:
        if "cursor=2" in request.splitlines()[0]:
            answering(listing(account(2)))(connection, request)
        else:
            answering(listing(ACCOUNT), headers='Link: <?cursor=2>; rel="next"\r\n')(connection, request)

    with raw_server(behave) as server:
        found = make_client(server.url).list_accounts()
    assert [account.sandbox_id for account in found.accounts] == ["2009521", "2"]


def test_a_connection_that_the_provider_keeps_is_used_again(make_client: MakeClient) -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(listing(ACCOUNT)), listing(ACCOUNT))

    def behave(connection: socket.socket, _: str) -> None:
        connection.sendall(answer)
        assert connection.recv(65536)
        connection.sendall(answer)

    with raw_server(behave) as server:
        client = make_client(server.url)
        assert client.list_accounts() == client.list_accounts()
        assert len(server.requests) == 1, "one a connection"


def paged(*pages: bytes) -> Callable[[socket.socket, str], None]:
    """Answer with one page after the other, to any request."""
    left = list(pages)

    def behave(connection: socket.socket, request: str) -> None:
        answering(left.pop(0))(connection, request)

    return behave


def test_a_page_that_names_itself_is_followed_by_others_until_one_is_empty(make_client: MakeClient) -> None:
    first = listing(ACCOUNT, page={"offset": 0, "size": 1})
    second = listing(account(2), page={"offset": 1, "size": 1})
    with raw_server(paged(first, second, listing(page={"offset": 2, "size": 0}))) as server:
        assert len(make_client(server.url).list_accounts().accounts) == 2
    assert ["_offset=" in request.splitlines()[0] for request in server.requests] == [False, True, True]


def test_a_number_of_the_paging_may_be_written_as_a_string(make_client: MakeClient) -> None:
    with raw_server(paged(listing(ACCOUNT, page={"offset": "1"}), listing(page={}))) as server:
        assert make_client(server.url).list_accounts().accounts
    assert "_offset=1 " in server.requests[1].splitlines()[0]


def test_the_token_goes_out_as_the_provider_wants_it_even_where_the_url_names_a_user(
    make_client: MakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "")
    with raw_server(answering(listing(ACCOUNT))) as server:
        make_client(f"{server.url.replace('//', '//user:password@')}/v2/").list_accounts()
        request = server.requests[0]
    assert request.startswith("GET /v2/current_user/accounts HTTP/1.1\r\n")
    assert f"\r\nAuthorization: Token {TOKEN}\r\n" in request
    assert "Basic" not in request


# --- delete_account --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "answer"),
    [(200, WipeAnswer.WIPED), (204, WipeAnswer.WIPED), (202, WipeAnswer.ACCEPTED), (404, WipeAnswer.GONE)],
)
def test_a_delete_reports_what_the_provider_said(
    client: CspClient, mock: MockCsp, status: int, answer: WipeAnswer
) -> None:
    mock.switch(delete_answer=status)
    external_id = mock.any_account()
    assert delete(client, external_id) is answer
    (asked,) = mock.deletes()
    assert (asked["external_id"], asked["answer"], asked["applied"]) == (external_id, status, status != 404)


def test_an_account_that_the_provider_does_not_know_is_gone(client: CspClient, mock: MockCsp) -> None:
    assert delete(client) is WipeAnswer.GONE
    assert mock.deletes()[0]["csp_id"] is None


@pytest.mark.parametrize(
    ("status", "kind", "outcome_unknown"),
    [
        *((status, ProviderFailing, False) for status in (500, 503, 408, 425, 429, 501)),
        *((status, ProviderFailing, True) for status in (502, 504, 524)),
        *((status, ProviderMisconfigured, False) for status in (301, 307, 401, 403)),
        *((status, ProviderRejected, None) for status in (400, 405, 409, 422)),
    ],
)
def test_a_delete_tells_what_may_pass_from_what_will_not(
    client: CspClient, mock: MockCsp, status: int, kind: type[ProviderError], outcome_unknown: bool | None
) -> None:
    mock.switch(fail_next_deletes=1, fail_status=status)
    error = failure(client, mock.any_account())
    assert type(error) is kind
    assert getattr(error, "outcome_unknown", None) is outcome_unknown
    assert error.message.startswith(f"delete account: HTTP {status}: ")
    assert len(mock.deletes()) == 1


@pytest.mark.parametrize("status", [500, 400])
def test_an_error_with_an_html_body_is_judged_by_its_status(client: CspClient, mock: MockCsp, status: int) -> None:
    mock.switch(fail_next_deletes=1, fail_status=status, html_errors=True)
    error = failure(client, mock.any_account())
    assert type(error) is (ProviderFailing if status == 500 else ProviderRejected)
    assert "<html>" in error.message


@pytest.mark.parametrize("status", [500, 502, 401, 302, 404])
def test_a_list_that_is_refused_raises_what_a_delete_would(client: CspClient, mock: MockCsp, status: int) -> None:
    mock.switch(fail_next_lists=1, fail_status=status)
    kinds: dict[int, type[ProviderError]] = {500: ProviderFailing, 502: ProviderFailing, 404: ProviderRejected}
    with pytest.raises(kinds.get(status, ProviderMisconfigured)):
        client.list_accounts()


@pytest.mark.parametrize(
    ("content_type", "body", "is_page"),
    [
        ("text/html", b"OK", False),
        ("text/html", b"<p>Please sign in</p>", True),
        ("application/json", b"\xef\xbb\xbf\n<!-- portal --><!DOCTYPE HTML><html>", True),
        ("text/plain", b"<html>", True),
        ("text/plain", b"<p>", False),
    ],
)
def test_only_an_html_document_is_taken_for_a_login_page(
    make_client: MakeClient, content_type: str, body: bytes, is_page: bool
) -> None:
    with raw_server(answering(body, headers=f"Content-Type: {content_type}\r\n")) as server:
        error = failure(make_client(server.url))
    assert isinstance(error, ProviderMisconfigured if is_page else ProviderFailing)


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"{}", b' {"id": 7}\r\n', b"\xef\xbb\xbf{}"),
        b'{"success": true, "result": {"error": "of the one before"}}',
        b'{"success": {"status": 200, "code": "OK"}, "results": []}',
    ],
)
@pytest.mark.parametrize("content_type", ["application/json", "text/html"])
def test_an_empty_body_or_an_object_without_an_error_is_a_wipe(
    make_client: MakeClient, body: bytes, content_type: str
) -> None:
    for status, answer in (("200 OK", WipeAnswer.WIPED), ("202 Accepted", WipeAnswer.ACCEPTED)):
        with raw_server(answering(body, headers=f"Content-Type: {content_type}\r\n", status=status)) as server:
            assert delete(make_client(server.url)) is answer


NO_PLAIN_WORD = {
    "an error": b'{"error": [{"message": "The account is locked."}]}',
    "an error without content": b'{"error": null}',
    "no errors": b'{"id": 7, "errors": []}',
    "an error that is also none": b'{"error": "locked", "Error": null, "error": null}',
    "no success": b'{"success": false}',
    "success and no success": b'{"success": false, "success": true}',
    "no success in a string": b'{"success": "false"}',
    "success null": b'{"success": null}',
    "plain text": b"deleted",
    "blanks": b" \r\n",
    "a byte order mark": b"\xef\xbb\xbf",
    "null": b"null",
    "true": b"true",
    "a number": b"200",
    "a string": b'"ok"',
    "a list": b"[]",
    "cut short": b'{"id": 7',
    "two documents": b"{} {}",
    "not UTF-8": b'{"id": "\xff"}',
    "a tower": b'{"a":' * 12_000,
    "a number without end": b'{"id": ' + b"9" * 5_000 + b"}",
    "too long to read": b'{"id": "' + b"x" * 70_000 + b'"}',
    "blanks too long to read": b" " * 70_000,
}


@pytest.mark.parametrize("body", NO_PLAIN_WORD.values(), ids=NO_PLAIN_WORD)
@pytest.mark.parametrize("status", ["200 OK", "202 Accepted", "204 No Content"])
def test_a_success_that_does_not_say_so_plainly_leaves_the_outcome_unknown(
    make_client: MakeClient, status: str, body: bytes
) -> None:
    with raw_server(answering(body, status=status)) as server:
        error = failure(make_client(server.url))
    assert_failing(error, outcome_unknown=True)
    assert error.message.startswith(f"delete account: HTTP {status[:3]}")


@pytest.mark.parametrize("coding", ["gzip", "deflate", "x"])
def test_a_success_whose_coding_left_nothing_leaves_the_outcome_unknown(make_client: MakeClient, coding: str) -> None:
    cut = gzip.compress(b'{"error": "locked"}')[:10]
    headers = f"Content-Encoding: {coding}\r\n"
    for body in (cut, b""):
        with raw_server(answering(body, headers=headers)) as server:
            error = failure(make_client(server.url))
        assert_failing(error, outcome_unknown=True)


def test_a_coded_success_is_read_as_what_it_holds(make_client: MakeClient) -> None:
    headers = "Content-Encoding: gzip\r\n"
    with raw_server(answering(gzip.compress(b"{}"), headers=headers)) as server:
        assert delete(make_client(server.url)) is WipeAnswer.WIPED
    with raw_server(answering(gzip.compress(b'{"error": 1}'), headers=headers)) as server:
        assert isinstance(failure(make_client(server.url)), ProviderFailing)


@pytest.mark.parametrize("body", [b"{}", b'{"error": [{"message": "Account not found."}]}'])
def test_a_404_in_the_provider_s_json_says_that_the_account_is_gone(make_client: MakeClient, body: bytes) -> None:
    with raw_server(answering(body, status="404 Not Found")) as server:
        assert delete(make_client(server.url)) is WipeAnswer.GONE


@pytest.mark.parametrize(
    "body", [b"", b"<html>No such page</html>", b"404 page not found\n", b"[]", b"null", b'"gone"', b'{"error": ']
)
def test_a_404_of_something_in_between_may_pass_and_is_one_attempt(make_client: MakeClient, body: bytes) -> None:
    with raw_server(answering(body, status="404 Not Found")) as server:
        error = failure(make_client(server.url))
        assert len(server.requests) == 1
    assert_failing(error, outcome_unknown=True)
    assert error.message.startswith("delete account: HTTP 404")


def test_a_redirect_is_not_followed(make_client: MakeClient) -> None:
    headers = "Location: /login\r\n"
    with raw_server(answering(b"", status="302 Found", headers=headers)) as server:
        assert isinstance(failure(make_client(server.url)), ProviderMisconfigured)
        assert len(server.requests) == 1


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_connection_dropped_after_the_request_leaves_the_outcome_unknown(
    client: CspClient, mock: MockCsp, when: str
) -> None:
    mock.switch(drop_next_deletes=1, drop_when=when)
    error = failure(client, mock.any_account())
    assert_failing(error, outcome_unknown=True)
    (asked,) = mock.deletes()
    assert (asked["answer"], asked["applied"]) == (None, when == "after")


def test_a_refused_connection_sent_nothing(make_client: MakeClient) -> None:
    assert_failing(failure(make_client(f"http://127.0.0.1:{free_ports(1)[0]}")), outcome_unknown=False)


def test_a_server_that_cannot_speak_tls_was_sent_nothing(mock: MockCsp, make_client: MakeClient) -> None:
    error = failure(make_client(mock.url.replace("http:", "https:")))
    assert_failing(error, outcome_unknown=False)
    assert mock.deletes() == []


def test_an_answer_that_does_not_come_in_time_leaves_the_outcome_unknown(
    mock: MockCsp, make_client: MakeClient
) -> None:
    mock.switch(delete_seconds=1)
    error = failure(make_client(mock.url, read_timeout=0.2), mock.any_account())
    assert_failing(error, outcome_unknown=True)
    assert "timed out" in error.message


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nX-Slow: ",
        b"HTTP/1.1 200 OK\r\nContent-Length: 60000\r\n\r\n",
        b"HTTP/1.1 202 Accepted\r\n\r\n",
    ],
    ids=["status line", "headers", "body", "body without a length"],
)
def test_an_answer_that_drips_in_is_cut_off(make_client: MakeClient, head: bytes) -> None:
    with raw_server(lambda connection, _: drip(connection, head)) as server:
        assert_failing(failure(make_client(server.url, connect_timeout=0.3, read_timeout=0.3)), outcome_unknown=True)


def test_a_list_that_drips_in_is_cut_off(make_client: MakeClient) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 60000\r\n\r\n"
    with raw_server(lambda connection, _: drip(connection, head)) as server, pytest.raises(ProviderFailing):
        make_client(server.url, connect_timeout=0.3, read_timeout=0.3).list_accounts()


def test_a_tls_handshake_that_stalls_is_cut_off_and_sent_nothing(make_client: MakeClient) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:  # nobody takes the connection up
        url = f"https://127.0.0.1:{listener.getsockname()[1]}"
        error = failure(make_client(url, connect_timeout=0.3, read_timeout=0.3))
    assert_failing(error, outcome_unknown=False)
    assert "timed out" in error.message


def test_a_tls_handshake_that_drips_in_is_cut_off_and_sent_nothing(make_client: MakeClient) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def begin_a_long_record() -> None:
            connection, _ = listener.accept()
            with connection, suppress(OSError):
                connection.recv(4096)
                drip(connection, b"\x16\x03\x03\x40\x00")

        server = threading.Thread(target=begin_a_long_record)
        server.start()
        url = f"https://127.0.0.1:{listener.getsockname()[1]}"
        error = failure(make_client(url, connect_timeout=0.3, read_timeout=0.3))
        server.join(25)
    assert_failing(error, outcome_unknown=False)
    assert "timed out" in error.message


@pytest.mark.parametrize("answer", [None, b"HTTP/1.1 200 OK\r\nContent-Length: 60000\r\n\r\n"], ids=["never", "drips"])
def test_a_hundred_calls_of_one_process_to_a_provider_that_hangs_are_all_cut_off(
    make_client: MakeClient, answer: bytes | None
) -> None:
    def hang(connection: socket.socket, _: str) -> None:
        if answer is None:
            connection.recv(1)  # until the client closes
        else:
            drip(connection, answer)

    with raw_server(hang) as server, ThreadPoolExecutor(100) as threads:
        options = {"limit": 100, "threshold": 1000, "connections": 100, "connect_timeout": 2, "read_timeout": 2}
        client = make_client(server.url, **options)
        errors = list(threads.map(lambda _: failure(client), range(100)))
    for error in errors:
        assert_failing(error, outcome_unknown=True)
    assert len(server.requests) == 100


NOT_WHOLE = {
    "not HTTP": b"SSH-2.0-OpenSSH_9.2\r\n",
    "cut in the status line": b"HTTP/1.1 200",
    "cut after the status line": b"HTTP/1.1 200 OK\r\n",
    "cut in the name of a header": b"HTTP/1.1 200 OK\r\nContent-Le",
    "cut after a length of 0": b"HTTP/1.1 200 OK\r\nContent-Length: 0",
    "cut after a header": b"HTTP/1.1 200 OK\r\nConnection: close",
    "cut before the headers end": b"HTTP/1.1 200 OK\r\nConnection: close\r\n",
    "cut in the body": b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n{}",
    "a 404 cut in the body": b"HTTP/1.1 404 Not Found\r\nContent-Length: 10\r\n\r\n{}",
}


@pytest.mark.parametrize("answer", NOT_WHOLE.values(), ids=NOT_WHOLE)
def test_an_answer_that_is_not_whole_leaves_the_outcome_unknown(make_client: MakeClient, answer: bytes) -> None:
    with raw_server(sending(answer)) as server:
        assert_failing(failure(make_client(server.url)), outcome_unknown=True)


@pytest.mark.parametrize(
    "answer", [b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n", b"HTTP/1.0 200 OK\r\n\r\n", b"HTTP/1.1 204 N\r\n\r\n"]
)
def test_a_success_may_end_by_closing_if_it_says_so(make_client: MakeClient, answer: bytes) -> None:
    with raw_server(sending(answer)) as server:
        assert delete(make_client(server.url)) is WipeAnswer.WIPED


def test_an_error_whose_body_is_cut_short_is_still_that_error(make_client: MakeClient) -> None:
    with raw_server(sending(b"HTTP/1.1 500 Oops\r\nContent-Length: 10\r\n\r\nsorry")) as server:
        assert_failing(failure(make_client(server.url)), outcome_unknown=False)


@pytest.mark.parametrize(
    "external_id",
    [
        *("", "identity/accounts/", "identity/accounts/..", "identity/accounts/../../current_user/accounts"),
        *(f"{EXTERNAL_ID}/../x", f"{EXTERNAL_ID}\n", f"{EXTERNAL_ID}?force=true", f" {EXTERNAL_ID}"),
        EXTERNAL_ID.replace("0b1f5cf8", "0b1f5cf٨"),
        EXTERNAL_ID.replace("accounts", "users"),
    ],
)
def test_a_forged_external_id_is_rejected_and_nothing_is_sent(
    client: CspClient, mock: MockCsp, external_id: str
) -> None:
    assert isinstance(failure(client, external_id), ProviderRejected)
    assert mock.log()["highest_in_flight"] == 0


def test_an_error_shows_one_short_line_without_the_token(make_client: MakeClient) -> None:
    body = f"bad\r\n\x1b[31m\ttoken {TOKEN} ".encode() + b"\xff" + b"z" * 100_000
    with raw_server(answering(body, status="400 Bad")) as server:
        error = failure(make_client(server.url.replace("//", "//user:password@")))
    assert error.message.startswith("delete account: HTTP 400: bad [31m token *** �zzz")
    assert len(error.message) < 220
    assert error.message.isprintable()


def test_no_error_holds_the_address_or_the_token(make_client: MakeClient) -> None:
    port = free_ports(1)[0]
    error = failure(make_client(f"http://user:password@127.0.0.1:{port}"))
    for secret in ("password", TOKEN, str(port)):
        assert secret not in error.message


def test_a_delete_outside_admit_is_refused(client: CspClient, mock: MockCsp) -> None:
    with pytest.raises(RuntimeError):
        client.delete_account(mock.any_account(), send_within=5)
    with client.admit():
        pass
    with pytest.raises(RuntimeError):
        client.delete_account(mock.any_account(), send_within=5)
    assert mock.deletes() == []


def test_a_delete_that_would_go_out_too_late_is_not_sent(client: CspClient, mock: MockCsp) -> None:
    with client.admit(), pytest.raises(ProviderFailing) as raised:
        client.delete_account(mock.any_account(), send_within=-1)
    assert not raised.value.outcome_unknown
    assert mock.deletes() == []


# --- slots and breaker -----------------------------------------------------------------------------------------------


def test_all_workers_together_keep_to_the_call_slots(mock: MockCsp, make_client: MakeClient) -> None:
    mock.switch(delete_seconds=0.1)
    ids = [account["id"] for account in mock.sandboxes().values()][:12]
    answers: list[WipeAnswer] = []

    def work(external_id: str) -> None:
        client = make_client(mock.url, limit=3)
        while True:
            try:
                answers.append(delete(client, external_id))
            except ProviderBusy:
                continue
            return

    with ThreadPoolExecutor(len(ids)) as threads:
        list(threads.map(work, ids))
    assert answers == [WipeAnswer.WIPED] * 12
    assert sorted(entry["external_id"] for entry in mock.deletes()) == sorted(ids)
    assert 1 <= mock.log()["highest_in_flight"] <= 3


def test_a_delete_gives_up_soon_when_no_slot_comes_free(mock: MockCsp, make_client: MakeClient) -> None:
    client = make_client(mock.url, limit=1)
    with client.admit():
        assert isinstance(failure(client, mock.any_account()), ProviderBusy)
    assert mock.deletes() == []


def test_deletes_keep_the_pace_over_all_workers_and_lists_do_not_wait_for_it(
    mock: MockCsp, make_client: MakeClient, redis: Redis
) -> None:
    clients = [
        make_client(mock.url, slots=RedisSlots(redis, limit=10, lease_sec=60, paced_per_minute=1)) for _ in range(2)
    ]
    with ThreadPoolExecutor(4) as threads:  # each of them waits for the pace until it gives up
        calls = [threads.submit(delete, clients[number % 2], mock.any_account()) for number in range(4)]
        errors = [call.exception() for call in calls]
    assert sorted(type(error).__name__ for error in errors) == ["NoneType", *["ProviderBusy"] * 3]
    assert len(mock.deletes()) == 1
    assert clients[0].list_accounts().accounts


def test_failures_open_the_breaker_for_deletes_and_lists_and_nothing_more_is_sent(
    mock: MockCsp, make_client: MakeClient, redis: Redis
) -> None:
    mock.switch(fail_next_deletes=100)
    client = make_client(mock.url, threshold=3)
    for _ in range(3):
        assert isinstance(failure(client, mock.any_account()), ProviderFailing)
    assert isinstance(failure(client, mock.any_account()), ProviderCircuitOpen)
    with pytest.raises(ProviderCircuitOpen):
        make_client(mock.url).list_accounts()
    assert len(mock.deletes()) == 3
    assert redis.zcard("sandbox-broker:csp:slots") == 0


def test_a_fault_of_configuration_opens_the_breaker_at_once(mock: MockCsp, make_client: MakeClient) -> None:
    mock.switch(unauthorized=True)
    client = make_client(mock.url)
    with pytest.raises(ProviderMisconfigured):
        client.list_accounts()
    assert isinstance(failure(client, mock.any_account()), ProviderCircuitOpen)


def test_gone_accounts_and_unusable_lists_leave_the_breaker_closed(mock: MockCsp, make_client: MakeClient) -> None:
    mock.switch(empty_list=True)
    client = make_client(mock.url, threshold=1)
    for _ in range(3):
        assert delete(client) is WipeAnswer.GONE
        with pytest.raises(ListingUnusable):
            client.list_accounts()


def test_an_admission_that_sends_nothing_leaves_no_trace(client: CspClient, mock: MockCsp, redis: Redis) -> None:
    with client.admit():
        assert redis.zcard("sandbox-broker:csp:slots") == 1
    assert redis.zcard("sandbox-broker:csp:slots") == 0
    assert mock.log()["highest_in_flight"] == 0


def test_without_redis_nothing_is_sent(mock: MockCsp, own_redis: OwnRedis, make_client: MakeClient) -> None:
    external_id = mock.any_account()
    own_redis.stop()
    with connected(own_redis.url) as redis:
        client = make_client(mock.url, redis=redis)
        with pytest.raises(ProviderSlotsUnavailable):
            client.list_accounts()
        assert isinstance(failure(client, external_id), ProviderSlotsUnavailable)
    assert mock.log()["highest_in_flight"] == 0
