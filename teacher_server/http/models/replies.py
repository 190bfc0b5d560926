"""JSON of replies and errors, as the OpenAPI document describes them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from teacher_server.http.models.bodies import Body, Ids

LevelName = Literal["SAME", "REMAP", "CROSS"]


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

    position_class: str = Field(description="ALIGNED, MID, SPECIAL, REMAP, MASKED or COARSE.")
    mask_reason: str | None = Field(
        description="Why it is MASKED, or COARSE and not more; null for other rows."
    )
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


class TokenReply(Body):
    token_id: int
    text: str


class ChatReply(Body):
    """How a teacher reads conversations."""

    template_digest: str = Field(description="Empty: it has no chat template.")
    reads_clock: bool = Field(description="Whether a template prints the time.")
    arguments: list[str] = Field(description="Template arguments that a template reads.")
    turn_ends: list[TokenReply] = Field(description="Tokens at which it ends its turn.")


class TeacherReply(Body):
    name: str
    identity: IdentityReply
    vocabulary_size: int = Field(description="Width of its logits.")
    max_top_k: int
    max_length: int = Field(description="Longest prompt plus continuation, tokens.")
    engine: str
    deterministic: bool = Field(description="Equal requests give equal bytes.")
    tokenizers: dict[str, LevelName] = Field(description="Level by fingerprint.")
    model: str = Field(description="For people: its name on the hub, or the last of its path.")
    chat: ChatReply
    begin_tokens: list[TokenReply] = Field(description='What special_tokens "add" puts first.')


class LimitsReply(Body):
    """A request beyond any of these is refused before it is queued."""

    max_request_bytes: int
    max_reply_bytes: int
    max_continuations: int
    max_explicit_ids: int
    max_request_tokens: int
    max_queue_tokens: int
    max_tokenizer_bytes: int
    max_text_bytes: int
    max_render_prompts: int


class ServerReply(Body):
    teachers: list[TeacherReply] = Field(description="Those that the caller may ask.")
    limits: LimitsReply
    server_version: str


class LevelsReply(Body):
    """How a registered tokenizer relates to the teachers'."""

    tokenizer_hash: str = Field(description="Its fingerprint.")
    levels: dict[str, LevelName] = Field(description="By teacher; those it cannot serve are out.")
    differences: dict[str, str] = Field(description="By teacher: which parts differ.")


class RegisteredReply(Body):
    """That a run has registered a tokenizer."""

    run: str
    tokenizer_hash: str
    content: str = Field(description="Digest of file and roles.")
    file_bytes: int
    vocabulary_size: int = Field(description="One above its highest id.")
    levels: dict[str, LevelName]
    idle_seconds: float = Field(description="Since the run last registered or used it.")


class RegisteredListReply(Body):
    tokenizers: list[RegisteredReply] = Field(description="The last used ones first.")
    total: int = Field(description="How many there are.")


class DroppedReply(Body):
    dropped: bool = Field(description="false: the run has registered no such tokenizer.")


class StatusReply(Body):
    status: Literal["live", "ready"]


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
