"""When a run is told that its student leaves the support while the loss falls."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from student_trainer.diagnostics.leaving import (
    KEYS,
    RULE,
    LeavingRule,
    SupportWatch,
    advice,
    leaving_support,
)

STEPS = 60


def lines(
    outside: tuple[float, float] = (0.047, 0.061),
    loss: tuple[float, float] = (0.2, 0.1),
    teacher: float = 0.99,
    noise: float = 0.002,
    steps: int = STEPS,
    **more: Any,
) -> list[dict[str, Any]]:
    """Steps in which the mass outside and the loss go from one value to the other."""
    rng = np.random.default_rng(0)
    done = np.arange(steps) / max(steps - 1, 1)
    mass = 1 - outside[0] - done * (outside[1] - outside[0]) + noise * rng.standard_normal(steps)
    losses = loss[0] + done * (loss[1] - loss[0])
    return [
        {
            "step": n + 1,
            "loss": float(losses[n]),
            "student_support_mass": float(mass[n]),
            "teacher_support_mass": teacher,
            **more,
        }
        for n in range(steps)
    ]


def test_it_is_told_with_its_numbers() -> None:
    found = leaving_support(lines())
    assert found is not None
    assert found.steps == STEPS // 4
    assert found.recent_mass < found.early_mass
    assert found.recent_loss < found.early_loss
    assert str(found).startswith(
        f"the student's mass outside the support has risen from {1 - found.early_mass:.2%} to "
        f"{1 - found.recent_mass:.2%} (the teacher's is 1.00%) while the loss fell from 0.18"
    )


@pytest.mark.parametrize(
    "changed",
    [
        {"outside": (0.061, 0.047)},
        {"outside": (0.047, 0.048)},
        {"loss": (0.2, 0.19)},
        {"loss": (0.1, 0.2)},
        {"teacher": 0.9},  # the student comes closer to the teacher's mass outside
        {"noise": 0.05},  # as large a change comes about by chance
        {"steps": RULE.least_steps - 1},
        {"advantage": 0.1},
        {"student_support_mass": None},
    ],
    ids=lambda changed: str(*changed),
)
def test_it_is_not_told(changed: dict[str, Any]) -> None:
    assert leaving_support(lines(**changed)) is None


def test_a_run_is_told_once_at_the_step_where_the_rule_first_holds() -> None:
    every = lines()
    watch = SupportWatch(renormalised=True)
    told = [line["step"] for line in every if watch.add(line) is not None]
    first = next(n for n in range(1, STEPS + 1) if leaving_support(every[:n]) is not None)
    assert told == [first]
    assert RULE.least_steps <= first < STEPS
    other = SupportWatch(renormalised=False)
    assert not any(other.add(line) for line in every), "its loss sees the mass outside"


@pytest.mark.parametrize(("alike", "most"), [(0.0, 0), (0.5, 4)])
def test_a_run_without_a_trend_is_seldom_told(alike: float, most: int) -> None:
    """200 runs of 200 steps whose loss falls and whose mass outside is 5%, give or take a point;
    ``alike`` is how neighbouring steps correlate. At three errors 6 and 85 of them were told."""
    rng = np.random.default_rng(0)
    told = 0
    for _ in range(200):
        noise = rng.standard_normal(200)
        for n in range(1, len(noise)):
            noise[n] = alike * noise[n - 1] + np.sqrt(1 - alike**2) * noise[n]
        watch = SupportWatch(renormalised=True)
        told += any(
            watch.add(dict(zip(KEYS, (1 / (1 + n), 0.95 - 0.01 * one, 0.99), strict=True)))
            for n, one in enumerate(noise.tolist())
        )
    assert told <= most


def test_the_means_and_the_error_are_those_of_both_windows() -> None:
    every = lines(outside=(0.047, 0.08), noise=1e-3)
    count = STEPS // 4
    early, recent = (
        np.array([[line[key] for key in KEYS] for line in part])
        for part in (every[:count], every[-count:])
    )
    rise = early[:, 1].mean() - recent[:, 1].mean()
    error = np.sqrt((early[:, 1].var(ddof=1) + recent[:, 1].var(ddof=1)) / count)
    found = leaving_support(every, LeavingRule(errors=rise / error * (1 - 1e-9)))
    assert found is not None
    assert (found.early_loss, found.early_mass) == pytest.approx(early.mean(0)[:2].tolist())
    last = (found.recent_loss, found.recent_mass, found.teacher_mass)
    assert last == pytest.approx(recent.mean(0).tolist())
    assert leaving_support(every, LeavingRule(errors=rise / error * (1 + 1e-9))) is None


def test_the_advice_names_no_support_that_is_set() -> None:
    assert 'loss.support = "union"' in advice(own_ids=False)
    assert "loss.support" not in advice(own_ids=True)


def test_steps_without_a_value_are_left_out() -> None:
    every = lines()
    nothing = {"step": 0, "student_support_mass": 0.1, "teacher_support_mass": 1.0}
    between = [{**nothing, "loss": None}, {**nothing, "loss": float("nan")}]
    mixed = [line for one in every for line in (one, *between)]
    assert leaving_support(mixed) == leaving_support(every)
