"""Hypothesis strategies for everything the codec carries, small in size, free in shape."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from teacher_proto.rows import Rows
from teacher_proto.types import (
    ABSENT,
    ChatInfo,
    ChatMessage,
    ChatPrompt,
    Continuation,
    ContinuationScores,
    Level,
    PositionClass,
    Realignment,
    Refusal,
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
    TokenizerUpload,
    TokenPrompt,
    TokenText,
)

sizes = st.integers(0, 5)
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
int31 = st.integers(0, 2**31 - 1)
int63 = st.integers(0, 2**63 - 1)
seconds = st.floats(0, 1e9)


def array(dtype: Any, shape: Any) -> st.SearchStrategy[Any]:
    return npst.arrays(dtype, shape)


vector = sizes.flatmap(lambda size: array(np.int32, (size,)))
matrix = st.tuples(sizes, sizes).flatmap(lambda shape: array(np.int32, shape))

number = st.one_of(
    st.integers(-9, 9),
    st.integers(-(2**80), 2**80),
    st.floats(allow_nan=False, allow_infinity=False),
    st.integers(-9, 9).map(float),
)
json_value = st.recursive(
    st.none() | st.booleans() | number | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=6,
)
mapping = st.dictionaries(text, json_value, max_size=3)
extra = st.dictionaries(
    text.filter(lambda key: key not in ("role", "content")), json_value, max_size=3
)
clocks = st.just("") | st.datetimes().map(lambda now: now.isoformat(timespec="seconds"))
parts = st.lists(mapping, max_size=2)
messages = st.one_of(
    st.builds(ChatMessage, text, st.one_of(text, parts), extra),
    st.builds(ChatMessage, st.just("assistant"), st.sampled_from([None, ABSENT]), extra),
)
prompts = st.one_of(
    st.builds(TokenPrompt, vector),
    st.builds(TextPrompt, text, st.sampled_from(SpecialTokens)),
    st.builds(
        ChatPrompt,
        st.lists(messages, max_size=3).map(tuple),
        st.booleans(),
        mapping,
        clocks,
    ),
)
continuations = st.builds(
    Continuation,
    st.lists(st.builds(Segment, vector, st.booleans()), max_size=3).map(tuple),
    st.none() | vector,
    st.none() | matrix,
)
requests = st.builds(
    ScoreRequest,
    request_id=text,
    run=text,
    teacher=text,
    tokenizer_hash=text,
    prompt=prompts,
    continuations=st.lists(continuations, max_size=3).map(tuple),
    top_k=st.integers(-(2**31), 2**31 - 1),
    temperature=st.floats(),
    returns=st.builds(Returns, *[st.booleans()] * 4),
    teacher_prompt=st.none() | prompts,
    student_vocabulary_size=st.none() | st.integers(-(2**31), 2**31 - 1),
    expected_identity=text,
    max_reply_bytes=st.none() | int63,
)


@st.composite
def realignments(draw: st.DrawFn, rows: int) -> Realignment:
    chunks = draw(sizes)
    classes = npst.arrays(
        np.uint8, (rows,), elements=st.sampled_from([int(c) for c in PositionClass])
    )
    return Realignment(
        *(draw(array(np.float32, (rows,))) for _ in range(3)),
        draw(classes),
        draw(array(np.int32, (rows,))),
        draw(array(np.float32, (chunks,))),
        draw(st.none() | array(np.uint8, (rows,))),
    )


@st.composite
def scores(draw: st.DrawFn) -> ContinuationScores:
    rows, width, explicit = draw(sizes), draw(sizes), draw(sizes)
    arrays: dict[str, Any] = {}
    if draw(st.booleans()):
        arrays["top_ids"] = draw(array(np.int32, (rows, width)))
        arrays["top_log_probs"] = draw(array(np.float32, (rows, width)))
        arrays["valid_counts"] = draw(array(np.int32, (rows,)))
    for name in ("sampled_log_probs", "log_tail"):
        if draw(st.booleans()):
            arrays[name] = draw(array(np.float32, (rows,)))
            arrays[name.replace("_log_probs", "") + "_valid"] = draw(array(np.bool_, (rows,)))
    if draw(st.booleans()):
        arrays["explicit_log_probs"] = draw(array(np.float32, (rows, explicit)))
        arrays["explicit_valid"] = draw(array(np.bool_, (rows, explicit)))
    block = draw(st.none() | realignments(rows))
    return ContinuationScores(draw(st.sampled_from(Status)), draw(text), Rows.of(arrays), block)


identities = st.builds(TeacherIdentity, text, text, text, text, text, text, text)
token_texts = st.lists(st.builds(TokenText, int31, text), max_size=3).map(tuple)
chats = st.builds(ChatInfo, text, st.booleans(), st.lists(text, max_size=3).map(tuple), token_texts)
replies = st.builds(
    ScoreReply,
    text,
    identities,
    st.lists(scores(), max_size=3).map(tuple),
    st.builds(Timing, seconds, seconds, seconds, int63),
)
teachers = st.builds(
    TeacherInfo,
    name=text,
    identity=identities,
    vocabulary_size=int31,
    max_top_k=int31,
    max_length=int31,
    engine=text,
    deterministic=st.booleans(),
    tokenizers=st.dictionaries(text, st.sampled_from(Level), max_size=3),
    model=text,
    chat=st.none() | chats,
    begin_tokens=token_texts,
)
limits = st.builds(
    ServerLimits,
    *(int63, int63, int31, int31, int63, int63, int63),
    max_text_bytes=st.none() | int63,
    max_render_prompts=st.none() | int31,
)
server_infos = st.builds(
    ServerInfo,
    st.lists(teachers, max_size=3, unique_by=lambda teacher: teacher.name).map(tuple),
    st.builds(
        ServerLimits,
        int63,
        int63,
        int31,
        int31,
        int63,
        int63,
        int63,
        *(st.none() | n for n in (int63, int31)),
    ),
    text,
)
render_requests = st.builds(
    RenderRequest, text, text, st.booleans(), st.booleans(), st.none() | int63
)
refusals = st.builds(Refusal, text, text, text, text)


@st.composite
def rendered(draw: st.DrawFn, request: RenderRequest) -> RenderedPrompt:
    if draw(st.booleans()):
        return RenderedPrompt(draw(st.none() | int31), refusal=draw(refusals))
    ids = draw(vector)
    return RenderedPrompt(
        len(ids), draw(text) if request.text else None, ids if request.token_ids else None
    )


uploads = st.builds(
    TokenizerUpload,
    text,
    text,
    st.binary(min_size=1, max_size=40),
    st.dictionaries(int31, st.sampled_from(SpecialRole), max_size=3),
)
