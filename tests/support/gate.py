"""Stops a model's forward where a test wants it, by events and not by time."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

DEADLINE = 60.0


class Gate:
    """Every forward of the gated modules waits here while the gate is shut.

    Attributes:
        shapes: of ``input_ids`` of each forward that reached the gate.
        fails: gives the exception a forward of this shape shall raise, or None.
    """

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []
        self.fails: Callable[[tuple[int, ...]], Exception | None] = lambda shape: None
        self._open = threading.Event()
        self._open.set()
        self._reached = threading.Semaphore(0)

    def shut(self) -> None:
        self._open.clear()

    def open(self) -> None:
        self._open.set()

    async def reached(self) -> None:
        """Returns when one more forward has come to the gate."""
        assert await asyncio.to_thread(self._reached.acquire, timeout=DEADLINE), "no forward came"

    def forget(self) -> None:
        """Forgets the forwards that came so far."""
        self.shapes.clear()
        while self._reached.acquire(blocking=False):
            pass

    def pass_through(self, shape: tuple[int, ...]) -> None:
        self.shapes.append(shape)
        self._reached.release()
        assert self._open.wait(timeout=DEADLINE), "the gate was never opened"
        failure = self.fails(shape)
        if failure is not None:
            raise failure


@contextmanager
def gated(module_type: type[torch.nn.Module]) -> Iterator[Gate]:
    """A gate in front of every forward of this type of module off the main thread.

    Forwards of the main thread, such as a reference's, pass unseen.
    """
    gate = Gate()

    original = module_type.forward

    def forward(self: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        if threading.current_thread() is not threading.main_thread():
            gate.pass_through(tuple(kwargs["input_ids"].shape))
        return original(self, *args, **kwargs)

    module_type.forward = forward  # type: ignore[method-assign]
    try:
        yield gate
    finally:
        gate.open()
        module_type.forward = original  # type: ignore[method-assign]
