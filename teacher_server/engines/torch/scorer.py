"""Takes one batch from token ids to rows: the trunk, then the head. It has no thread of its own
and never waits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from teacher_proto.rows import Rows, WideRows
from teacher_proto.types import Int32

from teacher_server.engines.base import Job, ScoredSpan
from teacher_server.engines.torch.head import LanguageModelHead, RowRequest
from teacher_server.engines.torch.packing import Batch, FlatBatch, Item, PrefixTreeBatch
from teacher_server.engines.torch.prefix_tree import prefix_tree
from teacher_server.engines.torch.supports import SupportSpec
from teacher_server.engines.torch.trunk import Trunk


@dataclass(frozen=True)
class Unit:
    """One span of a job, with the item by which packing knows it."""

    item: Item
    job: Job
    span: ScoredSpan

    @classmethod
    def of(cls, key: int, job: Job, span: ScoredSpan) -> Unit:
        """``span`` has at least one position."""
        prompt = np.ascontiguousarray(job.prompt_ids, np.int32).tobytes()
        read = span.token_ids[: int(span.positions[-1])].astype(np.int32)
        return cls(Item(key, prompt, read.tobytes()), job, span)

    def outside_trees(self) -> Unit:
        """The same unit, which is not read in a tree any more."""
        return replace(self, item=replace(self.item, outside_trees=True))

    @property
    def row_request(self) -> RowRequest:
        span = self.span
        spec = SupportSpec.of(self.job, span)
        return RowRequest(spec, span.token_ids[span.positions], span.explicit_ids)

    @property
    def rows(self) -> NDArray[np.int64]:
        """The positions in the continuation that are scored, int64 [R]."""
        return self.span.positions.astype(np.int64)

    @property
    def input_ids(self) -> Int32:
        """The continuation as far as it is read, int32."""
        return np.frombuffer(self.item.read, np.int32)


@dataclass(frozen=True)
class SpanResult:
    """What one pass gave for one unit.

    Attributes:
        rows: None where they are not finite.
        computed_tokens: those of a prompt that several units share count for the first.
        seconds: the unit's share of the pass, by tokens.
        again: the rows of a tree are not finite, which any of its nodes may have caused,
            so that the unit has to run again outside of trees.
    """

    unit: Unit
    rows: Rows | None
    computed_tokens: int
    seconds: float
    again: bool = False


class Scorer:
    """Runs batches on a trunk and a head.

    Args:
        select: applies an adapter to the trunk, or none for "".
    """

    def __init__(
        self, trunk: Trunk, head: LanguageModelHead, select: Callable[[str], None]
    ) -> None:
        self.trunk = trunk
        self.head = head
        self._select = select

    def run(
        self,
        batch: Batch,
        units: Mapping[int, Unit],
        check: Callable[[], None],
        clock: Callable[[], float],
    ) -> Iterator[list[SpanResult]]:
        """The results of a batch, one list for each pass.

        Args:
            units: the units of the batch by the keys of their items, all of one adapter.
            check: called between passes and between blocks; what it raises ends the batch.
            clock: seconds that went by, without those that ``check`` gave to other batches.
        """
        with torch.inference_mode():
            self._select(units[batch.items[0].key].job.adapter)
            if isinstance(batch, FlatBatch):
                yield self._flat([units[item.key] for item in batch.items], check, clock)
                return
            if isinstance(batch, PrefixTreeBatch):
                yield from self._prefix_trees(batch, units, check, clock)
                return
            prompts = [np.frombuffer(prompt, np.int32) for prompt in batch.prompts]
            number = {prompt: index for index, prompt in enumerate(batch.prompts)}
            unpaid = {
                prompt: len(ids) - 1 for prompt, ids in zip(batch.prompts, prompts, strict=True)
            }
            started = clock()
            cached = self.trunk.prompts(prompts, check)
            for batch_pass in batch.passes:
                members = [units[item.key] for item in batch_pass]
                hidden = self.trunk.continuations(
                    cached,
                    [number[item.prompt] for item in batch_pass],
                    [
                        np.concatenate([prompts[number[unit.item.prompt]][-1:], unit.input_ids])
                        for unit in members
                    ],
                    [unit.rows for unit in members],
                    check,
                )
                rows = self.head.score(hidden, [unit.row_request for unit in members], check)
                tokens = [u.item.length + unpaid.pop(u.item.prompt, 0) for u in members]
                now = clock()
                yield _span_results(members, rows, tokens, now - started)
                started = now

    def _prefix_trees(
        self,
        batch: PrefixTreeBatch,
        units: Mapping[int, Unit],
        check: Callable[[], None],
        clock: Callable[[], float],
    ) -> Iterator[list[SpanResult]]:
        prompt = np.frombuffer(batch.prompt, np.int32)
        unpaid = len(prompt) - 1
        started = clock()
        cached = self.trunk.prompts([prompt], check) if unpaid else None
        for batch_pass in batch.passes:
            members = [units[item.key] for item in batch_pass]
            tree = prefix_tree(int(prompt[-1]), [item.read for item in batch_pass])
            nodes = [path[unit.rows] for path, unit in zip(tree.paths, members, strict=True)]
            hidden = self.trunk.prefix_tree(cached, tree, np.concatenate(nodes), check)
            rows = self.head.score(hidden, [unit.row_request for unit in members], check)
            tokens = tree.added.tolist()
            tokens[0], unpaid = tokens[0] + unpaid, 0
            now = clock()
            results = _span_results(members, rows, tokens, now - started)
            yield [replace(result, again=result.rows is None) for result in results]
            started = now

    def _flat(
        self, members: list[Unit], check: Callable[[], None], clock: Callable[[], float]
    ) -> list[SpanResult]:
        started = clock()
        hidden = self.trunk.flat(
            [np.concatenate([unit.job.prompt_ids, unit.input_ids]) for unit in members],
            [unit.rows + unit.item.prompt_length - 1 for unit in members],
            check,
        )
        rows = self.head.score(hidden, [unit.row_request for unit in members], check)
        tokens = [unit.item.flat_tokens for unit in members]
        return _span_results(members, rows, tokens, clock() - started)


def _span_results(
    members: list[Unit], rows: list[Rows | None], tokens: list[int], seconds: float
) -> list[SpanResult]:
    total = sum(tokens)
    return [
        SpanResult(unit, _as_many_wide(result), count, seconds * count / total)
        for unit, result, count in zip(members, rows, tokens, strict=True)
    ]


def _as_many_wide(rows: Rows | None) -> Rows | None:
    """The rows, of which no more are wide than may be."""
    return rows.as_many_wide() if isinstance(rows, WideRows) else rows
