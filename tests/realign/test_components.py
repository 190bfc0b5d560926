"""What published tokenizers are made of is what a registered one may be made of."""

from __future__ import annotations

import json
from typing import Any

import pytest
from teacher_proto.errors import InvalidRequestError

from teacher_server.workers.inside.components import check_components
from tests.realign.real_tokenizers import SHA256, tokenizer_file

MODEL = {"type": "BPE", "vocab": {"a": 0}, "merges": []}


@pytest.mark.parametrize("name", SHA256)
def test_published_tokenizers_are_taken(name: str) -> None:
    check_components(json.loads(tokenizer_file(name).read_bytes()))


@pytest.mark.parametrize(
    "document",
    [
        {"normalizer": "NFC"},
        {"normalizer": {"type": 3}},
        {"normalizer": {"type": "Sequence", "normalizers": {}}},
        {"normalizer": {"type": "Replace", "pattern": {"String": "a"}, "content": None}},
        {"normalizer": {"type": "Replace", "pattern": {}, "content": ""}},
        {"normalizer": {"type": "Replace", "content": "a"}},
        {"decoder": {"type": "Replace", "pattern": {"String": ""}, "content": "a"}},
        {"decoder": {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 257}},
        {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "a" * 4097}}},
        {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Digits"}] * 33}},
        {"added_tokens": [{"id": 1, "content": "x" * 1025}]},
        {"model": {**MODEL, "vocab": {"a" * 2049: 0}}},
        {"model": {**MODEL, "end_of_word_suffix": "x" * 1025}},
        {"model": {**MODEL, "type": "Other"}},
    ],
)
def test_what_is_beyond_the_bounds_is_refused(document: dict[str, Any]) -> None:
    check_components({"model": MODEL})
    with pytest.raises(InvalidRequestError) as found:
        check_components({"model": MODEL, **document})
    assert found.value.reason == "TOKENIZER_REFUSED"
