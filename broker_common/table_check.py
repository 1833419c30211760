"""The check of the table before an API or a worker starts: a fault is one line on stderr, and the exit code is 2."""

from __future__ import annotations

from typing import TYPE_CHECKING

from broker_common.core.errors import LayoutMismatch, StoreMisconfigured, StoreUnavailable
from broker_common.services import build_store
from broker_common.startup import refuse

if TYPE_CHECKING:
    from broker_common.settings import Settings


def check_table(settings: Settings) -> None:
    """End the process if the table is missing, has another layout, or refuses our credentials.

    A table that cannot be reached does not keep the process from starting.
    """
    try:
        build_store(settings).ping()
    except (LayoutMismatch, StoreMisconfigured) as error:
        refuse(error.message)
    except StoreUnavailable:
        return
