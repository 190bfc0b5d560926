"""Tokens drawn from a nucleus: what a rollout knows of it, and what a run makes of that."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from teacher_proto.errors import ConfigurationError

from student_trainer.rollout.generate import generate
from student_trainer.run.checkpoint import TrainState
from student_trainer.run.resume import check_settings, pending_batches_usable
from student_trainer.settings.train import TrainConfig
from student_trainer.student.model import load_student
from student_trainer.update.estimator import estimator_notes
from tests.trainer.local_teacher import LocalTeacher
from tests.trainer.test_checkpoint import IDENTITY
from tests.trainer.test_sampling import brute_nucleus
from tests.trainer.test_update import Case, assert_close

MakeConfig = Callable[..., TrainConfig]
SAMPLED: dict[str, Any] = {"kind": "sampled_token"}


@pytest.mark.parametrize("top_p", [0.3, 0.9, 1.0])
def test_a_rollout_knows_the_mass_of_each_nucleus(
    make_config: MakeConfig, teacher: LocalTeacher, student_model_dir: Path, top_p: float
) -> None:
    config = make_config(rollout={"top_p": top_p, "temperature": 0.8})
    student = load_student(config.student)
    prompts = Case(config, teacher).rollouts
    plain = LocalTeacher(student_model_dir)
    for rollout in generate(student, [prompts[0].prompt], config.rollout, seed=0, step=1):
        rows = plain.log_probs(rollout, temperature=0.8).exp().numpy()
        expected = [row[brute_nucleus(row, top_p)].sum(dtype=np.float64) for row in rows]
        assert rollout.nucleus_mass is not None
        np.testing.assert_allclose(rollout.nucleus_mass, expected, atol=2e-5)


@pytest.mark.parametrize(
    ("top_p", "weighed"), [(0.5, True), (0.5, False), (1.0, True)], ids=["on", "off", "top_p 1"]
)
@pytest.mark.parametrize("mean", ["token", "sequence"])
def test_a_drawn_tokens_row_counts_by_the_mass_of_its_nucleus(
    make_config: MakeConfig, teacher: LocalTeacher, top_p: float, weighed: bool, mean: str
) -> None:
    config = make_config(
        loss=SAMPLED | {"nucleus_weights": weighed, "mean": mean}, rollout={"top_p": top_p}
    )
    case = Case(config, teacher)
    figures, gradients = case.gradients()
    student = load_student(config.student)
    means = []
    for rollout, score in zip(case.rollouts, case.scores, strict=True):
        ids = np.concatenate([rollout.prompt.token_ids, rollout.token_ids]).astype(np.int64)
        logits = student.causal_model(torch.from_numpy(ids)[None]).logits[0]
        log_pi = logits[len(rollout.prompt.token_ids) - 1 : -1].log_softmax(-1)
        drawn = torch.from_numpy(rollout.token_ids.astype(np.int64))[:, None]
        own = log_pi.gather(1, drawn)[:, 0]
        assert score.rows.sampled is not None
        advantage = torch.from_numpy(score.rows.sampled.values) - own.detach()
        masses = [
            float(row[brute_nucleus(row, top_p)].sum())
            for row in log_pi.detach().exp().numpy()
        ]  # fmt: skip
        assert (min(masses) < 0.7) == (top_p < 1), "the nuclei hold less than everything"
        weights = torch.tensor(masses) if weighed else torch.ones(len(masses))
        means.append(-weights * advantage * (own - own.detach()).exp())
    loss = torch.cat(means).mean() if mean == "token" else torch.stack(
        [rows.mean() for rows in means]
    ).mean()  # fmt: skip
    loss.backward()
    assert figures.losses == [pytest.approx(float(loss.detach()), abs=1e-5)]
    parameters = student.module.named_parameters()
    assert_close(gradients, {n: p.grad for n, p in parameters if p.grad is not None}, 1e-5)


def test_rollouts_of_before_nuclei_were_kept_are_refused_by_name(
    make_config: MakeConfig, teacher: LocalTeacher
) -> None:
    case = Case(make_config(loss=SAMPLED), teacher)
    case.rollouts = [replace(rollout, nucleus_mass=None) for rollout in case.rollouts]
    with pytest.raises(ConfigurationError, match="nucleus") as caught:
        case.gradients()
    assert caught.value.where == "loss.nucleus_weights"
    for sections in (
        {"loss": SAMPLED | {"nucleus_weights": False}},
        {"loss": {"kind": "lsm"}},
        {"loss": SAMPLED, "rollout": {"top_p": 1.0}},
    ):
        other = Case(make_config(**sections), teacher)
        other.rollouts = [replace(rollout, nucleus_mass=None) for rollout in other.rollouts]
        other.gradients()


def checkpoint_of_before(config: TrainConfig) -> TrainState:
    """A checkpoint from before ``loss.nucleus_weights`` was a setting."""
    values = config.model_dump(mode="json")
    del values["loss"]["nucleus_weights"]
    return TrainState(1, 1, 3, "digest", {"default": IDENTITY}, values)


def test_an_old_run_goes_on_as_it_was_or_says_what_changed(make_config: MakeConfig) -> None:
    changes = make_config(loss=SAMPLED)
    with pytest.raises(ConfigurationError, match=r"loss\.nucleus_weights \(False to True\)"):
        check_settings(checkpoint_of_before(changes), changes.model_dump(mode="json"))
    as_before = make_config(loss=SAMPLED | {"nucleus_weights": False})
    for same in (
        as_before,
        make_config(loss=SAMPLED, rollout={"top_p": 1.0}),
        make_config(),
    ):
        now = same.model_dump(mode="json")
        check_settings(checkpoint_of_before(same), now)
        assert pending_batches_usable(checkpoint_of_before(same), now, "digest")
    allowed, now = ["loss.nucleus_weights"], changes.model_dump(mode="json")
    check_settings(checkpoint_of_before(changes), now, allowed)
    assert not pending_batches_usable(checkpoint_of_before(changes), now, "digest")


def test_the_start_says_what_top_p_leaves_out_of_the_gradient(make_config: MakeConfig) -> None:
    (note,) = estimator_notes(make_config(loss=SAMPLED))
    assert note.startswith("sampled_token learns at drawn tokens alone, and rollout.top_p = 0.9")
    assert "up to 0.1 of the probability" in note
    assert "nucleus_weights" not in note
    (note,) = estimator_notes(make_config(loss=SAMPLED | {"nucleus_weights": False}))
    assert "without loss.nucleus_weights" in note
    (note,) = estimator_notes(make_config(loss={"masked_chunks": True}))
    assert note.startswith("loss.masked_chunks learns")
    for exact in (
        make_config(),
        make_config(loss={"kind": "topk_jsd", "support": "teacher+sampled"}),
        make_config(loss=SAMPLED, rollout={"top_p": 1.0}),
    ):
        assert estimator_notes(exact) == []
