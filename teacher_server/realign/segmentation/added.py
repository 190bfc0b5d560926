"""Texts of added tokens that may have begun at the end of a text.

A tokenizer takes an added token out of a text before it cuts the rest. Until all of it is
there, what precedes it may be cut in another way: ".<" is one token, and "." is one before
"<tool_call>".
"""

from __future__ import annotations

from collections.abc import Iterable


class AddedTexts:
    """The texts of added tokens."""

    def __init__(self, texts: Iterable[bytes]) -> None:
        self._beginnings = {one[:length] for one in texts for length in range(1, len(one))}
        self._longest = max(map(len, self._beginnings), default=0)

    def begun(self, data: bytes) -> int:
        """The most bytes at the end of ``data`` with which one of the texts begins and does
        not end; 0 where none has begun."""
        longest = min(self._longest, len(data))
        tails = (length for length in range(longest, 0, -1) if data[-length:] in self._beginnings)
        return next(tails, 0)
