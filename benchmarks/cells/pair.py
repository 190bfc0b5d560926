"""A teacher's tokenizer that writes digit by digit, and a student's with three-digit tokens.

Both are files of `tokenizers`, as a run would register them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np
from teacher_proto.program.byte_alphabet import byte_alphabet
from teacher_proto.types import Int32
from tokenizers import Tokenizer

from teacher_server.realign.pair.static_tables import build_static
from teacher_server.realign.pair.tables import PairTables
from teacher_server.realign.pair.vocabulary import Vocabulary, read_vocabulary

DIGITS = "0123456789"
# What prompts and replies are made of, beside digits.
SYMBOLS = "+:=,."
BEGIN, END = "<s>", "</s>"


def document(digits_together: int) -> dict[str, Any]:
    """tokenizer.json of a byte-level BPE whose tokens are the bytes and all numbers of up to so
    many digits."""
    tokens = list(byte_alphabet())
    merges: list[tuple[str, str]] = []
    shorter = list(DIGITS)
    for _ in range(digits_together - 1):
        longer = [number + digit for number in shorter for digit in DIGITS]
        merges += [(number[:-1], number[-1]) for number in longer]
        # Two digits may be merged before the one in front of them.
        merges += [(number[0], number[1:]) for number in longer if len(number) > 2]
        tokens += longer
        shorter = longer
    added = [
        {
            "id": len(tokens) + index,
            "content": content,
            "special": True,
            **dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False),
        }
        for index, content in enumerate((BEGIN, END))
    ]
    numbers = {"Regex": f"\\p{{N}}{{1,{digits_together}}}|[^\\p{{N}}]"}
    pieces = [
        {"type": "Split", "pattern": numbers, "behavior": "Isolated", "invert": False},
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
    ]
    return {
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": pieces},
        "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True},
        "model": {
            "type": "BPE",
            "vocab": {token: index for index, token in enumerate(tokens)},
            "merges": [list(pair) for pair in merges],
        },
    }


@dataclass(frozen=True)
class Side:
    """One tokenizer: the library's, and the file as realignment reads it."""

    tokenizer: Tokenizer
    vocabulary: Vocabulary

    @property
    def begin(self) -> int:
        return self.vocabulary.special_ids[BEGIN]

    @property
    def end(self) -> int:
        return self.vocabulary.special_ids[END]

    @cached_property
    def never(self) -> list[int]:
        """Ids that are never drawn: the beginning, and bytes that no reply has."""
        table = self.vocabulary.token_bytes
        own = {one.encode() for one in SYMBOLS}
        return [
            token
            for token, data in enumerate(table)
            if token != self.end and data not in own and not data.isdigit()
        ]

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def prompt_ids(self, prompt: str) -> list[int]:
        return [self.begin, *self.encode(prompt)]

    def decode(self, ids: Int32) -> str:
        """The text of the ids up to the end."""
        kept = ids[: int(np.argmax(ids == self.end))] if (ids == self.end).any() else ids
        text: str = self.tokenizer.decode(kept.tolist())
        return text


@cache
def side(digits_together: int) -> Side:
    text = json.dumps(document(digits_together))
    return Side(Tokenizer.from_str(text), read_vocabulary(text))


@cache
def pair() -> PairTables:
    student, teacher = side(3).vocabulary, side(1).vocabulary
    return PairTables(student, teacher, build_static(student, teacher))
