"""A few tokens that every engine scores before its teacher is served."""

from __future__ import annotations

import numpy as np
from teacher_proto.errors import EngineError
from teacher_proto.rows import required

from teacher_server.engines.base import Engine, EngineDescription, Job, ScoredSpan


def probe_job(about: EngineDescription, start: int = 1) -> Job:
    """A few tokens to score; another ``start`` gives others."""
    length = min(8, about.max_length)
    ids = (np.arange(start, start + length) * 7919 % about.vocabulary_size).astype(np.int32)
    prompt, scored = ids[: length // 2], ids[length // 2 :]
    span = ScoredSpan(token_ids=scored, positions=np.arange(len(scored), dtype=np.int32))
    return Job(
        prompt_ids=prompt,
        spans=(span,),
        top_k=min(16, about.vocabulary_size),
        temperature=1.0,
        vocabulary_limit=about.vocabulary_size,
    )


async def self_score(engine: Engine) -> None:
    """Scores a few tokens and checks that the rows are distributions.

    Raises:
        EngineError: they are not.
    """
    rows = (await engine.score(probe_job(engine.description))).rows[0]
    if rows is None:
        raise _unsound("its logits are not finite")
    best = required(rows.support, "support").log_probs
    sampled = required(rows.sampled, "sampled token").values
    mass = np.exp(best.astype(np.float64)).sum(axis=1)
    highest = max(best.max(), sampled.max())
    if highest > 1e-4 or mass.max() > 1 + 1e-4:
        raise _unsound(f"a row's top 16 hold probability {mass.max():.6f}")


def _unsound(what: str) -> EngineError:
    return EngineError(
        f"the engine fails its self-score: {what}",
        fix="check the model's files and the engine's dtype",
        reason="SELF_SCORE_FAILED",
    )
