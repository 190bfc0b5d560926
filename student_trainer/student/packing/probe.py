"""Whether a model reads packed sequences as it reads them padded: tried on a few tokens."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from teacher_proto.errors import first_line
from torch import Tensor

from student_trainer.student.packing.attention import NotPackableError
from student_trainer.student.packing.layout import Layout, pack, pad

# Responses to two prompts and one to a third, by the lengths of prompt and response.
PROBE = ((6, 5), (6, 3), (4, 7), (5, 6), (5, 2))
PROMPTS = (0, 0, 1, 2, 2)
# What other sequences may change, of what packing may.
OF_OTHERS = 0.1


def why_not_packable(
    read: Callable[[Layout], Tensor], ids: int, padding_id: int, bound: float
) -> str | None:
    """Why a model cannot read packed sequences, or None where it can.

    It can where its hidden states are those of the padded sequences, and where other tokens before
    a sequence change none of its own: random weights may hardly attend to anything.

    Args:
        read: the hidden states [B * L, H] of a layout.
        ids: only ids below it are read.
        bound: on the 2-norm of a difference, relative to what is compared.
    """
    sequences = _sequences(0, ids)
    others = [*_sequences(ids // 2, ids)[:2], *sequences[2:]]
    prompts = [prompt for prompt, _ in PROBE]
    layout = pack(sequences, prompts)
    try:
        packed = read(layout).float()
        beside_others = read(pack(others, prompts)).float()
    except NotPackableError as error:
        return str(error)
    except Exception as error:  # whatever a model's own code raises
        return f"it does not read them: {type(error).__name__}: {first_line(error)}"
    padded_layout = pad(sequences, padding_id)
    padded = read(padded_layout).float()
    size = float(padded.norm())
    for place, places in enumerate(layout.places):
        expected = padded[padded_layout.places[place]]
        if not float((packed[places] - expected).norm()) <= bound * size:
            return "its hidden states are not those of padded sequences"
    own = np.concatenate(layout.places[2:])
    if not float((packed[own] - beside_others[own]).norm()) <= OF_OTHERS * bound * size:
        return "its hidden states depend on the other sequences"
    return None


def _sequences(first: int, ids: int) -> list[np.ndarray]:
    """int32 [P + n] each; prompts that are the same have the same ids."""
    found = []
    for place, (prompt, response) in enumerate(PROBE):
        beginning = 31 * PROMPTS[place] + 7 * np.arange(prompt)
        own = 101 + 53 * place + 11 * np.arange(response)
        found.append(((first + np.concatenate([beginning, own])) % ids).astype(np.int32))
    return found
