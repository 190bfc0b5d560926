"""A run directory in the formats the trainer writes, with figures that are easy to follow."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from student_trainer.evaluation.files import save_evaluation
from student_trainer.evaluation.results import (
    ByPrompt,
    Evaluation,
    FullDivergence,
    Lengths,
    Sample,
    TeacherDescription,
)
from student_trainer.watch import files as kept_files

CONFIG = """
[run]
name = "a <b>run</b>"
output_dir = "runs/x"
[student]
model = "models/student"
[teacher]
name = "default"
[loss]
kind = "lsm"
top_k = 32
[rollout]
top_p = 0.9
"""
TEACHER = TeacherDescription(
    "default", "models/teacher", "transformers", "id-1", "w-1", "float32", "", "t-1", 320
)
HOSTILE = "<script>alert('x')</script> & <img src=x>"


# Of the teacher's probability down, of the student's across.
TABLE = [[40, 2, *[0] * 15], [0, 5, *[0] * 15], *([0] * 17 for _ in range(14)), [9, *[0] * 16]]


def step(number: int) -> dict[str, object]:
    return {
        "step": number,
        "loss": 2.0 / number,
        "tokens": 100 + number,
        "tokens_used": 100,
        "masked_tokens": number,
        "response_length_mean": 40.0 - number,
        "truncated_share": 0.5,
        "grad_norm": 3.0 / number,
        "clipped": number == 1,
        "lr": 1e-4,
        "rollout_seconds": 2.0,
        "teacher_wait_seconds": 1.0,
        "update_seconds": 1.5,
        "step_seconds": 4.5,
        "tokens_per_second": 22.0,
        "teacher_support_mass": 0.95,
        "student_support_mass": 0.8 if number > 1 else None,
        "sampled_in_support": 0.85,
        "top1_agreement_on_support": None,
        "student_entropy": 2.5,
        "log_ratio_mean": -1.5,
        "loss_by_position": [1.0, None if number == 1 else 0.5],
        "loop_tokens_share": 0.125,
        "longest_loop": 7 * number,
        "positive_share": 0.25,
        "responses_by_length": [0, 3, 1] if number > 1 else [0, 2],
        "log_ratio_by_position": [-1.0, None, -2.0],
        "signal_tokens_by_position": [50, 0, 6, *[0] * 14],
        "tokens_by_probabilities": TABLE,
        "teacher_identity": "id-1",
    }


def evaluation(kl: float, response: str, length: float) -> Evaluation:
    return Evaluation(
        prompts=4,
        frozen=FullDivergence(256, 0, 320, kl, kl / 2, 1 - kl / 4, by_prompt(kl)),
        fresh=FullDivergence(250, 0, 320, kl + 1, kl, 0.5),
        lengths=Lengths(4, length, 0.25),
        samples=(
            Sample("p1", "Say <hi>", response, 7, True),
            Sample("p2", "Second", "fine", 1, False),
        ),
        frozen_digest="f",
        teacher=TEACHER,
        seconds=10.0,
    )


def by_prompt(kl: float) -> ByPrompt:
    """Two prompts that both come closer to the teacher; by agreement, one of them."""
    agreement = (1.0, 0.75) if kl < 1 else (0.125, 0.875)
    sums = {
        "reverse_kl": (96 * kl, 160 * kl) if kl < 1 else (144 * kl, 112 * kl),
        "forward_kl": (128 * kl / 2, 128 * kl / 2),
        "agreement": tuple(128 * share for share in agreement),
    }
    return ByPrompt(("p1", "p2"), (128, 128), sums)


RECORD = {
    "place": 3, "origin": "student", "refused": "",
    "prompt": "Say <hi>", "loss": 1.5, "ids": [1, 2], "texts": ["ok", HOSTILE], "worst": [1],
    "losses": [0.5, 2.5], "finished": True, "text": f"ok{HOSTILE}",
    "teacher_log_probs": [-0.5, None], "student_log_probs": [-0.25, -1.0],
    "top_ids": [[1], [4]], "top_texts": [["ok"], ["no"]], "top_log_probs": [[-0.5], [-0.125]],
}  # fmt: skip


def write_run(folder: Path, *, evaluated: bool = True) -> Path:
    folder.mkdir()
    (folder / "config.toml").write_text(CONFIG)
    lines = [json.dumps(step(n)) + "\n" for n in (1, 2, 3)]
    (folder / "metrics.jsonl").write_text("".join(lines))
    kept_files.save(kept_files.file_of(folder / "rollouts", 3), [RECORD])
    (folder / "machine.json").write_text(json.dumps({"torch": "2.99"}))
    if evaluated:
        save_evaluation(evaluation(2.0, HOSTILE, 30.0), folder / "evaluation" / "before.json")
        save_evaluation(evaluation(0.5, "hi", 25.0), folder / "evaluation" / "after.json")
    return folder


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run")


@pytest.fixture
def unevaluated(tmp_path: Path) -> Path:
    return write_run(tmp_path / "bare", evaluated=False)
