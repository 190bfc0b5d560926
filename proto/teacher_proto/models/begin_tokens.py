"""Which special tokens a tokenizer puts before a text."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from teacher_proto.types import Int32


def begin_ids(tokenizer: Any, configuration: Mapping[str, Any]) -> tuple[int, ...]:
    """Ids that belong before a text: those that the tokenizer's post-processor puts there,
    else its begin-of-text token where its configuration asks for that (``add_bos_token``),
    which transformers does not follow where there is a tokenizer.json. What a post-processor
    puts after a text is not among them.

    Args:
        tokenizer: of transformers.
        configuration: its tokenizer_config.json; empty where it has none.
    """
    encoded = tokenizer("a", return_special_tokens_mask=True)
    marked = zip(encoded["input_ids"], encoded["special_tokens_mask"], strict=True)
    found = tuple(token for token, _ in itertools.takewhile(lambda pair: pair[1], marked))
    bos = tokenizer.bos_token_id
    if not found and bos is not None and configuration.get("add_bos_token") is True:
        return (bos,)
    return found


def missing_begin(begin: Sequence[int], ids: Sequence[int]) -> Sequence[int]:
    """The part of ``begin`` that ``ids`` lack at their beginning: all but its end that they
    begin with, else all but its beginning that they begin with."""
    for there in range(min(len(begin), len(ids)), 0, -1):
        if list(begin[-there:]) == list(ids[:there]):
            return begin[:-there]
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(begin, ids, strict=False))
    return begin[sum(1 for _ in same) :]


def begin_text(begin: Sequence[int], ids: Int32) -> Int32:
    """``ids``, int32 [L], after those of ``begin`` that they lack (``missing_begin``): a part
    of it that is there already is not there twice."""
    missing = missing_begin(begin, ids[: len(begin)].tolist())
    there = len(begin) - len(missing)
    return np.concatenate([np.asarray(begin, np.int32), ids[there:]])
