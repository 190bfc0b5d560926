"""A new loss is one class in one file: no other code of the trainer names it."""

from __future__ import annotations

import ast
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, ClassVar

import pytest
import torch
from pydantic import Field
from teacher_proto.errors import LsmError

import student_trainer
from student_trainer.losses import (
    LOSSES,
    Head,
    Loss,
    LossBatch,
    LossResult,
    LossSettings,
    LsmLoss,
    RowsAsked,
    SupportLoss,
    sampled_token,
    support_loss,
)
from student_trainer.losses.parts.divergences import jsd
from student_trainer.settings.train import TrainConfig
from student_trainer.update.metrics import UpdateTotals
from tests.trainer.local_teacher import LocalTeacher
from tests.trainer.test_update import Case

MakeConfig = Callable[..., TrainConfig]


class OnASupport(SupportLoss):
    """As topk_jsd."""

    weight: float = 0.25

    def __call__(self, batch: LossBatch, head: Head) -> LossResult:
        return support_loss(batch, head, self, jsd(self.weight))


class AtTheToken(Loss):
    """As sampled_token."""

    at_sampled_token: ClassVar[bool] = True
    own_ratio: ClassVar[bool] = True
    rollout_temperature: ClassVar[bool] = True

    top_k: int = 8
    width: Annotated[float, Field(gt=0)] = 0.4

    def asks(self, *, realigned: bool) -> RowsAsked:
        return RowsAsked(self.top_k)

    def __call__(self, batch: LossBatch, head: Head) -> LossResult:
        settings = LossSettings(self.temperature, self.chunk_rows, clip=self.width)
        return sampled_token(batch, head, settings)


@pytest.mark.parametrize(
    ("name", "settings", "known"),
    [
        ("OnASupport", {"top_k": 16}, {"kind": "topk_jsd", "beta": 0.25, "top_k": 16}),
        ("AtTheToken", {}, {"kind": "sampled_token", "clip": 0.4, "top_k": 16}),
    ],
)
@pytest.mark.parametrize("stale", [False, True])
def test_a_new_loss_trains_as_the_known_one_it_repeats(
    make_config: MakeConfig,
    teacher: LocalTeacher,
    name: str,
    settings: dict[str, object],
    known: dict[str, object],
    stale: bool,
) -> None:
    found = []
    for loss in ({"kind": f"{__name__}:{name}", **settings}, known):
        config = make_config(loss=loss)
        case, totals = Case(config, teacher), UpdateTotals()
        case.updater.gradients(case.rollouts, case.scores.__getitem__, totals, 1, stale)
        masters = case.updater.optimizer.masters
        found.append((totals, {name: master.grad for name, master in masters.items()}))
    (mine, gradients), (theirs, expected) = found
    assert mine.losses == theirs.losses
    assert mine.means.all() == theirs.means.all()
    assert ("importance_weight" in mine.means.all()) == (stale and name == "OnASupport")
    assert gradients.keys() == expected.keys()
    for parameter, gradient in gradients.items():
        assert torch.equal(gradient, expected[parameter])


def test_a_new_loss_says_what_it_needs(make_config: MakeConfig) -> None:
    at_token = {"kind": f"{__name__}:AtTheToken"}
    with pytest.raises(ValueError, match=r"loss\.temperature \(0\.5\) must equal"):
        make_config(loss=at_token | {"temperature": 0.5})
    assert make_config(loss=at_token, rollout={"top_p": 0.9}).learns_from_nuclei
    on_support = {"kind": f"{__name__}:OnASupport"}
    assert make_config(loss=on_support | {"temperature": 0.5}).loss.temperature == 0.5
    assert not make_config(loss=on_support, rollout={"top_p": 0.9}).learns_from_nuclei


def test_a_class_without_a_kind_is_called_by_its_dotted_name(make_config: MakeConfig) -> None:
    config = make_config().model_copy(update={"loss": OnASupport(weight=0.5)})
    assert config.loss.kind == f"{__name__}:OnASupport"
    assert TrainConfig.model_validate(config.model_dump()) == config


def test_the_losses_are_called_by_their_kinds() -> None:
    assert {kind: loss.model_fields["kind"].default for kind, loss in LOSSES.items()} == {
        kind: kind for kind in LOSSES
    }


class Wrong(SupportLoss):
    """Its result is spoilt."""

    how: str

    def __call__(self, batch: LossBatch, head: Head) -> LossResult:
        good = support_loss(batch, head, self, jsd(0.5))
        spoilt: dict[str, Callable[[], object]] = {
            "a number": lambda: good.total,
            "rows": lambda: replace(good, total=good.per_row),
            "fewer rows": lambda: replace(good, per_row=good.per_row[1:]),
            "floats": lambda: replace(good, used=good.used.float()),
            "detached": lambda: replace(good, total=good.total.detach()),
            "plain total": lambda: replace(good, total=float(good.total.detach())),  # type: ignore[arg-type]
            "no per_row": lambda: replace(good, per_row=None),  # type: ignore[arg-type]
            "tensors": lambda: replace(good, metrics={"mine": good.total.detach()}),  # type: ignore[dict-item]
            "nan": lambda: replace(good, coarse_metrics={"mine": float("nan")}),
        }
        return spoilt[self.how]()  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("a number", r"test_new_loss:Wrong gives Tensor, and not a LossResult"),
        ("rows", r"gives total of shape \(\d+,\), and not a scalar"),
        ("fewer rows", r"gives per_row of shape \(\d+,\) for rows of shape \(\d+,\)"),
        ("floats", r"gives used as torch\.float32, and not as torch\.bool"),
        ("detached", "without a gradient"),
        ("plain total", "gives total as float, and not as a tensor"),
        ("no per_row", "gives per_row as NoneType, and not as a tensor"),
        ("tensors", "gives the metric 'mine' as Tensor, and not as a number"),
        ("nan", "gives the metric 'mine' as nan, which is not finite"),
    ],
)
def test_a_result_that_is_none_says_why(
    how: str, says: str, make_config: MakeConfig, teacher: LocalTeacher
) -> None:
    case = Case(make_config(loss={"kind": f"{__name__}:Wrong", "how": how}), teacher)
    with pytest.raises(LsmError, match=says) as caught:
        case.updater.gradients(case.rollouts, case.scores.__getitem__, UpdateTotals(), 1, False)
    assert caught.value.where == "loss.kind"


class Lsm(LsmLoss):
    """Has the kind of the class that it extends."""


class CalledByItsName(LsmLoss):
    kind: str = ""  # type: ignore[assignment]


class NoRows(Loss):
    top_k: int = 8

    def __call__(self, batch: LossBatch, head: Head) -> LossResult:
        return sampled_token(batch, head, LossSettings())


class NoCall(SupportLoss):
    pass


class Asks(OnASupport):
    how: str

    def asks(self, *, realigned: bool) -> RowsAsked:
        return RowsAsked(-3) if self.how == "too few" else 5  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("name", "settings", "says"),
    [
        ("Lsm", {}, r"Lsm already has the kind 'lsm'.*write `kind: str = \"\"`"),
        ("NoRows", {}, "NoRows has no asks: write it, or extend SupportLoss"),
        ("NoCall", {}, "NoCall has no __call__"),
        ("Asks", {"how": "too few"}, r"Asks\.asks gives top_k = -3"),
        ("Asks", {"how": "a number"}, r"Asks\.asks gives int, and not RowsAsked"),
    ],
)
def test_a_class_that_lacks_a_part_is_refused_with_its_settings(
    name: str, settings: dict[str, object], says: str, make_config: MakeConfig
) -> None:
    with pytest.raises(ValueError, match=says):
        make_config(loss={"kind": f"{__name__}:{name}", **settings})


def test_a_class_that_extends_a_known_loss_can_be_called_by_its_name(
    make_config: MakeConfig,
) -> None:
    kind = f"{__name__}:CalledByItsName"
    loss = make_config(loss={"kind": kind, "top_k": 9}).loss
    assert (type(loss), loss.kind) == (CalledByItsName, kind)
    assert CalledByItsName().kind == kind


@pytest.mark.parametrize("kind", LOSSES)
def test_every_loss_makes_a_step(kind: str, make_config: MakeConfig, teacher: LocalTeacher) -> None:
    study = {"study": True} if "study" in LOSSES[kind].model_fields else {}
    case = Case(make_config(loss={"kind": kind, **study}), teacher)
    totals = UpdateTotals()
    case.updater.gradients(case.rollouts, case.scores.__getitem__, totals, 1, False)
    assert totals.used == sum(len(rollout.token_ids) for rollout in case.rollouts)
    found = [master.grad for master in case.updater.optimizer.masters.values()]
    assert all(grad is not None and bool(grad.isfinite().all()) for grad in found)
    assert any(bool((grad != 0).any()) for grad in found if grad is not None)


def test_no_code_but_a_loss_s_own_file_knows_it_by_name() -> None:
    """Neither its kind nor its class stands outside of ``losses``, except the default, and in a
    study of what certain losses do."""
    package = Path(student_trainer.__file__).parent
    names = {kind: kind for kind in LOSSES} | {loss.__name__: k for k, loss in LOSSES.items()}
    found = set()
    for file in package.rglob("*.py"):
        if file.is_relative_to(package / "losses"):
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            text = node.value if isinstance(node, ast.Constant) else getattr(node, "id", None)
            if isinstance(text, str) and text in names:
                found.add((str(file.relative_to(package)), names[text]))
    default = {("settings/train.py", "lsm"), ("settings/kinds.py", "lsm"), ("__init__.py", "lsm")}
    compared = {
        ("study/repetition/signals.py", kind)
        for kind in ("lsm", "sampled_token", "topk_forward_kl")
    }
    assert found == default | compared
