"""One LoRA adapter of an engine, as an engine of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from teacher_server.engines.adapter import Adapter
from teacher_server.engines.base import Engine, EngineDescription, Job, JobResult


class AdapterEngine:
    """One adapter of an engine as an engine of its own; implements ``base.Engine``.

    Args:
        engine: holds the adapter under ``name``; whoever made it starts and closes it.
        model: what the description names as the model.
    """

    def __init__(self, engine: Engine, name: str, adapter: Adapter, model: str) -> None:
        self._engine = engine
        self._name = name
        self._adapter = adapter
        self._model = model

    @property
    def description(self) -> EngineDescription:
        return replace(
            self._engine.description, model=self._model, adapter_digest=self._adapter.digest
        )

    def hold_adapters(self, adapters: Mapping[str, Adapter]) -> None:
        raise AssertionError("an adapter has no adapters of its own")

    async def start(self) -> None:
        """Does nothing: the engine loads its adapters when it starts."""

    async def score(self, job: Job) -> JobResult:
        """See ``base.Engine``."""
        return await self._engine.score(replace(job, adapter=self._name))

    def on_death(self, callback: Callable[[BaseException], None]) -> None:
        """See ``base.Engine``."""
        self._engine.on_death(callback)

    async def close(self) -> None:
        """Does nothing: closing the engine ends all of its adapters."""
