"""The ranks of a run, and what they tell each other.

torchrun starts one process for each rank and says in the environment which it is. Ranks tell each
other JSON values and tensors, as bytes: no object of Python is rebuilt from what another process
has sent. Everything here goes over gloo on the CPU, also where the ranks' gradients go over NCCL.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from safetensors.torch import load, save
from teacher_proto.errors import ConfigurationError, LsmError
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from student_trainer.distributed.meeting import meet
from student_trainer.distributed.patience import kept_waiting, wait

# Set by torchrun, and by whoever starts the ranks without it.
VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
LOST = "RANK_LOST"
# A rank that has failed before it could join, say by its settings, is not waited for long.
JOIN_SECONDS = 120.0
# What gloo, NCCL and torch's stores say where another process is gone or does not answer.
GONE = ("connection closed", "connection reset", "connection refused", "broken pipe", "timed out",
        "timeout", "remote process exited", "network error")  # fmt: skip
T = TypeVar("T")
# Marks an error that every rank raises at the same point, or another that names it.
AGREED = "_agreed_on_by_all_ranks"


class RankError(LsmError):
    """Another rank of the run failed; names it and says its error."""

    default_reason = "RANK_FAILED"


@dataclass(frozen=True)
class World:
    """The ranks of a run. Whatever takes part of every rank has to be called by every rank, in
    the same order.

    Attributes:
        rank: number of this process, from 0.
        size: how many ranks there are.
        local_rank: number of this process among those of its machine.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def several(self) -> bool:
        return self.size > 1

    @property
    def writes(self) -> bool:
        """Whether this rank is the one that writes the run's files."""
        return self.rank == 0

    def gather(self, value: Any) -> list[Any]:
        """The JSON values of all ranks, in their order."""
        if not self.several:
            return [value]
        return [json.loads(one) for one in self._gather_bytes(json.dumps(value).encode())]

    def from_first(self, value: Any) -> Any:
        """The JSON value of rank 0."""
        return self.gather(value if self.writes else None)[0]

    def gather_tensors(self, tensors: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
        """The named tensors of all ranks, on the CPU, in the order of the ranks."""
        if not self.several:
            return [dict(tensors)]
        # Copies, since safetensors refuses tensors that share memory.
        copies = {name: tensor.to("cpu", copy=True) for name, tensor in tensors.items()}
        mine = save({name: tensor.contiguous() for name, tensor in copies.items()})
        return [load(one) for one in self._gather_bytes(mine)]

    def sums(self, values: Sequence[float]) -> list[float]:
        """The sums over all ranks, in float64."""
        if not self.several:
            return list(values)
        tensor = torch.tensor(list(values), dtype=torch.float64)
        dist.all_reduce(tensor)
        return tensor.tolist()

    def most(self, value: int) -> int:
        """The largest of all ranks' values."""
        if not self.several:
            return value
        tensor = torch.tensor(value)
        dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return int(tensor)

    def agree(self, failed: BaseException | None) -> None:
        """Meets the other ranks, each with what it failed by or with None.

        Raises:
            BaseException: ``failed``, where this rank has failed.
            RankError: another rank has failed; it names the first of them.
            SystemExit: others were told to end and none has failed; with the first one's code.
        """
        said = self.gather(None if failed is None else _described(failed))
        if failed is not None:
            raise on_every_rank(failed)
        for rank, one in enumerate(said):
            if one is not None and "code" not in one:
                raise on_every_rank(
                    RankError(
                        f"rank {rank} of {self.size} has failed: {one['what']}",
                        where=one["where"],
                        fix=one["fix"],
                        retry_after=one["retry_after"],
                    )
                )
        for one in said:
            if one is not None:
                raise on_every_rank(SystemExit(one["code"]))

    def each(self, action: Callable[[], T]) -> T:
        """Does on every rank something in which no rank waits for another; returns what it
        returns here.

        Raises:
            BaseException: as ``agree``, of what it raises.
        """
        found, failed = _tried(action)
        self.agree(failed)
        return cast(T, found)

    def on_first(self, action: Callable[[], T], *, however_long: bool = False) -> T | None:
        """Does something on rank 0, for which the others wait; None there.

        Args:
            however_long: they wait for as long as rank 0 lives, and not only as long as ranks
                wait for each other at most.

        Raises:
            BaseException: as ``agree``, of what it raises.
        """
        if however_long and self.several:
            return self.each(partial(kept_waiting, action, self.size) if self.writes else wait)
        return self.each(action if self.writes else _nothing)

    def _gather_bytes(self, mine: bytes) -> list[bytes]:
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        dist.all_gather(sizes, torch.tensor([len(mine)]))
        longest = max(int(size) for size in sizes)
        padded = torch.zeros(max(longest, 1), dtype=torch.uint8)
        padded[: len(mine)] = torch.frombuffer(bytearray(mine or b"\0"), dtype=torch.uint8)[
            : len(mine)
        ]
        found = [torch.empty_like(padded) for _ in range(self.size)]
        dist.all_gather(found, padded)
        return [one[: int(size)].numpy().tobytes() for one, size in zip(found, sizes, strict=True)]


ALONE = World()


@contextmanager
def joined(timeout: float) -> Iterator[World]:
    """Joins the ranks that torchrun has started, until the context ends; ``ALONE`` where the
    process was started by itself.

    Args:
        timeout: seconds that a rank waits for the others at most, once all have joined.

    Raises:
        ConfigurationError: the environment names a part of what torchrun sets, or a rank has not
            come within ``JOIN_SECONDS``.
    """
    there = [name for name in VARIABLES if name in os.environ]
    no_rank = "WORLD_SIZE" not in os.environ and "RANK" not in os.environ
    if no_rank or os.environ.get("WORLD_SIZE") == "1":
        yield ALONE
        return
    if missing := [name for name in VARIABLES if name not in there]:
        raise ConfigurationError(
            f"the environment has {', '.join(there)} and lacks {', '.join(missing)}",
            where="torchrun",
            fix="start the ranks with torchrun, which sets all of them, or unset them",
        )
    rank, size, local = (int(os.environ[name]) for name in VARIABLES[:3])
    backend = "gloo"
    if local < torch.cuda.device_count():
        torch.cuda.set_device(local)
        backend = "cpu:gloo,cuda:nccl"
    patience = timedelta(seconds=timeout)
    try:
        store, _, _ = next(rendezvous("env://", timeout=timedelta(seconds=JOIN_SECONDS)))
        store = meet(store, rank, size, JOIN_SECONDS)
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=patience)
    except (RuntimeError, ValueError) as error:
        raise ConfigurationError(
            f"rank {rank} of {size} cannot reach the others: {error}",
            where=f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}",
            fix="start all ranks with the same --nnodes, --rdzv-endpoint and --rdzv-id",
        ) from error
    try:
        yield World(rank, size, local)
    except BaseException as error:
        # NCCL would wait here for what the other ranks no longer do, and they for this one to end.
        if backend == "gloo" or (agreed(error) and getattr(error, "reason", "") != LOST):
            dist.destroy_process_group()
        raise
    dist.destroy_process_group()


def on_every_rank(error: BaseException) -> BaseException:
    """The error, marked as one that every rank raises at the same point: each by what all of
    them know."""
    setattr(error, AGREED, True)
    return error


def agreed(error: BaseException) -> bool:
    """Whether every rank has raised this error or one that names it, at the same point: they can
    go on together from there. The kind of an error says nothing of that."""
    return hasattr(error, AGREED)


def lost(world: World, error: BaseException) -> RankError | None:
    """What is to be said of an error of torch's that a rank which has ended has caused in this
    one; None for any other error."""
    text = str(error).lower()
    of_torch = isinstance(error, dist.DistError) or "gloo" in text or "nccl" in text
    gone = isinstance(error, dist.DistNetworkError) or any(sign in text for sign in GONE)
    if not (world.several and isinstance(error, RuntimeError) and of_torch and gone):
        return None
    return RankError(
        f"rank {world.rank} of {world.size} has lost another rank, which has ended or cannot be "
        f"reached ({str(error).splitlines()[0]})",
        where="torchrun",
        fix="look at the messages of the other ranks, and start the run again: it resumes",
        reason=LOST,
    )


def _tried(action: Callable[[], T]) -> tuple[T | None, BaseException | None]:
    try:
        return action(), None
    except (Exception, SystemExit) as error:
        return None, error


def _nothing() -> None:
    """What the ranks do that wait."""


def _described(error: BaseException) -> dict[str, Any]:
    if isinstance(error, SystemExit):
        return {"code": error.code}
    if isinstance(error, LsmError):
        return {
            "what": error.what,
            "where": error.where,
            "fix": error.fix,
            "retry_after": error.retry_after,
        }
    return {"what": f"{type(error).__name__}: {error}", "where": "", "fix": "", "retry_after": None}
