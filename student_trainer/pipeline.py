"""Batches on their way from rollout to update.

Rollout and update share one device, so both run in the caller's thread, one after the
other, while the teacher scores. With staleness s, step n first writes batch n + s with
the weights it begins with, and then updates on batch n, whose scores have had s steps to
arrive. Which weights write which batch depends on the step's number alone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import groupby

from teacher_proto.types import ContinuationScores

from student_trainer.data import PromptOrder
from student_trainer.distributed.world import ALONE, World
from student_trainer.rollout.base import PromptItem, Rollout
from student_trainer.rollout.engine import RolloutEngine
from student_trainer.rollout.plan import StepPlan, share_of, step_plan
from student_trainer.settings.train import TrainConfig
from student_trainer.student.model import Student
from student_trainer.teacher.teachers import Teachers
from student_trainer.update.student_support import with_student_support


@dataclass(frozen=True)
class Batch:
    """The rollouts of one step, on each rank those of its own groups.

    Attributes:
        step: the step that updates on it.
        position: of its first prompt in the order of training.
        written_after: completed steps of the student that wrote it.
        rollouts: by group: the student's responses to one prompt, or answers of the data.
        parts: for each rollout what is scored and learnt from of it: its first tokens, or all.
        scores: for each part, the future of its request and its place in the reply.
    """

    step: int
    position: int
    written_after: int
    rollouts: list[Rollout]
    parts: list[Rollout] = field(default_factory=list)
    scores: dict[int, tuple[Future[list[ContinuationScores]], int]] = field(default_factory=dict)

    @property
    def staleness(self) -> int:
        """Steps the student has made between writing it and updating on it."""
        return self.step - 1 - self.written_after

    def known_scores(self) -> list[ContinuationScores]:
        """The scores of every rollout, in their order; waits for those that are not there."""
        futures = (self.scores[place] for place in range(len(self.rollouts)))
        return [future.result()[index] for future, index in futures]


class Pipeline:
    """The batches that are written but not yet updated on, in the order of their steps.

    Attributes:
        places: of a batch's rollouts, among all of the step.
    """

    def __init__(
        self,
        config: TrainConfig,
        student: Student,
        engine: RolloutEngine,
        teachers: Teachers,
        prompts: Sequence[PromptItem],
        left_out: AbstractSet[int] = frozenset(),
        world: World = ALONE,
    ) -> None:
        """
        Args:
            engine: what writes the student's responses.
            left_out: indices of prompts that no step takes.
            world: the ranks that share every step.
        """
        self.config = config
        self.student = student
        self.engine = engine
        self.teachers = teachers
        self.prompts = prompts
        seed, shares = config.run.seed, config.shares
        self.order = PromptOrder.of(seed, prompts, shares, left_out, turn=config.turn)
        self.answer_order = PromptOrder.of(seed, prompts, shares, left_out, name="answers")
        self.batches: deque[Batch] = deque()
        self._world = world
        size, updates = config.rollout.group_size, config.optimizer.updates_per_batch
        groups = share_of(config.rollout.prompts_per_step, updates, world)
        self.places = [g * size + offset for g in groups for offset in range(size)]

    def fill(self, step: int, position: int, updates: int) -> Batch:
        """Writes and sends the batches that are due by step ``step``; returns the one that
        the step updates on.

        Args:
            position: of the step's first prompt in the order of training.
            updates: completed updates of the student, the version of its weights.

        Raises:
            LsmError: the engine cannot take over the weights, or cannot write.
        """
        last = min(step + self.config.pipeline.staleness, self.config.run.steps)
        while not self.batches or self.batches[-1].step < max(last, step):
            if self.batches:
                before = self.batches[-1]
                number = before.step + 1
                place = self.after(before)
            else:
                number, place = step, position
            self.batches.append(self._write(number, place, step - 1, updates))
        assert self.batches[0].step == step, "batches are updated on in order"
        return self.batches[0]

    def drop(self, batch: Batch) -> None:
        """Drops the oldest batch, once its step is complete."""
        oldest = self.batches.popleft()
        assert oldest is batch, "batches are updated on in order"

    def restore(self, batches: Sequence[Batch]) -> None:
        """Takes over batches that are already written, and requests their scores again."""
        for batch in batches:
            self._send(batch, dict(enumerate(batch.parts)), range(len(batch.parts)))
            self.batches.append(batch)

    def plan(self, step: int) -> StepPlan:
        """Which of a step's responses the student writes."""
        return step_plan(self.config.rollout, self.config.mixing, step)

    def after(self, batch: Batch) -> int:
        """The position of the prompt after those that the student answers in a batch."""
        return batch.position + self.plan(batch.step).own_prompts

    def prompts_at(self, position: int, count: int | None = None) -> list[PromptItem]:
        """The ``count`` prompts from ``position`` on; None for as many as a step has groups."""
        chosen = self.order.take(position, count or self.config.rollout.prompts_per_step)
        return [self.prompts[index] for index in chosen]

    def answers_of(self, step: int) -> list[PromptItem]:
        """The prompts whose answers the data gives a step."""
        plan = self.plan(step)
        chosen = self.answer_order.take(plan.answers_before, len(plan.answer_places))
        return [self.prompts[index] for index in chosen]

    def placed(self, step: int, position: int) -> list[PromptItem]:
        """The prompt of each response of a step whose own prompts begin at ``position``."""
        plan = self.plan(step)
        own = self.prompts_at(position, plan.own_prompts) if plan.own_prompts else []
        each = [prompt for prompt in own for _ in range(plan.size)]
        found = dict(zip(plan.own_places, each, strict=True))
        found |= zip(plan.answer_places, self.answers_of(step), strict=True)
        return [found[place] for place in range(plan.groups * plan.size)]

    def _write(self, number: int, position: int, written_after: int, updates: int) -> Batch:
        config, size, plan = self.config, self.config.rollout.group_size, self.plan(number)
        batch = Batch(number, position, written_after, [])
        whole: dict[int, Rollout] = {}
        known: dict[int, Rollout] = {}

        def ended(rollouts: list[tuple[int, Rollout]]) -> None:
            places = [place for place, _ in rollouts]
            for link in self.teachers.values():
                # A teacher's rows end at its own last id.
                of_it = [(p, r) for p, r in rollouts if self.teachers.of(r.prompt) is link]
                asked = with_student_support(
                    self.student,
                    [r.first(config.scoring.scored(r.length)) for _, r in of_it],
                    config.loss.student_top_k,
                    limit=link.id_limit,
                    micro_batch_tokens=config.optimizer.micro_batch_tokens,
                    chunk_rows=config.loss.chunk_rows,
                )
                known.update(zip((place for place, _ in of_it), asked, strict=True))
            whole.update(rollouts)
            if config.pipeline.send == "group":
                groups = {place // size for place in places}
                wholes = [range(g * size, (g + 1) * size) for g in sorted(groups)]
                places = [p for whole in wholes if all(p in known for p in whole) for p in whole]
            self._send(batch, known, places)

        self.student.module.eval()
        nth_of = {place: nth for nth, place in enumerate(self.places)}
        answers = zip(plan.answer_places, self.answers_of(number), strict=True)
        known_answers = [
            (nth_of[place], Rollout.of_data(prompt)) for place, prompt in answers if place in nth_of
        ]
        if known_answers:
            ended(known_answers)
        places = [place for place in plan.own_places if place in nth_of]
        if places:
            firsts = plan.own_places[::size]
            mine = [nth for nth, place in enumerate(firsts) if place in nth_of]
            self.engine.update_weights(updates)
            self.engine.generate(
                self.prompts_at(position, plan.own_prompts),
                seed=config.run.seed,
                step=number,
                ended=lambda written: ended([(nth_of[places[n]], one) for n, one in written]),
                **({"mine": mine} if self._world.several else {}),
            )
        batch.rollouts.extend(whole[place] for place in range(len(whole)))
        batch.parts.extend(known[place] for place in range(len(known)))
        return batch

    def _send(self, batch: Batch, rollouts: Mapping[int, Rollout], places: Iterable[int]) -> None:
        """Requests the scores of the rollouts at these places, one request for each group.

        Which rollouts share a request depends on their contents, never on timing.
        """
        size = self.config.rollout.group_size

        def request(place: int) -> tuple[int, int]:
            """An answer of the data is the only one to its prompt."""
            return place // size, place if rollouts[place].origin == "data" else -1

        for _, members in groupby(places, key=request):
            together = list(members)
            future = self.teachers.submit_rollouts([rollouts[place] for place in together])
            batch.scores.update({p: (future, index) for index, p in enumerate(together)})
