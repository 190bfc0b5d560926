"""What an engine is: token ids in, rows out. Every engine passes the same suite
(tests/engines/conformance.py).

An engine knows nothing of runs, requests, tokenizers or wires. It scores *jobs*:
a prompt and its continuations as the teacher's own ids, all validated before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from teacher_proto.rows import Rows
from teacher_proto.types import Int32

from teacher_server.engines.adapter import Adapter


@dataclass(frozen=True)
class EngineDescription:
    """What the engine loaded. Lengths in tokens; digests are sha256 in hex.

    ``pass_tokens``: tokens that one indivisible pass reads; None for all of
    ``max_batch_tokens``.
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


@dataclass(frozen=True)
class ScoredSpan:
    """One continuation.

    Attributes:
        token_ids: int32 [L], after the prompt.
        positions: int32 [R], strictly increasing indices into ``token_ids``:
            row r is the distribution for ``token_ids[positions[r]]`` given the
            prompt and ``token_ids[:positions[r]]``.
        explicit_ids: int32 [R, E] or None; -1 marks an empty slot.
    """

    token_ids: Int32
    positions: Int32
    explicit_ids: Int32 | None = None


@dataclass(frozen=True)
class Job:
    """A group to score.

    Attributes:
        prompt_ids: int32 [P], P >= 1.
        spans: G of them.
        top_k: 0 <= K <= vocabulary_limit.
        temperature: finite, > 0; the softmax is of logits / temperature.
        vocabulary_limit: only ids below it enter a support; the normaliser
            always covers the whole vocabulary.
        want_sampled, want_log_tail: parts to compute.
        adapter: name of one of the engine's LoRA adapters; empty for the base.
    """

    prompt_ids: Int32
    spans: tuple[ScoredSpan, ...]
    top_k: int
    temperature: float
    vocabulary_limit: int
    want_sampled: bool = True
    want_log_tail: bool = False
    adapter: str = ""

    @property
    def tokens(self) -> int:
        """Tokens a single pass over the group has to read."""
        return len(self.prompt_ids) + sum(len(span.token_ids) for span in self.spans)


@dataclass(frozen=True)
class JobResult:
    """Rows in the order of the job's spans; None for one whose logits are not finite.

    ``computed_tokens`` counts tokens that went through the model for this job;
    a shared prompt counts once. ``engine_seconds`` is the time the job's batches
    spent in the engine, split by tokens.
    """

    rows: tuple[Rows | None, ...]
    computed_tokens: int
    engine_seconds: float


@runtime_checkable
class Engine(Protocol):
    """One loaded model. All methods are called on one event loop.

    ``score`` is cancelled by cancelling its task: work not yet started is
    dropped, work in progress is dropped at the next chunk, neighbours are not
    affected. It raises ``EngineError`` when the engine fails, and
    ``TeacherUnavailableError`` after ``close`` or once the engine died.
    """

    @property
    def description(self) -> EngineDescription: ...

    def hold_adapters(self, adapters: Mapping[str, Adapter]) -> None:
        """Before ``start``: LoRA adapters of the model, by the name that jobs give."""

    async def start(self) -> None:
        """Loads the model and its adapters; raises ConfigurationError when it cannot."""

    async def score(self, job: Job) -> JobResult: ...

    def on_death(self, callback: Callable[[BaseException], None]) -> None:
        """Calls back once, on the event loop, when the engine can never score again."""

    async def close(self) -> None: ...


@dataclass(frozen=True)
class PassCount:
    """Forward passes since the start, and the tokens they read, padding left out."""

    passes: int
    tokens: int


@runtime_checkable
class CountsPasses(Protocol):
    """An engine that knows how full its passes are (``EngineDescription.pass_tokens``)."""

    def pass_count(self) -> PassCount: ...
