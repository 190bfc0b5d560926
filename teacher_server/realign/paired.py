"""A student's and a teacher's tokenizer in use: their tables, and what was learnt for them."""

from __future__ import annotations

from collections import OrderedDict

from teacher_server.realign.pair.tables import PairTables
from teacher_server.realign.realigner import Realigner
from teacher_server.realign.walk.context_free import ContextFreeRows

# Teachers and temperatures of one pair whose context-free rows are kept.
MAX_CONTEXT_FREE = 32


class Pair:
    """A student's and a teacher's tokenizer. Not for several threads at once."""

    def __init__(self, tables: PairTables) -> None:
        self.tables = tables
        self.realigner = Realigner(tables)
        self._context_free: OrderedDict[tuple[str, float], ContextFreeRows] = OrderedDict()

    def context_free(self, teacher: str, temperature: float) -> ContextFreeRows:
        """This teacher's context-free rows at this temperature; the caller adds to them."""
        key = teacher, temperature
        found = self._context_free.pop(key, None) or ContextFreeRows(self.tables)
        self._context_free[key] = found
        while len(self._context_free) > MAX_CONTEXT_FREE:
            self._context_free.popitem(last=False)
        return found
