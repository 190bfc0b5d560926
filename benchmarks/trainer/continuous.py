"""The trainer's own engine against transformers' ``generate`` in batches that wait for their
longest response: the same student, draws and forced lengths."""

from __future__ import annotations

from typing import Any

import numpy as np
from teacher_proto.types import TokenPrompt

from benchmarks.harness import alternate, median_ratio
from benchmarks.trainer.lengths import ForcedDrawing, endless, lognormal_lengths, passes
from benchmarks.trainer.shapes import rollout_student
from benchmarks.trainer.static_generate import static_generate
from student_trainer.rollout.base import PromptItem, Rollout
from student_trainer.rollout.continuous import write_continuously
from student_trainer.rollout.engine import response_keys
from student_trainer.settings.rollout import RolloutSettings
from student_trainer.settings.student import StudentSettings
from student_trainer.student.model import load_student

RESPONSES, SLOTS, GROUP, PROMPT = 128, 32, 8, 32
LONGEST, MEAN = 152, 40


def measure(quick: bool) -> dict[str, Any]:
    """``continuous_speedup``, and beside it the ratio of forward passes."""
    folder = rollout_student()
    student = endless(
        load_student(StudentSettings(model=str(folder), dtype="float32", device="cpu"))
    )
    settings = RolloutSettings(group_size=GROUP, batch_size=SLOTS, max_new_tokens=LONGEST)
    ids = np.random.default_rng(9).integers(100, 30_000, (RESPONSES // GROUP, PROMPT))
    prompts = [
        PromptItem(f"p{n}", row, TokenPrompt(row)) for n, row in enumerate(ids.astype(np.int32))
    ]
    keys = response_keys(prompts, GROUP)
    lengths = lognormal_lengths(RESPONSES, longest=LONGEST, mean=MEAN)
    forced = {(key.prompt.prompt_id, key.index): of for key, of in zip(keys, lengths, strict=True)}

    def continuous(seed: int) -> None:
        drawing = ForcedDrawing(student, settings, seed, 1, SLOTS, lengths=forced)
        found: list[tuple[int, Rollout]] = []
        write_continuously(student, keys, drawing, found.extend)
        assert [len(r.token_ids) for _, r in sorted(found, key=lambda one: one[0])] == lengths

    def generate(seed: int) -> None:
        static_generate(student, prompts, settings, lengths, seed=seed, step=1)

    seconds = alternate(
        {"continuous": continuous, "generate": generate},
        1 if quick else 3,
        warmup=0 if quick else 1,
    )
    static, full = passes(lengths, SLOTS)
    return {
        "figures": {
            "continuous_speedup": median_ratio(seconds["generate"], seconds["continuous"]),
            "continuous_theory": static / full,
        },
        "details": {
            "seconds": seconds,
            "model": folder.name,
            "responses": RESPONSES,
            "slots": SLOTS,
            "group": GROUP,
            "prompt_tokens": PROMPT,
            "tokens": sum(lengths),
            "longest_over_mean": LONGEST * RESPONSES / sum(lengths),
            "passes_of_generate": static,
        },
    }
