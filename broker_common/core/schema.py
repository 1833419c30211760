"""The schemas of records that this release reads and writes, and the number of its upgrade.

A release also reads the schema that the next release writes. So two consecutive releases can run side by side.
"""

from __future__ import annotations

from enum import IntEnum

WRITTEN = 1
"""The schema that this release writes. A record without a number has this one, too."""
KNOWN = 2
"""The newest schema that this release reads. It never changes a record of a newer one."""


class Upgrade(IntEnum):
    """The upgrades that brought what processes of the release before cannot keep.

    What one brought is in use once an operator has finished it: then no such process runs any more.
    """

    FACTS = 1
    """Facts of every change, records of accounts, flags of quarantine and cooling."""
    LINE = 2
    """Places in the line, and reservations."""
    WEBHOOKS = 3
    """Marks of the facts that no webhook has told yet."""


UPGRADE = max(Upgrade)
"""The number of this release's upgrade. `broker upgrade finish` writes it to the table."""
