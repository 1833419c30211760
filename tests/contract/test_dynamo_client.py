"""The client's own way to DynamoDB: its errors are boto3's, its connections are kept, and nothing is sent to strangers."""

from __future__ import annotations

import json
import signal
import socket
import ssl
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from random import Random
from typing import TYPE_CHECKING, Any

import pytest
import trustme
from botocore.credentials import Credentials
from botocore.exceptions import (
    ClientError,
    ConnectTimeoutError,
    CredentialRetrievalError,
    EndpointConnectionError,
    NoCredentialsError,
    ReadTimeoutError,
    SSLError,
)

from broker_common.adapters.dynamo_answers import NoAnswer
from broker_common.adapters.dynamo_client import DynamoClient
from broker_common.adapters.dynamo_http import Connections
from broker_common.adapters.dynamo_store import DynamoStore
from broker_common.adapters.dynamo_transport import make_boto3_client, make_client
from broker_common.core.errors import OutcomeUnknown, StoreMisconfigured, StoreUnavailable
from deploy.dev.processes import free_ports
from tests.fakes import FakeClock, RecordingRecorder, add_of, make_sandbox
from tests.raw_dynamodb import Exchange, RawDynamoDB, raw_dynamodb, whole

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from botocore.credentials import ReadOnlyCredentials

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("aws_environment")]

KEY = {"PK": {"S": "SBX#1"}, "SK": {"S": "META"}}


@contextmanager
def connected(url: str, *, connections: int = 8, timeout_sec: float = 10) -> Iterator[Any]:
    client = make_client(region="us-east-1", endpoint_url=url, timeout_sec=timeout_sec, connections=connections)
    try:
        yield client
    finally:
        client.close()


@contextmanager
def clients(url: str) -> Iterator[tuple[Any, Any]]:
    """Yield our client, and boto3's."""
    theirs = make_boto3_client(region="us-east-1", endpoint_url=url, timeout_sec=10, connections=1)
    with connected(url) as ours, closing(theirs):
        yield ours, theirs


def store_on(client: Any) -> DynamoStore:
    return DynamoStore(client, "pool", clock=FakeClock(), rng=Random(1), recorder=RecordingRecorder(), timeout_sec=10)


def get(client: Any, key: dict[str, Any] = KEY) -> Any:
    return client.get_item(TableName="pool", Key=key)


def echo(exchange: Exchange) -> None:
    """Answer with the item that was asked for."""
    exchange.send(whole(json.dumps({"Item": exchange.request["Key"]}).encode()))


# -- what boto3 says


def error(code: str, **content: Any) -> bytes:
    body = json.dumps({"__type": f"com.amazonaws.dynamodb.v20120810#{code}", "message": "no", **content})
    return whole(body.encode(), status="400 No\r\nx-amzn-RequestId: 7")


REASONS = [{"Code": "ConditionalCheckFailed", "Item": KEY, "Message": "no"}, {"Code": "None"}]


@pytest.mark.parametrize(
    "answer",
    [
        error("ConditionalCheckFailedException", Item=KEY),
        error("TransactionCanceledException", CancellationReasons=REASONS),
        error("ThrottlingException"),
        error("ACodeThatNobodyKnows"),
        whole(b'{"__type": "ExpiredTokenException:x", "Message": "old"}', status="400 No"),
        whole(b'{"__type": "InternalServerError"}', status="500 No"),
    ],
)
def test_an_error_is_the_one_that_boto3_raises(answer: bytes) -> None:
    def behave(exchange: Exchange) -> None:
        exchange.send(answer)
        exchange.connection.shutdown(socket.SHUT_RDWR)  # an error of boto3 keeps its connection open

    with raw_dynamodb(behave) as server, clients(server.url) as (ours, theirs):
        assert refusal(ours) == refusal(theirs)


def refusal(client: Any) -> tuple[str, Any]:
    with pytest.raises(ClientError) as raised:
        client.transact_write_items(TransactItems=[])
    response: Any = raised.value.response
    for name in ("RequestId", "RetryAttempts", "MaxAttemptsReached"):  # which nobody reads
        response["ResponseMetadata"].pop(name, None)
    response.pop("message", None)  # boto3 tells some errors' text twice
    return type(raised.value).__name__, response


def test_a_request_is_the_one_that_boto3_sends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", "a-token")
    with raw_dynamodb(echo) as server, clients(server.url) as (client, theirs):
        assert get(client)["Item"] == get(theirs)["Item"] == KEY
        ours, other = server.requests
    assert ours.request == other.request
    assert ours.headers[b"user-agent"] == b"sandbox-broker"
    differ = {b"x-amz-date", b"authorization", b"content-length", b"user-agent"}
    assert differ <= ours.headers.keys()
    assert {name: ours.headers[name] for name in ours.headers.keys() - differ} == {
        name: other.headers[name]
        for name in other.headers.keys() - differ - {b"amz-sdk-invocation-id", b"amz-sdk-request"}
    }


def test_all_other_calls_are_boto3_s() -> None:
    with raw_dynamodb(lambda exchange: exchange.send(whole(b'{"TableNames": ["pool"]}'))) as server:
        with connected(server.url) as client:
            assert client.list_tables()["TableNames"] == ["pool"]
        assert b"amz-sdk-invocation-id" in server.requests[0].headers


# -- where requests go


ACCOUNT = {"AWS_ACCOUNT_ID": "123456789012"}
FIPS = {"AWS_USE_FIPS_ENDPOINT": "true"}
DUAL_STACK = {"AWS_USE_DUALSTACK_ENDPOINT": "true"}


@pytest.mark.parametrize(
    ("variables", "region", "host"),
    [
        ({}, "us-east-1", "dynamodb.us-east-1.amazonaws.com"),
        (ACCOUNT, "us-east-1", "dynamodb.us-east-1.amazonaws.com"),
        (ACCOUNT | {"AWS_ACCOUNT_ID_ENDPOINT_MODE": "required"}, "us-east-1", "dynamodb.us-east-1.amazonaws.com"),
        ({"AWS_ENABLE_ENDPOINT_DISCOVERY": "true"}, "us-east-1", "dynamodb.us-east-1.amazonaws.com"),
        (FIPS, "us-east-1", "dynamodb-fips.us-east-1.amazonaws.com"),
        (FIPS, "us-gov-west-1", "dynamodb.us-gov-west-1.amazonaws.com"),
        (DUAL_STACK, "us-east-1", "dynamodb.us-east-1.api.aws"),
        (FIPS | DUAL_STACK, "us-east-1", "dynamodb-fips.us-east-1.api.aws"),
        ({}, "fips-us-east-1", "dynamodb-fips.us-east-1.amazonaws.com"),
        ({}, "cn-north-1", "dynamodb.cn-north-1.amazonaws.com.cn"),
        ({}, "local", "localhost"),
        ({"AWS_ENDPOINT_URL": "https://dynamodb.example"}, "eu-west-1", "dynamodb.example"),
        ({"AWS_ENDPOINT_URL_DYNAMODB": "https://dynamodb.example"}, "eu-west-1", "dynamodb.example"),
        ({"AWS_ENDPOINT_URL": "https://dynamodb.example/a/path"}, "eu-west-1", "dynamodb.example"),
        ({"AWS_ENDPOINT_URL": "https://dynamodb.example/?a=query"}, "eu-west-1", "dynamodb.example"),
    ],
)
def test_a_request_goes_to_the_host_and_is_signed_for_the_region_that_boto3_chooses(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    variables: dict[str, str],
    region: str,
    host: str,
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    has_tls = region != "local"  # which boto3 looks for on this machine
    with tls_server(tmp_path, monkeypatch, host) if has_tls else raw_dynamodb(echo) as server:
        address = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", int(server.url.rpartition(":")[2])))
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [address])
        for make in (make_client, make_boto3_client):
            with closing(make(region=region, endpoint_url=None, timeout_sec=10, connections=1)) as client:
                assert get(client)["Item"] == KEY
    ours, theirs = server.requests
    assert ours.headers[b"host"] == theirs.headers[b"host"]
    assert ours.headers[b"host"].partition(b":")[0] == host.encode()
    assert ours.path == theirs.path
    scopes = [each.headers[b"authorization"].split(b",")[0].split(b"/")[2:] for each in server.requests]
    assert scopes[0] == scopes[1]


# -- credentials


class SlowCredentials(Credentials):
    """They take longer than a call may take."""

    def __init__(self, pass_time: Callable[[], None]) -> None:
        super().__init__("key", "secret")
        self._pass_time = pass_time

    def get_frozen_credentials(self) -> ReadOnlyCredentials:
        self._pass_time()
        return super().get_frozen_credentials()


@contextmanager
def connected_as(credentials: Credentials, url: str) -> Iterator[Any]:
    pool = Connections(url, ca_file="", timeout_sec=10, kept=1)
    theirs = make_boto3_client(region="us-east-1", endpoint_url=url, timeout_sec=10, connections=1)
    with closing(DynamoClient(theirs, credentials, pool, region="us-east-1", timeout_sec=10)) as client:
        yield client


def test_a_call_has_all_of_its_time_after_its_credentials_were_renewed(monkeypatch: pytest.MonkeyPatch) -> None:
    now, passed = time.monotonic, [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now() + passed[0])

    def pass_time() -> None:
        passed[0] += 60

    with raw_dynamodb(echo) as server, connected_as(SlowCredentials(pass_time), server.url) as client:
        for _ in range(2):
            assert get(client)["Item"] == KEY


def test_a_call_whose_time_is_over_before_it_is_sent_was_not_applied() -> None:
    with raw_dynamodb(echo) as server:
        pool = Connections(server.url, ca_file="", timeout_sec=10, kept=1)
        with closing(pool.take(time.monotonic() + 10)) as connection, pytest.raises(ConnectTimeoutError):
            connection.exchange(b"POST / HTTP/1.1\r\n", time.monotonic())


@pytest.mark.parametrize("bad", ["SECRET\r\nx-other: 1", "SECRET\n", "SECRET\x00", "SECRET\u0100"])
@pytest.mark.parametrize("part", ["key", "token"])
def test_credentials_that_would_break_a_header_are_sent_to_nobody_and_shown_nowhere(bad: str, part: str) -> None:
    credentials = Credentials(bad, "s") if part == "key" else Credentials("key", "s", bad)
    with raw_dynamodb(echo) as server, connected_as(credentials, server.url) as client:
        with pytest.raises(CredentialRetrievalError) as raised:
            get(client)
        assert "SECRET" not in repr(raised.value)
        with pytest.raises(StoreMisconfigured, match="credentials"):
            store_on(client).commit(add_of(make_sandbox("1")))
        assert server.connections == 0


def test_without_credentials_nothing_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with raw_dynamodb(echo) as server:
        with connected(server.url) as client, pytest.raises(NoCredentialsError):
            get(client)
        assert not server.requests


def test_each_request_is_signed_by_the_credentials_of_its_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A program gives credentials that are nearly over, so each call asks it again."""
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    given, config = tmp_path / "given", tmp_path / "config"
    config.write_text(f"[default]\ncredential_process = cat {given}\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))

    def give(key: str) -> None:
        until = datetime.now(UTC) + timedelta(minutes=5)
        fields = {"Version": 1, "AccessKeyId": key, "SecretAccessKey": "s", "SessionToken": f"token-of-{key}"}
        given.write_text(json.dumps({**fields, "Expiration": until.isoformat()}))

    give("ONE")
    with raw_dynamodb(echo) as server, connected(server.url) as client:
        get(client)
        give("TWO")
        get(client)
    for key, sent in zip((b"ONE", b"TWO"), server.requests, strict=True):
        assert b"Credential=%s/" % key in sent.headers[b"authorization"]
        assert sent.headers[b"x-amz-security-token"] == b"token-of-%s" % key


# -- connections


def test_threads_get_their_own_answers_and_no_more_connections_are_kept_than_were_asked_for() -> None:
    together = threading.Barrier(6)

    def behave(exchange: Exchange) -> None:
        together.wait(10)
        echo(exchange)

    def ask(number: int) -> bool:
        key = {"PK": {"S": str(number)}, "SK": {"S": "META"}}
        found: bool = get(client, key)["Item"] == key
        return found

    with raw_dynamodb(behave) as server, connected(server.url, connections=2) as client:
        with ThreadPoolExecutor(6) as threads:
            assert all(threads.map(ask, range(6)))
            assert server.connections == 6
            assert all(threads.map(ask, range(6)))
        assert server.connections == 10


def test_the_connection_that_was_used_last_is_used_first() -> None:
    together = threading.Barrier(2)

    def meet(exchange: Exchange) -> None:
        together.wait(10)
        echo(exchange)

    with raw_dynamodb(meet) as server, connected(server.url) as client:
        with ThreadPoolExecutor(2) as threads:
            list(threads.map(lambda _: get(client), range(2)))
        server.behave = echo
        for _ in range(4):
            get(client)
        assert len({each.connection for each in server.requests[2:]}) == 1


def test_what_comes_unasked_on_an_idle_connection_is_not_the_next_answer() -> None:
    sent = threading.Event()

    def behave(exchange: Exchange) -> None:
        echo(exchange)
        exchange.send(whole(b'{"Item": {"PK": {"S": "unasked"}}}'))
        sent.set()

    with raw_dynamodb(behave) as server, connected(server.url) as client:
        for _ in range(3):
            assert get(client)["Item"] == KEY
            assert sent.wait(10)
            sent.clear()
        assert server.connections == 3


@pytest.mark.parametrize("value", ["close", "Close", "x, close", "close , x"])
def test_a_connection_that_dynamodb_wants_closed_is_not_used_again(value: str) -> None:
    raw = whole(b"{}", status=f"200 OK\r\nConnection: {value}")
    with raw_dynamodb(lambda exchange: exchange.send(raw)) as server, connected(server.url) as client:
        get(client)
        get(client)
        assert server.connections == 2


def test_a_connection_on_which_a_call_ran_out_of_time_is_not_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    now, passed, over = time.monotonic, [0.0], threading.Event()
    monkeypatch.setattr(time, "monotonic", lambda: now() + passed[0])

    def begin(exchange: Exchange) -> None:
        server.behave = echo
        passed[0] += 60
        if not over.wait(0.5):  # the client reads already, and looks at the time after a byte
            exchange.send(b"H")

    with raw_dynamodb(begin) as server, connected(server.url) as client:
        with pytest.raises(ReadTimeoutError):
            get(client)
        over.set()
        assert get(client)["Item"] == KEY
        assert server.connections == 2


class TimeIsUp(BaseException):
    """A time limit of Celery, for example."""


def test_a_call_that_is_interrupted_leaves_its_answer_to_nobody() -> None:
    def interrupt(exchange: Exchange) -> None:
        server.behave = echo
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)  # it interrupts the reading

    def stop(*_: object) -> None:
        raise TimeIsUp

    earlier = signal.signal(signal.SIGUSR1, stop)
    try:
        with raw_dynamodb(interrupt) as server, connected(server.url) as client:
            with pytest.raises(TimeIsUp):
                get(client)
            with suppress(OSError):  # the connection is closed
                server.requests[0].send(whole(b'{"Item": {"PK": {"S": "late"}}}'))
            assert get(client)["Item"] == KEY
    finally:
        signal.signal(signal.SIGUSR1, earlier)


# -- TLS, and servers that are not there


@contextmanager
def tls_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *names: str, is_trusted: bool = True
) -> Iterator[RawDynamoDB]:
    context, authority = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), trustme.CA()
    authority.issue_cert(*names).configure_cert(context)
    file = tmp_path / "ca.pem"
    (authority if is_trusted else trustme.CA()).cert_pem.write_to_path(str(file))
    monkeypatch.setenv("AWS_CA_BUNDLE", str(file))
    with raw_dynamodb(echo, tls=context) as server:
        yield server


@pytest.mark.parametrize(
    ("name", "is_trusted"), [("127.0.0.1", False), ("dynamodb.example", True), ("localhost", True)]
)
def test_a_server_whose_certificate_is_of_another_name_or_of_a_stranger_is_sent_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, is_trusted: bool
) -> None:
    with tls_server(tmp_path, monkeypatch, name, is_trusted=is_trusted) as server:
        with connected(server.url) as client:
            with pytest.raises(SSLError):
                get(client)
            with pytest.raises(StoreUnavailable) as raised:
                store_on(client).commit(add_of(make_sandbox("1")))
        assert not isinstance(raised.value, OutcomeUnknown)
        assert not server.requests


def test_without_a_bundle_the_authorities_of_botocore_are_trusted_and_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tls_server(tmp_path, monkeypatch, "127.0.0.1") as server:
        monkeypatch.delenv("AWS_CA_BUNDLE")
        with connected(server.url) as client, pytest.raises(SSLError):
            get(client)
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "ca.pem"))
        with connected(server.url) as client:
            assert get(client)["Item"] == KEY


def test_a_bundle_that_is_not_there_is_an_error_of_tls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_CA_BUNDLE", "/nowhere.pem")
    with (
        raw_dynamodb(echo) as server,
        connected(server.url.replace("http:", "https:")) as client,
        pytest.raises(SSLError),
    ):
        get(client)


def test_a_tls_handshake_that_stalls_ends_with_the_time_of_the_call() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"https://127.0.0.1:{silent.getsockname()[1]}"
        with connected(url, timeout_sec=0.3) as client, pytest.raises(ConnectTimeoutError):
            get(client)


def test_a_server_that_is_not_there_was_sent_nothing() -> None:
    for host in (f"127.0.0.1:{free_ports(1)[0]}", "no-such-host.invalid"):
        with connected(f"http://{host}") as client, pytest.raises(EndpointConnectionError):
            get(client)


@pytest.mark.parametrize("first", ["refused", "of a family that the machine lacks"])
def test_a_host_whose_first_address_does_not_answer_is_asked_at_its_second(
    monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    make = socket.socket
    refused = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", free_ports(1)[0]))
    lacking = (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", 1, 0, 0))

    def make_known(family: int = -1, *rest: Any, **options: Any) -> socket.socket:
        if family == socket.AF_INET6:
            raise OSError(97, "Address family not supported by protocol")
        return make(family, *rest, **options)

    with raw_dynamodb(echo) as server:
        port = int(server.url.rpartition(":")[2])
        found = [refused if first == "refused" else lacking, (*refused[:4], ("127.0.0.1", port))]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
        with connected(f"http://two.example:{port}") as client:
            monkeypatch.setattr(socket, "socket", make_known)
            assert get(client)["Item"] == KEY


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nContent-Length: -2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\n" + b"X-A: b\r\n" * 20_000,
        b"SSH-2.0-OpenSSH\r\n\r\n",
    ],
)
def test_an_answer_that_dynamodb_never_gives_is_refused(head: bytes) -> None:
    with (
        raw_dynamodb(lambda exchange: exchange.send(head)) as server,
        connected(server.url) as client,
        pytest.raises(NoAnswer),
    ):
        get(client)
