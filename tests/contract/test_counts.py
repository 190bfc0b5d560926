"""What bytes hold is counted as a parser finds it, and the count leaves at its bound."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from google.protobuf import struct_pb2
from google.protobuf.message import DecodeError, Message
from hypothesis import given
from hypothesis import strategies as st
from teacher_proto import codec
from teacher_proto.codec import json_counts
from teacher_proto.codec.json_counts import JsonCounts, beyond
from teacher_proto.codec.wire_counts import Bound, TextBound, WireBounds, check_wire
from teacher_proto.errors import InvalidRequestError
from teacher_proto.v1 import array_pb2, score_pb2, tokenizer_pb2

from tests.contract.strategies import requests

REQUEST = score_pb2.ScoreRequest.DESCRIPTOR
PLENTY = 10**9
CONTINUATION = score_pb2.Continuation.DESCRIPTOR.full_name
NAMES = [
    CONTINUATION,
    score_pb2.Segment.DESCRIPTOR.full_name,
    score_pb2.ChatMessage.DESCRIPTOR.full_name,
    struct_pb2.Value.DESCRIPTOR.full_name,
]


class TooManyError(InvalidRequestError):
    pass


def bounds(fields: int = PLENTY, **messages: int) -> WireBounds:
    """``messages``: most by the last part of a type's name; plenty of the others."""
    return WireBounds(
        Bound(fields, lambda: TooManyError("fields")),
        {
            name: Bound(messages.get(name.rpartition(".")[2], PLENTY), lambda: TooManyError("it"))
            for name in NAMES
        },
    )


def number_of(message: Message, name: str) -> int:
    """Messages of one type inside a parsed one, maps included."""
    found = 0
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        if field.message_type.GetOptions().map_entry:
            inner = list(value.values())
        else:
            inner = list(value) if field.is_repeated else [value]
        for one in inner:
            found += (one.DESCRIPTOR.full_name == name) + number_of(one, name)
    return found


@given(request=requests)
def test_messages_are_counted_as_the_parser_finds_them(request: Any) -> None:
    message = codec.encode_request(request)
    data = codec.serialize(message)
    for name in NAMES:
        count, short = number_of(message, name), name.rpartition(".")[2]
        check_wire(data, REQUEST, bounds(**{short: count}))
        if count:
            with pytest.raises(TooManyError):
                check_wire(data, REQUEST, bounds(**{short: count - 1}))


@given(request=requests, data=st.data())
def test_bytes_that_a_parser_takes_are_counted_or_refused(
    request: Any, data: st.DataObject
) -> None:
    changed = bytearray(codec.serialize(codec.encode_request(request)))
    for _ in range(data.draw(st.integers(1, 3))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    message = score_pb2.ScoreRequest()
    try:
        message.ParseFromString(bytes(changed))
    except DecodeError:
        return
    count = number_of(message, CONTINUATION)
    try:
        check_wire(bytes(changed), REQUEST, bounds(Continuation=count - 1))
    except InvalidRequestError:
        return
    assert count == 0


def overlong(value: int, size: int) -> bytes:
    """A varint in more bytes than it needs."""
    parts = [(value >> (7 * place)) & 0x7F for place in range(size)]
    return bytes(part | 0x80 for part in parts[:-1]) + bytes(parts[-1:])


@pytest.mark.parametrize("tag", [b"\x3a", overlong(0x3A, 2), overlong(0x3A, 5)])
@pytest.mark.parametrize("length", [b"\x00", overlong(0, 5)])
def test_no_spelling_of_a_field_escapes_the_count(tag: bytes, length: bytes) -> None:
    with pytest.raises(TooManyError):
        check_wire((tag + length) * 4, REQUEST, bounds(Continuation=3))


@pytest.mark.parametrize(
    "data",
    [
        b"\x3a",
        b"\x3a\x02\x0a",
        b"\x3a\x04\x0a\x7f\x00\x00",  # a segment longer than its continuation
        b"\x3b\x00\x3c",  # a group
        b"\x3f\x00",
        overlong(0x3A, 6) + b"\x00",
        b"\xba\x80\x80\x80\x10\x00",  # a tag beyond 32 bits
        b"\x40" + b"\xff" * 10 + b"\x01",
        b"\x49\x00",
        b"\x3a\x00" * 3 + b"\x12\x7f",
    ],
)
def test_what_is_no_message_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidRequestError, match="are not a teacher_proto"):
        check_wire(data, REQUEST, bounds())


def test_fields_are_counted_unknown_and_packed_ones_too() -> None:
    check_wire(b"\xa0\x06\x01" * 5, REQUEST, bounds(fields=5))
    with pytest.raises(TooManyError):
        check_wire(b"\xa0\x06\x01" * 6, REQUEST, bounds(fields=5))
    packed = array_pb2.Array(shape=[1] * 9).SerializeToString()
    check_wire(packed * 2, array_pb2.Array.DESCRIPTOR, bounds(fields=20))
    with pytest.raises(TooManyError):
        check_wire(packed * 2, array_pb2.Array.DESCRIPTOR, bounds(fields=19))


def test_the_count_leaves_at_its_bound() -> None:
    """What stands behind the bound is not looked at: here it is no message."""
    with pytest.raises(TooManyError):
        check_wire(b"\x3a\x00" * 4 + b"\x3f", REQUEST, bounds(Continuation=3))


def test_the_tree_of_another_message_is_its_own() -> None:
    header = tokenizer_pb2.TokenizerHeader(
        special_tokens=[tokenizer_pb2.SpecialToken(token_id=number) for number in range(5)]
    )
    data = tokenizer_pb2.RegisterTokenizerRequest(header=header).SerializeToString()
    name = tokenizer_pb2.SpecialToken.DESCRIPTOR.full_name
    most = WireBounds(
        Bound(PLENTY, InvalidRequestError), {name: Bound(4, lambda: TooManyError("tokens"))}
    )
    with pytest.raises(TooManyError):
        check_wire(data, tokenizer_pb2.RegisterTokenizerRequest.DESCRIPTOR, most)


@pytest.mark.parametrize("field", ["prompt", "teacher_prompt"])
@pytest.mark.parametrize("length", [9, 10, 300])
def test_a_long_text_is_found_by_its_length_with_the_field_that_holds_it(
    field: str, length: int
) -> None:
    request = score_pb2.ScoreRequest(run="b" * 50)
    getattr(request, field).text = "a" * length
    data = request.SerializeToString()
    name = f"{score_pb2.Prompt.DESCRIPTOR.full_name}.text"
    most = replace(
        bounds(), texts={name: TextBound(9, lambda size, where: TooManyError(f"{size} {where}"))}
    )
    if length == 9:
        check_wire(data, REQUEST, most)
        return
    with pytest.raises(TooManyError, match=f"^{length} {field}$"):
        check_wire(data, REQUEST, most)


ODD = st.sampled_from(['"', "\\", '\\"', "{,[:"])
documents = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | ODD,
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.just('\\"{'), inner),
)


def counted(value: Any) -> JsonCounts:
    """What a document holds, by a walk through it."""
    total = [isinstance(value, str), isinstance(value, dict), isinstance(value, list), 0, 1]
    inner = list(value.values()) if isinstance(value, dict) else []
    inner += value if isinstance(value, list) else []
    keys = len(value) if isinstance(value, dict) else 0
    total[0], total[3] = total[0] + keys, total[3] + keys
    for one in inner:
        for place, count in enumerate(vars(counted(one)).values()):
            total[place] += count
    return JsonCounts(*map(int, total))


@given(
    document=documents,
    ascii_only=st.booleans(),
    piece=st.sampled_from([1, 2, 3, json_counts.PIECE]),
    as_bytes=st.booleans(),
)
def test_json_is_counted_as_the_parser_finds_it(
    document: Any, ascii_only: bool, piece: int, as_bytes: bool
) -> None:
    written = json.dumps(document, ensure_ascii=ascii_only)
    text = written.encode() if as_bytes else written
    most = vars(counted(document))
    # An empty list or object counts as if it held one value.
    empty = written.count("[]") + written.count("{}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_counts, "PIECE", piece)
        assert beyond(text, JsonCounts(**(most | {"values": most["values"] + empty}))) == ""
        for name, count in most.items():
            if count and name != "values":
                few = most | {"values": PLENTY, name: count - 1}
                assert beyond(text, JsonCounts(**few)) == name


def test_a_json_count_ends_where_it_is_decided(monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[int] = []
    pieces = json_counts._without_escapes

    def watched(text: Any) -> Any:
        for piece in pieces(text):
            counted.append(len(piece))
            yield piece

    monkeypatch.setattr(json_counts, "_without_escapes", watched)
    most = JsonCounts(PLENTY, PLENTY, arrays=1000, keys=PLENTY, values=PLENTY)
    assert beyond(b"[]," * (5 << 20), most) == "arrays"
    assert counted == [json_counts.PIECE]
