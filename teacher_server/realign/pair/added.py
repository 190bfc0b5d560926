"""Texts of added tokens that may have begun at the end of a text.

A tokenizer takes an added token out of a text before it cuts the rest. Until all of it is
there, what precedes it may be cut in another way: ".<" is one token, and "." is one before
"<tool_call>".
"""

from __future__ import annotations

import re
from collections.abc import Iterable


class AddedTexts:
    """The texts of added tokens."""

    def __init__(self, texts: Iterable[bytes]) -> None:
        self._beginnings = {one[:length] for one in texts for length in range(1, len(one))}
        self._longest = max(map(len, self._beginnings), default=0)
        first = b"".join({re.escape(one) for one in self._beginnings if len(one) == 1})
        self._first = re.compile(b"[" + first + b"]") if first else None

    def begun_in(self, data: bytes) -> list[tuple[int, int]]:
        """(start, end) of each place where one of the texts begins: the most bytes that it begins
        with, but for its last."""
        found = []
        for start in map(re.Match.start, self._first.finditer(data) if self._first else ()):
            end = start + 1
            while data[start : end + 1] in self._beginnings and end < len(data):
                end += 1
            found.append((start, end))
        return found

    def begun(self, data: bytes) -> int:
        """The most bytes at the end of ``data`` with which one of the texts begins and does
        not end; 0 where none has begun."""
        longest = min(self._longest, len(data))
        tails = (length for length in range(longest, 0, -1) if data[-length:] in self._beginnings)
        return next(tails, 0)
