"""What every loss takes and returns. Shapes: T rows, H hidden size, V vocabulary, K size of
the support. Row t belongs to scored token t (docs/contract.md).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from teacher_proto.types import ContinuationScores
from torch import Tensor

from student_trainer.losses.scored.arrays import LossBatchError, described, loss_arrays

# A logit whose probability is 0 at any temperature in use. It is finite, so that no
# product with that 0 is NaN.
NEVER = -1e15


@dataclass(frozen=True)
class LowRank:
    """A LoRA adapter on the head: adds ``scale * (hidden down^T) up^T``.

    Attributes:
        down: [r, H]. up: [V, r]. scale: alpha / r.
    """

    down: Tensor
    up: Tensor
    scale: float = 1.0

    def reduce(self, hidden: Tensor) -> Tensor:
        """scale * hidden down^T, [T, r] in the adapter's dtype."""
        return hidden.to(self.down.dtype) @ self.down.T * self.scale


@dataclass(frozen=True)
class Head:
    """The student's output projection: logits = softcap(scale * (hidden W^T + bias)). A LoRA
    adapter on the head adds its product to hidden W^T.

    Attributes:
        weight: [V, H], the model's own parameter, which receives the gradient.
        bias: [V] or None.
        scale: factor on the logits (1 for most models).
        softcap: c in c * tanh(logits / c), or None.
        accumulate_in_place: when ``weight.grad`` is allocated, backward adds to it directly
            and returns no gradient for the weight to autograd. This saves a dense [V, H]
            gradient per micro-batch; hooks on the weight do not run.
        lora: adapter on the projection, or None.
        undrawn: int64 [M], ids that are never drawn because no token has them, or None.
            The student's probability of them is 0. No support may contain them.
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None
    accumulate_in_place: bool = False
    lora: LowRank | None = None
    undrawn: Tensor | None = None

    @property
    def tensors(self) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
        """weight, bias, the adapter's down and up: the tensors that may need a gradient."""
        down, up = (None, None) if self.lora is None else (self.lora.down, self.lora.up)
        return self.weight, self.bias, down, up

    def finish(self, projection: Tensor) -> Tensor:
        """Turns hidden W^T + bias, any shape, into logits of the same shape."""
        logits = projection * self.scale if self.scale != 1.0 else projection
        if self.softcap is not None:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        return logits

    def finish_rows(self, projection: Tensor) -> Tensor:
        """As ``finish``, for whole rows [..., V]: ``NEVER`` at the ids that are never drawn."""
        logits = self.finish(projection)
        return logits if self.undrawn is None else logits.index_fill(-1, self.undrawn, NEVER)


@dataclass(frozen=True)
class LossBatch:
    """The scored rows of one micro-batch.

    Attributes:
        hidden: [T, H] final hidden states, the input of the head.
        sampled_ids: int64 [T], the rollout's own token of each row.
        weights: float32 [T], each row's share in the mean, with its importance weight
            multiplied in; 0 leaves the row out.
        support_ids: int64 [T, K], ids of the support; any id in invalid slots. No id
            occurs twice among a row's valid slots.
        support_log_probs: float32 [T, K], of the teacher, nats.
        support_valid: bool [T, K].
        teacher_log_tail: float32 [T], the teacher's log-probability of everything outside
            the support, as the service computed it; for ``tail="bucket"``.
        teacher_tail_valid: bool [T], False where nothing is outside the support.
        teacher_sampled: float32 [T], the teacher's log-probability of the sampled token, or
            None when it was not requested.
        old_log_probs: float32 [T], the student's log-probability of the sampled token when
            it was drawn, at the rollout's temperature, before top-p.
        explicit_ids: int64 [T, E], ids at which the teacher was scored besides its top-K;
            ``choose_support`` can use them for the support.
        explicit_log_probs, explicit_valid: float32 and bool [T, E].
        responses: int64 [T], which response a row belongs to. The rows of a response are
            contiguous. For returns over a response (``sampled_token``).
        steps: int64 [T], a row's place in its response, ascending within the response.
        teacher_logits: [T, V], of a teacher in this process, for the losses over the whole
            vocabulary.
        teacher_hidden, teacher_head: [T, H'] and the teacher's own projection to V,
            instead of ``teacher_logits``.
        coarse: bool [T], rows that are compared on the support and the rest of each side,
            whatever ``LossSettings.tail`` says of the others: those in which an id outside the
            support could be the teacher's most likely one, and across tokenizers those with a
            single id. They need ``teacher_log_tail`` and one valid id. None: there are none.
    """

    hidden: Tensor
    sampled_ids: Tensor
    weights: Tensor
    support_ids: Tensor | None = None
    support_log_probs: Tensor | None = None
    support_valid: Tensor | None = None
    teacher_log_tail: Tensor | None = None
    teacher_tail_valid: Tensor | None = None
    teacher_sampled: Tensor | None = None
    old_log_probs: Tensor | None = None
    explicit_ids: Tensor | None = None
    explicit_log_probs: Tensor | None = None
    explicit_valid: Tensor | None = None
    responses: Tensor | None = None
    steps: Tensor | None = None
    teacher_logits: Tensor | None = None
    teacher_hidden: Tensor | None = None
    teacher_head: Head | None = None
    coarse: Tensor | None = None

    @classmethod
    def from_scores(
        cls,
        hidden: Tensor,
        sampled_ids: Sequence[Any],
        scores: Sequence[ContinuationScores],
        *,
        rows: Sequence[Any] | None = None,
        explicit_ids: Sequence[Any] | None = None,
        old_log_probs: Sequence[Any] | None = None,
        weights: Any = None,
    ) -> LossBatch:
        """The rows of some responses, as ``TeacherClient.score`` returned them; realigned or
        not, with supports of any width. Arrays may be numpy's, torch's or lists; ``hidden`` is a
        tensor.

        The support is the teacher's own top-K; ``choose_support`` makes another. A row of class
        MASKED, and every row of a response that could not be realigned, has weight 0; a response
        whose rows are not finite has NaN, which the losses drop and count. Coarse rows are
        marked (``single_ids_as_coarse`` marks those of a single id as well).

        Args:
            hidden: [T, H], the student's final hidden state at the token before each scored
                token; the responses stand one after the other.
            sampled_ids: for each response int [n], the token of each of its rows.
            scores: of each response.
            rows: for each response int [n], which of the rows of its scores; None takes all.
            explicit_ids: for each response int [n, E], the ids that were asked for besides the
                top-K, in the request's order; None where none were.
            old_log_probs: for each response float [n], for losses that need it.
            weights: float [T] in place of those above.

        Raises:
            LossBatchError: a number of rows, a dtype or a part does not fit; says which, with
                the dtype and shape that were given.
        """
        arrays = loss_arrays(
            sampled_ids,
            scores,
            rows=rows,
            explicit_ids=explicit_ids,
            old_log_probs=old_log_probs,
            weights=weights,
        )
        total = len(arrays["weights"])
        if not isinstance(hidden, Tensor):
            raise LossBatchError(
                f"it is a {type(hidden).__name__}",
                where="hidden",
                fix="give a tensor: the loss's gradient goes there",
            )
        if hidden.dim() != 2 or len(hidden) != total or not hidden.is_floating_point():
            raise LossBatchError(
                f"it is {described(hidden)}, and the scores have {total} rows",
                where="hidden",
                fix=f"give one state for each row, float [{total}, H]",
            )
        found: dict[str, Any] = {
            name: torch.from_numpy(array).to(hidden.device) for name, array in arrays.items()
        }
        return cls(hidden=hidden, **found)

    @property
    def coarse_rows(self) -> Tensor:
        """bool [T]: the coarse rows; all False where ``coarse`` is None."""
        return (
            torch.zeros_like(self.weights, dtype=torch.bool) if self.coarse is None else self.coarse
        )


@dataclass(frozen=True)
class LossSettings:
    """Settings of the losses. Each loss uses those that its definition names.

    Attributes:
        temperature: of both sides of the divergence.
        chunk_rows: rows of logits [rows, V] computed at a time, where they are needed.
        tail: "none" renormalises both sides on the support; "bucket" adds one outcome for
            the rest of each side and renormalises nothing.
        beta: weight of the teacher in the mixture (topk_jsd, full_jsd), in (0, 1).
        row_clamp: bound on a row's loss in nats, or None. A row at the bound has no
            gradient and is counted.
        clip: width of the ratio's trust region (sampled_token).
        dual_clip: bound on the loss of negative advantages (sampled_token).
        advantage_clamp: bound on |A_t| in nats, or None (sampled_token).
        gamma: discount of later tokens' rewards in a token's return, in [0, 1]; 0 is
            token-level, 1 sequence-level (sampled_token).
        study: allows ``unnormalised_reverse_kl``, which makes the student collapse.
    """

    temperature: float = 1.0
    chunk_rows: int = 128
    tail: Literal["none", "bucket"] = "none"
    beta: float = 0.5
    row_clamp: float | None = None
    clip: float = 0.2
    dual_clip: float = 3.0
    advantage_clamp: float | None = None
    gamma: float = 0.0
    study: bool = False


@dataclass(frozen=True)
class LossResult:
    """A loss as a sum, so that micro-batches add up and the mean is taken once per update.

    Attributes:
        total: scalar float32 with gradient: the sum over used rows of weight * loss.
        per_row: float32 [T], detached, nats; 0 for unused rows.
        used: bool [T], rows that count in numerator and denominator.
        dropped_non_finite: number of rows with weight > 0 that are not finite.
        dropped_small_support: number of rows with weight > 0 and fewer than two valid ids,
            or, of coarse rows, without an id or without a rest beside a single one.
        metrics: sums over used rows that are not coarse (each with weight 1), by name.
        coarse_metrics: sums over used coarse rows, by name; empty where there are none.
    """

    total: Tensor
    per_row: Tensor
    used: Tensor
    dropped_non_finite: int = 0
    dropped_small_support: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    coarse_metrics: dict[str, float] = field(default_factory=dict)


LossFunction = Callable[[LossBatch, Head, LossSettings], LossResult]


def select_rows(condition: Tensor) -> Tensor:
    """int64: the indices of the True entries of a bool [T]."""
    return torch.nonzero(condition, as_tuple=False).squeeze(-1)
