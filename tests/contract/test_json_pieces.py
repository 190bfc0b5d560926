"""A large JSON text is counted and read in pieces, and nobody can tell from the result."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from teacher_proto.codec.json_pieces import counts, long_strings
from teacher_proto.codec.json_pieces.counts import JsonCounts, beyond
from teacher_proto.codec.strict_json import StrictJsonError, parse_json

LONG = 16
PLENTY = JsonCounts(*[10**9] * 5)
pieces_of = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
characters = st.sampled_from(list('a"\\/\n\t\x7f\u00e9\u4e2d\U0001f600 {[:,')) | st.characters(
    exclude_categories=["Cs"]
)
texts = st.text(characters, max_size=40)
documents = st.recursive(
    st.none() | st.booleans() | st.integers() | texts,
    lambda inner: st.lists(inner) | st.dictionaries(st.text(characters, max_size=1), inner),
)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every string of more than a few bytes is a long one."""
    monkeypatch.setattr(long_strings, "LONG", LONG)


@pieces_of
@given(document=documents, ascii_only=st.booleans())
def test_what_is_read_in_pieces_is_what_was_written(
    short: None, document: Any, ascii_only: bool
) -> None:
    text = json.dumps(document, ensure_ascii=ascii_only)
    assert parse_json(text.encode()) == document
    assert parse_json(bytearray(text.encode())) == document
    assert parse_json(text) == document


@pytest.mark.parametrize("places", range(1, LONG + 14))
@pytest.mark.parametrize(
    "written", ["\\u00e9", "\\ud83d\\ude00", "\u4e2d", "\U0001f600", "\\\\", '\\"', "\\n"]
)
def test_no_piece_ends_inside_a_character(short: None, places: int, written: str) -> None:
    text = f'["{"a" * places}{written * 20}"]'
    assert parse_json(text.encode()) == json.loads(text)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (b'["aaaaaaaaaaaaaaaaaaaaaaaa", NaN]', "NaN is not a JSON number"),
        (b'[NaN, "aaaaaaaaaaaaaaaaaaaaaaaa"]', "NaN is not a JSON number"),
        (b'["aaaaaaaaaaaaaaaaaaaaaaaa", -Infinity]', "-Infinity is not a JSON number"),
        (b'["aaaaaaaaaaaaaaaaaaaaaaaa" 1]', "Expecting ',' delimiter at character 28"),
        (b'["\xc3\xa9aaaaaaaaaaaaaaaaaaaaaaaa" 1]', "Expecting ',' delimiter at character 29"),
        (b'["aaaaaaaaaaaaaaaaaaaaaaaa\n"]', "no string may hold at byte 26"),
        (b'["aaaaaaaaaaaaaaaaaaaaaaaa\\x"]', "no string may hold at byte 26"),
        (b'["aaaaaaaaaaaaaaaaaaaaaaaa\\ud83d"]', "no string may hold at byte 26"),
        (b'["aaaaaaaaaaaaaaaaaaaaaaaa\\ude00"]', "no string may hold at byte 26"),
        (b'["aaaaaaaaaaaaaaaaaaaaaaaa", "\\ud83d"]', "half of a surrogate pair"),
        (b'["aaaaaaaaaaaaaaaaaaaaaaaa', "no string may hold at byte 26"),
        (b'["aaaaaaaaaaaaaaaaaaaa\xffaaaa"]', "it is not UTF-8 (byte 22)"),
        (b'["aaaaaaaaaaaaaaaaaaaaaaaa", "\xff"]', "it is not UTF-8 (byte 30)"),
        (b'{"aaaaaaaaaaaaaaaaaaaaaaaa" : 1}', "a key has more than 16 bytes"),
        (b'{"a": "aaaaaaaaaaaaaaaaaaaaaaaa", "a": 1}', "an object has the same key twice"),
    ],
)
def test_what_is_no_json_is_refused_beside_a_long_string(
    short: None, text: bytes, told: str
) -> None:
    with pytest.raises(StrictJsonError) as refused:
        parse_json(text)
    assert told in str(refused.value)


def test_no_thread_waits_for_more_than_a_piece_of_a_string(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read: list[int] = []
    loads = json.loads

    def counted(text: Any, **how: Any) -> Any:
        read.append(len(text))
        return loads(text, **how)

    monkeypatch.setattr(json, "loads", counted)
    long = "a" * (1 << 20)
    found = parse_json(json.dumps({"prompt": {"text": long}, "teacher": "t"}).encode())
    assert found == {"prompt": {"text": long}, "teacher": "t"}
    assert max(read) <= long_strings.LONG + 2
    assert sum(read) >= len(long)


def test_a_count_ends_where_it_is_decided(monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[int] = []
    pieces = counts._without_escapes

    def watched(text: Any) -> Any:
        for piece in pieces(text):
            counted.append(len(piece))
            yield piece

    monkeypatch.setattr(counts, "_without_escapes", watched)
    most = JsonCounts(**(vars(PLENTY) | {"arrays": 1000}))
    assert beyond(b"[]," * (5 << 20), most) == "arrays"
    assert counted == [counts.PIECE]
