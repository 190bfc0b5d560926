"""What goes in comes out: values, dtypes, shapes and absences."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from teacher_proto import codec
from teacher_proto.codec.arrays import BITMAP, FLOAT32, INT32, Kind, decode_array, encode_array
from teacher_proto.errors import InvalidRequestError, PoisonedReplyError, UnknownTeacherError
from teacher_proto.types import (
    Level,
    Prompt,
    RenderRequest,
    ScoreReply,
    ScoreRequest,
    ServerInfo,
    TokenizerUpload,
)
from teacher_proto.v1 import array_pb2

from tests.contract import strategies
from tests.contract.golden_cases import SERVER_INFO
from tests.support.compare import same
from tests.support.replies import VOCABULARY, make_reply, make_request

PROFILE = settings(deadline=None, max_examples=150)


@PROFILE
@given(strategies.requests)
def test_requests(request_: ScoreRequest) -> None:
    data = codec.serialize(codec.encode_request(request_))
    decoded = codec.decode_request(data)
    assert same(decoded, request_)
    assert codec.serialize(codec.encode_request(decoded)) == data


@PROFILE
@given(strategies.replies)
def test_replies(reply: ScoreReply) -> None:
    data = codec.serialize(codec.encode_reply(reply))
    decoded = codec.decode_reply(data)
    assert same(decoded, reply)
    assert codec.serialize(codec.encode_reply(decoded)) == data


@PROFILE
@given(strategies.server_infos)
def test_server_infos(info: ServerInfo) -> None:
    decoded = codec.decode_server_info(codec.serialize(codec.encode_server_info(info)))
    ordered = tuple(
        dataclasses.replace(teacher, tokenizers=dict(sorted(teacher.tokenizers.items())))
        for teacher in info.teachers
    )
    assert same(decoded, dataclasses.replace(info, teachers=ordered))


@PROFILE
@given(strategies.render_requests, st.lists(strategies.prompts, max_size=3))
def test_requests_to_render(request_: RenderRequest, prompts: list[Prompt]) -> None:
    messages = [codec.encode_render_prompt(prompt) for prompt in prompts]
    data = codec.serialize(codec.encode_render(request_, messages))
    decoded, undecoded = codec.decode_render(data)
    assert decoded == request_
    assert same([one.decode() for one in undecoded], prompts)
    assert sum(one.size for one in undecoded) <= len(data)


@PROFILE
@given(st.data(), strategies.render_requests)
def test_rendered_prompts(data_: st.DataObject, request_: RenderRequest) -> None:
    found = data_.draw(st.lists(strategies.rendered(request_), min_size=1, max_size=3))
    data = codec.serialize(codec.encode_rendered(found))
    assert same(list(codec.decode_rendered(data, request_, len(found))), found)
    one_by_one = b"".join(codec.serialize(codec.encode_rendered([one])) for one in found)
    assert one_by_one == data


@PROFILE
@given(strategies.uploads, st.integers(1, 50))
def test_tokenizer_uploads_in_chunks_of_any_size(upload: TokenizerUpload, chunk: int) -> None:
    assembler = codec.TokenizerAssembler(max_bytes=len(upload.file))
    for message in codec.encode_tokenizer(upload, chunk):
        assembler.add(message)
    roles = dict(sorted(upload.special_tokens.items()))
    assert same(assembler.finish(), dataclasses.replace(upload, special_tokens=roles))


def test_levels() -> None:
    levels = {"a": Level.SAME, "b": Level.CROSS}
    data = codec.serialize(codec.encode_levels("hash", levels))
    assert codec.decode_levels(data, "hash") == levels


def test_the_whole_vocabulary_and_no_support() -> None:
    for top_k in (0, VOCABULARY):
        reply = make_reply(make_request(top_k=top_k))
        decoded = codec.decode_reply(codec.serialize(codec.encode_reply(reply)))
        assert same(decoded, reply)
        assert (decoded.results[0].rows.support is None) == (top_k == 0)


def test_decoded_arrays_cannot_be_written_to() -> None:
    reply = make_reply(make_request())
    decoded = codec.decode_reply(codec.serialize(codec.encode_reply(reply)))
    arrays = decoded.results[0].rows.arrays()
    for name in ("top_ids", "top_log_probs", "sampled_valid"):
        assert not arrays[name].flags.writeable
    copied = decoded.results[0].rows.copy()
    assert same(copied, decoded.results[0].rows)
    assert all(array.flags.writeable for array in copied.arrays().values())


def test_a_teacher_that_is_not_served_is_refused_with_those_that_are() -> None:
    info = dataclasses.replace(SERVER_INFO, teachers=SERVER_INFO.teachers[:1])
    name = info.teachers[0].name
    assert info.teacher(name) is info.teachers[0]
    with pytest.raises(UnknownTeacherError, match="no teacher 'mine'") as caught:
        info.teacher("mine")
    assert caught.value.fix == f"name one of the server's teachers: {name}"
    assert isinstance(caught.value, KeyError), "what it was before it had a name"
    assert isinstance(caught.value, LookupError)


def test_the_wire_is_little_endian_whatever_the_host() -> None:
    message = array_pb2.Array()
    encode_array(np.array([1, 256], np.int32), message, INT32, 1, "x", InvalidRequestError)
    assert message.data == b"\x01\x00\x00\x00\x00\x01\x00\x00"
    big_endian_host = Kind(INT32.name, INT32.code, INT32.wire, np.dtype(">i4"))
    values = decode_array(message, big_endian_host, 1, "x", PoisonedReplyError)
    assert values.tolist() == [1, 256]
    again = array_pb2.Array()
    encode_array(values, again, big_endian_host, 1, "x", InvalidRequestError)
    assert again == message


def test_bitmaps_are_packed_from_the_least_significant_bit() -> None:
    message = array_pb2.Array()
    bits = np.array([[1, 0, 0, 0, 1], [0, 0, 0, 0, 1]], np.bool_)
    encode_array(bits, message, BITMAP, 2, "x", InvalidRequestError)
    assert message.data == bytes([0b00010001, 0b00000010])


def test_arrays_that_are_not_contiguous() -> None:
    message = array_pb2.Array()
    values = np.arange(12, dtype=np.float32).reshape(3, 4).T[::2]
    encode_array(values, message, FLOAT32, 2, "x", InvalidRequestError)
    decoded = decode_array(message, FLOAT32, 2, "x", PoisonedReplyError)
    assert decoded.tolist() == values.tolist()


def test_absent_parts_stay_absent() -> None:
    reply = make_reply(make_request(top_k=0))
    decoded = codec.decode_reply(codec.serialize(codec.encode_reply(reply))).results[0]
    assert decoded.rows.arrays().keys() == {"sampled_log_probs", "sampled_valid"}
    assert decoded.rows.support is decoded.rows.log_tail is decoded.rows.explicit is None
    assert decoded.realignment is None
