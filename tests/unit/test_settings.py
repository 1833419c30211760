"""The settings: every mistake at once, by name, and no secret told."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from dataclasses import FrozenInstanceError, fields
from typing import TYPE_CHECKING, Any

import pytest

from broker_common.core.policy import RecyclePolicy
from broker_common.core.principals import Role
from broker_common.settings import Environment, Process, ServicesCleanup, Settings, SettingsError
from broker_common.tokens import DEVELOPMENT_ADMIN_TOKEN, DEVELOPMENT_TRACK_TOKEN

if TYPE_CHECKING:
    from pathlib import Path

API = {
    "BROKER_API_TOKEN": "track-s3cret-token",
    "BROKER_ADMIN_TOKEN": "admin-s3cret-token",
    "RECYCLE_POLICY": "confirm",
}
WORKER = {
    "CSP_BASE_URL": "https://csp.example/v2",
    "CSP_API_TOKEN": "csp-s3cret-token",
    "RECYCLE_POLICY": "reuse",
}
CONSOLE = {"CONSOLE_SECRET_KEY": "k" * 32, "BROKER_API_URL": "http://api:8080/v1"}


def digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


def api_with(**changes: str) -> Settings:
    """Return the settings of an API with these variables changed."""
    return Settings.from_env(API | changes, process=Process.API)


def problems(environ: dict[str, str], process: Process = Process.API) -> list[str]:
    with pytest.raises(SettingsError) as refused:
        Settings.from_env(environ, process=process)
    return refused.value.problems


def test_the_defaults_are_those_of_the_contract() -> None:
    settings = api_with()
    expected: dict[str, Any] = {
        "broker_env": Environment.PRODUCTION,
        "api_port": 8080,
        "api_base_path": "/v1",
        "api_workers": len(os.sched_getaffinity(0)),
        "request_deadline_sec": 3,
        "shutdown_drain_sec": 5,
        "ddb_table_name": "SandboxPool",
        "ddb_endpoint_url": None,
        "lab_duration_hours": 4,
        "max_lab_duration_hours": None,
        "expiry_buffer_hours": 0.5,
        "cool_down_sec": 0,
        "history_days": 90,
        "sync_interval_sec": 600,
        "cleanup_interval_sec": 300,
        "auto_expiry_interval_sec": 300,
        "stale_grace_hours": 24,
        "stale_brake_percent": 50,
        "reservable_percent": 80,
        "stale_brake_min": 5,
        "k_candidates": 15,
        "line_grace_sec": 600,
        "line_max": 10_000,
        "deletion_retry_max_attempts": 8,
        "deletion_backoff_base_sec": 60,
        "deletion_backoff_max_sec": 3600,
        "csp_timeout_connect_sec": 5,
        "csp_timeout_read_sec": 15,
        "csp_max_concurrency": 10,
        "csp_deletes_per_minute": 0,
        "circuit_breaker_threshold": 5,
        "circuit_breaker_timeout_sec": 60,
        "log_format": "json",
        "pool_gauge_cache_sec": 2,
    }
    assert {name: getattr(settings, name) for name in expected} == expected


def test_given_values_are_parsed_to_their_types() -> None:
    settings = api_with(API_PORT="9000", LAB_DURATION_HOURS="1.5", DDB_ENDPOINT_URL="http://127.0.0.1:8000")
    assert (settings.api_port, settings.lab_duration_hours) == (9000, 1.5)
    assert settings.ddb_endpoint_url == "http://127.0.0.1:8000"


def test_an_empty_variable_counts_as_missing() -> None:
    settings = api_with(API_PORT="", LAB_DURATION_HOURS="  ")
    assert (settings.api_port, settings.lab_duration_hours) == (8080, 4)
    assert any(each.startswith("BROKER_API_TOKEN: Missing") for each in problems(API | {"BROKER_API_TOKEN": " "}))


def test_variables_of_others_are_ignored() -> None:
    assert Settings.from_env(API | {"PATH": "/bin", "BROKER_UNKNOWN": "x"}, process=Process.API)


def test_all_mistakes_are_reported_at_once_each_by_its_name() -> None:
    found = problems(
        {
            "API_PORT": "no number",
            "LAB_DURATION_HOURS": "-1",
            "RECYCLE_POLICY": "burn",
            "LOG_FORMAT": "xml",
            "DDB_TABLE_NAME": "x",
            "BROKER_ADMIN_TOKEN": "sha256:abc",
            "DELETION_BACKOFF_BASE_SEC": "100",
            "DELETION_BACKOFF_MAX_SEC": "10",
        }
    )
    assert [each.split(":")[0] for each in found] == [
        *("API_PORT", "BROKER_ADMIN_TOKEN", "BROKER_API_TOKEN", "DDB_TABLE_NAME", "DELETION_BACKOFF_MAX_SEC"),
        *("LAB_DURATION_HOURS", "LOG_FORMAT", "RECYCLE_POLICY"),
    ]


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system limits no process to processors")
def test_by_default_the_api_has_a_process_for_each_processor_that_it_may_use() -> None:
    (processor, *_) = os.sched_getaffinity(0)
    look = f"""
import os
os.sched_setaffinity(0, [{processor}])
from broker_common.settings import Settings
print(Settings().api_workers)
"""
    run = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True)
    assert run.stdout == "1\n"


BAD_VALUES = {
    "BROKER_ENV": ["staging"],
    "API_BIND": ["not a host"],
    "API_PORT": ["0", "65536", "80.5"],
    "API_BASE_PATH": ["v1", "/v1/"],
    "API_WORKERS": ["0", "257", "four"],
    "API_THREADS": ["2"],
    "REQUEST_DEADLINE_SEC": ["0", "nan", "inf", "60.5"],
    "SHUTDOWN_DRAIN_SEC": ["-1", "601"],
    "DDB_TABLE_NAME": ["a b c"],
    "DDB_ENDPOINT_URL": ["localhost:8000"],
    "AWS_REGION": ["EU Central"],
    "REDIS_URL": ["http://127.0.0.1"],
    "LAB_DURATION_HOURS": ["0", "four", "8785"],
    "MAX_LAB_DURATION_HOURS": ["0", "3.9", "eight", "8785"],
    "EXPIRY_BUFFER_HOURS": ["-0.5", "8785"],
    "COOL_DOWN_SEC": ["-1", "1.5", "604801"],
    "HISTORY_DAYS": ["0", "0.5", "3661"],
    "K_CANDIDATES": ["0"],
    "LINE_GRACE_SEC": ["9", "1.5", "86401"],
    "RESERVABLE_PERCENT": ["-1", "101", "80.5", "all"],
    "EXPIRY_WARNING_MINUTES": ["-1", "1441", "1.5", "soon"],
    "POOL_LOW_PERCENT": ["-1", "67", "10%"],
    "LINE_MAX": ["0", "100001", "many"],
    "RECYCLE_POLICY": ["REUSE"],
    "SYNC_INTERVAL_SEC": ["0", "604801"],
    "CLEANUP_INTERVAL_SEC": ["1.5", "604801"],
    "AUTO_EXPIRY_INTERVAL_SEC": ["x", "604801"],
    "STALE_GRACE_HOURS": ["-1", "8785"],
    "STALE_BRAKE_PERCENT": ["101"],
    "STALE_BRAKE_MIN": ["0", "1000001"],
    "DELETION_RETRY_MAX_ATTEMPTS": ["0", "1001"],
    "DELETION_BACKOFF_BASE_SEC": ["-1"],
    "DELETION_BACKOFF_MAX_SEC": ["1", "604801"],
    "CSP_BASE_URL": ["ftp://csp.example", "https://csp.example/v2?x=1"],
    "CSP_API_TOKEN": ["two words"],
    "CSP_TIMEOUT_CONNECT_SEC": ["0", "301"],
    "CSP_TIMEOUT_READ_SEC": ["-1", "1e400"],
    "CSP_MAX_CONCURRENCY": ["0", "10001"],
    "CSP_DELETES_PER_MINUTE": ["-1", "0.5", "60001"],
    "CSP_SERVICES_CLEANUP": ["yes", "ON"],
    "CSP_SERVICES_NAME": ["caf\u00e9"],
    "CSP_SERVICES_EMAIL": ["two words"],
    "CSP_SERVICES_PASSWORD": ["tab\there"],
    "CIRCUIT_BREAKER_THRESHOLD": ["0", "10001"],
    "CIRCUIT_BREAKER_TIMEOUT_SEC": ["0", "86401"],
    "LOG_LEVEL": ["LOUD"],
    "LOG_FORMAT": ["yaml"],
    "METRICS_PORT": ["70000"],
    "POOL_GAUGE_CACHE_SEC": ["-0.1", "3601"],
}


@pytest.mark.parametrize(("name", "value"), [(name, each) for name, values in BAD_VALUES.items() for each in values])
def test_a_bad_value_is_refused_by_name(name: str, value: str) -> None:
    found = problems(API | WORKER | {name: value})
    assert [each.split(":")[0] for each in found] == [name]


_ADDRESSES_OF_NOTHING = [
    *("http://127.0.0.1:abc", "http://127.0.0.1:0", "http://127.0.0.1:70000", "https://x:abc/"),
    *("http://x y", "http://x\ty", "http://", "http://:8000", "http:///path", "http://a..b", "http://a_b"),
    *("http://[::1", "http://[zz]:8000", "https://[v1.a:b]"),
    *("https://x/v2?x=1", "https://x/#part", "https://user:s3cr3t@x", "https://user@x"),
]


@pytest.mark.parametrize("name", ["DDB_ENDPOINT_URL", "CSP_BASE_URL"])
@pytest.mark.parametrize("value", _ADDRESSES_OF_NOTHING)
def test_an_address_that_cannot_be_called_is_refused_without_telling_it(name: str, value: str) -> None:
    found = problems(WORKER | {name: value}, Process.WORKER)
    assert found == [f"{name}: Must be an http or https URL of a host, without a user, a query or a fragment."]


@pytest.mark.parametrize(
    "value",
    ["http://127.0.0.1:8000", "http://[::1]:8000/x", "https://dynamodb.eu-central-1.amazonaws.com", "https://a.b.:1/"],
)
def test_an_address_that_can_be_called_is_kept_as_it_is(value: str) -> None:
    assert Settings.from_env({"DDB_ENDPOINT_URL": value}, process=Process.TOOL).ddb_endpoint_url == value


@pytest.mark.parametrize(
    "value",
    [
        *(
            f"redis://:{password}@127.0.0.1:6379/0"
            for password in ("s3cr3t/word", "s3cr3t#word", "s3cr3t?word", "[s3cr3t")
        ),
        *("redis://127.0.0.1:abc/0", "redis://127.0.0.1/s3cr3t", "redis://h h:6379/0"),
        *("redis://", "REDIS://h", "unix:///s3cr3t"),
        *(f"redis://h:6379/0?{option}" for option in ("socket_timeout=x", "socket_timeout=1", "s3cr3t=1")),
        "redis://h:6379/0?ssl_cert_reqs=none",
        *("rediss://h:6379/0?ssl_cert_reqs=s3cr3t", "rediss://h:6379/0?ssl_s3cr3t=1"),
    ],
)
@pytest.mark.parametrize("process", list(Process))
def test_a_redis_that_cannot_be_called_is_refused_without_telling_it(process: Process, value: str) -> None:
    (problem,) = problems(API | WORKER | CONSOLE | {"REDIS_URL": value}, process)
    assert problem.startswith("REDIS_URL: Must be a redis or rediss URL such as ")
    assert "s3cr3t" not in problem


@pytest.mark.parametrize(
    "value",
    [
        "redis://h",
        "redis://h:6379/15",
        "redis://[::1]:6379/",
        "rediss://user:p%40ss%2Fword@cache.example:6380/0",
        "rediss://h/0?ssl_cert_reqs=required&ssl_ca_certs=/etc/ssl/redis.pem",
    ],
)
def test_a_redis_that_can_be_called_is_kept_as_it_is(value: str) -> None:
    assert Settings.from_env({"REDIS_URL": value}, process=Process.TOOL).redis_url == value


def test_every_setting_is_named_after_its_variable() -> None:
    given = {item.name.upper() for item in fields(Settings)}
    assert {"BROKER_API_TOKEN", "CSP_MAX_CONCURRENCY", "DELETION_BACKOFF_MAX_SEC"} <= given


# -- tokens and secrets


def test_tokens_are_kept_as_digests_only() -> None:
    settings = api_with()
    assert [token.digest for token in settings.broker_api_token] == [digest("track-s3cret-token")]


def test_several_tokens_are_taken_plain_or_hashed() -> None:
    hashed = hashlib.sha256(b"third").hexdigest()
    settings = api_with(BROKER_API_TOKEN=f"first-long-token, second-long-token ,,sha256:{hashed.upper()}")
    expected = [digest("first-long-token"), digest("second-long-token"), digest("third")]
    assert [token.digest for token in settings.broker_api_token] == expected


@pytest.mark.parametrize("value", ["sha256:12", "sha256:" + "g" * 64, "ok,sha256:" + "a" * 63])
def test_a_malformed_hash_is_refused_without_telling_it(value: str) -> None:
    (problem,) = problems(API | {"BROKER_API_TOKEN": value})
    assert problem.startswith("BROKER_API_TOKEN: token ")
    assert value not in problem


def test_no_secret_appears_in_repr_or_str() -> None:
    settings = api_with(**WORKER, **SERVICES, REDIS_URL="rediss://user:redis-s3cret@cache.example/0")
    for text in (repr(settings), str(settings), f"{settings}"):
        assert "s3cret" not in text
        assert digest("track-s3cret-token").hex() not in text
        assert str(digest("track-s3cret-token")) not in text


def test_no_secret_appears_in_an_error() -> None:
    environ = {
        "BROKER_API_TOKEN": "same-s3cret",
        "BROKER_ADMIN_TOKEN": "same-s3cret,sha256:s3cret",
        "CSP_API_TOKEN": "s3cret with spaces",
        "CSP_SERVICES_CLEANUP": "on",
        "CSP_SERVICES_PASSWORD": "s3cret\twith a tab",
        "REDIS_URL": "redis//user:s3cret@host",
        "CSP_BASE_URL": "http://user:s3cret@csp.example",
    }
    for process in Process:
        with pytest.raises(SettingsError) as refused:
            Settings.from_env(environ, process=process)
        assert "s3cret" not in str(refused.value)
        assert "s3cret" not in repr(refused.value)


def test_settings_cannot_be_changed() -> None:
    settings = api_with()
    with pytest.raises(FrozenInstanceError):
        settings.api_port = 1  # type: ignore[misc] # what the test is about


# -- production and development


@pytest.mark.parametrize(
    "token",
    [
        DEVELOPMENT_TRACK_TOKEN,
        "changeme",
        "a-good-long-token," + DEVELOPMENT_TRACK_TOKEN,
        f"sha256:{digest('secret').hex()}",
    ],
)
def test_production_refuses_well_known_tokens_however_they_are_given(token: str) -> None:
    (problem,) = problems(API | {"BROKER_API_TOKEN": token})
    assert problem.startswith("BROKER_API_TOKEN: ")
    assert "well-known" in problem


def test_production_refuses_the_well_known_admin_token() -> None:
    assert [each.split(":")[0] for each in problems(API | {"BROKER_ADMIN_TOKEN": DEVELOPMENT_ADMIN_TOKEN})] == [
        "BROKER_ADMIN_TOKEN"
    ]


@pytest.mark.parametrize("token", ["short-token-12", "a" * 64, "abcabcabcabcabcabcabc", "a-good-long-token,x*=tiny"])
def test_production_refuses_weak_tokens_without_telling_them(token: str) -> None:
    (problem,) = problems(API | {"BROKER_API_TOKEN": token})
    assert re.fullmatch(r"BROKER_API_TOKEN: token [12] is weak .*", problem)
    assert token not in problem


def test_the_api_needs_both_tokens_in_every_environment() -> None:
    for environment in Environment:
        names = [each.split(":")[0] for each in problems({"BROKER_ENV": environment, "RECYCLE_POLICY": "reuse"})]
        assert names == ["BROKER_ADMIN_TOKEN", "BROKER_API_TOKEN"]


def test_one_token_cannot_serve_tracks_and_admins() -> None:
    (problem,) = problems(
        API | {"BROKER_ADMIN_TOKEN": f"another-long-token,sha256:{digest('track-s3cret-token').hex()}"}
    )
    assert problem.startswith("BROKER_ADMIN_TOKEN: ")


def test_an_admins_token_cannot_be_bound_to_tracks() -> None:
    (problem,) = problems(API | {"BROKER_ADMIN_TOKEN": "acme-*=admin-s3cret-token"})
    assert problem == "BROKER_ADMIN_TOKEN: An admin's token cannot be bound to tracks."


def test_tokens_may_come_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_text("track-s3cret-token\nacme-*=another-s3cret-token\n")
    assert api_with(BROKER_API_TOKEN="", BROKER_API_TOKEN_FILE=str(file)).broker_api_token_file == str(file)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "Cannot be read (FileNotFoundError)."),
        ("", "Missing: give at least one token."),
        ("track_token_123", "Holds a well-known development token."),
        ("track-s3cret-token\nsha256:12", "token 2: sha256: must be followed by 64 hexadecimal digits"),
        ("track-s3cret-token\nintro-*=", "token 2: nothing follows its prefix"),
    ],
)
def test_a_token_file_that_cannot_serve_is_refused_at_start(tmp_path: Path, content: str | None, reason: str) -> None:
    file = tmp_path / "tokens"
    if content is not None:
        file.write_text(content)
    environ = API | {"BROKER_API_TOKEN": "", "BROKER_API_TOKEN_FILE": str(file)}
    assert problems(environ) == [f"BROKER_API_TOKEN_FILE: {reason}"]


def test_tokens_come_from_the_environment_or_a_file_and_not_from_both() -> None:
    assert problems(API | {"BROKER_API_TOKEN_FILE": "/no/file"}) == [
        "BROKER_API_TOKEN: Given beside BROKER_API_TOKEN_FILE: give one of them."
    ]


# -- named tokens

TRACKS = f"""
[[token]]
name = "labs"
sha256 = "{hashlib.sha256(b"a-long-token-of-labs").hexdigest()}"
roles = ["track"]
"""
OPERATORS = f"""
[[token]]
name = "anna"
sha256 = "{hashlib.sha256(b"a-long-token-of-anna").hexdigest()}"
roles = ["admin"]
"""
NO_TOKENS = {name: value for name, value in API.items() if "TOKEN" not in name}


def with_tokens(file: Path, text: str, **settings: str) -> dict[str, str]:
    file.write_text(text)
    return NO_TOKENS | {"BROKER_TOKENS_FILE": str(file)} | settings


def test_a_file_of_named_tokens_may_hold_all_tokens(tmp_path: Path) -> None:
    environ = with_tokens(tmp_path / "tokens.toml", TRACKS + OPERATORS)
    settings = Settings.from_env(environ, process=Process.API)
    assert settings.broker_tokens_file == environ["BROKER_TOKENS_FILE"]
    assert settings.roles_for_tokens_file == {Role.TRACK, Role.ADMIN}


@pytest.mark.parametrize(
    ("text", "beside", "missing"),
    [
        (TRACKS, {}, "admin"),
        (OPERATORS, {}, "track"),
        (TRACKS.replace("track", "operator"), {}, "admin or track"),
        (TRACKS, {"BROKER_ADMIN_TOKEN": "admin-s3cret-token"}, None),
        (OPERATORS, {"BROKER_API_TOKEN": "track-s3cret-token"}, None),
        (TRACKS.replace("track", "viewer"), {name: API[name] for name in API if "TOKEN" in name}, None),
    ],
)
def test_there_must_be_a_token_for_tracks_and_one_for_admins_wherever_they_come_from(
    tmp_path: Path, text: str, beside: dict[str, str], missing: str | None
) -> None:
    environ = with_tokens(tmp_path / "tokens.toml", text, **beside)
    if missing is None:
        assert Settings.from_env(environ, process=Process.API)
    else:
        told = f"Holds no token with the role {missing}, and no other setting gives one."
        assert problems(environ) == [f"BROKER_TOKENS_FILE: {told}"]


def test_a_file_of_tokens_counts_as_a_token_beside_named_ones(tmp_path: Path) -> None:
    plain = tmp_path / "tokens"
    plain.write_text("track-s3cret-token")
    environ = with_tokens(tmp_path / "tokens.toml", OPERATORS, BROKER_API_TOKEN_FILE=str(plain))
    assert Settings.from_env(environ, process=Process.API).roles_for_tokens_file == {Role.ADMIN}


def test_a_file_of_named_tokens_that_cannot_serve_is_refused_at_start(tmp_path: Path) -> None:
    environ = with_tokens(tmp_path / "tokens.toml", TRACKS + OPERATORS.replace("roles", "role"))
    assert problems(environ) == [
        "BROKER_TOKENS_FILE: line 7: roles: Missing data for required field. line 10: role: Unknown field."
    ]
    assert problems(environ | {"BROKER_TOKENS_FILE": "/no/file"}) == [
        "BROKER_TOKENS_FILE: Cannot be read (FileNotFoundError)."
    ]


def test_production_refuses_a_well_known_token_by_its_name_too(tmp_path: Path) -> None:
    known = TRACKS.replace(digest("a-long-token-of-labs").hex(), digest(DEVELOPMENT_TRACK_TOKEN).hex())
    environ = with_tokens(tmp_path / "tokens.toml", known + OPERATORS)
    assert problems(environ) == ["BROKER_TOKENS_FILE: line 4: sha256: Belongs to a well-known development token."]
    assert Settings.from_env(environ | {"BROKER_ENV": "development"}, process=Process.API)


def test_a_named_token_cannot_be_another_settings_token(tmp_path: Path) -> None:
    environ = with_tokens(tmp_path / "tokens.toml", TRACKS + OPERATORS, BROKER_API_TOKEN="a-long-token-of-labs")
    assert problems(environ) == ["BROKER_TOKENS_FILE: Another setting holds the token of labs, too."]


@pytest.mark.parametrize("process", [Process.WORKER, Process.BEAT, Process.TOOL])
def test_only_the_api_reads_the_file_of_named_tokens(process: Process) -> None:
    assert Settings.from_env(WORKER | {"BROKER_TOKENS_FILE": "/no/file"}, process=process)


@pytest.mark.parametrize(
    "value",
    [
        *("*", "null", "lab.example.com"),
        *(f"https://{each}" for each in ("lab.example.com/", "Lab.example.com", "u@lab.example.com")),
    ],
)
def test_an_origin_is_a_scheme_a_host_and_a_port(value: str) -> None:
    (problem,) = problems(API | {"CORS_ALLOWED_ORIGINS": f"https://lab.example.com,{value}"})
    assert problem.startswith("CORS_ALLOWED_ORIGINS: ")


def test_hosts_of_webhooks_are_names_and_addresses_without_ports() -> None:
    given = " hooks.internal , Hooks.Example.COM.,10.0.0.5,fd00::5,hooks.internal"
    parsed = Settings.from_env(API | {"WEBHOOK_ALLOWED_HOSTS": given}, process=Process.API).webhook_allowed_hosts
    assert parsed == ("hooks.internal", "hooks.example.com", "10.0.0.5", "fd00::5")
    assert Settings.from_env(API, process=Process.API).webhook_allowed_hosts == ()


@pytest.mark.parametrize(
    "value",
    [
        "hooks.internal:8080",
        "https://hooks.internal",
        "hooks.internal/path",
        "*.internal",
        "a b",
        "u@host",
        "[fd00::5]",
    ],
)
def test_what_is_no_host_of_webhooks_is_named(value: str) -> None:
    (problem,) = problems(API | {"WEBHOOK_ALLOWED_HOSTS": f"hooks.example.com,{value}"})
    assert problem.startswith("WEBHOOK_ALLOWED_HOSTS: ")
    assert value in problem


@pytest.mark.parametrize("process", [Process.API, Process.WORKER])
def test_production_must_choose_a_recycle_policy(process: Process) -> None:
    environ = {name: value for name, value in (API | WORKER).items() if name != "RECYCLE_POLICY"}
    (problem,) = problems(environ, process)
    assert problem.startswith("RECYCLE_POLICY: Missing")


def test_production_refuses_a_provider_over_plain_http_unless_on_loopback() -> None:
    for url in ("http://csp.example", "http://10.0.0.1:80/v2", "http://127.0.0.1.example"):
        (problem,) = problems(WORKER | {"CSP_BASE_URL": url}, Process.WORKER)
        assert problem.startswith("CSP_BASE_URL: ")
    for url in ("https://csp.example", "http://127.0.0.1:9000", "http://localhost:9000/v2", "http://[::1]:9000"):
        assert Settings.from_env(WORKER | {"CSP_BASE_URL": url}, process=Process.WORKER).csp_base_url == url


def test_the_worker_needs_the_provider_and_the_api_and_beat_do_not() -> None:
    names = [each.split(":")[0] for each in problems({"RECYCLE_POLICY": "reuse"}, Process.WORKER)]
    assert names == ["CSP_API_TOKEN", "CSP_BASE_URL"]
    assert Settings.from_env(API, process=Process.API).csp_base_url is None
    assert Settings.from_env({}, process=Process.BEAT).csp_api_token is None


SERVICES = {"CSP_SERVICES_EMAIL": "cleaner@example.com", "CSP_SERVICES_PASSWORD": "services-s3cret"}


def test_services_stay_where_they_are_unless_a_removal_is_asked_for() -> None:
    settings = Settings.from_env(WORKER, process=Process.WORKER)
    assert not settings.removes_services
    assert settings.policy.services_limit_sec == 0
    assert Settings.from_env(WORKER | SERVICES, process=Process.WORKER).csp_services_cleanup is ServicesCleanup.OFF


@pytest.mark.parametrize("mode", ["shadow", "on"])
def test_a_removal_of_services_needs_a_user_and_a_password_in_the_worker(mode: str) -> None:
    environ = WORKER | {"CSP_SERVICES_CLEANUP": mode}
    needed = f"Missing: CSP_SERVICES_CLEANUP={mode} needs it."
    assert problems(environ, Process.WORKER) == [f"CSP_SERVICES_EMAIL: {needed}", f"CSP_SERVICES_PASSWORD: {needed}"]
    assert Settings.from_env(environ | SERVICES, process=Process.WORKER).removes_services
    assert Settings.from_env(API | {"CSP_SERVICES_CLEANUP": mode}, process=Process.API)


def test_the_window_of_an_attempt_has_room_for_the_removal_and_the_delete() -> None:
    without = Settings.from_env(WORKER, process=Process.WORKER)
    settings = Settings.from_env(WORKER | SERVICES | {"CSP_SERVICES_CLEANUP": "on"}, process=Process.WORKER)
    limit = settings.policy.services_limit_sec
    assert limit > 0
    assert settings.policy.attempt_window_sec == without.policy.attempt_window_sec + limit
    assert settings.csp_slot_limit_sec == without.csp_slot_limit_sec + limit


def test_development_allows_what_production_refuses() -> None:
    tokens = {"BROKER_API_TOKEN": DEVELOPMENT_TRACK_TOKEN, "BROKER_ADMIN_TOKEN": DEVELOPMENT_ADMIN_TOKEN}
    settings = Settings.from_env({"BROKER_ENV": "development"} | tokens, process=Process.API)
    assert settings.recycle_policy is RecyclePolicy.REUSE
    assert settings.shutdown_drain_sec == 0
    worker = {"BROKER_ENV": "development", "CSP_BASE_URL": "http://csp.example", "CSP_API_TOKEN": "x"}
    assert Settings.from_env(worker, process=Process.WORKER).csp_base_url == "http://csp.example"


def test_a_drain_that_is_given_holds_in_development_too() -> None:
    assert api_with(BROKER_ENV="development", SHUTDOWN_DRAIN_SEC="2").shutdown_drain_sec == 2


@pytest.mark.parametrize(("process", "port"), [(Process.WORKER, 9101), (Process.BEAT, 9102)])
def test_each_process_has_a_metrics_port_of_its_own(process: Process, port: int) -> None:
    assert Settings.from_env(WORKER, process=process).metrics_port == port
    assert Settings.from_env(WORKER | {"METRICS_PORT": "9999"}, process=process).metrics_port == 9999


# -- what the core gets


def test_the_policy_is_in_seconds() -> None:
    policy = api_with(LAB_DURATION_HOURS="0.25", EXPIRY_BUFFER_HOURS="0", STALE_GRACE_HOURS="1.5").policy
    assert (policy.lab_duration_sec, policy.expiry_buffer_sec, policy.stale_grace_sec) == (900, 0, 5400)
    assert policy.recycle is RecyclePolicy.CONFIRM


def test_a_lease_may_last_twice_the_usual_time_unless_a_limit_is_given() -> None:
    assert api_with(LAB_DURATION_HOURS="1.5").policy.max_lab_duration_sec == 3 * 3600
    assert api_with(LAB_DURATION_HOURS="1.5", MAX_LAB_DURATION_HOURS="1.5").policy.max_lab_duration_sec == 5400


def test_a_limit_below_the_usual_time_is_refused_and_says_so() -> None:
    found = problems(API | {"LAB_DURATION_HOURS": "6", "MAX_LAB_DURATION_HOURS": "5.9"})
    assert found == ["MAX_LAB_DURATION_HOURS: Must not be less than LAB_DURATION_HOURS."]


@pytest.mark.parametrize(("connect", "read"), [("5", "15"), ("30", "120"), ("0.5", "0.5")])
def test_an_attempts_window_outlasts_its_call(connect: str, read: str) -> None:
    settings = Settings.from_env(
        WORKER | {"CSP_TIMEOUT_CONNECT_SEC": connect, "CSP_TIMEOUT_READ_SEC": read}, process=Process.WORKER
    )
    assert settings.csp_call_limit_sec >= float(connect) + float(read)
    assert settings.policy.attempt_window_sec > settings.csp_call_limit_sec + 5


# -- sign-in

SIGN_IN = {"OIDC_ISSUER": "https://issuer.example.com/realms/labs", "OIDC_AUDIENCE": "https://broker.example.com"}


def test_an_issuer_is_kept_as_it_is_written_and_roles_have_a_claim_of_their_own() -> None:
    given = api_with(**SIGN_IN | {"OIDC_ISSUER": "https://tenant.example.com/"})
    assert given.oidc_issuer == "https://tenant.example.com/"
    assert (given.oidc_audience, given.oidc_roles_claim) == ("https://broker.example.com", "broker_roles")
    assert api_with(**SIGN_IN, OIDC_ROLES_CLAIM="realm_access.roles").oidc_roles_claim == "realm_access.roles"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"OIDC_AUDIENCE": ""}, "OIDC_AUDIENCE: Missing: give it with OIDC_ISSUER."),
        ({"OIDC_ISSUER": ""}, "OIDC_ISSUER: Missing: give it with OIDC_AUDIENCE."),
        (
            {"OIDC_ISSUER": "", "OIDC_AUDIENCE": "", "OIDC_ROLES_CLAIM": "roles"},
            "OIDC_ISSUER: Missing: OIDC_ROLES_CLAIM has no effect without it.",
        ),
        ({"OIDC_AUDIENCE": "two words"}, "OIDC_AUDIENCE: Must be 1 to 256 printable ASCII characters without spaces."),
        (
            {"OIDC_ROLES_CLAIM": "two words"},
            "OIDC_ROLES_CLAIM: Must be 1 to 128 printable ASCII characters without spaces.",
        ),
        *(
            ({"OIDC_ISSUER": url}, "OIDC_ISSUER: Must be https; in development it may be http on loopback.")
            for url in ("http://issuer.example.com", "http://127.0.0.1:9000")
        ),
        *(
            (
                {"OIDC_ISSUER": url},
                "OIDC_ISSUER: Must be an http or https URL of a host, without a user, a query or a fragment.",
            )
            for url in ("issuer.example.com", "https://user@issuer.example.com", "https://issuer.example.com?realm=1")
        ),
    ],
)
def test_a_mistake_about_the_issuer_is_told_by_name(changes: dict[str, str], told: str) -> None:
    assert problems(API | SIGN_IN | changes) == [told]


@pytest.mark.parametrize(("url", "is_fit"), [("http://127.0.0.1:9000", True), ("http://issuer.example.com", False)])
def test_in_development_the_issuer_may_be_on_loopback_without_tls(url: str, is_fit: bool) -> None:
    environ = API | SIGN_IN | {"BROKER_ENV": "development", "OIDC_ISSUER": url}
    if is_fit:
        assert Settings.from_env(environ, process=Process.API).oidc_issuer == url
    else:
        assert problems(environ) == ["OIDC_ISSUER: Must be https; in development it may be http on loopback."]


# -- the console

CLIENT = {"OIDC_CLIENT_ID": "broker-console"}


def console_with(**changes: str) -> Settings:
    return Settings.from_env(CONSOLE | changes, process=Process.CONSOLE)


def test_a_console_needs_no_token_and_no_provider_only_its_key() -> None:
    settings = console_with()
    assert (settings.console_bind, settings.console_port) == ("0.0.0.0", 8081)  # noqa: S104 - the default, not a socket
    assert settings.console_secret_key == ("k" * 32,)
    assert settings.broker_api_url == "http://api:8080/v1"
    assert settings.oidc_scopes == "openid"


def test_several_keys_are_several_and_none_is_in_the_text_of_the_settings() -> None:
    issuer = SIGN_IN | CLIENT | {"OIDC_CLIENT_SECRET": "of the console"}
    settings = console_with(CONSOLE_SECRET_KEY=f"{'n' * 32}, {'o' * 40}", **issuer)
    assert settings.console_secret_key == ("n" * 32, "o" * 40)
    assert settings.oidc_client_secret == "of the console"
    assert "n" * 32 not in repr(settings)
    assert "of the console" not in repr(settings)


def test_only_development_goes_without_a_key_and_the_api_s_address() -> None:
    assert problems({}, Process.CONSOLE) == [
        "BROKER_API_URL: Missing: give the API's address with its base path.",
        "CONSOLE_SECRET_KEY: Missing: give a random text of at least 32 characters.",
    ]
    in_development = Settings.from_env({"BROKER_ENV": "development"}, process=Process.CONSOLE)
    assert in_development.console_secret_key == ()


@pytest.mark.parametrize("keys", ["k" * 31, f"{'k' * 32},short", ","])
def test_a_key_that_can_be_guessed_is_refused_and_not_told(keys: str) -> None:
    (told,) = problems(CONSOLE | {"CONSOLE_SECRET_KEY": keys}, Process.CONSOLE)
    assert told.startswith("CONSOLE_SECRET_KEY: Each key must have at least 32 characters: python -c ")
    assert "kkk" not in told


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (SIGN_IN, "OIDC_CLIENT_ID: Missing: give the console's client id at OIDC_ISSUER."),
        *(
            ({name: value}, f"OIDC_ISSUER: Missing: {name} has no effect without it.")
            for name, value in (CLIENT | {"OIDC_CLIENT_SECRET": "a-secret", "OIDC_SCOPES": "openid"}).items()
        ),
        *(
            (
                SIGN_IN | CLIENT | {"OIDC_SCOPES": scopes},
                "OIDC_SCOPES: Must be scopes separated by one space, one of them openid.",
            )
            for scopes in ("profile", "openidentity", "openid  profile", 'openid "all"')
        ),
        ({"CONSOLE_PORT": "0"}, "CONSOLE_PORT: Must be greater than or equal to 1 and less than or equal to 65535."),
        (
            {"BROKER_API_URL": "broker.example.com"},
            "BROKER_API_URL: Must be an http or https URL of a host, without a user, a query or a fragment.",
        ),
    ],
)
def test_a_mistake_about_the_console_is_told_by_name(changes: dict[str, str], told: str) -> None:
    assert problems(CONSOLE | changes, Process.CONSOLE) == [told]


@pytest.mark.parametrize("scopes", ["openid", "openid api://1f2e/.default", "profile openid"])
def test_the_console_asks_for_the_scopes_that_it_is_given(scopes: str) -> None:
    assert console_with(**SIGN_IN, **CLIENT, OIDC_SCOPES=scopes).oidc_scopes == scopes


def test_the_api_does_not_need_what_only_the_console_uses() -> None:
    assert api_with(**SIGN_IN).oidc_client_id is None
