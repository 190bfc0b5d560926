"""The engine ``transformers``: a model of transformers in this process, on a CPU or one GPU."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from teacher_proto.errors import ConfigurationError, EngineError, LsmError
from teacher_proto.models.weights import weight_files
from teacher_proto.program.logit_treatment import read_logit_treatment

from teacher_server.engines.adapter import Adapter, check_base
from teacher_server.engines.base import EngineDescription, Job, JobResult, PassCount
from teacher_server.engines.checkpoint import resolve
from teacher_server.engines.faults import unavailable
from teacher_server.engines.probe import self_score
from teacher_server.engines.state import EngineState
from teacher_server.engines.torch.adapters import ModelAdapters
from teacher_server.engines.torch.engine_thread import EngineThread, Task
from teacher_server.engines.torch.head import LanguageModelHead
from teacher_server.engines.torch.loading import load_model, parse_device
from teacher_server.engines.torch.model_check import check_model
from teacher_server.engines.torch.packing import Packing
from teacher_server.engines.torch.projection import LinearProjection
from teacher_server.engines.torch.scorer import Scorer
from teacher_server.engines.torch.trunk import Trunk

logger = logging.getLogger(__name__)

DEFAULT_BATCH_TOKENS = 8192
# On a CPU a forward is fastest while its activations are small: 1024 tokens measured
# best. Only a longer sequence makes a larger forward.
CPU_PACKED_TOKENS = 1024
# Tokens whose keys and values a pass over shared prompts may hold, as a multiple of
# ``max_batch_tokens``.
CACHE_FACTOR = 2


class TransformersEngine:
    """Scores jobs on a causal language model; implements ``base.Engine``.

    One thread owns the model. Jobs that wait are packed into batches of at most
    ``max_batch_tokens`` padded tokens; a prompt with several continuations is
    read once. Only one engine may use a GPU at a time.

    Args:
        model: directory or hub id, safetensors.
        dtype: "auto" (the checkpoint's), "float32", "bfloat16" or "float16".
        device: "auto", "cpu", "cuda" or "cuda:N".
        max_batch_tokens: tokens of one forward; longer sequences are read in blocks.
        head_block_rows: rows of [rows, V] logits held at a time; None for 256, and on a CPU
            for those that 64 MiB hold where they are fewer.
        deterministic: every sequence runs alone with its own shape, so that its
            bytes depend on it alone; slower.
        max_length: tokens of prompt and continuation; None for the model's own.

    Raises:
        ConfigurationError: a number is out of range. The model is loaded by ``start``.
    """

    def __init__(
        self,
        model: str,
        *,
        dtype: str = "auto",
        device: str = "auto",
        max_batch_tokens: int = DEFAULT_BATCH_TOKENS,
        head_block_rows: int | None = None,
        deterministic: bool = False,
        max_length: int | None = None,
    ) -> None:
        for name, value in (
            ("max_batch_tokens", max_batch_tokens),
            ("head_block_rows", head_block_rows),
        ):
            if value is not None and value < 1:
                raise ConfigurationError(f"{value} is below 1", where=name)
        self._model = model
        self._dtype = dtype
        self._device = device
        self._max_batch_tokens = max_batch_tokens
        self._head_block_rows = head_block_rows
        self._deterministic = deterministic
        self._max_length = max_length
        self._adapters: dict[str, Adapter] = {}
        self._state = EngineState()
        self._engine_thread: EngineThread | None = None
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def description(self) -> EngineDescription:
        """What was loaded; only after ``start``."""
        return self._state.description

    def hold_adapters(self, adapters: Mapping[str, Adapter]) -> None:
        """See ``base.Engine``."""
        self._adapters = dict(adapters)

    async def start(self) -> None:
        """Loads the model, checks it and scores a probe.

        Raises:
            ConfigurationError: the model cannot be served as configured.
        """
        assert self._thread is None, "an engine starts once"
        self._loop = asyncio.get_running_loop()
        ready: asyncio.Future[EngineDescription] = self._loop.create_future()
        self._thread = threading.Thread(
            target=self._main, args=(ready,), name="transformers-engine", daemon=True
        )
        self._thread.start()
        try:
            self._state.set_description(await ready)
            await self_score(self)
        except LsmError as error:
            await self.close()
            if isinstance(error, EngineError):
                raise ConfigurationError(
                    f"it fails to score a probe: {error.what}",
                    where=f"model {self._model}",
                    fix=error.fix,
                ) from error
            raise

    async def score(self, job: Job) -> JobResult:
        """See ``base.Engine``."""
        if self._engine_thread is None or self._loop is None:
            raise unavailable(self._state.death)
        loop = self._loop
        future: asyncio.Future[JobResult] = loop.create_future()
        task = Task(job, lambda result: _post(loop, partial(_settle, future, result)))
        self._engine_thread.submit(task)
        try:
            return await future
        finally:
            if not task.finished:
                self._engine_thread.drop(task)

    def pass_count(self) -> PassCount:
        """See ``base.CountsPasses``."""
        return PassCount(0, 0) if self._engine_thread is None else self._engine_thread.count

    def on_death(self, callback: Callable[[BaseException], None]) -> None:
        """See ``base.Engine``."""
        self._state.on_death(callback)

    async def close(self) -> None:
        """Stops after the block that runs; unfinished jobs fail with TeacherUnavailableError."""
        if self._engine_thread is not None:
            self._engine_thread.close()
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join)
        self._engine_thread = None

    def _main(self, ready: asyncio.Future[EngineDescription]) -> None:
        """Runs in a thread of its own, which loads the model and alone uses it."""
        assert self._loop is not None
        loop = self._loop
        try:
            engine_thread, description = self._load()
        except BaseException as error:
            _post(loop, partial(_settle, ready, error))
            return
        self._engine_thread = engine_thread
        _post(loop, partial(_settle, ready, description))
        engine_thread.run()

    def _load(self) -> tuple[EngineThread, EngineDescription]:
        if self._deterministic:
            _make_deterministic(parse_device(self._device))
        for adapter in self._adapters.values():
            check_base(adapter, weight_files(resolve(self._model)))
        loaded = load_model(
            self._model, dtype=self._dtype, device=self._device, max_length=self._max_length
        )
        adapters = ModelAdapters(loaded.model, self._adapters)
        projection = LinearProjection(loaded.text.head, self._head_block_rows)
        head = LanguageModelHead(projection, read_logit_treatment(loaded.text_config))
        cacheable = loaded.cacheable and not loaded.alone
        trunk = Trunk(loaded.text.decoder, loaded.text_config, self._max_batch_tokens, cacheable)
        alone = loaded.alone or self._deterministic
        packing = Packing(
            tokens=min(self._max_batch_tokens, CPU_PACKED_TOKENS)
            if trunk.device.type == "cpu"
            else self._max_batch_tokens,
            cached_tokens=CACHE_FACTOR * self._max_batch_tokens,
            share_prompts=cacheable,
            prefix_trees=cacheable and loaded.full_attention,
            alone=alone,
        )
        packing = check_model(loaded.model, trunk, head, packing)
        description = EngineDescription(
            engine="transformers",
            model=self._model,
            weights_digest=loaded.weights_digest,
            dtype=str(trunk.dtype).removeprefix("torch."),
            quantization=loaded.quantization,
            adapter_digest="",
            vocabulary_size=projection.vocabulary_size,
            max_length=loaded.max_length,
            deterministic=self._deterministic,
            pass_tokens=packing.tokens,
        )
        scorer = Scorer(trunk, head, adapters.select)
        return EngineThread(scorer, packing, self._died), description

    def _died(self, error: BaseException) -> None:
        """Called in the engine's thread."""
        assert self._loop is not None
        _post(self._loop, partial(self._state.die, error))


def _post(loop: asyncio.AbstractEventLoop, call: Callable[[], None]) -> None:
    """Runs ``call`` on the loop; on a loop that has ended nobody waits for it any more."""
    try:
        loop.call_soon_threadsafe(call)
    except RuntimeError:
        if not loop.is_closed():
            raise
        logger.debug("the event loop is closed; a result was dropped")


def _settle(future: asyncio.Future[Any], result: Any) -> None:
    if future.done():
        return
    if isinstance(result, BaseException):
        future.set_exception(result)
    else:
        future.set_result(result)


def _make_deterministic(device: torch.device) -> None:
    """Asks CUDA for its reproducible kernels; those of a CPU are reproducible for equal shapes."""
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
