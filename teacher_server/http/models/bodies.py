"""JSON bodies of requests. Unknown fields are refused.

Bounds that hold for every server stand here for the document alone: they are checked once for
both wires (``refusals``). Those that are settings are added when the document is made.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WithJsonSchema,
    WrapValidator,
)

from teacher_server.refusals.validation import MAX_TEMPERATURE, MIN_TEMPERATURE

Int32 = Annotated[int, Field(ge=-(2**31), le=2**31 - 1)]
Int64 = Annotated[int, Field(ge=-(2**63), le=2**63 - 1)]
# One wrong item is enough to refuse a list: the rest is not looked at.
FAIL_FAST = Field(fail_fast=True)
# Items of a list that are checked at once; other threads have their turn in between.
SLICE = 4096


def _by_slices(value: Any, check: ValidatorFunctionWrapHandler) -> Any:
    """``value`` where ``check`` takes it as it is, else what ``check`` says of all of it."""
    if type(value) is list and len(value) > SLICE:
        try:
            for begin in range(0, len(value), SLICE):
                check(value[begin : begin + SLICE])
        except ValidationError:
            return check(value)
        return value
    return check(value)


Ids = Annotated[list[Int32], FAIL_FAST, WrapValidator(_by_slices)]
NAME: dict[str, Any] = {"minLength": 1, "maxLength": 256}
TOKENS: dict[str, Any] = {"minItems": 1}


MAX_REPLY_BYTES = Field(
    default=None,
    json_schema_extra={"minimum": 1},
    description="Bytes of the largest reply that the caller reads; absent: the server's limit.",
)


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


CONTENT = {
    "anyOf": [
        {"type": "string"},
        {"type": "array", "items": {"type": "object"}},
        {"type": "null"},
    ],
    "description": "A text, or parts as objects; null or absent only in an assistant's turn.",
}


class MessageBody(BaseModel):
    """A chat message; further fields are handed to the chat template as they are."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True)
    role: str
    content: Annotated[Any, WithJsonSchema(CONTENT)] = None


def one_of(**kinds: str) -> ConfigDict:
    """That exactly one of these fields is given (is not null): name -> type of its JSON."""
    options: list[Any] = [
        {"required": [name], "properties": {name: {"type": kind}}} for name, kind in kinds.items()
    ]
    return ConfigDict(json_schema_extra={"oneOf": options})


class PromptBody(Body):
    """Exactly one of text, messages and token_ids."""

    model_config = one_of(text="string", messages="array", token_ids="array")

    text: str | None = Field(
        default=None, description="Encoded by the teacher's tokenizer; see special_tokens."
    )
    messages: Annotated[list[MessageBody], FAIL_FAST] | None = Field(
        default=None,
        description="Rendered by the teacher's own chat template.",
        json_schema_extra={"minItems": 1},
    )
    token_ids: Ids | None = Field(
        default=None, description="Taken as they are.", json_schema_extra=TOKENS
    )
    add_generation_prompt: bool | None = Field(
        default=None, description="With messages; true if absent."
    )
    template_arguments: dict[str, Any] | None = Field(
        default=None,
        description="With messages: arguments of the template, such as enable_thinking.",
    )
    now: str | None = Field(
        default=None,
        description="With messages: the local time that the template prints, such as "
        "2026-11-29T05:53:12; absent: the server's clock.",
    )
    special_tokens: Literal["as_written", "add"] | None = Field(
        default=None,
        description="With text: as_written (if absent) reads those that the text spells out; "
        "add puts those before it that the tokenizer begins a text with, each once.",
    )


class SegmentBody(Body):
    """Tokens that are all scored or all given: exactly one of text and token_ids."""

    model_config = one_of(text="string", token_ids="array")

    text: str | None = None
    token_ids: Ids | None = Field(default=None, json_schema_extra=TOKENS)
    scored: bool = True


class ContinuationBody(Body):
    """Exactly one of text, token_ids (both one scored segment) and segments."""

    model_config = one_of(text="string", token_ids="array", segments="array")

    text: str | None = None
    token_ids: Ids | None = Field(default=None, json_schema_extra=TOKENS)
    segments: Annotated[list[SegmentBody], FAIL_FAST] | None = Field(
        default=None, json_schema_extra={"minItems": 1}
    )
    rows: Ids | None = Field(
        default=None,
        description="Indices of scored tokens, increasing; absent: every row.",
        json_schema_extra=TOKENS,
    )
    explicit_ids: Annotated[list[Ids], FAIL_FAST] | None = Field(
        default=None, description="One line per row: ids to score; -1 asks for nothing."
    )


class ReturnsBody(Body):
    sampled: bool = Field(default=True, description="The log-probability of each row's own token.")
    log_tail: bool = Field(
        default=False, description="log(1 - sum of the support's probabilities)."
    )
    realignment: bool = Field(
        default=False, description="For a tokenizer other than the teacher's."
    )
    coarse: bool = Field(
        default=False,
        description="COARSE rows in place of masked ones where they can be; with realignment.",
    )


class ScoreBody(Body):
    """One group: a prompt and its continuations."""

    prompt: PromptBody
    continuations: Annotated[list[ContinuationBody], FAIL_FAST] = Field(
        json_schema_extra={"minItems": 1}
    )
    top_k: Int32 = Field(
        description="Size of the support; 0 for none. At most max_top_k of the teacher.",
        json_schema_extra={"minimum": 0},
    )
    temperature: float = Field(
        description="Of the softmax.",
        json_schema_extra={"minimum": MIN_TEMPERATURE, "maximum": MAX_TEMPERATURE},
    )
    returns: ReturnsBody = ReturnsBody()
    teacher: str | None = Field(
        default=None, description="Which teacher; may be left out when the server has one."
    )
    teacher_prompt: PromptBody | None = Field(
        default=None, description="Replaces the prompt on the teacher's side."
    )
    tokenizer_hash: str | None = Field(
        default=None,
        description="Of the ids sent and returned, registered before; absent: the teacher's own.",
    )
    student_vocabulary_size: Int32 | None = Field(
        default=None,
        description="Ids at or above it never enter a support.",
        json_schema_extra={"minimum": 1},
    )
    expected_identity: str = Field(
        default="", description="Refuse unless it is the digest of the teacher's identity."
    )
    run: str | None = Field(
        default=None,
        description="Who asks, for metrics and shares; the credentials' run, or 'http' without.",
        json_schema_extra=NAME,
    )
    request_id: str | None = Field(
        default=None,
        description="Equal ids with equal bodies get the same reply; absent: a new one.",
        json_schema_extra=NAME,
    )
    max_reply_bytes: Int64 | None = MAX_REPLY_BYTES
    timeout_seconds: float | None = Field(
        default=None, gt=0, allow_inf_nan=False, description="Absent: the server's default."
    )


class RenderBody(Body):
    """Prompts in text or messages, to be read by the teacher's tokenizer and not scored."""

    prompts: Annotated[list[Any], FAIL_FAST] = Field(
        description="Each as the prompt of a request to score; one that is wrong is refused alone.",
        json_schema_extra={"minItems": 1, "items": {"$ref": "#/components/schemas/PromptBody"}},
    )
    text: bool = Field(default=True, description="Whether to return texts.")
    token_ids: bool = Field(default=True, description="Whether to return ids.")
    teacher: str | None = Field(
        default=None, description="Which teacher; may be left out when the server has one."
    )
    run: str | None = Field(
        default=None,
        description="Who asks; the credentials' run, or 'http' without.",
        json_schema_extra=NAME,
    )
    max_reply_bytes: Int64 | None = MAX_REPLY_BYTES
    timeout_seconds: float | None = Field(
        default=None, gt=0, allow_inf_nan=False, description="Absent: the server's default."
    )
