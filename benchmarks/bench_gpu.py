"""The whole pair of programs on one GPU: `make bench-gpu`. Random weights of real shapes.

Figures:
    loss_full_over_gathered, loss_liger_over_gathered
                          seconds of full logits, and of Liger's fused divergence over the
                          whole vocabulary, over ours: forward and backward of 8,192 rows at
                          the head of a 7B shape, K = 64, bfloat16, the head trained
    loss_full_memory_over_gathered, loss_liger_memory_over_gathered
                          the same of peak extra bytes
    engine_SHAPE_rows_per_second
                          rows that the transformers engine scores through the service
    step_NAME_seconds, step_NAME_rows_per_second
                          one step of the trainer beside a 7B teacher on the same GPU: a 0.5B
                          student wholly trained (``0.5B``), a 7B student with adapters (``7B``)
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.engine import measure_engine
from benchmarks.gpu.loss import measure_loss
from benchmarks.gpu.models import make_model
from benchmarks.gpu.step import measure_step
from benchmarks.harness import RESULTS, write_result

PARTS = ("loss", "engine", "step")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument(
        "--tiny", action="store_true", help="try the program out on tiny models; writes no result"
    )
    parser.add_argument("--tokenizer", type=Path, help="Qwen2.5's tokenizer.json")
    parser.add_argument("--folder", type=Path, help="for the models; 18 GB, removed at the end")
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not arguments.tiny:
        raise SystemExit("there is no GPU: nothing is measured")
    figures, details = _before()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        for part in arguments.parts:
            found, more = _measure(part, Path(name), arguments, device)
            figures, details = figures | found, details | {part: more}
            if not arguments.tiny:
                write_result("gpu", figures, details)
    print(json.dumps({"figures": figures, "details": details}, indent=1))


def _before() -> tuple[dict[str, float | None], dict[str, Any]]:
    """What earlier calls on this machine and commit measured, so that parts add up."""
    from benchmarks.harness import commit, machine

    path = RESULTS / "gpu.json"
    if not path.exists():
        return {}, {}
    found = json.loads(path.read_text())
    if (found["machine"], found["commit"]) != (machine(), commit()):
        return {}, {}
    return found["figures"], found["details"]


def _measure(
    part: str, folder: Path, arguments: argparse.Namespace, device: str
) -> tuple[dict[str, float | None], dict[str, Any]]:
    if part == "loss":
        return measure_loss(device, arguments.repetitions)
    shapes = ("tiny",) if arguments.tiny else ("0.5B", "7B")
    tokenizer = arguments.tokenizer or _published()
    models = {
        shape: folder / shape
        if (folder / shape).exists()
        else make_model(shape, folder / shape, tokenizer, device)
        for shape in shapes
    }
    if device == "cuda":
        torch.cuda.empty_cache()
    figures: dict[str, float | None] = {}
    details: dict[str, Any] = {}
    if part == "engine":
        for shape, model in models.items():
            sizes = (2, 32, 2, 16) if arguments.tiny else (8, 512, 8, 512)
            repetitions = arguments.repetitions
            found, details[shape] = measure_engine(shape, model, device, repetitions, sizes)
            figures |= found
        return figures, details
    tokens = 4 if arguments.tiny else 128
    for shape, model in models.items():
        teacher = models[shapes[-1]]
        found, details[shape] = measure_step(
            shape, model, teacher, folder / f"step {shape}", device,
            steps=1 if arguments.tiny else 2, prompts=1 if arguments.tiny else 16,
            tokens=tokens, lora=shape != "0.5B",
        )  # fmt: skip
        figures |= found
    return figures, details


def _published() -> Path:
    from tests.realign.real_tokenizers import published_files

    return published_files("qwen2_5")[0]


if __name__ == "__main__":
    main()
