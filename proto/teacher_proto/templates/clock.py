"""The clock of chat templates: what ``strftime_now`` prints when a conversation is rendered.

A template that transformers has compiled has a clock of its own, and arguments cannot
replace it in every version. ``follow_clock`` gives it this one, once; ``clock`` sets it
for the rendering inside, in its own thread or task alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from datetime import datetime
from typing import Any

CLOCK_NAME = "strftime_now"
_NOW: ContextVar[datetime | None] = ContextVar("now", default=None)


def strftime_now(form: str) -> str:
    """The time of ``clock``, or of the machine outside of one, as ``strftime`` writes it."""
    return (_NOW.get() or datetime.now()).strftime(form)


def follow_clock(template: Any) -> None:
    """Makes a compiled jinja template print the time of ``clock``.

    Args:
        template: as transformers' ``_compile_jinja_template`` returns it, which compiles
            each text once.
    """
    template.environment.globals[CLOCK_NAME] = strftime_now


@contextlib.contextmanager
def clock(now: str) -> Iterator[None]:
    """Templates rendered inside print ``now``.

    Args:
        now: naive, ISO 8601, such as ``2026-11-29T05:53:12``; empty for the machine's clock.
    """
    token = _NOW.set(datetime.fromisoformat(now) if now else None)
    try:
        yield
    finally:
        _NOW.reset(token)
