"""HAProxy before two instances of the API, as `deploy/haproxy.cfg` has it."""

from __future__ import annotations

import csv
import re
from typing import TYPE_CHECKING

import requests

from deploy.dev.plan import LOOPBACK
from deploy.dev.processes import ROOT, Program, free_ports

if TYPE_CHECKING:
    from pathlib import Path

CONFIGURATION = ROOT / "deploy" / "haproxy.cfg"
NO_INSTANCE = "no instance of the API can be reached"
"""What HAProxy itself says of a call that no instance took."""


class Balanced:
    """HAProxy with the configuration of `deploy/`, except its addresses, before two instances of the API."""

    def __init__(self, binary: str, scratch: Path, api_ports: list[int]) -> None:
        self.port, self._stats_port = free_ports(2)
        instances = [f"{LOOPBACK}:{port}" for port in api_ports]
        ours = [f"{LOOPBACK}:{self.port}", f"{LOOPBACK}:{self._stats_port}", *instances]
        theirs = [":8080", "127.0.0.1:8404", "127.0.0.1:8081", "127.0.0.1:8082"]
        text = CONFIGURATION.read_text()
        for their, our in zip(theirs, ours, strict=True):
            line = re.compile(rf"^(    (?:bind|server \S+)) {re.escape(their)}(?= |$)", re.MULTILINE)
            text, found = line.subn(rf"\1 {our}", text)
            assert found, their
        written = scratch / "haproxy.cfg"
        written.write_text(text)
        self.program = Program(
            name="haproxy",
            command=(binary, "-db", "-f", str(written)),
            env={},
            ready_url=f"http://{LOOPBACK}:{self._stats_port}/",
        )

    def servers(self) -> dict[str, dict[str, str]]:
        """Return what HAProxy knows of each instance."""
        text = requests.get(f"http://{LOOPBACK}:{self._stats_port}/;csv", timeout=10).text
        rows = csv.DictReader(text.removeprefix("# ").splitlines())
        return {row["svname"]: row for row in rows if row["pxname"] == "api" and row["svname"].startswith("api-")}

    def all_are_up(self) -> bool:
        return [row["status"] for row in self.servers().values()] == ["UP", "UP"]
