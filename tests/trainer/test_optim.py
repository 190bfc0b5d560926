"""AdamW, schedule, clipping and float32 masters."""

from __future__ import annotations

import pytest
import torch
from teacher_proto.errors import ConfigurationError
from torch import nn

from student_trainer.settings.train import OptimizerSettings
from student_trainer.update.optim import Optimizer, learning_rate


def test_schedules() -> None:
    def rates(**changes: object) -> list[float]:
        settings = OptimizerSettings(lr=1.0, **changes)  # type: ignore[arg-type]
        return [learning_rate(settings, update, 6) for update in range(6)]

    assert rates() == [1.0] * 6
    assert rates(warmup_steps=2) == [0.5, 1.0, 1.0, 1.0, 1.0, 1.0]
    assert rates(schedule="linear", warmup_steps=2) == [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]
    cosine = rates(schedule="cosine")
    assert cosine[0] == 1.0
    assert cosine[3] == pytest.approx(0.5)
    assert cosine == sorted(cosine, reverse=True)


def small(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(4, 3).to(dtype)


def backward(module: nn.Module, factor: float = 1.0) -> None:
    weight = next(module.parameters())
    x = torch.linspace(-1, 1, 8, dtype=weight.dtype).reshape(2, 4)
    (module(x).float().square().sum() * factor).backward()


def test_equals_torch_adamw_with_undecayed_vectors() -> None:
    settings = OptimizerSettings(lr=0.1, weight_decay=0.5, clip_norm=None)
    ours, theirs = small(), small()
    optimizer = Optimizer(ours, settings)
    reference = torch.optim.AdamW(
        [
            {"params": [theirs.weight], "weight_decay": 0.5},
            {"params": [theirs.bias], "weight_decay": 0.0},
        ],
        lr=0.1,
        eps=1e-8,
        fused=False,
    )
    for _ in range(3):
        reference.zero_grad()
        backward(theirs)
        reference.step()
        optimizer.zero_grad()
        backward(ours)
        optimizer.step(0.1)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def test_scaling_and_clipping() -> None:
    module = small()
    optimizer = Optimizer(module, OptimizerSettings(clip_norm=1.0))
    backward(module)
    plain = torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])
    norm = optimizer.scale_gradients(0.5)
    assert norm == pytest.approx(float(plain.norm()) / 2, rel=1e-6)
    assert norm > 1
    assert optimizer.clip(norm)
    clipped = torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])
    assert float(clipped.norm()) == pytest.approx(1.0, rel=1e-6)
    torch.testing.assert_close(clipped, plain / plain.norm())
    assert not optimizer.clip(0.9)


def test_bfloat16_parameters_have_float32_masters() -> None:
    module = small(torch.bfloat16)
    optimizer = Optimizer(module, OptimizerSettings(lr=1e-4, clip_norm=None))
    assert not optimizer.accumulates_in_place
    first = module.weight.detach().clone()
    backward(module)
    once = optimizer.masters["weight"].grad.clone()
    # 1/256 of the gradient is lost in a bfloat16 sum and kept in a float32 one.
    backward(module, 1 / 256)
    assert optimizer.masters["weight"].grad.dtype == torch.float32
    assert not torch.equal(optimizer.masters["weight"].grad.bfloat16().float(), once)
    torch.testing.assert_close(
        optimizer.masters["weight"].grad, once * (1 + 1 / 256), rtol=1e-4, atol=1e-6
    )
    # Each step is too small for bfloat16 to show; the master adds them up.
    for _ in range(60):
        optimizer.zero_grad()
        backward(module)
        optimizer.step(1e-4)
    assert not torch.equal(module.weight, first)
    assert torch.equal(module.weight, optimizer.masters["weight"].bfloat16())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_state_restores_to_the_bit(dtype: torch.dtype) -> None:
    def run(module: nn.Module, optimizer: Optimizer, steps: int) -> None:
        for _ in range(steps):
            optimizer.zero_grad()
            backward(module)
            optimizer.step(0.01)

    settings = OptimizerSettings(lr=0.01)
    straight = small(dtype)
    run(straight, Optimizer(straight, settings), 5)
    broken = small(dtype)
    before = Optimizer(broken, settings)
    run(broken, before, 2)
    state = {name: tensor.clone() for name, tensor in before.state().items()}
    resumed = small(dtype)
    resumed.load_state_dict(broken.state_dict())
    after = Optimizer(resumed, settings)
    after.load(state)
    run(resumed, after, 3)
    assert torch.equal(resumed.weight, straight.weight)
    assert torch.equal(resumed.bias, straight.bias)


def test_state_of_other_parameters_is_refused() -> None:
    optimizer = Optimizer(small(), OptimizerSettings())
    with pytest.raises(ConfigurationError, match="other parameters"):
        optimizer.load({"exp_avg/elsewhere": torch.zeros(1)})
    frozen = small().requires_grad_(False)
    with pytest.raises(ConfigurationError, match="no trainable parameter"):
        Optimizer(frozen, OptimizerSettings())
