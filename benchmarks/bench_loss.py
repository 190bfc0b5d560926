"""The loss's cost: gathered head rows against logits-then-gather.

The baseline is the faster way to go through full logits: one [T, V] product in
the parameters' dtype, the support gathered out of it, the loss on those K
columns, and autograd back through it. Both sides give the same loss and
gradients (checked here on the first repetition).

Figures: speedup_trainable, speedup_frozen (baseline seconds over ours, with the
same head trainability), memory_ratio (our peak extra memory over the
baseline's; the worse of trainable and frozen head), at V=151,936, H=1,536,
T=1,024, K=64 in bfloat16; the speed-ups again with everything in float32;
exponent_tokens, exponent_k, exponent_vocab_frozen: slopes of log seconds over log
size of our forward and backward with a frozen float32 head, by least squares over
the medians of four sizes each; liger_over_gathered: seconds of Liger's fused JSD
over the whole vocabulary over ours, null where its Triton kernels cannot run.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import statistics
import subprocess
import sys
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness import (
    alternate,
    median_ratio,
    peak_extra_bytes,
    print_table,
    write_result,
)
from student_trainer.losses import Head, LossBatch, LossSettings, lsm
from student_trainer.losses.parts.divergences import renormalise, reverse_kl


@dataclass(frozen=True)
class Size:
    vocabulary: int
    hidden: int
    dtype: torch.dtype = torch.bfloat16
    rows: int = 1024
    support: int = 64

    @property
    def name(self) -> str:
        return f"{self.vocabulary}x{self.hidden} {str(self.dtype).removeprefix('torch.')}"


LARGE = Size(151_936, 1_536)
# A CPU without bfloat16 units emulates the baseline's product; float32 shows
# what remains of the difference where it need not.
LARGE_FLOAT32 = Size(151_936, 1_536, torch.float32)
SMALL = Size(49_152, 576)
SIZES = {size.name: size for size in (LARGE, LARGE_FLOAT32, SMALL)}


# Each varies one size around a middle; the head is 75 to 600 MB of float32.
MIDDLE = Size(75_968, 1_024, torch.float32, rows=512, support=32)
SCALING = {
    "exponent_tokens": [replace(MIDDLE, rows=n) for n in (256, 512, 1024, 2048)],
    "exponent_k": [replace(MIDDLE, support=n) for n in (16, 32, 64, 128)],
    "exponent_vocab_frozen": [
        replace(MIDDLE, vocabulary=n) for n in (18_992, 37_984, 75_968, 151_936)
    ],
}
SCALED = {
    "exponent_tokens": "rows",
    "exponent_k": "support",
    "exponent_vocab_frozen": "vocabulary",
}


def through_full_logits(batch: LossBatch, weight: Tensor) -> Tensor:
    """The baseline: LSM of the [T, V] logits gathered at the support, and its gradients."""
    assert batch.support_ids is not None
    assert batch.support_log_probs is not None
    assert batch.support_valid is not None
    logits = (batch.hidden @ weight.T).gather(1, batch.support_ids).float()
    valid = batch.support_valid
    log_q = renormalise(batch.support_log_probs, valid)
    loss = reverse_kl(renormalise(logits, valid), log_q, valid).sum()
    loss.backward()
    return loss.detach()


class Problem:
    """One head and, per repetition, fresh rows."""

    def __init__(self, size: Size, trainable: bool) -> None:
        self.size = size
        torch.manual_seed(0)
        weight = torch.empty(size.vocabulary, size.hidden, dtype=size.dtype).normal_(0, 0.02)
        self.weight = weight.requires_grad_(trainable)
        if trainable:
            self.weight.grad = torch.zeros_like(weight)
        self.head = Head(self.weight, accumulate_in_place=True)

    def batch(self, repetition: int) -> LossBatch:
        size = self.size
        g = torch.Generator().manual_seed(1000 + repetition)
        uniform = torch.rand(size.rows, size.support, generator=g, dtype=torch.float64)
        teacher = torch.randn(size.rows, size.support, generator=g)
        return LossBatch(
            hidden=torch.randn(size.rows, size.hidden, generator=g).to(size.dtype).requires_grad_(),
            sampled_ids=torch.zeros(size.rows, dtype=torch.int64),
            weights=torch.ones(size.rows),
            support_ids=(size.vocabulary * uniform**3).long(),
            support_log_probs=torch.log_softmax(teacher, -1),
            support_valid=torch.ones(size.rows, size.support, dtype=torch.bool),
        )

    def gathered(self, batch: LossBatch) -> Tensor:
        loss = lsm(batch, self.head, LossSettings()).total
        loss.backward()
        return loss.detach()

    def full(self, batch: LossBatch) -> Tensor:
        return through_full_logits(batch, self.weight)

    def check(self) -> dict[str, float]:
        """Relative differences of loss and gradients between the two sides."""
        found: list[tuple[Tensor, ...]] = []
        for side in (self.gathered, self.full):
            batch = self.batch(-100)
            if self.weight.grad is not None:
                self.weight.grad.zero_()
            loss = side(batch)
            assert batch.hidden.grad is not None
            head = () if self.weight.grad is None else (self.weight.grad.float(),)
            found.append((loss, batch.hidden.grad.float(), *head))
        names = ("loss", "hidden_gradient", "head_gradient")
        return {
            name: float((ours - theirs).norm() / theirs.norm())
            for name, ours, theirs in zip(names, *found, strict=False)
        }


def measure_time(size: Size, trainable: bool, repetitions: int) -> dict[str, Any]:
    problem = Problem(size, trainable)
    differences = problem.check()
    worst = max(differences.values())
    if worst > 0.02:
        raise SystemExit(f"the two sides disagree: {differences}")
    batches = {n: problem.batch(n) for n in range(-1, repetitions)}
    again = {n: problem.batch(n) for n in range(-1, repetitions)}
    seconds = alternate(
        {
            "full": lambda n: void(problem.full(batches[n])),
            "gathered": lambda n: void(problem.gathered(again[n])),
        },
        repetitions,
    )
    return {
        "speedup": median_ratio(seconds["full"], seconds["gathered"]),
        "full_seconds": statistics.median(seconds["full"]),
        "gathered_seconds": statistics.median(seconds["gathered"]),
        "differences": differences,
    }


def measure_exponent(name: str, repetitions: int) -> tuple[float, dict[str, float]]:
    """Slope of log seconds over log size, and the median seconds by size."""
    problems = {str(getattr(s, SCALED[name])): Problem(s, False) for s in SCALING[name]}
    batches = {
        key: [problem.batch(n) for n in range(-2, repetitions)] for key, problem in problems.items()
    }
    seconds = alternate(
        {
            key: lambda n, key=key: void(problems[key].gathered(batches[key][n + 2]))
            for key in problems
        },
        repetitions,
        warmup=2,
    )
    medians = {key: statistics.median(values) for key, values in seconds.items()}
    return slope([(math.log(int(k)), math.log(v)) for k, v in medians.items()]), medians


def slope(points: list[tuple[float, float]]) -> float:
    """Least squares."""
    x_mean, y_mean = (statistics.mean(column) for column in zip(*points, strict=True))
    return sum((x - x_mean) * (y - y_mean) for x, y in points) / sum(
        (x - x_mean) ** 2 for x, _ in points
    )


def liger_over_gathered(repetitions: int) -> tuple[float | None, str]:
    """Seconds of Liger's fused linear JSD over ours, or why there are none."""
    if not torch.cuda.is_available():
        return None, "Liger's kernels are Triton's and need a GPU; there is none"
    if importlib.util.find_spec("liger_kernel") is None:
        return None, "liger-kernel is not installed"
    from liger_kernel.transformers import LigerFusedLinearJSD

    problem = Problem(LARGE, True)
    device = torch.device("cuda")
    weight = problem.weight.detach().to(device).requires_grad_()
    weight.grad = torch.zeros_like(weight)
    teacher = torch.randn_like(weight) * 0.02
    fused = LigerFusedLinearJSD(jsd_beta=0.5)
    batches = {n: problem.batch(n) for n in range(-1, repetitions)}

    def hidden(n: int) -> Tensor:
        return batches[n].hidden.detach().to(device).requires_grad_()

    def ours(n: int) -> None:
        moved = {k: v.to(device) for k, v in vars(batches[n]).items() if v is not None}
        rows = replace(batches[n], **(moved | {"hidden": hidden(n)}))
        lsm(rows, Head(weight, accumulate_in_place=True), LossSettings()).total.backward()
        torch.cuda.synchronize()

    def theirs(n: int) -> None:
        states = hidden(n)
        fused(states, weight, states.detach(), teacher, None).backward()
        torch.cuda.synchronize()

    seconds = alternate({"liger": theirs, "gathered": ours}, repetitions)
    return median_ratio(seconds["liger"], seconds["gathered"]), ""


def void(_: Tensor) -> None:
    return None


def measure_memory(size: Size, trainable: bool, side: str) -> int:
    """Peak extra bytes of one side, in a process of its own."""
    run = subprocess.run(
        [
            sys.executable,
            "-m",
            "benchmarks.bench_loss",
            "--memory-of",
            json.dumps([size.name, trainable, side]),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    return int(run.stdout.strip().splitlines()[-1])


def memory_child(size: Size, trainable: bool, side: str) -> int:
    """The first call brings in kernels and thread pools; the second is measured."""
    problem = Problem(size, trainable)
    small = Problem(Size(2_048, size.hidden, size.dtype, rows=64), trainable)
    work = {"full": "full", "gathered": "gathered"}[side]
    getattr(small, work)(small.batch(0))
    batch = problem.batch(1)
    if problem.weight.grad is not None:
        problem.weight.grad.fill_(0)
    return peak_extra_bytes(lambda: void(getattr(problem, work)(batch)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory_of:
        name, trainable, side = json.loads(arguments.memory_of)
        print(memory_child(SIZES[name], trainable, side))
        return
    details: dict[str, Any] = {}
    table = []
    for size in SIZES.values():
        for trainable in (True, False):
            found = measure_time(size, trainable, arguments.repetitions)
            for side in ("full", "gathered"):
                found[f"{side}_peak_bytes"] = measure_memory(size, trainable, side)
            found["memory_ratio"] = found["gathered_peak_bytes"] / found["full_peak_bytes"]
            head = "trainable" if trainable else "frozen"
            details[f"{size.name} {head}"] = found
            table.append(
                (
                    size.name,
                    head,
                    f"{found['full_seconds']:.3f} s",
                    f"{found['gathered_seconds']:.3f} s",
                    f"{found['speedup']:.1f}x",
                    f"{found['full_peak_bytes'] / 2**20:.0f} MiB",
                    f"{found['gathered_peak_bytes'] / 2**20:.0f} MiB",
                    f"1/{1 / found['memory_ratio']:.0f}",
                )
            )
    print_table(
        ("V x H", "head", "full", "gathered", "speedup", "full peak", "our peak", "memory"), table
    )
    exponents = {}
    for name in SCALING:
        exponents[name], details[name] = measure_exponent(name, 2 * arguments.repetitions)
    liger, reason = liger_over_gathered(arguments.repetitions)
    details["liger"] = reason or "ran"
    large = [details[f"{LARGE.name} {head}"] for head in ("trainable", "frozen")]
    wide = [details[f"{LARGE_FLOAT32.name} {head}"] for head in ("trainable", "frozen")]
    write_result(
        "loss",
        {
            "speedup_trainable": large[0]["speedup"],
            "speedup_frozen": large[1]["speedup"],
            "memory_ratio": max(found["memory_ratio"] for found in large),
            "speedup_trainable_float32": wide[0]["speedup"],
            "speedup_frozen_float32": wide[1]["speedup"],
            **exponents,
            "liger_over_gathered": liger,
        },
        details,
    )


if __name__ == "__main__":
    main()
