"""`make check`: run four linters and the quick tests, side by side. Say at the end what was done and what was left out.

The quick tests are those in `TESTS` that start no process and are not slow. `make test` also runs the others, such as
interleavings and property, and `make lint` the other linters. It needs no network, and no program except Python. It
exits with 1 if a linter or a test failed.
"""

from __future__ import annotations

import re
import resource
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from deploy.dev.processes import ROOT

TESTS = ("api", "contract", "deploy", "scheduler", "unit")
"""The directories of `tests/` that have quick tests."""
_BIN = Path(sys.executable).parent
_LINTERS = (("ruff", "check", "."), ("ruff", "format", "--check", "."), ("mypy",), ("lint-imports",))
# One more than there are cores: some tests wait for real time.
_PYTEST = ("pytest", "--quick", "--numprocesses=3", "--dist=loadfile", "--quiet", "--no-header", "-rfE")


def main() -> int:
    """Run everything and print the summary; return the exit code."""
    print("check: linters, and quick tests that start no process. It takes about 90 s on two cores.", flush=True)
    began = time.monotonic()
    with ThreadPoolExecutor(1) as aside:
        linting = aside.submit(_lint)
        has_passed, counted = _test()
        faults = linting.result()
    for fault in faults:
        print(fault)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    is_good = has_passed and not faults
    passed, left_out = _count("passed", counted), _count("skipped", counted)
    directories = {path.relative_to(ROOT / "tests").parts[0] for path in ROOT.glob("tests/*/**/test_*.py")}
    others = ", ".join(sorted(directories - {*TESTS}))
    print(
        f"check {'passed' if is_good else 'FAILED'} after {time.monotonic() - began:.0f} s "
        f"({used.ru_utime + used.ru_stime:.0f} s of processor time): {passed:,} tests passed, "
        f"{len(_LINTERS) - len(faults)} of {len(_LINTERS)} linters passed\n"
        f"left out: {left_out:,} tests that start a process or are slow, and all tests of {others}. "
        "make test runs them, make lint the other linters",
        flush=True,
    )
    return 0 if is_good else 1


def _test() -> tuple[bool, str]:
    """Run the tests and show their output; return whether they passed, and the output's end."""
    command = [sys.executable, "-m", *_PYTEST, *(f"tests/{each}" for each in TESTS), *sys.argv[1:]]
    last: list[str] = []
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as tests:
        assert tests.stdout is not None  # noqa: S101 - it was asked for
        for line in tests.stdout:
            print(line, end="", flush=True)
            last = [*last[-3:], line]
    return tests.returncode == 0, "".join(last)


def _lint() -> list[str]:
    """Run all linters, one after the other; return the output of each that fails."""
    faults = []
    for name, *options in _LINTERS:
        done = subprocess.run([str(_BIN / name), *options], cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            faults.append(f"{name} {' '.join(options)}\n{done.stdout}{done.stderr}")
    return faults


def _count(what: str, text: str) -> int:
    found = re.search(rf"(\d+) {what}", text)
    return int(found[1]) if found else 0


if __name__ == "__main__":
    sys.exit(main())
