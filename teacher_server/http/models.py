"""JSON of ``POST /v1/score``, both ways. Unknown fields are refused."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

from teacher_server.refusals.validation import MAX_TEMPERATURE, MIN_TEMPERATURE

Int32 = Annotated[int, Field(ge=-(2**31), le=2**31 - 1)]
Int64 = Annotated[int, Field(ge=-(2**63), le=2**63 - 1)]
# One wrong item is enough to refuse a list: the rest is not looked at.
FAIL_FAST = Field(fail_fast=True)
Ids = Annotated[list[Int32], FAIL_FAST]


MAX_REPLY_BYTES = Field(
    default=None,
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


class PromptBody(Body):
    """Exactly one of text, messages and token_ids."""

    text: str | None = Field(
        default=None, description="Encoded by the teacher's tokenizer; see special_tokens."
    )
    messages: Annotated[list[MessageBody], FAIL_FAST] | None = Field(
        default=None, description="Rendered by the teacher's own chat template."
    )
    token_ids: Ids | None = Field(default=None, description="Taken as they are.")
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

    text: str | None = None
    token_ids: Ids | None = None
    scored: bool = True


class ContinuationBody(Body):
    """Exactly one of text, token_ids (both one scored segment) and segments."""

    text: str | None = None
    token_ids: Ids | None = None
    segments: Annotated[list[SegmentBody], FAIL_FAST] | None = None
    rows: Ids | None = Field(
        default=None, description="Indices of scored tokens, increasing; absent: every row."
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


class ScoreBody(Body):
    """One group: a prompt and its continuations."""

    prompt: PromptBody
    continuations: Annotated[list[ContinuationBody], FAIL_FAST]
    top_k: Int32 = Field(description="Size of the support; 0 for none.")
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
        default=None, description="Ids at or above it never enter a support."
    )
    expected_identity: str = Field(
        default="", description="Refuse unless it is the digest of the teacher's identity."
    )
    run: str | None = Field(
        default=None,
        description="Who asks, for metrics and shares; the credentials' run, or 'http' without.",
    )
    request_id: str | None = Field(
        default=None,
        description="Equal ids with equal bodies get the same reply; absent: a new one.",
    )
    max_reply_bytes: Int64 | None = MAX_REPLY_BYTES
    timeout_seconds: float | None = Field(
        default=None, gt=0, allow_inf_nan=False, description="Absent: the server's default."
    )


class RenderBody(Body):
    """Prompts in text or messages, to be read by the teacher's tokenizer and not scored."""

    prompts: Annotated[list[Any], FAIL_FAST] = Field(
        description="Each as the prompt of a request to score; one that is wrong is refused alone.",
        json_schema_extra={"items": {"$ref": "#/components/schemas/PromptBody"}},
    )
    text: bool = Field(default=True, description="Whether to return texts.")
    token_ids: bool = Field(default=True, description="Whether to return ids.")
    teacher: str | None = Field(
        default=None, description="Which teacher; may be left out when the server has one."
    )
    run: str | None = Field(
        default=None, description="Who asks; the credentials' run, or 'http' without."
    )
    max_reply_bytes: Int64 | None = MAX_REPLY_BYTES
    timeout_seconds: float | None = Field(
        default=None, gt=0, allow_inf_nan=False, description="Absent: the server's default."
    )


class RefusalReply(Body):
    reason: str = Field(description="PROMPT_TOO_LONG: more tokens than the teacher can read.")
    what: str
    where: str
    fix: str


class RenderedReply(Body):
    """A prompt as the teacher reads it, or why it cannot."""

    token_count: int | None = Field(description="null when it is refused before it is tokenized.")
    text: str | None = Field(default=None, description="When asked for and not refused.")
    token_ids: Ids | None = Field(default=None, description="When asked for and not refused.")
    refusal: RefusalReply | None = Field(default=None, description="Why it cannot be read.")


class RenderReplyBody(Body):
    prompts: list[RenderedReply] = Field(
        description="Of the first prompts, in order; fewer than were sent where more would pass "
        "limits.max_reply_bytes: send the others again."
    )


class EntryReply(Body):
    token_id: int
    token: str | None = Field(description="null for an id that no token has.")
    log_prob: float


class RealignmentReply(Body):
    """What is known of a row that was realigned from another tokenizer."""

    position_class: str = Field(description="ALIGNED, MID, SPECIAL, REMAP or MASKED.")
    coverage: float = Field(description="Mass of the returned support.")
    open_mass: float = Field(description="Mass whose token is not settled.")
    lost_mass: float = Field(description="Mass that no token of the tokenizer can express.")
    chunk: int = Field(description="Index into the continuation's chunk_log_likelihood.")


class RowReply(Body):
    """The teacher's distribution for one scored token given everything before it."""

    row: int = Field(description="Index among the continuation's scored tokens.")
    token_id: int
    token: str | None
    sampled_log_prob: float | None = Field(default=None, description="Of token_id; when asked for.")
    log_tail: float | None = Field(
        default=None, description="When asked for, and where something is left outside the support."
    )
    top: list[EntryReply] | None = Field(
        default=None, description="The support, most likely first."
    )
    explicit: list[EntryReply] | None = Field(
        default=None, description="In the order of explicit_ids."
    )
    realignment: RealignmentReply | None = Field(default=None, description="When asked for.")


class ResultReply(Body):
    status: str
    detail: str
    rows: list[RowReply]
    chunk_log_likelihood: list[float] | None = Field(
        default=None, description="Nats, of the spans where both tokenizers meet."
    )


class IdentityReply(Body):
    digest: str
    weights_digest: str
    dtype: str
    quantization: str
    adapter_digest: str
    tokenizer_hash: str
    chat_template_digest: str


class TimingReply(Body):
    queue_seconds: float
    engine_seconds: float
    total_seconds: float
    computed_tokens: int


class ScoreReplyBody(Body):
    request_id: str
    teacher: str
    identity: IdentityReply
    results: list[ResultReply]
    timing: TimingReply


class ErrorDetail(Body):
    reason: str
    what: str
    where: str
    fix: str
    retry_after: float | None = Field(
        default=None, description="Seconds; only when a retry can help."
    )


class ErrorBody(Body):
    error: ErrorDetail
