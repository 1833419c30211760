"""A compose file on the engine, with an override that names the stand-ins and free ports of this machine."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import yaml

from tests.containers.images import STAND_INS, services_of, stand_in

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from tests.containers.engine import Engine

RELEASE_BEFORE = "sandbox-broker:before"
ADMIN = {"Authorization": "Bearer admin_token_123"}
TRACK_TOKEN = "track_token_123"
PORTS = {"api": 8080, "api-2": 8080, "console": 8081, "flower": 5555, "prometheus": 9090}
"""The port of each service inside of its container."""


@dataclass(frozen=True, kw_only=True)
class Stack:
    """The compose file of a tree under the name of a project, with an override. Grafana's image is not to be had."""

    engine: Engine
    tree: Path
    scratch: Path
    project: str
    ports: Mapping[str, int]
    """The port of this machine for each service that publishes one."""
    more: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    """More of the override, by service."""

    def compose(self, *words: str) -> str:
        """Run Docker Compose and return its output. Raises `AssertionError` if it fails."""
        override = self.scratch / f"{self.project}-{self.tree.name}.yaml"
        override.write_text(self._override())
        files = ("--file", "deploy/compose.yaml", "--file", str(override))
        return self.engine.compose("--project-name", self.project, "--progress", "quiet", *files, *words, cwd=self.tree)

    def containers(self, *services: str) -> list[dict[str, Any]]:
        """Return what the engine knows of each container of these services, or of all services; also ended ones."""
        return [self.engine.inspect(each) for each in self.compose("ps", "--all", "--quiet", *services).split()]

    def stop(self, *services: str) -> dict[str, int]:
        """Stop these services, or all; return the exit code of each container that ran."""
        running = self.compose("ps", "--quiet", *services).split()
        self.compose("stop", *services)
        found = [self.engine.inspect(each) for each in running]
        return {str(each["Name"]).removeprefix("/"): int(each["State"]["ExitCode"]) for each in found}

    def url(self, service: str) -> str:
        """Return the address at which a service answers on this machine."""
        return f"http://127.0.0.1:{self.ports[service]}"

    def logs(self) -> str:
        """Return the last lines of every service."""
        return self.compose("logs", "--no-color", "--tail", "30")

    def _override(self) -> str:
        services: dict[str, dict[str, Any]] = {name: {"image": stand_in(name)} for name in STAND_INS}
        services["grafana"] = {"profiles": ["without-an-image"]}
        for name, more in self.more.items():
            services[name] = services.get(name, {}) | more
        for name in self.ports.keys() & (services.keys() | services_of(self.tree).keys()):
            published = f"127.0.0.1:{self.ports[name]}:{PORTS[name]}"
            services[name] = services.get(name, {}) | {"ports": _Replacing([published])}
        return yaml.dump({"services": services}, Dumper=_Dumper)


class _Replacing(list[str]):
    """A list that replaces the one of the compose file, and is not added to it."""


class _Dumper(yaml.SafeDumper):
    """Writes the tag that Compose has for that."""

    def ignore_aliases(self, data: object) -> bool:
        """Write every value in full."""
        return True


_Dumper.add_representer(_Replacing, lambda dumper, data: dumper.represent_sequence("!override", data))
