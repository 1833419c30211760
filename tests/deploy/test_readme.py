"""The README's table of what can be set leaves nothing out."""

from __future__ import annotations

import re
from dataclasses import fields

import pytest

from broker_common.settings import Settings
from deploy.dev.processes import ROOT

README = (ROOT / "README.md").read_text()


def table_under(heading: str) -> str:
    """Return the first cells of the tables of a section, one a line."""
    (section,) = re.findall(rf"^## {heading}$(.*?)^## ", README, re.MULTILINE | re.DOTALL)
    return "\n".join(re.findall(r"^\|([^|]*)\|", section, re.MULTILINE))


@pytest.mark.parametrize("variable", sorted(field.name.upper() for field in fields(Settings)))
def test_every_setting_has_its_line(variable: str) -> None:
    assert f"`{variable}`" in table_under("Settings")
