"""The check of the settings before any process starts: each problem is one line on stderr, and the exit code is 2."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, NoReturn

from broker_common.settings import Settings, SettingsError
from broker_common.traces import find_problem

if TYPE_CHECKING:
    from collections.abc import Mapping

    from broker_common.settings import Process

_UNFIT = 2


def read_settings(environ: Mapping[str, str], *, process: Process) -> Settings:
    """Parse a process's settings; ends the process with a line for each mistake in them.

    That also holds if they ask for traces that this installation cannot make.
    """
    try:
        settings = Settings.from_env(environ, process=process)
    except SettingsError as error:
        refuse(*error.problems)
    if problem := find_problem(settings, process):
        refuse(problem)
    return settings


def refuse(*problems: str) -> NoReturn:
    """Write the problems to stderr, and end the process."""
    sys.stderr.writelines(f"{problem}\n" for problem in problems)
    sys.exit(_UNFIT)
