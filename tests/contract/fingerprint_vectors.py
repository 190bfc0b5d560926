"""Writes docs/fingerprint_vectors.json, once for each version of the fingerprint:

python -m tests.contract.fingerprint_vectors
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from teacher_proto.fingerprint.parts import canonical_parts, content_of, read_fingerprint
from teacher_proto.tokenizer_hash import tokenizer_hash

from tests.contract.toy_tokenizers import (
    GPT2_REGEX,
    ID_CHANGES,
    NO_ID_CHANGES,
    QWEN_REGEX,
    TOYS,
    edited,
)

FILE = Path(__file__).parents[2] / "docs" / "fingerprint_vectors.json"
C = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
U, L = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
OTHER = r"[^\r\n\p{L}\p{N}]?"
REST = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
EXPRESSIONS = [
    GPT2_REGEX,
    QWEN_REGEX,
    QWEN_REGEX.replace(r"|\p{N}|", r"|\p{N}{1,3}|"),
    rf"{OTHER}{U}*{L}+|{OTHER}{U}+{L}*|\p{{N}}|{REST}",
    rf"{OTHER}{U}*{L}+{C}?|{OTHER}{U}+{L}*{C}?|\p{{N}}{{1,3}}|{REST}",
]
# Larger parts are in the vectors by their digest alone.
SHORT = 700
# Of each toy: some of the edits that change no id, which have its fingerprint, and some that do.
EDITS = {
    "ByteLevel's own expression in a Split",
    "unk_token",
    "the last bit of a score",
    "an id that the file states",
    "order of the file",
    "of two with one id the last",
}


def vectors() -> dict[str, Any]:
    documents = dict(TOYS)
    for toy, what, edit, start, *_ in (*NO_ID_CHANGES, *ID_CHANGES):
        if what in EDITS:
            base = TOYS[toy] if start is None else edited(TOYS[toy], start)
            documents[f"{toy}, {what}"] = edited(base, edit)
    return {
        "expressions": EXPRESSIONS,
        "vectors": [_vector(name, json.dumps(found)) for name, found in documents.items()],
    }


def _vector(name: str, file: str) -> dict[str, Any]:
    parts = canonical_parts(content_of(file))
    texts = {
        part: json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        for part, value in parts.items()
    }
    return {
        "name": name,
        "tokenizer_hash": tokenizer_hash(file),
        "digests": read_fingerprint(file).digests,
        "canonical": {part: text for part, text in texts.items() if len(text) <= SHORT},
        "tokenizer_json": file,
    }


if __name__ == "__main__":
    FILE.write_text(json.dumps(vectors(), indent=1) + "\n", encoding="utf-8")
