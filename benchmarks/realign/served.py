"""The product, driven over an n-gram teacher as the service drives it over an engine."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from teacher_proto.types import Int32

from benchmarks.realign.ngram import NgramTeacher
from benchmarks.realign.pasts import LEAST
from teacher_server.realign.pair.layout import Layout
from teacher_server.realign.realigner import RealignedRows, Realigner
from teacher_server.realign.walk.context_free import ContextFreeRows
from teacher_server.realign.walk.rows import TeacherRows, teacher_rows

Float64 = NDArray[np.float64]
TOP_K = 64
# Ids of a row that are read: 2K.
BEST = 128


def top(model: NgramTeacher, before: Sequence[int]) -> tuple[Int32, Float64]:
    """[BEST] ids, -1 where there is none, and log-probabilities."""
    ids, values = model.support(before)
    space = (0, BEST - min(len(ids), BEST))
    return (
        np.pad(ids[:BEST], space, constant_values=-1).astype(np.int32),
        np.log(np.pad(values[:BEST], space, constant_values=1.0)),
    )


def rows_for(model: NgramTeacher, before: Sequence[int], layout: Layout) -> TeacherRows:
    """The rows of a rollout's teacher tokens."""
    ids = layout.teacher_ids.tolist()
    tokens = [*before, *ids]
    contexts = [tokens[: at + len(before)] for at in range(len(ids))]
    own = [model.probability(*pair) for pair in zip(contexts, ids, strict=True)]
    best = [top(model, context) for context in contexts]
    top_ids, values = (np.stack(part) for part in zip(*best, strict=True))
    return teacher_rows(layout.teacher_ids, top_ids, values, np.log(np.maximum(own, LEAST)))


class ServedPair:
    """A pair and its teacher: each context-free row is asked for once."""

    def __init__(self, realigner: Realigner, model: NgramTeacher) -> None:
        self.realigner = realigner
        self.context_free = ContextFreeRows(realigner.tables)
        self.model = model

    def realign(
        self, layout: Layout, positions: NDArray[np.int64], rows: TeacherRows
    ) -> RealignedRows:
        while True:
            got = self.realigner.realign(
                layout, positions, rows, top_k=TOP_K, context_free=self.context_free
            )
            tokens = got.walked.wanted
            if not len(tokens):
                return got
            best = [top(self.model, [token]) for token in tokens.tolist()]
            ids, values = (np.stack(part) for part in zip(*best, strict=True))
            self.realigner.learn(self.context_free, tokens, ids, values)
