"""Which ids of its head a student can write.

A head is often wider than the tokenizer, for the sake of round sizes. An id that no token
has is never drawn, and its probability is 0 in every loss and metric.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from teacher_proto.errors import ConfigurationError
from torch import Tensor

from student_trainer.student.loading import MODEL


def undrawn_ids(tokenizer: Any, width: int, rows: int) -> Tensor | None:
    """int64 [M]: the ids of a head of ``width`` that no token has, or no embedding of
    ``rows``, ascending; None when every id has both."""
    known = np.fromiter(tokenizer.get_vocab().values(), np.int64)
    without = np.ones(width, np.bool_)
    without[known[known < min(width, rows)]] = False
    return torch.from_numpy(np.flatnonzero(without)) if without.any() else None


def drawn_below(undrawn: Tensor | None, width: int) -> int:
    """One above the highest id that a token has."""
    if undrawn is None:
        return width
    without = set(undrawn.tolist())
    return next((i + 1 for i in range(width - 1, -1, -1) if i not in without), 0)


def padding_id(tokenizer: Any, otherwise: int, width: int) -> int:
    """The tokenizer's padding id, or ``otherwise`` when it has none.

    Raises:
        ConfigurationError: the model has no embedding for the padding id.
    """
    padding = tokenizer.pad_token_id
    if padding is None:
        return otherwise
    if padding >= width:
        raise ConfigurationError(
            f"its tokenizer pads with id {padding}, and the model has {width} ids: the token is "
            f"{tokenizer.pad_token!r}",
            where=MODEL,
            fix="set pad_token in tokenizer_config.json to a token of this model",
        )
    return int(padding)


def describe_vocabulary(undrawn: Tensor | None, width: int) -> str:
    """A phrase on how many ids the head has and how many of them are never drawn."""
    if undrawn is None:
        return f"{width} ids"
    return f"{width} ids, {len(undrawn)} of them without a token and never drawn"
