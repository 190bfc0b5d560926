"""The teacher's answers: realigned by the product, and by brute force for comparison."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from teacher_proto.program.mask_reasons import COARSE_REASONS
from teacher_proto.types import Bool, Int32, MaskReason
from torch import Tensor
from transformers import LlamaForCausalLM

from benchmarks.cells.cells import Cells, cells_of, without
from benchmarks.cells.pair import pair, side
from benchmarks.cells.task import Problem
from teacher_server.realign.certify import Certified, certify
from teacher_server.realign.pair.layout import Layout
from teacher_server.realign.realigner import RealignedRows, Realigner
from teacher_server.realign.walk.context_free import ContextFreeRows
from teacher_server.realign.walk.masses import WalkResult
from teacher_server.realign.walk.rows import TeacherRows, teacher_rows, with_extra_rows

Int64 = NDArray[np.int64]
Float64 = NDArray[np.float64]
TOP_K = 64
# Ids of a teacher's row that are read: all digits and signs, and some bytes beside them.
BEST = 32
# Open mass from which a row is worth a further row, as in the service's settings.
LEAST_OPEN = 0.1
# Reasons of rows that further rows could tell.
OPEN_REASONS = (*COARSE_REASONS, MaskReason.NOTHING_CERTIFIED, MaskReason.LARGE_REST)
# Another path of the teacher: after so many tokens of the reply, these.
Path = tuple[int, tuple[int, ...]]


@dataclass(frozen=True)
class Scored:
    """The n tokens of an update's replies, one reply after the other.

    Attributes:
        ids: int64 [n], the student's.
        certified: of all rows, those too that the product masks.
        masked: bool [n], the product returns nothing to a client that does not know coarse
            rows.
        coarse: bool [n], of the masked rows those that are coarse for one that does.
        partly: bool [n], of the masked rows those that are masked for what is open alone.
        teacher_tokens: that the teacher has read for them.
    """

    ids: Int64
    realigned: RealignedRows
    certified: Certified
    masked: Bool
    coarse: Bool
    partly: Bool
    teacher_tokens: int

    def cells(self, index: int) -> Cells:
        found = cells_of(self.realigned.walked, self.certified, index, pair().student)
        return without(found, side(3).never)

    def chunk_advantages(self, log_probs: Float64) -> Float64:
        """float64 [n]: log q - log pi of the chunk that holds each token.

        Args:
            log_probs: float64 [n], of the student's tokens when they were drawn.
        """
        chunks = self.realigned.chunk_log_likelihood
        own = np.bincount(self.realigned.chunk_index, log_probs, len(chunks))
        advantages: Float64 = chunks.astype(np.float64) - own
        return advantages[self.realigned.chunk_index]


class Scorer:
    """The teacher, and the product's realignment of what it says.

    The replies of an update are realigned as one text, in which each stands behind the end of
    the one before: what a row may depend on lies between two ends. A reply that was cut gets
    an end for this, which is no row.
    """

    def __init__(self, teacher: LlamaForCausalLM) -> None:
        self._teacher = teacher
        self._side = side(1)
        self._realigner = Realigner(pair())
        self._context_free = ContextFreeRows(pair())

    def score(
        self, asked: Sequence[Problem], replies: Sequence[Int64], extra_rounds: int = 0
    ) -> Scored:
        end = side(3).end
        closed = [ids if ids[-1] == end else np.append(ids, end) for ids in replies]
        drawn = [np.arange(len(one)) < len(ids) for one, ids in zip(closed, replies, strict=True)]
        positions = np.flatnonzero(np.concatenate(drawn))
        layout = self._realigner.lay_out(np.concatenate(closed).astype(np.int32))
        ends = np.flatnonzero(layout.teacher_ids == self._side.end) + 1
        starts = np.concatenate([[0], ends[:-1]])
        lines = [one.tolist() for one in np.split(layout.teacher_ids, ends[:-1])]
        own = self.rows(asked, lines, [[(at, ()) for at in range(len(one))] for one in lines])
        values = np.concatenate(own)
        of_tokens = values[np.arange(len(values)), layout.teacher_ids]
        found = teacher_rows(layout.teacher_ids, *_ranked(values), of_tokens)
        realigned, spent = self._realign(layout, positions, found), len(values)
        for _ in range(extra_rounds):
            steps = _unsettled_paths(realigned.walked, LEAST_OPEN)
            paths: list[list[Path]] = [[] for _ in lines]
            for row, token in steps:
                at, tokens = found.path(row)
                reply = int(np.searchsorted(starts, at, "right")) - 1
                paths[reply].append((at - int(starts[reply]), (*tokens, token)))
            # Steps are in the order of their rows, paths in that of their replies.
            owner = [int(np.searchsorted(starts, found.path(row)[0], "right")) for row, _ in steps]
            order = np.argsort(owner, kind="stable")
            further = np.concatenate(self.rows(asked, lines, paths))
            found = with_extra_rows(found, [steps[one] for one in order], *_ranked(further))
            realigned = self._realign(layout, positions, found)
            spent += len(steps)
        return _scored(layout, positions, realigned, spent)

    def _realign(self, layout: Layout, positions: Int64, rows: TeacherRows) -> RealignedRows:
        while True:
            found = self._realigner.realign(
                layout, positions, rows, top_k=TOP_K, context_free=self._context_free
            )
            wanted = found.walked.wanted
            if not len(wanted):
                return found
            inputs = [[self._side.begin, token] for token in wanted.tolist()]
            with torch.inference_mode():
                logits = self._teacher(torch.tensor(inputs)).logits[:, -1]
            ids, log_probs = _ranked(torch.log_softmax(logits.double(), -1).numpy())
            self._realigner.learn(self._context_free, wanted, ids, log_probs)

    @torch.inference_mode()
    def rows(
        self, asked: Sequence[Problem], lines: Sequence[list[int]], paths: Sequence[Sequence[Path]]
    ) -> list[Float64]:
        """For each reply float64 [p, V_T]: log-probabilities after each of its paths.

        A reply and its paths are one prefix tree: a path's tokens see the reply up to where
        they leave it, and each other.
        """
        before = [self._side.prompt_ids(one.prompt) for one in asked]
        trees = [_tree(*one) for one in zip(before, lines, paths, strict=True)]
        longest = max(len(tree.ids) for tree in trees)
        ids = torch.full((len(trees), longest), self._side.end)
        places = torch.zeros((len(trees), longest), dtype=torch.int64)
        seen = torch.eye(longest, dtype=torch.bool).repeat(len(trees), 1, 1)
        for index, tree in enumerate(trees):
            size = len(tree.ids)
            ids[index, :size] = torch.tensor(tree.ids)
            places[index, :size] = torch.tensor(tree.places)
            seen[index, :size, :size] = tree.seen
        mask = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
        logits = self._teacher(ids, attention_mask=mask[:, None], position_ids=places).logits
        return [
            torch.log_softmax(logits[index, tree.ends].double(), -1).numpy()
            for index, tree in enumerate(trees)
        ]


def _unsettled_paths(walked: WalkResult, least: float) -> list[tuple[int, int]]:
    """(row, token) pairs such that the row after both would settle most: one for each
    position with a part of open mass above ``least``, each once, by row."""
    opened = walked.open
    mass = np.bincount(opened.position, opened.mass, len(walked.total))
    share = mass / np.maximum(walked.total, 1e-300)
    usable = (opened.row >= 0) & (opened.token >= 0) & (share[opened.position] > least)
    index = np.flatnonzero(usable)
    index = index[np.lexsort([-opened.mass[index], opened.position[index]])]
    _, first = np.unique(opened.position[index], return_index=True)
    chosen = index[first]
    pairs = zip(opened.row[chosen].tolist(), opened.token[chosen].tolist(), strict=True)
    return sorted(set(pairs))


@dataclass(frozen=True)
class _Tree:
    """ids, places: of each node; seen: bool [n, n], who sees whom; ends: each path's last."""

    ids: list[int]
    places: list[int]
    seen: Tensor
    ends: list[int]


def _tree(before: list[int], line: list[int], paths: Sequence[Path]) -> _Tree:
    ids = before + line
    places = list(range(len(ids)))
    size = len(ids) + sum(len(tokens) for _, tokens in paths)
    seen = torch.zeros((size, size), dtype=torch.bool)
    trunk = len(ids)
    seen[:trunk, :trunk] = torch.ones(trunk, trunk, dtype=torch.bool).tril()
    ends = []
    for at, tokens in paths:
        begin, kept = len(ids), len(before) + at
        for depth, token in enumerate(tokens):
            seen[begin + depth, :kept] = True
            seen[begin + depth, begin : begin + depth + 1] = True
            ids.append(token)
            places.append(kept + depth)
        ends.append(len(ids) - 1 if tokens else kept - 1)
    return _Tree(ids, places, seen, ends)


def _ranked(log_probs: Float64) -> tuple[Int32, Float64]:
    """The BEST ids of each row with their log-probabilities, the most likely first."""
    order = np.argsort(-log_probs, 1, kind="stable")[:, :BEST]
    return order.astype(np.int32), np.take_along_axis(log_probs, order, 1)


def _scored(layout: Layout, positions: Int64, realigned: RealignedRows, spent: int) -> Scored:
    tables, ids = pair(), layout.student_ids[positions].astype(np.int64)
    certified = certify(realigned.walked, ids, TOP_K, tables.student.size, tables)
    reasons = realigned.mask_reason
    coarse, partly = np.isin(reasons, COARSE_REASONS), np.isin(reasons, OPEN_REASONS)
    return Scored(ids, realigned, certified, reasons != 0, coarse, partly, spent)
