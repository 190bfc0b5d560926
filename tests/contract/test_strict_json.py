"""What is JSON is read as ``json.loads`` reads it, and everything else is refused."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
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


numbers = st.lists(
    st.integers() | st.floats(allow_nan=False, allow_infinity=False), min_size=4, max_size=60
)
# What stands beside long arrays of numbers, and looks like them.
beside = st.sampled_from(
    ["[1, 2, 3, 4, 5, 6]", '\\"[1,2,3,4,5,6]', "NaN", "\\", "]", "[[1,2],[3,4,5,6]]", ""]
)
mixed = st.recursive(
    numbers | beside | st.none(),
    lambda inner: st.lists(inner) | st.dictionaries(beside, inner),
    max_leaves=8,
)


@pytest.fixture
def small_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strict_json, "LONG", 6)
    monkeypatch.setattr(strict_json, "SLICE", 5)
    monkeypatch.setattr(strict_json, "PIECE", 16)
    monkeypatch.setattr(strict_json, "_NUMBERS", re.compile(r"\[[-+.\deE,\s]{6}"))


@pytest.mark.usefixtures("small_slices")
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(document=mixed, spaces=st.sampled_from([(",", ":"), (", ", ": "), (" ,\n", " : ")]))
def test_arrays_that_are_read_by_slices_are_where_they_were(
    document: Any, spaces: tuple[str, str]
) -> None:
    text = json.dumps(document, separators=spaces)
    found = parse_json(text)
    assert found == document
    assert json.dumps(found) == json.dumps(document)  # 1 and 1.0 are two


@pytest.mark.usefixtures("small_slices")
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(document=mixed, data=st.data())
def test_what_is_wrong_beside_slices_is_refused_where_it_is(document: Any, data: Any) -> None:
    text = json.dumps([document])
    at = data.draw(st.integers(0, len(text)))
    broken = text[:at] + data.draw(st.sampled_from([",", "]", "[", '"', "x", "}", "-"])) + text[at:]
    try:
        expected = json.loads(broken)
    except json.JSONDecodeError as error:
        with pytest.raises(StrictJsonError, match=rf"at character {error.pos}$|NaN|range"):
            parse_json(broken)
    else:
        if "Infinity" in json.dumps(expected):  # a comma has cut a number's beginning off
            with pytest.raises(StrictJsonError, match="beyond the range"):
                parse_json(broken)
        else:
            assert parse_json(broken) == expected


@pytest.mark.parametrize("beside", ["a", "NaN", "-Infinity", "[" + "1" * strict_json.LONG])
def test_no_long_array_of_numbers_is_parsed_at_once(
    monkeypatch: pytest.MonkeyPatch, beside: str
) -> None:
    """Whatever the strings beside it look like."""
    parsed = []

    def noting(text: str, **how: Any) -> Any:
        parsed.append(len(text))
        return loads(text, **how)

    loads = json.loads
    ids = list(range(100_000, 200_000))
    document = {"id": beside, "prompt": {"token_ids": ids}, "top_k": 1}
    text = json.dumps(document)
    monkeypatch.setattr(json, "loads", noting)
    assert parse_json(text) == document
    assert max(parsed) < strict_json.SLICE + 20


@pytest.mark.usefixtures("small_slices")
@pytest.mark.parametrize("name", ["NaN", "-Infinity"])
@pytest.mark.parametrize("at", range(4))
def test_a_name_that_is_no_number_is_refused_beside_slices(name: str, at: int) -> None:
    items = ["[1, 2, 3, 4, 5, 6]", '"NaN"', "[7, 8, 9, 10, 11]"]
    items.insert(at, name)
    with pytest.raises(StrictJsonError, match="is not a JSON number"):
        parse_json("[" + ", ".join(items) + "]")


@pytest.mark.parametrize("inner", ["1," * 16_385, "1," * 16_385 + ",2", " " * 32_770 + ",1"])
def test_nothing_between_commas_is_no_number(inner: str) -> None:
    """The first slice ends where there is nothing."""
    with pytest.raises(StrictJsonError, match=r"at character \d+$"):
        parse_json(f"[{inner}]")
