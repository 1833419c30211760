"""Reads the texts of the API's description from the Markdown files under `description/`.

`introduction.md` and the scenarios open the OpenAPI document. `calls/<tag>.md` describes a tag and then its calls, each
under its operation id as a heading. Paths in the files begin with `/v1`.
"""

from __future__ import annotations

import re
from importlib.resources import files
from string import Template

SCENARIOS = ("scenario-lab", "scenario-operator", "scenario-class")
_FILES = files("broker_api") / "description"
_CALL = re.compile(r"^## (\w+)\n+", re.MULTILINE)


def read_introduction(base_path: str, **values: object) -> str:
    """Return the document's own description; `values` replace the variables of `introduction.md`."""
    introduction = Template(_read("introduction")).substitute(values)
    return _under(base_path, "\n".join([introduction, *map(_read, SCENARIOS)]))


def read_tag(tag: str) -> str:
    """Return the description of a tag."""
    return _CALL.split(_read(f"calls/{tag}"))[0].strip()


def read_calls(base_path: str) -> dict[str, str]:
    """Return the description of each call by its operation id; a call that describes itself has none."""
    described: dict[str, str] = {}
    for file in (_FILES / "calls").iterdir():
        _, *sections = _CALL.split(_under(base_path, file.read_text(encoding="utf-8")))
        described |= {call: text.strip() for call, text in zip(sections[::2], sections[1::2], strict=True)}
    return described


def _read(name: str) -> str:
    return _FILES.joinpath(f"{name}.md").read_text(encoding="utf-8")


def _under(base_path: str, text: str) -> str:
    return text.replace("/v1/", f"{base_path}/")
