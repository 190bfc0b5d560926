"""The language model that stands in for a teacher: a 4-gram model over its real tokens.

The next token is drawn from what followed the last 3, 2 or 1 tokens in a text, or from the
most common tokens of that text. Two kinds of token have no mass, as in a model that has learnt
what its tokenizer writes: one that the tokenizer never writes after the tokens before, and one
that leaves a character unfinished. Rows are 300 ids wide or more, twice what the
realignment reads of them.
"""

from __future__ import annotations

import random
from bisect import bisect
from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from benchmarks.realign.reference.raw_tokenizer import RawTokenizer

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]
# Of the followers of 3, 2 and 1 tokens, and of the common tokens.
WEIGHTS = (0.58, 0.25, 0.12, 0.05)
# The most common tokens, which may follow anything.
COMMON = 256
# Probability of a token of the text so far that is not in its row.
LEAST = 1e-9
# What may follow white space, each of which may have it cut in another way.
AFTER_SPACE = (
    "",
    " ",
    "  x",
    "\t",
    "\n",
    " \n",
    "x",
    "7",
    "(",
    "\u754c",
    "\u00a0x",
    "\u00b2",
    "'s",
)
Context = tuple[int, ...]
# (weight, what followed) for each length of context that was seen.
Known = list[tuple[float, list[int]]]


class NgramTeacher:
    """Learns from ``learnt``, the teacher's tokens of a text."""

    def __init__(self, learnt: Sequence[int], tokenizer: RawTokenizer) -> None:
        self.tokenizer = tokenizer
        self._followers: dict[Context, list[int]] = defaultdict(list)
        for length in (3, 2, 1):
            for at in range(length, len(learnt)):
                self._followers[tuple(learnt[at - length : at])].append(learnt[at])
        counted = Counter(learnt)
        common = sorted(counted, key=lambda token: (-counted[token], token))[:COMMON]
        total = sum(counted[token] for token in common)
        self._common = {token: WEIGHTS[-1] * counted[token] / total for token in common}
        self._common_ids = list(self._common)
        self._common_sums = list(accumulate(self._common.values()))
        self._written: dict[Context, dict[int, bool]] = {}
        self._rows: dict[Context, dict[int, float]] = {}
        self._supports: dict[Context, tuple[Int64, Float64]] = {}
        self._drawing: dict[Context, tuple[Known, list[float], dict[int, bool]]] = {}

    def row(self, before: Sequence[int]) -> dict[int, float]:
        """The probability of each token that may follow."""
        key = tuple(before[-3:])
        if key not in self._rows:
            masses = dict(self._common)
            for weight, followers in self._known(key):
                for token, times in Counter(followers).items():
                    masses[token] = masses.get(token, 0.0) + weight * times / len(followers)
            allowed = self._allowed(key, list(masses))
            kept = {token: mass for token, mass in masses.items() if token in allowed}
            kept = kept or masses  # nothing is ever written there: all keep their mass
            total = sum(kept.values())
            self._rows[key] = {token: mass / total for token, mass in kept.items()}
        return self._rows[key]

    def support(self, before: Sequence[int]) -> tuple[Int64, Float64]:
        """The same as arrays, descending; equal ones by lower id."""
        key = tuple(before[-3:])
        if key not in self._supports:
            row = self.row(before)
            ids = sorted(row, key=lambda token: (-row[token], token))
            self._supports[key] = np.array(ids, np.int64), np.array([row[t] for t in ids])
        return self._supports[key]

    def probability(self, before: Sequence[int], token: int) -> float:
        """0 for a token that is not in the row."""
        return self.row(before).get(token, 0.0)

    def scored(
        self, before: Sequence[int], own: int, best: int
    ) -> tuple[NDArray[np.int32], Float64, float]:
        """The row after ``before`` as an engine gives it: [best] ids, -1 where there is none, their
        log-probabilities, and that of ``own``."""
        ids, values = self.support(before)
        space = (0, best - min(len(ids), best))
        return (
            np.pad(ids[:best], space, constant_values=-1).astype(np.int32),
            np.log(np.pad(values[:best], space, constant_values=1.0)),
            float(np.log(max(self.probability(before, own), LEAST))),
        )

    def draw(self, before: Sequence[int], rng: random.Random) -> int:
        """A token by its probability in ``row``, without working the row out."""
        key = tuple(before[-3:])
        if key not in self._drawing:
            known = self._known(key)
            sums = list(accumulate([*(weight for weight, _ in known), WEIGHTS[-1]]))
            context = self._context(key)
            self._drawing[key] = known, sums, self._written.setdefault(context, {})
        known, sums, written = self._drawing[key]
        for _ in range(64):
            part = bisect(sums, rng.random() * sums[-1])
            if part < len(known):
                followers = known[part][1]
                token = followers[int(rng.random() * len(followers))]
            else:
                place = bisect(self._common_sums, rng.random() * self._common_sums[-1])
                token = self._common_ids[place]
            if written[token] if token in written else self._allowed(key, [token]):
                return token
        row = self.row(before)
        return rng.choices(list(row), list(row.values()))[0]

    def _known(self, key: Context) -> Known:
        found = zip(WEIGHTS, (3, 2, 1), strict=False)
        pairs = [(weight, self._followers.get(key[-n:])) for weight, n in found if len(key) >= n]
        return [(weight, followers) for weight, followers in pairs if followers]

    def _allowed(self, key: Context, tokens: list[int]) -> set[int]:
        """Those of ``tokens`` that the tokenizer may write after ``key``."""
        table = self.tokenizer.token_bytes
        if not key or not table[key[-1]]:
            return set(tokens)
        context = self._context(key)
        known = self._written.setdefault(context, {})
        new = [token for token in tokens if token not in known]
        if new:
            seen = set(self._followers.get(context, ()))
            known.update((token, True) for token in new if token in seen)
            asked = [token for token in new if token not in seen]
            known.update(zip(asked, self._writes(context, asked), strict=True))
        return {token for token in tokens if known[token]}

    def _context(self, key: Context) -> Context:
        """The tokens that decide what may be written after them; none where the last one has
        no text, as an end of text has none."""
        if key and not self.tokenizer.token_bytes[key[-1]]:
            return ()
        spaces = bool(key) and _is_space(self.tokenizer.token_bytes[key[-1]])
        return key[-2:] if spaces else key[-1:]

    def _writes(self, context: Context, tokens: list[int]) -> list[bool]:
        """Whether the tokenizer cuts some text as ``context`` and then each token; False
        where that is no text, since a character has no end or beginning."""
        wanted = [[*context, token] for token in tokens]
        texts: list[str] = []
        owner: list[int] = []
        for index, path in enumerate(wanted):
            try:
                text = self.tokenizer.decode(path).decode()
            except UnicodeDecodeError:
                continue
            follows = AFTER_SPACE if text[-1:].isspace() else ("",)
            texts += [text + following for following in follows]
            owner += [index] * len(follows)
        written = [False] * len(tokens)
        for index, ids in zip(owner, self.tokenizer.encode_each(texts), strict=True):
            written[index] |= ids[: len(wanted[index])] == wanted[index]
        return written


def _is_space(data: bytes) -> bool:
    return data.decode("utf-8", "replace").isspace()
