"""What a request in a student's tokenizer asks, and what is said while it is realigned.

G continuations, of which continuation g has R_g rows. Ids are the student's in a request and
in its result, the teacher's in between.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from teacher_proto.rows import Rows, most_wide
from teacher_proto.types import ContinuationScores, Int32

# Entries of the teacher's rows whose positions are realigned at once, at most.
BLOCK_ENTRIES = 1 << 20
# Bytes that an entry of a row takes: as it is received; as it is read, of one continuation;
# as it is kept until no more is asked for; while it is walked and certified; and left open.
RECEIVED_BYTES, READ_BYTES, KEPT_BYTES, WALKED_BYTES, OPEN_BYTES = 8, 32, 12, 300, 56
# Tokens of the sequences that one round asks for, at most.
BATCH_TOKENS = 1 << 21
# Of a product that should be a whole number.
ROUNDING = 1e-9
# Bytes that an entry of the result takes, its message included.
RETURNED_BYTES = 40
# Bytes that a further entry of a wide row takes: as it is received; as it is read, of one
# continuation; and as it is kept. No more of them are left open than a row has best ids.
WIDE_RECEIVED_BYTES, WIDE_READ_BYTES, WIDE_KEPT_BYTES = 4, 16, 8


@dataclass(frozen=True)
class AskedContinuation:
    """One continuation.

    Attributes:
        token_ids: int32 [L], scored or not.
        positions: int32 [R], ascending indices into ``token_ids``: the rows asked for.
        explicit_ids: int32 [R, E] or None; -1 marks an empty slot.
    """

    token_ids: Int32
    positions: Int32
    explicit_ids: Int32 | None = None


@dataclass(frozen=True)
class RealignRequest:
    """A request in a student's tokenizer, and how far the teacher may be asked for it.

    Attributes:
        teacher: its name: context-free rows are kept for each teacher.
        student_vocabulary_size: only ids below it are returned; None: all.
        sampled, log_tail: the parts to return.
        coarse: whether rows may be COARSE.
        vocabulary_size: of the teacher's model.
        prompt_tokens: that the teacher reads before each continuation.
        max_length: tokens of a sequence that the teacher can read.
        context_free_rows: whether to ask for context-free rows.
        extra_rounds: how often to ask for rows after paths, at most.
        extra_rows_per_token: in all rounds together, for each teacher row along the rollouts.
        extra_rows: of one round, at most.
        extra_least_open: a row with less open mass is not worth one.
        memory_bytes: that it may take to realign; extra rows are asked for only within it.
    """

    teacher: str
    continuations: tuple[AskedContinuation, ...]
    top_k: int
    temperature: float
    student_vocabulary_size: int | None
    sampled: bool
    log_tail: bool
    coarse: bool
    vocabulary_size: int
    prompt_tokens: int
    max_length: int
    context_free_rows: bool
    extra_rounds: int
    extra_rows_per_token: float
    extra_rows: int
    extra_least_open: float
    memory_bytes: int

    def extra_budget(self, needed: Sequence[int]) -> int:
        """Rows after paths of all rounds together that the settings allow; ``needed`` as in
        ``Plan``. See ``Plan.extra_rows``."""
        rows = math.floor(self.extra_rows_per_token * sum(needed) + ROUNDING)
        return min(rows, self.extra_rounds * self.extra_rows)

    def extra_batch(self, lengths: Sequence[int]) -> int:
        """Rows of one round, at most; ``lengths`` as in ``Plan``. Each is read with its prompt."""
        longest = self.prompt_tokens + max(lengths, default=1)
        return min(self.extra_rows, BATCH_TOKENS // max(longest, 1))

    @property
    def explicit_width(self) -> int:
        """E of the continuation that has most; 0 where none has any."""
        explicit = [c.explicit_ids for c in self.continuations if c.explicit_ids is not None]
        return max((ids.shape[1] for ids in explicit), default=0)


@dataclass(frozen=True)
class TextSize:
    """Bytes of the text of all continuations, said before any of it is encoded."""

    text_bytes: int


@dataclass(frozen=True)
class Plan:
    """What the teacher would read, said before it reads any of it.

    Attributes:
        lengths: [G], teacher tokens of each continuation; 0 where there is a problem.
        needed: [G], teacher rows of each that will be asked for.
        problems: [G], why the teacher cannot read a continuation; empty where it can.
        limit: only teacher ids below it may be in a row.
        wide_ids: [E], ascending: what wide rows list besides; none where no row is to be wide.
    """

    lengths: tuple[int, ...]
    needed: tuple[int, ...]
    problems: tuple[str, ...]
    limit: int
    wide_ids: tuple[int, ...] = ()

    def row_bytes(self, best: int) -> int:
        """Bytes of the teacher's rows of ``best`` ids: those asked for, and those of one
        rollout during its walk."""
        asked = sum(self.needed) * best * 8
        return asked + max(self.lengths, default=0) * best * 12

    def extra_rows(self, request: RealignRequest, best: int) -> int:
        """Rows after paths of all rounds together, at most; none where what they take does not
        fit into the request's memory."""
        rows = request.extra_budget(self.needed)
        return rows if self._bytes(request, best, rows, 0) <= request.memory_bytes else 0

    def wide_rows(self, request: RealignRequest, best: int) -> int:
        """Rows of the continuations that may be wide, all together; none where what they take does
        not fit into the request's memory beside the extra rows."""
        rows, extra = self._may_be_wide(self.needed), self.extra_rows(request, best)
        return rows if self._bytes(request, best, extra, rows) <= request.memory_bytes else 0

    def _may_be_wide(self, needed: Sequence[int]) -> int:
        return sum(most_wide(rows) for rows in needed) if self.wide_ids else 0

    def session_bytes(self, request: RealignRequest, best: int) -> int:
        """Bytes of memory that it takes to realign rows of ``best`` ids, at most, with the
        extra rows and the wide rows that fit."""
        extra, wide = self.extra_rows(request, best), self.wide_rows(request, best)
        return self._bytes(request, best, extra, wide)

    def _bytes(self, request: RealignRequest, best: int, extra: int, wide: int) -> int:
        asked = request.continuations
        positions = [len(one.positions) for one in asked]
        longest, more = max(positions, default=0), wide * len(self.wide_ids)
        of_one = self._may_be_wide([max(self.needed, default=0)]) * len(self.wide_ids)
        received = max(sum(self.needed), extra) * best * RECEIVED_BYTES
        received += more * WIDE_RECEIVED_BYTES
        read = (max(self.lengths, default=0) + extra) * best * READ_BYTES
        read += min(of_one, more) * WIDE_READ_BYTES
        kept = (sum(self.lengths) + extra) * best * KEPT_BYTES + more * WIDE_KEPT_BYTES
        opened = (sum(positions) + wide) * best * OPEN_BYTES if extra else 0
        width = best + (len(self.wide_ids) if wide else 0)
        walked = min(longest * best + min(of_one, more), BLOCK_ENTRIES + width) * WALKED_BYTES
        explicit = sum(one.explicit_ids.size for one in asked if one.explicit_ids is not None)
        returned = sum(positions) * (request.top_k + 1) + explicit
        return received + read + kept + opened + walked + returned * RETURNED_BYTES


@dataclass(frozen=True)
class AskedSpan:
    """Teacher ids after the prompt, and the positions whose rows are asked for, as in
    ``engines.base.ScoredSpan``: int32 [L], int32 [R]."""

    token_ids: Int32
    positions: Int32


@dataclass(frozen=True)
class AskedRollouts:
    """Rows along the continuations that the teacher can read, with the tokens' own
    log-probabilities: the first that is asked, and once."""

    spans: tuple[AskedSpan, ...]


@dataclass(frozen=True)
class AskedContextFree:
    """The rows after single tokens.

    Attributes:
        before: int32 [1], the prompt instead of the request's own.
        tokens: int32 [n], ascending.
    """

    before: Int32
    tokens: Int32


@dataclass(frozen=True)
class AskedPaths:
    """One row after each of these sequences, int32 [L]: the one before the sequence's last
    token."""

    sequences: tuple[Int32, ...]


@dataclass(frozen=True)
class Pause:
    """Nothing is asked; other work may have its turn."""


Asked = AskedRollouts | AskedContextFree | AskedPaths
Step = TextSize | Plan | Pause | Asked
# Of the spans that were asked; None for one whose rows are not finite. Nothing follows on
# what is not asked, nor on rows beyond the rollouts' that cannot be had in time: the request
# ends with what it has.
Answer = tuple[Rows | None, ...]


@dataclass(frozen=True)
class Realigned:
    """The result: the scores of each continuation, with their realignment.

    NON_FINITE: the teacher's rows are not finite. NOT_REALIGNED: ``detail`` gives the reason.
    """

    scores: tuple[ContinuationScores, ...]
