"""The keys of an issuer, kept and renewed so that no request waits long for the issuer."""

from __future__ import annotations

import logging
import math
import threading
from typing import TYPE_CHECKING

from broker_common.adapters.oidc_issuer import IssuerError
from broker_common.core.errors import SignInUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable

    from broker_common.adapters.oidc_issuer import Keys
    from broker_common.core.ports import Clock

RENEW_SEC = 300.0
"""Keys of this age are renewed in the background, at the next token."""
OLD_SEC = 600.0
"""For keys of this age (no token came for some time) a request waits for newer ones, `WAIT_SEC` at most."""
SPACING_SEC = 60.0
"""Between the begins of two fetches, also if unknown keys are asked for, or the issuer does not answer."""
FIRST_SPACING_SEC = 5.0
"""The same while no key is known at all."""
WAIT_SEC = 1.0
"""From the begin of a fetch, requests that need it wait for so long at most."""

_log = logging.getLogger(__name__)


class IssuerKeys:
    """The last keys that an issuer told. Thread-safe; one thread at a time asks the issuer, and no request does.

    While the issuer does not answer, or answers nonsense, the known keys stay in use. A key that the issuer has removed
    is refused at the latest `OLD_SEC` after that, if the issuer answers within `WAIT_SEC`.
    """

    def __init__(self, fetch: Callable[[], Keys], clock: Clock, *, waiting: int) -> None:
        """Let at most `waiting` requests at once wait for a fetch."""
        self._fetch = fetch
        self._clock = clock
        self._changed = threading.Condition()
        self._places = waiting
        self._fetching = False
        self._began_at = -math.inf
        self._known: Keys | None = None
        self._known_at = -math.inf
        self._trouble: str | None = None

    def prepare(self) -> None:
        """Begin to fetch the keys if they are not known, and do not wait."""
        self._begin_fetch()

    def current(self) -> Keys:
        """Return the known keys. Raises `SignInUnavailable` if none are known yet."""
        age = self._clock.monotonic() - self._known_at
        if age >= RENEW_SEC:
            self._begin_fetch()
            if age >= OLD_SEC:
                self._wait()
        known = self._known
        if known is None:
            raise SignInUnavailable("the issuer of the token does not answer, and its keys are not known yet")
        return known

    def newer(self, known: Keys) -> Keys | None:
        """Return keys that are newer than `known`, for a token whose key is not among them; None if there are none.

        Asks the issuer at most once in `SPACING_SEC`. Raises `SignInUnavailable` while the issuer is being asked.
        """
        if self._known is known:
            self._begin_fetch()
            self._wait()
        if self._known is not known:
            return self._known
        if self._fetching:
            raise SignInUnavailable("the key of the token is not known yet: the issuer is being asked", retry_after=1)
        return None

    def _begin_fetch(self) -> None:
        with self._changed:
            now = self._clock.monotonic()
            spacing = FIRST_SPACING_SEC if self._known is None else SPACING_SEC
            if self._fetching or now - self._began_at < spacing:
                return
            self._began_at = now
            threading.Thread(target=self._renew, daemon=True).start()
            self._fetching = True

    def _wait(self) -> None:
        with self._changed:
            left = self._began_at + WAIT_SEC - self._clock.monotonic()
            if self._fetching and left > 0 and self._places > 0:
                self._places -= 1
                self._changed.wait_for(lambda: not self._fetching, left)
                self._places += 1

    def _renew(self) -> None:
        keys, trouble = None, None
        try:
            keys = self._fetch()
        except IssuerError as error:
            trouble = str(error)
        except Exception:  # noqa: BLE001 - nobody may ever wait for a fetch that has ended
            _log.exception("the issuer's keys could not be read")
            trouble = "a fault of the broker"
        with self._changed:
            if keys is not None:
                self._known, self._known_at = keys, self._began_at
            before, self._trouble = self._trouble, trouble
            self._fetching = False
            self._changed.notify_all()
        # Once, and not once a minute.
        if trouble is not None and trouble != before:
            serve_on = "no JWT can be checked" if self._known is None else "the known keys serve on"
            _log.warning("the issuer's keys could not be renewed, %s: %s", serve_on, trouble)
        elif trouble is None and before is not None:
            _log.info("the issuer's keys were renewed")
