"""Where row scoring meets vLLM's V1 model runner and cache lookup. Nothing here imports vLLM."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from teacher_server.engines.vllm.rows import PassSlice, RowScorer
from teacher_server.engines.vllm.wire import FIRST_ROW


class RunnerHook:
    """Row scoring in the place of a V1 model runner's prompt log-probabilities.

    Args:
        make_tensors: packs the three tensors of a request into what the runner returns.
    """

    def __init__(
        self, runner: Any, scorer: RowScorer, make_tensors: Callable[[Tensor, Tensor, Tensor], Any]
    ) -> None:
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
        """Rows of the requests whose last token this step read.

        The tensors are int32 ids [R, K], float32 values [R, columns] and float64
        [status, computed tokens, seconds].
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
        return {
            name: self._make_tensors(
                torch.from_numpy(progress.packed.ids),
                torch.from_numpy(progress.packed.values),
                torch.from_numpy(
                    np.array([progress.packed.status, progress.computed_tokens, progress.seconds])
                ),
            )
            for name, progress in finished.items()
        }


class CacheReader:
    """A request as the cache lookup sees it: vLLM reads up to ``num_tokens - 1``."""

    def __init__(self, request: Any) -> None:
        self._request = request
        self.num_tokens = request.sampling_params.extra_args[FIRST_ROW] + 1

    def __getattr__(self, name: str) -> Any:
        return getattr(self._request, name)
