"""One process of a side: ``student-trainer train`` itself, which also says what its memory was.

    python -m benchmarks.ranks.side RUN.toml FACTS [--sgd RATE]

It writes FACTS/rank-R.json: bytes of the tensors that the process holds after each step, its
resident memory then, the most of it and that before the student was there, and its CPU seconds.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from teacher_proto.program.entrypoint import run_program

from student_trainer import cli
from student_trainer.pipeline import Pipeline
from student_trainer.update.optim import Optimizer
from student_trainer.update.updater import Updater


def held_bytes() -> int:
    """Bytes of the storages of every tensor that is alive, each counted once. Of a sharded
    tensor that is this rank's shard."""
    sizes: dict[int, int] = {}
    for found in gc.get_objects():
        if type(found) not in (torch.Tensor, torch.nn.Parameter):
            found = getattr(found, "_local_tensor", None) if _is_sharded(found) else None
        if isinstance(found, torch.Tensor) and found.layout == torch.strided:
            storage = found.untyped_storage()
            sizes[storage.data_ptr()] = storage.nbytes()
    return sum(sizes.values())


def _is_sharded(value: object) -> bool:
    return type(value).__name__ == "DTensor" or (
        isinstance(value, torch.nn.Parameter) and hasattr(value, "_local_tensor")
    )


def resident(key: str) -> int:
    """Bytes of this process's memory as the kernel counts them (``VmRSS``, ``VmHWM``)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {key}")


def record(facts: dict[str, Any]) -> None:
    """Has the process say what it holds after each step, where no time of the step is counted,
    and what of the processor each update took."""
    update, drop = Updater.update, Pipeline.drop

    def timed(self: Updater, *arguments: Any, **named: Any) -> None:
        started = time.process_time()
        update(self, *arguments, **named)
        facts["update_cpu_seconds"].append(time.process_time() - started)

    def dropped(self: Pipeline, *arguments: Any, **named: Any) -> None:
        drop(self, *arguments, **named)
        gc.collect()
        facts["held"].append(held_bytes())
        facts["resident"].append(resident("VmRSS"))

    Updater.update = timed  # type: ignore[method-assign]
    Pipeline.drop = dropped  # type: ignore[method-assign]


def with_sgd(rate: float) -> None:
    """Has the optimiser make plain steps at this rate, in place of AdamW's."""
    original = Optimizer.__init__

    def make(self: Optimizer, *arguments: Any, **named: Any) -> None:
        original(self, *arguments, **named)
        parameters = [p for group in self.adamw.param_groups for p in group["params"]]
        self.adamw = torch.optim.SGD(parameters, lr=rate)  # type: ignore[assignment]
        step = self.step
        self.step = lambda _: step(rate)  # type: ignore[method-assign]

    Optimizer.__init__ = make  # type: ignore[method-assign]


def main() -> int:
    parser = argparse.ArgumentParser(prog="side")
    parser.add_argument("config")
    parser.add_argument("facts", type=Path)
    parser.add_argument("--sgd", type=float)
    arguments = parser.parse_args()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    # Whatever the run needs is imported before the memory is read.
    import peft  # noqa: F401
    import transformers.models.llama.modeling_llama  # noqa: F401

    import student_trainer.train  # noqa: F401

    facts: dict[str, Any] = {
        "held": [],
        "resident": [],
        "update_cpu_seconds": [],
        "resident_before": resident("VmRSS"),
    }
    record(facts)
    if arguments.sgd is not None:
        with_sgd(arguments.sgd)
    code = run_program(cli.run, ["train", arguments.config])
    facts["peak"] = resident("VmHWM")
    facts["cpu_seconds"] = time.process_time()
    arguments.facts.mkdir(parents=True, exist_ok=True)
    name = f"rank-{os.environ.get('RANK', '0')}.json"
    (arguments.facts / name).write_text(json.dumps(facts))
    return code


if __name__ == "__main__":
    sys.exit(main())
