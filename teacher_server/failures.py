"""Failures of the server itself: what a caller is told of them, and those that are no
``Exception``.

A panic of native code is a ``BaseException``; a future that only expects an ``Exception``
would never be settled by one.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import traceback


class NativeFailureError(RuntimeError):
    """A failure that was no ``Exception``.

    It names only the kind: the text of a panic may quote what a caller sent.
    """


def is_ending(error: BaseException) -> bool:
    """Whether it ends a task or the program, and is no failure."""
    return isinstance(
        error, asyncio.CancelledError | GeneratorExit | KeyboardInterrupt | SystemExit
    )


def as_exception(error: BaseException) -> Exception:
    """The failure as an ``Exception`` that every future can carry, its traceback kept.

    Args:
        error: anything for which ``is_ending`` is false.
    """
    if isinstance(error, Exception) and not isinstance(error, StopIteration):
        return error
    failure = NativeFailureError(f"{type(error).__name__} was raised")
    return failure.with_traceback(error.__traceback__)


def forget_frames(error: BaseException | None) -> None:
    """Lets go of what the calls held through which an error came, such as a body: for those
    who keep the error when it has been answered. They keep no traceback either."""
    seen: set[int] = set()
    left = [error]
    while left:
        one = left.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        traceback.clear_frames(one.__traceback__)
        one.__traceback__ = None
        left += [one.__cause__, one.__context__]


def reported(error: BaseException, event: str, log: logging.Logger) -> str:
    """Logs a failure, and returns what a caller is told of it: its kind and a reference to
    the line of the log. The text of a failure is for operators alone.

    Args:
        error: anything for which ``is_ending`` is false.
        event: of the line in the log.
    """
    reference = secrets.token_hex(4)
    fields = {"fields": {"reference": reference}}
    log.error(event, exc_info=as_exception(error), extra=fields)
    return f"{type(error).__name__} (reference {reference} in the server's log)"
