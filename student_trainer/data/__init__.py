"""Prompts: read from a dataset, rendered as the student reads them, split and ordered."""

from student_trainer.data.order import PromptOrder
from student_trainer.data.prompts import PromptSets, load_prompts
from student_trainer.data.rendering import run_clock

__all__ = ["PromptOrder", "PromptSets", "load_prompts", "run_clock"]
