"""A few random tokens that an engine scores before anything relies on it."""

from __future__ import annotations

import numpy as np
from teacher_proto.errors import EngineError
from teacher_proto.rows import required
from teacher_proto.types import Int32

from teacher_server.engines.base import Engine, EngineDescription, Job, ScoredSpan

PROBE_TOKENS = 24
TOP_K = 16
# By how much rounding may lift the probability of a whole row above 1.
MASS_TOLERANCE = 1e-4


def probe_ids(length: int, vocabulary_size: int, seed: int = 0) -> Int32:
    """Random ids int32 [length], the same ones every time."""
    generator = np.random.default_rng(seed)
    return generator.integers(0, vocabulary_size, length).astype(np.int32)


def probe_job(about: EngineDescription, seed: int = 1) -> Job:
    """A prompt and two continuations, the longer one first; another seed gives other ids."""
    length = min(PROBE_TOKENS, about.max_length)
    ids = probe_ids(length, about.vocabulary_size, seed)
    prompt, tail = ids[: length // 2], ids[length // 2 :]
    return Job(
        prompt_ids=prompt,
        spans=tuple(
            ScoredSpan(tail[:count], np.arange(count, dtype=np.int32))
            for count in sorted({len(tail), 1}, reverse=True)
        ),
        top_k=min(TOP_K, about.vocabulary_size),
        temperature=1.0,
        vocabulary_limit=about.vocabulary_size,
    )


async def self_score(engine: Engine) -> None:
    """Lets a started engine score the probe, and checks that its rows are distributions.

    Raises:
        EngineError: they are not (reason SELF_SCORE_FAILED), or the engine fails.
    """
    for rows in (await engine.score(probe_job(engine.description))).rows:
        if rows is None:
            raise _unsound("its logits are not finite")
        support = required(rows.support, "support")
        sampled = required(rows.sampled, "sampled token").values
        # A slot without an id, and a value that is not valid, have log-probability 0.
        probabilities = np.exp(support.log_probs.astype(np.float64))
        mass = np.where(support.valid, probabilities, 0.0).sum(axis=1).max()
        highest = max(support.log_probs.max(), sampled.max())
        if not (highest <= MASS_TOLERANCE and mass <= 1 + MASS_TOLERANCE):
            raise _unsound(f"the ids of a row hold probability {mass:.6f}")


def _unsound(what: str) -> EngineError:
    return EngineError(
        f"the engine fails its self-score: {what}",
        fix="check the model's files and the engine's dtype",
        reason="SELF_SCORE_FAILED",
    )
