"""What the parts of a training step take: rollouts, updates, and a whole step against TRL's.

Figures:
    continuous_speedup   the trainer's own engine over transformers' ``generate`` in batches that
                         wait for their longest: 128 responses in 32 slots, lengths lognormal,
                         longest/mean 3.8. ``continuous_theory``: the ratio of forward passes
    rollout_speedup, rollout_speedup_equal
                         vLLM over the same ``generate``, the hand-over of the weights included;
                         the second with equal lengths. ``rollout_theory``: as above
    rollout_log_prob_gap_DTYPE
                         nats by which vLLM's log-probabilities differ from the trainer's own, the
                         largest mean of as many tokens as a batch is checked by
    packing_efficiency   speedup of packed updates over padded ones, over padded/real tokens
    update_*             an update with activations recomputed, or under bfloat16 autocast, over a
                         plain one: seconds, and memory of the micro-batches; and the plain one's
                         time by its parts (benchmarks/trainer/update.py)
    step_over_trl_SHAPE, pss_over_trl_SHAPE
                         a step's seconds, and the memory of all processes, of TRL's
                         DistillationTrainer with its teacher in process over ours with its
                         teacher's process

Sides alternate. A part that cannot run here is skipped, and its reason is in the details.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.harness import write_result

ROOT = Path(__file__).parents[1]
# The environment that has vLLM (make test-vllm).
VLLM_PYTHON = ROOT / ".venv-vllm" / "bin" / "python"


def with_vllm(name: str, model: Path, *arguments: str) -> dict[str, Any]:
    """What a program of ``benchmarks.trainer`` measures in the environment that has vLLM."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "figures.json"
        command = [str(VLLM_PYTHON), "-m", f"benchmarks.trainer.{name}"]
        command += ["--model", str(model), "--json", str(result), *arguments]
        subprocess.run(command, cwd=ROOT, check=True)
        found: dict[str, Any] = json.loads(result.read_text())
    return found


def vllm_rollouts(quick: bool) -> dict[str, Any]:
    if not VLLM_PYTHON.exists():
        return NO_VLLM
    from benchmarks.trainer.shapes import rollout_student

    found = with_vllm("vllm_rollouts", rollout_student(), "--repetitions", "1" if quick else "3")
    names = {
        "speedup": "rollout_speedup",
        "speedup_equal": "rollout_speedup_equal",
        "theory": "rollout_theory",
    }
    figures = {figure: found[name] for name, figure in names.items()}
    return {"figures": figures, "details": found["details"]}


def log_prob_gap(quick: bool) -> dict[str, Any]:
    if not VLLM_PYTHON.exists():
        return NO_VLLM
    from student_trainer.quickstart.prepare import smollm2_dir

    prompts = "2" if quick else "8"
    found = with_vllm("log_prob_gap", smollm2_dir(print), "--eager", "--prompts", prompts)
    figures = {f"rollout_log_prob_gap_{dtype}": own["largest"] for dtype, own in found.items()}
    return {"figures": figures, "details": found}


def module(name: str) -> Callable[[bool], dict[str, Any]]:
    """The part that a module of ``benchmarks.trainer`` measures."""

    def measure(quick: bool) -> dict[str, Any]:
        found: dict[str, Any] = import_module(f"benchmarks.trainer.{name}").measure(quick)
        return found

    return measure


def skipped(reason: str) -> dict[str, Any]:
    return {"figures": {}, "details": {"skipped": reason}}


NO_VLLM = skipped(f"there is no {VLLM_PYTHON.relative_to(ROOT)}: run make test-vllm")
# Each gives its ``figures`` and ``details``.
PARTS: Mapping[str, Callable[[bool], dict[str, Any]]] = {
    "continuous": module("continuous"),
    "vllm": vllm_rollouts,
    "gap": log_prob_gap,
    "packing": module("packing"),
    "update": module("update"),
    "trl": module("compared"),
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench_trainer", description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--quick", action="store_true", help="once each, to see that it works")
    parser.add_argument("--name", default="trainer", help="of the result's file")
    arguments = parser.parse_args()
    figures: dict[str, float | None] = {}
    details: dict[str, Any] = {}
    for part in arguments.parts:
        start = time.monotonic()
        found = PARTS[part](arguments.quick)
        figures |= found["figures"]
        details[part] = {**found["details"], "part_seconds": time.monotonic() - start}
        if "skipped" in found["details"]:
            print(f"{part}: skipped, {found['details']['skipped']}", flush=True)
    write_result(arguments.name, figures, details)


if __name__ == "__main__":
    main()
