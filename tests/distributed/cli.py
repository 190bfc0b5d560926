"""What one rank of a test does, as the program of a zygote: ``main([case, order file])``.

A case is a function of ``Setup`` that gives JSON values and tensors; they are written beside the
order file, for each rank. Started as a single process it does the same alone.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from teacher_proto.errors import LsmError
from teacher_proto.types import ContinuationScores, Status
from torch import Tensor
from torch.distributed.tensor import DTensor

from student_trainer.data import load_prompts
from student_trainer.distributed.world import ALONE, World, joined
from student_trainer.ranks import optimizer_files
from student_trainer.rollout.base import Rollout
from student_trainer.rollout.generate import generate
from student_trainer.settings.train import TrainConfig
from student_trainer.student.memory import update_bytes, weight_bytes
from student_trainer.student.model import Student, load_student, save_weights
from student_trainer.student.sharding import gathered, shard
from student_trainer.update.metrics import UpdateTotals, choose_rows
from student_trainer.update.updater import Updater
from tests.trainer.local_teacher import LocalTeacher

Found = tuple[dict[str, Any], dict[str, Tensor]]
TIMEOUT = 60.0
# Of 12 responses rank 0 of two has the first 4, so that it makes fewer passes than the other.
FIRST = 4


@dataclass
class Setup:
    """A rank's student with its share of the rollouts and of their scores.

    Attributes:
        config, teachers: a configuration's values, and the folder of each teacher's model.
        changes: what the case does otherwise.
    """

    config: dict[str, Any]
    teachers: dict[str, str]
    changes: Any = None
    world: World = ALONE

    def __post_init__(self) -> None:
        torch.set_num_threads(1)
        torch.manual_seed(0)
        self.settings = TrainConfig.model_validate(self.config)
        self.student: Student = load_student(self.settings.student)
        plain = {"lora": None, "dtype": "float32", "gradient_checkpointing": False}
        writer = load_student(self.settings.student.model_copy(update=plain))
        names = list(self.settings.named_teachers)
        prompts = load_prompts(self.settings.data, writer.tokenizer, teachers=names).train
        self.every = generate(writer, prompts, self.settings.rollout, seed=0, step=1)
        self.every_score = self._score(self.every)
        self.rollouts, self.scores = self.every, self.every_score
        if self.world.several:
            own = slice(FIRST) if self.world.rank == 0 else slice(FIRST, None)
            self.rollouts, self.scores = self.every[own], self.every_score[own]
        if self.world.several:
            self.student = shard(self.student, self.settings.distributed, self.world)

    def _score(self, rollouts: list[Rollout]) -> list[ContinuationScores]:
        models = {name: LocalTeacher(Path(folder)) for name, folder in self.teachers.items()}
        top_k = self.settings.loss.top_k
        return [models[one.prompt.teacher].score([one], top_k)[0] for one in rollouts]

    @cached_property
    def updater(self) -> Updater:
        return Updater(self.student, self.settings, world=self.world)

    @property
    def last(self) -> bool:
        """Whether this is the last of several ranks."""
        return self.world.several and self.world.rank == self.world.size - 1

    def update(self, step: int = 1) -> UpdateTotals:
        totals = UpdateTotals.of_teachers(self.settings.named_teachers)
        self.updater.update(self.rollouts, self.scores.__getitem__, totals, step)
        return totals

    def refusal(self) -> list[str]:
        """The kind, reason and message of the error that an update raises."""
        try:
            self.update()
        except (LsmError, SystemExit) as error:
            return [type(error).__name__, getattr(error, "reason", ""), str(error)]
        return []

    def parameters(self) -> dict[str, Tensor]:
        """Whole copies of everything that is trained."""
        return {name: whole(one) for name, one in self.updater.optimizer.parameters.items()}


def whole(tensor: Tensor) -> Tensor:
    found = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return found.detach().float().clone().contiguous()


def local(tensor: Tensor) -> Tensor:
    """What this rank has of it."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def gradients(setup: Setup) -> Found:
    """The losses and the mean gradient of an update."""
    totals = UpdateTotals.of_teachers(setup.settings.named_teachers)
    scores = setup.scores.__getitem__
    norm = setup.updater.gradients(setup.rollouts, scores, totals, 1)
    masters = setup.updater.optimizer.masters
    found = {name: whole(m.grad) for name, m in masters.items() if m.grad is not None}
    passes = sum(len(part.micro_batches) for part in setup.updater._parts(setup.rollouts))
    losses = {name: part.losses for name, part in totals.by_teacher.items()}
    return {"loss": totals.losses[0], "losses": losses, "norm": norm, "passes": passes}, found


def updates(setup: Setup) -> Found:
    """Several updates, what the student then writes, and its saved weights."""
    losses = [setup.update(step).losses[0] for step in range(1, setup.changes["updates"] + 1)]
    with gathered(setup.student):
        with gathered(setup.student):
            pass
        prompts = [rollout.prompt for rollout in setup.every[::2]]
        written = generate(setup.student, prompts, setup.settings.rollout, seed=0, step=2)
    save_weights(setup.student, Path(setup.changes["folder"]) / f"saved-{setup.world.size}")
    tokens = [rollout.token_ids.tolist() for rollout in written]
    state = {key: whole(one) for key, one in setup.updater.optimizer.state().items()}
    return {"losses": losses, "tokens": tokens}, state


def failing(setup: Setup) -> Found:
    """The last rank fails in the place that ``changes`` names; then all make an update."""
    before, updater, objective = setup.parameters(), setup.updater, setup.updater.objective
    scores, losses, tell = setup.scores, objective.losses, updater.tell

    def fail(*arguments: Any) -> Any:
        if setup.changes == "signal":
            raise SystemExit(143)
        raise LsmError("the teacher is gone", where="teacher", fix="start it")

    class Failing(list[ContinuationScores]):
        __getitem__ = fail

    if setup.last:
        if setup.changes in ("scores", "signal"):
            setup.scores = Failing()
        elif setup.changes == "losses":
            objective.losses = fail  # type: ignore[method-assign]
        else:
            updater.tell = fail
    refusal = setup.refusal()
    same = all(torch.equal(one, before[name]) for name, one in setup.parameters().items())
    setup.scores, updater.tell = scores, tell
    objective.losses = losses  # type: ignore[method-assign]
    return {"refusal": refusal, "same": same, "loss": setup.update().losses[0]}, {}


def interrupted(setup: Setup) -> Found:
    """A signal in the middle of a rollout; then all make an update."""
    layers = [m for n, m in setup.student.module.named_modules() if n.endswith("layers.1.mlp")]

    def stop(*arguments: Any) -> None:
        raise SystemExit(143)

    hook = layers[0].register_forward_pre_hook(stop)
    prompts = [rollout.prompt for rollout in setup.every[::2]]
    try:
        with gathered(setup.student):
            generate(setup.student, prompts, setup.settings.rollout, seed=0, step=2)
    except SystemExit:
        hook.remove()
    parameters = setup.student.module.parameters()
    spread = all(isinstance(one, DTensor) for one in parameters)
    return {"spread": spread, "loss": setup.update().losses[0]}, {}


def not_finite(setup: Setup) -> Found:
    """The teacher has no finite row of ``changes`` (the last rank's responses, or of all)."""
    if setup.last or setup.changes == "all":
        setup.scores = [ContinuationScores(status=Status.NON_FINITE) for _ in setup.scores]
    before = setup.parameters()
    refusal = setup.refusal()
    same = all(torch.equal(one, before[name]) for name, one in setup.parameters().items())
    return {"refusal": refusal, "same": same}, {}


def half(setup: Setup) -> Found:
    """The gradient where no row of the last rank can be used."""
    if setup.last:
        setup.scores = [ContinuationScores(status=Status.NON_FINITE) for _ in setup.scores]
    return gradients(setup)


def resumed(setup: Setup) -> Found:
    """The optimiser's tensors after an update, written and read again, and an update with them."""
    losses = [setup.update(1).losses[0]]
    optimizer, folder = setup.updater.optimizer, Path(setup.changes["folder"])
    state = {key: one.clone() for key, one in optimizer.state().items()}
    names = setup.world.gather(optimizer_files.write(folder, state, setup.world).name)
    found = optimizer_files.read(folder, names, optimizer.masters)
    same = found.keys() == state.keys() and all(
        torch.equal(local(one), local(state[key])) for key, one in found.items()
    )
    optimizer.load(found)
    losses.append(setup.update(2).losses[0])
    fewest = min(len(local(one)) for one in optimizer.masters.values())
    return {"losses": losses, "same": same, "fewest": fewest}, setup.parameters()


def rows(setup: Setup) -> Found:
    """Which rows are chosen for metrics."""
    draws = np.random.default_rng(3)
    every = [draws.random(size) < 0.7 for size in (5, 9, 1, 12, 7, 3)]
    size = len(every) // setup.world.size
    own = every[setup.world.rank * size : (setup.world.rank + 1) * size]
    chosen = [choose_rows(own, count, 5, 2, setup.world) for count in (6, 1000)]
    return {"chosen": [[flags.tolist() for flags in one] for one in chosen]}, {}


def memory(setup: Setup) -> Found:
    """Bytes of the whole weights, and of what an update adds to them in this rank."""
    return {"weights": weight_bytes(setup.student), "update": update_bytes(setup.student)}, {}


EVERY = (gradients, updates, failing, interrupted, not_finite, half, resumed, rows, memory)
CASES: dict[str, Callable[[Setup], Found]] = {one.__name__: one for one in EVERY}


def main(argv: list[str]) -> int:
    case, order = argv[0], Path(argv[1])
    with joined(TIMEOUT) as world:
        values, tensors = CASES[case](Setup(**json.loads(order.read_text()), world=world))
        beside = order.parent / f"{case}-{world.rank}-of-{world.size}"
        save_file(tensors, f"{beside}.safetensors")
        Path(f"{beside}.json").write_text(json.dumps(values))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
