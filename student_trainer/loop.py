"""The steps of a run.

    prompts of the step -> rollouts -> scores (requested while the rest is written) ->
    loss over micro-batches -> one mean -> clip -> AdamW -> metrics line -> checkpoint

A step depends only on the configuration, the seed, the step's number, the student and
the batches that wait for their update. A resumed run therefore repeats the lost steps
exactly.

With several ranks each makes its share of every step. They meet after the rollouts, in the
update and at the end of a step, where an error or a signal of one becomes one of all; rank 0
writes what the run leaves.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from teacher_proto.errors import LsmError
from teacher_proto.processes.memory import give_back_free_pages
from teacher_proto.types import ContinuationScores

from student_trainer.data import PromptSets
from student_trainer.diagnostics import narrow
from student_trainer.diagnostics.leaving import SupportWatch, advice
from student_trainer.diagnostics.narrow import NarrowWatch
from student_trainer.diagnostics.responses import responses_of
from student_trainer.distributed.world import ALONE, World, agreed, on_every_rank
from student_trainer.evaluate_run import RunEvaluation
from student_trainer.evaluation.course.values import curve_values
from student_trainer.events import (
    Callback,
    CheckpointSaved,
    EvaluationEnded,
    Events,
    RolloutsWritten,
    ScoresArrived,
    StepEnded,
)
from student_trainer.pipeline import Batch, Pipeline
from student_trainer.ranks.step import responses_of_world, totals_of_world
from student_trainer.rollout.base import Rollout
from student_trainer.rollout.engine import RolloutEngine
from student_trainer.rollout.slots.supported import why_padded
from student_trainer.rollout.turns.acting import Acting
from student_trainer.run import checkpoint
from student_trainer.run.best import RecentMetric
from student_trainer.run.directory import RunDirectory, append_metrics, read_metrics
from student_trainer.run.pending_batches import (
    batches_of_world,
    describe_batches,
    restore_batches,
    rollout_tensors,
)
from student_trainer.run.progress import Progress
from student_trainer.run.resume import check_found, check_resumable, pending_batches_usable
from student_trainer.run.rng import (
    capture_rng,
    restore_rng,
    rng_of_rank,
    rng_of_world,
    seeded_rng,
)
from student_trainer.run.signals import Stopped, Stopper
from student_trainer.settings.dotted import sources
from student_trainer.settings.train import TrainConfig
from student_trainer.student.model import Student, save_weights
from student_trainer.student.response_ends import ends_of_before
from student_trainer.student.sharding import gathered
from student_trainer.tasks.judgement import Judgement
from student_trainer.teacher.teachers import Teachers
from student_trainer.update import metrics
from student_trainer.update.realigned import low_coverage
from student_trainer.update.updater import NothingUsableError, Updater, split
from student_trainer.verification.step import StepVerification
from student_trainer.verification.verifiers import Verifiers
from student_trainer.watch.keeper import Keeper
from student_trainer.watch.row_losses import RowLosses

log = logging.getLogger(__name__)

# So many steps in a row without a usable row are no longer a matter of single rows.
EMPTY_STEPS = 8


@dataclass
class Times:
    """Seconds of a step in the trainer's own thread: what is neither of these is the update.

    Attributes:
        waits: for the scores of each teacher, by its name.
    """

    rollout: float = 0.0
    waits: dict[str, float] = field(default_factory=dict)

    @property
    def teacher_wait(self) -> float:
        return sum(self.waits.values())

    def metrics(self, total: float) -> dict[str, float]:
        """Seconds and shares of a step of ``total`` seconds."""
        update = total - self.rollout - self.teacher_wait
        parts = {"rollout": self.rollout, "teacher_wait": self.teacher_wait, "update": update}
        return {
            **{f"{name}_seconds": seconds for name, seconds in parts.items()},
            "step_seconds": total,
            **{f"{name}_share": seconds / total for name, seconds in parts.items()},
            **of_teachers("teacher_wait_seconds", self.waits),
        }


def of_teachers(name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """A metric of each teacher, by its key: NAME/TEACHER where there are several."""
    several = len(values) > 1
    return {f"{name}/{teacher}" if several else name: v for teacher, v in values.items()}


class TrainingLoop:
    """The steps of one run.

    Attributes:
        state: the run after its last completed step.
    """

    def __init__(
        self,
        config: TrainConfig,
        student: Student,
        engine: RolloutEngine,
        teachers: Teachers,
        prompts: PromptSets,
        run: RunDirectory,
        stopper: Stopper | None = None,
        now: str = "",
        callbacks: Sequence[Callback] = (),
        world: World = ALONE,
        verifiers: Verifiers | None = None,
        acting: Acting | None = None,
    ) -> None:
        """
        Args:
            engine: what writes the student's responses.
            now: the run's clock, kept in every checkpoint.
            world: the ranks of the run. ``callbacks`` are those of rank 0.
            verifiers: what judges responses; None where no task of the run does.
            acting: what plays episodes in evaluations; None where no task acts.
        """
        self.world = world
        self.evaluation = RunEvaluation(config, student, teachers, prompts, run, verifiers, acting)
        self.keeper = Keeper(config.report, config.run.steps, student, run.rollouts, world)
        self.config = config
        self.student = student
        self.teachers = teachers
        self.prompts = prompts
        self.run = run
        self.stopper = stopper or Stopper()
        self.verification = StepVerification(
            list(config.tasks or ()),
            verifiers if config.verification.training else None,
            student,
            world,
            stopped=lambda: self.stopper.requested is not None,
            config=config,
        )
        self.events = Events(callbacks, student.device)
        self.pipeline = Pipeline(
            config, student, engine, teachers, prompts.train, prompts.left_out, world
        )
        self.recent = RecentMetric(config.checkpoint)
        self.updater = Updater(student, config, teachers.realigned, world)
        self._coverage_low: set[str] = set()
        self._support = SupportWatch(renormalised=config.loss.renormalised)
        self._narrow = NarrowWatch(renormalised=config.loss.renormalised)
        self._empty_steps = 0
        self.state = checkpoint.TrainState(
            step=0,
            updates=0,
            position=0,
            data_digest=prompts.digest,
            teachers=teachers.identities,
            config=config.model_dump(mode="json"),
            now=now,
            terminators=student.terminators,
            sources={source.module: source.sha256 for source in sources(config)},
            packs=student.packs,
            continuous=None if engine.name != "transformers" else not why_padded(student),
        )
        self._rng = capture_rng(student.device)
        if not world.writes:
            self._rng = seeded_rng(config.run.seed, 0, world.rank, student.device)
        # The last completed step that is saved, and how many batches with it.
        self._saved = (0, 0)
        # The steps of the batches that another process has written.
        self._restored: frozenset[int] = frozenset()
        self._scored: ScoresArrived | None = None
        # Tokens of each response of the last step that the student wrote.
        self._lengths: list[int] = []
        # Keeps responses of the last step. A disk that is full must not lose the step, so that
        # this comes after it.
        self._keep_responses: Callable[[], None]

    def restore(self, path: Path) -> None:
        """Continues from a checkpoint whose model is already loaded.

        Raises:
            ConfigurationError, ContractMismatchError: the checkpoint is of another run.
        """
        self.world.each(partial(self._restore, path))
        # The run's files are rank 0's: another may see them late, or not whole.
        self._empty_steps = self.world.from_first(self.world.on_first(self._recall))
        log.info("resuming after step %d from %s", self.state.step, path)

    def _recall(self) -> int:
        """Reads the steps that are made; returns how many of the last had no usable row."""
        self.recent.restore(self.run.metrics, self.state.step)
        for line in read_metrics(self.run.metrics) if self.run.metrics.exists() else ():
            if line["step"] <= self.state.step:
                self._support.add(line)
                self._narrow.add(line)
        return empty_steps(self.run.metrics, self.state.step)

    def _restore(self, path: Path) -> None:
        """Takes over what a checkpoint holds."""
        before = checkpoint.load_state(path)
        now, allowed = self.state, self.config.checkpoint.allow_changed
        check_resumable(before, now.config, now.data_digest, now.teachers, allowed)
        check_found(before, now.packs, now.continuous, allowed)
        saved = checkpoint.load_tensors(path, self.updater.optimizer.masters)
        self.updater.optimizer.load(saved.optimizer)
        self.updater.updates = before.updates
        self._rng = rng_of_rank(
            saved.rng,
            self.world,
            seed=self.config.run.seed,
            step=before.step,
            device=self.student.device,
        )
        self.state = replace(
            self.state, step=before.step, updates=before.updates, position=before.position
        )
        ends = ends_of_before(before.terminators, self.student, self.config.rollout.stop_ids)
        usable = pending_batches_usable(before, self.state.config, self.state.data_digest)
        pending: list[Batch] = []
        if usable and ends == self.student.terminators:
            pending = restore_batches(before.pending_batches, saved.rollouts, self.pipeline)
            self.pipeline.restore(pending)
        if anew := len(before.pending_batches) - len(pending):
            log.warning(
                "writing %d batches in flight anew: prompts, what is left out of them or rollout "
                "settings changed",
                anew,
            )
        self._saved = before.step, len(pending)
        self._restored = frozenset(batch.step for batch in pending)

    def run_steps(self, progress: Progress) -> None:
        """Makes steps until ``run.steps``. Whatever ends them early, the state is saved: also a
        callback that raises, which happens once what it is told of is written."""
        restore_rng(self._rng, self.student.device)
        try:
            with self.stopper.step():
                self._evaluate(progress)  # where the run ended before it could
                while self.state.step < self.config.run.steps and not self._stops_early():
                    line = self.step()
                    self.world.on_first(partial(self._write, line, progress))
                    self._keep_responses()
                    self.keeper.tell(progress.table)
                    saved = self.save() if self._save_is_due() else None
                    self.world.on_first(partial(self._tell_step, line, saved), however_long=True)
                    self._evaluate(progress)
                    self._end_if_requested()
                if self.state.step < self.config.run.steps:
                    # So that the same command trains nothing more.
                    saved = self.save_unless_saved()
                    self.world.on_first(partial(self._tell_saved, saved), however_long=True)
            self._end_if_requested()  # a signal that came after the last step's
        except (Exception, SystemExit) as error:
            unwritable = isinstance(error, LsmError) and error.reason == checkpoint.NOT_WRITTEN
            together = not self.world.several or agreed(error)
            if together and not (unwritable or self.stopper.at_once):
                with self.stopper.step():
                    self.save_unless_saved()
            raise

    def _write(self, line: dict[str, Any], progress: Progress) -> None:
        """Writes and shows the metrics of a step."""
        append_metrics(self.run.metrics, line)
        self._warn(line)
        if (left := self._support.add(line)) is not None:
            mend = advice(own_ids=self.config.loss.student_top_k > 0)
            log.warning("step %d: %s; %s", line["step"], left, mend)
        for found in self._narrow.add(line):
            told = narrow.advice(self.config.model_dump(), [found])
            log.warning("step %d: %s. %s", line["step"], found, told)
        progress.step(line)
        progress.histogram(line["step"], "response_length", self._lengths)
        self.recent.add(line)

    def _end_if_requested(self) -> None:
        """Ends the run where a signal has told one of its ranks to."""
        number = self.stopper.requested
        self.world.agree(None if number is None else Stopped(number))

    def _tell_written(self, number: int) -> None:
        """Tells which batches step ``number`` has written."""
        for batch in self.pipeline.batches if self.events else ():
            if batch.written_after == number - 1 and batch.step not in self._restored:
                rollouts = tuple(batch.rollouts)
                self.events.tell(RolloutsWritten(batch.step, batch.written_after, rollouts))

    def _evaluate(self, progress: Progress) -> None:
        """Evaluates the student where that is due after the last completed step; saves it where
        it is the best so far, and again where its checkpoint is to have the value."""
        step = self.state.step
        if not self._decided(lambda: self.evaluation.due(step)):
            return
        progress.phase("evaluating")
        with gathered(self.student):
            ended = self.world.on_first(self._evaluated, however_long=True)
        progress.phase("training")
        if ended is not None:
            progress.evaluated(step, curve_values(ended.evaluation))
        scored = self.config.checkpoint.best_held_out is not None
        again = scored and self._saved[0] == step
        best = self._decided(lambda: again or self.evaluation.is_best(step))
        saved = self.save() if best else None

        def tell() -> None:
            assert ended is not None, "it is due"
            self.events.tell(ended)
            self._tell_saved(saved)

        self.world.on_first(tell, however_long=True)

    def _evaluated(self) -> EvaluationEnded | None:
        with self.stopper.interruptible():
            return self.evaluation.during(self.state.step)

    def _decided(self, judge: Callable[[], bool]) -> bool:
        """What rank 0 finds; the files of the run that it looks at are its own."""
        return bool(self.world.from_first(self.world.on_first(judge)))

    def _stops_early(self) -> bool:
        """Whether the run ends before its last step, as evaluations get no better."""
        if self.config.evaluation.patience is None:
            return False
        if not self._decided(lambda: self.evaluation.out_of_patience(self.state.step)):
            return False
        best = self.config.checkpoint.best
        log.info(
            "%s has not been better for %d evaluations: the run ends after step %d",
            best, self.config.evaluation.patience, self.state.step,
        )  # fmt: skip
        return True

    def _save_is_due(self) -> bool:
        last = self.state.step == self.config.run.steps
        return last or self.state.step % self.config.checkpoint.every == 0

    def _tell_step(self, line: Mapping[str, Any], saved: Path | None) -> None:
        """Tells what a complete step was, and of its checkpoint, if it has one."""
        if self._scored is not None:
            self.events.tell(self._scored)
        self.events.tell(StepEnded(self.state.step, dict(line)))
        self._tell_saved(saved)

    def _tell_saved(self, saved: Path | None) -> None:
        """Tells of the checkpoint that a step was saved in."""
        if saved is not None:
            self.events.tell(CheckpointSaved(self.state.step, saved))

    def step(self) -> dict[str, Any]:
        """Makes one step and returns its metrics line."""
        config, number, start = self.config, self.state.step + 1, time.perf_counter()
        times = Times(waits=dict.fromkeys(self.teachers, 0.0))
        with gathered(self.student):
            batch = self.world.each(partial(self._fill, number))
        times.rollout = time.perf_counter() - start
        judged = self.verification.begin(batch.rollouts)
        told = time.perf_counter()
        self.world.on_first(partial(self._tell_written, number), however_long=True)
        start += time.perf_counter() - told  # no part of the step
        parts = split(len(batch.rollouts), config.optimizer.updates_per_batch)
        if len(parts) > 1:
            # After the first of several updates the state cannot be saved any more, so
            # every score has to be there before it.
            places = range(len(batch.rollouts))
            self.world.each(lambda: [self._scores(batch, place, times) for place in places])

        learnt: Sequence[Rollout] = batch.parts
        if config.reward.learns:
            learnt = self.world.each(partial(self._rewarded, number, judged, batch))

        # What the rollouts have freed, the update would find in pieces too small for it.
        give_back_free_pages()
        rows = RowLosses([len(part.token_ids) for part in batch.parts])
        self.updater.tell = rows.add
        totals = metrics.UpdateTotals.of_teachers(self.teachers)
        empty: list[NothingUsableError] = []
        for part in parts:

            def scores(member: int, first: int = part.start) -> ContinuationScores:
                return self._scores(batch, first + member, times)

            stale = batch.staleness > 0
            rows.first = part.start
            try:
                self.updater.update(learnt[part], scores, totals, number, stale)
            except NothingUsableError as error:
                self.updater.skip(totals)
                empty.append(error)
        give_back_free_pages()
        self._judge_empty(number, empty, whole=not totals.losses)
        totals = totals_of_world(totals, self.world)
        whole = totals.whole()
        responses = responses_of_world(
            responses_of(batch.rollouts, batch.parts), self.pipeline.places, self.world
        )
        if (refused := whole.counted("refused")) and self.world.writes:
            log.warning(
                "step %d: %d of %d responses are left out (refused_rollouts), the first because %s",
                number, refused, len(responses), whole.refusal,
            )  # fmt: skip
        self._lengths = [one.tokens for one in responses if one.origin == "student"]
        of_tasks = self.verification.metrics(
            number,
            judged,
            batch.rollouts,
            self.pipeline.places,
            [rows.of(place) for place in range(len(batch.parts))],
        )
        ended = time.perf_counter()
        self.world.on_first(partial(self._hear_scores, batch))

        self._keep_responses = partial(
            self.keeper.keep,
            number,
            batch.written_after,
            batch.parts,
            batch.known_scores,
            rows,
            self.pipeline.places,
        )
        self.pipeline.drop(batch)
        self._rng = capture_rng(self.student.device)
        self.state = replace(
            self.state,
            step=number,
            updates=self.updater.updates,
            position=self.pipeline.after(batch),
        )
        seconds = ended - start
        return {
            "step": number,
            **metrics.step_metrics(totals, responses),
            "loss_by_position": rows.by_position(self.world, self.pipeline.places),
            **metrics.scoring_metrics(config.scoring, responses),
            **of_tasks,
            **times.metrics(seconds),
            "staleness": batch.staleness,
            "tokens_per_second": whole.counted("rows") / seconds,
            **of_teachers(
                "teacher_identity",
                {name: identity.digest for name, identity in self.state.teachers.items()},
            ),
            "time": datetime.now(UTC).isoformat(),
        }

    def _hear_scores(self, batch: Batch) -> None:
        """Keeps what callbacks are told of scores; they may have to be waited for where no row of
        an update can be used."""
        if self.events:
            scores = tuple(batch.known_scores())
            self._scored = ScoresArrived(batch.step, tuple(batch.parts), scores)

    def _fill(self, number: int) -> Batch:
        with self.stopper.interruptible():
            return self.pipeline.fill(number, self.state.position, self.state.updates)

    def _rewarded(
        self, number: int, judged: Sequence[Future[Judgement] | None], batch: Batch
    ) -> Sequence[Rollout]:
        """The parts that step ``number`` updates on, with the advantages of their scores. A signal
        ends the wait for these, and the step: it is made again with all of them."""
        with self.stopper.interruptible():
            return self.verification.rewarded(number, judged, batch.parts)

    def _judge_empty(self, number: int, empty: list[NothingUsableError], *, whole: bool) -> None:
        """Says which updates of a step are left out. Raises the first of their errors when all
        are (``whole``) and the steps before it had none either."""
        if whole and self._empty_steps + 1 >= min(EMPTY_STEPS, self.config.run.steps):
            self.updater.updates = self.state.updates  # none was made: the state is clean
            raise on_every_rank(empty[0])
        self._empty_steps = self._empty_steps + 1 if whole else 0
        for error in empty if self.world.writes else ():
            log.warning("step %d: an update is left out (empty_updates): %s", number, error)

    def _warn(self, line: dict[str, Any]) -> None:
        """Warns when a teacher's realignment becomes poor, once until it is better again."""
        for name in self.teachers:
            if self.teachers.several and not line[f"tokens/{name}"]:
                continue  # none of the step's prompts is this teacher's
            problem = low_coverage(line, name if self.teachers.several else "")
            if problem and name not in self._coverage_low:
                log.warning("%s", problem)
            (self._coverage_low.add if problem else self._coverage_low.discard)(name)

    def _scores(self, batch: Batch, place: int, times: Times) -> ContinuationScores:
        """The scores of one rollout. The wait for them is timed, and a signal ends it."""
        future, index = batch.scores[place]
        start = time.perf_counter()
        if not future.done():
            with self.stopper.interruptible():
                future.result()
        teacher = batch.rollouts[place].prompt.teacher
        times.waits[teacher] += time.perf_counter() - start
        return future.result()[index]

    def save(self) -> Path:
        """Writes a checkpoint of ``state``; returns its folder."""
        assert self.updater.updates == self.state.updates, "between steps only"
        settings = self.config.checkpoint
        pending = self._pending()
        whole = batches_of_world(pending, self.pipeline, self.world)
        score = self.world.on_first(self._score)
        path = checkpoint.save(
            self.run.checkpoints,
            replace(self.state, pending_batches=describe_batches(whole), score=score),
            save_model=lambda directory: save_weights(self.student, directory),
            optimizer=self.updater.optimizer.state(),
            rng=rng_of_world(self._rng, self.world),
            rollouts=rollout_tensors(whole),
            keep=settings.keep,
            goal=settings.best_goal,
            world=self.world,
        )
        self._saved = self.state.step, len(pending)
        log.info("saved %s", path)
        return path

    def _score(self) -> float | None:
        """By which the checkpoint of the last completed step is compared with others."""
        if self.config.checkpoint.best_held_out is None:
            return self.recent.mean()
        return self.evaluation.value(self.state.step)

    def save_unless_saved(self) -> Path | None:
        """Saves the last completed step, unless it is saved already or the student has
        since been updated, in a step of several updates. Returns the checkpoint, if any."""
        clean = self.updater.updates == self.state.updates
        if clean and self.state.step and (self.state.step, len(self._pending())) > self._saved:
            return self.save()
        return None

    def _pending(self) -> list[Batch]:
        """The batches that a resumed run does not write anew: those that older weights wrote,
        and of an engine that would write others all that are whole."""
        now, replays = self.state.step, self.pipeline.engine.replays
        found = [b for b in self.pipeline.batches if b.written_after < now or not replays]
        # A rank that was stopped while it wrote has fewer: the others write theirs anew.
        return found[: -self.world.most(-len(found))]


def empty_steps(metrics: Path, step: int) -> int:
    """How many steps in a row, the last of them ``step``, had no usable row."""
    lines = read_metrics(metrics) if metrics.exists() else []
    losses = [line["loss"] for line in lines if line["step"] <= step]
    used = [place for place, loss in enumerate(losses, 1) if loss is not None]
    return len(losses) - max(used, default=0)
