"""Steps of the trainer on a GPU, beside a real teacher server on the same one."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import torch

from benchmarks.bench_teacher import server
from student_trainer.data import load_prompts
from student_trainer.loop import TrainingLoop
from student_trainer.rollout.engine import make_engine
from student_trainer.run.directory import RunDirectory
from student_trainer.settings.train import TrainConfig
from student_trainer.student.model import load_student
from student_trainer.teacher.teachers import Teachers

PHASES = ("rollout_seconds", "teacher_wait_seconds", "update_seconds", "step_seconds")


def measure_step(
    name: str,
    student: Path,
    teacher: Path,
    folder: Path,
    device: str,
    *,
    steps: int,
    prompts: int,
    tokens: int,
    lora: bool,
) -> tuple[dict[str, float | None], dict[str, Any]]:
    """Medians over ``steps`` steps after a first one, with 8 responses to each prompt.

    Args:
        prompts: of a step.
        tokens: of a response, at most; random weights end none early.
        lora: adapters of rank 16 are trained, and the weights are not.
    """
    folder.mkdir(parents=True)
    file = folder / "prompts.jsonl"
    texts = [f"Explain in your own words what the number {n} is known for." for n in range(64)]
    file.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    with server(teacher, device=device, dtype="bfloat16") as address:
        config = TrainConfig.model_validate(
            {
                "run": {"output_dir": str(folder / "run"), "steps": 100},
                "student": {
                    "model": str(student),
                    "device": device,
                    "dtype": "bfloat16",
                    "gradient_checkpointing": lora,
                    **({"lora": {"rank": 16}} if lora else {}),
                },
                "teacher": {"address": address},
                "data": {"train": str(file), "max_prompt_tokens": 64},
                "rollout": {
                    "prompts_per_step": prompts,
                    "group_size": 8,
                    "max_new_tokens": tokens,
                    "batch_size": 128,
                },
                "pipeline": {"staleness": 1},
                "optimizer": {"micro_batch_tokens": 16_384},
                "report": {"metric_rows": 0},
            }
        )
        loaded = load_student(config.student)
        sets = load_prompts(config.data, loaded.tokenizer)
        run = RunDirectory(config.run.output_dir)
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        with Teachers.connect(config, loaded) as teachers:
            loop = TrainingLoop(
                config, loaded, make_engine(loaded, config.rollout), teachers, sets, run
            )
            lines = []
            for _ in range(1 + steps):
                lines.append(loop.step())
                print({key: lines[-1][key] for key in ("step", *PHASES)}, flush=True)
            lines = lines[1:]
        peak = torch.cuda.max_memory_allocated() if device == "cuda" else None
    median = {key: statistics.median(line[key] for line in lines) for key in PHASES}
    rows = statistics.median(line["tokens"] for line in lines)
    details = {
        "prompts_per_step": prompts,
        "group_size": 8,
        "max_new_tokens": tokens,
        "lora": lora,
        "staleness": 1,
        "rows": rows,
        "losses": [line["loss"] for line in lines],
        "peak_bytes_of_the_trainer": peak,
        **median,
    }
    figures: dict[str, float | None] = {
        f"step_{name}_seconds": median["step_seconds"],
        f"step_{name}_rows_per_second": rows / median["step_seconds"],
    }
    return figures, details
