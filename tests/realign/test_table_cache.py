"""Tables on disk are of the very content they were built for, not of its fingerprint alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from teacher_proto.types import SpecialRole

from teacher_server.realign.pair.cache import TableCache
from teacher_server.realign.pair.static_tables import StaticTables
from teacher_server.realign.pair.vocabulary import Vocabulary, read_vocabulary


def flagged(file: bytes, special: bool) -> Vocabulary:
    """A student with an added token that is one of its model's vocabulary; where it is special
    it is padding, which no text stands for."""
    document: dict[str, Any] = json.loads(file)
    words = {text: token for text, token in document["model"]["vocab"].items() if len(text) > 3}
    text, token = max(words.items(), key=lambda one: one[1])
    like = document["added_tokens"][0]
    document["added_tokens"].append({**like, "id": token, "content": text, "special": special})
    roles = {token: SpecialRole.PADDING} if special else {}
    return read_vocabulary(json.dumps(document), roles)


def same(one: StaticTables, other: StaticTables) -> bool:
    return all(np.array_equal(a, vars(other)[name]) for name, a in vars(one).items())


@pytest.mark.parametrize("first", [True, False])
def test_a_file_of_the_same_fingerprint_leaves_no_tables_for_another(
    tiny_model_dir: Path, other_tokenizer_model_dir: Path, tmp_path: Path, first: bool
) -> None:
    teacher = read_vocabulary((tiny_model_dir / "tokenizer.json").read_bytes())
    file = (other_tokenizer_model_dir / "tokenizer.json").read_bytes()
    hostile, own = flagged(file, first), flagged(file, not first)
    assert hostile.hash == own.hash
    expected = TableCache(None).get(own, teacher).static
    others = TableCache(tmp_path).get(hostile, teacher).static
    assert not same(others, expected)
    assert same(TableCache(tmp_path).get(own, teacher).static, expected)
    assert same(TableCache(tmp_path).get(own, teacher).static, expected)
