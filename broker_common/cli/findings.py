"""What the commands that look at many parts find, and how it is printed."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import click

from broker_common.cli.output import print_json

if TYPE_CHECKING:
    from collections.abc import Iterable

_VERDICTS = {True: "OK", False: "FAIL", None: "--"}


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found about one part: what is right, or what to do."""

    part: str
    ok: bool | None
    """None if it was left out, because nobody asked for it."""
    text: str


def print_findings(findings: Iterable[Finding], *, as_json: bool) -> None:
    """Print findings as they come, and exit 1 if one is bad."""
    is_all_right = True
    for finding in findings:
        if as_json:
            print_json([asdict(finding)])
        else:
            click.echo(f"{finding.part:<9} {_VERDICTS[finding.ok]:<4} {finding.text}")
        is_all_right = is_all_right and finding.ok is not False
    sys.exit(0 if is_all_right else 1)
