"""Which tokens a tokenizer itself writes, given the text before an offset and after it.

A token sequence is *canonical* when encoding its bytes gives the same tokens back. A
teacher samples from all tokens, yet almost never leaves its canonical sequences, so mass
on the others is counted separately.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from teacher_server.realign.pair.vocabulary import Vocabulary
from teacher_server.realign.segmentation.memo import ABSENT, Memo
from teacher_server.realign.segmentation.spaces import FOLLOWERS, ends_in_spaces

Int64 = NDArray[np.int64]
# Pairs kept; when there are more, all are forgotten.
MAX_KNOWN_PAIRS = 2_000_000
# Instead of a token id: with what follows, the tokenizer would have cut the text before the
# offset in another way.
CONTRADICTS = -1
# Sets of what may follow a text are integers: a bit for each of FOLLOWERS, and one for the
# end of the text.
END = 1 << len(FOLLOWERS)


@dataclass(frozen=True)
class LeftContext:
    """Text to the left of an offset, and the tokens it has been cut into."""

    data: bytes
    tokens: tuple[int, ...]


NO_CONTEXT = LeftContext(b"", ())


def contexts_of(vocabulary: Vocabulary, texts: Sequence[bytes]) -> list[LeftContext]:
    """Each text as the tokenizer cuts it by itself."""
    encoded = vocabulary.encoder.encode_each(texts)
    return [LeftContext(text, tuple(ids)) for text, ids in zip(texts, encoded, strict=True)]


def next_tokens(
    vocabulary: Vocabulary, contexts: Sequence[LeftContext], texts: Sequence[bytes]
) -> list[int]:
    """The token after each context when the text follows it, or CONTRADICTS where the text
    has the context cut otherwise.

    Where BPE keeps the boundary between a context and what follows, what precedes the
    context does not matter.
    """
    whole = [context.data + text for context, text in zip(contexts, texts, strict=True)]
    answers = []
    for context, ids in zip(contexts, vocabulary.encoder.encode_each(whole), strict=True):
        count = len(context.tokens)
        kept = tuple(ids[:count]) == context.tokens and len(ids) > count
        answers.append(ids[count] if kept else CONTRADICTS)
    return answers


def possible_followers(vocabulary: Vocabulary, path: list[int], *, spaces: bool) -> int:
    """The set of what can follow the tokens of ``path`` so that they stay canonical.

    Args:
        spaces: whether the path ends in several spaces. Where it does not, only the end
            of the text is tried: the set is END or empty.
    """
    text = vocabulary.encoder.decode(path)
    texts = [text + one for one in (*(FOLLOWERS if spaces else ()), b"")]
    cuts = vocabulary.encoder.encode_each(texts)
    kept = [cut[: len(path)] == path for cut in cuts]
    return sum(1 << place for place, one in enumerate(kept[:-1]) if one) + END * kept[-1]


class CanonicalPairs:
    """Which tokens a tokenizer itself writes after which; it is asked once for each pair."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._known = Memo()

    def are_canonical(self, before: Int64, token: Int64) -> NDArray[np.bool_]:
        """bool [n]: whether some text of both tokens is encoded as both.

        Args:
            before: int64 [n]; -1 for no token before.
        """
        canonical: NDArray[np.bool_] = self.followers(before, token) != 0
        return canonical

    def followers(self, before: Int64, token: Int64) -> Int64:
        """int64 [n]: the set of what can follow both tokens so that they stay canonical; of
        pairs that do not end in several spaces END or empty."""
        keys = (before + 1) * self._vocabulary.size + token
        found = self._known.get(keys)
        if (found == ABSENT).any():
            if len(self._known) > MAX_KNOWN_PAIRS:
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
        alone = dict(zip(unique, contexts_of(self._vocabulary, unique), strict=True))
        contexts = [alone[left] for left in lefts]
        answers = np.array(next_tokens(self._vocabulary, contexts, rights), np.int64)
        found: Int64 = (answers == tokens).astype(np.int64) * END
        for index, pair in enumerate(zip(lefts, rights, strict=True)):
            if ends_in_spaces(b"".join(pair)):
                path = [one for one in (int(befores[index]) - 1, int(tokens[index])) if one >= 0]
                found[index] = possible_followers(self._vocabulary, path, spaces=True)
        return found
