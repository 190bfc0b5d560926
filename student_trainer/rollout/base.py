"""What a rollout is, whoever made it. Shapes: P prompt tokens, n response tokens."""

from __future__ import annotations

from dataclasses import dataclass

from teacher_proto.types import Float32, Int32, Prompt


@dataclass(frozen=True)
class PromptItem:
    """A prompt of the data set.

    Attributes:
        prompt_id: a digest of ``token_ids``, the same for equal prompts wherever they
            come from; seeds the prompt's streams.
        token_ids: int32 [P], in the student's vocabulary, as the student reads it.
        source: the prompt as the data set gives it, sent to a teacher that
            renders prompts itself.
    """

    prompt_id: str
    token_ids: Int32
    source: Prompt


@dataclass(frozen=True)
class Rollout:
    """One response of the student.

    Attributes:
        prompt: what it answers.
        index: which of the prompt's G responses.
        token_ids: int32 [n], n >= 1, the terminator included when it was drawn.
        log_probs: float32 [n], the student's log-probability of each token at
            rollout temperature, among the ids that a token has, before top-p.
        finished: False when the length limit cut it.
        support_ids: int32 [n, K], the ids most likely to the student that drew it,
            at every token; None where the loss does not ask for them.
    """

    prompt: PromptItem
    index: int
    token_ids: Int32
    log_probs: Float32
    finished: bool
    support_ids: Int32 | None = None
