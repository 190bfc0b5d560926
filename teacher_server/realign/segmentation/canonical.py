"""What a tokenizer writes at an offset, given the text before it and the text behind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from teacher_server.realign.pair.vocabulary import Vocabulary
from teacher_server.realign.segmentation.memo import ABSENT, Memo
from teacher_server.realign.segmentation.spaces import FOLLOWING, ends_in_spaces

Int64 = NDArray[np.int64]
# Pairs kept; beyond it the memory starts anew.
MAX_KNOWN = 2_000_000
# Instead of a token id: the tokenizer would not have ended the token before here.
CONTRADICTS = -1
# Of what may follow a pair: a bit for each of FOLLOWING, and one for the end of the text.
END = 1 << len(FOLLOWING)


@dataclass(frozen=True)
class Left:
    """Text to the left of an offset, and the tokens that it is cut into."""

    data: bytes
    tokens: tuple[int, ...]


NOTHING = Left(b"", ())


def lefts_alone(vocabulary: Vocabulary, texts: Sequence[bytes]) -> list[Left]:
    """Texts as the tokenizer cuts each by itself."""
    encoded = vocabulary.encoder.encode_each(texts)
    return [Left(text, tuple(ids)) for text, ids in zip(texts, encoded, strict=True)]


def tokens_at(vocabulary: Vocabulary, lefts: Sequence[Left], rights: Sequence[bytes]) -> list[int]:
    """The token that begins where ``left`` ends, for each pair of texts, or CONTRADICTS where
    what follows has ``left`` cut otherwise.

    Where BPE keeps the boundary between a token ``left`` and what follows, what precedes
    ``left`` does not matter.
    """
    texts = [left.data + right for left, right in zip(lefts, rights, strict=True)]
    answers = []
    for left, ids in zip(lefts, vocabulary.encoder.encode_each(texts), strict=True):
        count = len(left.tokens)
        kept = tuple(ids[:count]) == left.tokens and len(ids) > count
        answers.append(ids[count] if kept else CONTRADICTS)
    return answers


class OwnPairs:
    """Which tokens a tokenizer itself writes behind which; each pair asked once."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._known = Memo()

    def writes(self, before: Int64, token: Int64) -> NDArray[np.bool_]:
        """bool [n]: whether some text of both is encoded as both; ``before`` -1: nothing
        before."""
        written: NDArray[np.bool_] = self.followed(before, token) != 0
        return written

    def followed(self, before: Int64, token: Int64) -> Int64:
        """int64 [n]: what can stand behind both, so that the text is encoded as both: the
        sum of END and, where both end in several spaces, of 1 << place in FOLLOWING."""
        keys = (before + 1) * self._vocabulary.size + token
        found = self._known.get(keys)
        if (found == ABSENT).any():
            if len(self._known) > MAX_KNOWN:
                self._known = Memo()
            new = np.unique(keys if not len(self._known) else keys[found == ABSENT])
            self._known.put(new, self._ask(new))
            found = self._known.get(keys)
        return found

    def _ask(self, keys: Int64) -> Int64:
        table = self._vocabulary.token_bytes
        befores, tokens = np.divmod(keys, self._vocabulary.size)
        lefts = [table[token - 1] if token else b"" for token in befores.tolist()]
        rights = [table[token] for token in tokens.tolist()]
        unique = list(dict.fromkeys(lefts))
        alone = dict(zip(unique, lefts_alone(self._vocabulary, unique), strict=True))
        cuts = [alone[left] for left in lefts]
        answers = np.array(tokens_at(self._vocabulary, cuts, rights), np.int64)
        found: Int64 = (answers == tokens).astype(np.int64) * END
        for index, pair in enumerate(zip(lefts, rights, strict=True)):
            if ends_in_spaces(b"".join(pair)):
                path = [one for one in (int(befores[index]) - 1, int(tokens[index])) if one >= 0]
                found[index] = followed(self._vocabulary, path, spaces=True)
        return found


def followed(vocabulary: Vocabulary, path: list[int], *, spaces: bool) -> int:
    """What can stand behind the tokens, so that the text is encoded as they are: as
    ``OwnPairs.followed``; of text that does not end in ``spaces`` END or 0."""
    text = vocabulary.encoder.decode(path)
    texts = [text + one for one in (*(FOLLOWING if spaces else ()), b"")]
    cuts = vocabulary.encoder.encode_each(texts)
    kept = [cut[: len(path)] == path for cut in cuts]
    return sum(1 << place for place, one in enumerate(kept[:-1]) if one) + END * kept[-1]
