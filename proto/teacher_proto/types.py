"""The contract as plain Python: what a caller asks and what a teacher answers.

Frozen dataclasses over numpy arrays. ``codec`` turns them into messages and
back; nothing else touches the generated code. Shapes use one legend:

    P  tokens of the prompt            G  continuations of a group
    n  scored tokens (rows) of one     R  rows selected (n when none are)
    K  size of the returned support    E  explicit ids per row
    V  vocabulary

Row alignment is stated in ``v1/score.proto``: row t is the teacher's
distribution for scored token t given everything before it.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from teacher_proto.errors import UnknownTeacherError
from teacher_proto.rows import Rows

Int32 = NDArray[np.int32]
Float32 = NDArray[np.float32]
Bool = NDArray[np.bool_]
UInt8 = NDArray[np.uint8]


@dataclass(frozen=True)
class TokenPrompt:
    """A prompt as ids of the request's tokenizer, int32 [P], taken verbatim."""

    token_ids: Int32


class SpecialTokens(enum.IntEnum):
    """Which special tokens a text is encoded with (v1/score.proto)."""

    AS_WRITTEN = 1
    ADD = 2


@dataclass(frozen=True)
class TextPrompt:
    """A prompt as text, encoded by the teacher's tokenizer.

    Attributes:
        special_tokens: those that the text spells out, or also those that the teacher's
            tokenizer puts before a text.
    """

    text: str
    special_tokens: SpecialTokens = SpecialTokens.AS_WRITTEN


class Absent(enum.Enum):
    """Stands for a field that an object does not have, which is another thing than null."""

    ABSENT = "absent"


ABSENT = Absent.ABSENT
Content = str | Sequence[Mapping[str, Any]] | None | Absent


@dataclass(frozen=True)
class ChatMessage:
    """A turn as the chat template reads it.

    Attributes:
        content: a text, or parts such as ``{"type": "text", "text": "..."}``; null or
            ABSENT only in an assistant's turn, which may hold calls of tools alone.
        extra: further fields, in their order.
    """

    role: str
    content: Content
    extra: Mapping[str, Any] = field(default_factory=dict)

    def as_read(self) -> dict[str, Any]:
        """The fields in the order in which the template gets them."""
        content = {} if self.content is ABSENT else {"content": self.content}
        return {"role": self.role, **content, **self.extra}


@dataclass(frozen=True)
class ChatPrompt:
    """A conversation, rendered by the teacher's own chat template.

    Attributes:
        now: the local time that the template prints, such as ``2026-11-29T05:53:12``;
            empty for the server's own clock.
    """

    messages: tuple[ChatMessage, ...]
    add_generation_prompt: bool = True
    template_arguments: Mapping[str, Any] = field(default_factory=dict)
    now: str = ""


Prompt = TokenPrompt | TextPrompt | ChatPrompt


@dataclass(frozen=True)
class Segment:
    """Tokens that are all scored or all given, int32 [L], L >= 1."""

    token_ids: Int32
    scored: bool = True


@dataclass(frozen=True)
class Continuation:
    """One continuation of the prompt.

    Attributes:
        segments: in order; at least one is scored.
        rows: int32 [R], strictly increasing row indices; None asks for all.
        explicit_ids: int32 [R, E]; -1 marks a slot that asks for nothing.
    """

    segments: tuple[Segment, ...]
    rows: Int32 | None = None
    explicit_ids: Int32 | None = None

    @property
    def token_ids(self) -> Int32:
        """int32 [L]: every token of the continuation, scored or not."""
        if not self.segments:
            return np.zeros(0, np.int32)
        return np.concatenate([segment.token_ids for segment in self.segments]).astype(np.int32)

    @property
    def scored_positions(self) -> Int32:
        """int32 [n]: index into ``token_ids`` of each scored token."""
        if not self.segments:
            return np.zeros(0, np.int32)
        flags = [np.full(len(s.token_ids), s.scored) for s in self.segments]
        return np.flatnonzero(np.concatenate(flags)).astype(np.int32)

    @property
    def selected_positions(self) -> Int32:
        """int32 [R]: index into ``token_ids`` of each row asked for."""
        scored = self.scored_positions
        return scored if self.rows is None else scored[self.rows]

    @property
    def row_count(self) -> int:
        """Rows asked for: the selected ones, else one per scored token."""
        if self.rows is not None:
            return len(self.rows)
        return sum(len(segment.token_ids) for segment in self.segments if segment.scored)


@dataclass(frozen=True)
class Returns:
    """What to return beside the support; each only when asked for.

    Attributes:
        coarse: COARSE rows in place of masked ones where they can be; with ``realignment``.
    """

    sampled: bool = True
    log_tail: bool = False
    realignment: bool = False
    coarse: bool = False


@dataclass(frozen=True)
class ScoreRequest:
    """One group: a prompt and its continuations (v1/score.proto)."""

    request_id: str
    run: str
    teacher: str
    tokenizer_hash: str
    prompt: Prompt
    continuations: tuple[Continuation, ...]
    top_k: int
    temperature: float
    returns: Returns = field(default_factory=Returns)
    teacher_prompt: Prompt | None = None
    student_vocabulary_size: int | None = None
    expected_identity: str = ""
    # Of the reply, as the caller reads it; None: the server's limit.
    max_reply_bytes: int | None = None

    @property
    def prompt_to_read(self) -> tuple[Prompt, str]:
        """(prompt, its field): what the teacher reads before the continuations."""
        if self.teacher_prompt is not None:
            return self.teacher_prompt, "teacher_prompt"
        return self.prompt, "prompt"

    @property
    def explicit_width(self) -> int:
        """E: explicit ids per row, of the continuation that has most; 0 where none has any."""
        explicit = [c.explicit_ids for c in self.continuations if c.explicit_ids is not None]
        return max((ids.shape[1] for ids in explicit), default=0)


class Status(enum.IntEnum):
    OK = 1
    NON_FINITE = 2
    NOT_REALIGNED = 3


class PositionClass(enum.IntEnum):
    EXACT = 1
    REMAP = 2
    ALIGNED = 3
    MID = 4
    SPECIAL = 5
    MASKED = 6
    COARSE = 7


# Classes of rows that have a MaskReason. All others are full rows.
CLASSES_WITH_REASON = (PositionClass.MASKED, PositionClass.COARSE)


class MaskReason(enum.IntEnum):
    """Why a row is masked or coarse: the first that holds, in this order (v1/score.proto)."""

    NOT_CANONICAL = 1
    UNREADABLE = 2
    NO_COUNTERPART = 3
    LONG_CHUNK = 4
    MERGED_SPACES = 5
    LITTLE_AGREES = 6
    NOTHING_CERTIFIED = 7
    LARGE_REST = 8
    ONE_CERTIFIED = 9
    DOUBTFUL = 10


@dataclass(frozen=True)
class Realignment:
    """Per row (R) and per chunk (C); see v1/score.proto.

    Attributes:
        mask_reason: uint8 [R], values of MaskReason, 0 for rows that are neither masked nor
            coarse, and others of a newer server; None: an older server, which does not say.
    """

    coverage: Float32
    open_mass: Float32
    lost_mass: Float32
    position_class: UInt8
    chunk_index: Int32
    chunk_log_likelihood: Float32
    mask_reason: UInt8 | None = None


@dataclass(frozen=True)
class ContinuationScores:
    """The rows of one continuation; with another status than OK they have no part."""

    status: Status = Status.OK
    detail: str = ""
    rows: Rows = field(default_factory=Rows)
    realignment: Realignment | None = None


@dataclass(frozen=True)
class TeacherIdentity:
    """What a teacher is (v1/teacher.proto); ``digest`` covers the rest."""

    digest: str
    weights_digest: str
    dtype: str
    quantization: str
    adapter_digest: str
    tokenizer_hash: str
    # Empty: there is no chat template, or the server is older.
    chat_template_digest: str = ""


class Level(enum.IntEnum):
    SAME = 1
    REMAP = 2
    CROSS = 3


@dataclass(frozen=True)
class TokenText:
    token_id: int
    text: str


@dataclass(frozen=True)
class ChatInfo:
    """How a teacher reads conversations (v1/teacher.proto).

    Attributes:
        template_digest: of everything that decides a rendering; empty without a template.
        reads_clock: whether a template prints the time.
        arguments: names of the template arguments that a template reads, sorted.
        turn_ends: tokens at which the teacher ends its turn or its text.
    """

    template_digest: str
    reads_clock: bool
    arguments: tuple[str, ...]
    turn_ends: tuple[TokenText, ...]

    @property
    def has_template(self) -> bool:
        return bool(self.template_digest)


@dataclass(frozen=True)
class TeacherInfo:
    name: str
    identity: TeacherIdentity
    vocabulary_size: int
    max_top_k: int
    max_length: int
    engine: str
    deterministic: bool
    tokenizers: Mapping[str, Level]
    model: str
    # None: an older server, which neither renders nor knows ``ChatPrompt.now``.
    chat: ChatInfo | None = None
    # What ``SpecialTokens.ADD`` puts before a text.
    begin_tokens: tuple[TokenText, ...] = ()


@dataclass(frozen=True)
class ServerLimits:
    max_request_bytes: int
    max_reply_bytes: int
    max_continuations: int
    max_explicit_ids: int
    max_request_tokens: int
    max_queue_tokens: int
    max_tokenizer_bytes: int
    # None: an older server, which has no such limit.
    max_text_bytes: int | None = None
    # None: an older server, which does not render.
    max_render_prompts: int | None = None


@dataclass(frozen=True)
class ServerInfo:
    teachers: tuple[TeacherInfo, ...]
    limits: ServerLimits
    server_version: str

    def teacher(self, name: str) -> TeacherInfo:
        """The teacher of this name.

        Raises:
            UnknownTeacherError: there is none; it is a KeyError too.
        """
        for teacher in self.teachers:
            if teacher.name == name:
                return teacher
        raise UnknownTeacherError(
            f"there is no teacher {name!r}",
            where="teacher",
            fix=f"name one of the server's teachers: {', '.join(t.name for t in self.teachers)}",
        )


@dataclass(frozen=True)
class Timing:
    """Seconds, and tokens the engine computed for the request."""

    queue_seconds: float = 0.0
    engine_seconds: float = 0.0
    total_seconds: float = 0.0
    computed_tokens: int = 0


@dataclass(frozen=True)
class ScoreReply:
    request_id: str
    identity: TeacherIdentity
    results: tuple[ContinuationScores, ...]
    timing: Timing


@dataclass(frozen=True)
class RenderRequest:
    """Asks how the teacher reads prompts (v1/render.proto), which go with it.

    Attributes:
        text, token_ids: whether these are returned, besides the number of tokens.
        max_reply_bytes: what the caller reads of a reply; None: the server's limit.
    """

    run: str
    teacher: str
    text: bool = True
    token_ids: bool = True
    max_reply_bytes: int | None = None


@dataclass(frozen=True)
class Refusal:
    """Why one prompt cannot be read: what a request to score it would be refused with."""

    reason: str
    what: str
    where: str
    fix: str


TOO_LONG = "PROMPT_TOO_LONG"


@dataclass(frozen=True)
class RenderedPrompt:
    """A prompt as the teacher reads it.

    Attributes:
        token_count: P; None for a prompt that was refused before it was tokenized.
        text: what the template printed, or the text; when asked for and not refused.
        token_ids: int32 [P], ids of the teacher; when asked for and not refused.
        refusal: None for a prompt that the teacher can read.
    """

    token_count: int | None = None
    text: str | None = None
    token_ids: Int32 | None = None
    refusal: Refusal | None = None

    @property
    def too_long(self) -> bool:
        """Whether it is more tokens than the teacher can read (``TeacherInfo.max_length``)."""
        return self.refusal is not None and self.refusal.reason == TOO_LONG


class SpecialRole(enum.IntEnum):
    BEGIN_OF_TEXT = 1
    END_OF_TEXT = 2
    TURN_END = 3
    THINK_OPEN = 4
    THINK_CLOSE = 5
    PADDING = 6
    OTHER = 7


@dataclass(frozen=True)
class TokenizerUpload:
    """A student's tokenizer.json and the roles of its special ids."""

    run: str
    tokenizer_hash: str
    file: bytes
    special_tokens: Mapping[int, SpecialRole] = field(default_factory=dict)


class TokenizerLevels(dict[str, Level]):
    """How a registered tokenizer relates to each teacher's: its level by the teacher's name.

    Attributes:
        differences: teacher -> which parts of the two tokenizers differ, and whether a text
            of the probe shows it (docs/fingerprint.md), the registered one's first. Those of
            one fingerprint are left out; a server of an older release sends none.
    """

    def __init__(
        self, levels: Mapping[str, Level], differences: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(levels)
        self.differences = dict(differences or {})


@dataclass(frozen=True)
class RegisteredTokenizer:
    """That a run has registered a tokenizer.

    Attributes:
        content: sha256, hexadecimal, over fingerprint, file and roles.
        file_bytes: of the tokenizer.json.
        vocabulary_size: one above its highest id.
        levels: by teacher that the caller may ask.
        idle_seconds: since the run last registered or used it.
    """

    run: str
    tokenizer_hash: str
    content: str
    file_bytes: int
    vocabulary_size: int
    levels: Mapping[str, Level]
    idle_seconds: float


@dataclass(frozen=True)
class RegisteredTokenizers:
    """What runs have registered.

    Attributes:
        tokenizers: the last used ones first.
        total: how many there are; a server lists 256 at most.
    """

    tokenizers: tuple[RegisteredTokenizer, ...]
    total: int
