"""The real servers of the tests. Each starts once a session, when the first test asks for it, on a free loopback port.

If this machine lacks a server, the test is skipped with the line that installs it; with `CI=true` the test fails.
"""

from __future__ import annotations

import os
import shutil
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING

import pytest
from redis import Redis

from broker_common.adapters.dynamo_transport import make_boto3_client
from deploy.dev.dynamodb_local import NotInstalled, dynamodb_local
from deploy.dev.processes import Process, free_ports, wait_until
from deploy.dev.programs import ministack, valkey

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mypy_boto3_dynamodb import DynamoDBClient

    from deploy.dev.processes import Program

AWS_ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_REGION": "us-east-1",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    "AWS_EC2_METADATA_DISABLED": "true",
}
"""All that boto3 gets to know about AWS in a test: dummy credentials, and no way to find others."""


def hide_aws() -> None:
    """Hide this machine's AWS settings from boto3, in this process to its end and in all that it starts."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        del os.environ[name]
    os.environ.update(AWS_ENVIRONMENT)


@cache
def moto_client() -> DynamoDBClient:
    """Return the boto3 client of all tests on moto, for use within `mock_aws`. To make one takes longer than most tests."""
    return make_boto3_client(region="us-east-1", endpoint_url=None, timeout_sec=60, connections=1)


@contextmanager
def running(program: Program) -> Iterator[str]:
    """Run a server during the context; yield `host:port`. If it does not start, the test fails and shows its output."""
    lines: list[str] = []
    process = Process(program, lambda _, line: lines.append(line))
    process.start()
    try:
        if not wait_until(process.is_ready, 30, give_up=process.has_ended):
            pytest.fail("\n".join([f"{program.name} {process.ending()}", *lines]))
        yield program.ready_url.split("/")[2]
    finally:
        process.stop()


def installed(program: str, *, package: str) -> str:
    """Return the path of a program of a Debian package. If it is missing, skip the test, or fail it in CI."""
    # Servers are often in a directory that is not on the path of a plain user.
    path = shutil.which(program, path=os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin"]))
    if path is None:
        missing = f"{program} is missing. Install it (Debian: apt-get install {package})"
        if os.environ.get("CI") == "true":
            pytest.fail(missing)
        pytest.skip(missing)
    return path


@pytest.fixture(scope="session")
def ministack_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Yield the endpoint of the embedded DynamoDB-compatible engine."""
    with running(ministack(free_ports(1)[0], tmp_path_factory.mktemp("ministack"))) as address:
        yield f"http://{address}"


@pytest.fixture(scope="session")
def dynamodb_local_url() -> Iterator[str]:
    """Yield the endpoint of Amazon's DynamoDB Local."""
    try:
        program = dynamodb_local(free_ports(1)[0])
    except NotInstalled as reason:
        if os.environ.get("CI") == "true":
            pytest.fail(f"DynamoDB Local is missing: {reason}")
        pytest.skip(f"DynamoDB Local is missing: {reason}")
    with running(program) as address:
        yield f"http://{address}"


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """Yield the URL of a real valkey server. All tests of the session share it, so each uses its own names."""
    with running(valkey(free_ports(1)[0])) as address:
        yield f"redis://{address}/0"


def empty_database(redis_url: str, number: int) -> str:
    """Return the URL of database `number` of the session's Redis, after emptying it. Each package has its own number."""
    url = f"{redis_url.rsplit('/', 1)[0]}/{number}"
    with Redis.from_url(url) as redis:
        redis.flushdb()
    return url


@pytest.fixture
def aws_environment(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Hide this machine's AWS settings from boto3; return the settings that it gets instead."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in AWS_ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    return dict(AWS_ENVIRONMENT)
