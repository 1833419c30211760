"""Files of pages: versions in their addresses, and dark colours without scripts."""

from __future__ import annotations

import re
import shutil
from typing import TYPE_CHECKING

import pytest
from flask import Flask
from flask_bootstrap import Bootstrap5  # type: ignore[import-untyped] # it ships no types

from broker_api.console.files import STATIC_PATH, dark_rules, register_files

if TYPE_CHECKING:
    from pathlib import Path

    from tests.console.harness import Console

FOR_A_YEAR = "public, max-age=31536000, immutable"


def addresses_in(page: str) -> list[str]:
    """Return the addresses of all files that a page loads."""
    return re.findall(r'(?:src|<link [^>]*href)="([^"]+)"', page)


def test_every_file_of_a_page_has_a_version_and_is_kept_for_a_year(console: Console) -> None:
    addresses = addresses_in(console.open("/events").text)
    assert len(addresses) >= 6
    for address in addresses:
        answer = console.open(address, buffered=True)
        assert (answer.status_code, answer.headers["Cache-Control"]) == (200, FOR_A_YEAR), address


def test_a_script_finds_what_it_imports_in_its_own_version(console: Console) -> None:
    (script,) = [each for each in addresses_in(console.open("/").text) if each.endswith("/console.js")]
    imported = re.findall(r'from "\./([a-z]+\.js)"', console.open(script, buffered=True).text)
    assert imported
    for name in imported:
        answer = console.open(f"{script.rpartition('/')[0]}/{name}", buffered=True)
        assert (answer.status_code, answer.headers["Cache-Control"]) == (200, FOR_A_YEAR), name


@pytest.mark.parametrize(
    "address",
    ["/static/old/console.js", "/static/old/system-dark.css", "/bootstrap/static/0.1/css/bootstrap.min.css"],
)
def test_a_file_of_another_release_is_answered_by_ours_and_not_kept(console: Console, address: str) -> None:
    answer = console.open(address, buffered=True)
    assert (answer.status_code, answer.headers["Cache-Control"]) == (200, "no-cache")


def address_of(folder: Path, filename: str = "console.js") -> str:
    """Return the address of a file of a console whose files are in `folder`."""
    app = Flask("a-release", static_folder=str(folder), static_url_path=STATIC_PATH)
    Bootstrap5(app)
    register_files(app)
    with app.test_request_context():
        return app.url_for("static", filename=filename)


def test_a_change_of_any_file_changes_the_addresses_of_all_of_ours(console: Console, tmp_path: Path) -> None:
    shutil.copytree(str(console.app.static_folder), tmp_path / "files")
    before = address_of(tmp_path / "files")
    assert before == address_of(tmp_path / "files")
    with (tmp_path / "files" / "times.js").open("a") as file:
        file.write("// changed")
    assert address_of(tmp_path / "files") != before


# -- dark without scripts


def test_a_page_loads_the_dark_colours_where_the_system_is_dark(console: Console) -> None:
    (link,) = re.findall(r'<link rel="stylesheet" href="([^"]+)" media="([^"]+)">', console.open("/").text)
    assert link[1] == "(prefers-color-scheme: dark)"
    sheet = console.open(link[0], buffered=True)
    assert sheet.mimetype == "text/css"
    assert ":root:not([data-bs-theme]) {color-scheme:dark;" in sheet.text
    assert re.search(r":root:not\(\[data-bs-theme\]\) \{[^}]*--available: #4ac26b;", sheet.text)


def test_every_dark_rule_of_the_page_is_there_for_browsers_without_scripts_and_no_other_rule() -> None:
    sheet = """
    /* [data-bs-theme=dark] in a remark { } */
    .a { color: red }
    [data-bs-theme=dark] { color: white } [data-bs-theme="dark"] .a, .b, [data-bs-theme=dark] .c{color:blue}
    .navbar[data-bs-theme=dark] { color: green }
    """
    assert list(dark_rules([sheet])) == [
        ":root:not([data-bs-theme]) { color: white }\n",
        ":root:not([data-bs-theme]) .a, :root:not([data-bs-theme]) .c {color:blue}\n",
    ]
