"""microburst: a proxy before DynamoDB that fails calls by rules."""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import boto3
import requests
from botocore.config import Config

from deploy.dev.plan import LOOPBACK
from deploy.dev.processes import Program
from tests.backends import running

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


class FaultProxy:
    """A proxy that listens at `url` while its `program` runs. Without rules it passes every call on."""

    def __init__(self, port: int, upstream: str) -> None:
        self.url = f"http://{LOOPBACK}:{port}"
        microburst = (sys.executable, "-m", "tests.microburst_with_lengths")
        command = (*microburst, "--upstream", upstream, "--host", LOOPBACK, "--port", str(port))
        self.program = Program(
            name="proxy",
            command=command,
            env={name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ},
            ready_url=f"{self.url}/_microburst/rules",
        )

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run the proxy during the context. It passes on one call first: only its first call takes seconds."""
        patient = Config(read_timeout=60, retries={"total_max_attempts": 1})
        with running(self.program):
            boto3.client(
                "dynamodb",
                region_name="us-east-1",
                endpoint_url=self.url,
                config=patient,
                aws_access_key_id="test",
                aws_secret_access_key="test",
            ).list_tables()
            yield

    def inject(self, *rules: Mapping[str, Any]) -> int:
        """Replace all rules by these; return how often the earlier rules failed a call."""
        hits = sum(int(rule["fired_count"]) for rule in requests.get(self.program.ready_url, timeout=10).json())
        sent = [{"service": "dynamodb", **rule} for rule in rules]
        taken = requests.post(self.program.ready_url, json=sent, timeout=10)
        assert taken.status_code == requests.codes.ok, taken.text
        return hits
