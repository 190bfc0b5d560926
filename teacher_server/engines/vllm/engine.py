"""The engine ``vllm``: vLLM computes, and rows stay arrays from its workers to the reply.

This is the only file of the package that imports vLLM; it is written against 0.32. It
uses five parts of vLLM that vLLM does not promise to keep:

    AsyncMPClient         the client of its engine cores: token ids go in and outputs
                          come back, without the tokenizer and the text of AsyncLLM
    worker_extension_cls  adds ``RowScoring`` to each worker
    GPUModelRunner._get_prompt_logprobs_dict (the V1 runner, which CPUs use too)
                          is replaced in each worker: it sees the hidden states of
                          every step, and what it returns travels as tensors
    scheduler_cls         ``SpanScheduler`` reads no scored token from the prefix cache
    shm_broadcast         on a CPU it spins for milliseconds and not for a second,
                          since it would spin on the cores that compute

None of them is needed once vLLM itself returns the top K of a span of the prompt as
tensors and reads the prefix cache up to that span. Before the pin of vLLM in
pyproject.toml moves to a new minor release, tests/engines/test_vllm*.py have to pass.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
import time
from collections.abc import Callable, Mapping
from typing import Any, get_args

from teacher_proto.errors import ConfigurationError, EngineError, LsmError
from teacher_proto.models.weights import weight_files, weights_digest

# vLLM reads these when it is imported, and so do its worker processes: logs go to stderr,
# nothing is sent anywhere, and the runner that is extended here is the one that runs.
os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
os.environ["VLLM_NO_USAGE_STATS"] = "1"
os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "0"
os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
os.environ.setdefault("VLLM_WORKER_SHUTDOWN_TIMEOUT_SECONDS", "1")

from teacher_proto.processes.vllm_children import (
    collected_failures,
    end_with_parent,
    report_failures,
    spin_briefly,
    why_not_started,
)
from vllm import SamplingParams
from vllm.config import VllmConfig
from vllm.config.lora import MaxLoRARanks
from vllm.distributed import get_pp_group, get_tp_group
from vllm.distributed.device_communicators import shm_broadcast
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.lora.request import LoRARequest
from vllm.platforms import current_platform
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import EngineCoreRequest
from vllm.v1.engine.core_client import AsyncMPClient, EngineCoreClient
from vllm.v1.executor import Executor
from vllm.v1.outputs import LogprobsTensors

from teacher_server.engines.adapter import Adapter, check_base
from teacher_server.engines.base import EngineDescription, Job, JobResult, ScoredSpan
from teacher_server.engines.checkpoint import check_dtype, resolve
from teacher_server.engines.faults import unavailable
from teacher_server.engines.probe import self_score
from teacher_server.engines.state import EngineState
from teacher_server.engines.vllm.options import checkpoint_dtype, engine_arguments, refused
from teacher_server.engines.vllm.requests import PendingRequests
from teacher_server.engines.vllm.runner import CacheReader, Place, install
from teacher_server.engines.vllm.wire import RowPlan, job_result

report_failures()
if current_platform.is_cpu():
    spin_briefly(shm_broadcast)

DEFAULT_BATCH_TOKENS = 8192
SHUTDOWN_SECONDS = 10.0
HERE = "teacher_server.engines.vllm.engine"


class VllmEngine:
    """Scores jobs on a model that vLLM runs; implements ``base.Engine``.

    vLLM's engine core and workers are processes of their own. Each span of a job is one
    request; vLLM batches the requests that wait, and shares prompts through its prefix
    cache.

    Args:
        model: directory or hub id, safetensors.
        dtype: "auto" (the checkpoint's), "float32", "bfloat16" or "float16".
        device: "auto" or the kind that this build of vLLM runs on; CUDA_VISIBLE_DEVICES
            chooses among GPUs.
        max_batch_tokens: tokens of one step; longer sequences take several steps.
        deterministic: every sequence is read alone, so that its bytes depend on it
            alone; slower.
        max_length: tokens of prompt and continuation; None for the model's own.
        options: engine arguments of vLLM, such as ``tensor_parallel_size``.

    Raises:
        ConfigurationError: the dtype is unknown, or vLLM does not run on the device. The
            model is loaded by ``start``.
    """

    def __init__(
        self,
        model: str,
        *,
        dtype: str = "auto",
        device: str = "auto",
        max_batch_tokens: int = DEFAULT_BATCH_TOKENS,
        deterministic: bool = False,
        max_length: int | None = None,
        options: dict[str, Any] | None = None,
    ) -> None:
        if device not in ("auto", current_platform.device_type):
            raise ConfigurationError(
                f"this vLLM runs on {current_platform.device_type}, not on {device!r}",
                where="engine.device",
                fix="use auto, and CUDA_VISIBLE_DEVICES to choose among GPUs",
            )
        check_dtype(dtype)
        self._model = model
        self._dtype = dtype
        self._max_batch_tokens = max_batch_tokens
        self._deterministic = deterministic
        self._max_length = max_length
        self._options = options or {}
        self._adapters: dict[str, Adapter] = {}
        self._loras: dict[str, LoRARequest] = {}
        self._state = EngineState()
        self._client: AsyncMPClient | None = None
        self._requests: PendingRequests | None = None
        self._reader: asyncio.Task[None] | None = None

    @property
    def description(self) -> EngineDescription:
        """What was loaded; only after ``start``."""
        return self._state.description

    @property
    def in_flight(self) -> int:
        """Requests that were given to vLLM and neither answered nor given up."""
        return 0 if self._requests is None else len(self._requests)

    def hold_adapters(self, adapters: Mapping[str, Adapter]) -> None:
        """See ``base.Engine``. The names keep the adapters apart in vLLM's prefix cache."""
        self._adapters = dict(adapters)
        self._loras = {
            name: LoRARequest(name, number, str(adapter.directory))
            for number, (name, adapter) in enumerate(adapters.items(), 1)
        }

    async def start(self) -> None:
        """Starts vLLM's processes and scores a probe.

        Raises:
            ConfigurationError: the model cannot be served as configured.
        """
        assert self._client is None, "an engine starts once"
        directory = await asyncio.to_thread(resolve, self._model)
        for adapter in self._adapters.values():
            await asyncio.to_thread(check_base, adapter, weight_files(directory))
        config = await asyncio.to_thread(self._configure, str(directory))
        client = await asyncio.to_thread(self._launch, config)
        self._client = client
        self._requests = PendingRequests(client, config.parallel_config.data_parallel_size)
        self._reader = asyncio.create_task(self._read(self._requests))
        try:
            sizes = await client.collective_rpc_async("install_row_scoring")
            for lora in self._loras.values():
                await self._add(client, lora)
            digest = await asyncio.to_thread(lambda: weights_digest(weight_files(directory)))
            self._state.set_description(
                EngineDescription(
                    engine="vllm",
                    model=self._model,
                    weights_digest=digest,
                    dtype=str(config.model_config.dtype).removeprefix("torch."),
                    quantization=str(config.model_config.quantization or ""),
                    adapter_digest="",
                    vocabulary_size=max(sizes),
                    max_length=config.model_config.max_model_len,
                    deterministic=self._deterministic,
                    keeps_prefixes=_keeps_prefixes(config),
                )
            )
            await self_score(self)
        except BaseException as error:
            await self.close()
            if isinstance(error, LsmError) and not isinstance(error, EngineError):
                raise
            if not isinstance(error, Exception):
                raise
            raise ConfigurationError(
                f"it cannot be scored with: {error}", where=f"model {self._model}"
            ) from error

    async def score(self, job: Job) -> JobResult:
        """See ``base.Engine``."""
        if self._requests is None or self._state.death is not None:
            raise unavailable(self._state.death)
        plans = [RowPlan.of(job, span) if len(span.positions) else None for span in job.spans]
        lora = self._loras[job.adapter] if job.adapter else None
        requests = [
            _core_request(job, span, plan, lora)
            for plan, span in zip(plans, job.spans, strict=True)
            if plan is not None
        ]
        tokens = sum(plan.length for plan in plans if plan is not None)
        return job_result(job, plans, await self._requests.run(requests, tokens))

    async def _add(self, client: AsyncMPClient, lora: LoRARequest) -> None:
        """Loads an adapter at the start: one that failed later would end the engine."""
        try:
            await client.add_lora_async(lora)
        except Exception as error:
            raise ConfigurationError(
                f"vLLM cannot apply it: {error}",
                where=f"adapter {lora.lora_path}",
                fix="merge it into its base (merge_and_unload) and serve the result as a model",
            ) from error

    def on_death(self, callback: Callable[[BaseException], None]) -> None:
        """See ``base.Engine``."""
        self._state.on_death(callback)

    async def close(self) -> None:
        """Ends vLLM's processes; unfinished jobs fail with TeacherUnavailableError."""
        client, self._client = self._client, None
        requests, self._requests = self._requests, None
        if requests is not None:
            requests.end(None)
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)
        if client is not None:
            await asyncio.to_thread(client.shutdown, SHUTDOWN_SECONDS)

    async def _read(self, requests: PendingRequests) -> None:
        self._state.die(await requests.read())

    def _configure(self, directory: str) -> VllmConfig:
        """Lets vLLM check the model and the arguments."""
        arguments = engine_arguments(
            model=directory,
            dtype=checkpoint_dtype(directory) if self._dtype == "auto" else self._dtype,
            max_length=self._max_length,
            max_batch_tokens=self._max_batch_tokens,
            deterministic=self._deterministic,
            options=self._options,
            known={field.name for field in dataclasses.fields(AsyncEngineArgs)},
            on_cpu=current_platform.is_cpu(),
            adapters=tuple(self._adapters.values()),
            adapter_ranks=get_args(MaxLoRARanks),
        )
        try:
            config = AsyncEngineArgs(
                **arguments,
                worker_extension_cls=f"{HERE}.RowScoring",
                # The class itself: its children import this file before they load anything.
                scheduler_cls=SpanScheduler,
            ).create_engine_config()
        except Exception as error:
            raise refused(self._model, str(error)) from error
        _, stated = config.model_config.model_arch_config.derived_max_model_len_and_key
        if self._max_length is None and stated is None:
            raise ConfigurationError(  # vLLM would take 2048
                "the model does not state its maximum length",
                where="engine.max_length",
                fix="set engine.max_length, in tokens",
            )
        return config

    def _launch(self, config: VllmConfig) -> AsyncMPClient:
        with collected_failures() as failures:
            try:
                return EngineCoreClient.make_async_mp_client(
                    config, Executor.get_class(config), log_stats=False
                )
            except Exception as error:
                raise refused(self._model, why_not_started(failures, error)) from error


def _keeps_prefixes(config: VllmConfig) -> bool:
    """Whether a sequence reads little again of what an earlier job has begun with. On a CPU
    vLLM's blocks are large, and each sequence reads half of one again; of several data-parallel
    ranks another than before may get the next job, and each has a cache of its own."""
    one_cache = config.parallel_config.data_parallel_size == 1
    kept = bool(config.cache_config.enable_prefix_caching) and one_cache
    return kept and not current_platform.is_cpu()


def _core_request(
    job: Job, span: ScoredSpan, plan: RowPlan, lora: LoRARequest | None
) -> EngineCoreRequest:
    """Reads a span up to its last row. vLLM ends no request before it has sampled a token, so
    one is sampled that nobody reads."""
    read = plan.length - len(job.prompt_ids)
    return EngineCoreRequest(
        request_id="",
        prompt_token_ids=[*job.prompt_ids.tolist(), *span.token_ids[:read].tolist()],
        mm_features=None,
        sampling_params=SamplingParams(
            temperature=0.0,
            max_tokens=1,
            detokenize=False,
            ignore_eos=True,
            skip_reading_prefix_cache=False,
            extra_args=plan.to_extra_args(),
        ),
        pooling_params=None,
        arrival_time=time.time(),
        lora_request=lora,
        cache_salt=None,
        data_parallel_rank=None,
    )


class RowScoring:
    """What ``worker_extension_cls`` adds to every worker of vLLM."""

    model_runner: Any

    def install_row_scoring(self) -> int:
        """Puts row scoring into the model runner; returns V, or 0 on a rank without logits."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        place = Place(
            on_cpu=current_platform.is_cpu(),
            first_stage=get_pp_group().is_first_rank,
            last_stage=get_pp_group().is_last_rank,
            leads=get_tp_group().rank_in_group == 0,
        )
        return install(self.model_runner, place, LogprobsTensors)


class SpanScheduler(Scheduler):  # type: ignore[misc]  # Any where vLLM is not installed
    """Reads the prefix cache up to a request's first row and never further.

    A row needs the hidden state of the token before it, which the cache does not hold, so
    that token has to be read again. A request that was preempted starts over by the same
    rule.
    """

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        end_with_parent()
        # Ctrl-C reaches the whole process group, and the server ends its engine itself.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        lookup = self.kv_cache_manager.get_computed_blocks
        self.kv_cache_manager.get_computed_blocks = lambda request: lookup(CacheReader(request))
