"""In which ways the teacher may have cut the text before a position.

What follows a position must not decide how the text before it was cut. So that text is
encoded by itself; or, where it ends in several spaces, with each kind of text after it that
the student's tokens leave possible.
"""

from __future__ import annotations

from bisect import bisect_left
from functools import cached_property
from typing import NamedTuple

import numpy as np

from teacher_server.realign.segmentation.canonical import CONTRADICTS
from teacher_server.realign.segmentation.pair_segmentation import PairSegmentation
from teacher_server.realign.segmentation.spaces import FOLLOWERS

# Texts kept with their answers; when there are more, all are forgotten.
MAX_TEXTS = 200_000


class Past(NamedTuple):
    """One way to cut a text: ``path``, the teacher's tokens, and ``ranks`` [low, high) of the
    student tokens that may follow it. ``begun``: bytes after the path, with which an added
    token of the teacher begins."""

    path: list[int]
    ranks: tuple[int, int]
    begun: int = 0


class TeacherPasts:
    """The pasts of texts, for one pair; what it looked up is kept."""

    def __init__(self, pair: PairSegmentation) -> None:
        self._states = pair.states
        self._tables = pair.tables
        self._encoded: dict[bytes, list[int]] = {}
        # The pasts of texts that end in spaces, by what may follow; and what may follow, by the
        # initial state.
        self._spaces: dict[tuple[tuple[bytes, ...], bytes], list[Past]] = {}
        self._possible: dict[int, tuple[bytes, ...]] = {}
        self._generation = -1

    def trim(self) -> None:
        """Forgets all texts when there are too many."""
        if len(self._encoded) > MAX_TEXTS:
            self._encoded.clear()
            self._spaces.clear()

    def of_texts(self, texts: list[bytes]) -> list[Past]:
        """The one past of each text, encoded by itself."""
        return [Past(path, self._every_rank) for path in self._encodings(texts)]

    def of_begun(self, text: bytes) -> list[Past]:
        """The past of a text whose end is the beginning of an added token that the student
        spells, or none: the text before such a token is cut without it."""
        begun = self._tables.teacher.added.begun(text)
        if not begun:
            return []
        whole, before = self._encodings([text, text[: len(text) - begun]])
        if whole[: len(before)] == before:
            return []  # its last row is on the way of the text by itself
        return [Past(before, self._every_rank, begun)]

    def of_spaces(self, initial: int, text: bytes) -> list[Past]:
        """The pasts of a text that ends in several spaces.

        How many of the spaces are one token depends on what follows: more space, a word or
        a digit. Pasts that the student's tokens rule out do not count.

        Args:
            initial: the initial state of the position after the text.
        """
        kinds = self._kinds(initial)
        if (kinds, text) not in self._spaces:
            self._spaces[kinds, text] = self._cut_spaces(kinds, text)
        return self._spaces[kinds, text]

    def _kinds(self, initial: int) -> tuple[bytes, ...]:
        """Those of FOLLOWERS that may follow spaces, as far as the student's tokens tell."""
        states = self._states
        if self._generation != states.generation:
            self._possible.clear()
            self._generation = states.generation
        if initial not in self._possible:
            follows = states.enter(np.full(len(FOLLOWERS), initial), list(FOLLOWERS))
            possible = (states.answer(follows) != CONTRADICTS).tolist()
            kinds = tuple(one for one, fits in zip(FOLLOWERS, possible, strict=True) if fits)
            self._possible[initial] = kinds
        return self._possible[initial]

    def _cut_spaces(self, kinds: tuple[bytes, ...], text: bytes) -> list[Past]:
        """As ``of_spaces``, of a text that one of ``kinds`` follows."""
        lengths = self._tables.teacher.lengths_list
        found: dict[tuple[int, ...], tuple[int, int]] = {}
        for kind, path in zip(kinds, self._encodings([text + one for one in kinds]), strict=True):
            read = kept = 0
            while read < len(text) and kept < len(path):
                read += lengths[path[kept]]
                kept += 1
            if read == len(text):
                past = tuple(path[:kept])
                ranks = self._ranks_of_follower[kind]
                found[past] = ranks if found.get(past, ranks) == ranks else self._every_rank
        if not found:
            found[tuple(self._encodings([text])[0])] = self._every_rank
        return [Past(list(path), ranks) for path, ranks in found.items()]

    @cached_property
    def _every_rank(self) -> tuple[int, int]:
        return 0, len(self._tables.student.order)

    @cached_property
    def _ranks_of_follower(self) -> dict[bytes, tuple[int, int]]:
        """Ranks of the student tokens that begin with space, a digit, or anything else."""
        texts, every = self._tables.student.sorted_bytes, self._every_rank
        ends = [bisect_left(texts, one) for one in (b"\t", b"!", b"0", b":")]
        spaces, digits = (ends[0], ends[1]), (ends[2], ends[3])
        return dict.fromkeys(FOLLOWERS, every) | {b" x": spaces, b"\n": spaces, b"7": digits}

    def _encodings(self, texts: list[bytes]) -> list[list[int]]:
        """The teacher's encoding of each text by itself."""
        new = list(dict.fromkeys(text for text in texts if text not in self._encoded))
        if new:
            encoded = self._tables.teacher.encoder.encode_each(new)
            self._encoded.update(zip(new, encoded, strict=True))
        return [self._encoded[text] for text in texts]
