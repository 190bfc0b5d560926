"""Bytes to ids and back, and the files that are refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from teacher_proto.errors import ConfigurationError
from teacher_proto.types import Level, SpecialRole

from teacher_server.realign.pair.levels import pair_level
from teacher_server.realign.pair.roles import counterpart, role_table
from teacher_server.realign.pair.vocabulary import incomplete_tail, read_vocabulary
from tests.realign.real_tokenizers import vocabulary
from tests.realign.toys import bpe_document

HOSTILE = [
    "cafe\u0301 na\u00efve",
    "\U0001f469\u200d\U0001f469\u200d\U0001f467",
    "a\r\nb\r\n",
    "\u2581 is no space",
    "<|im_end|><|eot_id|></s> typed as text",
    "\x00\t  \u3000\u00a0",
]
PIECES = st.lists(st.one_of(st.sampled_from(HOSTILE), st.text(max_size=12)), max_size=5)


@pytest.mark.parametrize("name", ["gpt2", "qwen2_5", "llama2", "llama3", "mistral_nemo", "gemma2"])
@settings(max_examples=40, deadline=None)
@given(pieces=PIECES, cut=st.integers(0, 3), junk=st.binary(max_size=4))
def test_any_bytes_come_back(name: str, pieces: list[str], cut: int, junk: bytes) -> None:
    text = "".join(pieces).encode("utf-8", "surrogatepass")
    data = text[: max(0, len(text) - cut)] + junk
    encoder = vocabulary(name).encoder
    try:
        encoded = encoder.encode(data)
    except ValueError:
        assert name == "gemma2", "only Gemma 2 has no token for some control bytes"
        return
    assert encoder.decode(encoded.ids.tolist()) == data
    assert not set(encoded.ids.tolist()) & set(vocabulary(name).specials)


def test_specials_and_their_roles() -> None:
    qwen = vocabulary("qwen3")
    roles = {qwen.specials[token]: role for token, role in qwen.roles.items()}
    assert roles["<|im_end|>"] is SpecialRole.TURN_END
    assert roles["</think>"] is SpecialRole.THINK_CLOSE
    assert vocabulary("gemma3").roles[106] is SpecialRole.TURN_END


def test_levels_follow_content() -> None:
    assert pair_level(vocabulary("qwen3"), vocabulary("qwen3")) is Level.SAME
    # 151,643 ordinary ids in common, four more added tokens.
    assert pair_level(vocabulary("qwen2_5"), vocabulary("qwen3")) is Level.REMAP
    # Equal ids, specials renamed.
    assert pair_level(vocabulary("llama3"), vocabulary("llama3_2")) is Level.REMAP
    assert pair_level(vocabulary("llama3"), vocabulary("qwen3")) is Level.CROSS


def test_the_tail_of_an_unfinished_character() -> None:
    assert [incomplete_tail("a你".encode()[:n]) for n in range(5)] == [0, 0, 1, 2, 0]
    assert incomplete_tail(b"\x80") == 0


def changed(**changes: Any) -> str:
    document = bpe_document("ab", [("a", "b")])
    document["model"] = document["model"] | changes.pop("model", {})
    return json.dumps(document | changes)


@pytest.mark.parametrize(
    ("file", "says"),
    [
        ("{", "not JSON"),
        (changed(model={"type": "WordPiece"}), "not BPE"),
        (changed(pre_tokenizer=None, decoder=None), "neither byte-level"),
        (changed(added_tokens=[{"id": 0, "content": "</s>", "special": True}]), "another token"),
        (changed(added_tokens=[{"id": 9, "content": "a", "special": True}]), "in the model"),
        (changed(added_tokens=[{"id": 2**30, "content": "x"}]), "ids go up to"),
        (changed(model={"merges": [["a", "zzz"]]}), "cannot be built"),
        # The tokenizers library numbers them in the order of the file.
        (changed(added_tokens=[{"id": 4, "content": "x"}, {"id": 3, "content": "y"}]), "states id"),
        (changed(added_tokens=[{"id": 8, "content": "x"}]), "states id 8"),
    ],
)
def test_what_cannot_be_realigned_is_refused(file: str, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        read_vocabulary(file)


def test_a_role_for_an_ordinary_id_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="no special token"):
        read_vocabulary(changed(), {0: SpecialRole.TURN_END})


def test_thinking_has_a_counterpart_whatever_its_spelling() -> None:
    mine = role_table({7: "[THINK]", 8: "[/THINK]"}, {})
    theirs = role_table({1: "<think>", 2: "</think>"}, {})
    assert [counterpart(mine[token], theirs) for token in (7, 8)] == [1, 2]
