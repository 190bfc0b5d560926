"""docs/fingerprint.md: its test vectors, and a second implementation written from the page."""

from __future__ import annotations

import json
from typing import Any

import pytest
from teacher_proto.fingerprint.components import TOTAL
from teacher_proto.fingerprint.parts import PARTS, canonical_parts, content_of, read_fingerprint
from teacher_proto.tokenizer_hash import VERSION, tokenizer_hash

from tests.contract import fingerprint_reference as reference
from tests.contract.toy_tokenizers import ID_CHANGES, NO_ID_CHANGES, TOYS, edited

KNOWN = json.loads(reference.VECTORS.read_text(encoding="utf-8"))


@pytest.mark.parametrize("vector", KNOWN["vectors"], ids=lambda vector: vector["name"])
def test_a_vector_has_its_fingerprint(vector: dict[str, Any]) -> None:
    file = vector["tokenizer_json"]
    assert tokenizer_hash(file) == vector["tokenizer_hash"]
    assert read_fingerprint(file).digests == vector["digests"]
    parts = canonical_parts(content_of(file))
    assert list(parts) == list(PARTS)
    written = {
        part: json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        for part, value in parts.items()
    }
    assert vector["canonical"].items() <= written.items()


@pytest.mark.parametrize("vector", KNOWN["vectors"], ids=lambda vector: vector["name"])
def test_the_second_implementation_agrees_on_a_vector(vector: dict[str, Any]) -> None:
    file = vector["tokenizer_json"]
    assert reference.fingerprint(file) == vector["tokenizer_hash"]
    texts = {part: reference.write(value) for part, value in reference.parts(file).items()}
    assert {part: reference.sha256(text) for part, text in texts.items()} == vector["digests"]
    assert vector["canonical"].items() <= texts.items()


def test_the_vectors_are_of_this_version_and_of_every_kind() -> None:
    assert {v["tokenizer_hash"].split("-")[0] for v in KNOWN["vectors"]} == {f"v{VERSION}"}
    assert set(KNOWN["expressions"]) == TOTAL
    assert set(TOYS) <= {vector["name"] for vector in KNOWN["vectors"]}
    assert {part for vector in KNOWN["vectors"] for part in vector["canonical"]} == set(PARTS)


def test_both_implementations_agree_on_every_edit() -> None:
    documents = [
        edited(base, edit)
        for toy, _, edit, start, *_ in (*NO_ID_CHANGES, *ID_CHANGES)
        for base in [TOYS[toy] if start is None else edited(TOYS[toy], start)]
    ]
    control = {"type": "WordLevel", "unk_token": '\x01\b"\\\x7f\u2028', "vocab": {"\n": 0, "😀": 1}}
    for document in [*documents, {"model": control}]:
        file = json.dumps(document)
        assert reference.fingerprint(file) == tokenizer_hash(file), file[:300]
