"""How much of the teacher's time a step hides.

The trainer's own loop on a small random student (responses of many lengths) against
a real server over gRPC whose engine takes a set time: as long for a step's responses
as this process needs to write them and to update on them. Each round first measures
that time, then runs both bounds of staleness; medians over the rounds.

Figures, sums over the steps of a round:
    overlap_ratio_staleness_1, overlap_ratio_staleness_0
                          step time over the longer of (rollout + update) and scoring
    teacher_wait_share    share of the step time that waited for scores, staleness 1
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from benchmarks.harness import print_table, write_result
from student_trainer.data import load_prompts
from student_trainer.loop import TrainingLoop
from student_trainer.rollout.engine import make_engine
from student_trainer.run.directory import RunDirectory
from student_trainer.settings.train import TrainConfig
from student_trainer.student.model import Student, load_student
from student_trainer.teacher.teachers import Teachers
from tests.support.models import make_tiny_model

WARMUP = 2


def make_student(folder: Path) -> Path:
    """A random Llama some of whose responses end early."""
    make_tiny_model(
        folder, hidden_size=128, intermediate_size=256, num_hidden_layers=3, initializer_range=0.08
    )
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.lm_head.weight[model.config.eos_token_id] *= 2.5
    model.save_pretrained(folder)
    return folder


@contextmanager
def server(model: Path, rate: Path) -> Iterator[str]:
    """Address of a teacher server with the timed engine that is ready."""
    ready, log = rate.with_name("ready.json"), rate.with_name("log")
    command = [sys.executable, "-m", "benchmarks.step_teacher", "--seconds-per-token", str(rate)]
    command += ["--model", str(model), "--grpc-port", "0", "--http-port", "0"]
    with log.open("w") as sink:
        process = subprocess.Popen([*command, "--ready-file", str(ready)], stderr=sink)
    try:
        while not ready.exists():
            if process.poll() is not None:
                raise SystemExit(f"the server ended:\n{log.read_text()}")
            time.sleep(0.1)
        yield json.loads(ready.read_text())["grpc_address"]
    finally:
        process.terminate()
        process.wait()


def settings(model: Path, folder: Path, address: str, staleness: int) -> TrainConfig:
    return TrainConfig.model_validate(
        {
            "run": {"output_dir": str(folder / "run"), "steps": 10_000},
            "student": {"model": str(model), "device": "cpu"},
            "teacher": {"address": address},
            "data": {"train": str(folder / "prompts.jsonl"), "max_prompt_tokens": 64},
            "rollout": {
                "prompts_per_step": 6,
                "group_size": 4,
                "max_new_tokens": 64,
                "batch_size": 12,
                "top_p": 1.0,
            },
            "pipeline": {"staleness": staleness},
            "optimizer": {"lr": 1e-12, "micro_batch_tokens": 1024},
            "report": {"metric_rows": 0},
        }
    )


RUNS = itertools.count()


def steps(config: TrainConfig, student: Student, count: int) -> list[dict[str, Any]]:
    """Metrics lines of ``count`` steps after the warm-up, of a loop of its own.

    Every run has a name of its own: the server would answer equal requests of one
    run out of its replay window.
    """
    prompts = load_prompts(config.data, student.tokenizer)
    run = RunDirectory(config.run.output_dir)
    with Teachers.connect(config, student) as teachers:
        loop = TrainingLoop(
            config, student, make_engine(student, config.rollout), teachers, prompts, run
        )
        return [loop.step() for _ in range(WARMUP + count)][WARMUP:]


def total(lines: list[dict[str, Any]], *keys: str) -> float:
    return float(sum(line[key] for line, key in itertools.product(lines, keys)))


def overlap_ratio(lines: list[dict[str, Any]], seconds_per_token: float) -> float:
    own = total(lines, "rollout_seconds", "update_seconds")
    scoring = total(lines, "tokens") * seconds_per_token
    return total(lines, "step_seconds") / max(own, scoring)


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench_step", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=6)
    arguments = parser.parse_args()
    # One core computes, the other carries client and server.
    torch.set_num_threads(1)
    rounds: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rate = folder / "seconds-per-token"
        rate.write_text("0")
        texts = [f"What is the number after {n}?" for n in range(64)]
        (folder / "prompts.jsonl").write_text(
            "".join(json.dumps({"prompt": text}) + "\n" for text in texts)
        )
        model = make_student(folder / "student")
        student = load_student(settings(model, folder, "x:1", 0).student)
        with server(model, rate) as address:
            for _ in range(arguments.rounds):
                rate.write_text("0")
                free = steps(settings(model, folder, address, 0), student, arguments.steps)
                own = total(free, "rollout_seconds", "update_seconds")
                seconds = own / total(free, "tokens")
                rate.write_text(repr(seconds))
                figures = {"own_seconds": own / len(free), "seconds_per_token": seconds}
                for staleness in (0, 1):
                    config = settings(model, folder, address, staleness)
                    lines = steps(config, student, arguments.steps)
                    waited = total(lines, "teacher_wait_seconds") / total(lines, "step_seconds")
                    figures[f"ratio_{staleness}"] = overlap_ratio(lines, seconds)
                    figures[f"wait_share_{staleness}"] = waited
                    figures[f"step_seconds_{staleness}"] = total(lines, "step_seconds") / len(lines)
                rounds.append(figures)
    columns = list(rounds[0])
    print_table(columns, [[f"{r[c]:.4g}" for c in columns] for r in rounds])

    def median(key: str) -> float:
        return statistics.median(r[key] for r in rounds)

    write_result(
        "step",
        {
            "overlap_ratio_staleness_1": median("ratio_1"),
            "overlap_ratio_staleness_0": median("ratio_0"),
            "teacher_wait_share": median("wait_share_1"),
        },
        {"teacher_wait_share_staleness_0": median("wait_share_0"), "rounds": rounds},
    )


if __name__ == "__main__":
    main()
