"""What each loss does to the student's mass outside the support (``make bench-outside``).

Two measurements with the losses as they are, in float64, and a picture of both,
docs/losses-outside.svg:

    push    one row whose ratios inside the support are the teacher's, so that nothing but the
            mass outside is wrong: d(mass outside) of a step of gradient descent at the logits,
            against the mass outside.
    descent hidden states that are learnt by gradient descent under a head of low rank, which the
            teacher has too: the mean mass outside, step by step. Ids outside the support share
            the hidden state with those inside, so what a loss does not see moves all the same.

``sampled_token`` and ``fixed_advantage`` are left out: they have no support.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.harness import write_result
from student_trainer.losses import (
    EntropySwitchLoss,
    GeneralisedReverseKlLoss,
    Head,
    Loss,
    LossBatch,
    LsmLoss,
    TopkForwardKlLoss,
    UnnormalisedReverseKlLoss,
)

PICTURE = Path(__file__).parents[1] / "docs" / "losses-outside.svg"
V, K, H = 400, 16, 32
ROWS, STEPS, SEEDS = 32, 400, 5
# Of the teacher's logits, of the student's hidden states around the teacher's, and of descent.
SPREAD, APART, RATE = 2.5, 0.6, 0.3
LOSSES: dict[str, Loss] = {
    "lsm": LsmLoss(),
    "topk_forward_kl": TopkForwardKlLoss(),
    "entropy_switch": EntropySwitchLoss(entropy_threshold=0.8),
    "lsm, tail bucket": LsmLoss(tail="bucket"),
    "topk_forward_kl, tail bucket": TopkForwardKlLoss(tail="bucket"),
    "generalised_reverse_kl": GeneralisedReverseKlLoss(),
    "unnormalised_reverse_kl": UnnormalisedReverseKlLoss(study=True),
}


@dataclass(frozen=True)
class Rows:
    """A teacher's rows: hidden states [T, H], the head's weight [V, H] that student and teacher
    share, log q [T, V], and the top K ids."""

    hidden: Tensor
    weight: Tensor
    log_q: Tensor
    ids: Tensor

    @classmethod
    def drawn(cls, rows: int, seed: int) -> Rows:
        made = torch.Generator().manual_seed(seed)
        hidden = torch.randn(rows, H, generator=made).double()
        weight = torch.randn(V, H, generator=made).double() * SPREAD / H**0.5
        log_q = torch.log_softmax(hidden @ weight.T, -1)
        return cls(hidden, weight, log_q, log_q.topk(K, -1).indices)

    @property
    def outside(self) -> Tensor:
        """The teacher's mass outside, [T]."""
        return 1 - self.log_q.exp().gather(1, self.ids).sum(-1)

    def batch(self, hidden: Tensor) -> LossBatch:
        at = self.log_q.gather(1, self.ids)
        return LossBatch(
            hidden=hidden,
            sampled_ids=self.ids[:, 0],
            weights=torch.full((len(hidden),), 1 / len(hidden), dtype=torch.float64),
            support_ids=self.ids,
            support_log_probs=at,
            support_valid=torch.ones_like(self.ids, dtype=torch.bool),
            teacher_log_tail=self.outside.log(),
            teacher_tail_valid=torch.ones(len(hidden), dtype=torch.bool),
        )

    def student_outside(self, logits: Tensor) -> Tensor:
        """The student's mass outside, [T]."""
        return 1 - torch.softmax(logits, -1).gather(1, self.ids).sum(-1)


def push(loss: Loss, masses: list[float]) -> list[float]:
    """d(mass outside) / d(step) of gradient descent at the logits of one row, for each mass."""
    row = Rows.drawn(1, seed=0)
    found = []
    for mass in masses:
        p = row.log_q.exp() * (mass / row.outside)
        inside = row.log_q.exp().gather(1, row.ids) * ((1 - mass) / (1 - row.outside))
        logits = p.scatter(1, row.ids, inside).log().requires_grad_()
        total = loss(row.batch(logits), Head(torch.eye(V, dtype=torch.float64))).total
        (down,) = torch.autograd.grad(total, logits)
        (moves,) = torch.autograd.grad(row.student_outside(logits).sum(), logits)
        found.append(-float((moves * down).sum()))
    return found


def descent(loss: Loss, steps: int, seed: int) -> list[float]:
    """The student's mean mass outside before each step, and after the last."""
    rows = Rows.drawn(ROWS, seed)
    made = torch.Generator().manual_seed(1000 + seed)
    hidden = rows.hidden + APART * torch.randn(ROWS, H, generator=made).double()
    weight, found = rows.weight, []
    for _ in range(steps):
        found.append(float(rows.student_outside(hidden @ weight.T).mean()))
        leaf = hidden.requires_grad_()
        (grad,) = torch.autograd.grad(loss(rows.batch(leaf), Head(weight)).total, leaf)
        hidden = hidden.detach() - RATE * ROWS * grad
    return [*found, float(rows.student_outside(hidden @ weight.T).mean())]


def settles(masses: list[float], pushes: list[float]) -> float | None:
    """The mass outside at which the push turns from growth to loss; None where it never does."""
    pairs = list(zip(masses, pushes, strict=True))
    for (low, a), (high, b) in itertools.pairwise(pairs):
        if a > 1e-12 and b < -1e-12:
            return low + (high - low) * a / (a - b)
    return None


def draw(path: Path, masses: list[float], found: dict[str, dict[str, list[float]]]) -> None:
    """Writes the picture as SVG, the same bytes for the same numbers."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    pyplot.rcParams["svg.hashsalt"] = "outside"
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(12, 4), layout="constrained")
    for place, name in enumerate(LOSSES):
        style = {"color": f"C{place}", "linestyle": "--" if "bucket" in name else "-"}
        left.plot(masses, found["push"][name], label=name, **style)
        right.plot(found["descent"][name], label=name, **style)
    left.axhline(0, color="grey", linewidth=0.8)
    left.axvline(found["teacher"]["row"][0], color="black", linestyle=":")
    left.set(
        xlabel="student's mass outside the support",
        title="push on that mass, where the ratios inside are right",
    )
    right.axhline(found["teacher"]["mean"][0], color="black", linestyle=":", label="teacher")
    right.set(xlabel="step", title="mean mass outside while hidden states are learnt")
    figure.legend(*right.get_legend_handles_labels(), loc="outside right center", fontsize=8)
    figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})
    pyplot.close(figure)


def mean_over(seeds: int, of: Callable[[int], list[float]]) -> list[float]:
    runs = [of(seed) for seed in range(seeds)]
    return [sum(values) / seeds for values in zip(*runs, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--picture", type=Path, default=PICTURE)
    parser.add_argument("--output", default="outside", help="name of the result file")
    arguments = parser.parse_args()
    masses = [place / 50 for place in range(1, 50)]
    pushes = {name: push(loss, masses) for name, loss in LOSSES.items()}
    descents = {
        name: mean_over(
            arguments.seeds, lambda seed, loss=loss: descent(loss, arguments.steps, seed)
        )
        for name, loss in LOSSES.items()
    }
    teachers = mean_over(
        arguments.seeds, lambda seed: [float(Rows.drawn(ROWS, seed).outside.mean())]
    )
    row = float(Rows.drawn(1, seed=0).outside[0])
    found = {"push": pushes, "descent": descents, "teacher": {"row": [row], "mean": teachers}}
    draw(arguments.picture, masses, found)
    figures: dict[str, float | None] = {"teacher_row": row, "teacher_mean": teachers[0]}
    for name in LOSSES:
        key = name.replace(", tail ", "_")
        figures[f"settles_{key}"] = settles(masses, pushes[name])
        figures[f"after_{key}"] = descents[name][-1]
    write_result(arguments.output, figures, {"masses": masses, **found})


if __name__ == "__main__":
    main()
