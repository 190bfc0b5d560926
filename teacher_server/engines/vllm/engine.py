"""The production engine: vLLM computes, rows stay arrays from its workers to the reply.

The only file of this package that imports vLLM, written against 0.32. Five
places of vLLM are used that it does not promise to keep:

    AsyncMPClient         the client of its engine cores: token ids in, outputs
                          back, without the tokenizer and the text of AsyncLLM
    worker_extension_cls  puts ``RowScoring`` into each worker
    GPUModelRunner._get_prompt_logprobs_dict (the V1 runner, also the CPU's)
                          replaced in each worker: it sees every step's hidden
                          states, and what it returns travels as tensors
    scheduler_cls         ``SpanScheduler`` keeps scored rows out of the prefix cache
    shm_broadcast         spins for milliseconds on a CPU, where the cores it would
                          spin on for a second are the ones that compute

They may go when vLLM itself returns the top K of a span of the prompt as
tensors, with the prefix cache read up to that span. A new minor release of vLLM
needs tests/engines/test_vllm*.py to pass before its pin in pyproject.toml moves.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import os
import signal
import time
from collections.abc import Callable, Mapping
from typing import Any, get_args

import torch
from teacher_proto.errors import ConfigurationError, EngineError, LsmError

# Read when vLLM is imported and by its worker processes: logs belong to stderr,
# nothing is sent anywhere, and the runner that is extended is the one that runs.
os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
os.environ["VLLM_NO_USAGE_STATS"] = "1"
os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "0"
os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
os.environ.setdefault("VLLM_WORKER_SHUTDOWN_TIMEOUT_SECONDS", "1")

from vllm import SamplingParams
from vllm.config import VllmConfig
from vllm.config.lora import MaxLoRARanks
from vllm.distributed import get_pp_group, get_tp_group
from vllm.distributed.device_communicators import shm_broadcast
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.lora.request import LoRARequest
from vllm.platforms import current_platform
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import EngineCoreOutput, EngineCoreRequest
from vllm.v1.engine.core_client import AsyncMPClient, EngineCoreClient
from vllm.v1.executor import Executor
from vllm.v1.outputs import LogprobsTensors

from teacher_server.engines.adapter import Adapter, check_base
from teacher_server.engines.base import EngineDescription, Job, JobResult, ScoredSpan
from teacher_server.engines.digest import weights_digest
from teacher_server.engines.torch.engine_thread import unavailable
from teacher_server.engines.torch.loading import parse_dtype, resolve, weight_files
from teacher_server.engines.torch.probe import check_self_score, self_score_job
from teacher_server.engines.vllm import cpu_lora
from teacher_server.engines.vllm.children import (
    collected_failures,
    end_with_parent,
    first_failure,
    report_failures,
)
from teacher_server.engines.vllm.options import checkpoint_dtype, engine_arguments, refused
from teacher_server.engines.vllm.rows import RowScorer, RunnerHead
from teacher_server.engines.vllm.runner import CacheReader, RunnerHook
from teacher_server.engines.vllm.wire import RowPlan, job_result
from teacher_server.failures import is_ending

report_failures()
if current_platform.is_cpu():
    # No argument of the engine reaches these two. The processes would spin for a
    # second after every message, on the cores that compute. Those that do not spin
    # depend on notifications, and ZeroMQ drops one that follows another within about
    # a millisecond (the publisher's high-water mark is 1): the reader would sleep for
    # five seconds over a message that is there. The spin outlasts that millisecond,
    # and whatever is lost all the same is found by looking again.
    shm_broadcast.SpinCondition.__init__.__defaults__ = (0.005,)
    shm_broadcast.SHM_READER_RECHECK_INTERVAL_MS = 50

DEFAULT_BATCH_TOKENS = 8192
SHUTDOWN_SECONDS = 10.0
HERE = "teacher_server.engines.vllm.engine"


class VllmEngine:
    """Scores jobs on a model that vLLM runs; implements ``base.Engine``.

    vLLM's engine core and workers are processes of their own. A job's sequences
    are requests of one token each; vLLM batches what waits and shares prompts
    through its prefix cache.

    Args:
        model: directory or hub id, safetensors.
        dtype: "auto" (the checkpoint's), "float32", "bfloat16" or "float16".
        device: "auto"; vLLM's build and CUDA_VISIBLE_DEVICES choose it.
        max_batch_tokens: tokens of one step; longer sequences take several.
        deterministic: every sequence is read alone, so that its bytes depend on
            it alone; slower.
        max_length: tokens of prompt and continuation; None for the model's own.
        options: vLLM's engine arguments, such as ``tensor_parallel_size``.

    Raises:
        ConfigurationError: the device cannot be chosen; loading is ``start``'s.
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
        parse_dtype(dtype)
        self._model = model
        self._dtype = dtype
        self._max_batch_tokens = max_batch_tokens
        self._deterministic = deterministic
        self._max_length = max_length
        self._options = options or {}
        self._adapters: dict[str, Adapter] = {}
        self._loras: dict[str, LoRARequest] = {}
        self._description: EngineDescription | None = None
        self._client: AsyncMPClient | None = None
        self._reader: asyncio.Task[None] | None = None
        self._pending: dict[str, asyncio.Future[EngineCoreOutput]] = {}
        self._numbers = itertools.count()
        # Tokens given to each data-parallel rank and not answered yet.
        self._load: list[int] = [0]
        self._death: BaseException | None = None
        self._death_callbacks: list[Callable[[BaseException], None]] = []

    @property
    def description(self) -> EngineDescription:
        """What was loaded; only after ``start``."""
        assert self._description is not None, "start() has not returned"
        return self._description

    @property
    def in_flight(self) -> int:
        """Sequences given to vLLM and neither answered nor given up."""
        return len(self._pending)

    def hold_adapters(self, adapters: Mapping[str, Adapter]) -> None:
        """See ``base.Engine``. vLLM tells the prefixes of its cache apart by their names."""
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
        self._load = [0] * config.parallel_config.data_parallel_size
        self._reader = asyncio.create_task(self._read(client))
        try:
            facts = await client.collective_rpc_async("install_row_scoring")
            vocabulary_size = max(facts)
            for lora in self._loras.values():
                await self._add(client, lora)
            self._description = EngineDescription(
                engine="vllm",
                model=self._model,
                weights_digest=await asyncio.to_thread(
                    lambda: weights_digest(weight_files(directory))
                ),
                dtype=str(config.model_config.dtype).removeprefix("torch."),
                quantization=str(config.model_config.quantization or ""),
                adapter_digest="",
                vocabulary_size=vocabulary_size,
                max_length=config.model_config.max_model_len,
                deterministic=self._deterministic,
            )
            probe = self_score_job(vocabulary_size, self.description.max_length)
            check_self_score(await self.score(probe))
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
        client = self._client
        if client is None or self._death is not None:
            raise unavailable(self._death)
        plans = [RowPlan.of(job, span) if len(span.positions) else None for span in job.spans]
        rank = min(range(len(self._load)), key=self._load.__getitem__)
        tokens = sum(plan.length for plan in plans if plan is not None)
        self._load[rank] += tokens
        loop = asyncio.get_running_loop()
        futures: dict[str, asyncio.Future[EngineCoreOutput]] = {}
        try:
            for plan, span in zip(plans, job.spans, strict=True):
                if plan is None:
                    continue
                name = str(next(self._numbers))
                self._pending[name] = futures[name] = loop.create_future()
                request = _core_request(name, job, span, plan)
                request.lora_request = self._loras[job.adapter] if job.adapter else None
                request.data_parallel_rank = rank if len(self._load) > 1 else None
                await client.add_request_async(request)
            outputs = await asyncio.gather(*futures.values())
        except LsmError:
            raise
        except BaseException as error:
            if is_ending(error):
                raise
            raise unavailable(error) from error
        finally:
            self._load[rank] -= tokens
            await self._abort([name for name in futures if self._pending.pop(name, None)])
        return job_result(job, plans, outputs)

    async def _add(self, client: AsyncMPClient, lora: LoRARequest) -> None:
        """Loads an adapter now: one that fails later would take the engine with it."""
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
        if self._death is not None:
            asyncio.get_running_loop().call_soon(callback, self._death)
        else:
            self._death_callbacks.append(callback)

    async def close(self) -> None:
        """Ends vLLM's processes; jobs not finished fail with TeacherUnavailableError."""
        client, self._client = self._client, None
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)
        self._fail_pending(unavailable(None))
        if client is not None:
            await asyncio.to_thread(client.shutdown, SHUTDOWN_SECONDS)

    def _configure(self, directory: str) -> VllmConfig:
        """vLLM's own checks of model and arguments."""
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
            return AsyncEngineArgs(
                **arguments,
                worker_extension_cls=f"{HERE}.RowScoring",
                # The class and not its name: children import this file before they load.
                scheduler_cls=SpanScheduler,
            ).create_engine_config()
        except Exception as error:
            raise refused(self._model, str(error)) from error

    def _launch(self, config: VllmConfig) -> AsyncMPClient:
        with collected_failures() as failures:
            try:
                return EngineCoreClient.make_async_mp_client(
                    config, Executor.get_class(config), log_stats=False
                )
            except Exception as error:
                raise refused(self._model, first_failure(failures) or str(error)) from error

    async def _read(self, client: AsyncMPClient) -> None:
        """Hands every output to who waits for it, until the engine dies."""
        try:
            while True:
                for output in (await client.get_output_async()).outputs:
                    future = self._pending.get(output.request_id)
                    if output.finish_reason is None or future is None:
                        continue
                    del self._pending[output.request_id]
                    if not future.done():
                        future.set_result(output)
        except BaseException as error:
            if is_ending(error):
                raise
            self._death = error
            self._fail_pending(unavailable(error))
            callbacks, self._death_callbacks = self._death_callbacks, []
            for callback in callbacks:
                callback(error)

    async def _abort(self, names: list[str]) -> None:
        """Frees the engine of requests nobody waits for."""
        if names and self._client is not None and self._death is None:
            await self._client.abort_requests_async(names)

    def _fail_pending(self, error: LsmError) -> None:
        pending, self._pending = self._pending, {}
        for future in pending.values():
            if not future.done():
                future.set_exception(error)


def _core_request(name: str, job: Job, span: ScoredSpan, plan: RowPlan) -> EngineCoreRequest:
    """One token is sampled because vLLM ends no request without; nobody reads it."""
    read = plan.length - len(job.prompt_ids)
    return EngineCoreRequest(
        request_id=name,
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
        lora_request=None,
        cache_salt=None,
        data_parallel_rank=None,
    )


class RowScoring:
    """What ``worker_extension_cls`` adds to every worker of vLLM."""

    model_runner: Any

    def install_row_scoring(self) -> int:
        """Puts row scoring into the model runner; gives V, or 0 on a rank without logits."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        runner = self.model_runner
        if runner.lora_config is not None and current_platform.is_cpu():
            for wrapper in runner.lora_manager._adapter_manager.punica_wrapper_mapping.values():
                cpu_lora.install(wrapper)
        if not get_pp_group().is_first_rank and runner.intermediate_tensors is None:
            # Made by a dummy run, which a CPU worker that does not compile leaves out; this
            # may go when two stages on a CPU pass tests/engines/test_vllm_parallel.py without.
            runner.intermediate_tensors = runner.model.make_empty_intermediate_tensors(
                batch_size=runner.max_num_tokens,
                dtype=runner.model_config.dtype,
                device=runner.device,
            )
        if not get_pp_group().is_last_rank:
            return 0
        model = runner.model
        hidden_size = runner.model_config.get_hidden_size()
        probe = torch.zeros(1, hidden_size, dtype=runner.model_config.dtype, device=runner.device)
        with torch.inference_mode():
            logits = model.compute_logits(probe)
        vocabulary_size = runner.model_config.get_vocab_size()
        if logits is not None:
            vocabulary_size = logits.shape[-1]
        leads = get_tp_group().rank_in_group == 0
        head = RunnerHead(model.compute_logits, vocabulary_size, runner.device)
        RunnerHook(runner, RowScorer(head, leads), LogprobsTensors).install()
        return int(vocabulary_size) if leads else 0


class SpanScheduler(Scheduler):  # type: ignore[misc]  # Any where vLLM is not installed
    """Reads the prefix cache up to a request's first row, never further.

    A row needs its token's hidden state, so that token has to be read again; a
    preempted request starts over by the same rule.
    """

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        end_with_parent()
        # Ctrl-C reaches the whole process group; the server ends its engine itself.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        lookup = self.kv_cache_manager.get_computed_blocks
        self.kv_cache_manager.get_computed_blocks = lambda request: lookup(CacheReader(request))
