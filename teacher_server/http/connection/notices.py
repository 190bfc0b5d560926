"""Log lines about what may happen thousands of times a second: one a minute, with a count."""

from __future__ import annotations

import asyncio
import logging

SECONDS = 60.0


class Notice:
    """One kind of line; ``text`` holds the place of the count as %d.

    The first time is logged at once, what follows once a minute.
    """

    def __init__(self, log: logging.Logger, text: str) -> None:
        self._log = log
        self._text = text
        self._count = 0
        self._timer: asyncio.TimerHandle | None = None

    def count(self) -> None:
        self._count += 1
        if self._timer is None:
            self._tell()

    def close(self) -> None:
        """Logs what was not told yet."""
        if self._timer is not None:
            self._timer.cancel()
        if self._count:
            self._log.warning(self._text, self._count)

    def _tell(self) -> None:
        self._timer = None
        if self._count:
            self._log.warning(self._text, self._count)
            self._count = 0
            self._timer = asyncio.get_running_loop().call_later(SECONDS, self._tell)
