"""What tests of tasks share."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from teacher_proto.types import TextPrompt

from student_trainer.rollout.base import PromptItem, Rollout
from student_trainer.settings.dotted import importable_from, load_dotted
from student_trainer.tasks import Task
from student_trainer.verification.process import VerifierProcess

MIB = 2**20


def of_task(task: str, row: Mapping[str, Any], prompt_id: str = "p") -> PromptItem:
    """A prompt of a task."""
    return PromptItem(prompt_id, np.array([1], np.int32), TextPrompt("a"), task=task, row=row)


def response_to(prompt: PromptItem, index: int, length: int, *, finished: bool = True) -> Rollout:
    """A response of so many tokens."""
    tokens, log_probs = np.ones(length, np.int32), np.zeros(length, np.float32)
    return Rollout(prompt, index, tokens, log_probs, finished)


def own_task(folder: Path, name: str = "Does", **values: Any) -> Task:
    """A task of the module of ``own_folder``."""
    with importable_from([folder]):
        return load_dotted(f"own_tasks:{name}", Task, "tasks").model_validate(values)


def verifier(folder: Path, seconds: float) -> VerifierProcess:
    """A process that judges ``does``, not started."""
    return VerifierProcess(
        {"does": own_task(folder)}, [folder], seconds=seconds, memory_bytes=256 * MIB
    )
