"""What one request took."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Cost:
    """The sum over a request's jobs.

    Attributes:
        job_tokens: of prompts and continuations, as the teacher reads them.
        computed_tokens: that went through the model; a shared prompt counts once.
        queue_seconds: spent waiting for the engine.
        engine_seconds: of the engine; a pass shared with other requests counts by tokens.
    """

    job_tokens: int = 0
    computed_tokens: int = 0
    queue_seconds: float = 0.0
    engine_seconds: float = 0.0
