"""ScoreRequest <-> message.

Decoding checks form: presence, kinds, dtypes, dimensions, lengths. What a
request means (ids in range, row selections, limits) is checked by whoever knows
the teacher.
"""

from __future__ import annotations

from teacher_proto.codec.arrays import INT32, decode_array, encode_array
from teacher_proto.codec.chat_json import check_now, decode_chat_json, encode_chat_json
from teacher_proto.codec.structs import (
    check_text,
    decode_struct,
    plain_content,
    plain_mapping,
    struct_keeps,
)
from teacher_proto.codec.wire import parse
from teacher_proto.errors import ContractMismatchError, InvalidRequestError, LsmError
from teacher_proto.types import (
    ChatMessage,
    ChatPrompt,
    Continuation,
    Prompt,
    Returns,
    ScoreRequest,
    Segment,
    SpecialTokens,
    TextPrompt,
    TokenPrompt,
)
from teacher_proto.v1 import score_pb2

Error = InvalidRequestError
INT32_RANGE = range(-(2**31), 2**31)
INT64_RANGE = range(-(2**63), 2**63)
# What a server answers to a source of prompts that it does not know.
NO_PROMPT = "holds no prompt"
# And to a clock in chat_json.
NO_NOW = "has a field 'now'"


def encode_request(request: ScoreRequest) -> score_pb2.ScoreRequest:
    """Raises InvalidRequestError naming the field that the contract cannot carry."""
    message = score_pb2.ScoreRequest(
        request_id=check_text(request.request_id, "request_id", Error),
        run=check_text(request.run, "run", Error),
        teacher=check_text(request.teacher, "teacher", Error),
        tokenizer_hash=check_text(request.tokenizer_hash, "tokenizer_hash", Error),
        top_k=_int32(request.top_k, "top_k"),
        temperature=_double(request.temperature, "temperature"),
        returns=score_pb2.ReturnOptions(
            sampled=request.returns.sampled,
            log_tail=request.returns.log_tail,
            realignment=request.returns.realignment,
            coarse=request.returns.coarse,
        ),
        expected_identity=check_text(request.expected_identity, "expected_identity", Error),
    )
    encode_prompt(request.prompt, message.prompt, "prompt")
    if request.teacher_prompt is not None:
        encode_prompt(request.teacher_prompt, message.teacher_prompt, "teacher_prompt")
    if request.student_vocabulary_size is not None:
        message.student_vocabulary_size = _int32(
            request.student_vocabulary_size, "student_vocabulary_size"
        )
    if request.max_reply_bytes is not None:
        message.max_reply_bytes = int64(request.max_reply_bytes, "max_reply_bytes")
    for index, continuation in enumerate(request.continuations):
        _encode_continuation(continuation, message.continuations.add(), f"continuations[{index}]")
    return message


def decode_request(message: score_pb2.ScoreRequest | bytes) -> ScoreRequest:
    """Raises InvalidRequestError naming the field, such as
    ``continuations[2].segments[0].token_ids``."""
    if isinstance(message, bytes):
        message = parse(message, score_pb2.ScoreRequest(), Error)
    for name, present in (
        ("prompt", message.HasField("prompt")),
        ("top_k", message.HasField("top_k")),
        ("temperature", message.HasField("temperature")),
    ):
        if not present:
            raise Error("is missing", where=name, fix="set it; it has no default")
    return ScoreRequest(
        request_id=message.request_id,
        run=message.run,
        teacher=message.teacher,
        tokenizer_hash=message.tokenizer_hash,
        prompt=decode_prompt(message.prompt, "prompt"),
        continuations=tuple(
            _decode_continuation(item, f"continuations[{index}]")
            for index, item in enumerate(message.continuations)
        ),
        top_k=message.top_k,
        temperature=message.temperature,
        returns=Returns(
            sampled=message.returns.sampled,
            log_tail=message.returns.log_tail,
            realignment=message.returns.realignment,
            coarse=message.returns.coarse,
        ),
        teacher_prompt=(
            decode_prompt(message.teacher_prompt, "teacher_prompt")
            if message.HasField("teacher_prompt")
            else None
        ),
        student_vocabulary_size=(
            message.student_vocabulary_size if message.HasField("student_vocabulary_size") else None
        ),
        expected_identity=message.expected_identity,
        max_reply_bytes=message.max_reply_bytes if message.HasField("max_reply_bytes") else None,
    )


def explained_refusal(error: InvalidRequestError) -> LsmError:
    """A server's refusal as the client that encoded the request understands it: a prompt
    that the server does not see is in a form it does not know."""
    if error.what == NO_PROMPT or _only_texts(error):
        return older_server(
            "it cannot read this form of a prompt: a conversation whose further fields or "
            "template arguments a Struct would change, or a text with its special tokens",
            error.where,
        )
    if error.what == NO_NOW:
        return older_server("it has no clock of a request (ChatPrompt.now)", error.where)
    return error


def older_server(what: str, where: str) -> ContractMismatchError:
    return ContractMismatchError(
        f"the server is older than this client: {what}",
        where=where,
        fix="update the server",
        reason="OLDER_SERVER",
    )


def _only_texts(error: InvalidRequestError) -> bool:
    """Whether a server that reads ``chat_json`` refuses content that is no text: what our
    client sends there is what a server of now takes."""
    return error.what == "must be a text" and ".chat_json.messages[" in error.where


def encode_prompt(
    prompt: Prompt, message: score_pb2.Prompt, where: str, *, structs: bool = True
) -> None:
    """Raises InvalidRequestError naming what the contract cannot carry.

    Args:
        structs: a conversation is sent as ``chat``, which every server reads, unless its
            Structs would lose something or it has a clock, which an older server would not
            see there; else as ``chat_json``.
    """
    match prompt:
        case TokenPrompt():
            encode_array(prompt.token_ids, message.token_ids, INT32, 1, f"{where}.token_ids", Error)
        case TextPrompt(text, special_tokens):
            check_text(text, f"{where}.text", Error)
            if special_tokens == SpecialTokens.AS_WRITTEN:
                message.text = text
            else:
                message.text_prompt.text = text
                message.text_prompt.special_tokens = score_pb2.SpecialTokens.ValueType(
                    special_tokens
                )
        case ChatPrompt():
            _encode_chat(prompt, message, where, structs and not prompt.now)
        case _:
            raise Error(
                f"is {type(prompt).__name__}",
                where=where,
                fix="give a TokenPrompt, a TextPrompt or a ChatPrompt",
            )


def _encode_chat(prompt: ChatPrompt, message: score_pb2.Prompt, where: str, structs: bool) -> None:
    inner = f"{where}.chat"
    prompt = ChatPrompt(
        tuple(_plain(turn, f"{inner}.messages[{i}]") for i, turn in enumerate(prompt.messages)),
        prompt.add_generation_prompt,
        plain_mapping(prompt.template_arguments, f"{inner}.template_arguments", Error),
        prompt.now,
    )
    values = (prompt.template_arguments, *(m.extra for m in prompt.messages))
    texts = all(isinstance(m.content, str) for m in prompt.messages)
    if not (structs and texts) or not all(map(struct_keeps, values)):
        message.chat_json = encode_chat_json(prompt, inner)
        return
    message.chat.SetInParent()
    message.chat.add_generation_prompt = prompt.add_generation_prompt
    for turn in prompt.messages:
        added = message.chat.messages.add(role=turn.role, content=turn.content)
        if turn.extra:
            added.extra.update(turn.extra)
    if prompt.template_arguments:
        message.chat.template_arguments.update(prompt.template_arguments)


def _plain(turn: ChatMessage, where: str) -> ChatMessage:
    for name in ("role", "content"):
        if name in turn.extra:
            raise Error("is given twice", where=f"{where}.extra.{name}", fix="leave it out")
    role = check_text(turn.role, f"{where}.role", Error)
    return ChatMessage(
        role,
        plain_content(turn.content, role, f"{where}.content", Error),
        plain_mapping(turn.extra, f"{where}.extra", Error),
    )


def decode_prompt(message: score_pb2.Prompt, where: str) -> Prompt:
    """Raises InvalidRequestError naming what is not as the contract has it."""
    match message.WhichOneof("source"):
        case "token_ids":
            return TokenPrompt(
                decode_array(message.token_ids, INT32, 1, f"{where}.token_ids", Error)
            )
        case "text":
            return TextPrompt(message.text)
        case "chat":
            return _decode_chat(message.chat, f"{where}.chat")
        case "chat_json":
            return decode_chat_json(message.chat_json, f"{where}.chat_json")
        case "text_prompt":
            return _decode_text(message.text_prompt, f"{where}.text_prompt")
        case _:
            raise Error(
                NO_PROMPT, where=where, fix="set token_ids, chat, chat_json, text or text_prompt"
            )


def _decode_text(message: score_pb2.TextPrompt, where: str) -> TextPrompt:
    try:
        return TextPrompt(message.text, SpecialTokens(message.special_tokens))
    except ValueError:
        raise Error(
            f"is {message.special_tokens}, which means nothing",
            where=f"{where}.special_tokens",
            fix="set AS_WRITTEN or ADD",
        ) from None


def _decode_chat(message: score_pb2.ChatPrompt, where: str) -> ChatPrompt:
    return ChatPrompt(
        messages=tuple(
            ChatMessage(
                turn.role,
                turn.content,
                decode_struct(turn.extra, f"{where}.messages[{index}].extra", Error),
            )
            for index, turn in enumerate(message.messages)
        ),
        add_generation_prompt=message.add_generation_prompt,
        template_arguments=decode_struct(
            message.template_arguments, f"{where}.template_arguments", Error
        ),
        now=check_now(message.now, f"{where}.now") if message.now else "",
    )


def _encode_continuation(
    continuation: Continuation, message: score_pb2.Continuation, where: str
) -> None:
    for index, segment in enumerate(continuation.segments):
        added = message.segments.add(scored=segment.scored)
        encode_array(
            segment.token_ids,
            added.token_ids,
            INT32,
            1,
            f"{where}.segments[{index}].token_ids",
            Error,
        )
    if continuation.rows is not None:
        encode_array(continuation.rows, message.rows, INT32, 1, f"{where}.rows", Error)
    if continuation.explicit_ids is not None:
        encode_array(
            continuation.explicit_ids,
            message.explicit_ids,
            INT32,
            2,
            f"{where}.explicit_ids",
            Error,
        )


def _decode_continuation(message: score_pb2.Continuation, where: str) -> Continuation:
    return Continuation(
        segments=tuple(
            Segment(
                decode_array(
                    segment.token_ids, INT32, 1, f"{where}.segments[{index}].token_ids", Error
                ),
                segment.scored,
            )
            for index, segment in enumerate(message.segments)
        ),
        rows=(
            decode_array(message.rows, INT32, 1, f"{where}.rows", Error)
            if message.HasField("rows")
            else None
        ),
        explicit_ids=(
            decode_array(message.explicit_ids, INT32, 2, f"{where}.explicit_ids", Error)
            if message.HasField("explicit_ids")
            else None
        ),
    )


def _int32(value: int, where: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value not in INT32_RANGE:
        raise Error(f"is {value!r}, must be an integer of 32 bits", where=where)
    return value


def int64(value: int, where: str) -> int:
    """The value; raises InvalidRequestError naming its field when it has more than 64 bits."""
    if not isinstance(value, int) or isinstance(value, bool) or value not in INT64_RANGE:
        raise Error(f"is {value!r}, must be an integer of 64 bits", where=where)
    return value


def _double(value: float, where: str) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise Error(f"is {value!r}, must be a number", where=where)
    try:
        return float(value)
    except OverflowError:
        raise Error("is beyond the range of a double", where=where) from None
