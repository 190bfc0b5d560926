"""The trainer on a GPU: its numbers against those of the CPU, and its exact resume."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from student_trainer.losses import LossSettings, lsm
from student_trainer.losses.parts.base import Head, LossBatch
from student_trainer.losses.parts.normaliser import token_log_probs, top_ids
from student_trainer.settings.train import TrainConfig
from student_trainer.student.model import load_student
from student_trainer.train import train
from tests.trainer.local_teacher import LocalTeacher
from tests.trainer.processes import Server, serve
from tests.trainer.test_run import KINDS, artefacts, in_directory, interrupted_after, losses
from tests.trainer.test_update import Case

pytestmark = pytest.mark.gpu

MakeConfig = Callable[..., TrainConfig]


@pytest.fixture(scope="module")
def server(
    gpu: str, tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path
) -> Iterator[Server]:
    """A deterministic teacher on the same GPU."""
    with serve(tmp_path_factory.mktemp("server"), default=tiny_model_dir) as running:
        yield running


def relative(actual: torch.Tensor, expected: torch.Tensor) -> float:
    difference = actual.detach().cpu().double() - expected.detach().cpu().double()
    return float(difference.norm() / expected.detach().cpu().double().norm())


@pytest.mark.parametrize("tail", ["none", "bucket"])
def test_the_loss_on_a_gpu_is_that_of_the_cpu_in_float64(gpu: str, tail: str) -> None:
    rows, width, vocabulary, count = 96, 64, 4_001, 16
    g = torch.Generator().manual_seed(0)
    weight = torch.randn(vocabulary, width, generator=g, dtype=torch.float64) * 0.2
    bias = torch.randn(vocabulary, generator=g, dtype=torch.float64) * 0.1
    ids = torch.stack([torch.randperm(vocabulary, generator=g)[:count] for _ in range(rows)])
    teacher = torch.log_softmax(torch.randn(rows, vocabulary, generator=g), -1)
    log_q = teacher.gather(1, ids)
    batch = LossBatch(
        hidden=torch.randn(rows, width, generator=g, dtype=torch.float64),
        sampled_ids=ids[:, 0].contiguous(),
        weights=torch.rand(rows, generator=g) + 0.1,
        support_ids=ids,
        support_log_probs=log_q,
        support_valid=torch.rand(rows, count, generator=g) < 0.9,
        teacher_log_tail=torch.log1p(-log_q.exp().sum(-1)),
        teacher_tail_valid=torch.ones(rows, dtype=torch.bool),
    )

    def at(device: str, dtype: torch.dtype) -> list[torch.Tensor]:
        def moved(tensor: torch.Tensor) -> torch.Tensor:
            wide = tensor.dtype in (torch.float64, torch.float32)
            return tensor.detach().to(device, dtype if wide else tensor.dtype, copy=True)

        parts = {k: moved(v) for k, v in vars(batch).items() if isinstance(v, torch.Tensor)}
        hidden = parts["hidden"].requires_grad_()
        head = Head(moved(weight).requires_grad_(), moved(bias).requires_grad_())
        settings = LossSettings(tail=tail, chunk_rows=32)  # type: ignore[arg-type]
        result = lsm(replace(batch, **parts), head, settings)
        assert bool(result.used.all())
        result.total.backward()
        return [result.total, hidden.grad, head.weight.grad, head.bias.grad]  # type: ignore[list-item, union-attr]

    expected = at("cpu", torch.float64)
    for actual, reference in zip(at(gpu, torch.float32), expected, strict=True):
        assert relative(actual, reference) < 2e-5


def test_log_probabilities_and_likeliest_ids_on_a_gpu(gpu: str) -> None:
    g = torch.Generator().manual_seed(1)
    hidden, weight = torch.randn(40, 32, generator=g), torch.randn(3_000, 32, generator=g)
    ids = torch.randint(0, 3_000, (40,), generator=g)
    exact = torch.log_softmax(hidden.double() @ weight.double().T / 0.7, -1)
    there = token_log_probs(hidden.to(gpu), Head(weight.to(gpu)), ids.to(gpu), 0.7, 16)
    assert float((there.cpu().double() - exact.gather(1, ids[:, None])[:, 0]).abs().max()) < 1e-4
    found = top_ids(hidden.to(gpu), Head(weight.to(gpu)), 8, 16, 3_000).cpu()
    assert found.sort(-1).values.equal(exact.topk(8).indices.sort(-1).values)


def test_an_update_on_a_gpu_is_that_of_the_cpu(
    gpu: str, make_config: MakeConfig, teacher: LocalTeacher
) -> None:
    here = Case(make_config(), teacher)
    there = Case(make_config(student={"device": gpu}), teacher)
    assert there.student.device.type == "cuda"
    # Of the same rollouts: each device draws its own.
    there.rollouts, there.scores = here.rollouts, here.scores
    (totals, expected), (other, actual) = here.gradients(), there.gradients()
    np.testing.assert_allclose(sum(other.losses), sum(totals.losses), rtol=1e-4)
    assert expected.keys() == actual.keys()
    for name in expected:
        assert relative(actual[name], expected[name]) < 1e-3, name


def test_the_policy_of_a_rollout_on_a_gpu_is_that_of_its_update(
    gpu: str, make_config: MakeConfig, teacher: LocalTeacher
) -> None:
    case = Case(make_config(student={"device": gpu}), teacher)
    student = load_student(make_config().student)
    for rollout in case.rollouts:
        ids = torch.tensor([[*rollout.prompt.token_ids, *rollout.token_ids]])
        count = len(rollout.token_ids)
        with torch.no_grad():
            logits = student.causal_model(input_ids=ids).logits[0, -count - 1 : -1]
        exact = torch.log_softmax(logits.double(), -1).gather(1, ids[0, -count:, None])[:, 0]
        np.testing.assert_allclose(rollout.log_probs, exact.numpy(), atol=2e-3)


@pytest.mark.parametrize("kind", ["full", "bfloat16", "lora", "tail", "student", "stale"])
def test_a_run_on_a_gpu_that_is_resumed_equals_an_uninterrupted_one(
    gpu: str, make_config: MakeConfig, server: Server, tmp_path: Path, kind: str
) -> None:
    sections: dict[str, Any] = {**KINDS[kind], "teacher": {"address": server.address}}
    sections["student"] = {**sections.get("student", {}), "device": gpu}
    settings = make_config(checkpoint={"every": 1}, **sections)
    straight = train(in_directory(settings, tmp_path / "straight"))
    broken = tmp_path / "broken"
    interrupted_after(in_directory(settings, broken), 2)
    train(in_directory(settings, broken))
    assert losses(broken) == losses(straight)
    assert artefacts(broken, 3) == artefacts(straight, 3)
