"""Where a response ends by its text: ``rollout.stop_strings``.

The texts are searched for in the bytes of the response's tokens, so that it does not matter
how many tokens one is spread over, or whether a token holds more than it. The token that
completes one is the response's last.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from student_trainer.student.masking import token_bytes


class StopStrings:
    """The ends of the texts of B responses, as they are written."""

    def __init__(self, strings: Sequence[str], pieces: Mapping[int, bytes], count: int) -> None:
        """``pieces``: the bytes of each id; ``count``: B."""
        self._strings = [string.encode() for string in strings]
        self._kept = max(map(len, self._strings), default=1) - 1
        self._pieces = pieces
        self._tails = [b""] * count

    def begin(self, row: int) -> None:
        """The row holds another response from now on, which has no text yet."""
        self._tails[row] = b""

    def completed(
        self, rows: Iterable[int], tokens: Sequence[int] | Mapping[int, int]
    ) -> list[int]:
        """Those of ``rows`` whose responses hold a text once each goes on with its token of
        ``tokens``."""
        ended = []
        for row in rows:
            text = self._tails[row] + self._pieces.get(tokens[row], b"")
            if any(string in text for string in self._strings):
                ended.append(row)
            self._tails[row] = text[-self._kept :] if self._kept else b""
        return ended


@lru_cache(maxsize=2)
def pieces_of(tokenizer: Any) -> Mapping[int, bytes]:
    """The bytes of each id of a transformers tokenizer.

    Raises:
        ConfigurationError: they are not known.
    """
    return token_bytes(
        tokenizer, where="rollout.stop_strings", fix="give ids in rollout.stop_ids instead"
    )
