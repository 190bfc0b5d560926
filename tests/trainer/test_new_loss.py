"""A new loss is its function, its row in LOSSES and the class of its settings: no other
code of the trainer names it."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Literal, get_args

import pytest
import torch

from student_trainer.losses import LOSSES, Head, LossBatch, LossResult, LossSettings
from student_trainer.losses.choose_support import SupportKind as OfLosses
from student_trainer.losses.divergences import jsd
from student_trainer.losses.sampled_token import sampled_token
from student_trainer.losses.support import support_loss
from student_trainer.settings.every_loss import LossCommon, RowsAsked
from student_trainer.settings.loss import LossConfig, SupportKind, SupportLoss
from student_trainer.settings.train import TrainConfig
from student_trainer.update.metrics import UpdateTotals
from tests.trainer.local_teacher import LocalTeacher
from tests.trainer.test_update import Case

MakeConfig = Callable[..., TrainConfig]


class OnASupport(SupportLoss):
    kind: Literal["on_a_support"] = "on_a_support"
    beta: float = 0.25


def on_a_support(batch: LossBatch, head: Head, settings: LossSettings) -> LossResult:
    return support_loss(batch, head, settings, jsd(settings.beta))


class AtTheToken(LossCommon):
    policy_gradient: ClassVar[bool] = True
    support: ClassVar[SupportKind] = "teacher"
    support_mass: ClassVar[float | None] = None

    kind: Literal["at_the_token"] = "at_the_token"
    top_k: int = 16
    clip: float = 0.4

    def asks(self, *, realigned: bool) -> RowsAsked:
        return RowsAsked(self.top_k)


@pytest.mark.parametrize(
    ("function", "settings", "known"),
    [
        (on_a_support, OnASupport(top_k=16), {"kind": "topk_jsd", "beta": 0.25}),
        (sampled_token, AtTheToken(), {"kind": "sampled_token", "clip": 0.4}),
    ],
)
@pytest.mark.parametrize("stale", [False, True])
def test_a_new_loss_trains_as_the_known_one_it_repeats(
    monkeypatch: pytest.MonkeyPatch,
    make_config: MakeConfig,
    teacher: LocalTeacher,
    function: Callable[..., LossResult],
    settings: LossCommon,
    known: dict[str, object],
    stale: bool,
) -> None:
    new = make_config().model_copy(update={"loss": settings})
    monkeypatch.setitem(LOSSES, new.loss.kind, function)
    found = []
    for config in (new, make_config(loss=known)):
        case, totals = Case(config, teacher), UpdateTotals()
        case.updater.gradients(case.rollouts, case.scores.__getitem__, totals, 1, stale)
        masters = case.updater.optimizer.masters
        found.append((totals, {name: master.grad for name, master in masters.items()}))
    (mine, gradients), (theirs, expected) = found
    assert mine.losses == theirs.losses
    assert mine.means.all() == theirs.means.all()
    assert ("importance_weight" in mine.means.all()) == (stale and not settings.policy_gradient)
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        assert torch.equal(gradient, expected[name])


def test_settings_and_losses_know_the_same_supports() -> None:
    assert get_args(SupportKind) == get_args(OfLosses)


def test_every_loss_that_needs_no_teacher_in_this_process_can_be_configured() -> None:
    kinds = {kind.model_fields["kind"].default for kind in get_args(get_args(LossConfig)[0])}
    assert kinds == {name for name in LOSSES if not name.startswith("full_")}
