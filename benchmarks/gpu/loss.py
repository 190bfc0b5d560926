"""The loss on a GPU: gathered head rows, full logits, and Liger's fused divergence."""

from __future__ import annotations

import gc
import importlib.metadata
import importlib.util
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.bench_loss import through_full_logits
from benchmarks.harness import alternate, median_ratio
from student_trainer.losses import Head, LossBatch, LossSettings, lsm


@dataclass(frozen=True)
class Size:
    vocabulary: int
    hidden: int
    rows: int
    support: int = 64

    @property
    def name(self) -> str:
        return f"{self.rows} rows, {self.vocabulary} x {self.hidden}"


# The heads of 0.5B, 1.5B and 7B shapes.
SIZES = (
    Size(151_936, 896, 8_192),
    Size(151_936, 1_536, 8_192),
    Size(152_064, 3_584, 8_192),
    Size(152_064, 3_584, 1_024),
)
TINY = (Size(2_048, 64, 256),)


class Problem:
    """One head on the device and, per repetition, fresh rows of random data."""

    def __init__(self, size: Size, trainable: bool, device: str) -> None:
        self.size, self.device = size, device
        g = torch.Generator(device).manual_seed(0)
        weight = torch.empty(size.vocabulary, size.hidden, dtype=torch.bfloat16, device=device)
        self.weight = weight.normal_(0, 0.02, generator=g).requires_grad_(trainable)
        if trainable:
            self.weight.grad = torch.zeros_like(weight)
        self.teacher_weight: Tensor | None = None

    def batch(self, repetition: int) -> LossBatch:
        size, at = self.size, self.device
        g = torch.Generator(at).manual_seed(1_000 + repetition)
        uniform = torch.rand(size.rows, size.support, generator=g, dtype=torch.float64, device=at)
        teacher = torch.randn(size.rows, size.support, generator=g, device=at)
        hidden = torch.randn(size.rows, size.hidden, generator=g, device=at)
        return LossBatch(
            hidden=hidden.bfloat16().requires_grad_(),
            sampled_ids=torch.zeros(size.rows, dtype=torch.int64, device=at),
            weights=torch.ones(size.rows, device=at),
            support_ids=(size.vocabulary * uniform**3).long(),
            support_log_probs=torch.log_softmax(teacher, -1),
            support_valid=torch.ones(size.rows, size.support, dtype=torch.bool, device=at),
        )

    def gathered(self, batch: LossBatch) -> Tensor:
        head = Head(self.weight, accumulate_in_place=True)
        loss = lsm(batch, head, LossSettings()).total
        loss.backward()
        return loss.detach()

    def full(self, batch: LossBatch) -> Tensor:
        return through_full_logits(batch, self.weight)

    def liger(self, batch: LossBatch) -> Tensor:
        """The divergence over the whole vocabulary, of a teacher in this process."""
        from liger_kernel.transformers import LigerFusedLinearJSD

        if self.teacher_weight is None:
            g = torch.Generator(self.device).manual_seed(1)
            empty = torch.empty_like(self.weight.detach())
            self.teacher_weight = empty.normal_(0, 0.02, generator=g)
        fused = LigerFusedLinearJSD(jsd_beta=0.5)
        states = batch.hidden.detach()
        loss = fused(batch.hidden, self.weight, states, self.teacher_weight, None)
        loss.backward()
        return loss.detach()

    def gradients(self, side: Callable[[LossBatch], Tensor]) -> list[Tensor]:
        """Loss and gradients of a side on the same rows, in float64."""
        batch = self.batch(-100)
        if self.weight.grad is not None:
            self.weight.grad.zero_()
        loss = side(batch)
        assert batch.hidden.grad is not None
        head = [] if self.weight.grad is None else [self.weight.grad.double()]
        return [loss.double(), batch.hidden.grad.double(), *head]


def measure_loss(device: str, repetitions: int) -> tuple[dict[str, float | None], dict[str, Any]]:
    """Figures and details of every size."""
    details: dict[str, Any] = {}
    figures: dict[str, float | None] = {}
    sizes = SIZES if device == "cuda" else TINY
    for size in sizes:
        for trainable in (True, False):
            found = _measure(size, trainable, device, repetitions)
            details[f"{size.name}, {'trainable' if trainable else 'frozen'} head"] = found
    largest = details[f"{sizes[-1 if device != 'cuda' else 2].name}, trainable head"]
    for side in ("full", "liger"):
        figures[f"loss_{side}_over_gathered"] = largest.get(f"{side}_over_gathered")
        figures[f"loss_{side}_memory_over_gathered"] = largest.get(f"{side}_memory_over_gathered")
    details["liger"] = _liger_version()
    return figures, details


def _measure(size: Size, trainable: bool, device: str, repetitions: int) -> dict[str, Any]:
    problem = Problem(size, trainable, device)
    ours, theirs = problem.gradients(problem.gathered), problem.gradients(problem.full)
    differences = [float((a - b).norm() / b.norm()) for a, b in zip(ours, theirs, strict=True)]
    if not max(differences) <= 0.02:
        raise SystemExit(f"{size.name}: the two sides disagree: {differences}")
    del ours, theirs
    sides = {"full": problem.full, "gathered": problem.gathered}
    if device == "cuda" and trainable and importlib.util.find_spec("liger_kernel"):
        sides["liger"] = problem.liger

    def timed(side: str) -> Callable[[int], None]:
        def run(repetition: int) -> None:
            sides[side](batches[repetition, side])
            _wait(device)

        return run

    batches = {(n, s): problem.batch(n) for n in range(-2, repetitions) for s in sides}
    seconds = alternate({side: timed(side) for side in sides}, repetitions, warmup=2)
    found: dict[str, Any] = {"relative_differences": differences}
    for side in sides:
        found[f"{side}_seconds"] = statistics.median(seconds[side])
        found[f"{side}_peak_bytes"] = _peak(problem, sides[side], device)
    for side in set(sides) - {"gathered"}:
        found[f"{side}_over_gathered"] = median_ratio(seconds[side], seconds["gathered"])
        if device == "cuda":
            found[f"{side}_memory_over_gathered"] = (
                found[f"{side}_peak_bytes"] / found["gathered_peak_bytes"]
            )
    return found


def _peak(problem: Problem, side: Callable[[LossBatch], Tensor], device: str) -> int | None:
    """Bytes of the device beyond what was held before; None without a GPU."""
    if device != "cuda":
        return None
    batch = problem.batch(7)
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    side(batch)
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _liger_version() -> str | None:
    try:
        return importlib.metadata.version("liger-kernel")
    except importlib.metadata.PackageNotFoundError:
        return None
