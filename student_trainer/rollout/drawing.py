"""Drawing the tokens of responses that are written together, each from its own random stream
(rollout/sampling.py)."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from student_trainer.rollout.base import Rollout
from student_trainer.rollout.engine import ResponseKey
from student_trainer.rollout.sampling import rollout_uniforms, sample
from student_trainer.rollout.stopping import StopStrings, pieces_of
from student_trainer.settings.rollout import RolloutSettings
from student_trainer.student.model import Student, not_finite


@dataclass(frozen=True)
class Drawn:
    """One token of each of k responses.

    Attributes:
        tokens: int64 [k].
        finished: which of the k have ended by it: by a terminator, or by a stop string.
        cut: which of the others have reached the longest response.
    """

    tokens: Tensor
    finished: list[int]
    cut: list[int]

    @property
    def over(self) -> list[int]:
        """Which of the k are not written any further, ascending."""
        return sorted([*self.finished, *self.cut])


@dataclass
class Drawing:
    """The draws of responses on a number of lines. A line holds one response until it is taken,
    and then another.

    Attributes:
        lines: how many there are.
        version: of the weights, for the rollouts.
    """

    student: Student
    settings: RolloutSettings
    seed: int
    step: int
    lines: int
    version: int | None = None
    _keys: list[ResponseKey | None] = field(init=False)

    def __post_init__(self) -> None:
        shape, device = (self.lines, self.settings.max_new_tokens), self.student.device
        self._keys = [None] * self.lines
        self._drawn = [0] * self.lines
        self._limits = [self.settings.max_new_tokens] * self.lines
        self._uniforms = torch.zeros(shape, dtype=torch.float64, device=device)
        self._tokens = torch.zeros(shape, dtype=torch.int64, device=device)
        self._log_probs = torch.zeros(shape, device=device)
        self._masses = torch.ones(shape, device=device)
        self._terminators = torch.tensor(self.student.terminators, device=device)
        strings = self.settings.stop_strings
        pieces = pieces_of(self.student.tokenizer) if strings else {}
        self._texts = StopStrings(strings, pieces, self.lines)

    def free_lines(self) -> list[int]:
        """Lines without a response, ascending."""
        return [line for line, key in enumerate(self._keys) if key is None]

    def begin(self, line: int, key: ResponseKey) -> None:
        """Begins a response on a free line."""
        assert self._keys[line] is None, "a line holds one response"
        limit = self.settings.max_new_tokens if key.limit is None else key.limit
        draws = rollout_uniforms(self.seed, self.step, key.prompt.prompt_id, key.index, limit)
        self._keys[line] = key
        self._drawn[line] = 0
        self._limits[line] = limit
        self._uniforms[line, :limit] = torch.from_numpy(draws)
        self._texts.begin(line)

    def draw(self, lines: list[int], logits: Tensor) -> Drawn:
        """Draws the next token of the responses on k lines.

        Args:
            logits: [k, V], those of the student after what each response has so far.
        """
        settings, at = self.settings, [self._drawn[line] for line in lines]
        device = logits.device
        place = (torch.tensor(lines, device=device), torch.tensor(at, device=device))
        scaled = logits.float() / settings.temperature
        undrawn = self.student.undrawn
        if undrawn is not None:
            scaled = scaled.index_fill(-1, undrawn, -torch.inf)
        log_probs = scaled.log_softmax(-1)
        tokens, masses = sample(log_probs, self._uniforms[place], settings.top_p)
        self._tokens[place] = tokens
        self._masses[place] = masses
        self._log_probs[place] = log_probs.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
        for line in lines:
            self._drawn[line] += 1
        ends = torch.isin(tokens, self._terminators).tolist()
        if settings.stop_strings:
            next_of = dict(zip(lines, tokens.tolist(), strict=True))
            going = [line for line, end in zip(lines, ends, strict=True) if not end]
            by_text = set(self._texts.completed(going, next_of))
            ends = [end or line in by_text for line, end in zip(lines, ends, strict=True)]
        last = [self._limits[line] - 1 for line in lines]
        return Drawn(
            tokens,
            [nth for nth, end in enumerate(ends) if end],
            [nth for nth, end in enumerate(ends) if not end and at[nth] == last[nth]],
        )

    def take(self, line: int, *, finished: bool) -> Rollout:
        """The response on a line, which is free afterwards. Its last token is the terminator, or
        completes a stop string, when it ``finished``.

        Raises:
            LsmError: the student's logits were not finite.
        """
        key, count = self._keys[line], self._drawn[line]
        assert key is not None, "the line holds a response"
        prompt, index = key.prompt, key.index
        self._keys[line] = None
        tokens = self._tokens[line, :count].cpu().numpy().astype(np.int32)
        log_probs = self._log_probs[line, :count].cpu().numpy().copy()
        if not np.isfinite(log_probs).all():
            raise not_finite(f"rollout {index} of prompt {prompt.prompt_id}")
        masses = self._masses[line, :count].cpu().numpy().copy()
        return Rollout(
            prompt,
            index,
            tokens,
            log_probs,
            finished,
            nucleus_mass=masses,
            weights_version=self.version,
        )
