"""vLLM in processes that the trainer starts, on its own device or on others.

This is the only file of the package that imports vLLM; it is written against 0.32. It uses
five parts of vLLM that vLLM does not promise to keep:

    SyncMPClient          the client of its engine core: token ids go in, and the outputs of
                          every step come back, without a tokenizer and text. Its queue and
                          its utility calls are read with a limit on the time, since it
                          waits for ever for a core that was killed
    worker_extension_cls  adds ``RolloutWorker`` to each worker
    GPUModelRunner.sampler (the V1 runner, which CPUs use too) is replaced in each worker
    model_loader.reload   loads weights into a model that is in use, as vLLM's own weight
                          transfer does
    shm_broadcast         on a CPU it spins for milliseconds and not for a second, since it
                          would spin on the cores that compute

Before the pin of vLLM moves to a new minor release, tests/rollout/test_vllm*.py have to pass.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import os
import queue
import signal
import time
import uuid
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as Late
from contextlib import contextmanager
from typing import Any

from teacher_proto.errors import LsmError
from teacher_proto.processes.vllm_children import (
    collected_failures,
    end_with_parent,
    report_failures,
    spin_briefly,
    why_not_started,
)
from torch import Tensor

# vLLM reads these when it is imported, and so do its worker processes.
os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
os.environ["VLLM_NO_USAGE_STATS"] = "1"
os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "0"
os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
os.environ.setdefault("VLLM_WORKER_SHUTDOWN_TIMEOUT_SECONDS", "1")
# The trainer rests on these cores while vLLM computes on them.
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")

from vllm import SamplingParams
from vllm.config import VllmConfig
from vllm.distributed.device_communicators import shm_broadcast
from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource
from vllm.distributed.weight_transfer.nccl_engine import (
    NCCLTrainerInitInfo,
    NCCLTrainerWeightTransferEngine,
)
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.model_executor.layers.quantization.base_config import QuantizeMethodBase
from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding
from vllm.model_executor.model_loader.reload.layerwise import (
    finalize_layerwise_reload,
    get_layerwise_info,
    initialize_layerwise_reload,
)
from vllm.platforms import current_platform
from vllm.utils.network_utils import get_open_port
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import EngineCoreRequest, EngineCoreRequestType, FinishReason
from vllm.v1.engine.core_client import SyncMPClient
from vllm.v1.executor import Executor
from vllm.v1.outputs import LogprobsTensors, SamplerOutput

from student_trainer.distributed.environment import without_ranks
from student_trainer.rollout.vllm.core import (
    Core,
    Request,
    Response,
    TransferCalls,
    Writing,
    died,
)
from student_trainer.rollout.vllm.options import Sizes, engine_arguments, refused
from student_trainer.rollout.vllm.sampler import LOGPROBS
from student_trainer.rollout.vllm.student_weights import checkpoint_weights
from student_trainer.rollout.vllm.weights import failed
from student_trainer.rollout.vllm.worker import TakesOver
from student_trainer.student.model import Student

report_failures()
if current_platform.is_cpu():
    spin_briefly(shm_broadcast)

# It warns of every layer that has no weights of its own; what is missing is an error here. A
# level would not last: vLLM sets those of its loggers anew when a child starts.
logging.getLogger(initialize_layerwise_reload.__module__).addFilter(
    lambda record: record.levelno >= logging.ERROR
)

HERE = "student_trainer.rollout.vllm.local"
RPC = "collective_rpc"
ON_CPU = current_platform.is_cpu()
SHUTDOWN_SECONDS = 10.0
# How often it is asked whether a core that says nothing is still there.
LOOK_SECONDS = 0.2


class LocalCore:
    """vLLM in processes of the trainer's; implements ``core.Core``.

    Args:
        model: the student's folder, of which the configuration is read; the weights are handed
            over.
        dtype: of the weights.
        options: engine arguments of vLLM.
        devices: the value of ``CUDA_VISIBLE_DEVICES`` for these processes; None for the
            trainer's own.
        sleep: whether it is to sleep between batches.
        transfer: the backend of vLLM's weight transfer; None for the file.
        answer_seconds: how long it may say nothing.

    Raises:
        ConfigurationError: vLLM does not take the student or an option, or memory is short.
    """

    def __init__(
        self,
        model: str,
        dtype: str,
        sizes: Sizes,
        options: Mapping[str, Any],
        *,
        devices: str | None = None,
        sleep: bool = False,
        transfer: str | None = None,
        answer_seconds: float = 300.0,
    ) -> None:
        self._answer_seconds = answer_seconds
        self._numbers = itertools.count()
        arguments = engine_arguments(
            model=model,
            dtype=dtype,
            sizes=sizes,
            options=options,
            known={field.name for field in dataclasses.fields(AsyncEngineArgs)},
            on_cpu=ON_CPU,
            sleep=sleep,
            transfer=transfer,
        )
        with _visible(devices), without_ranks(), collected_failures() as failures:
            config = _configured(arguments)
            try:
                self._client = SyncMPClient(config, Executor.get_class(config), log_stats=False)
            except Exception as error:
                raise refused(why_not_started(failures, error)) from error
        self._workers = int(config.parallel_config.world_size)

    @property
    def workers(self) -> int:
        """See ``core.Core``."""
        return self._workers

    def call(self, method: str, *arguments: Any) -> list[Any]:
        """See ``core.Core``."""
        answers: list[Any] = self._ask(RPC, method, None, arguments, None)
        return answers

    def write(self, requests: Sequence[Request]) -> Generator[Response]:
        """See ``core.Core``."""
        writing: dict[str, Writing] = {}
        try:
            for place, request in enumerate(requests):
                name = str(next(self._numbers))
                writing[name] = Writing(place, request)
                self._client.add_request(_core_request(name, request))
            while writing:
                outputs = self._next()
                for output in outputs.outputs:
                    own = writing.get(output.request_id)
                    if own is None:
                        continue
                    said = output.new_logprobs
                    drawn = zip(
                        output.new_token_ids,
                        said.logprobs[:, 0] if said is not None else (),
                        said.sampled_token_ranks if said is not None else (),
                        strict=True,
                    )
                    by_text = any(own.add(*one) for one in drawn)
                    if by_text or output.finish_reason is not None:
                        del writing[output.request_id]
                        if by_text and output.finish_reason is None:
                            self._client.abort_requests([output.request_id])
                        stopped = output.finish_reason == FinishReason.STOP
                        yield own.response(finished=by_text or stopped)
        except LsmError:
            raise
        except Exception as error:
            raise died(f"ended while it wrote: {type(error).__name__}: {error}") from error
        finally:
            self._client.abort_requests(list(writing))

    def reset_prefix_cache(self) -> bool:
        """See ``core.Core``."""
        return bool(self._ask("reset_prefix_cache", False, False))

    def sleep(self) -> None:
        """See ``core.Core``."""
        self._ask("sleep", 2, "wait")

    def wake_up(self) -> None:
        """See ``core.Core``."""
        self._ask("wake_up", None)

    def close(self) -> None:
        """Ends vLLM's processes."""
        self._client.shutdown(SHUTDOWN_SECONDS)

    @property
    def _dead(self) -> bool:
        return bool(self._client.resources.engine_dead)

    def _next(self) -> Any:
        """The outputs of the next step."""
        found = self._wait(lambda: self._client.outputs_queue.get(timeout=LOOK_SECONDS), "writing")
        if isinstance(found, Exception):
            raise died(f"ended while it wrote: {type(found).__name__}") from found
        return found

    def _ask(self, method: str, *arguments: Any) -> Any:
        """Calls a method of the engine core."""
        number = uuid.uuid1().int >> 64
        answer: Future[Any] = Future()
        self._client.utility_results[number] = answer
        try:
            self._client._send_input(EngineCoreRequestType.UTILITY, (0, number, method, arguments))
            return self._wait(lambda: answer.result(LOOK_SECONDS), method)
        except LsmError:
            raise
        except Exception as error:
            if self._dead:
                raise died(f"ended: {type(error).__name__}: {error}") from error
            asked = arguments[0] if method == RPC else method
            raise LsmError(str(error), where=f"vLLM, {asked}") from error

    def _wait(self, look: Callable[[], Any], what: str) -> Any:
        """What ``look`` finds; it raises Late or Empty while there is nothing."""
        limit = time.monotonic() + self._answer_seconds
        while True:
            try:
                return look()
            except (Late, queue.Empty):
                if self._dead:
                    raise died(f"ended in the middle of {what}: its process is gone") from None
                if time.monotonic() > limit:
                    raise died(
                        f"has said nothing for {self._answer_seconds:.0f} seconds ({what})",
                        "rollout.vllm.answer_seconds",
                    ) from None


def _core_request(name: str, request: Request) -> EngineCoreRequest:
    return EngineCoreRequest(
        request_id=name,
        prompt_token_ids=list(request.prompt_ids),
        mm_features=None,
        sampling_params=SamplingParams(
            max_tokens=request.draws.limit,
            stop_token_ids=list(request.stop_ids),
            ignore_eos=True,
            detokenize=False,
            logprobs=LOGPROBS,
            extra_args=request.draws.to_extra_args(),
        ),
        pooling_params=None,
        arrival_time=time.time(),
        lora_request=None,
        cache_salt=None,
        data_parallel_rank=None,
    )


def _configured(arguments: Mapping[str, Any]) -> VllmConfig:
    """Lets vLLM check the student and the arguments. The class of the scheduler is given as
    itself: the children import this file before they load anything."""
    try:
        config = AsyncEngineArgs(
            **arguments, worker_extension_cls=f"{HERE}.RolloutWorker"
        ).create_engine_config()
    except Exception as error:
        raise refused(str(error)) from error
    overlapping = config.scheduler_config.async_scheduling
    config.scheduler_config.scheduler_cls = AsyncRollouts if overlapping else Rollouts
    return config


@contextmanager
def _visible(devices: str | None) -> Iterator[None]:
    """While vLLM's processes start, the GPUs that they are to see."""
    name = current_platform.device_control_env_var
    before = os.environ.get(name)
    if devices is not None:
        os.environ[name] = devices
    try:
        yield
    finally:
        if devices is not None:
            if before is None:
                del os.environ[name]
            else:
                os.environ[name] = before


class NcclHandOver:
    """vLLM's own weight transfer between GPUs: the trainer broadcasts, every worker receives.

    Args:
        address: of this machine, as the workers see it.
    """

    def __init__(self, student: Student, address: str, core: Core) -> None:
        self._core = core
        self._trainer = NCCLTrainerWeightTransferEngine.trainer_init(
            NCCLTrainerInitInfo(
                master_address=address,
                master_port=get_open_port(),
                world_size=1 + core.workers,
                rank=0,
            ),
            client=TransferCalls(core),
            source=StudentSource(student),
        )

    def __call__(self, version: int) -> None:
        self._core.call("rollout_begin")
        try:
            self._trainer.send_weights()
        except LsmError:
            raise
        except Exception as error:
            raise failed(f"{type(error).__name__}: {error}", "rollout.vllm.hand_over") from error
        self._core.call("rollout_commit", version)


class StudentSource(WeightSource):  # type: ignore[misc]
    """The student's weights as vLLM's transfer reads them, every time as they are then."""

    def __init__(self, student: Student) -> None:
        self._student = student

    def metadata(self) -> list[ParamMeta]:
        weights = checkpoint_weights(self._student)
        return [ParamMeta(name, w.dtype, tuple(w.shape)) for name, w in weights.items()]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        return iter(checkpoint_weights(self._student).items())


class RolloutWorker(TakesOver):
    """What ``worker_extension_cls`` adds to every worker of vLLM."""

    def _make_output(self) -> Callable[..., Any]:
        return _sampler_output

    def _load(self, tensors: dict[str, Tensor]) -> list[str]:
        runner = self.model_runner
        model = runner.get_model()
        names = {name for name, _ in model.named_parameters()}
        initialize_layerwise_reload(model)
        loaded = model.load_weights(iter(tensors.items()))
        # vLLM keeps several of the checkpoint's weights as one, of which some may be missing. A
        # vocabulary has more rows in vLLM than in the checkpoint.
        partly = [
            name
            for name, layer in model.named_modules()
            if (info := get_layerwise_info(layer)).can_load()
            and 0 < info.load_numel < (info.load_numel_total or 0)
            and not isinstance(layer, VocabParallelEmbedding)
        ]
        finalize_layerwise_reload(model, runner.model_config)
        if loaded is None:
            return partly
        for name, layer in model.named_modules():
            # A head whose weight is the embedding's gets none of its own, and keeps what it has
            # packed of the weight that was there before.
            own = {f"{name}.{parameter}" for parameter, _ in layer.named_parameters(recurse=False)}
            method = getattr(layer, "quant_method", None)
            if own and not own & loaded and isinstance(method, QuantizeMethodBase):
                method.process_weights_after_loading(layer)
        return sorted(partly) + sorted(names - loaded)


def _sampler_output(tokens: Tensor, log_probs: Tensor, ranks: Tensor) -> SamplerOutput:
    return SamplerOutput(tokens, LogprobsTensors(tokens, log_probs, ranks))


class _EndsWithTheTrainer:
    """In the engine core: it ends when the trainer does, and leaves Ctrl-C to it."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        end_with_parent()
        signal.signal(signal.SIGINT, signal.SIG_IGN)


class Rollouts(_EndsWithTheTrainer, Scheduler):  # type: ignore[misc]
    """Of a core that waits for each step."""


class AsyncRollouts(_EndsWithTheTrainer, AsyncScheduler):  # type: ignore[misc]
    """Of a core that plans a step while the one before is computed."""
