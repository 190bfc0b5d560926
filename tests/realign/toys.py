"""Toy tokenizers and a toy teacher, small enough to enumerate."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from teacher_proto.program.byte_alphabet import byte_alphabet

from teacher_server.realign.pair.static_tables import TRIE_ROOT, build_static
from teacher_server.realign.pair.tables import PairTables
from teacher_server.realign.pair.vocabulary import Vocabulary, read_vocabulary

SPACE = next(letter for letter, byte in byte_alphabet().items() if byte == 32)


def bpe_document(letters: str, merges: Sequence[tuple[str, str]], **changes: Any) -> dict[str, Any]:
    """A byte-level BPE over the letters (a space is U+0120); <end> is special."""
    vocab: dict[str, int] = {}
    for token in [*letters, *("".join(pair) for pair in merges)]:
        vocab.setdefault(token, len(vocab))
    return {
        "added_tokens": [
            {
                "id": len(vocab),
                "content": "</s>",
                "special": True,
                **dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False),
            }
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True},
        "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True},
        "model": {"type": "BPE", "vocab": vocab, "merges": [list(pair) for pair in merges]},
        **changes,
    }


def toy(letters: str, merges: Sequence[tuple[str, str]]) -> Vocabulary:
    return read_vocabulary(json.dumps(bpe_document(letters, merges)))


def random_merges(draw: random.Random, letters: str, count: int) -> list[tuple[str, str]]:
    known = list(letters)
    merges: list[tuple[str, str]] = []
    while len(merges) < count:
        pair = (draw.choice(known), draw.choice(known))
        joined = "".join(pair)
        if joined not in known and SPACE not in joined[1:] and len(joined) <= 3:
            merges.append(pair)
            known.append(joined)
    return merges


@dataclass(frozen=True)
class MarkovTeacher:
    """P(token | token before) as a table; row -1 is for the beginning."""

    table: NDArray[np.float64]

    @classmethod
    def random(cls, vocabulary: Vocabulary, seed: int) -> MarkovTeacher:
        """Only ordinary tokens, and no pair that the tokenizer itself would not write."""
        rng = np.random.default_rng(seed)
        ids = np.flatnonzero(vocabulary.ordinary)
        table = rng.dirichlet(np.full(len(ids), 0.6), len(ids) + 1)
        full = np.zeros((vocabulary.size + 1, vocabulary.size))
        for row, before in enumerate([*ids.tolist(), -1]):
            values = table[row].copy()
            if before >= 0:
                for column, after in enumerate(ids.tolist()):
                    both = vocabulary.token_bytes[before] + vocabulary.token_bytes[after]
                    if vocabulary.encoder.encode(both).ids.tolist() != [before, after]:
                        values[column] = 0.0
            if values.sum() == 0:
                raise ValueError("after one of its tokens the tokenizer writes no other")
            full[before, ids] = values / values.sum()
        return cls(full)

    def support(self, before: Sequence[int]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        return np.arange(self.table.shape[1]), self.row(before)

    def row(self, before: Sequence[int]) -> NDArray[np.float64]:
        row: NDArray[np.float64] = self.table[before[-1] if len(before) else -1]
        return row

    def sample(self, draw: random.Random, length: int) -> list[int]:
        ids: list[int] = []
        for _ in range(length):
            ids.append(draw.choices(range(self.table.shape[1]), self.row(ids))[0])
        return ids


def strings(letters: str, longest: int) -> Iterator[str]:
    for length in range(1, longest + 1):
        yield from map("".join, itertools.product(letters, repeat=length))


def settles_by_prefix(student: Vocabulary, teacher: Vocabulary, letters: str) -> bool:
    """Whether later letters never change a student token that the walk counts as settled."""
    tables = PairTables(student, teacher, build_static(student, teacher))
    for text in strings(letters, 6):
        data = text.encode()
        first = int(student.encoder.encode(data).ids[0])
        state = TRIE_ROOT
        for token in teacher.encoder.encode(data).ids.tolist():
            after = int(tables.trie_steps(np.array([state]), np.array([token]))[0])
            if after < 0:
                break
            state = after
        else:
            continue
        if (
            state == TRIE_ROOT
            and first != tables.first_student_token[teacher.encoder.encode(data).ids[0]]
        ):
            return False
    return True
