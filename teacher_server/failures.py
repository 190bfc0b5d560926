"""Failures that are no ``Exception``: a panic of native code is a ``BaseException``.

A future that only expects an ``Exception`` would never be settled by one.
"""

from __future__ import annotations

import asyncio


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
