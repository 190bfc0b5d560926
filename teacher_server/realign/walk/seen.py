"""What the rollout itself has shown of its tokens: were they extended, where they occurred?

What is known of a token at large knows nothing of the text: in documentation of Python
`__` is extended to `__()` half of the time. If the rollout already contains a token, what
followed it there overrides the other sources: one extension above 5% makes it extendable,
and MIN_SIGHTINGS without one set the others aside. Only rows up to a position's sync point
count, so that nothing depends on what follows.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from teacher_proto.types import Bool

from teacher_server.realign.pair.layout import Layout
from teacher_server.realign.pair.tables import EXTENSION_LIMIT
from teacher_server.realign.segmentation.extension_shares import extension_shares
from teacher_server.realign.segmentation.pair_segmentation import PairSegmentation
from teacher_server.realign.walk.rows import TeacherRows

Int64 = NDArray[np.int64]
# How often a token must have been seen without an extension before what else is known of it
# is set aside as too high.
MIN_SIGHTINGS = 2


class SeenExtensions:
    """The evidence of one rollout, looked up by (token, row of the sync point)."""

    def __init__(self, layout: Layout, rows: TeacherRows, pair: PairSegmentation) -> None:
        tables = pair.tables
        ids = layout.teacher_ids[:-1].astype(np.int64)
        place = np.flatnonzero(tables.has_extension[ids] & tables.teacher.ordinary[ids])
        tokens = ids[place]
        after = place + 1
        ids = rows.ids[after].astype(np.int64)
        share = extension_shares(tokens, ids, rows.log_probs[after], pair).extended
        self._occurs = np.zeros(tables.teacher.size, np.bool_)
        self._occurs[tokens] = True
        self._extended = np.zeros(tables.teacher.size, np.bool_)
        self._extended[tokens[share > EXTENSION_LIMIT]] = True
        order = np.argsort(tokens, kind="stable")
        self._stride = len(layout.teacher_ids) + 1
        self._tokens = tokens[order]
        # A token is seen once the row after it is at the sync point or before.
        self._keys = self._tokens * self._stride + place[order] + 1
        begins = np.ones(len(order), np.bool_)
        begins[1:] = self._tokens[1:] != self._tokens[:-1]
        group = np.cumsum(begins) - 1
        first = np.flatnonzero(begins)
        self._times = np.arange(len(order)) - first[group] + 1
        # Shares are below 2: adding the group's number keeps the groups' maxima apart.
        self._most = np.maximum.accumulate(share[order] + 2 * group) - 2 * group

    def may_correct(self, may_extend: Bool, token: Int64) -> Bool:
        """bool [n]: the tokens of which something has been seen, in this rollout as a whole,
        that ``corrected`` could set against ``may_extend`` [n]."""
        seen: Bool = self._occurs.take(token) & may_extend
        return seen | self._extended.take(token)

    def corrected(self, may_extend: Bool, fixed: Bool, token: Int64, sync: Int64) -> Bool:
        """``may_extend`` [n] of the other sources, corrected by what has been seen of the
        tokens [n] before the rows ``sync`` [n].

        Args:
            fixed: [n], tokens that may be extended whatever has been seen.
        """
        at = np.searchsorted(self._keys, token * self._stride + sync, "right") - 1
        found = (at >= 0) & (self._tokens[at] == token)
        most = np.where(found, self._most[at], 0.0)
        times = np.where(found, self._times[at], 0)
        return (most > EXTENSION_LIMIT) | (may_extend & (fixed | (times < MIN_SIGHTINGS)))
