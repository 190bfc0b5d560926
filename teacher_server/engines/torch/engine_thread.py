"""The thread that alone uses the model: it takes jobs, packs the spans that wait into batches,
and delivers their rows."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import torch
from teacher_proto.errors import EngineError
from teacher_proto.rows import Rows

from teacher_server.engines.base import Job, JobResult, PassCount, empty_rows
from teacher_server.engines.faults import is_fatal, is_out_of_memory, unavailable
from teacher_server.engines.torch.packing import (
    Batch,
    FlatBatch,
    Item,
    Packing,
    neighbours,
    next_batch,
    pass_tokens,
)
from teacher_server.engines.torch.scorer import Scorer, SpanResult, Unit
from teacher_server.failures import as_exception, is_ending, reported

logger = logging.getLogger(__name__)

# When memory runs out, forwards are not made shorter than this many tokens.
MINIMUM_BLOCK_TOKENS = 64


@dataclass(eq=False)
class Task:
    """A submitted job, and the rows that it has so far.

    Attributes:
        done: called once, in the engine's thread, with the result or an error; never
            once the task was dropped.
        rows: of the spans that are scored, by their index in the job.
        flat_tokens: of all its spans, each read with its prompt; known once it is unpacked.
    """

    job: Job
    done: Callable[[JobResult | BaseException], None]
    dropped: bool = False
    finished: bool = False
    rows: dict[int, Rows | None] = field(default_factory=dict)
    flat_tokens: int = 0
    computed_tokens: int = 0
    seconds: float = 0.0

    @property
    def wanted(self) -> bool:
        return not self.dropped and not self.finished

    def finish(self, result: JobResult | BaseException) -> None:
        if self.wanted:
            self.finished = True
            self.done(result)

    def finish_when_complete(self) -> None:
        count = len(self.job.spans)
        if len(self.rows) == count:
            rows = tuple(self.rows[index] for index in range(count))
            self.finish(JobResult(rows, self.computed_tokens, self.seconds))


class _Abandoned(Exception):
    """Nobody waits for the rest of the batch any more."""


class EngineThread:
    """Scores the jobs that other threads submit, on the thread that calls ``run``.

    Args:
        scorer: used by that thread alone.
        on_death: called in that thread with the error that ended ``run``.

    Attributes:
        count: the passes so far; replaced as a whole in that thread, so that any thread
            may read it.
    """

    def __init__(
        self, scorer: Scorer, packing: Packing, on_death: Callable[[BaseException], None]
    ) -> None:
        self._scorer = scorer
        self._packing = packing
        self._on_death = on_death
        self._condition = threading.Condition()
        self._inbox: deque[Task] = deque()
        self._closing = False
        self._dead: BaseException | None = None
        # Key of an item -> its unit, its task, and the index of its span in the job.
        self._waiting: dict[int, tuple[Unit, Task, int]] = {}
        self._next_key = 0
        # A batch is read in the middle of a larger one.
        self._gives_way = False
        # Jobs may wait that the batch which runs has not looked at.
        self._unseen = False
        self.count = PassCount(0, 0)

    def submit(self, task: Task) -> None:
        """Queues a task.

        Raises:
            TeacherUnavailableError: the engine is closed or dead.
        """
        with self._condition:
            if self._closing or self._dead is not None:
                raise unavailable(self._dead)
            self._inbox.append(task)
            self._condition.notify()

    def drop(self, task: Task) -> None:
        """The task's caller is gone: what is not computed yet is never computed."""
        task.dropped = True

    def close(self) -> None:
        """Ends ``run`` after the block that runs; tasks that are not finished fail."""
        with self._condition:
            self._closing = True
            self._condition.notify()

    def run(self) -> None:
        """Scores until ``close`` is called or the engine dies."""
        try:
            while self._take_in():
                self._run_next()
        except _Abandoned:
            pass
        except BaseException as error:
            self._dead = error
            self._fail_all(unavailable(error))
            self._on_death(error)
            return
        self._fail_all(unavailable(None))

    def _take_in(self) -> bool:
        """Unpacks new tasks, and blocks while there is nothing to do; False when closed."""
        with self._condition:
            self._forget_unwanted()
            while not self._waiting and not self._inbox and not self._closing:
                self._condition.wait()
            if self._closing:
                return False
        self._unpack_new()
        return True

    def _unpack_new(self) -> None:
        """A task leaves the inbox, out of which this thread alone takes, when it is unpacked: so
        that none is lost. One that cannot be unpacked fails alone."""
        while self._inbox:
            task = self._inbox[0]
            if task.wanted:
                try:
                    self._unpack(task)
                except BaseException as error:
                    if is_ending(error):
                        raise
                    told = reported(error, "a job could not be unpacked", logger)
                    task.finish(EngineError(f"scoring failed: {told}", where="engine"))
                self._unseen = True
            self._inbox.popleft()

    def _unpack(self, task: Task) -> None:
        for index, span in enumerate(task.job.spans):
            if len(span.positions) == 0:
                task.rows[index] = empty_rows(task.job, span)
                continue
            key, self._next_key = self._next_key, self._next_key + 1
            unit = Unit.of(key, task.job, span)
            self._waiting[key] = (unit, task, index)
            task.flat_tokens += unit.item.flat_tokens
        task.finish_when_complete()

    def _forget_unwanted(self) -> None:
        self._waiting = {k: entry for k, entry in self._waiting.items() if entry[1].wanted}

    def _run_next(self) -> None:
        self._forget_unwanted()
        if self._waiting:
            units = [unit for unit, _, _ in self._waiting.values()]
            # All of a batch have one adapter: that of the span that has waited longest.
            items = [unit.item for unit in units if unit.job.adapter == units[0].job.adapter]
            self._execute(next_batch(items, self._packing))

    def _execute(self, batch: Batch) -> None:
        """Runs a batch; when memory runs out, its halves, and in the end shorter forwards."""
        if self._fits_memory(batch):
            return
        left = self._still_waiting(batch.items)
        logger.warning("out of memory with %d sequences; trying less at once", len(left))
        if len(left) > 1:
            for half in (left[: len(left) // 2], left[len(left) // 2 :]):
                remaining = half
                while remaining := self._still_waiting(remaining):
                    self._execute(next_batch(remaining, self._packing))
        elif left:
            self._retry_in_smaller_blocks(FlatBatch((left[0],)))

    def _fits_memory(self, batch: Batch) -> bool:
        """Runs a batch, whose items fail with it; False when memory runs out, and those that are
        not delivered still wait."""
        try:
            self._score(batch)
            return True
        except _Abandoned:
            if self._closing:
                raise
            return True
        except BaseException as error:
            if is_ending(error) or is_fatal(error):
                raise
            failure = as_exception(error)
            out_of_memory = is_out_of_memory(failure)
            told = "" if out_of_memory else reported(failure, "a batch failed", logger)
            del failure
        # Not inside the handler, where the traceback keeps the tensors of the batch alive.
        if not out_of_memory:
            for item in self._still_waiting(batch.items):
                self._fail(item.key, EngineError(f"scoring failed: {told}", where="engine"))
        elif torch.cuda.is_available():
            torch.cuda.empty_cache()
        return not out_of_memory

    def _still_waiting(self, items: Iterable[Item]) -> list[Item]:
        """Those that are not delivered yet, in their present form."""
        return [self._waiting[item.key][0].item for item in items if item.key in self._waiting]

    def _retry_in_smaller_blocks(self, batch: FlatBatch) -> None:
        item = batch.items[0]
        trunk = self._scorer.trunk
        before = trunk.block_tokens
        if trunk.cacheable and before // 2 >= MINIMUM_BLOCK_TOKENS:
            trunk.block_tokens = min(before, item.flat_tokens) // 2
            try:
                self._execute(batch)
            finally:
                trunk.block_tokens = before
            return
        self._fail(
            item.key,
            EngineError(
                f"a sequence of {item.flat_tokens} tokens does not fit in memory, even alone",
                where="engine",
                fix="score shorter sequences, or lower max_length to refuse them at once",
                reason="OUT_OF_MEMORY",
            ),
        )

    def _score(self, batch: Batch) -> None:
        tokens = pass_tokens(batch)
        self.count = PassCount(self.count.passes + len(tokens), self.count.tokens + sum(tokens))
        units = {item.key: self._waiting[item.key][0] for item in batch.items}
        tasks = {id(task): task for task in (self._waiting[key][1] for key in units)}

        # What others may have read meanwhile: as much as this batch reads itself.
        spare = 0 if self._gives_way or sum(tokens) <= self._packing.tokens else sum(tokens)
        others = 0.0  # seconds that they took
        self._unseen = True

        def check() -> None:
            nonlocal spare, others
            if spare > 0 and (self._unseen or self._inbox):
                started = time.perf_counter()
                spare -= self._give_way(units, spare)
                others += time.perf_counter() - started
            if self._closing or not any(task.wanted for task in tasks.values()):
                raise _Abandoned

        def clock() -> float:
            return time.perf_counter() - others

        for results in self._scorer.run(batch, units, check, clock):
            for result in results:
                self._deliver(result)

    def _give_way(self, units: Mapping[int, Unit], spare: int) -> int:
        """In the middle of a batch that is larger than a full pass: of the jobs of its adapter
        that wait and that one pass reads whole, as many as one pass reads come first.

        Returns how much less than ``spare`` tokens others may be read of from now on: all of it
        when memory runs out beside this batch, for whose end the others then wait.
        """
        self._unpack_new()
        adapter = next(iter(units.values())).job.adapter
        most = self._packing.tokens
        small = [
            unit.item
            for key, (unit, task, _) in self._waiting.items()
            if task.flat_tokens <= most
            and task.wanted
            and key not in units
            and unit.job.adapter == adapter
        ]
        self._unseen = bool(small)
        if not small:
            return 0
        chosen = (small[0],) if self._packing.alone else neighbours(small, most)
        self._gives_way = True
        try:
            fits = self._fits_memory(FlatBatch(chosen))
        finally:
            self._gives_way = False
        if not fits:
            logger.warning("out of memory beside a larger batch: %d sequences wait", len(chosen))
            return spare
        return sum(item.flat_tokens for item in chosen)

    def _deliver(self, result: SpanResult) -> None:
        key = result.unit.item.key
        unit, task, index = self._waiting[key]
        task.computed_tokens += result.computed_tokens
        task.seconds += result.seconds
        if result.again:
            self._waiting[key] = (unit.outside_trees(), task, index)
            return
        del self._waiting[key]
        task.rows[index] = result.rows
        task.finish_when_complete()

    def _fail(self, key: int, error: BaseException) -> None:
        _, task, _ = self._waiting.pop(key)
        task.finish(error)

    def _fail_all(self, error: BaseException) -> None:
        with self._condition:
            tasks = [*self._inbox, *(task for _, task, _ in self._waiting.values())]
            self._inbox.clear()
            self._waiting.clear()
        for task in tasks:
            task.finish(error)
