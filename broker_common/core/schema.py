"""The schemas of records that this release reads and writes, and the number of its upgrade.

A release also reads the schema that the next release writes. So two consecutive releases can run side by side.
"""

from __future__ import annotations

WRITTEN = 1
"""The schema that this release writes. A record without a number has this one, too."""
KNOWN = 2
"""The newest schema that this release reads. It never changes a record of a newer one."""
UPGRADE = 2
"""Grows with each release that stores what its predecessor cannot. `broker upgrade finish` writes it to the table."""
