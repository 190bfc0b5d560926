"""What a laboratory model can do, from responses that it writes as the trainer writes them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from teacher_proto.types import TextPrompt

from student_trainer.data.digest import prompt_identity
from student_trainer.rollout.base import PromptItem, Rollout
from student_trainer.rollout.generate import generate
from student_trainer.settings.rollout import RolloutSettings
from student_trainer.settings.student import StudentSettings
from student_trainer.student.model import Student, load_student
from student_trainer.study.lab.language.task import LabTask
from student_trainer.study.lab.language.tokenizer import WordIds
from student_trainer.tasks.base import Row

TOP = 8
WIDE = 0.98


def load(folder: Path) -> Student:
    """A model as the trainer loads its student, on the CPU."""
    return load_student(StudentSettings(model=str(folder), device="cpu"))


def draw_rows(task: LabTask, count: int, seed: int) -> list[Row]:
    """Prompts of ``task.items`` items. Different seeds are different prompts but by chance."""
    draw = random.Random(f"{task.name} measured {seed}")
    return [task.draw_row(draw, task.items) for _ in range(count)]


def respond(student: Student, task: LabTask, rows: Sequence[Row], seed: int) -> list[Rollout]:
    """A response to each row, at temperature 1 and top-p .9."""
    prompts = []
    for row in rows:
        ids = np.array(student.tokenizer.encode(row["prompt"], add_special_tokens=False), np.int32)
        prompts.append(PromptItem(prompt_identity(ids), ids, TextPrompt(row["prompt"])))
    # Twice as long as the longest right one, so that a response is cut only where it never ends.
    settings = RolloutSettings(
        group_size=1, batch_size=64, max_new_tokens=2 * task.longest_response
    )
    return generate(student, prompts, settings, seed=seed, step=0)


def verified(
    student: Student, task: LabTask, rows: Sequence[Row], rollouts: Sequence[Rollout]
) -> dict[str, float]:
    """Shares of right responses and of right steps, of cut ones, and the mean length, tokens."""
    texts = [student.tokenizer.decode(r.token_ids, skip_special_tokens=True) for r in rollouts]
    verdicts = [task.verify(row, text) for row, text in zip(rows, texts, strict=True)]
    return {
        "accuracy": float(np.mean([verdict.right for verdict in verdicts])),
        "steps_right": float(np.mean([verdict.values["steps_right"] for verdict in verdicts])),
        "cut": float(np.mean([not rollout.finished for rollout in rollouts])),
        "tokens": float(np.mean([len(rollout.token_ids) for rollout in rollouts])),
    }


@torch.inference_mode()
def spread(student: Student, rollouts: Sequence[Rollout]) -> dict[str, float]:
    """How wide the model's distributions are at its own responses, over the whole vocabulary.

    Returns:
        entropy: mean over positions, nats; wide: share of positions whose eight most likely
        tokens have at most .98.
    """
    entropies, tops = [], []
    for rollout in rollouts:
        log_probs = _log_probs(student, rollout.prompt.token_ids, rollout.token_ids)
        entropies.append(-(log_probs.exp() * log_probs).sum(-1))
        tops.append(log_probs.topk(TOP).values.exp().sum(-1))
    return {
        "entropy": float(torch.cat(entropies).mean()),
        "wide": float((torch.cat(tops) <= WIDE).double().mean()),
    }


@torch.inference_mode()
def after_slips(student: Student, task: LabTask, count: int, seed: int) -> float:
    """Share of tokens after a wrong step that the model finds most likely, among those that the
    rules decide, in ``count`` responses with one wrong step each."""
    draw = random.Random(f"{task.name} slips {seed}")
    ids = WordIds(student.tokenizer)
    right, total = 0, 0
    for _ in range(count):
        row = task.draw_row(draw, task.items)
        response = task.write(row, draw, decided=2.0, slip=1.0)
        written = [ids.of_word(" " + word) for word in response.words]
        weights = np.repeat(response.weights, [len(found) for found in written])
        tokens = np.array([token for found in written for token in found], np.int32)
        prompt = np.array(ids.of_text(row["prompt"]), np.int32)
        likely = _log_probs(student, prompt, tokens).argmax(-1).numpy()
        counted = (weights == 2.0) & (np.arange(len(tokens)) > np.flatnonzero(weights == 0)[-1])
        right += int((likely == tokens)[counted].sum())
        total += int(counted.sum())
    return right / total


def _log_probs(student: Student, prompt: Any, response: Any) -> torch.Tensor:
    """float32 [n, V] at the n tokens of a response."""
    ids = torch.tensor(np.concatenate([prompt, response]), dtype=torch.int64)[None]
    logits = student.causal_model(input_ids=ids[:, :-1], use_cache=False).logits[0]
    scored: torch.Tensor = logits[len(prompt) - 1 :].float()
    return scored.log_softmax(-1)
