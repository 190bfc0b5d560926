"""A model whose parameters are spread over the ranks of a run: torch's FSDP2 around its blocks.

Each rank holds a part of every parameter. The whole is gathered from all ranks for the time in
which it is used, and gradients are added up over the ranks, never divided.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from teacher_proto.errors import ConfigurationError
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from student_trainer.distributed.world import World

# The newest of what is called here: a rank adds gradients of 0 where it has used no expert.
NEEDED = "set_reduce_scatter_unused_params"


class Whole(nn.Module):
    """The root of the shards. Its forward pass is whatever uses the model, so that parameters
    outside of the blocks are gathered for all of it: embedding, last norm and head."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, compute: Callable[[], Tensor]) -> Tensor:
        return compute()


class Shards:
    """The shards of one model. Every rank calls the same methods in the same order.

    Attributes:
        world: the ranks that hold them.
        dtype: of the gathered parameters that are trained.
        narrows: whether the shards are float32 and the gathered parameters are not.
    """

    def __init__(
        self,
        module: nn.Module,
        blocks: Sequence[nn.Module],
        frozen: Sequence[nn.Module],
        world: World,
        reshard: Literal["after_update", "after_pass"],
    ) -> None:
        """
        Args:
            module: on its device, with the same values on every rank. Its trained parameters
                become float32.
            blocks: the parts of it that are gathered one after the other.
            frozen: parts that no forward pass uses.
            reshard: how long gathered parameters are kept in an update.

        Raises:
            ConfigurationError: torch is too old, or the model's parameters cannot be spread.
        """
        if not hasattr(FSDPModule, NEEDED):
            raise ConfigurationError(
                f"torch {torch.__version__} cannot spread a model over ranks as this trainer does",
                where="torchrun",
                fix="install torch 2.13 or later, or start one process",
            )
        trained = [p for p in module.parameters() if p.requires_grad]
        self.world = world
        self.dtype = _one_dtype(trained)
        self.narrows = self.dtype != torch.float32
        for parameter in trained:
            parameter.data = parameter.data.float()
        whole: Any = Whole(module)
        policy = MixedPrecisionPolicy(cast_forward_inputs=False)
        if self.narrows:
            policy = MixedPrecisionPolicy(
                param_dtype=self.dtype, reduce_dtype=torch.float32, cast_forward_inputs=False
            )
        mesh = init_device_mesh(trained[0].device.type, (world.size,))
        try:
            for part in frozen:
                fully_shard(part, mesh=mesh)
            for part in (*blocks, whole):
                fully_shard(part, mesh=mesh, mp_policy=policy)
            self._whole = whole
            self._parts: list[Any] = [p for p in whole.modules() if isinstance(p, FSDPModule)]
            for one in self._parts:
                one.set_gradient_divide_factor(1.0)
                one.set_force_sum_reduction_for_comms(True)
            whole.set_reduce_scatter_unused_params(True)
            # The first forward pass makes its module the root: it has to be this one.
            whole(lambda: torch.zeros(()))
        except (ValueError, AssertionError) as error:
            raise ConfigurationError(
                f"its parameters cannot be spread over ranks: {error}",
                where="student.model",
                fix="train it in one process",
            ) from error
        whole.reshard()
        self._kept = reshard == "after_update"
        self._gathered = 0
        self._keep_after_forward(False)

    def run(self, compute: Callable[[], Tensor]) -> Tensor:
        """A forward pass: ``compute`` may use the whole model, and gives a scalar."""
        result: Tensor = self._whole(compute)
        return result

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """Inside, the module's parameters are plain tensors with all values, for passes without
        gradients; nothing that a rank does inside waits for another."""
        if not self._gathered:
            self._keep_after_forward(True)
            for part in self._parts:
                part.unshard()
        self._gathered += 1
        try:
            yield
        except BaseException:
            self._gathered -= 1
            if not self._gathered:  # perhaps in the middle of a pass
                self._end()
            raise
        self._gathered -= 1
        if not self._gathered:
            self._end()

    @contextmanager
    def updating(self) -> Iterator[None]:
        """Around the forward and backward passes of an update. Parameters outside of the blocks
        stay gathered for all of them."""
        self._keep_after_forward(self._kept)
        self._whole.set_reshard_after_backward(not self._kept)
        self._whole.set_reshard_after_backward(False, recurse=False)
        for part in self._parts if self._kept else [self._whole]:
            part.unshard()
        try:
            yield
        finally:
            self._end()

    def reduces(self, now: bool) -> None:
        """Whether the next backward pass adds up over all ranks what the passes since the last
        such one have added up in each."""
        self._whole.set_requires_gradient_sync(now)

    def tensors(self, module: nn.Module) -> dict[str, Tensor]:
        """name -> tensor of a module inside, as its ``state_dict`` has them in one process; inside
        of ``gathered``, since ``state_dict`` itself would give shards."""
        found = dict(module.named_parameters(remove_duplicate=False))
        for prefix, part in module.named_modules(remove_duplicate=False):
            skipped = part._non_persistent_buffers_set
            for name, buffer in part.named_buffers(recurse=False):
                if name not in skipped:
                    found[f"{prefix}.{name}" if prefix else name] = buffer
        return {name: tensor.detach() for name, tensor in found.items()}

    def _keep_after_forward(self, kept: bool) -> None:
        self._whole.set_reshard_after_forward(not kept)
        self._whole.set_reshard_after_forward(False, recurse=False)

    def _end(self) -> None:
        """Frees what is gathered, also where an error has ended a pass."""
        self._whole.reset_iter_state()
        self._keep_after_forward(False)


def _one_dtype(parameters: Sequence[nn.Parameter]) -> torch.dtype:
    """The dtype of all of these parameters."""
    if not parameters:
        raise ConfigurationError("the student has no trainable parameter", where="student")
    dtypes = sorted({str(parameter.dtype) for parameter in parameters})
    if len(dtypes) > 1:
        raise ConfigurationError(
            f"its trained parameters are of several dtypes ({', '.join(dtypes)}), and ranks "
            "gather those of one",
            where="student.dtype",
            fix='set student.dtype = "float32"',
        )
    return parameters[0].dtype
