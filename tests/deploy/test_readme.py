"""The README's table of jobs leaves nothing out."""

from __future__ import annotations

import re

import pytest

from broker_common.core.job_registry import JOBS
from deploy.dev.processes import ROOT

README = (ROOT / "README.md").read_text()


def table_under(heading: str) -> str:
    """Return the first cells of the tables of a section, one a line."""
    (section,) = re.findall(rf"^## {heading}$(.*?)^## ", README, re.MULTILINE | re.DOTALL)
    return "\n".join(re.findall(r"^\|([^|]*)\|", section, re.MULTILINE))


@pytest.mark.parametrize("job", JOBS)
def test_every_job_has_its_line(job: str) -> None:
    assert re.search(rf"^ {job} $", table_under("How it works"), re.MULTILINE)
