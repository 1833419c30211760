"""The sender of webhooks against receivers on loopback: proper ones, and bare sockets where no proper one behaves so."""

from __future__ import annotations

import base64
import gzip
import ipaddress
import socket
import ssl
import struct
import threading
import time
import tracemalloc
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
import trustme
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from broker_common.adapters.public_address import is_public
from broker_common.adapters.webhook_http import LIMIT_SEC, WebhookHttp, resolve
from broker_common.core.webhook import Delivery, Endpoint, Secret
from deploy.dev.processes import free_ports, wait_until
from tests.webhook_receiver import Receiver, receiving

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from broker_common.core.sending import WebhookAnswer

SECRET = "whsec_" + base64.b64encode(b"a secret of exactly 32 bytes ...").decode()
OTHER_SECRET = "whsec_" + base64.b64encode(b"another secret of exactly 32 ...").decode()
PAYLOAD = '{"type":"sandbox.allocated","data":{"name":"Übung 1"}}'
HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n"
SHORT = 0.5
"""The limit of a try, in tests in which it is reached."""
IN_TIME = 5.0
"""Longer than the limit only because the machine may be busy. Without a limit, these endpoints go on for ever."""


def endpoint_at(url: str, *secrets: Secret) -> Endpoint:
    return Endpoint(
        endpoint_id="e1",
        url=url,
        kinds=("*",),
        secrets=secrets or (Secret(value=SECRET),),
        created_at=1,
        created_by="admin",
    )


def delivery_of(payload: str = PAYLOAD) -> Delivery:
    return Delivery(
        endpoint_id="e1",
        delivery_id="sandbox-1_7_allocated",
        kind="sandbox.allocated",
        sandbox_id="1",
        version=7,
        payload=payload,
        fact_at=1,
        created_at=1,
    )


def sender(**options: Any) -> WebhookHttp:
    return WebhookHttp(**{"allows_loopback": True, **options})


def send(url: str, *secrets: Secret, by: WebhookHttp | None = None, payload: str = PAYLOAD) -> WebhookAnswer:
    return (by or sender()).send(endpoint_at(url, *secrets), delivery_of(payload), now=int(time.time()))


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving(Receiver(SECRET)) as each:
        yield each


def url_of(receiver: Receiver, host: str = "127.0.0.1", scheme: str = "http") -> str:
    return f"{scheme}://{host}:{receiver.port}/hooks?tenant=1"


# -- bare sockets


@contextmanager
def bare(behave: Callable[[socket.socket], None]) -> Iterator[str]:
    """Accept connections, and let each be handled by `behave`, which need not read. Yields the URL."""
    threads: list[threading.Thread] = []
    links: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve(link: socket.socket) -> None:
            with link, suppress(OSError):
                behave(link)

        def accept() -> None:
            with suppress(OSError):
                while True:
                    links.append(listener.accept()[0])
                    threads.append(threading.Thread(target=serve, args=(links[-1],)))
                    threads[-1].start()

        acceptor = threading.Thread(target=accept)
        acceptor.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            acceptor.join()
            for link in links:
                with suppress(OSError):
                    link.shutdown(socket.SHUT_RDWR)
            for thread in threads:
                thread.join()


def read_request(link: socket.socket) -> bytes:
    received = b""
    while not received.endswith(b"}"):
        part = link.recv(2**16)
        if not part:
            raise ConnectionResetError
        received += part
    return received


def saying(*parts: bytes, then: Callable[[socket.socket], Any] = lambda _: None) -> Callable[[socket.socket], None]:
    """Read the request, send these bytes, do something, and close."""

    def behave(link: socket.socket) -> None:
        read_request(link)
        for part in parts:
            link.sendall(part)
        then(link)

    return behave


def wait(link: socket.socket) -> None:
    """Wait until the sender goes."""
    while link.recv(2**16):
        pass


def repeat(part: bytes, every: float = 0.0) -> Callable[[socket.socket], None]:
    """Send the same without end."""

    def behave(link: socket.socket) -> None:
        while True:
            link.sendall(part if every else part * 1_000)
            time.sleep(every)

    return behave


def reset(link: socket.socket) -> None:
    link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def answer_in_time(url: str, payload: str = PAYLOAD, **options: Any) -> WebhookAnswer:
    began = time.monotonic()
    answer = send(url, by=sender(limit_sec=SHORT, **options), payload=payload)
    assert time.monotonic() - began < IN_TIME
    return answer


# -- what a receiver gets


def test_a_receiver_verifies_what_was_signed_and_gets_the_payload_byte_for_byte(receiver: Receiver) -> None:
    assert send(url_of(receiver)).status == 200
    assert receiver.forged == []
    (came,) = receiver.received
    assert came.body == PAYLOAD.encode()
    assert came.id == "sandbox-1_7_allocated"
    assert came.headers["content-type"] == "application/json"
    assert abs(int(came.headers["webhook-timestamp"]) - came.at) <= 2


def test_while_a_secret_rotates_each_of_the_two_verifies(receiver: Receiver) -> None:
    now = int(time.time())
    old = Secret(value=SECRET, valid_until=now + 100)
    send(url_of(receiver), Secret(value=OTHER_SECRET), old)
    assert receiver.forged == []
    (came,) = receiver.received
    for secret in (SECRET, OTHER_SECRET):
        Webhook(secret).verify(came.body, came.headers)
    first, second = came.headers["webhook-signature"].split(" ")
    assert first.startswith("v1,")
    assert second.startswith("v1,")


def test_a_secret_whose_time_is_over_signs_nothing(receiver: Receiver) -> None:
    now = int(time.time())
    assert send(url_of(receiver), Secret(value=OTHER_SECRET), Secret(value=SECRET, valid_until=now - 5)).status == 401
    (came,) = receiver.forged
    Webhook(OTHER_SECRET).verify(came.body, came.headers)
    assert " " not in came.headers["webhook-signature"]


def test_a_changed_body_does_not_verify(receiver: Receiver) -> None:
    send(url_of(receiver))
    (came,) = receiver.received
    with pytest.raises(WebhookVerificationError):
        Webhook(SECRET).verify(came.body + b" ", came.headers)


@pytest.mark.parametrize(
    "secret", ["", "whsec_", "whsec_=", "whsec_é", "whsec_a", "nonsense\r\nX-Evil: 1", "whsec_\x00"]
)
def test_an_odd_secret_never_puts_anything_into_the_headers(receiver: Receiver, secret: str) -> None:
    answer = send(url_of(receiver), Secret(value=secret))
    if answer.status is None:
        assert answer.text == "it was not sent: the endpoint has no secret that can sign"
        assert receiver.forged == []
    else:
        (came,) = receiver.forged
        assert "x-evil" not in came.headers
        assert came.headers["webhook-signature"].startswith("v1,")


def test_without_a_valid_secret_nothing_is_sent(receiver: Receiver) -> None:
    assert send(url_of(receiver), Secret(value=SECRET, valid_until=5)).status is None
    assert receiver.received == []


@pytest.mark.parametrize(
    "url", ["http://", "https://[::1", "http://a b/", "ftp://127.0.0.1/", "http://127.0.0.1:99999/"]
)
def test_an_url_that_cannot_be_called_is_said_in_words(url: str) -> None:
    answer = send(url)
    assert answer.status is None
    assert answer.text.startswith("failed while preparing the request: ")


# -- answers


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (200, "200"),
        (204, "204"),
        (299, "299"),
        (301, "redirects are not followed: 301"),
        (304, "redirects are not followed: 304"),
        (400, "400"),
        (410, "410"),
        (500, "500"),
    ],
)
def test_the_status_is_told_as_it_came(receiver: Receiver, status: int, text: str) -> None:
    receiver.judge = lambda _: status
    answer = send(url_of(receiver))
    assert answer.status == status
    assert answer.text.startswith(text)


def test_a_redirect_is_not_followed(receiver: Receiver) -> None:
    with receiving(Receiver(SECRET, judge=lambda _: 307)) as first:
        first.headers = {"Location": url_of(receiver)}
        assert send(url_of(first)).status == 307
        assert len(first.received) == 1
    assert receiver.connections == 0


def test_the_reason_of_a_refusal_is_told_in_printable_words() -> None:
    body = b"no \x1b[31msuch\x00 tenant\r\n\xff " + b"x" * 1000
    head = f"HTTP/1.1 422 Un\x07processable\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    with bare(saying(head, body)) as url:
        answer = send(url)
    assert answer.status == 422
    assert answer.text.startswith("422 Un processable: no [31msuch tenant \ufffd xxx")
    assert len(answer.text) == 300
    assert answer.text.isprintable()


def test_a_cookie_is_never_sent_back(receiver: Receiver) -> None:
    receiver.headers = {"Set_Cookie": "session=1; Path=/"}
    by = sender()
    send(url_of(receiver), by=by)
    send(url_of(receiver), by=by)
    assert [each.headers.get("cookie") for each in receiver.received] == [None, None]


# -- endpoints that misbehave


def test_a_try_has_15_seconds() -> None:
    assert LIMIT_SEC == 15


@pytest.mark.parametrize(
    ("behave", "text"),
    [
        (wait, "timed out after 0.5 s while waiting for its answer"),
        (
            saying(b"HTTP/1.1 200 OK\r\nX: ", then=repeat(b"x", 0.02)),
            "timed out after 0.5 s while waiting for its answer",
        ),
        (saying(b"HTTP/1.1 200 OK\r\n", then=repeat(b"X: y\r\n", 0.05)), "timed out after 0.5 s while waiting"),
        (saying(then=repeat(b"HTTP/1.1 100 Continue\r\n\r\n", 0.01)), "timed out after 0.5 s while waiting"),
        (
            saying(then=repeat(b"HTTP/1.1 100 Continue\r\n\r\n")),
            "failed while waiting for its answer: the headers have",
        ),
        (saying(b"HTTP/1.1 200 OK\r\n", then=repeat(b"X: " + b"y" * 6_000 + b"\r\n")), "failed while waiting"),
        (lambda _: None, "failed while waiting for its answer: "),
        (saying(), "failed while waiting for its answer: Remote end closed connection without response"),
        (saying(then=reset), "failed while waiting for its answer: Connection reset by peer"),
        (
            saying(b"HTTP/1.1 200 OK\r\nContent-"),
            "failed while waiting for its answer: the connection was closed within",
        ),
        (saying(b"HTTP/1.1 200 OK\r\n"), "failed while waiting for its answer: the connection was closed within"),
        (saying(b"hello\r\n\r\n"), "failed while waiting for its answer: hello"),
        (saying(b"HTTP/1.1 2x0 OK\r\n\r\n"), "failed while waiting for its answer: HTTP/1.1 2x0 OK"),
    ],
)
def test_an_endpoint_without_a_whole_head_fails_in_time_and_in_words(
    behave: Callable[[socket.socket], None], text: str
) -> None:
    with bare(behave) as url:
        answer = answer_in_time(url)
    assert answer.status is None
    assert answer.text.startswith(text)


@pytest.mark.parametrize(
    ("behave", "text"),
    [
        (saying(HEAD, then=repeat(b"x", 0.02)), "200 OK (the answer did not end in time)"),
        (saying(HEAD, b"x", then=reset), "200 OK (the answer was cut off)"),
        (saying(HEAD, b"x"), "200 OK (the answer was cut off)"),
        (saying(b"HTTP/1.1 200 OK\r\n\r\n", then=repeat(b"x" * 99)), "200 OK (the answer has more than 64 KiB)"),
        (
            saying(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n", then=repeat(b"x" * 99)),
            "200 OK (the answer has more than 64 KiB)",
        ),
        (
            saying(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", then=repeat(b"5\r\nhello\r\n", 0.02)),
            "200 OK (the answer did not end in time)",
        ),
        (
            saying(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", then=repeat(b"5\r\nhello\r\n")),
            "200 OK (the answer has more than 64 KiB)",
        ),
        (
            saying(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n", then=repeat(b"X: y\r\n")),
            "200 OK (the answer has more than 64 KiB)",
        ),
        (
            saying(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nhello\r\n", then=wait),
            "200 OK (the answer was cut off)",
        ),
        (
            saying(b"HTTP/1.1 302 Found\r\nLocation: /\r\nContent-Length: 9\r\n\r\n", then=wait),
            "redirects are not followed: 302 Found (the answer did not end in time)",
        ),
        (
            saying(b"HTTP/1.1 302 Found\r\nLocation: http://[\r\nContent-Length: 0\r\n\r\n"),
            "redirects are not followed: 302 Found",
        ),
        (saying(b"HTTP/1.1 200 OK\r\n\r\nhello"), "200 OK"),
        (saying(b"HTTP/1.1 204 No Content\r\n\r\n"), "204 No Content"),
    ],
)
def test_the_head_of_an_answer_decides_and_its_body_is_bounded(
    behave: Callable[[socket.socket], None], text: str
) -> None:
    with bare(behave) as url:
        answer = answer_in_time(url)
    assert answer.text == text
    assert str(answer.status) in text.split()


@pytest.mark.parametrize("status", [b"302 Found", b"500 Failed"])
def test_what_is_packed_stays_packed(status: bytes) -> None:
    packed = gzip.compress(bytes(40 * 2**20))
    head = b"HTTP/1.1 %s\r\nLocation: /\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % (status, len(packed))
    with bare(saying(head, packed)) as url:
        tracemalloc.start()
        answer = send(url)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert answer.status == int(status[:3])
    assert most < 20 * 2**20


def test_an_endpoint_that_reads_nothing_ends_in_time() -> None:
    done = threading.Event()

    def ignore(_: socket.socket) -> None:
        done.wait(60)

    with bare(ignore) as url:
        answer = answer_in_time(url, payload="x" * 20_000_000)
        done.set()
    assert answer.status is None
    assert answer.text == "timed out after 0.5 s while waiting for its answer"


def test_what_is_read_of_megabytes_is_bounded() -> None:
    sent = 0

    def flood(link: socket.socket) -> None:
        nonlocal sent
        link.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2**14)
        while True:
            sent += link.send(b"x" * 2**12)

    with bare(saying(b"HTTP/1.1 200 OK\r\n\r\n", then=flood)) as url:
        assert send(url).status == 200
    assert sent < 8 * 2**20, "64 KiB and the kernel's buffers"


def test_a_port_where_nobody_listens_is_said_in_words() -> None:
    answer = send(f"http://127.0.0.1:{free_ports(1)[0]}/")
    assert (answer.status, answer.text) == (None, "failed while connecting: Connection refused")


# -- connections that are kept


def test_the_next_deliveries_use_the_same_connection(receiver: Receiver) -> None:
    by = sender()
    assert [send(url_of(receiver), by=by).status for _ in range(5)] == [200] * 5
    assert receiver.connections == 1


@pytest.mark.parametrize("status", [200, 204, 500])
def test_a_connection_is_kept_after_any_whole_answer(receiver: Receiver, status: int) -> None:
    receiver.judge = lambda _: status
    by = sender()
    for _ in range(3):
        send(url_of(receiver), by=by)
    assert receiver.connections == 1


def test_a_connection_is_not_used_for_longer_than_a_look_up_may_count(receiver: Receiver) -> None:
    by = sender(kept_sec=0)
    for _ in range(3):
        assert send(url_of(receiver), by=by).status == 200
    assert receiver.connections == 3


def test_a_delivery_is_sent_again_at_once_if_the_endpoint_has_closed_the_kept_connection() -> None:
    served = 0

    def once_each(link: socket.socket) -> None:
        nonlocal served
        read_request(link)
        served += 1
        link.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        read_request(link)  # and close without an answer: the second request came too late

    by = sender()
    with bare(once_each) as url:
        assert [send(url, by=by).status for _ in range(3)] == [200] * 3
    assert served == 3


def test_a_new_connection_that_breaks_is_not_tried_again_at_once() -> None:
    tries = 0

    def count(link: socket.socket) -> None:
        nonlocal tries
        tries += 1
        read_request(link)

    with bare(count) as url:
        assert send(url).status is None
    assert tries == 1


# -- TLS


@pytest.fixture
def authority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> trustme.CA:
    """Make an authority that senders trust."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "ca.pem"))
    return authority


def tls_of(authority: trustme.CA, *names: str, expires: datetime | None = None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*names, not_after=expires).configure_cert(context)
    return context


def test_over_tls_the_name_of_the_host_is_checked_and_asked_for(authority: trustme.CA) -> None:
    asked = []
    context = tls_of(authority, "hooks.example")
    context.sni_callback = lambda _, name, __: asked.append(name)
    by = sender(resolve=lambda _: [ipaddress.ip_address("127.0.0.1")])
    with receiving(Receiver(SECRET), tls=context) as receiver:
        for _ in range(2):
            answer = send(url_of(receiver, "hooks.example", "https"), by=by)
            assert (answer.status, answer.text) == (200, "200 OK")
        assert len(receiver.received) == 2
        assert receiver.received[0].headers["host"] == f"hooks.example:{receiver.port}"
        assert receiver.connections == 1
    assert asked == ["hooks.example"]


@pytest.mark.parametrize(
    ("names", "expires", "is_trusted", "text"),
    [
        (["127.0.0.1"], None, False, "unable to get local issuer certificate"),
        (["hooks.example"], None, True, "IP address mismatch, certificate is not valid for '127.0.0.1'."),
        (["localhost"], None, True, "IP address mismatch, certificate is not valid for '127.0.0.1'."),
        (["127.0.0.1"], datetime.now(UTC) - timedelta(days=1), True, "certificate has expired"),
    ],
)
def test_a_certificate_that_is_not_valid_gets_nothing(
    authority: trustme.CA, names: list[str], expires: datetime | None, is_trusted: bool, text: str
) -> None:
    signer = authority if is_trusted else trustme.CA()
    with receiving(Receiver(SECRET), tls=tls_of(signer, *names, expires=expires)) as receiver:
        answer = send(url_of(receiver, scheme="https"))
    assert answer.status is None
    assert answer.text.startswith("failed while making the connection secure: the certificate is not valid: ")
    assert text in answer.text
    assert receiver.received == []


def test_without_a_bundle_the_built_in_authorities_are_trusted_and_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REQUESTS_CA_BUNDLE", raising=False)
    with receiving(Receiver(SECRET), tls=tls_of(trustme.CA(), "127.0.0.1")) as receiver:
        assert send(url_of(receiver, scheme="https")).status is None
    assert receiver.received == []


def test_a_certificate_that_changes_to_a_bad_one_gets_nothing_more(authority: trustme.CA) -> None:
    by = sender(kept_sec=0)
    with receiving(Receiver(SECRET), tls=tls_of(authority, "127.0.0.1")) as good:
        url = url_of(good, scheme="https")
        assert send(url, by=by).status == 200
    with receiving(Receiver(SECRET), tls=tls_of(trustme.CA(), "127.0.0.1"), port=good.port) as bad:
        assert "the certificate is not valid" in send(url, by=by).text
    assert bad.received == []


@pytest.mark.parametrize("behave", [wait, repeat(b"\x16\x03\x03\x40\x00", 0.02), repeat(b"\x16", 0.02)])
def test_a_handshake_that_hangs_or_drips_ends_in_time(behave: Callable[[socket.socket], None]) -> None:
    with bare(behave) as url:
        answer = answer_in_time(url.replace("http:", "https:"))
    assert answer.status is None
    assert "making the connection secure" in answer.text


def test_an_endpoint_without_tls_is_said_in_words(receiver: Receiver) -> None:
    answer = send(url_of(receiver, scheme="https"))
    assert answer.status is None
    assert answer.text.startswith("failed while making the connection secure: ")


# -- addresses


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True),
        ("1.1.1.1", True),
        ("0.0.0.0", False),  # noqa: S104 - nothing listens there
        ("10.0.0.5", False),
        ("100.64.0.1", False),
        ("127.0.0.1", False),
        ("127.255.255.254", False),
        ("169.254.169.254", False),
        ("172.16.0.1", False),
        ("172.32.0.1", True),
        ("192.0.2.1", False),
        ("192.168.1.1", False),
        ("198.18.0.1", False),
        ("198.51.100.1", False),
        ("203.0.113.1", False),
        ("224.0.0.1", False),
        ("239.1.1.1", False),
        ("240.0.0.1", False),
        ("255.255.255.255", False),
        ("2606:4700:4700::1111", True),
        ("::", False),
        ("::1", False),
        ("::7f00:1", False),  # IPv4-compatible
        ("::ffff:8.8.8.8", True),
        ("::ffff:127.0.0.1", False),
        ("::ffff:10.0.0.5", False),
        ("::ffff:169.254.169.254", False),
        ("::ffff:224.0.0.1", False),
        ("64:ff9b::8.8.8.8", True),
        ("64:ff9b::10.0.0.5", False),
        ("64:ff9b::127.0.0.1", False),
        ("64:ff9b:1::8.8.8.8", False),
        ("2002:0808:0808::1", True),
        ("2002:7f00:0001::1", False),
        ("2002:0a00:0005::1", False),
        ("2001:0:4136:e378:8000:63bf:3fff:fdd2", False),  # Teredo
        ("2001:db8::1", False),
        ("fc00::1", False),
        ("fd00:ec2::254", False),
        ("fe80::1", False),
        ("fe80::1%eth0", False),
        ("fec0::1", False),
        ("ff02::1", False),
        ("ff0e::1", False),
        ("100::1", False),
    ],
)
def test_only_addresses_of_the_public_internet_are_public(address: str, public: bool) -> None:
    assert is_public(ipaddress.ip_address(address)) is public


def answers(*addresses: str) -> Callable[[str], list[Any]]:
    return lambda _: [ipaddress.ip_address(each) for each in addresses]


@pytest.mark.parametrize(
    ("addresses", "named"),
    [
        (["10.0.0.5"], "10.0.0.5"),
        (["127.0.0.1"], "127.0.0.1"),
        (["::1"], "::1"),
        (["::ffff:127.0.0.1"], "::ffff:7f00:1"),
        (["8.8.8.8", "127.0.0.1"], "127.0.0.1"),
        (["2606:4700:4700::1111", "fd00:ec2::254"], "fd00:ec2::254"),
    ],
)
def test_a_host_with_an_inner_address_gets_nothing(receiver: Receiver, addresses: list[str], named: str) -> None:
    by = WebhookHttp(resolve=answers(*addresses))
    answer = send(url_of(receiver, "hooks.example", "https"), by=by)
    assert answer.status is None
    assert answer.text == f"it was not sent: its address {named} is not public"
    assert receiver.connections == 0


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "2130706433", "0x7f.1", "0", "[::1]", "[::ffff:127.0.0.1]"])
def test_no_way_to_write_loopback_reaches_it(receiver: Receiver, host: str) -> None:
    answer = send(url_of(receiver, host, "https"), by=WebhookHttp())
    assert answer.status is None
    assert answer.text.startswith("it was not sent: its address ")
    assert receiver.connections == 0


@pytest.mark.parametrize("address", ["8.8.8.8", "127.0.0.1"])
def test_http_without_tls_is_refused(receiver: Receiver, address: str) -> None:
    answer = send(url_of(receiver, "hooks.example"), by=WebhookHttp(resolve=answers(address)))
    assert (answer.status, answer.text) == (None, "it was not sent: only https is allowed")
    assert receiver.connections == 0


def test_where_loopback_is_allowed_other_inner_addresses_are_not() -> None:
    by = sender(resolve=answers("127.0.0.1", "10.0.0.5"))
    assert send("https://hooks.example/", by=by).text == "it was not sent: its address 10.0.0.5 is not public"


@pytest.mark.parametrize("host", ["hooks.internal", "HOOKS.internal", "hooks.internal."])
def test_a_host_that_is_allowed_may_have_any_address_and_use_http(receiver: Receiver, host: str) -> None:
    by = WebhookHttp(allowed_hosts=["Hooks.Internal"], resolve=answers("127.0.0.1"))
    assert send(url_of(receiver, host), by=by).status == 200
    assert send(url_of(receiver, f"x.{host}"), by=by).status is None
    assert send(url_of(receiver, "127.0.0.1"), by=by).status is None


def test_a_name_that_changes_its_address_between_check_and_connection_gains_nothing() -> None:
    """Rebinding: the first answer may be called, the second one is what the attacker is after."""
    asked: list[str] = []

    def rebinding(host: str) -> list[Any]:
        asked.append(host)
        return [ipaddress.ip_address("127.0.0.1" if len(asked) == 1 else "127.0.0.2")]

    inner = Receiver(SECRET)
    with receiving(Receiver(SECRET)) as outer, socket.create_server(("127.0.0.2", outer.port)) as victim:
        victim.settimeout(0.1)
        by = sender(resolve=rebinding)
        for _ in range(3):
            assert send(url_of(outer, "hooks.example"), by=by).status == 200
        with pytest.raises(TimeoutError):
            victim.accept()
    assert len(asked) == 1
    assert len(outer.received) == 3
    assert inner.connections == 0


def test_a_new_connection_is_checked_again() -> None:
    addresses = iter(["127.0.0.1", "10.0.0.5"])
    by = sender(resolve=lambda _: [ipaddress.ip_address(next(addresses))], kept_sec=0)
    with receiving(Receiver(SECRET)) as receiver:
        assert send(url_of(receiver, "hooks.example"), by=by).status == 200
        assert send(url_of(receiver, "hooks.example"), by=by).text == "it was not sent: only https is allowed"


def test_if_one_of_several_addresses_does_not_answer_the_next_one_is_used(receiver: Receiver) -> None:
    by = sender(resolve=answers("127.0.0.2", "127.0.0.1"))
    assert send(url_of(receiver, "hooks.example"), by=by).status == 200


@pytest.mark.parametrize("found", [socket.gaierror(socket.EAI_NONAME, "Name or service not known"), None])
def test_a_name_without_an_address_is_said_in_words(found: OSError | None) -> None:
    def fail(_: str) -> list[Any]:
        if found:
            raise found
        return []

    answer = send("https://hooks.example/", by=sender(resolve=fail))
    assert answer.status is None
    assert "its name cannot be resolved" in answer.text


def test_a_name_that_cannot_be_encoded_is_said_in_words() -> None:
    with pytest.raises(UnicodeError):
        resolve("a" * 64 + ".example")
    assert send(f"https://{'a' * 64}.example/").status is None


def test_a_resolver_that_hangs_does_not_hold_the_try_up() -> None:
    done = threading.Event()

    def hang(_: str) -> list[Any]:
        done.wait(60)
        return []

    answer = answer_in_time("https://hooks.example/", resolve=hang)
    done.set()
    assert (answer.status, answer.text) == (None, "timed out after 0.5 s while looking up its name")
    assert wait_until(lambda: "webhook-resolver" not in {thread.name for thread in threading.enumerate()}, 5)


def test_the_system_resolver_finds_loopback() -> None:
    assert ipaddress.ip_address("127.0.0.1") in resolve("localhost")


# -- the environment


def test_proxies_and_credentials_of_the_environment_are_ignored(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    proxy = f"http://127.0.0.1:{free_ports(1)[0]}"
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, proxy)
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login me password s3cret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    assert send(url_of(receiver)).status == 200
    assert "authorization" not in receiver.received[0].headers
