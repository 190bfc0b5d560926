"""Metrics of a step without its times (docs/reference/student-trainer-metrics.md lists
them), from the totals of its updates. In nats and tokens.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from teacher_proto.rows import required
from teacher_proto.types import Bool
from torch import Tensor

from student_trainer.diagnostics.responses import Response, length_metrics, loop_metrics
from student_trainer.diagnostics.signal import Signal, no_signal, signal_metrics, signal_of
from student_trainer.distributed.world import ALONE, World
from student_trainer.losses import Loss
from student_trainer.losses.parts.base import Head, LossBatch, LossResult
from student_trainer.losses.parts.normaliser import row_statistics
from student_trainer.rollout.base import Origin
from student_trainer.rollout.sampling import stream
from student_trainer.settings.rollout import ScoringSettings
from student_trainer.update.batching import MicroBatch


class Means:
    """Means by name, from sums and counts that are added up."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = defaultdict(float)
        self._counts: dict[str, int] = defaultdict(int)

    def add(self, name: str, total: float, count: int) -> None:
        self._sums[name] += total
        self._counts[name] += count

    def add_values(self, name: str, values: Tensor) -> None:
        self.add(name, float(values.double().sum()), values.numel())

    def plain(self) -> dict[str, tuple[float, int]]:
        """Sums and counts as JSON values."""
        return {name: (total, self._counts[name]) for name, total in self._sums.items()}

    @classmethod
    def of_plain(cls, values: Mapping[str, Sequence[float]]) -> Means:
        means = cls()
        for name, (total, count) in values.items():
            means.add(name, total, int(count))
        return means

    def add_all(self, other: Means) -> None:
        for name, total in other._sums.items():
            self.add(name, total, other._counts[name])

    def mean(self, name: str) -> float | None:
        """The mean; None when nothing was counted."""
        count = self._counts.get(name, 0)
        return self._sums[name] / count if count else None

    def all(self) -> dict[str, float | None]:
        return {name: self.mean(name) for name in self._sums}


# What is counted of rows and of responses.
COUNTED = (
    "rows",
    "used",
    "masked",
    "unusable",
    "rows_by_chunk",
    "coarse",
    "refused",
    "dropped_non_finite",
    "dropped_small_support",
)


@dataclass
class UpdateTotals:
    """Totals of the updates of one step.

    With several teachers what is counted of rows is counted for each teacher by itself, and
    ``whole`` adds it up. Of either, answers of the data are counted by themselves: means of the
    student's responses stay its own.

    Attributes:
        by_teacher: of the rows that each of several teachers scored; empty with one teacher.
        data: of the rows of answers of the data; None where there are none.
        losses: mean loss of each update; of a teacher's, before its weight.
        grad_norms: norm of each update's gradient before clipping.
        rows, used: rows of the rollouts, and those of them that gave a loss.
        masked: rows that the settings mask.
        unusable: other rows for which a teacher with another tokenizer gives no usable
            row.
        rows_by_chunk: rows that learn from their chunk.
        coarse: used rows that are compared on their ids and the rest.
        refused: responses that the teacher refuses by themselves, and why the first one.
        empty: updates without a usable row, which change nothing.
        clipped: updates whose gradient was clipped.
        signal: of the rows that the student drew.
    """

    losses: list[float] = field(default_factory=list)
    grad_norms: list[float] = field(default_factory=list)
    clipped: int = 0
    lr: float = 0.0
    rows: int = 0
    used: int = 0
    masked: int = 0
    unusable: int = 0
    rows_by_chunk: int = 0
    coarse: int = 0
    refused: int = 0
    refusal: str = ""
    empty: int = 0
    dropped_non_finite: int = 0
    dropped_small_support: int = 0
    means: Means = field(default_factory=Means)
    signal: Signal = field(default_factory=no_signal)
    by_teacher: dict[str, UpdateTotals] = field(default_factory=dict)
    data: UpdateTotals | None = None

    @classmethod
    def of_teachers(cls, names: Collection[str]) -> UpdateTotals:
        """Empty totals of a run with these teachers."""
        return cls(by_teacher={name: cls() for name in names} if len(names) > 1 else {})

    def of(self, teacher: str) -> UpdateTotals:
        """Where the rows of a teacher are counted."""
        return self.by_teacher[teacher] if self.by_teacher else self

    def of_origin(self, origin: Origin) -> UpdateTotals:
        """Where the rows of the student's responses are counted, or those of answers."""
        if origin == "student":
            return self
        self.data = self.data or UpdateTotals()
        return self.data

    def counted(self, name: str) -> int:
        """What is counted of rows or responses, of all of them."""
        of_data = 0 if self.data is None else getattr(self.data, name)
        return int(getattr(self, name) + of_data)

    def whole(self) -> UpdateTotals:
        """With the rows of every teacher."""
        if not self.by_teacher:
            return self
        added = replace(self, by_teacher={}, means=Means(), signal=no_signal(), data=None)
        for part in self.by_teacher.values():
            added._add(part)
            if part.data is not None:
                added.of_origin("data")._add(part.data)
        return added

    def _add(self, part: UpdateTotals) -> None:
        for name in COUNTED:
            setattr(self, name, getattr(self, name) + getattr(part, name))
        self.refusal = self.refusal or part.refusal
        self.means.add_all(part.means)
        self.signal = self.signal.plus(part.signal)


def choose_rows(
    keep: Sequence[Bool], count: int, seed: int, step: int, world: World = ALONE
) -> list[Bool]:
    """Chooses ``count`` of the kept rows of all ranks, or all when there are fewer: bool [n] for
    each response of this rank.

    The choice depends on the rows alone, not on how they are cut into micro-batches.
    """
    lengths = [len(rows) for rows in keep]
    kept = np.flatnonzero(np.concatenate(keep))
    every = world.gather(len(kept))
    first = sum(every[: world.rank])
    places = stream("metric rows", seed, step).choice(
        sum(every), min(count, sum(every)), replace=False
    )
    mine = places[(places >= first) & (places < first + len(kept))] - first
    chosen = np.zeros(sum(lengths), np.bool_)
    chosen[kept[mine]] = True
    return np.split(chosen, np.cumsum(lengths)[:-1])


def add_rows(
    totals: UpdateTotals,
    batch: LossBatch,
    result: LossResult,
    chosen: Tensor,
    head: Head,
    settings: Loss,
    rollout_temperature: float,
) -> None:
    """Adds the rows of a micro-batch.

    Args:
        chosen: bool [T], rows whose metrics need the whole vocabulary.
        rollout_temperature: at which the rows' tokens were drawn.
    """
    means, used = totals.means, result.used
    coarse = batch.coarse_rows
    of_coarse = int((used & coarse).sum())
    totals.coarse += of_coarse
    for found, count in (
        (result.metrics, int(used.sum()) - of_coarse),
        (result.coarse_metrics, of_coarse),
    ):
        for name, total in found.items():
            means.add(name, total, count)
    _add_signal(totals, batch, used & ~coarse, of_coarse)
    if batch.support_log_probs is not None and "teacher_support_mass" not in result.metrics:
        _add_support(means, batch, used)
    rows = torch.nonzero(chosen.to(used.device) & used).squeeze(-1)
    if not len(rows):
        return
    statistics = row_statistics(
        batch.hidden.detach()[rows],
        head,
        batch.sampled_ids[rows],
        settings.temperature,
        settings.chunk_rows,
        None if batch.support_ids is None else batch.support_ids[rows],
        None if batch.support_valid is None else batch.support_valid[rows],
    )
    means.add_values("student_entropy", statistics.entropy)
    coarse = coarse[rows]
    if statistics.support_mass is not None:
        means.add_values("student_support_mass", statistics.support_mass[~coarse])
        if batch.coarse is not None:
            means.add_values("coarse_student_rest", 1 - statistics.support_mass[coarse])
    if statistics.support_overlap is not None:
        means.add_values("support_overlap", statistics.support_overlap[~coarse])
    if settings.temperature == rollout_temperature and batch.old_log_probs is not None:
        moved = statistics.sampled_log_probs - batch.old_log_probs[rows]
        means.add_values("rollout_log_prob_gap", moved.abs())


def add_chunks(totals: UpdateTotals, result: LossResult) -> None:
    """Adds the rows that learn from their chunk (losses/chunk.py)."""
    count = int(result.used.sum())
    if count:
        totals.means.add("chunk_advantage", result.metrics["advantage"], count)
        totals.rows_by_chunk += count
        totals.signal = totals.signal.plus(no_signal(unknown=count))


def _add_signal(totals: UpdateTotals, batch: LossBatch, rows: Tensor, coarse: int) -> None:
    """Adds the log-ratios of teacher to student at the sampled tokens.

    Args:
        rows: bool [T], rows in the loss that are not coarse.
        coarse: how many rows in the loss are.
    """
    if batch.old_log_probs is None:
        return  # answers of the data, which no student drew
    if batch.teacher_sampled is None:
        totals.signal = totals.signal.plus(no_signal(unknown=int(rows.sum()) + coarse))
        return
    ratio = batch.teacher_sampled - batch.old_log_probs
    known = rows & ratio.isfinite()
    totals.means.add_values("log_ratio_mean", ratio[known])
    found = signal_of(
        batch.teacher_sampled[known].double().cpu().numpy(),
        batch.old_log_probs[known].double().cpu().numpy(),
        required(batch.steps, "steps")[known].cpu().numpy(),
        unknown=int((rows & ~known).sum()) + coarse,
    )
    totals.signal = totals.signal.plus(found)


def _add_support(means: Means, batch: LossBatch, used: Tensor) -> None:
    valid = required(batch.support_valid, "support_valid")[used]
    log_probs = required(batch.support_log_probs, "support_log_probs")[used]
    mass = log_probs.where(valid, -torch.inf).exp().sum(-1)
    ids = required(batch.support_ids, "support_ids")[used]
    inside = ((ids == batch.sampled_ids[used, None]) & valid).any(-1)
    means.add_values("teacher_support_mass", mass)
    means.add_values("sampled_in_support", inside.float())


def micro_batch_rows(batch: MicroBatch, chosen: Sequence[Bool]) -> Tensor:
    """bool [T]: ``chosen`` by response, as the rows of a micro-batch."""
    members, owners, steps = batch.members, batch.owners.tolist(), batch.steps.tolist()
    flags = [bool(chosen[members[o]][t]) for o, t in zip(owners, steps, strict=True)]
    return torch.tensor(flags, dtype=torch.bool)


# Means that every line has, in this order.
MEANS = (
    "teacher_support_mass",
    "student_entropy",
    "student_support_mass",
    "support_overlap",
    "sampled_in_support",
    "top1_agreement_on_support",
    "log_ratio_mean",
)


def scoring_metrics(settings: ScoringSettings, responses: Sequence[Response]) -> dict[str, int]:
    """How many tokens of the responses the teacher was not asked for; empty where every
    response is scored whole."""
    if not settings.cuts:
        return {}
    return {"teacher_tokens_saved": sum(one.tokens - one.scored for one in responses)}


def data_metrics(totals: UpdateTotals, responses: Sequence[Response]) -> dict[str, object]:
    """What is said of the answers of the data in a step, as ``data_NAME``; empty where it has
    none.

    Args:
        responses: of the whole step.
    """
    answers = [one for one in responses if one.origin == "data"]
    if not answers:
        return {}
    part = totals.data or UpdateTotals()
    found = {
        "responses": len(answers),
        "tokens": part.rows,
        "tokens_used": part.used,
        "response_length_mean": length_metrics(answers)["response_length_mean"],
        **{name: value for name, value in part.means.all().items() if value is not None},
    }
    return {f"data_{name}": value for name, value in found.items()}


def step_metrics(totals: UpdateTotals, responses: Sequence[Response]) -> dict[str, object]:
    """The step's metrics without times; None for what was not measured. With several teachers
    what is said of rows is also said of each teacher's, under ``NAME/TEACHER``."""
    whole = totals.whole()
    line: dict[str, object] = {
        "loss": float(np.mean(totals.losses)) if totals.losses else None,
        **_counts(whole),
        "empty_updates": totals.empty,
        **_of_responses(_of_student(responses)),
        "grad_norm": max(totals.grad_norms, default=None),
        "clipped": totals.clipped > 0,
        "clipped_share": totals.clipped / len(totals.grad_norms) if totals.grad_norms else None,
        "lr": totals.lr,
        **_means(whole),
        **signal_metrics(whole.signal),
        **data_metrics(whole, responses),
    }
    for name, part in totals.by_teacher.items():
        its = [one for one in responses if one.teacher == name]
        losses = {"loss": float(np.mean(part.losses)) if part.losses else None}
        own = _of_student(its)
        of_teacher = {
            **losses,
            **_counts(part),
            **(_of_responses(own) if own else {}),
            **_means(part),
            **signal_metrics(part.signal),
            **data_metrics(part, its),
        }
        line |= {f"{key}/{name}": value for key, value in of_teacher.items()}
    return line


def _of_responses(responses: Sequence[Response]) -> dict[str, object]:
    return {**length_metrics(responses), **loop_metrics(responses)}


def _of_student(responses: Sequence[Response]) -> list[Response]:
    return [one for one in responses if one.origin == "student"]


def _counts(totals: UpdateTotals) -> dict[str, object]:
    return {
        "tokens": totals.counted("rows"),
        "tokens_used": totals.counted("used"),
        "masked_tokens": totals.counted("masked"),
        "unusable_tokens": totals.counted("unusable"),
        "chunk_tokens": totals.counted("rows_by_chunk"),
        "coarse_tokens": totals.counted("coarse"),
        "refused_rollouts": totals.counted("refused"),
        "dropped_non_finite": totals.counted("dropped_non_finite"),
        "dropped_small_support": totals.counted("dropped_small_support"),
    }


def _means(totals: UpdateTotals) -> dict[str, object]:
    means = totals.means
    return {
        **{name: means.mean(name) for name in MEANS},
        **{name: value for name, value in means.all().items() if name not in MEANS},
    }
