"""The embedded engine: a transformers model on the CPU or one GPU, in this process."""

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

from teacher_server.engines.adapter import Adapter, check_base
from teacher_server.engines.base import EngineDescription, Job, JobResult, PassCount
from teacher_server.engines.torch.adapters import ModelAdapters
from teacher_server.engines.torch.engine_thread import EngineThread, Task, unavailable
from teacher_server.engines.torch.head import LanguageModelHead, LogitTreatment
from teacher_server.engines.torch.loading import load_model, parse_device, resolve, weight_files
from teacher_server.engines.torch.packing import Packing
from teacher_server.engines.torch.probe import check_model, check_self_score, self_score_job
from teacher_server.engines.torch.scorer import Scorer
from teacher_server.engines.torch.trunk import Trunk

logger = logging.getLogger(__name__)

DEFAULT_BATCH_TOKENS = 8192
DEFAULT_HEAD_CHUNK_ROWS = 256
# A CPU's forward is fastest while its activations are small: 1024 tokens measured
# best. Only a longer sequence makes a larger one.
CPU_PACKED_TOKENS = 1024
# Keys and values that copies of shared prompts may fill, over the token budget.
CACHE_FACTOR = 2


class TransformersEngine:
    """Scores jobs on a causal language model; implements ``base.Engine``.

    One thread owns the model. Jobs that wait are packed into batches of at most
    ``max_batch_tokens`` padded tokens; a prompt with several continuations is
    run once. A GPU is used by one engine at a time.

    Args:
        model: directory or hub id, safetensors.
        dtype: "auto" (the checkpoint's), "float32", "bfloat16" or "float16".
        device: "auto", "cpu", "cuda" or "cuda:N".
        max_batch_tokens: tokens of one forward; longer sequences run in chunks.
        head_chunk_rows: rows of [rows, V] logits held at a time.
        deterministic: every sequence runs alone with its own shape, so that its
            bytes depend on it alone; slower.
        max_length: tokens of prompt and continuation; None for the model's own.

    Raises:
        ConfigurationError: a number is out of range; loading is ``start``'s.
    """

    def __init__(
        self,
        model: str,
        *,
        dtype: str = "auto",
        device: str = "auto",
        max_batch_tokens: int = DEFAULT_BATCH_TOKENS,
        head_chunk_rows: int = DEFAULT_HEAD_CHUNK_ROWS,
        deterministic: bool = False,
        max_length: int | None = None,
    ) -> None:
        for name, value in (
            ("max_batch_tokens", max_batch_tokens),
            ("head_chunk_rows", head_chunk_rows),
        ):
            if value < 1:
                raise ConfigurationError(f"{value} is below 1", where=name)
        self._model = model
        self._dtype = dtype
        self._device = device
        self._max_batch_tokens = max_batch_tokens
        self._head_chunk_rows = head_chunk_rows
        self._deterministic = deterministic
        self._max_length = max_length
        self._adapters: dict[str, Adapter] = {}
        self._description: EngineDescription | None = None
        self._engine_thread: EngineThread | None = None
        self._python_thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._death: BaseException | None = None
        self._death_callbacks: list[Callable[[BaseException], None]] = []

    @property
    def description(self) -> EngineDescription:
        """What was loaded; only after ``start``."""
        assert self._description is not None, "start() has not returned"
        return self._description

    def hold_adapters(self, adapters: Mapping[str, Adapter]) -> None:
        """See ``base.Engine``."""
        self._adapters = dict(adapters)

    async def start(self) -> None:
        """Loads the model, checks it and scores a probe.

        Raises:
            ConfigurationError: the model cannot be served as configured.
        """
        assert self._python_thread is None, "an engine starts once"
        self._loop = asyncio.get_running_loop()
        ready: asyncio.Future[None] = self._loop.create_future()
        self._python_thread = threading.Thread(
            target=self._main, args=(ready,), name="transformers-engine", daemon=True
        )
        self._python_thread.start()
        try:
            await ready
            description = self.description
            probe = self_score_job(description.vocabulary_size, description.max_length)
            check_self_score(await self.score(probe))
        except LsmError as error:
            await self.close()
            if isinstance(error, EngineError):
                raise ConfigurationError(
                    f"it fails to score a probe: {error.what}", where=f"model {self._model}"
                ) from error
            raise

    async def score(self, job: Job) -> JobResult:
        """See ``base.Engine``."""
        if self._engine_thread is None or self._loop is None:
            raise unavailable(self._death)
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
        if self._death is not None and self._loop is not None:
            self._loop.call_soon(callback, self._death)
        else:
            self._death_callbacks.append(callback)

    async def close(self) -> None:
        """Stops at the next chunk; jobs not finished fail with TeacherUnavailableError."""
        if self._engine_thread is not None:
            self._engine_thread.close()
        if self._python_thread is not None:
            await asyncio.to_thread(self._python_thread.join)
        self._engine_thread = None

    def _main(self, ready: asyncio.Future[None]) -> None:
        """The engine's thread: the model lives and dies in it."""
        assert self._loop is not None
        loop = self._loop
        try:
            engine_thread = self._load()
        except BaseException as error:
            _post(loop, partial(_settle, ready, error))
            return
        self._engine_thread = engine_thread
        _post(loop, partial(_settle, ready, None))
        engine_thread.run()

    def _load(self) -> EngineThread:
        if self._deterministic:
            _make_deterministic(parse_device(self._device))
        for adapter in self._adapters.values():
            check_base(adapter, weight_files(resolve(self._model)))
        loaded = load_model(
            self._model, dtype=self._dtype, device=self._device, max_length=self._max_length
        )
        adapters = ModelAdapters(loaded.model, self._adapters)
        treatment = LogitTreatment.of(loaded.text_config)
        head = LanguageModelHead(
            loaded.model.get_output_embeddings(), treatment, self._head_chunk_rows
        )
        cacheable = loaded.cacheable and not loaded.alone
        trunk = Trunk(
            loaded.model.base_model, loaded.text_config, self._max_batch_tokens, cacheable
        )
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
        self._description = EngineDescription(
            engine="transformers",
            model=self._model,
            weights_digest=loaded.weights_digest,
            dtype=str(loaded.model.dtype).removeprefix("torch."),
            quantization=loaded.quantization,
            adapter_digest="",
            vocabulary_size=head.vocabulary_size,
            max_length=loaded.max_length,
            deterministic=self._deterministic,
            pass_tokens=packing.tokens,
        )
        return EngineThread(Scorer(trunk, head, adapters.select), packing, self._die)

    def _die(self, error: BaseException) -> None:
        """Called in the engine's thread."""
        assert self._loop is not None
        _post(self._loop, partial(self._announce_death, error))

    def _announce_death(self, error: BaseException) -> None:
        self._death = error
        callbacks, self._death_callbacks = self._death_callbacks, []
        for callback in callbacks:
            callback(error)


def _post(loop: asyncio.AbstractEventLoop, call: Callable[[], None]) -> None:
    """Runs ``call`` on the loop; a loop that has ended has nobody left to tell."""
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
    """Asks CUDA for its reproducible kernels; a CPU's are, for equal shapes."""
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
