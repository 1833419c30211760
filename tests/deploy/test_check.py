"""`make check` says at its end how long it took, what passed, and what it left out."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from deploy.dev import check


@pytest.mark.skipif(not Path("/bin/false").exists(), reason="has no /bin/false")
@pytest.mark.parametrize(("linter", "code", "verdict"), [("true", 0, "passed"), ("false", 1, "FAILED")])
def test_the_last_lines_say_what_passed_and_what_was_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], linter: str, code: int, verdict: str
) -> None:
    monkeypatch.setattr(check, "_BIN", Path("/bin"))
    monkeypatch.setattr(check, "_LINTERS", (("true",), (linter, "-x")))
    monkeypatch.setattr(check, "_PYTEST", ("pytest", "--quick", "-q", "-p", "no:cacheprovider"))
    monkeypatch.setattr(check, "TESTS", ("unit/test_lease.py", "deploy/test_lock.py"))
    monkeypatch.setattr(sys, "argv", ["check", "-k", "lock or lease"])
    assert check.main() == code
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2].startswith(f"check {verdict} after ")
    assert f"{1 + (code == 0)} of 2 linters passed" in lines[-2]
    assert " tests passed" in lines[-2]
    assert "left out: 0 tests" not in lines[-1]
    assert "e2e" in lines[-1]
    assert (f"{linter} -x" in lines) == (code == 1)
