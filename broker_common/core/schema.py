"""Which records this release can read and write, and which release an upgrade has to be finished for.

A release reads the schema that the next one writes. So two that follow each other can run side by side.
"""

from __future__ import annotations

WRITTEN = 1
"""The schema of what this release writes; a record without a number has it, too."""
KNOWN = 2
"""The newest schema that this release reads. It leaves newer records as they are."""
UPGRADE = 1
"""Counts the releases that keep what the one before could not; `broker upgrade finish` writes it to the table."""
