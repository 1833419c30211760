"""Input that is refused at once: headers, tokens, bodies, queries, paths."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import pytest

from tests.api.harness import ADMIN_TOKEN, TRACK_TOKEN, Api, assert_error, body_of, error_of, make_api
from tests.api.test_roles import ALLOWED
from tests.fakes import make_sandbox

TRACK_CALLS = [
    ("POST", "/v1/allocate"),
    ("GET", "/v1/waiting"),
    ("DELETE", "/v1/waiting"),
    ("GET", "/v1/sandboxes"),
    ("GET", "/v1/sandboxes/7"),
    ("POST", "/v1/sandboxes/7/extend"),
    ("POST", "/v1/sandboxes/7/mark-for-deletion"),
]
WITH_A_TOKEN = [call for call, roles in ALLOWED.items() if None not in roles]
LONGEST = "x" * 128
CALLER_HEADERS = [
    "X-Track-ID",
    "X-Instruqt-Sandbox-ID",
    "X-Instruqt-Track-ID",
    "X-Sandbox-Name-Prefix",
    "Idempotency-Key",
    "X-Reservation-ID",
]


@pytest.fixture(scope="module")
def holding() -> Api:
    """Return an API whose only sandbox, 7, is held by track-1, for tests whose calls are all refused."""
    api = make_api()
    api.store.seed(make_sandbox("7"))
    api.allocate()
    return api


@pytest.fixture(scope="module")
def free() -> Api:
    """Return an API whose only sandbox, 7, is free, for tests whose calls are all refused."""
    api = make_api()
    api.store.seed(make_sandbox("7"))
    return api


@pytest.mark.parametrize(("method", "path"), WITH_A_TOKEN)
@pytest.mark.parametrize(
    "authorization",
    [
        *(None, "", "Bearer", "Bearer ", "Bearer wrong", "Bearer t\xf6ken", "Bearer a,b"),
        *(TRACK_TOKEN, f"Basic {TRACK_TOKEN}"),
    ],
)
def test_a_missing_or_unknown_token_answers_401(
    shared_api: Api, method: str, path: str, authorization: str | None
) -> None:
    headers = {"X-Track-ID": "track-1"} | ({} if authorization is None else {"Authorization": authorization})
    answer = shared_api.call(method, path, headers=headers)
    assert answer.status_code == 401
    sent = (authorization or "").startswith("Bearer ") and authorization != "Bearer "
    assert answer.headers["WWW-Authenticate"] == ('Bearer error="invalid_token"' if sent else "Bearer")
    assert error_of(answer)["code"] == "UNAUTHORIZED"


def test_each_of_several_tokens_is_accepted_and_the_scheme_in_any_case() -> None:
    api = make_api(BROKER_API_TOKEN="old,new")
    for token in ("Bearer old", "bearer new", "BEARER  new "):
        answer = api.call("GET", "/v1/sandboxes", headers={"Authorization": token, "X-Track-ID": "t"})
        assert answer.status_code == 200


@pytest.mark.parametrize(("method", "path"), TRACK_CALLS)
def test_a_track_must_say_who_it_is(shared_api: Api, method: str, path: str) -> None:
    error = assert_error(shared_api.call(method, path, headers=shared_api.track_headers), 400, "VALIDATION_ERROR")
    assert "X-Track-ID" in error["message"]
    assert "X-Track-ID" in error["details"]


def test_the_alias_names_the_track_as_well(api: Api) -> None:
    api.store.seed(make_sandbox("1"), make_sandbox("2"))
    held = api.allocate("track-1")
    alone = api.call("POST", "/v1/allocate", headers=api.track_headers | {"X-Instruqt-Sandbox-ID": "track-1"})
    both = api.track("POST", "/v1/allocate", "track-1", headers={"X-Instruqt-Sandbox-ID": " track-1 "})
    assert body_of(alone) == body_of(both) == held


def test_a_track_id_and_an_alias_that_differ_are_refused(api: Api) -> None:
    answer = api.track("POST", "/v1/allocate", "track-1", headers={"X-Instruqt-Sandbox-ID": "track-2"})
    error = assert_error(answer, 400, "VALIDATION_ERROR")
    assert error["details"] == {
        "X-Track-ID": ["Differs from X-Instruqt-Sandbox-ID."],
        "X-Instruqt-Sandbox-ID": ["Differs from X-Track-ID."],
    }
    assert error["message"] == (
        "X-Track-ID and its alias X-Instruqt-Sandbox-ID differ. Send one of them, or both with the same value."
    )


@pytest.mark.parametrize("header", CALLER_HEADERS)
@pytest.mark.parametrize(
    ("value", "fault"),
    [
        ("", "Must not be empty."),
        ("  ", "Must not be empty."),
        ("x" * 129, "Must not be longer than 128 characters."),
        ("caf\xe9", "Must be printable ASCII characters."),
        ("tab\tinside", "Must be printable ASCII characters."),
        ("\x7f", "Must be printable ASCII characters."),
        ("two\x0blines", "Must be printable ASCII characters."),
    ],
)
def test_a_malformed_header_is_refused_by_name_and_told_what_is_wrong(
    shared_api: Api, header: str, value: str, fault: str
) -> None:
    headers = shared_api.track_headers | {"X-Track-ID": "track-1", header: value}
    error = assert_error(shared_api.call("GET", "/v1/sandboxes", headers=headers), 400, "VALIDATION_ERROR")
    assert error["details"] == {header: [fault]}
    assert error["message"] == f"{header}: {fault}"


@pytest.mark.parametrize("value", ["x", LONGEST, " padded ", "a b,c~!", '"quoted"'])
def test_a_printable_header_is_accepted_after_trimming(api: Api, value: str) -> None:
    api.store.seed(make_sandbox("7"))
    answer = api.track("POST", "/v1/allocate", value)
    assert answer.status_code == 201
    assert body_of(api.track("GET", "/v1/sandboxes/7", value))["allocated_to_track"] == value.strip()


def test_a_valid_request_id_comes_back(api: Api) -> None:
    answer = api.call("GET", "/healthz", headers={"X-Request-ID": "My_id-1.2"})
    assert answer.headers["X-Request-ID"] == "My_id-1.2"


@pytest.mark.parametrize("value", [None, "", "x" * 129, "with space", "semi;colon", "a,b"])
def test_a_request_id_that_is_missing_or_invalid_is_replaced(shared_api: Api, value: str | None) -> None:
    first, second = (
        shared_api.call("GET", "/nowhere", headers={} if value is None else {"X-Request-ID": value}).headers[
            "X-Request-ID"
        ]
        for _ in range(2)
    )
    assert len(first) == 36
    assert first != second


NO_OBJECTS = [b"{", b"\xff", b"[]", b"null", b'"text"', b"NaN", b'{"lease_id": NaN}', b"[" * 60_000, b"9" * 5000]
NO_LEASES = [b"1", b'""', b"null", b'"\\ud800"', b'"a\\nb"', b'"' + b"x" * 129 + b'"']
INVALID_BODIES = [
    *((body, "body") for body in NO_OBJECTS),
    *((b'{"lease_id": ' + each + b"}", "lease_id") for each in NO_LEASES),
    (b'{"lease_id": "l", "other": 1}', "other"),
    (b'{"\\ud800": 1, "lease_id": "l"}', "\ud800"),
    (b'{"lease_id": "l", "lease_id": "l"}', "lease_id"),
    (b'{"lease_id": {"a": 1, "a": 2}}', "a"),
]


@pytest.mark.parametrize("path", ["/v1/sandboxes/7/mark-for-deletion", "/v1/admin/sandboxes/7/release"])
@pytest.mark.parametrize(("body", "field"), INVALID_BODIES)
def test_a_malformed_body_is_refused_and_the_field_named(holding: Api, path: str, body: bytes, field: str) -> None:
    call = holding.admin if "admin" in path else holding.track
    error = assert_error(call("POST", path, data=body, content_type="application/json"), 400, "VALIDATION_ERROR")
    assert list(error["details"]) == [field]
    assert field in error["message"]


NO_NUMBERS = ["300", "", 300.5, True, None, [300], {}, -1]


@pytest.mark.parametrize("duration", [*NO_NUMBERS, 0, 299, 299.0, 1e308, 8 * 3600 + 1, 10**30])
def test_a_duration_that_is_no_whole_number_or_out_of_bounds_is_refused(free: Api, duration: object) -> None:
    answer = free.track("POST", "/v1/allocate", json={"duration_sec": duration})
    error = assert_error(answer, 400, "VALIDATION_ERROR")
    assert list(error["details"]) == ["duration_sec"]
    assert "duration_sec" in error["message"]
    assert free.store.dump()[1] == {}


@pytest.mark.parametrize("path", ["/v1/sandboxes/7/extend", "/v1/admin/sandboxes/7/extend"])
@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "expires_at"),
        *(({"expires_at": each}, "expires_at") for each in (*NO_NUMBERS, 2**53, 10**30)),
        *(({"expires_at": 1, "lease_id": each}, "lease_id") for each in ("", 1, None, "x" * 129, "a\nb")),
        ({"expires_at": 1, "hours": 2}, "hours"),
    ],
)
def test_a_malformed_extension_is_refused_and_the_field_named(
    holding: Api, path: str, body: dict[str, Any], field: str
) -> None:
    held = body_of(holding.track("GET", "/v1/sandboxes/7"))
    call = holding.admin if "admin" in path else holding.track
    error = assert_error(call("POST", path, json=body), 400, "VALIDATION_ERROR")
    assert list(error["details"]) == [field]
    assert body_of(holding.track("GET", "/v1/sandboxes/7"))["expires_at"] == held["expires_at"]


NO_REASONS = ["", "   ", "x" * 501, "two\nlines", "escape \x1b[31m", "line\u2028separator", ["list"]]


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("release", {}, "lease_id"),
        ("quarantine", {}, "reason"),
        *(("quarantine", {"reason": each}, "reason") for each in NO_REASONS),
        ("quarantine", {"reason": "fine", "force": True}, "force"),
        ("retry-deletion", {"force": True}, "force"),
    ],
)
def test_a_malformed_operation_is_refused(free: Api, path: str, body: dict[str, Any], field: str) -> None:
    answer = free.admin("POST", f"/v1/admin/sandboxes/7/{path}", json=body)
    assert answer.status_code == 400
    assert list(error_of(answer)["details"]) == [field]


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        *(("sync", {"force": each}, "force") for each in ("true", 1, None, [True])),
        ("sync", {"forced": True}, "forced"),
        *((job, {"force": True}, "force") for job in ("cleanup", "expire", "purge-stale")),
        ("bulk-retry", {"all": True}, "all"),
        ("bulk-delete?status=stale", {"status": "stale"}, "status"),
        ("pause", {"allocate": "yes"}, "allocate"),
        ("pause", {"allocate": 1}, "allocate"),
        ("pause", {"purge_stale": True}, "purge_stale"),
    ],
)
def test_a_malformed_admin_call_is_refused(shared_api: Api, path: str, body: dict[str, Any], field: str) -> None:
    answer = shared_api.admin("POST", f"/v1/admin/{path}", json=body)
    assert answer.status_code == 400
    assert list(error_of(answer)["details"]) == [field]
    assert shared_api.queue.enqueued == []


def test_unneeded_fields_are_refused_by_name(api: Api) -> None:
    answer = api.track("POST", "/v1/allocate", json={"size": "xl", "color": "red"})
    assert answer.status_code == 400
    error = error_of(answer)
    assert set(error["details"]) == {"size", "color"}
    assert error["message"] == "color: Unknown field. size: Unknown field."


@pytest.mark.parametrize("content_type", [None, "text/plain", "application/x-www-form-urlencoded"])
def test_a_body_of_another_type_is_refused(shared_api: Api, content_type: str | None) -> None:
    answer = shared_api.admin("POST", "/v1/admin/sync", data=b'{"force": true}', content_type=content_type)
    assert answer.status_code == 400
    assert list(error_of(answer)["details"]) == ["Content-Type"]
    assert shared_api.queue.enqueued == []


@pytest.mark.parametrize("content_type", ["application/json; charset=utf-8", "application/vnd.broker+json"])
def test_every_json_type_is_accepted(api: Api, content_type: str) -> None:
    answer = api.admin("POST", "/v1/admin/sync", data=b'{"force": true}', content_type=content_type)
    assert answer.status_code == 202


@pytest.mark.parametrize("path", ["/v1/allocate", "/v1/sandboxes/7/mark-for-deletion"])
def test_a_body_that_is_too_large_answers_413(shared_api: Api, path: str) -> None:
    answer = shared_api.track("POST", path, data=b'{"a": "' + b"x" * 65_536 + b'"}', content_type="application/json")
    assert answer.status_code == 413
    error = error_of(answer)
    assert (error["code"], error["message"]) == (
        "PAYLOAD_TOO_LARGE",
        "the body must not be larger than 65536 bytes",
    )


@pytest.mark.parametrize(("size", "status"), [(65_536, 400), (65_537, 413), (200_000, 413)])
@pytest.mark.parametrize("is_chunked", [True, False])
def test_a_body_may_have_as_many_bytes_as_the_limit_however_it_is_sent(
    shared_api: Api, size: int, status: int, *, is_chunked: bool
) -> None:
    length = {} if is_chunked else {"CONTENT_LENGTH": str(size)}
    answer = shared_api.track(
        "POST",
        "/v1/allocate",
        input_stream=BytesIO(b" " * size),
        content_type="application/json",
        environ_overrides={"wsgi.input_terminated": True} | length,
    )
    assert answer.status_code == status, "400: blanks are no JSON, but not too much of it"


MALFORMED = {
    "limit": ["limit=0", "limit=101", "limit=many", "limit=", "limit=1&limit=2"],
    "status": ["status=lost", "status=", "status=stale&status=stale"],
    "track_id": ["track_id=", "track_id=%C3%A9", f"track_id={'x' * 129}"],
    "cursor": ["cursor=", "cursor=nonsense", "cursor=%00", "track_id=t&cursor=n%2Fnsense", "track_id=t&cursor=%ff"],
    "state": ["state=stale"],
}


@pytest.mark.parametrize(
    ("field", "query"), [(field, each) for field, queries in MALFORMED.items() for each in queries]
)
def test_a_malformed_listing_is_refused_and_the_parameter_named(shared_api: Api, field: str, query: str) -> None:
    error = assert_error(shared_api.admin("GET", f"/v1/admin/sandboxes?{query}"), 400, "VALIDATION_ERROR")
    assert list(error["details"]) == [field]
    assert error["message"].startswith(f"{field}: ")


@pytest.mark.parametrize(
    "query", ["", "?status=available", "?status=deleted", "?status=", "?status=stale&status=stale", "?x=1"]
)
def test_a_bulk_delete_of_any_other_status_is_refused(free: Api, query: str) -> None:
    assert_error(free.admin("POST", f"/v1/admin/bulk-delete{query}"), 400, "VALIDATION_ERROR")
    assert "7" in free.store.dump()[0]


@pytest.mark.parametrize(("method", "path"), TRACK_CALLS)
def test_a_query_that_no_call_reads_is_refused(shared_api: Api, method: str, path: str) -> None:
    answer = shared_api.track(method, f"{path}?verbose=1")
    assert answer.status_code == 400
    assert list(error_of(answer)["details"]) == ["verbose"]


@pytest.mark.parametrize("sandbox_id", ["x" * 129, "%C3%A9", "%ff", "%00", "a%0Ab", "%ED%A0%80"])
@pytest.mark.parametrize("action", ["", "/mark-for-deletion", "/extend"])
def test_an_impossible_sandbox_id_is_refused(shared_api: Api, sandbox_id: str, action: str) -> None:
    body = {"expires_at": 1} if action == "/extend" else None
    answer = shared_api.track("POST" if action else "GET", f"/v1/sandboxes/{sandbox_id}{action}", json=body)
    assert answer.status_code == 400
    assert "sandbox_id" in error_of(answer)["details"]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/"),
        ("GET", "/v1"),
        ("GET", "/v1/nowhere"),
        ("POST", "/v1/allocate/"),
        ("GET", "/v1//sandboxes"),
        ("GET", "/v1/sandboxes/a%2Fb"),
        ("GET", "/v1/admin"),
        ("GET", "/v1/docs/nothing.js"),
        ("GET", "/v1/docs/../../settings.py"),
    ],
)
def test_an_unknown_path_answers_404_in_the_same_shape(shared_api: Api, method: str, path: str) -> None:
    assert_error(shared_api.call(method, path), 404, "NOT_FOUND")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/v1/allocate", {"POST"}),
        ("DELETE", "/v1/sandboxes/7", {"GET", "HEAD"}),
        ("OPTIONS", "/v1/allocate", {"POST"}),
        ("PUT", "/v1/admin/pause", {"GET", "HEAD", "POST"}),
        ("POST", "/healthz", {"GET", "HEAD"}),
        ("PUT", "/v1/admin/reservations/some", {"GET", "HEAD", "PATCH", "DELETE"}),
        ("OPTIONS", "/v1/admin/reservations/check", {"POST"}),
        ("PUT", "/v1/admin/webhooks/some", {"GET", "HEAD", "PATCH", "DELETE"}),
        ("POST", "/v1/admin/webhooks/some/deliveries", {"GET", "HEAD"}),
    ],
)
def test_a_wrong_method_answers_405_and_which_are_right(
    shared_api: Api, method: str, path: str, allowed: set[str]
) -> None:
    answer = shared_api.call(method, path)
    assert_error(answer, 405, "METHOD_NOT_ALLOWED")
    assert set(answer.headers["Allow"].split(", ")) == allowed


def test_the_base_path_can_be_another() -> None:
    api = make_api(API_BASE_PATH="/broker/v1")
    assert api.track("GET", "/broker/v1/sandboxes").status_code == 200
    assert api.track("GET", "/v1/sandboxes").status_code == 404
    accepted = body_of(api.admin("POST", "/broker/v1/admin/sync"))
    assert accepted["status_url"] == "/broker/v1/admin/jobs/job-1"


def test_a_body_that_ends_before_its_length_is_not_taken_for_whole(api: Api) -> None:
    """Gunicorn gives werkzeug the bytes that came, and then an end."""
    body = b'{"sync": true}'
    cut = {"wsgi.input": BytesIO(body), "wsgi.input_terminated": True, "CONTENT_LENGTH": str(len(body) + 1)}
    headers = {"Authorization": f"Bearer {ADMIN_TOKEN}"}
    answer = api.app.test_client().post(
        "/v1/admin/pause", headers=headers, content_type="application/json", environ_overrides=cut
    )
    assert (answer.status_code, error_of(answer)["details"]) == (
        400,
        {"body": ["Must be as long as Content-Length says."]},
    )
    assert not api.store.read_pauses().sync
