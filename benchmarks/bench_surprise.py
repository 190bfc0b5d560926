"""How many rows the weight ``teacher_surprise`` leaves out before and after a first mistake.

The laboratory's teacher and a student of it (``student-trainer study lab``) answer 150 prompts of
four items each at temperature 1. A verifier finds the first token of a response that is wrong: an
item that is not left, a value or a total. The teacher's rows are those of its top K, its surprise
is exact.

Figures, for K and the weight's settings:
    before_*    rows up to the first mistake, and of responses without one all, that are left out
    after_*     rows after the first mistake that are left out
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from teacher_proto.rows import Rows, Support, Values
from teacher_proto.types import ContinuationScores, TextPrompt

from benchmarks.harness import write_result
from student_trainer.data.digest import prompt_identity
from student_trainer.losses.parts.base import LossBatch
from student_trainer.rollout.base import PromptItem, Rollout
from student_trainer.rollout.generate import generate
from student_trainer.settings.rollout import RolloutSettings
from student_trainer.student.model import Student
from student_trainer.study.lab.language.sums import MODULUS, VALUES, SumsTask
from student_trainer.study.lab.language.words import ANSWER
from student_trainer.study.lab.measuring import draw_rows, load
from student_trainer.tasks.base import Row
from student_trainer.update.support_facts import excess_surprise
from student_trainer.weights import ResponseRows
from student_trainer.weights.teacher_surprise import TeacherSurprise

PROMPTS, SEED = 150, 7
WRITERS = (("teacher", 1.0), ("student", 1.0), ("student", 0.9))
TOP_K = (2, 16, 128)
WEIGHTS: dict[str, dict[str, Any]] = {
    "": {},
    "_lasting": {"lasting": True},
    "_allowance_1.5": {"allowance": 1.5},
}
NUMBERS = {str(number): number for number in range(MODULUS)}


def write(student: Student, rows: Sequence[Row], top_p: float) -> list[Rollout]:
    prompts = []
    for row in rows:
        ids = np.array(student.tokenizer.encode(row["prompt"], add_special_tokens=False), np.int32)
        prompts.append(PromptItem(prompt_identity(ids), ids, TextPrompt(row["prompt"])))
    settings = RolloutSettings(group_size=1, batch_size=64, max_new_tokens=96, top_p=top_p)
    return generate(student, prompts, settings, seed=1, step=0)


def first_mistake(row: Row, words: Sequence[str]) -> int:
    """The place of the first wrong word; how many words there are where none is."""
    left, total, item, said = set(row["items"]), 0, "", 0
    for place, word in enumerate(words):
        if word in VALUES:
            if word not in left:
                return place
            left.discard(word)
            item, said = word, 0
        elif word in NUMBERS and item:
            after = (total + VALUES[item]) % MODULUS
            if said > 2 or NUMBERS[word] != (VALUES[item], total, after)[said]:
                return place
            said += 1
            if said == 3:
                total, item = after, ""
        elif word == ANSWER and left:
            return place
    return len(words)


@torch.no_grad()
def excess_of(teacher: Student, rollout: Rollout, top_k: int) -> np.ndarray:
    """float64 [n]."""
    ids = np.concatenate([rollout.prompt.token_ids, rollout.token_ids]).astype(np.int64)
    logits = teacher.causal_model(torch.from_numpy(ids)[None, :-1], use_cache=False).logits[0]
    q = logits[len(rollout.prompt.token_ids) - 1 :].float().log_softmax(-1)
    values, top = q.topk(top_k, -1)
    count = len(rollout.token_ids)
    sampled = q[torch.arange(count), torch.from_numpy(rollout.token_ids.astype(np.int64))]
    support = Support(top.numpy().astype(np.int32), values.numpy(), np.full(count, top_k, np.int32))
    scores = ContinuationScores(
        rows=Rows(support=support, sampled=Values(sampled.numpy(), np.ones(count, np.bool_)))
    )
    return excess_surprise(
        LossBatch.from_scores(torch.zeros(count, 1), [rollout.token_ids], [scores])
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench_surprise", description=__doc__.splitlines()[0])
    parser.add_argument("teacher", type=Path, help="folder of sums-teacher")
    parser.add_argument("student", type=Path, help="folder of one of its students")
    parser.add_argument("--quick", action="store_true", help="few prompts, to see that it works")
    arguments = parser.parse_args()
    models = {"teacher": load(arguments.teacher), "student": load(arguments.student)}
    task = SumsTask()
    rows = draw_rows(task, 8 if arguments.quick else PROMPTS, SEED)
    figures: dict[str, float | None] = {}
    mistaken: dict[str, float] = {}
    for name, top_p in WRITERS:
        rollouts = write(models[name], rows, top_p)
        decode = models[name].tokenizer.decode
        words = [[decode([token]).strip() for token in one.token_ids.tolist()] for one in rollouts]
        firsts = [first_mistake(row, of) for row, of in zip(rows, words, strict=True)]
        wrong = [first < len(of) for first, of in zip(firsts, words, strict=True)]
        mistaken[f"{name}_top_p_{top_p}"] = float(np.mean(wrong))
        for top_k in TOP_K:
            excess = [excess_of(models["teacher"], one, top_k) for one in rollouts]
            for short, settings in WEIGHTS.items():
                before, after = left_out(TeacherSurprise(**settings), rollouts, excess, firsts)
                which = f"{name}_top_p_{top_p}_k_{top_k}{short}"
                figures |= {f"before_{which}": before, f"after_{which}": after}
    details = {"prompts": len(rows), "seed": SEED, "responses_with_a_mistake": mistaken}
    write_result("surprise", figures, details)


def left_out(
    weight: TeacherSurprise,
    rollouts: Sequence[Rollout],
    excess: Sequence[np.ndarray],
    firsts: Sequence[int],
) -> tuple[float, float | None]:
    """Shares of the rows up to the first mistakes, and after them, that have weight 0."""
    before, after = [], []
    for rollout, known, first in zip(rollouts, excess, firsts, strict=True):
        count = len(rollout.token_ids)
        facts = {"excess_surprise": known}
        of = weight(ResponseRows(rollout.token_ids, count, "student", np.zeros(count), facts))
        before.append(of[: first + 1] == 0)
        after.append(of[first + 1 :] == 0)
    later = np.concatenate(after)
    return float(np.concatenate(before).mean()), float(later.mean()) if len(later) else None


if __name__ == "__main__":
    main()
