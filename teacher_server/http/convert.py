"""ScoreBody -> ScoreRequest: text of continuations becomes ids of the request's tokenizer."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
from teacher_proto.codec.chat_json import check_now
from teacher_proto.codec.structs import plain_content, plain_mapping
from teacher_proto.errors import InvalidRequestError
from teacher_proto.types import (
    ABSENT,
    ChatMessage,
    ChatPrompt,
    Continuation,
    Int32,
    Prompt,
    Returns,
    ScoreRequest,
    Segment,
    ServerLimits,
    SpecialTokens,
    TextPrompt,
    TokenPrompt,
)

from teacher_server.http.models import (
    ContinuationBody,
    MessageBody,
    PromptBody,
    ScoreBody,
    SegmentBody,
)
from teacher_server.http.models.bodies import SLICE
from teacher_server.refusals.errors import refuse
from teacher_server.refusals.sizes import check_request_tokens, check_text
from teacher_server.refusals.validation import check_continuation_count, exactly_one
from teacher_server.scoring.prompts import text_bytes
from teacher_server.teachers.teacher import Teacher, Teachers

# Text -> ids, int32 [L]; the check is called with L and may raise to refuse them.
Encode = Callable[[str, Callable[[int], None] | None], Int32]
IdsOf = Callable[[str], Int32]
MESSAGES_ONLY = ("add_generation_prompt", "template_arguments", "now")
TEXT_ONLY = ("special_tokens",)
SPECIAL_TOKENS = {
    None: SpecialTokens.AS_WRITTEN,
    "as_written": SpecialTokens.AS_WRITTEN,
    "add": SpecialTokens.ADD,
}


def choose_teacher(name: str | None, teachers: Teachers) -> Teacher:
    """The named teacher; without a name the only one.

    Raises:
        InvalidRequestError: no name, and several teachers.
        UnknownTeacherError: there is no such teacher.
    """
    if name is None and len(teachers.names) == 1:
        return teachers.get(teachers.names[0])
    return teachers.get(name or "")


def score_request(
    body: ScoreBody,
    teacher: Teacher,
    encode: Encode,
    limits: ServerLimits,
    default_run: str,
) -> ScoreRequest:
    """``encode``: of the tokenizer of the continuations, whose texts were checked by
    ``continuation_texts``; raises InvalidRequestError naming the field."""
    check = partial(check_request_tokens, limits=limits)

    def ids_of(text: str) -> Int32:
        return encode(text, check)

    return ScoreRequest(
        request_id=body.request_id if body.request_id is not None else uuid.uuid4().hex,
        run=default_run if body.run is None else body.run,
        teacher=teacher.name,
        tokenizer_hash=(
            teacher.tokenizer.hash if body.tokenizer_hash is None else body.tokenizer_hash
        ),
        prompt=read_prompt(body.prompt, "prompt"),
        continuations=tuple(
            _continuation(item, ids_of, f"continuations[{index}]")
            for index, item in enumerate(body.continuations)
        ),
        top_k=body.top_k,
        temperature=body.temperature,
        returns=Returns(**body.returns.model_dump()),
        teacher_prompt=(
            None
            if body.teacher_prompt is None
            else read_prompt(body.teacher_prompt, "teacher_prompt")
        ),
        student_vocabulary_size=body.student_vocabulary_size,
        expected_identity=body.expected_identity,
        max_reply_bytes=body.max_reply_bytes,
    )


def continuation_texts(body: ScoreBody, limits: ServerLimits) -> list[str]:
    """Each text of the continuations, once; raises InvalidRequestError for too much of it."""
    check_continuation_count(len(body.continuations), limits)
    texts = [text for one in body.continuations for text in _texts(one)]
    check_text(text_bytes(texts), "continuations", limits)
    return list(dict.fromkeys(texts))


def known_ids(texts: Sequence[str], ids: Sequence[Int32]) -> Encode:
    """The encoding of these texts alone, whose ids are known."""
    known = dict(zip(texts, ids, strict=True))

    def encode(text: str, check: Callable[[int], None] | None = None) -> Int32:
        if check is not None:
            check(len(known[text]))
        return known[text]

    return encode


def read_prompt(body: PromptBody, where: str) -> Prompt:
    """Raises InvalidRequestError naming the field that is wrong."""
    sources = {"text": body.text, "messages": body.messages, "token_ids": body.token_ids}
    exactly_one(sources, where)
    if body.messages is not None:
        _refuse_beside(body, TEXT_ONLY, "text", where)
        return ChatPrompt(
            messages=tuple(
                _message(message, f"{where}.messages[{index}]")
                for index, message in enumerate(body.messages)
            ),
            add_generation_prompt=body.add_generation_prompt is not False,
            template_arguments=_plain(body.template_arguments, f"{where}.template_arguments"),
            now="" if body.now is None else check_now(body.now, f"{where}.now"),
        )
    _refuse_beside(body, MESSAGES_ONLY, "messages", where)
    if body.text is not None:
        return TextPrompt(body.text, SPECIAL_TOKENS[body.special_tokens])
    _refuse_beside(body, TEXT_ONLY, "text", where)
    return TokenPrompt(_ids(body.token_ids))


def _message(body: MessageBody, where: str) -> ChatMessage:
    content = body.content if "content" in body.model_fields_set else ABSENT
    return ChatMessage(
        body.role,
        plain_content(content, body.role, f"{where}.content", InvalidRequestError),
        _plain(body.model_extra, where),
    )


def _refuse_beside(body: PromptBody, names: Iterable[str], source: str, where: str) -> None:
    for name in names:
        if getattr(body, name) is not None:
            raise refuse(
                f"it only means something with {source}", f"{where}.{name}", "leave it out"
            )


def _plain(values: dict[str, Any] | None, where: str) -> dict[str, Any]:
    return plain_mapping(values or {}, where, InvalidRequestError)


def _texts(body: ContinuationBody) -> list[str]:
    texts = [body.text, *(segment.text for segment in body.segments or ())]
    return [text for text in texts if text is not None]


def _continuation(body: ContinuationBody, encode: IdsOf, where: str) -> Continuation:
    sources = {"text": body.text, "token_ids": body.token_ids, "segments": body.segments}
    exactly_one(sources, where)
    if body.segments is not None:
        segments = tuple(
            _segment(item, encode, f"{where}.segments[{index}]")
            for index, item in enumerate(body.segments)
        )
    else:
        whole = SegmentBody(text=body.text, token_ids=body.token_ids)
        segments = (_segment(whole, encode, where),)
    return Continuation(
        segments=segments,
        rows=None if body.rows is None else _ids(body.rows),
        explicit_ids=_lines(body.explicit_ids, f"{where}.explicit_ids"),
    )


def _segment(body: SegmentBody, encode: IdsOf, where: str) -> Segment:
    exactly_one({"text": body.text, "token_ids": body.token_ids}, where)
    ids = encode(body.text) if body.text is not None else _ids(body.token_ids)
    return Segment(ids, body.scored)


def _ids(values: list[int] | None) -> Int32:
    assert values is not None
    made = np.empty(len(values), np.int32)
    for begin in range(0, len(values), SLICE):  # other threads have their turn in between
        made[begin : begin + SLICE] = values[begin : begin + SLICE]
    return made


def _lines(values: list[list[int]] | None, where: str) -> Any:
    if values is None:
        return None
    widths = {len(line) for line in values}
    if len(widths) > 1:
        raise InvalidRequestError(
            f"its lines have between {min(widths)} and {max(widths)} ids",
            where=where,
            fix="fill the lines up with -1 to one length",
        )
    width = widths.pop() if widths else 0
    numbers = chain.from_iterable(values)
    made = np.empty(len(values) * width, np.int32)
    for begin in range(0, len(made), SLICE):  # of short lines too
        count = min(SLICE, len(made) - begin)
        made[begin : begin + count] = np.fromiter(numbers, np.int32, count)
    return made.reshape(len(values), width)
