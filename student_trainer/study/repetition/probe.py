"""The figures of each repetition, from the rows of both models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from student_trainer.student.model import Student
from student_trainer.study.repetition.loop import Loop
from student_trainer.study.repetition.models import Teacher, check_finite, model_logits
from student_trainer.study.repetition.signals import objectives, pushes

# A push below this, in nats for a unit of step, has no sign: the models' float32 does not
# resolve it.
STILL = 1e-5


def probe(
    loops: Sequence[Loop], teacher: Teacher, student: Student | None, ids: Tensor, top_k: int
) -> list[dict[str, Any]]:
    """The figures of each case.

    Args:
        student: None measures the teacher alone.
        ids: int64 [V], the ids that are compared, ascending.
        top_k: K of the objectives on a support, less than V.

    Raises:
        ConfigurationError: a model's rows are not finite.
    """
    found = []
    for loop in loops:
        tokens = torch.from_numpy(loop.selection.response[loop.selection.rows]).long()
        next_ids = torch.searchsorted(ids, tokens)
        log_q = teacher.log_probs(loop.selection)
        check_finite([log_q], "the teacher")
        rows = {f"teacher_{name}": values for name, values in of_model(log_q, next_ids).items()}
        signals: Mapping[str, Tensor] = {}
        if student is not None:
            logits = model_logits(student, loop.selection, ids)
            check_finite([logits], "--student")
            own = of_model(torch.log_softmax(logits, -1), next_ids)
            rows |= {f"student_{name}": values for name, values in own.items()}
            signals = pushes(objectives(top_k), logits, log_q, next_ids, top_k)
        found.append(
            {
                "case": loop.case.name,
                "question": loop.case.question,
                "answer": loop.case.answer,
                "loop": loop.case.loop,
                "loop_tokens": loop.length,
                "repetitions": by_repetition(rows, signals, loop.length),
            }
        )
    return found


def of_model(log_probs: Tensor, next_ids: Tensor) -> dict[str, Tensor]:
    """What a model says at each row, [R] in nats: ``log_prob`` of the loop's next token, and the
    ``entropy`` of the row."""
    return {
        "log_prob": log_probs.gather(1, next_ids[:, None]).squeeze(1),
        "entropy": -(log_probs.exp() * log_probs).sum(-1),
    }


def by_repetition(
    rows: Mapping[str, Tensor], signals: Mapping[str, Tensor], length: int
) -> list[dict[str, Any]]:
    """Means over the loop's tokens, for each time that it stands there.

    ``repeats`` counts how often it stood there before. ``first_...`` is of its first token alone,
    where the loop is gone on with or left; ``up`` and ``down`` are shares of the tokens that an
    objective pushes up and down.
    """
    found = []
    for repeats in range(len(next(iter(rows.values()))) // length):
        at = slice(repeats * length, (repeats + 1) * length)
        figures: dict[str, Any] = {"repeats": repeats}
        for name, values in rows.items():
            figures[name] = float(values[at].mean())
            figures[f"first_{name}"] = float(values[at][0])
        if signals:
            figures["signals"] = {
                name: {
                    "push": float(values[at].mean()),
                    "first_push": float(values[at][0]),
                    "up": float((values[at] > STILL).double().mean()),
                    "down": float((values[at] < -STILL).double().mean()),
                }
                for name, values in signals.items()
            }
        found.append(figures)
    return found


def direction(push: float) -> str:
    """Which way a push goes: ``up``, ``down``, or ``none`` where it has no sign."""
    if abs(push) <= STILL:
        return "none"
    return "up" if push > 0 else "down"
