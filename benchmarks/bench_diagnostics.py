"""What the diagnostics of a step add to it (docs/diagnostics.md).

The quickstart's student and shape: 32 responses that it writes to 16 prompts, four updates and
K = 256. The teacher's scores are random. The sides make the updates of a step in turns, on one
student:

    without    no metrics of the whole vocabulary, no signal, no loops, no line of metrics
    rows       the signal, loops, and the line of metrics
    with       the metrics of the whole vocabulary, the signal, loops, and the line of metrics

Metrics that a loss on a support gives of all rows are in every side; the loss by position, the
watch over the support and trackers, which come after the updates, are in none.

Figures:
    update_overhead             seconds of ``with`` over those of ``without``, less 1; the median
                                of the pairs
    without_whole_vocabulary    the same of ``rows``
    step_overhead               ``update_overhead`` of the updates' share of a step, which is here
                                the updates and the writing of the responses
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from unittest import mock

import numpy as np
from teacher_proto.rows import Rows, Support, Values
from teacher_proto.types import ContinuationScores

from benchmarks.harness import alternate, median_ratio, write_result
from benchmarks.trainer.shapes import QUESTIONS, rollout_student
from student_trainer.data import load_prompts
from student_trainer.diagnostics.responses import responses_of
from student_trainer.rollout.base import Rollout
from student_trainer.rollout.generate import generate
from student_trainer.settings.train import TrainConfig
from student_trainer.student.model import load_student
from student_trainer.update import metrics
from student_trainer.update.updater import Updater, split

PROMPTS, GROUP, LONGEST, UPDATES, TOP_K, METRIC_ROWS = 16, 2, 48, 4, 256, 64


def settings(student: Path, folder: Path, metric_rows: int) -> TrainConfig:
    return TrainConfig.model_validate(
        {
            "run": {"output_dir": str(folder / "run"), "steps": 10_000},
            "student": {"model": str(student), "device": "cpu", "dtype": "float32"},
            "teacher": {"address": "localhost:1"},
            "data": {"train": str(QUESTIONS), "max_prompt_tokens": 160},
            "rollout": {
                "prompts_per_step": PROMPTS,
                "group_size": GROUP,
                "max_new_tokens": LONGEST,
                "batch_size": PROMPTS * GROUP,
            },
            "loss": {"top_k": TOP_K},
            "optimizer": {
                "lr": 1e-12,
                "micro_batch_tokens": 1024,
                "updates_per_batch": UPDATES,
                "clip_norm": 10.0,
            },
            "report": {"metric_rows": metric_rows},
        }
    )


def random_scores(rollouts: Sequence[Rollout], ids: int) -> list[ContinuationScores]:
    """Scores of every row of the rollouts, with ids below ``ids``."""
    rng = np.random.default_rng(0)
    found = []
    for rollout in rollouts:
        count = len(rollout.token_ids)
        chosen = np.stack([rng.choice(ids, TOP_K, replace=False) for _ in range(count)])
        log_probs = np.log(np.sort(rng.dirichlet(np.ones(TOP_K), count))[:, ::-1])
        support = Support(
            chosen.astype(np.int32), log_probs.astype(np.float32), np.full(count, TOP_K, np.int32)
        )
        sampled = -rng.exponential(1.0, count).astype(np.float32)
        values = Values(sampled, np.ones(count, np.bool_))
        found.append(ContinuationScores(rows=Rows(support=support, sampled=values)))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench_diagnostics", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--quick", action="store_true", help="one round, to see that it works")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder, model = Path(name), rollout_student()
        plain, full = (settings(model, folder, rows) for rows in (0, METRIC_ROWS))
        student = load_student(full.student)
        updater = Updater(student, full)
        prompts = load_prompts(full.data, student.tokenizer).train[:PROMPTS]

        def write(step: int) -> list[Rollout]:
            return generate(student, prompts, full.rollout, seed=0, step=step)

        writing = []
        for step in range(1 if arguments.quick else 4):
            start = time.perf_counter()
            rollouts = write(step)
            writing.append(time.perf_counter() - start)
        scores = random_scores(rollouts, student.drawn_below)

        def updates(config: TrainConfig, step: int) -> metrics.UpdateTotals:
            updater.config = config
            totals = metrics.UpdateTotals()
            for part in split(len(rollouts), UPDATES):
                of_part = scores[part]
                updater.update(rollouts[part], of_part.__getitem__, totals, step)
            return totals

        def side(
            config: TrainConfig,
            around: Callable[[], AbstractContextManager[object]],
            *,
            told: bool = True,
        ) -> Callable[[int], None]:
            def run(step: int) -> None:
                with around():
                    totals = updates(config, step + 100)
                    if told:
                        json.dumps(metrics.step_metrics(totals, responses_of(rollouts)))

            return run

        def silent() -> AbstractContextManager[object]:
            return mock.patch.object(metrics, "_add_signal", return_value=None)

        sides = {
            "without": side(plain, silent, told=False),
            "rows": side(plain, contextlib.nullcontext),
            "with": side(full, contextlib.nullcontext),
        }
        quick = arguments.quick
        seconds = alternate(sides, 1 if quick else arguments.rounds, warmup=0 if quick else 1)
    overhead = median_ratio(seconds["with"], seconds["without"]) - 1
    updating = statistics.median(seconds["without"])
    share = updating / (updating + statistics.median(writing))
    write_result(
        "diagnostics",
        {
            "update_overhead": overhead,
            "without_whole_vocabulary": median_ratio(seconds["rows"], seconds["without"]) - 1,
            "step_overhead": overhead * share,
        },
        {
            "seconds": seconds,
            "writing_seconds": writing,
            "responses": len(rollouts),
            "tokens": sum(len(one.token_ids) for one in rollouts),
            "updates": UPDATES,
            "metric_rows": METRIC_ROWS,
            "top_k": TOP_K,
        },
    )


if __name__ == "__main__":
    main()
