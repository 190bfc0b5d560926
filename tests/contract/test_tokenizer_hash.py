"""The fingerprint follows what decides ids, and nothing else."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from teacher_proto.errors import ConfigurationError
from teacher_proto.fingerprint import parts
from teacher_proto.tokenizer_hash import tokenizer_hash

BASE: dict[str, Any] = {
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "added_tokens": [
        {"id": 5, "content": "<|end|>", "special": True, "lstrip": False},
        {"id": 4, "content": "<|pad|>", "special": True, "lstrip": False},
    ],
    "normalizer": {"type": "NFC"},
    "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False},
    "post_processor": None,
    "decoder": {"type": "ByteLevel"},
    "model": {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "byte_fallback": False,
        "vocab": {"a": 0, "b": 1, "ab": 2, "\u0120": 3},
        "merges": [["a", "b"], ["\u0120", "a"]],
    },
}
UNIGRAM: dict[str, Any] = {
    "model": {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["a", -1.5]]}
}

Edit = Callable[[dict[str, Any]], Any]


def fingerprint(edit: Edit, base: dict[str, Any] = BASE) -> str:
    document = copy.deepcopy(base)
    edit(document)
    return tokenizer_hash(json.dumps(document))


def model(**changes: Any) -> Edit:
    return lambda document: document["model"].update(changes)


@pytest.mark.parametrize(
    "edit",
    [
        lambda d: None,
        lambda d: d.update(version="2.0"),
        lambda d: d.update(truncation={"max_length": 5}),
        lambda d: d.update(padding={"strategy": "BatchLongest"}),
        lambda d: d.update(post_processor={"type": "ByteLevel"}),
        lambda d: d.update(decoder=None),
        lambda d: d["added_tokens"][0].update(special=False),
        lambda d: d["added_tokens"][0].update(id=6),
        model(merges=["a b", "\u0120 a"]),
        model(vocab={"\u0120": 3, "ab": 2, "b": 1, "a": 0}),
        model(dropout=0.0),
        model(continuing_subword_prefix="", end_of_word_suffix="", ignore_merges=False),
        lambda d: d["model"].pop("byte_fallback"),
    ],
)
def test_what_does_not_change_ids_does_not_count(edit: Edit) -> None:
    assert fingerprint(edit) == fingerprint(lambda d: None)


DIFFERENT: list[Edit] = [
    lambda d: d["added_tokens"].pop(),
    # The library numbers them in the order of the file.
    lambda d: d["added_tokens"].reverse(),
    lambda d: d["added_tokens"][0].update(content="<|stop|>"),
    lambda d: d["added_tokens"][0].update(lstrip=True),
    lambda d: d.update(normalizer=None),
    lambda d: d["normalizer"].update(type="NFKC"),
    lambda d: d["pre_tokenizer"].update(add_prefix_space=True),
    model(merges=[["\u0120", "a"], ["a", "b"]]),
    model(merges=[["a", "b"]]),
    model(vocab={"a": 1, "b": 0, "ab": 2, "\u0120": 3}),
    model(vocab={"a": 0, "b": 1, "ab": 2}),
    model(byte_fallback=True),
    model(ignore_merges=True),
    model(dropout=0.1),
    model(continuing_subword_prefix="##"),
    model(unk_token="a"),
    model(type="WordPiece"),
]


def test_whatever_changes_ids_changes_the_fingerprint() -> None:
    found = [fingerprint(edit) for edit in (lambda d: None, *DIFFERENT)]
    assert len(set(found)) == len(found)
    assert all(re.fullmatch("v2-[0-9a-f]{64}", item) for item in found)


def test_unigram_models() -> None:
    found = {
        fingerprint(edit, UNIGRAM)
        for edit in (
            lambda d: None,
            model(unk_id=None),
            model(unk_id=1),
            model(vocab=[["a", -1.5], ["<unk>", 0.0]]),
            model(vocab=[["<unk>", 0.0], ["a", -1.0]]),
        )
    }
    assert len(found) == 5


@pytest.mark.parametrize(
    "content",
    [
        "",
        "no json",
        b"\xff\xfe\xfa",
        "[" * 100_000,
        "[]",
        "{}",
        '{"model": 3}',
        '{"model": {"type": "BPE"}}',
        '{"model": {"vocab": "a"}}',
        '{"model": {"vocab": {"a": -1}}}',
        '{"model": {"vocab": {"a": true}}}',
        '{"model": {"vocab": {"a": 1, "b": 1}}}',
        '{"model": {"vocab": {}, "merges": {}}}',
        '{"model": {"vocab": {}, "merges": ["a b c"]}}',
        '{"model": {"vocab": {}, "merges": [["a", 1]]}}',
        '{"model": {"vocab": {}}, "added_tokens": "x"}',
        '{"model": {"vocab": {}}, "added_tokens": [{"id": "1", "content": "a"}]}',
    ],
)
def test_files_that_cannot_be_read(content: str | bytes) -> None:
    with pytest.raises(ConfigurationError) as caught:
        tokenizer_hash(content)
    assert caught.value.where == "tokenizer.json"


def test_a_real_tokenizer_on_disk_and_in_memory(
    tiny_model_dir: Path, other_tokenizer_model_dir: Path
) -> None:
    from transformers import AutoTokenizer

    file = (tiny_model_dir / "tokenizer.json").read_bytes()
    loaded = AutoTokenizer.from_pretrained(tiny_model_dir)
    assert tokenizer_hash(loaded.backend_tokenizer.to_str()) == tokenizer_hash(file)
    other = (other_tokenizer_model_dir / "tokenizer.json").read_bytes()
    assert tokenizer_hash(other) != tokenizer_hash(file)
    loaded.backend_tokenizer.enable_truncation(4)
    loaded.backend_tokenizer.enable_padding()
    assert tokenizer_hash(loaded.backend_tokenizer.to_str()) == tokenizer_hash(file)
    loaded.add_tokens(["<think>"])
    assert tokenizer_hash(loaded.backend_tokenizer.to_str()) != tokenizer_hash(file)


def test_one_content_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A registration asks for the fingerprint of its file more than once."""
    read: list[str | bytes] = []
    real = parts.content_of

    def counting(content: str | bytes) -> object:
        read.append(content)
        return real(content)

    monkeypatch.setattr(parts, "content_of", counting)
    file = json.dumps({**BASE, "version": "read once"})
    assert tokenizer_hash(file) == tokenizer_hash(file.encode()) == fingerprint(lambda d: None)
    assert [one for one in read if "read once" in str(one)] == [file]
    for number in range(parts.MAX_KEPT + 1):
        tokenizer_hash(json.dumps({**UNIGRAM, "version": number}))
    assert len(parts._kept) == parts.MAX_KEPT
    tokenizer_hash(file)
    assert [one for one in read if "read once" in str(one)] == [file, file]
