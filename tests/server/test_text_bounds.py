"""No text becomes fewer tokens than the bound says, whatever the tokenizer does to it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers

from teacher_server.teachers.text_bounds import longest_token
from tests.support.models import ENGLISH, train_tokenizer

BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
# What NFC makes less of, spaces, and what merges well.
ODD = ["\u212a", "\u1fef", "\u03b9\u0308\u0301", "\u1fbe\u0308\u0301", "\u2126\u0313\u0341\u0345"]
texts = st.text() | st.lists(
    st.sampled_from([*ODD, "the token", " ", "    ", "\u2581", "\n", "<|im_start|>"])
).map("".join)


def byte_level() -> Tokenizer:
    return train_tokenizer(ENGLISH, 320).backend_tokenizer


def nfc() -> Tokenizer:
    tokenizer = byte_level()
    tokenizer.normalizer = normalizers.NFC()
    return tokenizer


def byte_fallback() -> Tokenizer:
    vocabulary = {token: index for index, token in enumerate([*BYTES, "\u2581", "\u2581\u2581"])}
    model = models.BPE(vocabulary, [("\u2581", "\u2581")], byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    return tokenizer


BOUNDED = {made.__name__: made() for made in (byte_level, nfc, byte_fallback)}


@pytest.mark.parametrize("name", BOUNDED)
@given(text=texts)
def test_a_text_has_at_least_as_many_tokens_as_the_bound_says(name: str, text: str) -> None:
    tokenizer = BOUNDED[name]
    bound = longest_token(json.loads(tokenizer.to_str()))
    assert bound is not None
    tokens = len(tokenizer.encode(text, add_special_tokens=False).ids)
    assert len(text.encode("utf-8", "surrogatepass")) <= tokens * bound


@pytest.mark.parametrize("text", [*ODD, "the token of", "<|im_start|>" * 3])
def test_the_bound_is_not_passed_by_what_shrinks_most(text: str) -> None:
    for tokenizer in BOUNDED.values():
        bound = longest_token(json.loads(tokenizer.to_str()))
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        assert bound is not None
        assert len(text.encode()) <= len(ids) * bound


def with_strip() -> Tokenizer:
    tokenizer = byte_level()
    tokenizer.normalizer = normalizers.Strip()
    return tokenizer


def with_removing_split() -> Tokenizer:
    tokenizer = byte_level()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(" ", "removed"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    return tokenizer


def with_replacement() -> Tokenizer:
    tokenizer = byte_level()
    tokenizer.normalizer = normalizers.Replace(" ", "")
    return tokenizer


def with_a_greedy_token() -> Tokenizer:
    tokenizer = byte_level()
    tokenizer.add_special_tokens([AddedToken("<end>", rstrip=True)])
    return tokenizer


def with_dropped_characters() -> Tokenizer:
    return Tokenizer(models.BPE({"a": 0}, []))


@pytest.mark.parametrize(
    ("tokenizer", "text"),
    [
        (with_strip(), " " * 5000),
        (with_removing_split(), " " * 5000),
        (with_replacement(), " " * 5000),
        (with_a_greedy_token(), "<end>" + " " * 5000),
        (with_dropped_characters(), "b" * 5000),
    ],
    ids=["strip", "removing split", "replacement", "greedy added token", "no token for a byte"],
)
def test_a_tokenizer_that_drops_text_has_no_bound(tokenizer: Tokenizer, text: str) -> None:
    assert len(tokenizer.encode(text, add_special_tokens=False).ids) <= 1
    assert longest_token(json.loads(tokenizer.to_str())) is None


@pytest.mark.parametrize(
    "change",
    [
        {"model": {"type": "WordPiece"}},
        {"model": {"continuing_subword_prefix": "##"}},
        {"normalizer": {"type": "Lowercase"}},
        {"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "NFKC"}]}},
        {"pre_tokenizer": {"type": "Whitespace"}},
        {"pre_tokenizer": None},
    ],
)
def test_what_is_not_known_to_keep_text_has_no_bound(change: dict[str, Any]) -> None:
    document = json.loads(byte_level().to_str())
    for key, value in change.items():
        document[key] = document[key] | value if key == "model" else value
    assert longest_token(document) is None
