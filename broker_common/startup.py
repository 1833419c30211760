"""What keeps a process from starting, the same for all of them: a line a problem on stderr, and exit code 2."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, NoReturn

from broker_common.core.errors import LayoutMismatch, StoreMisconfigured, StoreUnavailable
from broker_common.services import build_store
from broker_common.settings import Settings, SettingsError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from broker_common.settings import Process

_UNFIT = 2


def read_settings(environ: Mapping[str, str], *, process: Process) -> Settings:
    """Parse a process's settings, or refuse to start with every problem that they have."""
    try:
        return Settings.from_env(environ, process=process)
    except SettingsError as error:
        refuse(*error.problems)


def check_table(settings: Settings) -> None:
    """Refuse to start on a table that is missing, laid out for other processes, or closed to our credentials.

    One that is merely out of reach is no reason not to start.
    """
    try:
        build_store(settings).ping()
    except (LayoutMismatch, StoreMisconfigured) as error:
        refuse(error.message)
    except StoreUnavailable:
        return


def refuse(*problems: str) -> NoReturn:
    """Name the problems, and end the process."""
    sys.stderr.writelines(f"{problem}\n" for problem in problems)
    sys.exit(_UNFIT)
