"""Rests of teacher tokens, and other texts, as numbers that are looked up as arrays.

Inside a teacher token only what is left of it after a position counts, its *rest*. Rests are
hardly ever tokens, but the same few come again and again.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from teacher_server.realign.pair.vocabulary import Vocabulary
from teacher_server.realign.segmentation.memo import Memo

Int64 = NDArray[np.int64]
# Above every number of a text: makes one number of it and another.
SPAN = 1 << 32


class NumberedTexts:
    """Texts, each with a number from 0 on, in the order in which they were first seen."""

    def __init__(self, teacher: Vocabulary) -> None:
        self._teacher = teacher
        self._texts: list[bytes] = []
        self._numbers: dict[bytes, int] = {}
        self._token = np.zeros(0, np.int64)
        self._rests = Memo()

    def text(self, number: int) -> bytes:
        return self._texts[number]

    def token(self, number: Int64) -> Int64:
        """int64 [n]: the teacher tokens with the bytes of these texts; -1 where there is none."""
        tokens: Int64 = self._token.take(number)
        return tokens

    def numbers(self, texts: Sequence[bytes]) -> Int64:
        """int64 [n]: the numbers of the texts."""
        known = self._numbers
        new = list(dict.fromkeys(text for text in texts if text not in known))
        if new:
            known.update(zip(new, range(len(known), len(known) + len(new)), strict=True))
            self._texts += new
            tokens = [self._teacher.by_bytes.get(text, -1) for text in new]
            self._token = np.append(self._token, np.array(tokens, np.int64))
        return np.array([known[text] for text in texts], np.int64)

    def rests(self, token: Int64, skip: Int64) -> Int64:
        """int64 [n]: the numbers of the teacher tokens' bytes without the first ``skip``."""
        size, table = self._teacher.size, self._teacher.token_bytes

        def ask(keys: list[int]) -> Int64:
            each = (divmod(key, size) for key in keys)
            return self.numbers([table[token][skip:] for skip, token in each])

        return self._rests.get_or_ask(skip * size + token, ask)
