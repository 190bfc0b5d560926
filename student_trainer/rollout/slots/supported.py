"""Whether a student's responses can be written by continuous batching."""

from __future__ import annotations

import logging
from weakref import WeakKeyDictionary

import numpy as np
import torch
from teacher_proto.types import Int32
from torch import Tensor, nn

from student_trainer.rollout.slots.slots import NotSupportedError, Slots
from student_trainer.student.model import Student

log = logging.getLogger(__name__)

# Of each model, why not; empty where they can.
_FOUND: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()
# Tokens of the sequences that are tried: the second goes on while the first gives its place to
# the third.
SEQUENCES = (9, 11, 15)


def why_padded(student: Student) -> str:
    """Why the student's responses are written in padded batches; empty where
    sequences can enter and leave. It is tried once for a model, and the log says why not."""
    model = student.causal_model
    if model not in _FOUND:
        _FOUND[model] = why = _tried(student)
        if why:
            log.info("responses are written in padded batches: %s", why)
    return _FOUND[model]


@torch.no_grad()
def _tried(student: Student) -> str:
    student.module.eval()
    text = student.causal_model.config.get_text_config(decoder=True)
    if getattr(text, "attention_chunk_size", None) is not None:
        return "it attends in chunks, which begin at fixed positions"
    try:
        wrong = _difference(student)
    except NotSupportedError as error:
        return str(error)
    except Exception as error:  # a model's own code may fail in any way
        return f"sequences cannot enter and leave its cache ({type(error).__name__}: {error})"
    bound = 1e-4 if student.dtype == torch.float32 else 3e-2
    return (
        ""
        if wrong <= bound
        else f"a sequence's logits change when others enter and leave (by {wrong:.2g})"
    )


def _difference(student: Student) -> float:
    """How far logits of sequences that enter and leave are from those of each alone: the
    largest difference over the largest of these, or over 1 where they are smaller."""
    ids = np.arange(max(SEQUENCES)) * 7 % (student.vocabulary_size - 1)
    first, second, third = (np.roll(ids, n).astype(np.int32)[:m] for n, m in enumerate(SEQUENCES))
    slots = Slots(student, 2)

    def go_on(*sequences: Int32) -> Tensor:
        """Up to the end of the first sequence."""
        while slots.lengths[0] < len(sequences[0]):
            at = [ids[n] for ids, n in zip(sequences, slots.lengths, strict=True)]
            logits = slots.step(torch.tensor(np.array(at, np.int64), device=student.device))
        return logits

    both = slots.read([first[:5], second[:3]])
    slots.enter(both, 0, 1, room=2)
    slots.enter(both, 1, 1, room=2)
    wrong = [_apart(student, go_on(first, second)[0], first)]
    # The second takes the slot of the first, and a longer one than both enters.
    slots.leave([0], room=2)
    slots.enter(slots.read([third[:11]]), 0, 1, room=2)
    found = go_on(second, third)
    return max(*wrong, _apart(student, found[0], second), _apart(student, found[1], third))


def _apart(student: Student, found: Tensor, sequence: Int32) -> float:
    ids = torch.from_numpy(sequence.astype(np.int64)).to(student.device)[None]
    output = student.causal_model(input_ids=ids, attention_mask=torch.ones_like(ids))
    own = output.logits[0, -1].float()
    return float((own - found.float()).abs().max()) / max(float(own.abs().max()), 1.0)
