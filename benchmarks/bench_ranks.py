"""Two ranks of one core each against one process of two cores: the same numbers, and their cost.

Figures:
    loss_difference        largest difference of a step's loss over 20 steps of the same responses,
                           at a learning rate of 1e-4
    update_adamw, update_sgd
                           2-norm of the difference of the two total updates over that of one
    moved_loss_difference, moved_adamw, moved_sgd
                           the same of a run that goes from 2 ranks to 1 and back to 2
    update_time, rollout_time
                           seconds of an update and of a step's rollouts, two ranks over one
                           process; micro-batches of 2,048 tokens on each rank
    memory_a_rank          bytes of the tensors that a rank holds between updates, over those of
                           the one process
    memory_error           largest share by which the estimate of ``doctor --ranks`` is wrong
                           about the peak of resident memory, for three sizes of students on one
                           and on two ranks

Every run is the whole program with its teacher in a process of its own. Responses are the same on
both sides where they are answers of the data. Sides alternate. With SGD the rate is 0.5: at 1e-4
a float32 weight moves by a few times its last bit, and rounding is all that would be compared.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.harness import median_ratio, write_result
from benchmarks.ranks.runs import Runs, Side, llama, update_distance, weights
from student_trainer.commands.estimate import estimated_memory
from student_trainer.commands.estimate_ranks import rank_memory
from student_trainer.student.model import load_student

STEPS, CHANGES = 20, (7, 14)
SGD_RATE = 0.5
# Of the runs whose numbers are compared: small, so that twenty steps take seconds.
NUMBERS: Mapping[str, Mapping[str, Any]] = {
    "rollout": {"prompts_per_step": 8, "group_size": 2, "max_new_tokens": 96, "batch_size": 16},
    "data": {"columns": {"response": "response"}},
    "mixing": {"cold_start_steps": STEPS},
    "optimizer": {"micro_batch_tokens": 320, "updates_per_batch": 2},
    "checkpoint": {"every": STEPS},
}
COST: Mapping[str, Mapping[str, Any]] = {
    "rollout": {"prompts_per_step": 8, "group_size": 4, "max_new_tokens": 224, "batch_size": 32},
    "optimizer": {"micro_batch_tokens": 2048},
    "checkpoint": {"every": 1000},
}
# Widths and layers: 10, 22 and 52 million parameters.
SIZES = ((384, 6), (576, 6), (768, 8))
# Short responses: parameters, gradients and moments are most of the memory.
SHORT: Mapping[str, Mapping[str, Any]] = {
    "rollout": {"prompts_per_step": 4, "group_size": 2, "max_new_tokens": 32, "batch_size": 16},
    "optimizer": {"micro_batch_tokens": 128},
    "checkpoint": {"every": 1000},
}


def numbers(folder: Path, quick: bool) -> dict[str, Any]:
    """Losses and updates on the same responses."""
    student, teacher = llama(folder / "student", 96, 4, 1), llama(folder / "teacher", 96, 4, 2)
    start, figures, details = weights(student), {}, {}
    # Small tensors: a second thread would only wait.
    with Runs(folder, student, teacher, NUMBERS, cores=1) as runs:

        def made(name: str, ranks: int, sgd: float | None) -> Side:
            return runs.make(runs.config(name, run={"steps": STEPS}), ranks, sgd)

        def moved(name: str, sgd: float | None) -> Side:
            for steps, ranks in zip((*CHANGES, STEPS), (2, 1, 2), strict=True):
                side = runs.make(runs.config(name, run={"steps": steps}), ranks, sgd)
            return side

        for optimizer, sgd in (("adamw", None), ("sgd", SGD_RATE)):
            one = made(f"one-{optimizer}", 1, sgd)
            others = {"": made(f"two-{optimizer}", 2, sgd)}
            if not quick:
                others["moved_"] = moved(f"moved-{optimizer}", sgd)
            for prefix, side in others.items():
                apart = [abs(a - b) for a, b in zip(one.losses, side.losses, strict=True)]
                name = f"{prefix or 'update_'}{optimizer}"
                figures[name] = update_distance(start, one.weights(), side.weights())
                details[f"{name}_loss_differences"] = apart
                if optimizer == "adamw":
                    figures[f"{prefix}loss_difference"] = max(apart)
            details[f"{optimizer}_losses"] = one.losses
    return {"figures": figures, "details": details}


def cost(folder: Path, quick: bool) -> dict[str, Any]:
    """Seconds and memory of steps in which the student writes."""
    student, teacher = llama(folder / "student", 576, 6, 1), llama(folder / "teacher", 96, 2, 2)
    sides: dict[int, list[Side]] = {1: [], 2: []}
    with Runs(folder, student, teacher, COST) as runs:
        for repetition in range(1 if quick else 3):
            for ranks in (1, 2) if repetition % 2 == 0 else (2, 1):
                config = runs.config(f"{ranks}-{repetition}", run={"steps": 2 if quick else 4})
                sides[ranks].append(runs.make(config, ranks))

    def seconds(ranks: int, part: str) -> list[float]:
        return [side.seconds(part) for side in sides[ranks]]

    def cpu(ranks: int) -> list[float]:
        """CPU seconds of the updates of all ranks but for the first."""
        return [sum(sum(f["update_cpu_seconds"][1:]) for f in s.facts) for s in sides[ranks]]

    one, two = sides[1][-1], sides[2][-1]
    figures = {
        "update_time": median_ratio(seconds(2, "update"), seconds(1, "update")),
        "rollout_time": median_ratio(seconds(2, "rollout"), seconds(1, "rollout")),
        "memory_a_rank": two.held / one.held,
    }
    details = {
        "seconds": {
            part: {str(ranks): seconds(ranks, part) for ranks in sides}
            for part in ("update", "rollout", "teacher_wait", "step")
        },
        "update_cpu_seconds": {str(ranks): cpu(ranks) for ranks in sides},
        "held_bytes": {str(r): [f["held"][-1] for f in s[-1].facts] for r, s in sides.items()},
        "peak_bytes": {str(r): s[-1].peak for r, s in sides.items()},
        "tokens": [line["tokens"] for line in one.lines],
        "losses": {str(r): s[-1].losses for r, s in sides.items()},
    }
    return {"figures": figures, "details": details}


def memory(folder: Path, quick: bool) -> dict[str, Any]:
    """Peaks of resident memory against what ``doctor`` estimates, for students of three sizes."""
    errors, details = [], {}
    teacher = llama(folder / "teacher", 96, 2, 2)
    for hidden, layers in SIZES[:1] if quick else SIZES:
        student = llama(folder / f"student-{hidden}", hidden, layers, 1)
        (folder / f"runs-{hidden}").mkdir()
        with Runs(folder / f"runs-{hidden}", student, teacher, SHORT, cores=1) as runs:
            loaded = load_student(runs.config("1").student)
            for ranks in (1, 2):
                config = runs.config(str(ranks), run={"steps": 2})
                side = runs.make(config, ranks)
                whole = estimated_memory(config, loaded)
                estimated = whole if ranks == 1 else rank_memory(config, loaded, ranks)
                errors.append(abs(estimated.peak / side.peak - 1))
                details[f"{hidden}x{layers}_ranks_{ranks}"] = {
                    "parameters": sum(p.numel() for p in loaded.module.parameters()),
                    "held_bytes": side.held,
                    "peak_bytes": side.peak,
                    "estimated_peak_bytes": estimated.peak,
                    "estimated": asdict(estimated),
                }
    return {"figures": {"memory_error": max(errors)}, "details": details}


# Each gives its ``figures`` and ``details``.
PARTS: Mapping[str, Callable[[Path, bool], dict[str, Any]]] = {
    "numbers": numbers,
    "cost": cost,
    "memory": memory,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench_ranks", description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--quick", action="store_true", help="once each, to see that it works")
    parser.add_argument("--name", default="ranks", help="of the result's file")
    arguments = parser.parse_args()
    figures: dict[str, float | None] = {}
    details: dict[str, Any] = {}
    for part in arguments.parts:
        start = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            found = PARTS[part](Path(folder), arguments.quick)
        figures |= found["figures"]
        details[part] = {**found["details"], "part_seconds": time.monotonic() - start}
    write_result(arguments.name, figures, details)


if __name__ == "__main__":
    main()
