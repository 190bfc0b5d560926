"""What the parts of a training step take: rollouts, updates, and a whole step against TRL's.

Figures:
    continuous_speedup   the trainer's own engine over transformers' ``generate`` in batches that
                         wait for their longest: 128 responses in 32 slots, lengths lognormal,
                         longest/mean 3.8. ``continuous_theory``: the ratio of forward passes
    rollout_speedup, rollout_speedup_equal
                         vLLM over the same ``generate``, the hand-over of the weights included;
                         the second with equal lengths. ``rollout_theory``: as above
    packing_efficiency   speedup of packed updates over padded ones, over padded/real tokens
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


def vllm_rollouts(quick: bool) -> dict[str, Any]:
    """Measured in the environment that has vLLM."""
    if not VLLM_PYTHON.exists():
        return skipped(f"there is no {VLLM_PYTHON.relative_to(ROOT)}: run make test-vllm")
    from benchmarks.trainer.shapes import rollout_student

    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "figures.json"
        command = [str(VLLM_PYTHON), "-m", "benchmarks.trainer.vllm_rollouts"]
        command += ["--model", str(rollout_student()), "--json", str(result)]
        command += ["--repetitions", "1" if quick else "3"]
        subprocess.run(command, cwd=ROOT, check=True)
        found = json.loads(result.read_text())
    names = {
        "speedup": "rollout_speedup",
        "speedup_equal": "rollout_speedup_equal",
        "theory": "rollout_theory",
    }
    figures = {figure: found[name] for name, figure in names.items()}
    return {"figures": figures, "details": found["details"]}


def module(name: str) -> Callable[[bool], dict[str, Any]]:
    """The part that a module of ``benchmarks.trainer`` measures."""

    def measure(quick: bool) -> dict[str, Any]:
        found: dict[str, Any] = import_module(f"benchmarks.trainer.{name}").measure(quick)
        return found

    return measure


def skipped(reason: str) -> dict[str, Any]:
    return {"figures": {}, "details": {"skipped": reason}}


# Each gives its ``figures`` and ``details``.
PARTS: Mapping[str, Callable[[bool], dict[str, Any]]] = {
    "continuous": module("continuous"),
    "vllm": vllm_rollouts,
    "packing": module("packing"),
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
