"""The files of pages: with a version in each address, so that browsers keep them for long and never see an old one."""

from __future__ import annotations

import hashlib
import re
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flask import Blueprint, Response, g

if TYPE_CHECKING:
    from collections.abc import Iterable

    from flask import Flask

STATIC_PATH = "/static/<version>"
"""In the path, so that scripts find the scripts that they import in the same version. Bootstrap's path follows it."""
FILES = frozenset({"static", "files.dark", "bootstrap.static"})
"""The endpoints of files, which are the same for everybody."""
_FOR_A_YEAR = "public, max-age=31536000, immutable"
_ASK_EACH_TIME = "no-cache"
_DARK = '[data-bs-theme="dark"]'
_SYSTEM_IS_DARK = ":root:not([data-bs-theme])"
"""A page in which no script has set a theme."""
_COMMENT = re.compile(r"/\*.*?\*/", re.DOTALL)
_RULE = re.compile(r"([^{}]+)(\{[^{}]*\})")


def register_files(app: Flask) -> None:
    """Put the version into the addresses of files, and serve the dark colours for browsers without scripts.

    Needs Bootstrap, of whose style sheet the dark colours are a part.
    """
    own = sorted(path for path in Path(app.static_folder or "").rglob("*") if path.is_file())
    bootstrap = Path(app.blueprints["bootstrap"].static_folder or "")
    sheets = [bootstrap / "css" / "bootstrap.min.css", *(path for path in own if path.suffix == ".css")]
    dark = "".join(dark_rules(path.read_text() for path in sheets))
    versions = {
        "static": _digest(b"".join(path.name.encode() + path.read_bytes() for path in own)),
        "files.dark": _digest(dark.encode()),
        "bootstrap.static": version("bootstrap-flask"),
    }

    @app.url_defaults
    def add_version(endpoint: str, values: dict[str, Any]) -> None:
        if endpoint in versions:
            values.setdefault("version", versions[endpoint])

    @app.url_value_preprocessor
    def take_version(endpoint: str | None, values: dict[str, Any] | None) -> None:
        if endpoint in versions:
            g.is_current_file = (values or {}).pop("version", None) == versions[endpoint]

    blueprint = Blueprint("files", __name__)

    @blueprint.get(f"{STATIC_PATH}/system-dark.css", endpoint="dark")
    def dark_colours() -> Response:
        return Response(dark, mimetype="text/css")

    app.register_blueprint(blueprint)


def caching_of_file() -> str:
    """Return `Cache-Control` for a file. Two releases may run at once, so another version than ours is not kept."""
    return _FOR_A_YEAR if g.is_current_file else _ASK_EACH_TIME


def dark_rules(sheets: Iterable[str]) -> Iterable[str]:
    """Yield the rules of `sheets` for the dark theme, for pages in which no script sets a theme."""
    for sheet in sheets:
        for found in _RULE.finditer(_COMMENT.sub("", sheet).replace("[data-bs-theme=dark]", _DARK)):
            selectors = [each.strip() for each in found.group(1).split(",")]
            of_page = [_SYSTEM_IS_DARK + each.removeprefix(_DARK) for each in selectors if each.startswith(_DARK)]
            if of_page:
                yield f"{', '.join(of_page)} {found.group(2)}\n"


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
