"""Messages that break the contract are refused with the field's name."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from teacher_proto import codec
from teacher_proto.errors import EngineError, InvalidRequestError, PoisonedReplyError
from teacher_proto.types import (
    ChatMessage,
    ChatPrompt,
    Continuation,
    RenderRequest,
    ScoreRequest,
    Segment,
    TextPrompt,
    TokenizerUpload,
    TokenPrompt,
)
from teacher_proto.v1 import array_pb2, score_pb2, tokenizer_pb2

from tests.contract.golden_cases import (
    ASKED,
    CASES,
    REGISTERED,
    RENDERED,
    REPLY,
    REQUEST_CHAT,
    REQUEST_GROUP,
    SERVER_INFO,
)
from tests.support.replies import ids, make_reply, make_request, with_arrays

Edit = Callable[[Any], Any]


def shape(*sizes: int) -> Edit:
    def edit(array: array_pb2.Array) -> None:
        array.shape[:] = sizes

    return edit


def data(value: bytes) -> Edit:
    return lambda array: setattr(array, "data", value)


def dtype(code: int) -> Edit:
    return lambda array: setattr(array, "dtype", code)


# Edits of an int32 [3] array that must be refused, and a word of the reason.
ARRAY_EDITS: dict[str, tuple[Edit, str]] = {
    "truncated": (data(b"\0" * 11), "bytes"),
    "one byte more": (data(b"\0" * 13), "bytes"),
    "empty data": (data(b""), "bytes"),
    "unspecified dtype": (dtype(0), "dtype"),
    "float32": (dtype(array_pb2.DATA_TYPE_FLOAT32), "dtype"),
    "unknown dtype": (dtype(99), "dtype"),
    "rank 0": (shape(), "dimensions"),
    "rank 2": (shape(1, 3), "dimensions"),
    "rank 3": (shape(1, 1, 3), "dimensions"),
    "negative": (shape(-3), "dimension"),
    "too many": (shape(4), "bytes"),
    "product of 2**64 bytes": (shape(2**62), "dimension"),
    "largest int64": (shape(2**63 - 1), "dimension"),
    "largest int32": (shape(2**31 - 1), "bytes"),
}


@pytest.mark.parametrize("name", ARRAY_EDITS)
@pytest.mark.parametrize(
    "path", ["prompt.token_ids", "continuations[1].segments[2].token_ids", "continuations[1].rows"]
)
def test_arrays_of_a_request(name: str, path: str) -> None:
    changed = dataclasses.replace(
        make_request(),
        continuations=(
            Continuation((Segment(ids(1)),)),
            Continuation(
                (Segment(ids(1)), Segment(ids(2)), Segment(ids(3, 4, 5))), rows=ids(0, 1, 2)
            ),
        ),
    )
    message = codec.encode_request(changed)
    edit, word = ARRAY_EDITS[name]
    edit(part_of(message, path))
    with pytest.raises(InvalidRequestError) as caught:
        codec.decode_request(message)
    assert caught.value.where == path
    assert word in caught.value.what


@pytest.mark.parametrize(
    ("sizes", "word"),
    [
        ((2**31, 2**31), "dimension"),
        ((2**31 - 1, 2**31 - 1), "bytes"),
        ((2**32, 2**32), "dimension"),
        ((2**63 - 1, 0), "dimension"),
        ((0, -1), "dimension"),
        ((-2, -2), "dimension"),
        ((4, 2), "bytes"),
        ((4,), "dimensions"),
        ((1, 2, 2), "dimensions"),
    ],
)
def test_two_dimensional_arrays(sizes: tuple[int, ...], word: str) -> None:
    message = codec.encode_request(REQUEST_GROUP)
    shape(*sizes)(message.continuations[1].explicit_ids)
    with pytest.raises(InvalidRequestError, match=word) as caught:
        codec.decode_request(message)
    assert caught.value.where == "continuations[1].explicit_ids"


@pytest.mark.parametrize(
    ("field", "where"),
    [("prompt", "prompt"), ("top_k", "top_k"), ("temperature", "temperature")],
)
def test_a_request_without_what_it_must_have(field: str, where: str) -> None:
    message = codec.encode_request(make_request())
    message.ClearField(field)  # type: ignore[arg-type]
    with pytest.raises(InvalidRequestError, match="missing") as caught:
        codec.decode_request(message)
    assert caught.value.where == where


def test_prompts_of_no_kind() -> None:
    message = codec.encode_request(make_request())
    message.prompt.Clear()
    message.prompt.SetInParent()
    with pytest.raises(InvalidRequestError) as caught:
        codec.decode_request(message)
    assert caught.value.where == "prompt"
    message = codec.encode_request(make_request())
    message.teacher_prompt.SetInParent()
    with pytest.raises(InvalidRequestError) as caught:
        codec.decode_request(message)
    assert caught.value.where == "teacher_prompt"


def test_an_array_that_was_never_set() -> None:
    message = codec.encode_request(make_request())
    message.continuations[0].segments[0].ClearField("token_ids")
    with pytest.raises(InvalidRequestError) as caught:
        codec.decode_request(message)
    assert caught.value.where == "continuations[0].segments[0].token_ids"


def chat(arguments: dict[str, Any]) -> ScoreRequest:
    prompt = ChatPrompt((ChatMessage("user", "x"),), template_arguments=arguments)
    return make_request(prompt=prompt)


@pytest.mark.parametrize(
    ("request_", "where"),
    [
        (make_request(prompt=TextPrompt("\ud800")), "prompt.text"),
        (make_request(request_id="\udfff"), "request_id"),
        (make_request(prompt=TokenPrompt(np.array([1], np.int64))), "prompt.token_ids"),
        (make_request(prompt=TokenPrompt([1])), "prompt.token_ids"),  # type: ignore[arg-type]
        (make_request(prompt=TokenPrompt(np.array(1, np.int32))), "prompt.token_ids"),
        (make_request(prompt="text"), "prompt"),
        (make_request(top_k=2**31), "top_k"),
        (make_request(top_k=4.0), "top_k"),
        (make_request(top_k=True), "top_k"),
        (make_request(temperature=10**400), "temperature"),
        (make_request(temperature="1"), "temperature"),
        (make_request(student_vocabulary_size=-(2**31) - 1), "student_vocabulary_size"),
        (chat({"x": float("nan")}), "prompt.chat.template_arguments.x"),
        (chat({"x": [1, float("inf")]}), "prompt.chat.template_arguments.x[1]"),
        (chat({"x": 10**5000}), "prompt.chat"),
        (chat({"x": [{"\udc00": 1}]}), "prompt.chat.template_arguments.x[0].\udc00"),
        (chat({"x": {"y": object()}}), "prompt.chat.template_arguments.x.y"),
        (chat({"x": b"bytes"}), "prompt.chat.template_arguments.x"),
        (chat({1: 2}), "prompt.chat.template_arguments"),  # type: ignore[dict-item]
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_values_the_contract_cannot_carry(request_: ScoreRequest, where: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        codec.encode_request(request_)
    assert caught.value.where == where


def test_structs_as_deep_as_allowed_pass_and_deeper_ones_are_refused() -> None:
    def nested(levels: int) -> dict[str, Any]:
        return {"x": nested(levels - 1)} if levels > 1 else {"x": 1}

    deep = chat(nested(24))
    assert codec.decode_request(codec.serialize(codec.encode_request(deep))).prompt == deep.prompt
    with pytest.raises(InvalidRequestError, match="nested deeper"):
        codec.encode_request(chat(nested(25)))
    message = codec.encode_request(deep)
    value = message.prompt.chat.template_arguments.fields["x"]
    while value.WhichOneof("kind") == "struct_value":
        value = value.struct_value.fields["x"]
    value.list_value.values.add().number_value = 1
    with pytest.raises(InvalidRequestError, match="nested deeper"):
        codec.decode_request(message)


def test_a_struct_value_of_no_kind() -> None:
    message = codec.encode_request(chat({}))
    message.prompt.chat.template_arguments.fields["x"].SetInParent()
    with pytest.raises(InvalidRequestError) as caught:
        codec.decode_request(message)
    assert caught.value.where == "prompt.chat.template_arguments.x"


def clear(path: str, field: str) -> Edit:
    return lambda message: part_of(message, path).ClearField(field)


def put(path: str, field: str, value: Any) -> Edit:
    return lambda message: setattr(part_of(message, path), field, value)


@pytest.mark.parametrize(
    ("edit", "where"),
    [
        (clear("", "identity"), "identity"),
        (clear("", "timing"), "timing"),
        (put("results[0]", "status", 0), "results[0].status"),
        (put("results[1]", "status", 7), "results[1].status"),
        (put("timing", "engine_seconds", float("nan")), "timing.engine_seconds"),
        (put("timing", "queue_seconds", -1.0), "timing.queue_seconds"),
        (put("timing", "computed_tokens", -1), "timing.computed_tokens"),
        (put("results[0].sampled_valid", "data", b"\x05"), "results[0].sampled_valid"),
        (put("results[0].explicit_valid", "data", b"\xff"), "results[0].explicit_valid"),
        (put("results[0].explicit_valid", "data", b"\x01\x00"), "results[0].explicit_valid"),
        (put("results[0].top_ids", "dtype", 2), "results[0].top_ids"),
        (put("results[0].top_log_probs", "data", b""), "results[0].top_log_probs"),
        (clear("results[0].realignment", "coverage"), "results[0].realignment.coverage"),
        (
            put("results[0].realignment.position_class", "data", b"\x01\x00"),
            "results[0].realignment.position_class",
        ),
        (
            put("results[0].realignment.position_class", "data", b"\x08\x01"),
            "results[0].realignment.position_class",
        ),
        (
            put("results[0].realignment.mask_reason", "data", b"\x01\x00"),
            "results[0].realignment.mask_reason",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_replies(edit: Edit, where: str) -> None:
    message = codec.encode_reply(REPLY)
    edit(message)
    with pytest.raises(PoisonedReplyError) as caught:
        codec.decode_reply(message)
    assert caught.value.where == where


@pytest.mark.parametrize(
    ("edit", "where"),
    [
        (clear("", "limits"), "limits"),
        (clear("teachers[0]", "identity"), "teachers[0].identity"),
        (put("teachers[0].tokenizers[1]", "level", 0), "teachers[0].tokenizers[1].level"),
        (
            put("teachers[0].tokenizers[1]", "tokenizer_hash", "other"),
            "teachers[0].tokenizers[1].tokenizer_hash",
        ),
        (put("teachers[0]", "vocabulary_size", -1), "teachers[0].vocabulary_size"),
        (put("limits", "max_reply_bytes", -1), "limits.max_reply_bytes"),
        (lambda message: message.teachers.add().CopyFrom(message.teachers[0]), "teachers"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_server_infos(edit: Edit, where: str) -> None:
    message = codec.encode_server_info(SERVER_INFO)
    edit(message)
    with pytest.raises(PoisonedReplyError) as caught:
        codec.decode_server_info(message)
    assert caught.value.where == where


# Edits of an answer about three prompts, of which texts and ids were asked for, and where.
RENDERED_EDITS: dict[str, tuple[Edit, str]] = {
    "no text": (lambda reply: reply.prompts[0].ClearField("text"), "prompts[0].text"),
    "no ids": (lambda reply: reply.prompts[0].ClearField("token_ids"), "prompts[0].token_ids"),
    "no count": (
        lambda reply: reply.prompts[0].ClearField("token_count"),
        "prompts[0].token_count",
    ),
    "another count": (
        lambda reply: setattr(reply.prompts[0], "token_count", 2),
        "prompts[0].token_count",
    ),
    "a negative count": (
        lambda reply: setattr(reply.prompts[1], "token_count", -1),
        "prompts[1].token_count",
    ),
    "text of a refused one": (
        lambda reply: setattr(reply.prompts[1], "text", "x"),
        "prompts[1].text",
    ),
    "ids of a wrong length": (
        lambda reply: setattr(reply.prompts[0].token_ids, "data", b"\0"),
        "prompts[0].token_ids",
    ),
    "more than were sent": (lambda reply: reply.prompts.add(token_count=0), "prompts"),
    "none": (lambda reply: reply.ClearField("prompts"), "prompts"),
}


@pytest.mark.parametrize("name", RENDERED_EDITS)
def test_rendered_prompts(name: str) -> None:
    edit, where = RENDERED_EDITS[name]
    message = codec.encode_rendered(RENDERED)
    assert len(codec.decode_rendered(message, ASKED, len(RENDERED))) == len(RENDERED)
    edit(message)
    with pytest.raises(PoisonedReplyError) as caught:
        codec.decode_rendered(codec.serialize(message), ASKED, len(RENDERED))
    assert caught.value.where == where


def test_a_rendered_prompt_that_was_not_asked_for() -> None:
    for asked in (RenderRequest("r", "t", text=False), RenderRequest("r", "t", token_ids=False)):
        with pytest.raises(PoisonedReplyError, match="was not asked for"):
            codec.decode_rendered(codec.encode_rendered(RENDERED), asked, len(RENDERED))


def test_rows_of_a_wrong_dtype_never_leave_the_server() -> None:
    reply = make_reply(make_request())
    wrong = with_arrays(reply.results[0], top_log_probs=np.zeros((3, 4)))
    with pytest.raises(EngineError) as caught:
        codec.encode_reply(dataclasses.replace(reply, results=(wrong,)))
    assert caught.value.where == "results[0].top_log_probs"


UPLOAD = TokenizerUpload("run", "hash", b"0123456789")
Parts = list[tokenizer_pb2.RegisterTokenizerRequest]


def role(token_id: int, code: int) -> Edit:
    return lambda parts: parts[0].header.special_tokens.add(token_id=token_id, role=code) and parts


@pytest.mark.parametrize(
    "edit",
    [
        lambda parts: parts[1:],
        lambda parts: parts[:-1],
        lambda parts: [*parts, parts[-1]],
        lambda parts: [parts[0], *parts],
        lambda parts: [*parts, tokenizer_pb2.RegisterTokenizerRequest()],
        lambda parts: [],
        lambda parts: [parts[0], parts[2], parts[1]],
        lambda parts: put("header", "file_bytes", 0)(parts[0]) or parts,
        lambda parts: put("header", "file_bytes", 101)(parts[0]) or parts,
        lambda parts: put("header", "file_sha256", "00")(parts[0]) or parts,
        role(-1, 1),
        role(1, 0),
        role(1, 8),
    ],
)
def test_tokenizer_uploads(edit: Edit) -> None:
    parts: Parts = edit(list(codec.encode_tokenizer(UPLOAD, 5)))
    with pytest.raises(InvalidRequestError):
        assemble(parts)


def assemble(parts: Parts) -> TokenizerUpload:
    assembler = codec.TokenizerAssembler(max_bytes=100)
    for part in parts:
        assembler.add(part)
    return assembler.finish()


def test_levels_of_another_tokenizer() -> None:
    data = codec.serialize(codec.encode_levels("hash", {}))
    with pytest.raises(PoisonedReplyError):
        codec.decode_levels(data, "other")


@pytest.mark.parametrize(
    ("edit", "where"),
    [
        (put("", "total", 1), "total"),
        (put("tokenizers[0]", "file_bytes", -1), "tokenizers[0].file_bytes"),
        (put("tokenizers[1]", "vocabulary_size", -1), "tokenizers[1].vocabulary_size"),
        (put("tokenizers[0]", "idle_seconds", float("nan")), "tokenizers[0].idle_seconds"),
        (put("tokenizers[0]", "idle_seconds", -1.0), "tokenizers[0].idle_seconds"),
        (put("tokenizers[0].levels[1]", "teacher", "a"), "tokenizers[0].levels[1].teacher"),
        (put("tokenizers[0].levels[0]", "level", 9), "tokenizers[0].levels[0].level"),
    ],
)
def test_lists_of_tokenizers(edit: Edit, where: str) -> None:
    message = codec.encode_registered(REGISTERED)
    edit(message)
    with pytest.raises(PoisonedReplyError) as caught:
        codec.decode_registered(codec.serialize(message))
    assert caught.value.where == where


STRUCTS = score_pb2.ScoreRequest.FromString(
    next(case for case in CASES if case.name == "request_chat").binary.read_bytes()
)
SEEDS = {
    "request group": (codec.encode_request(REQUEST_GROUP), codec.decode_request),
    "request chat": (STRUCTS, codec.decode_request),
    "request chat as JSON": (codec.encode_request(REQUEST_CHAT), codec.decode_request),
    "reply": (codec.encode_reply(REPLY), codec.decode_reply),
    "server info": (codec.encode_server_info(SERVER_INFO), codec.decode_server_info),
}


@pytest.mark.parametrize("name", SEEDS)
def test_mutated_bytes_are_refused_or_mean_something(name: str) -> None:
    """2,000 mutants each: the project's own error, or an object that encodes again."""
    message, decode = SEEDS[name]
    encode: Any = {
        codec.decode_request: codec.encode_request,
        codec.decode_reply: codec.encode_reply,
        codec.decode_server_info: codec.encode_server_info,
    }[decode]
    good = codec.serialize(message)
    source = random.Random(name)
    outcomes = {"refused": 0, "decoded": 0}
    for _ in range(2000):
        mutant = mutate(good, source)
        try:
            value = decode(mutant)
        except (InvalidRequestError, PoisonedReplyError):
            outcomes["refused"] += 1
        else:
            encode(value)
            outcomes["decoded"] += 1
    assert min(outcomes.values()) > 100, outcomes


def mutate(good: bytes, source: random.Random) -> bytes:
    changed = bytearray(good)
    for _ in range(source.choice([1, 1, 2, 4])):
        at = source.randrange(len(changed))
        match source.randrange(5):
            case 0:
                changed[at] ^= 1 << source.randrange(8)
            case 1:
                changed[at] = source.randrange(256)
            case 2:
                del changed[at : at + source.randrange(1, 9)]
            case 3:
                changed[at:at] = source.randbytes(source.randrange(1, 9))
            case 4:
                changed = changed[: at + 1]
        if not changed:
            return b""
    return bytes(changed)


def part_of(message: Any, path: str) -> Any:
    """The part of a message that a path such as ``results[0].top_ids`` names."""
    for part in filter(None, path.split(".")):
        name, _, index = part.partition("[")
        message = getattr(message, name)
        if index:
            message = message[int(index.rstrip("]"))]
    return message


def test_bytes_that_are_no_message() -> None:
    with pytest.raises(InvalidRequestError, match="ScoreRequest"):
        codec.decode_request(b"\xff\xff")
    with pytest.raises(PoisonedReplyError, match="ScoreResponse"):
        codec.decode_reply(score_pb2.ScoreResponse().SerializeToString() + b"\x0a\x05a")
