"""A student that several ranks train together (student_trainer/distributed)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace

from teacher_proto.models.text_model import text_model
from torch import Tensor

from student_trainer.distributed.shards import Shards
from student_trainer.distributed.world import World
from student_trainer.settings.run import DistributedSettings
from student_trainer.student.layers import find_layers
from student_trainer.student.loading import MODEL
from student_trainer.student.model import Student


def shard(student: Student, settings: DistributedSettings, world: World) -> Student:
    """The student with its parameters spread over the ranks.

    From here on the model can be used inside of ``gathered`` or ``run`` alone.

    Args:
        student: with the same values on every rank.

    Raises:
        ConfigurationError: the model's parameters cannot be spread.
    """
    model = student.causal_model
    layers = int(model.config.get_text_config().num_hidden_layers)
    owner, name = find_layers(student.decoder, layers, where=MODEL)
    frozen = [model.get_submodule(unused) for unused in text_model(model).unused]
    shards = Shards(student.module, list(getattr(owner, name)), frozen, world, settings.reshard)
    return replace(student, shards=shards)


@contextmanager
def gathered(student: Student) -> Iterator[None]:
    """Around whatever reads the student without gradients: inside, every rank has all of its
    parameters. Ranks wait for each other at the beginning alone."""
    with nullcontext() if student.shards is None else student.shards.gathered():
        yield


@contextmanager
def updating(student: Student) -> Iterator[None]:
    """Around the forward and backward passes of one update."""
    with nullcontext() if student.shards is None else student.shards.updating():
        yield


def run(student: Student, compute: Callable[[], Tensor]) -> Tensor:
    """The scalar that ``compute`` makes of the student's parameters, with gradients."""
    return compute() if student.shards is None else student.shards.run(compute)
