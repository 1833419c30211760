"""docs/settings.md names every variable that is read, and is what `make settings` writes."""

from __future__ import annotations

import re

from deploy.dev import plan, settings_doc
from deploy.dev.processes import ROOT

SOURCES = [
    *(path for package in ("broker_api", "broker_common", "broker_worker") for path in (ROOT / package).rglob("*.py")),
    *(ROOT / "deploy" / name for name in ("gunicorn.conf.py", "entrypoint.sh", "dev/audit.py")),
]
WSGI = re.compile("HTTP_|PATH_INFO|QUERY_STRING")
"""Other names that are read from an `environ`: those of a request."""


def test_the_file_is_up_to_date() -> None:
    assert settings_doc.FILE.read_text() == settings_doc.describe(), "run `make settings`"


def test_every_setting_is_described_once_and_nothing_else() -> None:
    titles = [name for section in settings_doc.SECTIONS.values() for name in section]
    assert sorted(titles) == sorted(settings_doc.SETTINGS)


def test_every_variable_of_make_run_is_described() -> None:
    assert plan.DEFAULTS.keys() - settings_doc.SETTINGS <= settings_doc.MAKE_RUN.keys() | settings_doc.OTHERS.keys()


def test_every_variable_that_is_read_elsewhere_is_described() -> None:
    read = {
        name
        for path in SOURCES
        for name in re.findall(r'environ(?:\.\w+\(|\[)"([A-Z_]+)"|\$\{([A-Z_]+):-', path.read_text())
        for name in name
        if name and not WSGI.match(name)
    }
    assert "FLOWER_BASIC_AUTH" in read
    assert read <= settings_doc.SETTINGS | settings_doc.OTHERS.keys()
