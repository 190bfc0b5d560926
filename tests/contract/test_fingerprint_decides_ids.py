"""The fingerprint changes with a tokenizer.json exactly where the tokenizers library gives
some text other ids; every edit is tried on the library itself."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

import pytest
from teacher_proto.fingerprint.components import TOTAL
from teacher_proto.fingerprint.probe import PROBE
from teacher_proto.tokenizer_hash import tokenizer_hash
from tokenizers import Regex, Tokenizer
from tokenizers.pre_tokenizers import Split

from tests.contract.toy_tokenizers import (
    GPT2_REGEX,
    ID_CHANGES,
    NO_ID_CHANGES,
    QWEN_REGEX,
    TOYS,
    Document,
    Edit,
    edited,
)

TEXTS = [
    *PROBE,
    *(text for *_, text in ID_CHANGES),
    "the a thing  12 <|end|> the<think>in<think>\u0338 <|end|>ing aab abab  ab you 你好 ü",
    "abc abx jjj ? xx",
]


def encode(document: Document, texts: Sequence[str]) -> list[list[int]]:
    tokenizer = Tokenizer.from_str(json.dumps(document))
    found = tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
    return [encoding.ids for encoding in found]


def both(toy: str, edit: Edit, start: Edit | None) -> tuple[Document, Document]:
    base = TOYS[toy] if start is None else edited(TOYS[toy], start)
    after = edited(base, edit)
    assert json.dumps(after) != json.dumps(base)
    return base, after


def names(cases: Sequence[tuple[object, ...]]) -> list[str]:
    return [f"{case[0]}: {case[1]}" for case in cases]


@pytest.mark.parametrize("case", NO_ID_CHANGES, ids=names(NO_ID_CHANGES))
def test_what_changes_no_id_does_not_count(case: tuple[str, str, Edit, Edit | None]) -> None:
    base, after = both(case[0], *case[2:])
    assert encode(after, TEXTS) == encode(base, TEXTS)
    assert tokenizer_hash(json.dumps(after)) == tokenizer_hash(json.dumps(base))


@pytest.mark.parametrize("case", ID_CHANGES, ids=names(ID_CHANGES))
def test_what_changes_an_id_counts(case: tuple[str, str, Edit, Edit | None, str]) -> None:
    base, after = both(case[0], *case[2:4])
    assert encode(after, [case[4]]) != encode(base, [case[4]])
    assert tokenizer_hash(json.dumps(after)) != tokenizer_hash(json.dumps(base))


@pytest.mark.parametrize("toy", TOYS)
def test_a_file_has_one_fingerprint_before_and_after_the_library_wrote_it(toy: str) -> None:
    text = json.dumps(TOYS[toy])
    for _ in range(3):
        written = Tokenizer.from_str(text).to_str()
        assert tokenizer_hash(written) == tokenizer_hash(text)
        text = written


def test_the_total_expressions_match_every_character() -> None:
    assert {GPT2_REGEX, QWEN_REGEX} <= TOTAL
    assert len(TOTAL) == 5
    points = [*range(0x1000), *range(0x1000, sys.maxunicode + 1, 61)]
    characters = [chr(point) for point in points if not 0xD800 <= point < 0xE000]
    text = "".join(characters) + "".join(f"a{c} {c}1" for c in characters[:0x1000])
    for expression in TOTAL:
        pieces = Split(Regex(expression), "removed", invert=True).pre_tokenize_str(text)
        assert "".join(piece for piece, _ in pieces) == text
