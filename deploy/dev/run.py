"""`make run`: start a whole broker on this machine, keep it running, and stop it in order.

Ctrl-C, SIGTERM or a closed terminal stop everything; a second Ctrl-C does not wait. `plan` says what is started, and
which variables change that.
"""

from __future__ import annotations

import http.client
import os
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from broker_common.settings import SettingsError
from deploy.dev import programs
from deploy.dev.plan import make_plan
from deploy.dev.processes import Process, answers, call, wait_until, why_not_bindable

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import FrameType

    from deploy.dev.plan import Plan

_COLOURS = {
    "api": 32,
    "console": 92,
    "worker-jobs": 36,
    "worker-deletions": 96,
    "worker-webhooks": 95,
    "beat": 35,
    "flower": 33,
    "csp": 34,
    "redis": 31,
    "dynamodb": 94,
    "table": 94,
}
_READY_SEC = 30
_SYNC_SEC = 60
_FIRST_PAUSE_SEC, _LONGEST_PAUSE_SEC = 0.5, 10
_HEALTH_SEC = 2
_SETTLED_SEC = 30
"""A process that ran for so long starts again after the shortest pause."""


class CannotRun(Exception):
    """A part that the broker needs is missing or failed; the message is for the terminal."""


class Stopped(Exception):
    """A signal asked to stop while the broker was starting."""


class Terminal:
    """Writes whole lines from several threads, each with the name of its program."""

    def __init__(self) -> None:
        self.is_coloured = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
        self._lock = threading.Lock()

    def say(self, name: str, line: str) -> None:
        """Write one line of the program `name`."""
        prefix = f"{name:16} | "
        if self.is_coloured:
            prefix = f"\x1b[{_COLOURS.get(name, 1)}m{prefix}\x1b[0m"
        self.write(f"{prefix}{line}")

    def write(self, line: str) -> None:
        """Write one line without a name before it, so that it can be copied."""
        data = f"{line}\n".encode()
        with self._lock:
            try:
                while data:
                    data = data[os.write(1, data) :]
            except OSError:  # The terminal is closed. All processes must still be stopped in order.
                return


class Signals:
    """Counts the requests to stop."""

    def __init__(self) -> None:
        self._count = 0
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if not (signum == signal.SIGHUP and signal.getsignal(signum) is signal.SIG_IGN):  # nohup
                signal.signal(signum, self._note)

    def have_arrived(self) -> bool:
        """Tell whether a stop was asked for."""
        return self._count > 0

    def in_a_hurry(self) -> bool:
        """Tell whether a stop was asked for twice."""
        return self._count > 1

    def _note(self, _signum: int, _frame: FrameType | None) -> None:
        # Take no lock: the code that this signal interrupts may hold it. A threading.Event would hang now and then.
        self._count += 1


class Runner:
    """One run, from the start of the first program to the end of the last."""

    def __init__(self, plan: Plan, scratch: Path, terminal: Terminal, signals: Signals) -> None:
        self._plan = plan
        self._terminal = terminal
        self._signals = signals
        self._parts = [Process(program, terminal.say) for program in programs.parts(plan, scratch)]
        self._services = [Process(program, terminal.say) for program in programs.services(plan, scratch)]
        self._running: list[Process] = []
        self._failures: Counter[str] = Counter()
        self._restart_at: dict[str, float] = {}

    def run(self) -> int:
        """Start, serve until asked to stop, stop; return the exit code."""
        began = time.monotonic()
        try:
            self._check_ports()
            started = ", ".join(process.name for process in self._parts + self._services)
            self._say(f"starting a whole broker on this machine: {started}. It is ready in about 15 s")
            self._start(self._parts)
            self._await(self._parts)
            self._create_table()
            self._start_services()
            self._say_what_is_there(time.monotonic() - began)
            self._keep_running()
        except Stopped:
            pass
        except CannotRun as error:
            self._say(str(error))
            return 1
        finally:
            self._stop()
        return 0

    def _check_ports(self) -> None:
        seen: dict[int, str] = {}
        problems = []
        for name, host, port in programs.ports(self._plan):
            reason = f"{seen[port]} has the same" if port in seen else why_not_bindable(host, port)
            seen[port] = name
            if reason:
                problems.append(f"port {port} cannot be used: {reason}. Choose another: make run {name}=…")
        if problems:
            raise CannotRun("\n".join(problems))

    def _start(self, processes: Sequence[Process]) -> None:
        for process in processes:
            if self._signals.have_arrived():
                raise Stopped
            process.start()
            self._running.append(process)

    def _await(self, processes: Sequence[Process]) -> None:
        """Wait until all `processes` answer."""
        for process in processes:
            ready = wait_until(
                process.is_ready,
                _READY_SEC,
                give_up=lambda: self._signals.have_arrived() or any(one.has_ended() for one in processes),
            )
            if self._signals.have_arrived():
                raise Stopped
            for one in processes:
                if one.has_ended():
                    raise CannotRun(f"{one.name} {one.ending()}")
            if not ready:
                raise CannotRun(f"{process.name} did not answer on {process.program.ready_url} in {_READY_SEC} s")

    def _create_table(self) -> None:
        process = Process(programs.table(self._plan), self._terminal.say)
        self._start([process])
        wait_until(process.has_ended, _READY_SEC, give_up=self._signals.have_arrived)
        self._running.remove(process)
        ended, how = process.poll(), process.ending()
        process.stop()
        if self._signals.have_arrived():
            raise Stopped
        if ended != 0:
            raise CannotRun(f"the table could not be created: {process.last_line or how}")

    def _start_services(self) -> None:
        has_redis = self._plan.embeds_redis or answers(self._plan.env["REDIS_URL"])
        flower, *workers, api, console, beat = self._services
        self._start([*workers, api])
        self._await([*workers, api] if has_redis else [api])
        self._start([console, beat, flower])  # after the workers, which Flower asks at its own start
        self._await([console, beat, flower] if has_redis else [console])
        if has_redis:
            self._first_sync()
        else:
            self._say("Redis (REDIS_URL) does not answer: the API serves tracks, and jobs wait until Redis answers")

    def _first_sync(self) -> None:
        """Fill the pool by a sync, as an operator would. If the provider does not answer, the API still serves."""
        admin_url = f"{self._plan.api_url}{self._plan.settings.api_base_path}/admin"
        headers = {"Authorization": f"Bearer {self._plan.operator_token}"}
        run: dict[str, object] = {}

        def has_ended() -> bool:
            nonlocal run
            run = call("GET", f"{admin_url}/jobs/{body['job_id']}", headers=headers)[1] or {}
            return run.get("state") not in {"queued", "running"}

        try:
            status, body = call("POST", f"{admin_url}/sync", headers=headers)
            if status != http.HTTPStatus.ACCEPTED:
                self._say(f"the first sync was refused: {status} {body}")
            elif not wait_until(has_ended, _SYNC_SEC, give_up=self._signals.have_arrived):
                self._say(f"the first sync still runs after {_SYNC_SEC} s: the pool fills when it ends")
            elif run.get("state") != "succeeded":
                self._say(f"the first sync {run.get('state')}: {run.get('error') or run.get('result')}")
        except (OSError, http.client.HTTPException) as error:
            self._say(f"the API did not answer the request for the first sync: {error}")

    def _say_what_is_there(self, seconds: float) -> None:
        plan = self._plan
        env = plan.env
        ports = ("METRICS_PORT", "DELETIONS_METRICS_PORT", "WEBHOOKS_METRICS_PORT", "BEAT_METRICS_PORT")
        jobs, deletions, webhooks, beat = (env[port] for port in ports)
        workers = f"workers :{jobs} (jobs), :{deletions} (deletions), :{webhooks} (webhooks)"
        url = f"{plan.api_url}{plan.settings.api_base_path}"
        track, admin = _shown_token(plan, "BROKER_API_TOKEN"), _shown_token(plan, "BROKER_ADMIN_TOKEN")
        as_track = f'-H "Authorization: Bearer {track}" -H "X-Track-ID: my-track"'
        as_admin = f'-H "Authorization: Bearer {admin}"'
        for line in (
            "",
            f"Ready after {seconds:.1f} s. Ctrl-C stops everything.",
            "",
            f"  API      {url}   (docs {url}/docs, health {plan.api_url}/readyz)",
            f"  Console  {plan.console_url}   (sign in with the admin token)",
            f"  Flower   {plan.flower_url}",
            f"  Metrics  {plan.api_url}/metrics, {plan.console_url}/metrics; {workers}, beat :{beat}",
            f"  Provider {env['CSP_BASE_URL']}{'   (a mock)' if plan.embeds_csp else ''}",
            f"  Tokens   track {track}   admin {admin}",
            "",
            f"  {_operators_line(plan, url)}",
            "",
            f"  curl -s -X POST {url}/allocate {as_track}",
            f"  curl -s {url}/sandboxes {as_track}",
            f"  curl -s {url}/admin/stats {as_admin}",
            f'  curl -s -X POST {url}/admin/cleanup {as_admin} -H "Prefer: wait=30"',
            "",
        ):
            self._terminal.write(line)

    def _keep_running(self) -> None:
        """Until a signal comes, start each process again that ends by itself or reports that it no longer works."""
        look_at = 0.0
        while not self._signals.have_arrived():
            time.sleep(0.1)
            if time.monotonic() >= look_at:
                self._stop_what_is_unwell()
                look_at = time.monotonic() + _HEALTH_SEC
            for process in self._running:
                if process.name in self._restart_at:
                    if time.monotonic() >= self._restart_at[process.name]:
                        del self._restart_at[process.name]
                        process.start()
                elif process.has_ended():
                    self._note_death(process)

    def _stop_what_is_unwell(self) -> None:
        for process in self._running:
            if process.name not in self._restart_at and process.is_unwell():
                self._say(f"{process.name} runs but no longer works: it is stopped and started again")
                process.stop(in_a_hurry=self._signals.have_arrived)

    def _note_death(self, process: Process) -> None:
        process.kill_group()
        how = f"{process.name} {process.ending()}"
        if process.name == "dynamodb":
            raise CannotRun(f"{how}. Its tables are lost, so everything stops. Run make run again.")
        if time.monotonic() - process.started_at > _SETTLED_SEC:
            del self._failures[process.name]
        pause = min(_FIRST_PAUSE_SEC * 2 ** self._failures[process.name], _LONGEST_PAUSE_SEC)
        self._failures[process.name] += 1
        self._restart_at[process.name] = time.monotonic() + pause
        self._say(f"{how}. It is started again in {pause:g} s.")

    def _stop(self) -> None:
        if self._signals.have_arrived():
            self._say("stopping when running work is finished; a second Ctrl-C does not wait")
        in_order = [process for process in self._parts + self._services if process in self._running]
        for process in in_order:
            if process.name == "flower":  # Without Redis it takes long, and no other process needs it.
                process.ask_to_stop()
        for process in reversed(in_order):
            self._say(f"{process.name} {process.stop(in_a_hurry=self._signals.in_a_hurry)}")
        if in_order:
            self._say("stopped")

    def _say(self, lines: str) -> None:
        for line in lines.split("\n"):
            self._terminal.say("run", line)


def _shown_token(plan: Plan, name: str) -> str:
    """Return the token for a command to paste: the public development token, or a reference to the caller's own."""
    if name not in plan.given:
        return plan.env[name]
    first = plan.env[name].split(",", 1)[0].strip()
    if first.startswith("sha256:"):
        return f"<the token whose hash {name} has>"
    return f"${{{name}%%,*}}" if "," in plan.env[name] else f"${name}"


def _operators_line(plan: Plan, url: str) -> str:
    """Return the `export` line for `broker` in another shell, without the caller's own values: these may be secret."""
    names = (
        "BROKER_ENV",
        "BROKER_API_TOKEN",
        "BROKER_ADMIN_TOKEN",
        "HISTORY_DAYS",
        "DDB_ENDPOINT_URL",
        "REDIS_URL",
        "CSP_BASE_URL",
        "CSP_API_TOKEN",
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
    )
    added = [f"{name}={plan.env[name]}" for name in names if name in plan.env and name not in plan.given]
    return f'export PATH="{Path(sys.executable).parent}:$PATH" BROKER_API_URL={url} {" ".join(added)}'


def main() -> int:
    """Run until asked to stop; return 0 then, 2 for a bad setting or an argument, 1 if a part failed."""
    terminal = Terminal()
    if sys.argv[1:]:
        terminal.say("run", "takes no arguments, only variables: make run POOL=2000. docs/settings.md lists them")
        return 2
    signals = Signals()
    # The programs get it as TMPDIR: a process that is killed leaves temporary files.
    with tempfile.TemporaryDirectory(prefix="sandbox-broker-", ignore_cleanup_errors=True) as scratch:
        try:
            plan = make_plan(os.environ | {"TMPDIR": scratch} | ({"FORCE_COLOR": "1"} if terminal.is_coloured else {}))
        except SettingsError as error:
            for problem in chain(error.problems, ["nothing was started"]):
                terminal.say("run", problem)
            return 2
        return Runner(plan, Path(scratch), terminal, signals).run()


if __name__ == "__main__":
    sys.exit(main())
