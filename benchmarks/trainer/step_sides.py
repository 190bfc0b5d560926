"""The two sides of ``compared``, each a program of its own: it prints READY, makes a step for
every line of its standard input, and prints the step's seconds.

    python -m benchmarks.trainer.step_sides ours|trl JOB.json
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# The quickstart's: a step of 32 answers to 16 prompts, which is one update.
PROMPTS, GROUP, LONGEST = 16, 2, 40
# Sequences of a micro-batch of TRL's, and as many tokens for ours.
MICRO_BATCH, MICRO_BATCH_TOKENS = 8, 8 * 88
LEARNING_RATE, SEED = 1e-4, 0


def ours(job: dict[str, Any]) -> Iterator[Callable[[], None]]:
    """A step of the trainer's loop, with its teacher in a process of its own."""
    from functools import partial

    from benchmarks.trainer.lengths import ForcedDrawing, endless
    from student_trainer.data import load_prompts
    from student_trainer.loop import TrainingLoop
    from student_trainer.quickstart.server import TeacherProcess
    from student_trainer.rollout import generate
    from student_trainer.rollout.engine import make_engine
    from student_trainer.run.directory import RunDirectory
    from student_trainer.settings.train import TrainConfig
    from student_trainer.student.model import load_student
    from student_trainer.teacher.teachers import Teachers

    folder = Path(job["folder"])
    teacher = TeacherProcess(
        model=Path(job["teacher"]),
        log=folder / "server.log",
        ready_file=folder / "ready.json",
        arguments=("--engine", "transformers", "--device", "cpu", "--dtype", "float32"),
    )
    with teacher:
        config = TrainConfig.model_validate(
            {
                "run": {"output_dir": str(folder / "run"), "steps": 10_000, "seed": SEED},
                "student": {"model": job["student"], "device": "cpu", "dtype": "float32"},
                "teacher": {"address": teacher.grpc_address, "timeout_seconds": 300.0},
                "data": {"train": job["prompts"], "max_prompt_tokens": 200},
                "rollout": {
                    "prompts_per_step": PROMPTS,
                    "group_size": GROUP,
                    "max_new_tokens": LONGEST,
                    "batch_size": PROMPTS * GROUP,
                    "top_p": 0.9,
                },
                "pipeline": {"send": "group"},
                "loss": {"top_k": 256},
                "optimizer": {"lr": LEARNING_RATE, "micro_batch_tokens": MICRO_BATCH_TOKENS},
                "evaluation": {"prompts": 0},
                "report": {"metric_rows": 0},
            }
        )
        student = endless(load_student(config.student))
        prompts = load_prompts(config.data, student.tokenizer)
        lengths = iter(job["lengths"] * 10_000)
        # Every response has the next length of the list when it begins.
        forced = _Next(lengths)
        generate.Drawing = partial(ForcedDrawing, lengths=forced)  # type: ignore[misc,assignment]
        with Teachers.connect(config, student) as teachers:
            engine = make_engine(student, config.rollout)
            loop = TrainingLoop(
                config, student, engine, teachers, prompts, RunDirectory(config.run.output_dir)
            )

            def step() -> None:
                forced.clear()
                loop.step()

            yield step


class _Next(dict[Any, int]):
    """The length of a response: the next one of a list when it is first asked for."""

    def __init__(self, lengths: Iterator[int]) -> None:
        super().__init__()
        self._lengths = lengths

    def __missing__(self, key: Any) -> int:
        self[key] = next(self._lengths)
        return self[key]


def trl(job: dict[str, Any]) -> Iterator[Callable[[], None]]:
    """A step of TRL's DistillationTrainer, with its teacher in the same process."""
    import torch
    from datasets import Dataset
    from transformers import (
        AutoModelForCausalLM,
        AutoTokenizer,
        LogitsProcessorList,
        TrainerCallback,
    )
    from trl import DistillationConfig, DistillationTrainer

    from benchmarks.trainer.lengths import ForcedEnds
    from student_trainer.data.order import PromptOrder

    rows = [json.loads(line) for line in Path(job["prompts"]).read_text().splitlines()]
    order = PromptOrder(SEED, len(rows)).take(0, len(rows))
    each = [{"prompt": rows[n]["messages"]} for n in order for _ in range(GROUP)]
    tokenizer = AutoTokenizer.from_pretrained(job["student"])
    student, teacher = (
        AutoModelForCausalLM.from_pretrained(job[side], dtype=torch.float32)
        for side in ("student", "teacher")
    )
    plain = student.generate

    def forced(*arguments: Any, **named: Any) -> Any:
        ends = ForcedEnds(job["lengths"], [tokenizer.eos_token_id])
        return plain(*arguments, **named, logits_processor=LogitsProcessorList([ends]))

    student.generate = forced
    trainer = DistillationTrainer(
        student,
        teacher,
        DistillationConfig(
            output_dir=str(Path(job["folder"]) / "trl"),
            max_steps=10_000,
            per_device_train_batch_size=MICRO_BATCH,
            gradient_accumulation_steps=PROMPTS * GROUP // MICRO_BATCH,
            learning_rate=LEARNING_RATE,
            max_completion_length=LONGEST,
            temperature=1.0,
            top_p=0.9,
            gradient_checkpointing=False,
            shuffle_dataset=False,
            logging_steps=10_000,
            save_strategy="no",
            report_to="none",
            bf16=False,
            use_cpu=True,
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list(each * 50),
        processing_class=tokenizer,
    )

    class Told(TrainerCallback):  # type: ignore[misc]
        """TRL steps in its own loop: a step begins when a line is read."""

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            _wait()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            _tell()

    trainer.add_callback(Told())
    trainer.train()
    yield lambda: None


_STARTED = [0.0]


def _wait() -> None:
    if not sys.stdin.readline():
        raise SystemExit(0)
    _STARTED[0] = time.perf_counter()


def _tell() -> None:
    print(json.dumps({"seconds": time.perf_counter() - _STARTED[0]}), flush=True)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps standard output for the answers."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    yield


def main() -> None:
    side, path = sys.argv[1:]
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    job = json.loads(Path(path).read_text())
    with _quiet():
        for step in {"ours": ours, "trl": trl}[side](job):
            while True:
                _wait()
                step()
                _tell()


if __name__ == "__main__":
    main()
