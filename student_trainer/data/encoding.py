"""Texts become token ids, many at once."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

# Texts that one thread encodes at a time, and the most threads.
SLICE, THREADS = 64, 8


class Encoder:
    """Encodes as a tokenizer of transformers does, without adding special tokens.

    The library's tokenizer is asked directly, by several threads, without the bookkeeping
    of transformers, as long as that gives the same ids.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._direct: Any = getattr(tokenizer, "backend_tokenizer", None)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text."""
        if not texts:
            return []
        # This also leaves it without truncation and padding.
        first: list[int] = self._tokenizer(texts[0], add_special_tokens=False)["input_ids"]
        if self._direct is None or self._ids(texts[:1]) != [first]:
            self._direct = None  # a class of its own in transformers does more
            found: list[list[int]] = self._tokenizer(list(texts), add_special_tokens=False)[
                "input_ids"
            ]
            return found
        slices = [texts[start : start + SLICE] for start in range(0, len(texts), SLICE)]
        if len(slices) == 1:
            return self._ids(texts)
        with ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)) as threads:
            return [ids for part in threads.map(self._ids, slices) for ids in part]

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        encoded = self._direct.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encoded]
