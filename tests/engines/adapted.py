"""An engine and one adapter of it, started and closed as one for the conformance suite."""

from __future__ import annotations

from pathlib import Path

from teacher_server.engines.adapter import read_adapter
from teacher_server.engines.adapter_engine import AdapterEngine
from teacher_server.engines.base import Engine


class Adapted(AdapterEngine):
    """The adapter in ``directory`` on ``engine``, which was not started, beside ``others``."""

    def __init__(self, engine: Engine, directory: Path, *others: Path) -> None:
        adapters = {path.name: read_adapter(path) for path in (*others, directory)}
        engine.hold_adapters(adapters)
        super().__init__(engine, directory.name, adapters[directory.name], str(directory))
        self.whole = engine

    async def start(self) -> None:
        await self.whole.start()

    async def close(self) -> None:
        await self.whole.close()
