"""Starting the API: whatever makes that impossible is a clear line a problem on stderr, and exit code 2."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, NoReturn

from prometheus_client import CollectorRegistry

from broker_api.app import create_app
from broker_common.core.errors import LayoutMismatch, StoreMisconfigured
from broker_common.logs import configure_logging
from broker_common.services import build_api_services, check_table
from broker_common.settings import Process, Settings, SettingsError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from flask import Flask

EXIT_UNFIT = 2


def read_settings(environ: Mapping[str, str]) -> Settings:
    """Parse the API's settings; exits with 2, one line a problem, if they are not fit to start with."""
    try:
        return Settings.from_env(environ, process=Process.API)
    except SettingsError as error:
        _give_up(error.problems)


def check_table_or_exit(settings: Settings) -> None:
    """Exit with 2 if the table is missing or laid out for other processes; one out of reach is no reason to."""
    try:
        check_table(settings)
    except (LayoutMismatch, StoreMisconfigured) as error:
        _give_up([error.message])


def build_app(settings: Settings) -> Flask:
    """Make the application and its clients. Called after a fork."""
    configure_logging(level=settings.log_level, fmt=settings.log_format)
    registry = CollectorRegistry()
    return create_app(settings, build_api_services(settings, registry=registry), registry=registry)


def _give_up(problems: list[str]) -> NoReturn:
    for problem in problems:
        print(problem, file=sys.stderr)  # noqa: T201 - before there is a log to write to
    sys.exit(EXIT_UNFIT)
