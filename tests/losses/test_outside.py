"""What the losses do to the mass outside the support, as docs/losses.md says and draws it."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from benchmarks.bench_outside import LOSSES, Rows, descent, draw, push, settles

MASSES = [place / 50 for place in range(1, 50)]
TEACHERS = float(Rows.drawn(1, seed=0).outside[0])
WITH_NORMALISER = ("lsm, tail bucket", "topk_forward_kl, tail bucket", "generalised_reverse_kl")


@pytest.mark.parametrize("name", LOSSES)
def test_where_the_push_on_the_mass_outside_ends(name: str) -> None:
    pushes = push(LOSSES[name], MASSES)
    expected = {
        "lsm": None,
        "topk_forward_kl": None,
        "entropy_switch": None,
        "unnormalised_reverse_kl": 1 - (1 - TEACHERS) / math.e,
    }.get(name, TEACHERS)
    if expected is None:
        assert max(map(abs, pushes)) < 1e-12
    assert settles(MASSES, pushes) == (expected and pytest.approx(expected, abs=0.003))


def test_without_a_normaliser_the_mass_outside_drifts_and_with_one_it_comes_back(
    tmp_path: Path,
) -> None:
    found = {name: descent(loss, steps=60, seed=0) for name, loss in LOSSES.items()}
    teachers = float(Rows.drawn(32, seed=0).outside.mean())
    for name, masses in found.items():
        start, end = abs(masses[0] - teachers), abs(masses[-1] - teachers)
        assert (end < start) == (name in WITH_NORMALISER), name
    pushes = {name: push(loss, [0.2, 0.5]) for name, loss in LOSSES.items()}
    levels = {"row": [TEACHERS], "mean": [teachers]}
    draw(tmp_path / "out.svg", [0.2, 0.5], {"push": pushes, "descent": found, "teacher": levels})
    picture = (tmp_path / "out.svg").read_text()
    assert all(name in picture for name in ("<svg", *LOSSES))
