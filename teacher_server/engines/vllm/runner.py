"""Row scoring inside vLLM's V1 model runner, and its lookup in the prefix cache.

Nothing here imports vLLM.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from teacher_server.engines.vllm import cpu_lora
from teacher_server.engines.vllm.rows import PassSlice, Progress, RowScorer, RunnerProjection
from teacher_server.engines.vllm.wire import FIRST_ROW

# Packs the three tensors of a request into what vLLM's runner returns.
MakeTensors = Callable[[Tensor, Tensor, Tensor], Any]


@dataclass(frozen=True)
class Place:
    """Where a worker stands among those that run one model.

    Attributes:
        first_stage, last_stage: of the pipeline.
        leads: it is the first rank of its tensor-parallel group, which computes the rows.
    """

    on_cpu: bool
    first_stage: bool
    last_stage: bool
    leads: bool


def install(runner: Any, place: Place, make_tensors: MakeTensors) -> int:
    """Puts row scoring into a model runner; returns V, or 0 where no rows are computed."""
    if runner.lora_config is not None and place.on_cpu:
        for wrapper in runner.lora_manager._adapter_manager.punica_wrapper_mapping.values():
            cpu_lora.install(wrapper)
    if not place.first_stage and runner.intermediate_tensors is None:
        # vLLM makes them in a dummy run, which a CPU worker that does not compile leaves
        # out. Not needed once tests/engines/test_vllm_parallel.py passes without it, with
        # two stages on a CPU.
        runner.intermediate_tensors = runner.model.make_empty_intermediate_tensors(
            batch_size=runner.max_num_tokens,
            dtype=runner.model_config.dtype,
            device=runner.device,
        )
    if not place.last_stage:
        return 0
    model = runner.model
    hidden_size = runner.model_config.get_hidden_size()
    probe = torch.zeros(1, hidden_size, dtype=runner.model_config.dtype, device=runner.device)
    with torch.inference_mode():
        logits = model.compute_logits(probe)
    vocabulary_size = int(runner.model_config.get_vocab_size())
    if logits is not None:
        vocabulary_size = logits.shape[-1]
    projection = RunnerProjection(model.compute_logits, vocabulary_size, runner.device)
    RunnerHook(runner, RowScorer(projection, place.leads), make_tensors).install()
    return vocabulary_size if place.leads else 0


class RunnerHook:
    """Row scoring in the place of a V1 model runner's prompt log-probabilities."""

    def __init__(self, runner: Any, scorer: RowScorer, make_tensors: MakeTensors) -> None:
        self._runner = runner
        self._scorer = scorer
        self._make_tensors = make_tensors
        self._started = 0.0
        self._execute_model = runner.execute_model

    def install(self) -> None:
        assert callable(self._runner._get_prompt_logprobs_dict)
        self._runner._get_prompt_logprobs_dict = self.rows
        self._runner.execute_model = self.execute_model

    def execute_model(self, *arguments: Any, **named: Any) -> Any:
        self._started = time.perf_counter()
        return self._execute_model(*arguments, **named)

    def rows(self, hidden_states: Tensor, num_scheduled_tokens: dict[str, int]) -> dict[str, Any]:
        """Rows of those requests whose last token was read in this step.

        The tensors are ids and values of ``PackedRows.arrays``, and float64 [status, computed
        tokens, seconds, then its places].
        """
        runner = self._runner
        slices = []
        for name, count in num_scheduled_tokens.items():
            request = runner.requests[name]
            place = runner.input_batch.req_id_to_index[name]
            slices.append(
                PassSlice(
                    request_id=name,
                    start=request.num_computed_tokens,
                    count=count,
                    offset=int(runner.query_start_loc.np[place]),
                    extra_args=request.sampling_params.extra_args,
                )
            )
        finished = self._scorer.step(
            hidden_states, slices, lambda: time.perf_counter() - self._started
        )
        self._scorer.forget(runner.requests)
        return {name: self._tensors(progress) for name, progress in finished.items()}

    def _tensors(self, progress: Progress) -> Any:
        ids, values, places = progress.packed.arrays()
        facts = [progress.packed.status, progress.computed_tokens, progress.seconds]
        return self._make_tensors(
            torch.from_numpy(ids),
            torch.from_numpy(values),
            torch.from_numpy(np.concatenate([facts, places])),
        )


class CacheReader:
    """A request as the cache lookup sees it: vLLM reads the cache up to ``num_tokens - 1``."""

    def __init__(self, request: Any) -> None:
        self._request = request
        self.num_tokens = request.sampling_params.extra_args[FIRST_ROW] + 1

    def __getattr__(self, name: str) -> Any:
        return getattr(self._request, name)
