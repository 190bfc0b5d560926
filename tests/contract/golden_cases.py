"""The golden messages of v1. Their bytes are committed and never change while v1 lives.

python -m tests.contract.golden_cases    writes the files of cases that have none
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from teacher_proto import codec
from teacher_proto.rows import Rows, Support, Values, required
from teacher_proto.types import (
    ChatInfo,
    ChatMessage,
    ChatPrompt,
    Continuation,
    ContinuationScores,
    Level,
    MaskReason,
    PositionClass,
    Prompt,
    Realignment,
    Refusal,
    RegisteredTokenizer,
    RegisteredTokenizers,
    RenderedPrompt,
    RenderRequest,
    Returns,
    ScoreReply,
    ScoreRequest,
    Segment,
    ServerInfo,
    ServerLimits,
    SpecialRole,
    SpecialTokens,
    Status,
    TeacherIdentity,
    TeacherInfo,
    TextPrompt,
    Timing,
    TokenizerLevels,
    TokenizerUpload,
    TokenPrompt,
    TokenText,
)
from teacher_proto.v1 import tokenizer_pb2

from tests.support.compare import plain

FOLDER = Path(__file__).parent / "golden"
IDENTITY = TeacherIdentity("digest", "weights", "bfloat16", "awq-int4", "adapter", "tokenizer")


@dataclass(frozen=True)
class Case:
    name: str
    value: Any
    # None: only clients of before wrote such bytes.
    encode: Callable[[Any], bytes] | None
    decode: Callable[[bytes], Any]

    @property
    def binary(self) -> Path:
        return FOLDER / f"{self.name}.bin"

    @property
    def readable(self) -> Path:
        return FOLDER / f"{self.name}.json"


def _ids(*values: int) -> Any:
    return np.array(values, np.int32)


def _floats(*values: float) -> Any:
    return np.array(values, np.float32)


REQUEST_GROUP = ScoreRequest(
    request_id="0b8f",
    run="run-a",
    teacher="default",
    tokenizer_hash="tokenizer",
    prompt=TokenPrompt(_ids(1, 2, 300)),
    continuations=(
        Continuation((Segment(_ids(4, 5, 70000)),)),
        Continuation(
            (Segment(_ids(7, 8)), Segment(_ids(9), scored=False), Segment(_ids(10))),
            rows=_ids(0, 2),
            explicit_ids=np.array([[5, -1], [6, 7]], np.int32),
        ),
    ),
    top_k=32,
    temperature=0.75,
    returns=Returns(sampled=True, log_tail=True, realignment=False),
    student_vocabulary_size=151936,
    expected_identity="digest",
)
REQUEST_CHAT = ScoreRequest(
    request_id="0b90",
    run="run-b",
    teacher="mathématiques",
    tokenizer_hash="other",
    prompt=ChatPrompt(
        (
            ChatMessage("user", "1 + 1 = ?"),
            ChatMessage("assistant", "", {"tool_calls": [{"name": "add", "arguments": [1, 1.5]}]}),
        ),
        add_generation_prompt=True,
        template_arguments={"enable_thinking": False, "tools": None, "budget": {"tokens": 64}},
    ),
    continuations=(Continuation((Segment(_ids(0)),)),),
    top_k=0,
    temperature=1.0,
    returns=Returns(sampled=False, log_tail=False, realignment=True),
    teacher_prompt=TextPrompt("<|im_start|>user\n"),
)
# What an older client's Structs say: keys in no order, which are read sorted.
REQUEST_CHAT_STRUCTS = replace(
    REQUEST_CHAT,
    prompt=ChatPrompt(
        (
            ChatMessage("user", "1 + 1 = ?"),
            ChatMessage("assistant", "", {"tool_calls": [{"arguments": [1, 1.5], "name": "add"}]}),
        ),
        add_generation_prompt=True,
        template_arguments={"budget": {"tokens": 64}, "enable_thinking": False, "tools": None},
    ),
)
# One key at a time: Structs keep it, and every server reads it.
REQUEST_CHAT_PLAIN = replace(
    REQUEST_CHAT,
    prompt=ChatPrompt(
        (ChatMessage("user", "1 + 1 = ?", {"name": "ann"}),),
        add_generation_prompt=False,
        template_arguments={"enable_thinking": False},
    ),
    teacher_prompt=None,
)
REPLY = ScoreReply(
    request_id="0b8f",
    identity=IDENTITY,
    results=(
        ContinuationScores(
            realignment=Realignment(
                coverage=_floats(0.75, 0.5),
                open_mass=_floats(0.125, 0.25),
                lost_mass=_floats(0.0, 0.125),
                position_class=np.array([PositionClass.EXACT, PositionClass.MID], np.uint8),
                chunk_index=_ids(0, 0),
                chunk_log_likelihood=_floats(-4.5),
            ),
            rows=Rows(
                support=Support(
                    np.array([[9, 3], [70000, -1]], np.int32),
                    np.array([[-0.25, -1.5], [-0.125, 0.0]], np.float32),
                    _ids(2, 1),
                ),
                sampled=Values(_floats(-1.5, 0.0), np.array([True, False])),
                log_tail=Values(_floats(-6.5, 0.0), np.array([True, False])),
                explicit=Values(
                    np.array([[-3.0, 0.0, -7.75], [0.0, 0.0, -2.0]], np.float32),
                    np.array([[True, False, True], [False, False, True]]),
                ),
            ),
        ),
        ContinuationScores(Status.NON_FINITE, "the logits of row 3 are not finite"),
        ContinuationScores(
            rows=Rows(
                sampled=Values(np.zeros(0, np.float32), np.zeros(0, np.bool_)),
            )
        ),
    ),
    timing=Timing(0.5, 1.25, 2.0, 1_000_000),
)
SERVER_INFO = ServerInfo(
    teachers=(
        TeacherInfo(
            name="default",
            identity=IDENTITY,
            vocabulary_size=151936,
            max_top_k=151936,
            max_length=32768,
            engine="transformers",
            deterministic=True,
            tokenizers={"other": Level.CROSS, "tokenizer": Level.SAME, "wide": Level.REMAP},
            model="/models/teacher",
        ),
    ),
    limits=ServerLimits(1 << 24, 1 << 26, 64, 1024, 1 << 18, 1 << 20, 1 << 26),
    server_version="0.1.0",
)

# Every class of a row, a masked one without ids and a continuation that was not carried over.
REPLY_REALIGNED = ScoreReply(
    request_id="0b91",
    identity=IDENTITY,
    results=(
        ContinuationScores(
            realignment=Realignment(
                coverage=_floats(0.875, 0.9375, 0.5, 0.0, 0.84375),
                open_mass=_floats(0.0625, 0.0, 0.4375, 1.0, 0.0),
                lost_mass=_floats(0.03125, 0.0, 0.015625, 0.0, 0.125),
                position_class=np.array(
                    [
                        PositionClass.ALIGNED,
                        PositionClass.REMAP,
                        PositionClass.MID,
                        PositionClass.MASKED,
                        PositionClass.SPECIAL,
                    ],
                    np.uint8,
                ),
                chunk_index=_ids(0, 1, 1, 2, 3),
                chunk_log_likelihood=_floats(-0.5, -4.25, -11.5, -0.25),
            ),
            rows=Rows(
                support=Support(
                    np.array([[11, 5], [128000, 7], [3, -1], [-1, -1], [128009, 2]], np.int32),
                    np.array(
                        [[-0.5, -1.25], [-0.125, -3.0], [-0.75, 0.0], [0.0, 0.0], [-0.25, -2.5]],
                        np.float32,
                    ),
                    _ids(2, 2, 1, 0, 2),
                ),
                sampled=Values(
                    _floats(-0.5, -3.0, 0.0, 0.0, -0.25), np.array([True, True, False, False, True])
                ),
                log_tail=Values(
                    _floats(-2.25, -3.5, -0.625, 0.0, -1.75),
                    np.array([True, True, True, True, False]),
                ),
            ),
        ),
        ContinuationScores(Status.NOT_REALIGNED, "the teacher cannot read it: é"),
    ),
    timing=Timing(0.25, 0.75, 1.5, 4096),
)
# Coarse rows and reasons, which an older server neither reads nor sends.
REQUEST_COARSE = replace(
    REQUEST_GROUP, returns=Returns(sampled=True, log_tail=True, realignment=True, coarse=True)
)
_BLOCK = required(REPLY_REALIGNED.results[0].realignment, "realignment")
REPLY_COARSE = replace(
    REPLY_REALIGNED,
    results=(
        replace(
            REPLY_REALIGNED.results[0],
            realignment=replace(
                _BLOCK,
                position_class=np.array(
                    [
                        PositionClass.ALIGNED,
                        PositionClass.REMAP,
                        PositionClass.COARSE,
                        PositionClass.MASKED,
                        PositionClass.SPECIAL,
                    ],
                    np.uint8,
                ),
                mask_reason=np.array(
                    [0, 0, MaskReason.DOUBTFUL, MaskReason.UNREADABLE, 0], np.uint8
                ),
            ),
        ),
    ),
)
REQUEST_CHAT_NOW = replace(
    REQUEST_CHAT_PLAIN,
    prompt=replace(REQUEST_CHAT_PLAIN.prompt, now="2026-11-29T05:53:12"),  # type: ignore[arg-type]
    teacher_prompt=TextPrompt("Once upon a time", SpecialTokens.ADD),
)
SERVER_INFO_CHAT = ServerInfo(
    teachers=(
        replace(
            SERVER_INFO.teachers[0],
            identity=replace(IDENTITY, chat_template_digest="template"),
            chat=ChatInfo(
                template_digest="template",
                reads_clock=True,
                arguments=("enable_thinking", "tools"),
                turn_ends=(TokenText(128009, "<|eot_id|>"), TokenText(128001, "é")),
            ),
            begin_tokens=(TokenText(128000, "<|begin_of_text|>"),),
        ),
        replace(
            SERVER_INFO.teachers[0],
            name="base",
            chat=ChatInfo("", reads_clock=False, arguments=(), turn_ends=()),
        ),
    ),
    limits=replace(SERVER_INFO.limits, max_text_bytes=1 << 22, max_render_prompts=1024),
    server_version="0.2.0",
)
RENDER = (
    RenderRequest("run-a", "mathématiques", text=True, token_ids=False),
    (
        REQUEST_CHAT.prompt,
        REQUEST_CHAT_NOW.prompt,
        TextPrompt("Once"),
        TextPrompt("Once", SpecialTokens.ADD),
        TokenPrompt(_ids(1, 2)),
    ),
)
ASKED = RenderRequest("run-a", "default")
RENDERED = (
    RenderedPrompt(3, "Once é", _ids(5, 70000, 2)),
    RenderedPrompt(
        70000, refusal=Refusal("PROMPT_TOO_LONG", "the text is 70000 tokens", "prompt.text", "")
    ),
    RenderedPrompt(refusal=Refusal("INVALID_REQUEST", "no", "prompt.chat.messages", "say it")),
)
TOKENIZER = TokenizerUpload(
    run="run-c",
    tokenizer_hash="other",
    file='{"model": {"type": "BPE"}, "né": 1}'.encode(),
    special_tokens={0: SpecialRole.OTHER, 5: SpecialRole.THINK_OPEN, 128009: SpecialRole.TURN_END},
)
LEVELS = TokenizerLevels({"default": Level.CROSS, "mathématiques": Level.SAME, "wide": Level.REMAP})
DIFFERENCES = {
    "levels": dict(LEVELS),
    "differences": {"default": "they differ in the merges", "wide": "'é' is [1] and [2]"},
}


REGISTERED = RegisteredTokenizers(
    (
        RegisteredTokenizer(
            "run", "other", "ab" * 32, 7_031_645, 151_669, {"a": Level.CROSS, "b": Level.REMAP}, 2.5
        ),
        RegisteredTokenizer("run", "none", "cd" * 32, 0, 0, {}, 0.0),
    ),
    total=300,
)


def _one(encode: Callable[[Any], Any]) -> Callable[[Any], bytes]:
    """Of a call with one message each way."""
    return lambda value: codec.serialize(encode(value))


def _stream(upload: TokenizerUpload) -> bytes:
    """The messages as gRPC frames them: a zero byte, the length in four, the message."""
    messages = [codec.serialize(one) for one in codec.encode_tokenizer(upload, chunk_bytes=16)]
    return b"".join(struct.pack(">BI", 0, len(one)) + one for one in messages)


def _messages(data: bytes) -> Iterator[bytes]:
    while data:
        _, length = struct.unpack(">BI", data[:5])
        yield data[5 : 5 + length]
        data = data[5 + length :]


def _assembled(data: bytes) -> TokenizerUpload:
    assembler = codec.TokenizerAssembler(1 << 10)
    for message in _messages(data):
        assembler.add(tokenizer_pb2.RegisterTokenizerRequest.FromString(message))
    return assembler.finish()


def _render(value: tuple[RenderRequest, tuple[Prompt, ...]]) -> bytes:
    request, prompts = value
    messages = [codec.encode_render_prompt(prompt) for prompt in prompts]
    return codec.serialize(codec.encode_render(request, messages))


def _asked(data: bytes) -> tuple[RenderRequest, tuple[Prompt, ...]]:
    request, prompts = codec.decode_render(data)
    return request, tuple(prompt.decode() for prompt in prompts)


def _encode_differences(value: dict[str, Any]) -> Any:
    return codec.encode_levels("other", TokenizerLevels(**value))


def _decode_differences(data: bytes) -> dict[str, Any]:
    levels = codec.decode_levels(data, "other")
    return {"levels": dict(levels), "differences": levels.differences}


CASES = (
    Case("request_group", REQUEST_GROUP, _one(codec.encode_request), codec.decode_request),
    Case(
        "request_bounded",
        replace(REQUEST_GROUP, max_reply_bytes=4 << 20),
        _one(codec.encode_request),
        codec.decode_request,
    ),
    Case("request_chat", REQUEST_CHAT_STRUCTS, None, codec.decode_request),
    Case("request_chat_json", REQUEST_CHAT, _one(codec.encode_request), codec.decode_request),
    Case(
        "request_chat_plain", REQUEST_CHAT_PLAIN, _one(codec.encode_request), codec.decode_request
    ),
    Case("reply", REPLY, _one(codec.encode_reply), codec.decode_reply),
    Case("reply_realigned", REPLY_REALIGNED, _one(codec.encode_reply), codec.decode_reply),
    Case("request_coarse", REQUEST_COARSE, _one(codec.encode_request), codec.decode_request),
    Case("reply_coarse", REPLY_COARSE, _one(codec.encode_reply), codec.decode_reply),
    Case("server_info", SERVER_INFO, _one(codec.encode_server_info), codec.decode_server_info),
    Case("request_chat_now", REQUEST_CHAT_NOW, _one(codec.encode_request), codec.decode_request),
    # As clients of other languages may send it, which write no JSON.
    Case("request_chat_now_message", REQUEST_CHAT_NOW, None, codec.decode_request),
    Case(
        "server_info_chat",
        SERVER_INFO_CHAT,
        _one(codec.encode_server_info),
        codec.decode_server_info,
    ),
    Case("render", RENDER, _render, _asked),
    Case(
        "render_bounded",
        (replace(RENDER[0], max_reply_bytes=4 << 20), RENDER[1]),
        _render,
        _asked,
    ),
    Case(
        "rendered",
        RENDERED,
        _one(codec.encode_rendered),
        lambda data: codec.decode_rendered(data, ASKED, 5),
    ),
    Case("tokenizer", TOKENIZER, _stream, _assembled),
    Case(
        "tokenizer_levels",
        LEVELS,
        _one(lambda levels: codec.encode_levels("other", levels)),
        lambda data: codec.decode_levels(data, "other"),
    ),
    Case("tokenizers", REGISTERED, _one(codec.encode_registered), codec.decode_registered),
    Case("tokenizer_differences", DIFFERENCES, _one(_encode_differences), _decode_differences),
)


def write_missing() -> None:
    FOLDER.mkdir(exist_ok=True)
    for case in CASES:
        if case.encode is not None and not case.binary.exists():
            case.binary.write_bytes(case.encode(case.value))
            text = json.dumps(plain(case.value), indent=1, ensure_ascii=False)
            case.readable.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    write_missing()
