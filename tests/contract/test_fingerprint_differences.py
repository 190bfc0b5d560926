"""Where two tokenizers differ: the parts, the first difference of each, and the first text."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest
from teacher_proto.fingerprint.parts import content_of
from teacher_proto.fingerprint.probe import PROBE, Encode, probe_texts
from teacher_proto.fingerprint.relation import EQUAL, difference
from tokenizers import Tokenizer

from tests.contract.toy_tokenizers import (
    BYTE_LEVEL,
    FEW_TOKENS,
    ID_CHANGES,
    MERGES,
    NO_ID_CHANGES,
    TOYS,
    UNIGRAM,
    Document,
    Edit,
    byte_level,
    edited,
    model,
    part,
    sequence,
    split,
    token,
)


def encoder(document: Document) -> Encode:
    tokenizer = Tokenizer.from_str(json.dumps(document))

    def encode(texts: Sequence[str]) -> list[list[int]]:
        found = tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in found]

    return encode


def described(one: Document, other: Document) -> str:
    contents = (content_of(json.dumps(one)), content_of(json.dumps(other)))
    found = difference(*contents, lambda: (encoder(one), encoder(other)))
    return "" if found is None else found.describe()


SAID: list[tuple[Document, Edit, str]] = [
    (FEW_TOKENS, model(fuse_unk=True), "the model's settings (fuse_unk: nothing and true); "),
    (BYTE_LEVEL, part("normalizer", None), 'the normalizer ({"type": "NFC"} and nothing); '),
    (
        BYTE_LEVEL,
        part("pre_tokenizer", sequence(split({"Regex": "x+"}), byte_level())),
        'the pre-tokenizer (number 1: {"type": "ByteLevel", "add_prefix_space": false, "use_regex"',
    ),
    (
        BYTE_LEVEL,
        part("pre_tokenizer", byte_level(use_regex=False)),
        "the pre-tokenizer (ByteLevel with use_regex: true and false); ",
    ),
    (
        BYTE_LEVEL,
        model(merges=[MERGES[0], MERGES[2], MERGES[1], *MERGES[3:]]),
        'the merges (number 2: ["th", "e"] and ["e", "\\u0120"]); ',
    ),
    (
        BYTE_LEVEL,
        lambda d: d["model"]["vocab"].update({"!": 1, '"': 0}),
        'the vocabulary (264 and 264 entries; id 0: "!" and "\\""); ',
    ),
    (
        UNIGRAM,
        lambda d: d["model"]["vocab"].pop(),
        'the vocabulary (7 and 6 entries; number 7: ["c", "c0e33333"] and nothing); ',
    ),
    (
        BYTE_LEVEL,
        token(1, lstrip=True),
        'the added tokens ("<think>": id 265 and id 265, lstrip); ',
    ),
    (
        BYTE_LEVEL,
        lambda d: d["added_tokens"].pop(),
        'the added tokens ("<think>": id 265 and not there); ',
    ),
]


@pytest.mark.parametrize(("base", "edit", "said"), SAID, ids=[said[:40] for *_, said in SAID])
def test_the_part_and_its_first_difference(base: Document, edit: Edit, said: str) -> None:
    assert described(base, edited(base, edit)).startswith(f"they differ in {said}")


def test_a_text_shows_the_difference_with_its_first_other_ids() -> None:
    found = described(BYTE_LEVEL, edited(BYTE_LEVEL, part("added_tokens", [])))
    assert found.endswith(", ...]")
    assert "<think>" in found
    assert " from token " in found
    assert "\n" not in found


def test_that_no_text_shows_a_difference_is_said() -> None:
    """A token that no merge leads to is in the fingerprint, and in no text."""
    unreached = edited(FEW_TOKENS, lambda d: d["model"]["vocab"].update({"unreached": 90}))
    assert described(FEW_TOKENS, unreached).endswith(f'nothing and "unreached"); {EQUAL}')


def test_every_edit_that_changes_ids_is_described_and_no_other_is() -> None:
    for toy, what, edit, start, *_ in ID_CHANGES:
        base = TOYS[toy] if start is None else edited(TOYS[toy], start)
        assert described(base, edited(base, edit)).startswith("they differ in "), what
    for toy, what, edit, start in NO_ID_CHANGES:
        base = TOYS[toy] if start is None else edited(TOYS[toy], start)
        assert described(base, edited(base, edit)) == "", what


def test_the_probe_is_bounded_whatever_is_added() -> None:
    assert probe_texts(["<x>"])[len(PROBE) :] == ["<x>", "a<x>b", "a  <x>  b"]
    assert probe_texts(["x" * 129, "<x>"])[len(PROBE) :] == probe_texts(["<x>"])[len(PROBE) :]
    many = [f"{number:0128}" for number in range(10_000)]
    assert probe_texts(many)[len(PROBE) :] == probe_texts(many[:2048])[len(PROBE) :]
