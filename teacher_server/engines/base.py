"""What an engine is: token ids go in and rows come out.

An engine scores *jobs*: a prompt and its continuations, as ids of the teacher that are
validated already. It knows nothing of runs, requests, tokenizers and wires. Every engine
passes the same suite of tests, tests/engines/conformance.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from teacher_proto.rows import Rows, Support, Values
from teacher_proto.types import Int32

from teacher_server.engines.adapter import Adapter


@dataclass(frozen=True)
class EngineDescription:
    """What an engine has loaded. Lengths are in tokens, digests are sha256 in hex.

    Attributes:
        pass_tokens: tokens that a full pass reads; only a single longer sequence makes a
            larger one. None for the engine's ``max_batch_tokens``.
        keeps_prefixes: a job reads little again of what an earlier job of the same prompt has
            read, so that rows after paths that leave its continuations cost little.
    """

    engine: str
    model: str
    weights_digest: str
    dtype: str
    quantization: str
    adapter_digest: str
    vocabulary_size: int
    max_length: int
    deterministic: bool
    pass_tokens: int | None = None
    keeps_prefixes: bool = False


@dataclass(frozen=True)
class ScoredSpan:
    """One continuation, and the positions in it that are scored.

    Attributes:
        token_ids: int32 [L], the tokens after the prompt.
        positions: int32 [R], strictly increasing indices into ``token_ids``: row r is
            the distribution of ``token_ids[positions[r]]`` given the prompt and
            ``token_ids[:positions[r]]``.
        explicit_ids: int32 [R, E] or None; -1 marks an empty slot.
    """

    token_ids: Int32
    positions: Int32
    explicit_ids: Int32 | None = None


@dataclass(frozen=True)
class Job:
    """A group to score: one prompt and its continuations.

    Attributes:
        prompt_ids: int32 [P], P >= 1.
        spans: one for each continuation.
        top_k: 0 <= K <= ``vocabulary_limit``.
        temperature: from 1e-6 to 1e6; the softmax is of logits / temperature.
        vocabulary_limit: only ids below it may be in a support, while the softmax
            always covers the whole vocabulary.
        want_sampled, want_log_tail: the parts of the rows to compute.
        wide_ids: int32 [E], ascending, each below ``vocabulary_limit``: some rows also have
            the log-probabilities of these (``WideRows``). None: no row has.
        adapter: the name of one of the engine's LoRA adapters; empty for the base.
    """

    prompt_ids: Int32
    spans: tuple[ScoredSpan, ...]
    top_k: int
    temperature: float
    vocabulary_limit: int
    want_sampled: bool = True
    want_log_tail: bool = False
    wide_ids: Int32 | None = None
    adapter: str = ""


@dataclass(frozen=True)
class JobResult:
    """Rows in the order of the job's spans; None for one whose logits are not finite. With
    ``Job.wide_ids`` those of a span that has any are ``WideRows``, whether any is wide or not.

    Attributes:
        computed_tokens: tokens that the model read for this job; a shared prompt counts
            once.
        engine_seconds: the job's share, by tokens, of the time that its batches spent in
            the engine.
    """

    rows: tuple[Rows | None, ...]
    computed_tokens: int
    engine_seconds: float


def empty_rows(job: Job, span: ScoredSpan) -> Rows:
    """The rows of a span that asks for none."""
    nothing = Values(np.zeros(0, np.float32), np.zeros(0, np.bool_))
    support = Support(
        ids=np.zeros((0, job.top_k), np.int32),
        log_probs=np.zeros((0, job.top_k), np.float32),
        counts=np.zeros(0, np.int32),
    )
    explicit = None
    if span.explicit_ids is not None:
        shape = (0, span.explicit_ids.shape[1])
        explicit = Values(np.zeros(shape, np.float32), np.zeros(shape, np.bool_))
    return Rows(
        support,
        sampled=nothing if job.want_sampled else None,
        log_tail=nothing if job.want_log_tail else None,
        explicit=explicit,
    )


@runtime_checkable
class Engine(Protocol):
    """One loaded model. All methods are called on one event loop."""

    @property
    def description(self) -> EngineDescription:
        """What was loaded; only after ``start``."""

    def hold_adapters(self, adapters: Mapping[str, Adapter]) -> None:
        """Before ``start``: the LoRA adapters of the model, by the names that jobs use."""

    async def start(self) -> None:
        """Loads the model and its adapters.

        Raises:
            ConfigurationError: the model cannot be served as configured.
        """

    async def score(self, job: Job) -> JobResult:
        """Scores a job; cancelling the task that awaits it cancels the work.

        Work that has not started is dropped then, work in progress ends after the pass or
        the block of a pass that runs, and other jobs are not affected.

        Raises:
            EngineError: the engine failed on this job.
            TeacherUnavailableError: the engine is closed or dead.
        """

    def on_death(self, callback: Callable[[BaseException], None]) -> None:
        """Calls back once, on the event loop, when the engine can never score again.

        The callback gets the error that the engine died of. If the engine is dead
        already, it is called soon.
        """

    async def close(self) -> None:
        """Ends the engine; jobs that are not finished raise TeacherUnavailableError."""


@dataclass(frozen=True)
class PassCount:
    """Forward passes since the start, and the tokens that they read, without padding."""

    passes: int
    tokens: int


@runtime_checkable
class CountsPasses(Protocol):
    """An engine that counts its passes; ``EngineDescription.pass_tokens`` is a full one."""

    def pass_count(self) -> PassCount:
        """The passes until now."""
