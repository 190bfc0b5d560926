"""What every engine keeps beside its model: what it has loaded, and whether it died."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from teacher_server.engines.base import EngineDescription


class EngineState:
    """The description and the death of one engine, which answers for both from here.

    All methods are called on the engine's event loop.

    Attributes:
        death: what the engine died of; None while it lives.
    """

    def __init__(self) -> None:
        self.death: BaseException | None = None
        self._description: EngineDescription | None = None
        self._callbacks: list[Callable[[BaseException], None]] = []

    @property
    def description(self) -> EngineDescription:
        """What was loaded; only once ``start`` has loaded it."""
        assert self._description is not None, "start() has not returned"
        return self._description

    def set_description(self, description: EngineDescription) -> None:
        self._description = description

    def on_death(self, callback: Callable[[BaseException], None]) -> None:
        """See ``base.Engine``; the callback of an engine that is dead already comes soon."""
        if self.death is None:
            self._callbacks.append(callback)
        else:
            asyncio.get_running_loop().call_soon(callback, self.death)

    def die(self, cause: BaseException) -> None:
        """Announces the engine's death, once: a later cause is ignored."""
        if self.death is not None:
            return
        self.death = cause
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback(cause)
