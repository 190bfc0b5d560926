"""The weights of a micro-batch's rows: what is known of each response is put together, and the
weights that the settings name are asked (student_trainer/weights)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from teacher_proto.errors import LsmError
from teacher_proto.rows import required
from teacher_proto.types import ContinuationScores, Status
from torch import Tensor

from student_trainer.losses.parts.base import Head, LossBatch
from student_trainer.losses.parts.normaliser import token_log_probs
from student_trainer.rollout.base import Rollout
from student_trainer.update.batching import MicroBatch, Read, micro_batch
from student_trainer.update.importance import LEAST
from student_trainer.update.support_facts import excess_surprise, of_both_sides, teacher_entropy
from student_trainer.weights import ResponseRows, RowWeight
from student_trainer.weights.base import OF_BOTH, Float64

BAD_WEIGHT = "BAD_ROW_WEIGHT"


@dataclass(frozen=True)
class Known:
    """What the rows of a micro-batch are known by.

    Attributes:
        batch, rows: the R rows that have a loss by themselves, with their support.
        chunks: the C rows that learn from their chunk.
        read, hidden: everything that the student reads at once, and its [N, H].
        rollouts, scores: of the whole update, by the same index.
        head: the student's.
    """

    batch: MicroBatch
    rows: LossBatch
    chunks: MicroBatch
    read: Read
    hidden: Tensor
    rollouts: Sequence[Rollout]
    scores: Mapping[int, ContinuationScores]
    head: Head


class RowWeights:
    """The product of the weights that a run names."""

    def __init__(
        self,
        weights: Sequence[RowWeight],
        *,
        temperature: float,
        drawn_at: float,
        chunk_rows: int,
    ) -> None:
        """
        Args:
            temperature, drawn_at: of the loss, and of the rollout.
            chunk_rows: rows of logits [rows, V] computed at a time.
        """
        self._weights = weights
        self._needs = {fact for weight in weights for fact in weight.needs}
        self._temperature, self._drawn_at = temperature, drawn_at
        self._chunk_rows = chunk_rows

    @torch.no_grad()
    def of(self, known: Known, sampled: bool) -> Tensor:
        """float32 [R + C]: the weight of each row. A row whose values are not finite has weight 1:
        the loss drops and counts it.

        Args:
            sampled: whether the loss reads a row at its sampled token.

        Raises:
            LsmError: a weight of a row is negative or not finite, or a weight raises an error.
        """
        sound = _sound(known.rows, sampled)
        facts, now = self._facts(known), self._now(known)
        found = np.ones(len(known.batch.rows) + len(known.chunks.rows))
        owners = torch.cat([known.batch.owners, known.chunks.owners]).numpy()
        steps = torch.cat([known.batch.steps, known.chunks.steps]).numpy()
        asked = np.concatenate([sound, np.ones(len(known.chunks.rows), np.bool_)])
        for place, member in enumerate(known.batch.members):
            here = np.flatnonzero((owners == place) & asked)
            if len(here):
                rollout = known.rollouts[member]
                response = self._response(known, place, facts, None if now is None else now[place])
                found[here] = self._product(response, rollout, steps[here])
        return torch.from_numpy(found.astype(np.float32)).to(known.hidden.device)

    def _product(self, response: ResponseRows, rollout: Rollout, steps: np.ndarray) -> Float64:
        """float64: the product of all weights at these tokens of a response; what is above 0 stays
        above 0 in float32."""
        product = np.ones(len(steps))
        for number, weight in enumerate(self._weights):
            values = _call(weight, number, response, rollout)[steps]
            wrong = ~np.isfinite(values) | (values < 0) | (values > np.finfo(np.float32).max)
            if wrong.any():
                first = int(np.flatnonzero(wrong)[0])
                raise _refused(
                    f"the weight of token {steps[first]} is {values[first]}",
                    weight, number, rollout, "a row's weight is a finite number, at least 0",
                )  # fmt: skip
            product = product * values
        if not (product <= np.finfo(np.float32).max).all():
            raise _refused(
                "the product of its weights is too large for float32",
                self._weights[-1], len(self._weights) - 1, rollout, "bound the weights",
            )  # fmt: skip
        return np.where(product > 0, np.maximum(product, LEAST), 0.0)

    def _response(
        self, known: Known, place: int, facts: Mapping[str, Float64], now: Float64 | None
    ) -> ResponseRows:
        """What is known of the member at ``place`` of the micro-batch.

        Args:
            facts: float64 [R], of all rows of the micro-batch.
            now: float64 [n], log pi of the member's tokens, where it is known.
        """
        member = known.batch.members[place]
        rollout, scores = known.rollouts[member], known.scores[member]
        count, drawn = len(rollout.token_ids), rollout.origin == "student"
        own = (known.batch.owners == place).numpy()
        mine: dict[str, Float64] = {}
        for name, values in facts.items():
            mine[name] = np.full(count, np.nan)
            mine[name][known.batch.steps.numpy()[own]] = values[own]
        student = rollout.log_probs.astype(np.float64) if drawn else required(now, "log pi")
        ratio = np.full(count, np.nan)
        if scores.status is Status.OK:
            theirs = required(scores.rows.sampled, "sampled token")
            ratio = np.where(theirs.valid, theirs.values, np.nan).astype(np.float64) - student
        if "moved" in self._needs:
            moved = required(now, "log pi") - student
            mine["moved"] = np.where(np.isfinite(moved), moved, 0.0)
        return ResponseRows(rollout.token_ids, rollout.length, rollout.origin, ratio, mine)

    def _facts(self, known: Known) -> dict[str, Float64]:
        """Those of the R rows that are needed, float64 [R]."""
        found: dict[str, Float64] = {}
        if "entropy" in self._needs:
            found["entropy"] = teacher_entropy(known.rows)
        if "excess_surprise" in self._needs:
            found["excess_surprise"] = excess_surprise(known.rows)
        if self._needs & set(OF_BOTH):
            found |= of_both_sides(known.rows, known.head, self._temperature, self._chunk_rows)
        return found

    def _now(self, known: Known) -> list[Float64] | None:
        """float64 [n] for each member: log pi of its scored tokens. None where no weight needs it:
        it is read of answers of the data, and of others by ``moved``."""
        own = frozenset(known.batch.members)
        rollouts = [known.rollouts[member] for member in known.batch.members]
        if "moved" not in self._needs and all(one.origin == "student" for one in rollouts):
            return None
        every = [
            np.full(len(rollout.token_ids), index in own)
            for index, rollout in enumerate(known.rollouts)
        ]
        batch = micro_batch(known.read.members, known.rollouts, every, known.read.layout)
        hidden = known.hidden.detach()
        ids = np.concatenate([rollout.token_ids for rollout in rollouts]).astype(np.int64)
        now = token_log_probs(
            hidden.index_select(0, batch.rows.to(hidden.device)),
            known.head,
            torch.from_numpy(ids).to(hidden.device),
            self._drawn_at,
            self._chunk_rows,
        )
        ends = np.cumsum([len(rollout.token_ids) for rollout in rollouts])
        return np.split(now.double().cpu().numpy(), ends[:-1])


def _sound(rows: LossBatch, sampled: bool) -> np.ndarray:
    """bool [R]: rows of which there is, and is finite, what the loss reads."""
    sound = rows.hidden.detach().isfinite().all(-1)
    if rows.support_log_probs is not None and rows.support_valid is not None:
        sound &= rows.support_log_probs.where(rows.support_valid, 0).isfinite().all(-1)
        sound &= rows.support_valid.any(-1)
    if sampled:
        sound &= required(rows.teacher_sampled, "teacher_sampled").isfinite()
    return sound.cpu().numpy()


def _call(weight: RowWeight, number: int, response: ResponseRows, rollout: Rollout) -> Float64:
    """float64 [n]. Raises LsmError when the weight does, or gives something else."""
    count = len(response.token_ids)
    try:
        values = np.asarray(weight(response), np.float64)
    except LsmError:
        raise
    except Exception as error:  # a user's own code
        raise _refused(
            f"it raises {type(error).__name__}: {error}", weight, number, rollout, "mend the class"
        ) from error
    if values.shape != (count,):
        raise _refused(
            f"it gives an array of shape {values.shape} for {count} tokens",
            weight, number, rollout, "return one weight for each token, float64 [n]",
        )  # fmt: skip
    return values


def _refused(what: str, weight: RowWeight, number: int, rollout: Rollout, fix: str) -> LsmError:
    prompt = rollout.prompt
    return LsmError(
        f"{weight.kind}, for response {rollout.index} to the prompt of "
        f"{prompt.place or prompt.prompt_id}: {what}. The update is refused, the student stays as "
        "it was",
        where=f"weights[{number}]",
        fix=f"{fix}, and resume",
        reason=BAD_WEIGHT,
    )
