"""The weights of rows against their definitions in float64, on a real student and teacher."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from teacher_proto.errors import LsmError
from teacher_proto.types import ContinuationScores, Status

from student_trainer.rollout.base import Rollout
from student_trainer.run.checkpoint import load_state
from student_trainer.settings.train import TrainConfig
from student_trainer.train import train
from student_trainer.update.metrics import UpdateTotals
from student_trainer.weights import WEIGHTS, ResponseRows, RowWeight
from student_trainer.weights.base import Fact, Float64
from student_trainer.weights.teacher_surprise import TeacherSurprise
from tests.support.replies import with_arrays
from tests.trainer import test_teachers
from tests.trainer.local_teacher import LocalTeacher
from tests.trainer.processes import Server
from tests.trainer.test_run import resumed_exactly
from tests.trainer.test_teachers import KA, KB, A, B, Mixed, row_losses
from tests.trainer.test_update import Case, assert_close

MakeConfig = Callable[..., TrainConfig]
several = test_teachers.several  # a fixture
K = 16


def weighted(config: TrainConfig, *weights: dict[str, Any]) -> TrainConfig:
    return TrainConfig.model_validate({**config.model_dump(), "weights": list(weights)})


class Sides:
    """The full rows of both sides at every token of one response, float64, from plain forwards."""

    def __init__(self, case: Case, teacher: LocalTeacher, rollout: Rollout) -> None:
        prompt = len(rollout.prompt.token_ids)
        ids = np.concatenate([rollout.prompt.token_ids, rollout.token_ids]).astype(np.int64)
        with torch.no_grad():
            logits = case.student.causal_model(torch.from_numpy(ids)[None]).logits[0]
        self.logits = logits[prompt - 1 : -1]
        self.p = self.logits.double().log_softmax(-1).numpy()
        self.q = teacher.log_probs(rollout).double().log_softmax(-1).numpy()
        self.tokens = rollout.token_ids.astype(int)
        self.old = rollout.log_probs.astype(float)
        self.length = rollout.length
        order = np.argsort(-self.q, axis=-1, kind="stable")
        self.support = [list(row[:K]) for row in order]

    def at(self, rows: np.ndarray) -> list[float]:
        return [float(rows[t, token]) for t, token in enumerate(self.tokens)]


def of_support(row: np.ndarray, ids: list[int]) -> list[float]:
    mass = sum(math.exp(row[i]) for i in ids)
    return [math.exp(row[i]) / mass for i in ids]


def prefix_ratio(sides: Sides, first: float = 1.5, last: float = 1.0) -> list[float]:
    gaps = [abs(q - old) for q, old in zip(sides.at(sides.q), sides.old, strict=True)]
    return [last + (first - last) * (1 - sum(gaps[:t]) / sum(gaps)) for t in range(len(gaps))]


def prefix_importance(sides: Sides, cap: float = 2.0) -> list[float]:
    moved = [p - old for p, old in zip(sides.at(sides.p), sides.old, strict=True)]
    return [min(cap, max(1e-30, math.exp(sum(moved[:t])))) for t in range(len(moved))]


def overlap(sides: Sides, share: float = 0.5, by: str = "teachability") -> list[float]:
    together, mass, gaps = [], [], []
    for p, q, ids in zip(sides.p, sides.q, sides.support, strict=True):
        own = set(np.argsort(-p)[: len(ids)].tolist())
        common = [i for i in ids if i in own]
        together.append(len(common) / len(ids))
        mass.append(sum(math.exp(q[i]) for i in common))
        pairs = zip(of_support(p, ids), of_support(q, ids), strict=True)
        gaps.append(sum(b * math.log(b / a) for a, b in pairs))
    if by == "overlap":
        scores = together
    else:
        scores = [a * b for a, b in zip(scaled(gaps), scaled(mass), strict=True)]
    count = math.ceil(round(share * len(scores), 9))
    best = sorted(range(len(scores)), key=lambda t: (-scores[t], t))[:count]
    return [1.0 if t in best else 0.0 for t in range(len(scores))]


def scaled(values: Sequence[float]) -> list[float]:
    ordered = sorted(values)

    def quantile(share: float) -> float:
        place = share * (len(ordered) - 1)
        below = math.floor(place)
        above = min(below + 1, len(ordered) - 1)
        return ordered[below] + (place - below) * (ordered[above] - ordered[below])

    low, high = quantile(0.05), quantile(0.95)
    return [min(max((v - low) / (high - low), 0), 1) if high > low else 0.0 for v in values]


def teacher_entropy(
    sides: Sides, at_least: float = 0, at_most: float = 99, outside: float = 0
) -> list[float]:
    found = []
    for q, ids in zip(sides.q, sides.support, strict=True):
        entropy = -sum(x * math.log(x) for x in of_support(q, ids))
        found.append(1.0 if at_least <= entropy <= at_most else outside)
    return found


def teacher_surprise(
    sides: Sides,
    threshold: float = 4.0,
    allowance: float = 0.5,
    decay: float = 1.0,
    outside: float = 0.0,
    fall: float = 0.0,
    lasting: bool = False,
) -> list[float]:
    found, measure, largest = [], 0.0, 0.0
    for q, ids, token in zip(sides.q, sides.support, sides.tokens, strict=True):
        largest = max(largest, measure)
        above = (largest if lasting else measure) - threshold
        left = math.exp(-above / fall) if fall else 0.0
        found.append(1.0 if above <= 0 else outside + (1 - outside) * left)
        inside = [math.exp(q[i]) for i in ids]
        shares = [*inside, 1 - sum(inside)]
        expected = -sum(share * math.log(share) for share in shares)
        measure = max(0.0, decay * measure - q[token] - expected - allowance)
    return found


def place(sides: Sides, first: float = 1.0, last: float = 0.0) -> list[float]:
    count = len(sides.tokens)
    return [first + (last - first) * t / max(sides.length - 1, 1) for t in range(count)]


REFERENCES: dict[str, Callable[..., list[float]]] = {
    "prefix_ratio": prefix_ratio,
    "prefix_importance": prefix_importance,
    "overlap": overlap,
    "teacher_entropy": teacher_entropy,
    "teacher_surprise": teacher_surprise,
    "place": place,
    "origin": lambda sides, student=1.0, data=1.0: [student] * len(sides.tokens),
}
CASES: list[dict[str, Any]] = [
    {"kind": "prefix_ratio"},
    {"kind": "prefix_ratio", "first": 0.5, "last": 2.0},
    {"kind": "prefix_importance"},
    {"kind": "prefix_importance", "cap": 1.1},
    {"kind": "overlap", "share": 0.3},
    {"kind": "overlap", "by": "overlap"},
    {"kind": "teacher_entropy", "at_least": 2.4},
    {"kind": "teacher_entropy", "at_least": 2.3, "at_most": 2.5, "outside": 0.25},
    {"kind": "teacher_surprise"},
    {"kind": "teacher_surprise", "allowance": 2.0, "decay": 0.9, "outside": 0.25, "lasting": True},
    {"kind": "teacher_surprise", "threshold": 6.0, "allowance": 1.0, "fall": 3.0},
    {"kind": "place"},
    {"kind": "place", "first": 2.0, "last": 1.0},
    {"kind": "origin", "student": 3.0},
]


def expected(case: Case, teacher: LocalTeacher, *weights: dict[str, Any]) -> list[list[float]]:
    """The product of the weights, of each row of each response."""
    found = []
    for rollout in case.rollouts:
        sides = Sides(case, teacher, rollout)
        product = [1.0] * len(sides.tokens)
        for values in weights:
            settings = {k: v for k, v in values.items() if k != "kind"}
            rows = REFERENCES[values["kind"]](sides, **settings)
            product = [a * b for a, b in zip(product, rows, strict=True)]
        found.append(product)
    return found


def reference(
    case: Case, weights: list[list[float]], mean: str
) -> tuple[float, dict[str, torch.Tensor]]:
    """The weighted mean of LSM by its definition over full logits, and its gradient."""
    case.student.module.zero_grad()
    total: torch.Tensor = torch.zeros((), dtype=torch.float64)
    counts = []
    for rollout, score, own in zip(case.rollouts, case.scores, weights, strict=True):
        ids = np.concatenate([rollout.prompt.token_ids, rollout.token_ids]).astype(np.int64)
        logits = case.student.causal_model(torch.from_numpy(ids)[None]).logits[0].double()
        rows = logits[len(rollout.prompt.token_ids) - 1 : -1]
        assert score.rows.support is not None
        chosen = rows.gather(-1, torch.from_numpy(score.rows.support.ids.astype(np.int64)))
        p = chosen.log_softmax(-1)
        q = torch.from_numpy(score.rows.support.log_probs).double().log_softmax(-1)
        loss = (p.exp() * (p - q)).sum(-1) * torch.tensor(own, dtype=torch.float64)
        used = sum(weight > 0 for weight in own)
        counts.append(used)
        total = total + (loss.sum() if mean == "token" else loss.sum() / max(used, 1))
    loss = total / (sum(counts) if mean == "token" else sum(n > 0 for n in counts))
    loss.backward()  # type: ignore[no-untyped-call]
    parameters = case.student.module.named_parameters()
    return float(loss.detach()), {n: p.grad.clone() for n, p in parameters if p.grad is not None}


def moved(case: Case) -> None:
    """As if an older student had drawn the tokens: each with other log-probabilities."""
    generator = np.random.default_rng(3)
    case.rollouts = [
        replace(
            r, log_probs=r.log_probs + generator.normal(0, 0.2, len(r.log_probs)).astype(np.float32)
        )
        for r in case.rollouts
    ]


@pytest.mark.parametrize("mean", ["token", "sequence"])
@pytest.mark.parametrize("weight", CASES, ids=str)
def test_a_weight_is_what_its_definition_says(
    make_config: MakeConfig, teacher: LocalTeacher, weight: dict[str, Any], mean: str
) -> None:
    case = Case(weighted(make_config(loss={"mean": mean}), weight), teacher)
    moved(case)
    weights = expected(case, teacher, weight)
    assert weight["kind"] == "origin" or len({x for rows in weights for x in rows}) > 1
    figures, gradients = case.gradients()
    loss, gradient = reference(case, weights, mean)
    assert figures.losses == [pytest.approx(loss, abs=1e-6)]
    assert_close(gradients, gradient)
    flat = [x for rows in weights for x in rows]
    assert figures.used == sum(x > 0 for x in flat)
    assert figures.means.mean("row_weight") == pytest.approx(np.mean(flat), rel=1e-5)
    assert figures.means.mean("row_weight_zero_share") == np.mean([x == 0 for x in flat])


def test_a_student_that_has_not_moved_has_weights_of_1_at_any_temperature(
    make_config: MakeConfig, teacher: LocalTeacher
) -> None:
    config = make_config(rollout={"temperature": 0.6}, loss={"temperature": 1.5})
    case = Case(weighted(config, {"kind": "prefix_importance"}), teacher)
    assert case.gradients()[0].means.mean("row_weight") == pytest.approx(1, abs=1e-4)


def test_surprise_adds_up_from_token_to_token_and_what_is_not_known_changes_nothing() -> None:
    nan, inf = float("nan"), float("inf")

    def weights(excess: list[float], **settings: Any) -> list[float]:
        ids, known = np.zeros(len(excess), np.int32), {"excess_surprise": np.array(excess)}
        rows = ResponseRows(ids, len(excess), "student", np.zeros(len(excess)), known)
        found: list[float] = TeacherSurprise(**settings)(rows).tolist()
        return found

    # The measure before each token: 0, 3, 0, 3, 3, 5, 4.
    excess = [3.5, -9.0, 3.5, nan, 2.5, -0.5, 0.0]
    assert weights(excess) == [1, 1, 1, 1, 1, 0, 1]
    assert weights(excess, outside=0.5, lasting=True) == [1, 1, 1, 1, 1, 0.5, 0.5]
    assert weights(excess, fall=2.0) == pytest.approx([1, 1, 1, 1, 1, math.exp(-0.5), 1])
    assert weights(excess, allowance=0.0, threshold=3.4) == [1, 0, 1, 0, 0, 0, 0]
    assert weights([inf, 0.0, 0.0, 0.0]) == [1, 0, 0, 0]
    assert weights([inf, 0.0, 0.0, 0.0], decay=0.0) == [1, 0, 1, 1]


def test_every_kind_is_checked() -> None:
    assert {case["kind"] for case in CASES} == set(REFERENCES) == set(WEIGHTS)


def test_weights_are_multiplied_in_whatever_micro_batches(
    make_config: MakeConfig, teacher: LocalTeacher
) -> None:
    both = ({"kind": "prefix_ratio"}, {"kind": "overlap", "share": 0.4}, {"kind": "place"})
    for budget in (84, 4000):
        config = weighted(make_config(optimizer={"micro_batch_tokens": budget}), *both)
        case = Case(config, teacher)
        figures, gradients = case.gradients()
        loss, gradient = reference(case, expected(case, teacher, *both), "token")
        assert figures.losses == [pytest.approx(loss, abs=1e-6)]
        assert_close(gradients, gradient)


def test_a_prefix_holds_the_tokens_that_the_mask_leaves_out(
    make_config: MakeConfig, teacher: LocalTeacher
) -> None:
    counts = np.bincount(
        np.concatenate([r.token_ids for r in Case(make_config(), teacher).rollouts]), minlength=320
    )
    masked = {"mask": {"token_ids": [int(counts.argmax())]}}
    case = Case(weighted(make_config(loss=masked), {"kind": "prefix_ratio"}), teacher)
    weights = expected(case, teacher, {"kind": "prefix_ratio"})
    kept = [
        [x if token != counts.argmax() else 0.0 for x, token in zip(rows, r.token_ids, strict=True)]
        for rows, r in zip(weights, case.rollouts, strict=True)
    ]
    figures, gradients = case.gradients()
    loss, gradient = reference(case, kept, "token")
    assert figures.losses == [pytest.approx(loss, abs=1e-6)]
    assert_close(gradients, gradient)


def test_a_stale_batch_has_its_importance_weights_too(
    make_config: MakeConfig, teacher: LocalTeacher
) -> None:
    case = Case(weighted(make_config(), {"kind": "prefix_importance"}), teacher)
    moved(case)
    weights = [
        [w * min(2.0, math.exp(now - old)) for w, now, old in
         zip(rows, sides.at(sides.p), sides.old, strict=True)]
        for rows, sides in zip(
            expected(case, teacher, {"kind": "prefix_importance"}),
            [Sides(case, teacher, rollout) for rollout in case.rollouts],
            strict=True,
        )
    ]  # fmt: skip
    figures = UpdateTotals()
    case.updater.gradients(case.rollouts, case.scores.__getitem__, figures, 1, stale=True)
    loss, _ = reference(case, weights, "token")
    assert figures.losses == [pytest.approx(loss, abs=1e-6)]


@pytest.mark.parametrize("budget", [84, 4000])
def test_rows_that_several_teachers_score_have_the_weights_of_their_own_response(
    several: MakeConfig, teacher: LocalTeacher, tiny_model_dir: Path, budget: int
) -> None:
    """In micro-batches of both teachers' rows."""
    config = several(
        {A: {"address": "a:1", "top_k": KA}, B: {"address": "b:1", "top_k": KB}},
        optimizer={"micro_batch_tokens": budget},
    )
    case: Any = Mixed(
        weighted(config, {"kind": "prefix_importance"}, {"kind": "prefix_ratio"}),
        teacher,
        LocalTeacher(tiny_model_dir),
    )
    moved(case)
    model = case.student.causal_model.double()
    total, count = torch.zeros((), dtype=torch.float64), 0
    for rollout, score in zip(case.rollouts, case.scores, strict=True):
        sides = Sides(case, teacher, rollout)
        sides.q = np.zeros((len(sides.tokens), 320))
        assert score.rows.sampled is not None
        sides.q[np.arange(len(sides.tokens)), sides.tokens] = score.rows.sampled.values
        weights = np.multiply(prefix_importance(sides), prefix_ratio(sides))
        total = total + (row_losses(model, rollout, score) * torch.from_numpy(weights)).sum()
        count += len(weights)
    expected_loss = float(total.detach()) / count
    model.float()
    figures, _ = case.gradients()
    assert figures.losses == [pytest.approx(expected_loss, abs=1e-6)]


def test_rows_that_are_not_finite_are_dropped_and_no_weights_fault(
    make_config: MakeConfig, teacher: LocalTeacher
) -> None:
    config = weighted(
        make_config(loss={"max_non_finite_share": 0.5}),
        {"kind": "tests.trainer.test_row_weights:Sure"},
    )
    case = Case(config, teacher)
    case.scores[2] = ContinuationScores(status=Status.NON_FINITE, detail="overflow")
    support = case.scores[3].rows.support
    assert support is not None
    values = support.log_probs.copy()
    values[1, 0] = np.nan
    case.scores[3] = with_arrays(case.scores[3], top_log_probs=values)
    figures, _ = case.gradients()
    assert figures.dropped_non_finite == len(case.rollouts[2].token_ids) + 1


class Sure(RowWeight):
    """Higher where the teacher is sure; without a value, none."""

    needs: ClassVar[tuple[Fact, ...]] = ("entropy",)

    def __call__(self, rows: ResponseRows) -> Float64:
        return np.exp(-rows.entropy)


class Given(RowWeight):
    """The value at the first token, 1 elsewhere."""

    value: Any = 1.0

    def __call__(self, rows: ResponseRows) -> Float64:
        weights = np.ones(len(rows.places))
        weights[0] = self.value
        return weights


class Short(RowWeight):
    def __call__(self, rows: ResponseRows) -> Float64:
        return np.ones(len(rows.places) - 1)


class Broken(RowWeight):
    def __call__(self, rows: ResponseRows) -> Float64:
        raise ZeroDivisionError("no rows")


class Undeclared(RowWeight):
    def __call__(self, rows: ResponseRows) -> Float64:
        return rows.entropy


HERE = "tests.trainer.test_row_weights"


@pytest.mark.parametrize(
    ("weight", "said"),
    [
        ({"kind": f"{HERE}:Given", "value": float("nan")}, "the weight of token 0 is nan"),
        ({"kind": f"{HERE}:Given", "value": float("inf")}, "the weight of token 0 is inf"),
        ({"kind": f"{HERE}:Given", "value": -1e-9}, "the weight of token 0 is -1e-09"),
        ({"kind": f"{HERE}:Given", "value": 1e39}, r"the weight of token 0 is 1e\+39"),
        ({"kind": f"{HERE}:Short"}, r"it gives an array of shape \(\d+,\) for \d+ tokens"),
        ({"kind": f"{HERE}:Broken"}, "it raises ZeroDivisionError: no rows"),
    ],
)
def test_a_bad_weight_refuses_the_update_and_names_the_row(
    make_config: MakeConfig, teacher: LocalTeacher, weight: dict[str, Any], said: str
) -> None:
    case = Case(weighted(make_config(), {"kind": "place"}, weight), teacher)
    before = {n: p.detach().clone() for n, p in case.student.module.named_parameters()}
    with pytest.raises(LsmError, match=said) as refused:
        case.update()
    assert refused.value.reason == "BAD_ROW_WEIGHT"
    assert refused.value.where == "weights[1]"
    assert weight["kind"] in str(refused.value)
    assert "prompts.jsonl, line" in str(refused.value)
    assert case.updater.updates == 0
    for name, value in case.student.module.named_parameters():
        assert torch.equal(value, before[name])


def test_a_run_that_a_bad_weight_ends_keeps_its_last_step(
    make_config: MakeConfig, run_server: Server, tmp_path: Path
) -> None:
    config = make_config(teacher={"address": run_server.address}, checkpoint={"every": 100})
    later = weighted(config, {"kind": f"{HERE}:AfterTwo"})
    AfterTwo.steps = 0
    with pytest.raises(LsmError, match="the weight of token 0 is nan"):
        train(later)
    assert load_state(tmp_path / "run" / "checkpoints" / "step-000002").step == 2
    AfterTwo.steps = -100
    train(later)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3]


class AfterTwo(RowWeight):
    """Good weights for six responses in each of two steps, and then none."""

    steps: ClassVar[int] = 0

    def __call__(self, rows: ResponseRows) -> Float64:
        type(self).steps += 1
        return np.full(len(rows.token_ids), 1.0 if self.steps <= 12 else np.nan)


@pytest.mark.parametrize("across", [False, True], ids=["one tokenizer", "across"])
def test_a_weighted_run_resumes_exactly(
    make_config: MakeConfig,
    run_server: Server,
    student_model_dir: Path,
    foreign_student_dir: Path,
    tmp_path: Path,
    across: bool,
) -> None:
    config = make_config(
        foreign_student_dir if across else student_model_dir,
        teacher={"address": run_server.address},
        checkpoint={"every": 1},
        pipeline={"staleness": 1},
        loss={"kind": "lsm", "top_k": 16, "masked_chunks": across},
        scoring={"scored_share": 0.7},
    )
    weights = [{"kind": "prefix_ratio"}, {"kind": "prefix_importance"}, {"kind": "place"}]
    if not across:
        weights.append({"kind": "overlap"})
    run = resumed_exactly(weighted(config, *weights), tmp_path)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert all(0 < line["row_weight"] < 1.5 for line in lines)
    assert across == (sum(line["chunk_tokens"] for line in lines) > 0)
    assert all(line["tokens_used"] > 0 for line in lines)


def test_a_fact_that_is_not_asked_for_is_not_there(
    make_config: MakeConfig, teacher: LocalTeacher
) -> None:
    case = Case(weighted(make_config(), {"kind": f"{HERE}:Undeclared"}), teacher)
    with pytest.raises(LsmError, match=r"reads 'entropy', which its `needs` does not name"):
        case.update()


def test_a_tiny_weight_leaves_its_row_in_the_mean_and_one_of_0_does_not(
    make_config: MakeConfig, teacher: LocalTeacher
) -> None:
    every = sum(len(r.token_ids) for r in Case(make_config(), teacher).rollouts)
    used = {}
    for value in (0.0, 1e-60, 1.0):
        twice = {"kind": f"{HERE}:Given", "value": value}
        case = Case(weighted(make_config(), twice, twice), teacher)
        used[value] = case.gradients()[0].used
    assert used == {0.0: every - len(case.rollouts), 1e-60: every, 1.0: every}


@pytest.mark.parametrize(
    ("loss", "weight", "said"),
    [
        (
            {"kind": "sampled_token", "top_k": 0},
            {"kind": "overlap"},
            "the weight overlap reads the",
        ),
        ({"masked_chunks": True}, {"kind": "teacher_entropy", "at_most": 1}, "learn from their"),
        ({}, {"kind": "teacher_entropy"}, "needs at_least or at_most"),
        ({}, {"kind": "teacher_entropy", "at_least": 2, "at_most": 1}, "no row is within"),
        ({}, {"kind": "teacher_surprise", "outside": 1}, "weighs every row 1"),
        (
            {"kind": "sampled_token", "top_k": 0},
            {"kind": "teacher_surprise"},
            "the weight teacher_surprise reads the excess_surprise",
        ),
        ({}, {"kind": "overlap", "share": 0}, "greater than 0"),
        ({}, {"kind": "overlap", "share": 1.01}, "less than or equal to 1"),
        ({}, {"kind": "place", "first": -1}, "greater than or equal to 0"),
        ({}, {"kind": "prefix_ratio", "cap": 2}, "cap"),
        ({}, {"kind": "nothing"}, "there is no kind 'nothing'"),
        ({}, {"first": 1}, "required and not set"),
    ],
)
def test_settings_that_cannot_be_are_refused(
    make_config: MakeConfig, loss: dict[str, Any], weight: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValidationError, match=said):
        weighted(make_config(loss=loss), weight)
