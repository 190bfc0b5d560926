"""Says that something which takes long goes on."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

log = logging.getLogger(__name__)

T = TypeVar("T")
EVERY_SECONDS = 3.0


def told(
    items: Iterable[T], what: str, *, total: int | None = None, every: float = EVERY_SECONDS
) -> Iterator[T]:
    """The items, and every few seconds a line of the log on how many there were.

    Args:
        what: the end of the line: ``rows are read``.
        total: how many there are, where that is known.
        every: seconds between two lines.
    """
    said = time.monotonic()
    for count, item in enumerate(items):
        if count and time.monotonic() - said >= every:
            log.info("%d%s %s", count, "" if total is None else f" of {total}", what)
            said = time.monotonic()
        yield item
