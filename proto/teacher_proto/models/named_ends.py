"""The ids that a model's files name as the end of a response."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

CONFIG, TOKENIZER = "generation config", "tokenizer"


def named_ends(
    tokenizer: Any, generation_config: Any | None, *others: tuple[str, Sequence[int]]
) -> dict[int, list[str]]:
    """id -> who names it: the generation config, the tokenizer, and any ``others``.

    Args:
        tokenizer: of transformers.
        generation_config: of transformers; None where the model has none.
        others: who else names ids, with the ids.
    """
    configured = getattr(generation_config, "eos_token_id", None)
    of_config = configured if isinstance(configured, list | tuple) else [configured]
    named: dict[int, list[str]] = {}
    for reason, ids in ((CONFIG, of_config), (TOKENIZER, [tokenizer.eos_token_id]), *others):
        for token in ids:
            if token is not None and reason not in named.get(token, []):
                named.setdefault(token, []).append(reason)
    return named
