"""The policy gradient of scores beside the loss, against its definition in float64."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from student_trainer.rewards import RewardSettings, group_advantages
from student_trainer.settings.train import TrainConfig
from student_trainer.student.model import load_student
from student_trainer.tasks.judgement import Judgement, failed
from student_trainer.update.estimator import estimator_notes
from student_trainer.update.metrics import UpdateTotals
from student_trainer.verification.rewards import reward_metrics, with_advantages
from tests.tasks.tools import of_task, response_to
from tests.trainer import test_teachers
from tests.trainer.local_teacher import LocalTeacher
from tests.trainer.test_teachers import A, B, Mixed
from tests.trainer.test_update import Case, assert_close, reference

MakeConfig = Callable[..., TrainConfig]
several = test_teachers.several  # a fixture
CLIP, DUAL_CLIP = 0.3, 1.4
LEARNT = {"weight": 0.5, "clip": CLIP, "dual_clip": DUAL_CLIP}


def rewarded(config: TrainConfig, **settings: Any) -> TrainConfig:
    """The configuration with rewards, as if its prompts were a task's."""
    return config.model_copy(update={"reward": RewardSettings(**LEARNT | settings)})


def with_moved(case: Any) -> None:
    """Gives the responses advantages, one of them none, and makes tokens less and more likely than
    they were when they were drawn."""
    generator = np.random.default_rng(4)
    case.rollouts = [
        replace(
            one,
            advantage=0.0 if place == 1 else float(generator.normal()),
            log_probs=one.log_probs
            + generator.normal(0, 0.4, len(one.log_probs)).astype(np.float32),
        )
        for place, one in enumerate(case.rollouts)
    ]


def terms(case: Any, temperature: float = 1.0) -> list[torch.Tensor]:
    """The term of each row of each response, float64, token by token."""
    found = []
    for rollout in case.rollouts:
        ids = np.concatenate([rollout.prompt.token_ids, rollout.token_ids]).astype(np.int64)
        logits = case.student.causal_model(torch.from_numpy(ids)[None]).logits[0].double()
        rows = (logits[len(rollout.prompt.token_ids) - 1 : -1] / temperature).log_softmax(-1)
        of_response = []
        for row, token, old in zip(rows, rollout.token_ids, rollout.log_probs, strict=True):
            ratio = (row[int(token)] - float(old)).exp()
            gain = rollout.advantage * ratio
            bounded = rollout.advantage * min(max(float(ratio.detach()), 1 - CLIP), 1 + CLIP)
            if bounded < float(gain.detach()):
                gain = torch.tensor(bounded, dtype=torch.float64)
            if rollout.advantage < 0 and float(gain.detach()) < DUAL_CLIP * rollout.advantage:
                gain = torch.tensor(DUAL_CLIP * rollout.advantage, dtype=torch.float64)
            of_response.append(-gain)
        found.append(torch.stack(of_response))
    return found


def gradients_of(case: Any, total: torch.Tensor) -> dict[str, torch.Tensor]:
    case.student.module.zero_grad()
    total.backward()  # type: ignore[no-untyped-call]
    named = case.student.module.named_parameters()
    return {n: p.grad.clone() for n, p in named if p.grad is not None}


def added(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value + other[name] for name, value in one.items()}


@pytest.mark.parametrize("mean", ["token", "sequence"])
@pytest.mark.parametrize("budget", [84, 4000])
def test_the_term_is_what_its_definition_says(
    make_config: MakeConfig, teacher: LocalTeacher, mean: str, budget: int
) -> None:
    config = make_config(loss={"mean": mean}, optimizer={"micro_batch_tokens": budget})
    case = Case(rewarded(config), teacher)
    with_moved(case)
    figures, gradients = case.gradients()
    loss, of_loss = reference(load_student(config.student), case.rollouts, case.scores, mean)
    rows = terms(case)
    ratios = torch.cat(rows).tolist()
    assert len(set(ratios)) > 10
    assert 0.0 in ratios
    whole = (
        torch.cat(rows).mean() if mean == "token" else torch.stack([r.mean() for r in rows]).mean()
    )
    assert_close(gradients, added(gradients_of(case, whole), of_loss))
    assert figures.losses == [pytest.approx(loss, abs=1e-6)], "the loss is told without the term"
    assert figures.means.mean("reward_loss") == pytest.approx(
        float(torch.cat(rows).detach().mean()), rel=1e-5
    )
    assert 0 < figures.means.mean("reward_ratio_clipped") < 1  # type: ignore[operator]


def test_the_ratio_is_at_the_temperature_of_the_rollouts_and_is_no_importance_weight(
    make_config: MakeConfig, teacher: LocalTeacher
) -> None:
    config = make_config(rollout={"temperature": 0.7}, pipeline={"importance_weights": False})
    case = Case(rewarded(config), teacher)
    with_moved(case)
    figures = UpdateTotals()
    case.updater.gradients(case.rollouts, case.scores.__getitem__, figures, 1, stale=True)
    masters = case.updater.optimizer.masters
    gradients = {n: m.grad.clone() for n, m in masters.items() if m.grad is not None}
    _, of_loss = reference(load_student(config.student), case.rollouts, case.scores, "token")
    whole = torch.cat(terms(case, 0.7)).mean()
    assert_close(gradients, added(gradients_of(case, whole), of_loss))
    weighed = Case(rewarded(make_config(rollout={"temperature": 0.7})), teacher)
    weighed.rollouts = case.rollouts
    again = UpdateTotals()
    weighed.updater.gradients(weighed.rollouts, case.scores.__getitem__, again, 1, stale=True)
    assert again.means.mean("reward_loss") == figures.means.mean("reward_loss")


def test_rows_that_are_not_in_the_loss_have_no_term(
    make_config: MakeConfig, teacher: LocalTeacher
) -> None:
    plain = Case(make_config(), teacher)
    counts = np.bincount(np.concatenate([r.token_ids for r in plain.rollouts]))
    common = int(counts.argmax())
    config = make_config(loss={"mask": {"token_ids": [common]}})
    with_term, without = Case(rewarded(config), teacher), Case(config, teacher)
    with_moved(with_term)
    _, found = with_term.gradients()
    _, base = without.gradients()
    kept = torch.from_numpy(np.concatenate([r.token_ids for r in with_term.rollouts]) != common)
    whole = torch.cat(terms(with_term))[kept].mean()
    assert_close(found, added(gradients_of(with_term, whole), base))


@pytest.mark.parametrize("balance", ["rows", "teachers"])
def test_the_weight_of_a_teacher_is_not_that_of_rewards(
    several: MakeConfig, teacher: LocalTeacher, tiny_model_dir: Path, balance: str
) -> None:
    def make(**reward: Any) -> Any:
        config = several(
            {A: {"address": "a:1", "weight": 3.0}, B: {"address": "b:1", "weight": 0.25}},
            loss={"balance": balance},
        )
        return Mixed(rewarded(config, **reward), teacher, LocalTeacher(tiny_model_dir))

    case, base = make(), make(weight=0.0)
    with_moved(case)
    _, found = case.gradients()
    _, without = base.gradients()
    rows = terms(case)
    names = [rollout.prompt.teacher for rollout in case.rollouts]
    if balance == "rows":
        whole = torch.cat(rows).mean()
    else:
        of = [
            torch.cat([r for r, name in zip(rows, names, strict=True) if name == one]).mean()
            for one in (A, B)
        ]
        whole = torch.stack(of).mean()
    assert_close(found, added(gradients_of(case, whole), without))


def by_hand(scores: Sequence[float | None], normalise: str) -> list[float]:
    known = [score for score in scores if score is not None]
    if len(set(known)) < 2:
        return [0.0] * len(scores)
    mean = statistics.fmean(known)
    by = statistics.stdev(known) if normalise == "deviation" else 1.0
    return [0.0 if score is None else (score - mean) / by for score in scores]


@pytest.mark.parametrize("normalise", ["mean", "deviation"])
def test_advantages_are_those_of_the_group(normalise: Any) -> None:
    for scores in itertools.product([0.0, 0.3, 1.0, None], repeat=4):
        found = group_advantages(scores, normalise)
        assert found.tolist() == pytest.approx(by_hand(scores, normalise), abs=1e-12)
    assert group_advantages([0.1] * 3, normalise).tolist() == [0.0] * 3
    assert group_advantages([1.0], normalise).tolist() == [0.0]


@pytest.mark.parametrize("normalise", ["mean", "deviation"])
def test_scores_that_differ_by_rounding_are_equal(normalise: Any) -> None:
    assert 0.1 + 0.2 != 0.3
    assert group_advantages([0.1 + 0.2, 0.3, 0.3, None], normalise).tolist() == [0.0] * 4
    near = [0.3, 0.3 + 1e-6]
    assert group_advantages(near, normalise).tolist() == pytest.approx(by_hand(near, normalise))


def test_a_response_without_a_score_is_left_out_and_counted() -> None:
    prompt = of_task("sums", {})
    judged = [
        Judgement(1.0), Judgement(0.0), failed("time", "slow"), failed("start", "none"),
        Judgement(0.5), Judgement(0.5), failed("raised", "x"), Judgement(0.5),
        None, None, None, None,
    ]  # fmt: skip
    responses = [response_to(prompt, n % 4, 3) for n in range(12)]
    settings = RewardSettings(weight=2.0)
    found = with_advantages(responses, judged, settings, weight=2.0, size=4)
    assert [one.advantage for one in found] == [1.0, -1.0, *[0.0] * 10]
    assert [replace(one, advantage=0.0) for one in found] == responses
    assert reward_metrics(judged, settings, weight=2.0, size=4) == {
        "reward_weight": 2.0,
        "reward_mean": 0.5,
        "reward_advantage_deviation": pytest.approx(math.sqrt(0.5 / 8)),
        "reward_groups_without_signal_share": 0.5,
        "reward_unscored_responses": 3,
    }
    nought = RewardSettings(weight=2.0, failed_score=0.0)
    found = with_advantages(responses, judged, nought, weight=3.0, size=4)
    assert [one.advantage for one in found[:4]] == pytest.approx([2.0, -1.0, -1.0, 0.0])
    assert [one.advantage for one in found[4:8]] == pytest.approx([0.375, 0.375, -1.125, 0.375])
    assert reward_metrics(judged, nought, weight=3.0, size=4)["reward_unscored_responses"] == 1
    empty = reward_metrics([None] * 4, settings, weight=2.0, size=4)
    assert empty["reward_mean"] is None
    assert empty["reward_groups_without_signal_share"] is None


def test_the_weight_follows_its_schedule() -> None:
    constant = RewardSettings(weight=0.3)
    linear = RewardSettings(weight=1.0, last_weight=0.2, schedule="linear")
    cosine = RewardSettings(weight=0.0, last_weight=2.0, schedule="cosine")
    assert [constant.weight_at(step, 5) for step in (1, 3, 5)] == [0.3] * 3
    assert [linear.weight_at(step, 5) for step in range(1, 6)] == pytest.approx(
        [1.0, 0.8, 0.6, 0.4, 0.2]
    )
    assert [cosine.weight_at(step, 5) for step in range(1, 6)] == pytest.approx(
        [2 * math.sin(math.pi * done / 8) ** 2 for done in range(5)]
    )
    assert cosine.weight_at(1, 1) == 0.0
    assert [one.learns for one in (constant, linear, cosine, RewardSettings())] == [
        True, True, True, False,
    ]  # fmt: skip


TASKS = {"sums": {"kind": "reasoning_gym", "family": "chain_sum"}}
BAD: list[tuple[str, dict[str, Any], str]] = [
    ("no tasks", {}, "there are no [tasks.NAME]"),
    (
        "no judge",
        {"tasks": {"talk": {"kind": "chat", "train": "x"}}},
        "no task that is trained on judges",
    ),
    (
        "evaluated alone",
        {"tasks": {"talk": {"kind": "chat", "train": "x"}, "sums": {**TASKS["sums"], "weight": 0}}},
        "no task that is trained on judges",
    ),
    (
        "not judged",
        {"tasks": TASKS, "verification": {"training": False}},
        "verification.training = false",
    ),
    ("a group of one", {"tasks": TASKS, "rollout": {"group_size": 1}}, "rollout.group_size = 1"),
    (
        "answers",
        {"tasks": TASKS, "mixing": {"share": 0.5}},
        "mixing learns from answers of data.train",
    ),
    (
        "no end",
        {"tasks": TASKS, "reward": {"weight": 1.0, "schedule": "linear"}},
        "set last_weight",
    ),
    ("no course", {"tasks": TASKS, "reward": {"weight": 1.0, "last_weight": 0.0}}, "is constant"),
]


@pytest.mark.parametrize(("sections", "why"), [case[1:] for case in BAD], ids=[c[0] for c in BAD])
def test_what_rewards_cannot_be_learnt_from_is_refused(
    make_config: MakeConfig, sections: dict[str, Any], why: str
) -> None:
    values = make_config().model_dump(mode="json")
    if "tasks" in sections:
        values["data"]["train"] = None
    values["reward"] = {"weight": 0.1}
    for name, section in sections.items():
        values[name] = {**(values[name] or {}), **section} if name != "tasks" else section
    with pytest.raises(ValidationError, match=why.replace("[", r"\[")):
        TrainConfig.model_validate(values)


def test_the_start_says_that_a_nucleus_makes_the_gradient_another_one(
    make_config: MakeConfig,
) -> None:
    (note,) = estimator_notes(rewarded(make_config(rollout={"top_p": 0.9})))
    assert note.startswith("reward: rollout.top_p = 0.9")
    assert estimator_notes(rewarded(make_config(rollout={"top_p": 1.0}))) == []
