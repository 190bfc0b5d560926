"""Pairs that share their ordinary ids: nothing is walked, rows are gathered by id.

SAME: every id is the same on both sides. REMAP: the added tokens differ; those with the
same text, else with the same role, are each other's counterparts. Mass on one that the student
lacks is that of the first token that the student spells it with.
"""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray
from teacher_proto.types import Int32, Level

from teacher_server.realign.certify import Certified, best_ids, sum_by_token
from teacher_server.realign.pair.layout import Layout, student_offsets
from teacher_server.realign.pair.tables import PairTables
from teacher_server.realign.pair.vocabulary import Vocabulary
from teacher_server.realign.walk.masses import Entries, Settled, WalkResult
from teacher_server.realign.walk.rows import TeacherRows

Int64 = NDArray[np.int64]


def id_table(source: Vocabulary, target: Vocabulary, by_role: dict[int, int]) -> Int64:
    """int64 [V_source]: the id of ``target`` for each of ``source``; -1 where there is none.

    Args:
        by_role: counterparts of special ids, for those whose text the target lacks.
    """
    table = np.full(source.size, -1, np.int64)
    pairs = zip(source.token_bytes, target.token_bytes, strict=False)
    equal = [token for token, (one, other) in enumerate(pairs) if one and one == other]
    table[equal] = equal
    texts = {text: token for token, text in target.specials.items()}
    for token, text in source.specials.items():
        table[token] = texts.get(text, by_role.get(token, -1))
    return table


class Remap:
    """The id tables of a pair whose ordinary ids are equal."""

    def __init__(self, tables: PairTables) -> None:
        self._tables = tables
        student, teacher = tables.student, tables.teacher
        self._to_teacher = id_table(student, teacher, dict(tables.special_to_teacher))
        roles = {t: int(tables.special_to_student[t]) for t in teacher.specials}
        self._to_student = id_table(teacher, student, roles)
        spelt = sorted(teacher.spelt)
        self._to_student[spelt] = tables.first_student_token[spelt]
        texts = [re.escape(teacher.token_bytes[token]) for token in spelt]
        self._spelt_by_student = re.compile(b"|".join(texts)) if texts else None

    def lay_out(self, student_ids: Int32, level: Level) -> Layout | None:
        """The rollout with its ids mapped; None where one of its tokens has no counterpart, or
        its text spells one of the teacher's, so that it has to be walked as CROSS."""
        teacher_ids = self._to_teacher[student_ids]
        if (teacher_ids < 0).any():
            return None
        student = self._tables.student
        data = b"".join(
            data if data else student.specials[token].encode()
            for token in student_ids.tolist()
            for data in [student.token_bytes[token]]
        )
        if self._spelt_by_student is not None and self._spelt_by_student.search(data):
            return None
        count = len(student_ids)
        special = ~student.ordinary[student_ids]
        offsets = student_offsets(student_ids, student)
        places = np.arange(count + 1)
        return Layout(
            data=data,
            student_ids=student_ids,
            student_offsets=offsets,
            teacher_ids=teacher_ids.astype(np.int32),
            teacher_offsets=offsets,
            sync=places[:-1],
            special=special,
            canonical=np.ones(count, np.bool_),
            unreadable=np.zeros(count, np.bool_),
            without_counterpart=np.zeros(count, np.bool_),
            chunk=places[:-1],
            chunk_teacher=places,
            chunk_tokens=np.ones(count, np.int64),
            level=level,
        )

    def walk(self, positions: Int64, rows: TeacherRows) -> WalkResult:
        """Gives the mass of every id of a row to its counterpart; without one it is lost."""
        ids = rows.ids[positions].astype(np.int64)
        mass = np.exp(rows.log_probs[positions])
        target = self._to_student[ids]
        known = (target >= 0) & (mass > 0)
        line, _ = np.nonzero(known)
        count = len(positions)
        none = np.zeros(0, np.int64)
        empty = Entries(none, none, np.zeros(0), none, none, none, none)
        tail = rows.tail[positions]
        return WalkResult(
            settled=Settled(line, target[known], mass[known], np.ones(len(line), np.int64)),
            open=empty,
            lost=np.where(target < 0, mass, 0.0).sum(1),
            total=np.ones(count),
            tail=tail,
            floor=np.minimum(np.exp(rows.floor[positions]), tail),
            listed=rows.listed[positions],
            wide=np.zeros(count, np.bool_),
            behind_space=np.zeros(count, np.bool_),
            wanted=none,
        )

    def certify(self, walked: WalkResult, sampled: Int64, top_k: int, limit: int) -> Certified:
        """As ``certify.certify``, with every id certain.

        A row does not list all of its ids, yet one that it lists can only gain from the
        others where several special tokens share a role: at most the row's floor each.
        """
        count = len(sampled)
        position, token, mass, _ = sum_by_token(walked.settled, self._tables.student.size)
        own = np.zeros(count)
        hit = token == sampled[position]
        own[position[hit]] = mass[hit]
        fits = token < limit
        position, token, mass = position[fits], token[fits], mass[fits]
        ids, masses, _ = best_ids(position, token, mass, mass, count, top_k)
        ids, masses = ids[:, :top_k], masses[:, :top_k]
        keep = masses > 0
        with np.errstate(divide="ignore"):
            values = np.where(keep, np.minimum(np.log(masses), 0.0), 0.0)
            sampled_log = np.minimum(np.log(own), 0.0)
        return Certified(
            ids=np.where(keep, ids, -1).astype(np.int32),
            log_probs=values.astype(np.float32),
            counts=keep.sum(1).astype(np.int32),
            sampled=sampled_log,
            doubtful=np.zeros(count, np.bool_),
            coverage=masses.sum(1),
            open_mass=np.zeros(count),
            lost_mass=walked.lost,
        )
