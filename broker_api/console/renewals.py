"""Exchanges refresh tokens of the issuer, and remembers for a moment what they were exchanged for.

Many issuers take each refresh token once. Other tabs of a browser may still come with the one of before.
"""

from __future__ import annotations

import threading
from concurrent.futures import Future, wait
from typing import TYPE_CHECKING, NamedTuple

from broker_api.console.memory import Memory
from broker_common.adapters.oidc_sign_in import NotRenewed, SignInFailed

if TYPE_CHECKING:
    from collections.abc import Callable

    from broker_common.adapters.oidc_sign_in import Granted
    from broker_common.core.ports import Clock

KEPT_SEC = 60
"""For so long this process knows what a refresh token was exchanged for, or that it was refused."""
SPACING_SEC = 5
"""After a failure the issuer is not asked again for so long."""
WAIT_SEC = 10
"""So long a request waits for an answer that another one asked for. The issuer's own limits are shorter."""
_MOST_WAITING = 3
"""Requests that wait so. The other threads serve pages."""
_MOST = 1000
"""How many refresh tokens are remembered."""
_SLOW = "The issuer is slow. Try again in a moment."


class Renewed(NamedTuple):
    """What the issuer gave, and when it was asked (Unix seconds)."""

    at: int
    granted: Granted


class Renewals:
    """Exchanges refresh tokens, each by one request at a time. Thread-safe."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._running: dict[str, Future[Renewed]] = {}
        self._waiting = threading.BoundedSemaphore(_MOST_WAITING)
        self._granted: Memory[Granted] = Memory(clock, longest_sec=KEPT_SEC, most_size=_MOST)
        self._refused: Memory[bool] = Memory(clock, longest_sec=KEPT_SEC, most_size=_MOST)
        self._failed: Memory[str] = Memory(clock, longest_sec=SPACING_SEC - 1, most_size=_MOST)
        self._ended: Memory[bool] = Memory(clock, longest_sec=KEPT_SEC, most_size=_MOST)

    def renew(self, refresh_token: str, ask: Callable[[str], Granted], *, waits: bool) -> Renewed | None:
        """Return what the issuer gives for `refresh_token`, by `ask`, or what it gave a moment ago.

        None if another request asks for it now and the caller does not want to wait. Raises `NotRenewed` and
        `SignInFailed`, also what was raised a moment ago.
        """
        with self._lock:
            self._look_back(refresh_token)
            known = self._granted.get(refresh_token, "")
            if known is not None:
                return self._unless_ended(refresh_token, Renewed(*known))
            running = self._running.get(refresh_token)
            is_first = running is None
            if running is None:
                running = self._running[refresh_token] = Future()
        if is_first:
            self._ask(refresh_token, ask, running)
        elif not waits and not running.done():
            return None
        else:
            self._wait(running)
        return self._unless_ended(refresh_token, running.result())

    def end(self, refresh_token: str) -> None:
        """Forget a person who signs out: an answer that is late must not sign them in again."""
        known = self._granted.get(refresh_token, "")
        following = known[1].refresh_token if known is not None else None
        for each in {refresh_token, following} - {None}:
            self._granted.drop(str(each), "")
            self._ended.put(str(each), "", True, at=self._clock.now())  # noqa: FBT003 - what is kept is of no matter

    def _wait(self, running: Future[Renewed]) -> None:
        if not self._waiting.acquire(blocking=False):
            raise SignInFailed(_SLOW)
        try:
            wait([running], timeout=WAIT_SEC)
        finally:
            self._waiting.release()
        if not running.done():
            raise SignInFailed(_SLOW)

    def _look_back(self, refresh_token: str) -> None:
        if self._refused.get(refresh_token, "") is not None:
            raise NotRenewed
        failed = self._failed.get(refresh_token, "")
        if failed is not None:
            raise SignInFailed(failed[1])

    def _ask(self, refresh_token: str, ask: Callable[[str], Granted], running: Future[Renewed]) -> None:
        now = self._clock.now()
        try:
            granted = ask(refresh_token)
        except NotRenewed as error:
            self._refused.put(refresh_token, "", True, at=now)  # noqa: FBT003 - what is kept is of no matter
            running.set_exception(error)
        except SignInFailed as error:
            self._failed.put(refresh_token, "", str(error), at=self._clock.now())
            running.set_exception(error)
        except BaseException as error:
            running.set_exception(error)
            raise
        else:
            self._granted.put(refresh_token, "", granted, at=now)
            running.set_result(Renewed(now, granted))
        finally:
            with self._lock:
                del self._running[refresh_token]

    def _unless_ended(self, refresh_token: str, found: Renewed) -> Renewed:
        for each in (refresh_token, found.granted.refresh_token):
            if each is not None and self._ended.get(each, "") is not None:
                raise NotRenewed
        return found
