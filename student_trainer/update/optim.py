"""AdamW over float32 parameters, the schedule of the learning rate, and clipping.

A float32 parameter is updated in place. A bfloat16 parameter has a float32 master: after
each micro-batch's backward its gradient is added up in float32, AdamW updates the master,
and the parameter is the rounded master.

Where ranks share the parameters, each updates its part of them (DTensor), which is float32.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from teacher_proto.errors import ConfigurationError
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from student_trainer.distributed.shards import Shards
from student_trainer.distributed.world import ALONE
from student_trainer.settings.train import OptimizerSettings

MOMENTS = ("exp_avg", "exp_avg_sq")
# Devices where torch makes a step in one pass over each parameter, without copies of its size.
FUSED = ("cpu", "cuda")


def learning_rate(settings: OptimizerSettings, update: int, updates: int) -> float:
    """The learning rate of update 0, 1, ... of ``updates``.

    Warm-up rises linearly and reaches the peak at its last update. The linear and the
    cosine schedule then fall, and would reach 0 one update after the last.
    """
    if update < settings.warmup_steps:
        return settings.lr * (update + 1) / settings.warmup_steps
    if settings.schedule == "constant":
        return settings.lr
    done = (update - settings.warmup_steps) / max(updates - settings.warmup_steps, 1)
    if settings.schedule == "linear":
        return settings.lr * (1 - done)
    return settings.lr * 0.5 * (1 + math.cos(math.pi * done))


class Optimizer:
    """AdamW on the trainable parameters of a module.

    The gradients of backward passes add up until ``zero_grad``.

    Args:
        shards: of the module, where ranks share its parameters.
    """

    def __init__(
        self, module: nn.Module, settings: OptimizerSettings, shards: Shards | None = None
    ) -> None:
        self.settings = settings
        self._world = ALONE if shards is None else shards.world
        # Whether what the ranks hold is the master of a parameter that is gathered narrower.
        self._narrows = shards is not None and shards.narrows
        self.parameters = {n: p for n, p in module.named_parameters() if p.requires_grad}
        if not self.parameters:
            raise ConfigurationError("the student has no trainable parameter", where="student")
        self.masters = {name: self._master(p) for name, p in self.parameters.items()}
        matrices = [m for m in self.masters.values() if m.ndim >= 2]
        vectors = [m for m in self.masters.values() if m.ndim < 2]
        groups = [
            {"params": matrices, "weight_decay": settings.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ]
        self.adamw = torch.optim.AdamW(
            [group for group in groups if group["params"]],
            lr=settings.lr,
            betas=settings.betas,
            eps=settings.eps,
            fused=all(master.device.type in FUSED for master in self.masters.values()),
        )
        self._aside: list[Tensor] | None = None
        self.zero_grad()

    @staticmethod
    def _master(parameter: nn.Parameter) -> Tensor:
        if parameter.dtype == torch.float32:
            return parameter
        master = parameter.detach().float().requires_grad_()

        def collect(source: Tensor) -> None:
            assert source.grad is not None
            assert master.grad is not None
            master.grad += source.grad
            source.grad = None

        parameter.register_post_accumulate_grad_hook(collect)  # type: ignore[no-untyped-call]
        return master

    @property
    def accumulates_in_place(self) -> bool:
        """Whether every parameter is its own master."""
        return all(self.masters[name] is p for name, p in self.parameters.items())

    def zero_grad(self) -> None:
        """Sets the gradients to 0; those that were dropped are allocated."""
        for master in self.masters.values():
            if master.grad is None:
                master.grad = torch.zeros_like(master)
            else:
                master.grad.zero_()

    def drop_gradients(self) -> None:
        """Frees the gradients; ``zero_grad`` allocates them again."""
        for master in self.masters.values():
            master.grad = None

    @torch.no_grad()
    def set_aside(self, factor: float) -> None:
        """Keeps the gradients, multiplied by ``factor``, and sets them to 0, so that what adds
        up next can be multiplied by another. What is kept takes as much memory as they do."""
        gradients = self._gradients()
        if self._aside is None:
            self._aside = [torch.zeros_like(gradient) for gradient in gradients]
        torch._foreach_add_(self._aside, gradients, alpha=factor)
        self.zero_grad()

    @torch.no_grad()
    def take_back(self) -> None:
        """Adds what ``set_aside`` kept to the gradients, and keeps nothing any more."""
        if self._aside is not None:
            torch._foreach_add_(self._gradients(), self._aside)
            self._aside = None

    @torch.no_grad()
    def scale_gradients(self, factor: float) -> float:
        """Multiplies every gradient by ``factor`` and returns the resulting total 2-norm."""
        gradients = self._gradients()
        torch._foreach_mul_(gradients, factor)
        norm = float(torch.nn.utils.get_total_norm(gradients))
        return math.sqrt(self._world.sums([norm**2])[0]) if self._world.several else norm

    @torch.no_grad()
    def clip(self, norm: float) -> bool:
        """Scales gradients of total 2-norm ``norm`` down to the bound; returns whether it did."""
        bound = self.settings.clip_norm
        if bound is None or norm <= bound:
            return False
        torch._foreach_mul_(self._gradients(), bound / norm)
        return True

    @torch.no_grad()
    def step(self, rate: float) -> None:
        for group in self.adamw.param_groups:
            group["lr"] = rate
        self.adamw.step()
        self._round_masters()

    def state(self) -> dict[str, Tensor]:
        """Moments, step counts and masters by ``kind/parameter``, float32; of a parameter that
        ranks share this rank's part (DTensor)."""
        tensors: dict[str, Tensor] = {}
        for name, master in self.masters.items():
            state: Mapping[str, Any] = self.adamw.state.get(master, {})
            if state:
                tensors |= {f"{moment}/{name}": state[moment] for moment in MOMENTS}
                tensors[f"step/{name}"] = torch.as_tensor(state["step"], dtype=torch.float32)
            if self._narrows or master is not self.parameters[name]:
                tensors[f"master/{name}"] = master.detach()
        return tensors

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Restores what ``state`` returned, with the same parts of what ranks share.

        Raises:
            ConfigurationError: the tensors belong to other parameters.
        """
        expected = {key.split("/", 1)[1] for key in tensors}
        if tensors and expected != set(self.parameters):
            other = sorted(expected ^ set(self.parameters))
            raise ConfigurationError(
                f"the optimiser state is of other parameters, for one {other[0]}",
                where="checkpoint",
                fix="resume with the student and adapters of the checkpoint",
            )
        for name, master in self.masters.items():
            if f"master/{name}" in tensors:
                master.copy_(tensors[f"master/{name}"])
            if f"step/{name}" in tensors:
                state = {m: tensors[f"{m}/{name}"].to(master.device).clone() for m in MOMENTS}
                step = tensors[f"step/{name}"].to(master.device, copy=True)
                self.adamw.state[master] = {"step": step, **state}
        self._round_masters()

    def _gradients(self) -> list[Tensor]:
        """Those of every parameter, or this rank's part of them."""
        found = [m.grad for m in self.masters.values() if m.grad is not None]
        return [g.to_local() if isinstance(g, DTensor) else g for g in found]

    def _round_masters(self) -> None:
        for name, parameter in self.parameters.items():
            if self.masters[name] is not parameter:
                parameter.copy_(self.masters[name])
