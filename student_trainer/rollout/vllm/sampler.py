"""How vLLM's worker draws a token: as the trainer does. Nothing here imports vLLM.

The worker draws with the functions of rollout/sampling.py, from the rollout's own random
stream. So temperature, top-p, the ids that no token has, the log-probabilities and the nuclei
mean what they mean in the transformers engine: both draw the same ids, as far as the
logits of both round alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from teacher_proto.types import Float32
from torch import Tensor, nn

from student_trainer.rollout.sampling import rollout_uniforms, sample

# The key of ``SamplingParams.extra_args``.
DRAWS = "lsm_draws"
# What a request asks vLLM for: of each token its log-probability and rank, and nothing else.
LOGPROBS = 0


@dataclass(frozen=True)
class Draws:
    """How the tokens of a rollout are drawn.

    Attributes:
        seed, step, prompt_id, index: of its random stream (``sampling.rollout_uniforms``).
        limit: tokens that it has at most.
        temperature, top_p: as in ``settings.rollout``; vLLM's own stay at 1.
    """

    seed: int
    step: int
    prompt_id: str
    index: int
    limit: int
    temperature: float
    top_p: float

    def to_extra_args(self) -> dict[str, Any]:
        return {DRAWS: list(astuple(self))}

    @classmethod
    def of(cls, extra_args: Mapping[str, Any] | None) -> Draws | None:
        """The draws of a request; None of a request that is not the trainer's."""
        fields = (extra_args or {}).get(DRAWS)
        return None if fields is None else cls(*fields)

    @cached_property
    def uniforms(self) -> NDArray[np.float64]:
        """float64 [limit] in [0, 1), one for each token."""
        return rollout_uniforms(self.seed, self.step, self.prompt_id, self.index, self.limit)


class RolloutSampler(nn.Module):
    """In the place of a V1 model runner's sampler. A request that is not the trainer's is left
    to the sampler that was there.

    For every row it returns the token, the log-probability of it and, in the place of the
    token's rank, the bits of the probability of the nucleus that it was drawn from
    (``masses_of``): vLLM passes on these three values of a token wherever it runs.

    Args:
        runner: vLLM's model runner.
        undrawn: int64 [M], ids that are never drawn; None where there are none.
        make_output: packs tokens int32 [n, 1], log-probabilities float32 [n, 1] and ranks
            int32 [n] into what vLLM's sampler returns.
    """

    def __init__(
        self,
        runner: Any,
        undrawn: Tensor | None,
        make_output: Callable[[Tensor, Tensor, Tensor], Any],
    ) -> None:
        super().__init__()
        self.replaced = runner.sampler
        self._runner = runner
        self._undrawn = undrawn
        self._make_output = make_output
        self._draws: dict[str, Draws] = {}

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("replaced"), name)

    def forward(self, logits: Tensor, sampling_metadata: Any, *rest: Any, **named: Any) -> Any:
        names = self._runner.input_batch.req_ids[: len(logits)]
        rows = [self._draws_of(name) for name in names]
        ours = [row for row, draws in enumerate(rows) if draws is not None]
        if not ours:
            return self.replaced(logits, sampling_metadata, *rest, **named)
        tokens, log_probs, ranks = self._draw(
            logits if len(ours) == len(logits) else logits[ours],
            [(names[row], draws) for row in ours if (draws := rows[row]) is not None],
        )
        if len(ours) == len(logits):
            return self._make_output(tokens.unsqueeze(-1), log_probs.unsqueeze(-1), ranks)
        output = self.replaced(logits, sampling_metadata, *rest, **named)
        kept = output.logprobs_tensors
        output.sampled_token_ids[ours, 0] = tokens.to(output.sampled_token_ids.dtype)
        kept.logprob_token_ids[ours, 0] = tokens.to(kept.logprob_token_ids.dtype)
        kept.logprobs[ours, 0] = log_probs
        kept.selected_token_ranks[ours] = ranks.to(kept.selected_token_ranks.dtype)
        return output

    def _draws_of(self, name: str) -> Draws | None:
        if name not in self._draws:
            parameters = self._runner.requests[name].sampling_params
            draws = None if parameters is None else Draws.of(parameters.extra_args)
            if draws is None:
                return None
            self._draws[name] = draws
        return self._draws[name]

    def _draw(self, logits: Tensor, rows: list[tuple[str, Draws]]) -> tuple[Tensor, Tensor, Tensor]:
        """int32, float32 and int32 [n]: tokens, their log-probabilities, bits of their nuclei."""
        requests = self._runner.requests
        # How many tokens a request has says which of its draws this is, also after vLLM has
        # put it back and begins it again.
        uniforms = np.array(
            [draws.uniforms[len(requests[name].output_token_ids)] for name, draws in rows]
        )
        temperatures = [draws.temperature for _, draws in rows]
        scale = torch.tensor(temperatures, dtype=torch.float32, device=logits.device)
        scaled = logits.float() / scale.unsqueeze(-1)
        if self._undrawn is not None:
            scaled = scaled.index_fill(-1, self._undrawn, -torch.inf)
        log_probs = scaled.log_softmax(-1)
        at_random = torch.from_numpy(uniforms).to(logits.device)
        tokens = torch.empty(len(rows), dtype=torch.int64, device=logits.device)
        masses = torch.empty(len(rows), dtype=torch.float32, device=logits.device)
        for top_p in {draws.top_p for _, draws in rows}:
            at = torch.tensor(
                [row for row, (_, draws) in enumerate(rows) if draws.top_p == top_p],
                device=logits.device,
            )
            tokens[at], masses[at] = sample(log_probs[at], at_random[at], top_p)
        own = log_probs.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
        self._forget()
        return tokens.int(), own, masses.view(torch.int32)

    def _forget(self) -> None:
        """Drops what is kept of requests that have ended."""
        requests = self._runner.requests
        if len(self._draws) > len(requests):
            self._draws = {name: kept for name, kept in self._draws.items() if name in requests}


def masses_of(ranks: Sequence[int]) -> Float32:
    """float32 [n]: the probabilities of nuclei whose bits came as ranks."""
    return np.array(ranks, np.int32).view(np.float32)
