"""What a tokenizer writes at an offset, given the text before it and the text behind."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from teacher_server.realign.memo import ABSENT, Memo
from teacher_server.realign.vocabulary import Vocabulary

Int64 = NDArray[np.int64]
# Pairs kept; beyond it the memory starts anew.
MAX_KNOWN = 2_000_000
# Instead of a token id: the tokenizer would not have ended the token before here.
CONTRADICTS = -1


def tokens_at(vocabulary: Vocabulary, lefts: Sequence[bytes], rights: Sequence[bytes]) -> list[int]:
    """The token that begins where ``left`` ends, or CONTRADICTS, for each pair of texts.

    Where BPE keeps the boundary between a token ``left`` and what follows, what precedes
    ``left`` does not matter.
    """
    lengths = vocabulary.lengths_list
    texts = [left + right for left, right in zip(lefts, rights, strict=True)]
    answers = []
    for left, ids in zip(lefts, vocabulary.encoder.encode_each(texts), strict=True):
        read, wanted = 0, len(left)
        answer = CONTRADICTS
        for token in ids:
            if read >= wanted:
                answer = token if read == wanted else CONTRADICTS
                break
            read += lengths[token]
        answers.append(answer)
    return answers


class OwnPairs:
    """Which tokens a tokenizer itself writes behind which; each pair asked once."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._known = Memo()

    def writes(self, before: Int64, token: Int64) -> NDArray[np.bool_]:
        """bool [n]: whether text of both is encoded as both; ``before`` -1: nothing before."""
        keys = (before + 1) * self._vocabulary.size + token
        found = self._known.get(keys)
        if (found == ABSENT).any():
            if len(self._known) > MAX_KNOWN:
                self._known = Memo()
            new = np.unique(keys if not len(self._known) else keys[found == ABSENT])
            self._known.put(new, self._ask(new))
            found = self._known.get(keys)
        written: NDArray[np.bool_] = found == 1
        return written

    def _ask(self, keys: Int64) -> Int64:
        table = self._vocabulary.token_bytes
        befores, tokens = np.divmod(keys, self._vocabulary.size)
        lefts = [table[token - 1] if token else b"" for token in befores.tolist()]
        rights = [table[token] for token in tokens.tolist()]
        answers = np.array(tokens_at(self._vocabulary, lefts, rights), np.int64)
        same: Int64 = (answers == tokens).astype(np.int64)
        return same
