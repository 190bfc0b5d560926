"""What is JSON is read as ``json.loads`` reads it, and everything else is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from teacher_proto.codec import strict_json
from teacher_proto.codec.strict_json import StrictJsonError, parse_json

HIGH, LOW = "\\ud83d", "\\uDE00"
characters = st.characters(exclude_categories=["Cs"])
documents = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(characters),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(characters), inner),
)
# What is written between two quotes: halves, pairs, and what looks like them and is none.
written = st.lists(
    st.sampled_from([HIGH, LOW, "\\\\", "\\n", '\\"', "ud83d", "uDE00", "a", "\u4e2d", "\\u00e9"])
).map("".join)


@given(document=documents, ascii_only=st.booleans())
def test_what_is_read_is_what_was_written(document: Any, ascii_only: bool) -> None:
    text = json.dumps(document, ensure_ascii=ascii_only)
    assert parse_json(text) == document
    assert parse_json(text.encode()) == document
    assert parse_json(bytearray(text.encode())) == document


def is_whole(document: Any) -> bool:
    """Whether all its strings can be written in UTF-8."""
    try:
        json.dumps(document, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


@given(parts=st.lists(written), piece=st.sampled_from([1, 2, 7, strict_json.PIECE]))
def test_a_half_of_a_pair_is_found_wherever_it_stands(parts: list[str], piece: int) -> None:
    text = "[" + ",".join(f'"{part}"' for part in parts) + "]"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(strict_json, "PIECE", piece)
        if is_whole(json.loads(text)):
            assert parse_json(text.encode()) == json.loads(text)
        else:
            with pytest.raises(StrictJsonError, match="half of a surrogate pair"):
                parse_json(text.encode())


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (b'["a", NaN]', "NaN is not a JSON number"),
        (b"[-Infinity]", "-Infinity is not a JSON number"),
        (b"[1e999]", "beyond the range of a double"),
        (b"[" + b"1" * 5000 + b"]", "too many digits"),
        (b'["a" 1]', "Expecting ',' delimiter at character 5"),
        (b'["\xc3\xa9" 1]', "Expecting ',' delimiter at character 5"),
        (b'["a\n"]', "Invalid control character"),
        (b'["' + b"a" * 20_000, "Unterminated string"),
        (b'["' + b"a" * 20_000 + b'\\x"]', "Invalid \\escape"),
        (b'["' + b"a" * 20_000 + b'\xff"]', "it is not UTF-8 (byte 20002)"),
        (b'["\xed\xa0\xbd"]', "it is not UTF-8 (byte 2)"),
        (b'{"a": 1, "\\u0061": 2}', "an object has the same key twice"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"\\ud83d": 1}', "half of a surrogate pair"),
        ('["\ud83d"]', "half of a surrogate pair"),
        (b"\xef\xbb\xbf[]", "BOM"),
        (b"", "Expecting value"),
    ],
)
def test_what_is_no_json_is_refused(text: str | bytes, told: str) -> None:
    with pytest.raises(StrictJsonError) as refused:
        parse_json(text)
    assert told in str(refused.value)


def test_a_search_for_halves_leaves_the_others_their_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    searched: list[int] = []

    class Watched:
        def search(self, text: str, begin: int, end: int) -> None:
            searched.append(min(end, len(text)) - begin)

    monkeypatch.setattr(strict_json, "_HALF", Watched())
    text = '["' + (HIGH + LOW) * 50_000 + '"]'
    assert parse_json(text) == [b"\xf0\x9f\x98\x80".decode() * 50_000]
    assert max(searched) <= strict_json.PIECE + strict_json.PAIR
    assert sum(searched) >= len(text)
