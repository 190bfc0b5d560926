"""How often a teacher token went on to a longer student token earlier in a rollout.

What is known of the token at large knows nothing of the text: in documentation of Python
`__` goes on to `__()` half of the time. Only rows up to a position's sync point count, so
that nothing depends on what follows.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from teacher_proto.types import Bool

from teacher_server.realign.pair.layout import Layout
from teacher_server.realign.pair.tables import SETTLED_LEAK
from teacher_server.realign.segmentation.pair_segmentation import LearntPair
from teacher_server.realign.walk.extension_shares import shares_behind
from teacher_server.realign.walk.masses import places
from teacher_server.realign.walk.rows import TeacherRows

Int64 = NDArray[np.int64]
# As often must a token have been seen before its estimate is set aside as too high.
OFTEN = 2


class SeenLeaks:
    """The rollout's own evidence; asked with (token, row of the sync point)."""

    def __init__(self, layout: Layout, rows: TeacherRows, pair: LearntPair) -> None:
        tables = pair.tables
        ids = layout.teacher_ids[:-1].astype(np.int64)
        place = np.flatnonzero(tables.extended[ids] & tables.teacher.ordinary[ids])
        tokens = ids[place]
        behind = place + 1
        ids = rows.ids[behind].astype(np.int64)
        share = shares_behind(tokens, ids, rows.log_probs[behind], pair).longer
        self._occurs = np.zeros(tables.teacher.size, np.bool_)
        self._occurs[tokens] = True
        self._leaked = np.zeros(tables.teacher.size, np.bool_)
        self._leaked[tokens[share > SETTLED_LEAK]] = True
        order = np.argsort(tokens, kind="stable")
        self._stride = len(layout.teacher_ids) + 1
        self._tokens = tokens[order]
        # Seen once the row behind the token is at the sync point or before.
        self._keys = self._tokens * self._stride + place[order] + 1
        begins = np.ones(len(order), np.bool_)
        begins[1:] = self._tokens[1:] != self._tokens[:-1]
        group = np.cumsum(begins) - 1
        first = np.flatnonzero(begins)
        self._times = np.arange(len(order)) - first[group] + 1
        # Shares are below 2: adding the group's number keeps the groups' maxima apart.
        self._most = np.maximum.accumulate(share[order] + 2 * group) - 2 * group

    def leaky(self, leaky: Bool, fixed: Bool, ids: Int64, sync: Int64, wanted: Bool) -> Bool:
        """``leaky`` [n, w] with what has been seen of ``ids`` [n, w] before ``sync`` [n].

        Args:
            fixed: [n, w], tokens that stay leaky whatever has been seen.
            wanted: [n, w], the others are left as they are.
        """
        # Of the others nothing that has been seen changes what is known.
        line, place = places(wanted & (self._leaked[ids] | (self._occurs[ids] & leaky)))
        tokens = ids.take(place)
        at = np.searchsorted(self._keys, tokens * self._stride + sync[line], "right") - 1
        found = (at >= 0) & (self._tokens[at] == tokens)
        most = np.where(found, self._most[at], 0.0)
        times = np.where(found, self._times[at], 0)
        before = leaky.take(place)
        now = (most > SETTLED_LEAK) | (before & (fixed.take(place) | (times < OFTEN)))
        result = leaky.copy()
        result.put(place, now)
        return result
