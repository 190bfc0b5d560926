"""The variance study: its estimator against exact expectations in float64, and its figures."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from teacher_proto.errors import ConfigurationError
from torch import Tensor

from student_trainer.cli import run
from student_trainer.study.variance import experiment, report
from student_trainer.study.variance.estimator import forward, gradients, returns
from student_trainer.study.variance.policy import Policies, log_density
from student_trainer.study.variance.settings import VarianceSettings
from student_trainer.study.variance.training import stream, train_students, train_teachers
from student_trainer.study.variance.walk import TARGETS, log_probs, walk

NODES = 24
SMALL = VarianceSettings(
    seeds=(1, 2),
    gammas=(0.0, 1.0),
    horizon=4,
    steps=12,
    horizons=(2, 4),
    horizon_steps=8,
    horizon_teacher_steps=6,
    start_batches=2,
    teacher_steps=6,
    batch=8,
    micro_batches=4,
)
LEFT = torch.tensor([0])
WEIGHTS = [(0, 0), (17, 1), (59, 0)]  # of the output layer


def drawn(seed: int) -> Policies:
    return Policies.drawn([stream(seed, 0)], 0.3, torch.float64)


@pytest.fixture(scope="module")
def grid() -> tuple[Tensor, Tensor]:
    """Noise [1, NODES^2, 2] of every pair of Gauss-Hermite nodes, and its weights."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(NODES)
    pairs = np.stack(np.meshgrid(nodes, nodes, indexing="ij"), -1).reshape(1, -1, 2)
    share = np.outer(weights, weights).reshape(-1) / (2 * math.pi)
    return torch.from_numpy(pairs), torch.from_numpy(share)


def changed(policies: Policies, place: tuple[int, int], by: float) -> Policies:
    *before, last = policies.weights
    last = last.clone()
    last[0][place] += by
    return replace(policies, weights=(*before, last))


def slope(value: Callable[[Policies], float], policies: Policies, place: tuple[int, int]) -> float:
    """Of the output layer's weight at ``place``, by central differences."""
    step = 1e-5
    above, below = (value(changed(policies, place, by)) for by in (step, -step))
    return (above - below) / (2 * step)


def expected(gamma: float, noise: Tensor, weights: Tensor) -> tuple[Tensor, Policies, Policies]:
    """The expectation of the estimator's output layer, [60, 2], with student and teacher."""
    student, teacher = drawn(3), drawn(4)
    walks = walk(student, LEFT, noise)
    rewards = log_probs(student, walks) - log_probs(teacher, walks)
    # Each walk is a micro-batch of its own, so that each has its own gradient.
    read = forward(student.learning(), walks)
    assert torch.allclose(read.log_probs, log_probs(student, walks))
    found = gradients(student, read, returns(rewards, [gamma]), noise.shape[1])
    of_walks = found.output_layer[0].view(noise.shape[1], 61, 2)
    return torch.einsum("b,bio->io", weights, of_walks)[:60], student, teacher


def sequence_kl(student: Policies, teacher: Policies, noise: Tensor, weights: Tensor) -> float:
    """KL(pi || q) over walks, by quadrature."""
    walks = walk(student, LEFT, noise)
    ratio = (log_probs(student, walks) - log_probs(teacher, walks)).sum(-1)[0]
    return float((weights * ratio).sum())


def token_kl(
    student: Policies, teacher: Policies, walked_by: Policies, noise: Tensor, weights: Tensor
) -> float:
    """The sum over moves of KL(pi || q) in closed form, over the places of ``walked_by``."""
    features = walk(walked_by, LEFT, noise).features
    with torch.no_grad():
        (m, s), (n, r) = (p.gaussian(p.outputs(p.hidden(features))) for p in (student, teacher))
    kl = torch.log(r / s) + (s**2 + (m - n) ** 2) / (2 * r**2) - 0.5
    return float((weights * kl.view(noise.shape[1], 2).sum(-1)).sum())


@pytest.mark.parametrize("place", WEIGHTS)
def test_at_gamma_1_the_expectation_is_the_gradient_of_the_sequences_kl(
    place: tuple[int, int], grid: tuple[Tensor, Tensor]
) -> None:
    found, student, teacher = expected(1.0, *grid)
    wanted = slope(lambda moved: sequence_kl(moved, teacher, *grid), student, place)
    assert float(found[place]) == pytest.approx(wanted, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("place", WEIGHTS)
def test_at_gamma_0_the_expectation_is_that_of_the_tokens_kl_on_given_prefixes(
    place: tuple[int, int], grid: tuple[Tensor, Tensor]
) -> None:
    found, student, teacher = expected(0.0, *grid)
    wanted = slope(lambda moved: token_kl(moved, teacher, student, *grid), student, place)
    assert float(found[place]) == pytest.approx(wanted, rel=1e-5, abs=1e-7)


def test_the_two_ends_differ_and_between_them_the_discount_weighs(
    grid: tuple[Tensor, Tensor],
) -> None:
    low, high, between = (expected(gamma, *grid)[0] for gamma in (0.0, 1.0, 0.25))
    assert float((high - low).abs().max()) > 0.01 * float(high.abs().max())
    # Of two moves, the second reward alone is discounted, once.
    assert torch.allclose(between, 0.75 * low + 0.25 * high, rtol=1e-9, atol=1e-12)


def test_the_variance_is_that_of_the_micro_batches_own_gradients() -> None:
    torch.manual_seed(0)
    noise = torch.randn(2, 12, 5, dtype=torch.float64)
    student = Policies.drawn([stream(3, 0), stream(5, 0)], 0.3, torch.float64).learning()
    walks = walk(student, torch.tensor([1, 0]), noise)
    factors = torch.randn(2, 12, 5, dtype=torch.float64)
    found = gradients(student, forward(student, walks), factors, 3)
    parts = []
    for m in range(3):
        own = slice(4 * m, 4 * m + 4)
        mean, sigma = student.gaussian(student.outputs(student.hidden(walks.features)))
        density = log_density(walks.moves, mean.view(2, 12, 5), sigma.view(2, 12, 5))
        total = (factors[:, own] * density[:, own]).sum() / 4
        weight, bias = torch.autograd.grad(total, [student.weights[-1], student.biases[-1]])
        parts.append(torch.cat([weight, bias], 1).flatten(1))
    stacked = torch.stack(parts, 1)
    assert torch.allclose(found.output_layer, stacked, rtol=1e-10, atol=1e-12)
    weight, bias = found.parameters[-2:]
    whole = torch.cat([weight, bias], 1).flatten(1)
    assert torch.allclose(stacked.mean(1), whole, rtol=1e-10, atol=1e-12)
    wanted = stacked.numpy().var(1).sum(-1)
    assert found.variance.tolist() == pytest.approx(wanted.tolist(), rel=1e-10)


def test_walks_are_the_sums_of_their_moves_and_reach_by_the_last_place() -> None:
    policies = Policies.drawn([stream(1, 0)], 0.05)
    walks = walk(policies, torch.tensor([1]), torch.zeros(1, 3, 6))
    assert torch.allclose(walks.places[..., 1:], -2 + walks.moves.cumsum(-1), atol=1e-5)
    assert torch.allclose(walks.misses, (walks.places[..., -1] - TARGETS[1]).abs().mean(-1))
    assert walks.features[0, :6, 0].tolist() == [1] * 6
    assert walks.features[0, :6, 2].tolist() == pytest.approx([t / 6 for t in range(6)])


def test_teachers_learn_to_come_near_their_targets() -> None:
    before, after = (train_teachers(replace(SMALL, batch=32), 4, n).misses for n in (1, 150))
    assert bool((after < 0.7 * before).all())


def test_a_run_is_the_same_again_and_does_not_depend_on_its_company() -> None:
    teachers = train_teachers(SMALL, 4, 6)
    first, again = (train_students(SMALL, teachers, SMALL.gammas, 4, 6) for _ in range(2))
    assert torch.equal(first.variances, again.variances)
    alone = replace(SMALL, seeds=(2,))
    single = train_students(alone, train_teachers(alone, 4, 6), (1.0,), 4, 6)
    assert torch.allclose(single.variances[:, 0], first.variances[:, 3], rtol=1e-3)
    assert torch.equal(first.variances[0, :2] > 0, torch.tensor([True, True]))
    # The students of a seed begin alike: their first walks are the same.
    assert float(first.misses[0, 0]) == float(first.misses[0, 1])
    assert float(first.misses[-1, 0]) != float(first.misses[-1, 1])


def rows_of(exponents: dict[float, float]) -> list[dict[str, Any]]:
    return [
        {
            "horizon": horizon,
            "seed": seed,
            "gamma": gamma,
            "start": (seed + 1) * horizon**exponent,
            "late": horizon ** (exponent + seed),
        }
        for horizon in (5, 10, 20)
        for seed in (0, 1, 2)
        for gamma, exponent in exponents.items()
    ]


def test_exponents_are_fitted_for_each_seed() -> None:
    found = {
        (row["when"], row["gamma"]): row for row in experiment.exponents(rows_of({0: 2, 1: 4}))
    }
    assert found["start", 0]["of_seeds"] == pytest.approx([2, 2, 2])
    assert found["late", 1]["of_seeds"] == pytest.approx([4, 5, 6])
    assert found["late", 1]["mean"] == pytest.approx(5)
    assert found["late", 1]["high"] == pytest.approx(5 + 4.302653 / math.sqrt(3), rel=1e-5)


def test_a_variance_that_is_not_finite_gives_no_exponent_and_no_verdict() -> None:
    rows = rows_of({0: 2, 1: 4})
    rows[0]["start"] = None
    (start, *_) = experiment.exponents(rows)
    assert start["of_seeds"][0] is None
    assert start["mean"] is start["low"] is None
    runs = [
        {"seed": seed, "gamma": gamma, "late_variance": value}
        for seed, values in ((1, (1.0, 2.0)), (2, (3.0, 2.0)), (3, (1.0, None)))
        for gamma, value in zip((0.0, 1.0), values, strict=True)
    ]
    found = experiment.verdict(runs)
    assert found["late_variance_grows_with_gamma"] == {"1": True, "2": False, "3": None}
    assert found["late_variance_highest_to_lowest_gamma"]["1"] == 2.0
    assert found["late_variance_highest_to_lowest_gamma"]["3"] is None


def test_a_single_seed_has_an_exponent_and_no_interval() -> None:
    rows = [row for row in rows_of({0: 2, 1: 4}) if row["seed"] == 1]
    found = experiment.exponents(rows)
    assert found[0]["mean"] == pytest.approx(2)
    assert found[0]["low"] is None


COMMAND = [
    "--seeds", "1,2", "--gammas", "0,1", "--horizon", "4", "--steps", "12", "--horizons", "2,4",
    "--horizon-steps", "8", "--teacher-steps", "6", "--horizon-teacher-steps", "6",
]  # fmt: skip


def test_the_command_writes_what_it_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["study", "variance", "--out", str(tmp_path), *COMMAND]) == 0
    document = json.loads((tmp_path / "variance.json").read_text())
    assert document["command"].startswith("student-trainer study variance --seeds 1,2")
    assert document["settings"]["teacher_steps"] == 6
    assert [run["gamma"] for run in document["students"]] == [0.0, 1.0, 0.0, 1.0]
    assert len(document["horizons"]) == 8
    assert all(row["start"] > 0 and row["late"] > 0 for row in document["horizons"])
    text = (tmp_path / "variance.md").read_text()
    assert text in capsys.readouterr().out
    ratio = document["figures"]["late_variance_highest_to_lowest_gamma"]["2"]
    assert f"{ratio:.3g}" in text
    assert "<svg" in (tmp_path / "variance.svg").read_text()


def test_a_run_that_diverged_is_told_as_such(tmp_path: Path) -> None:
    arguments = ["study", "variance", "--no-sweep", "--out", str(tmp_path), *COMMAND]
    assert run(arguments) == 0
    document = json.loads((tmp_path / "variance.json").read_text())
    assert document["horizons"] == document["exponents"] == []
    document["students"][1] |= {"late_variance": None, "curve": [None] * 12}
    document["figures"] = experiment.verdict(document["students"])
    assert report.UNKNOWN in report.table(document)
    report.draw(document, tmp_path / "again.svg")
    assert "<svg" in (tmp_path / "again.svg").read_text()


@pytest.mark.parametrize(
    ("values", "where"),
    [
        ({"seeds": ()}, "--seeds"),
        ({"seeds": (1, 1)}, "--seeds"),
        ({"gammas": (0.5,)}, "--gammas"),
        ({"gammas": (1.0, 0.0)}, "--gammas"),
        ({"gammas": (0.0, 1.5)}, "--gammas"),
        ({"gammas": (0.0, math.nan)}, "--gammas"),
        ({"horizon": 0}, "--horizon"),
        ({"horizons": (10, 5)}, "--horizons"),
        ({"horizons": (10,)}, "--horizons"),
        ({"horizons": (0, 5)}, "--horizons"),
        ({"steps": 4}, "--steps"),
        ({"teacher_steps": 0}, "--teacher-steps"),
        ({"micro_batches": 7}, "--micro-batches"),
        ({"sigma_floor": 0.0}, "--sigma-floor"),
    ],
)
def test_wrong_settings_are_refused(values: dict[str, Any], where: str) -> None:
    with pytest.raises(ConfigurationError, match=r"Fix: ") as caught:
        VarianceSettings(**values)
    assert caught.value.where.startswith(where)
