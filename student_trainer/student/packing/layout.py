"""Where the tokens of several sequences stand in what the student reads at once.

Padded, each sequence is a row, and the rows are as long as the longest. Packed, all tokens are
one row: sequences stand side by side, and a beginning that several share, their prompt, stands
once before what follows it in each. Pure functions over token ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from teacher_proto.types import Int32

Int64 = NDArray[np.int64]


class Segment(NamedTuple):
    """Neighbouring tokens [start, stop) of a packed input. Each attends to those before it in the
    segment and, where there is a beginning that others share, to all of that segment.

    Attributes:
        beginning: index of that segment, which has none itself; None where there is none.
    """

    start: int
    stop: int
    beginning: int | None = None

    @property
    def length(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class Layout:
    """What is read at once: B rows of L tokens.

    Attributes:
        ids: int64 [B, L].
        positions: int64 [B, L], each token's place in its sequence.
        segments: of a packed input, whose one row they cut up in order; empty of a padded one.
        places: for each sequence of n tokens int64 [n], which of the B * L flattened positions
            is that of each token.
    """

    ids: Int64
    positions: Int64
    segments: tuple[Segment, ...]
    places: tuple[Int64, ...] = field(repr=False)

    @property
    def packed(self) -> bool:
        return bool(self.segments)

    @cached_property
    def mask(self) -> Int64:
        """int64 [B, L], 1 at the tokens of a sequence and 0 at padding."""
        found = np.zeros(self.ids.size, np.int64)
        for places in self.places:
            found[places] = 1
        return found.reshape(self.ids.shape)

    @property
    def tokens(self) -> int:
        """Tokens that are read, without padding; what is shared counts once."""
        return int(self.mask.sum())


def pad(sequences: Sequence[Int32], padding_id: int) -> Layout:
    """The sequences as rows, padded on the right."""
    width = max(len(sequence) for sequence in sequences)
    ids = np.full((len(sequences), width), padding_id, np.int64)
    places = []
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = sequence
        places.append(row * width + np.arange(len(sequence)))
    positions = np.broadcast_to(np.arange(width), ids.shape)
    return Layout(ids, positions, (), tuple(places))


def pack(sequences: Sequence[Int32], prompts: Sequence[int]) -> Layout:
    """The sequences side by side; those that begin with the same prompt share it.

    Args:
        prompts: for each sequence, how many of its first tokens, at least 1, are its prompt.
    """
    ids: list[Int64] = []
    positions: list[Int64] = []
    segments: list[Segment] = []
    places: dict[int, Int64] = {}
    filled = 0

    def add(tokens: Int32, first: int, beginning: int | None) -> Int64:
        nonlocal filled
        where = np.arange(filled, filled + len(tokens))
        if len(tokens):
            ids.append(tokens.astype(np.int64))
            positions.append(np.arange(first, first + len(tokens)))
            segments.append(Segment(filled, filled + len(tokens), beginning))
            filled += len(tokens)
        return where

    for members in sharing([s[:p] for s, p in zip(sequences, prompts, strict=True)]):
        if len(members) == 1:
            places[members[0]] = add(sequences[members[0]], 0, None)
            continue
        length = prompts[members[0]]
        before, prompt = len(segments), add(sequences[members[0]][:length], 0, None)
        for member in members:
            own = add(sequences[member][length:], length, before)
            places[member] = np.concatenate([prompt, own])
    every = np.concatenate(ids)[None], np.concatenate(positions)[None]
    return Layout(*every, tuple(segments), tuple(places[i] for i in range(len(sequences))))


def sharing(prompts: Sequence[Int32]) -> list[tuple[int, ...]]:
    """Indices of equal prompts together, in the order of the first of each."""
    groups: dict[bytes, list[int]] = {}
    for index, prompt in enumerate(prompts):
        groups.setdefault(np.asarray(prompt, np.int32).tobytes(), []).append(index)
    return [tuple(members) for members in groups.values()]
