"""What tests of tasks share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from teacher_proto.types import TextPrompt

from student_trainer.rollout.base import PromptItem, Rollout


def of_task(task: str, row: Mapping[str, Any], prompt_id: str = "p") -> PromptItem:
    """A prompt of a task."""
    return PromptItem(prompt_id, np.array([1], np.int32), TextPrompt("a"), task=task, row=row)


def response_to(prompt: PromptItem, index: int, length: int, *, finished: bool = True) -> Rollout:
    """A response of so many tokens."""
    tokens, log_probs = np.ones(length, np.int32), np.zeros(length, np.float32)
    return Rollout(prompt, index, tokens, log_probs, finished)
