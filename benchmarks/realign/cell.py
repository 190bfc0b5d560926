"""One pair and one text: what the service answers by default, held against the reference."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache

import numpy as np
from teacher_proto.types import PositionClass

from benchmarks.realign.ngram import NgramTeacher
from benchmarks.realign.reference.raw_tokenizer import RawTokenizer
from benchmarks.realign.reference.rollout import Rollout
from benchmarks.realign.reference.specification import Reference
from benchmarks.realign.reference.truth import Truth, entropy
from benchmarks.realign.served import Served, ServedPair
from benchmarks.realign.texts import Text
from teacher_server.realign.paired import Pair
from tests.realign.real_tokenizers import pair, raw_tokenizer

# Other continuations, before which a row must be what it was.
TAILS = ("able to", "'s", " x", "\n\n", "7", "de la", "()", "  y", "\u754c", "\u00e9")
# Total variation from which a row is listed.
FAR = 0.05
# Tokens of a rollout on either side of a position that is scored before two continuations.
AROUND = 40, 4


@dataclass(frozen=True)
class Far:
    """A row that is far from the truth.

    Attributes:
        open_mass: what the row left open. What of it turns out to be impossible is in the ids'
            true masses, so that it explains as much of the distance.
        said: the end of the text before it.
        told, true: probabilities of the token that is furthest off.
    """

    position: int
    excess: float
    noise: float
    open_mass: float
    said: str
    token: str
    told: float
    true: float


@dataclass
class Cell:
    """What was found.

    Attributes:
        masked, coarse: parts of the positions.
        told, truth: entropy of what rows tell and of the right rows, nats, over positions of
            every class.
        masked_truth: the same of the right rows at masked positions alone, their mean.
        excess: of each row that is judged, total variation beyond chance.
        noise: the chance in each.
        causality: total variations between a row and itself before another text.
        not_judged: positions where the teacher writes nothing that agrees.
    """

    pair: str
    text: str
    positions: int = 0
    teacher_tokens: int = 0
    masked: float = 0.0
    coarse: float = 0.0
    covered: float = 0.0
    extra_rows: int = 0
    context_free_rows: int = 0
    microseconds: float = 0.0
    told: float = 0.0
    truth: float = 0.0
    masked_truth: float = 0.0
    excess: list[float] = field(default_factory=list)
    noise: list[float] = field(default_factory=list)
    causality: list[float] = field(default_factory=list)
    far: list[Far] = field(default_factory=list)
    not_judged: int = 0


@cache
def served_tables(student: str, teacher: str) -> tuple[Pair, RawTokenizer, RawTokenizer]:
    """The product's tables of a pair, and both files as the library reads them."""
    tables = pair(student, teacher)
    sides = ((student, tables.student), (teacher, tables.teacher))
    own, theirs = (
        raw_tokenizer(name, frozenset(side.token_bytes[token].decode() for token in side.spelt))
        for name, side in sides
    )
    return Pair(tables), own, theirs


def measure(student: str, teacher: str, text: Text, samples: int) -> Cell:
    """Judges about ``samples`` rows that are not masked, and others in their proportion."""
    tables, own, theirs = served_tables(student, teacher)
    learnt = theirs.encode(text.learnt)
    model = NgramTeacher(learnt, theirs)
    rollout = Rollout(text.held_out, own, theirs, tuple(learnt[-3:]))
    served = ServedPair(Pair(tables.tables), model)
    ids = np.array(rollout.student_ids, np.int32)
    got = served.score(ids, np.arange(len(ids), dtype=np.int32), rollout.before)
    kept = ~got.masked
    found = Cell(
        pair=f"{student} <- {teacher}",
        text=text.name,
        positions=len(ids),
        teacher_tokens=len(rollout.teacher_ids),
        masked=float(got.masked.mean()),
        coarse=float(got.coarse.mean()),
        covered=float(got.block.coverage[kept].mean()) if kept.any() else 0.0,
        extra_rows=got.extra_rows,
        context_free_rows=served.context_free_rows,
        microseconds=served.microseconds(ids, rollout.before),
    )
    draw = random.Random(3)
    order = draw.sample(range(len(ids)), len(ids))
    # As many of all as it takes to have enough that are not masked, but not for ever.
    most = min(2 * samples, len(ids))
    reference = Reference(model, own, theirs)
    judged = _judge(found, reference, rollout, got, order[:most], samples)
    for position in judged:
        _causality(found, served, rollout, position, draw)
    return found


def _judge(
    found: Cell,
    reference: Reference,
    rollout: Rollout,
    got: Served,
    order: list[int],
    samples: int,
) -> list[int]:
    """Judges positions in this order; those that are not masked and were judged."""
    judged: list[int] = []
    masked_truths: list[float] = []
    for position in order:
        if len(judged) == samples:
            break
        truth = reference.truth(rollout.window(position), random.Random(position))
        if truth is None:
            found.not_judged += 1
            continue
        found.truth += truth.entropy
        if got.masked[position]:
            masked_truths.append(truth.entropy)
            continue
        told = got.rows[position]
        found.told += entropy(told.values())
        excess = truth.excess(told)
        found.excess.append(excess)
        found.noise.append(truth.noise)
        judged.append(position)
        if excess > FAR:
            opened = float(got.block.open_mass[position])
            found.far.append(_far(rollout, position, excess, truth, opened, told))
    found.masked_truth = float(np.mean(masked_truths)) if masked_truths else 0.0
    return judged


def _far(
    rollout: Rollout,
    position: int,
    excess: float,
    truth: Truth,
    open_mass: float,
    told: Mapping[int, float],
) -> Far:
    token = max(told, key=lambda one: abs(told[one] - truth.mass.get(one, 0.0)))
    said = rollout.data[: rollout.student_ends[position]][-32:]
    name = rollout.student.token_bytes[token]
    return Far(
        position,
        excess,
        truth.noise,
        open_mass,
        said.decode("utf-8", "backslashreplace"),
        name.decode("utf-8", "backslashreplace"),
        told[token],
        truth.mass.get(token, 0.0),
    )


def _causality(
    found: Cell, served: ServedPair, rollout: Rollout, position: int, draw: random.Random
) -> None:
    """Scores a row before what follows it and before something else."""
    start = max(0, position - AROUND[0])
    ids = rollout.student_ids
    tail = rollout.student.encode(draw.choice(TAILS))
    rows = []
    for after in (ids[position : position + AROUND[1]], tail):
        whole = np.array([*ids[start:position], *after], np.int32)
        at = np.array([position - start], np.int32)
        got = served.score(whole, at, rollout.before)
        if got.block.position_class[0] == PositionClass.MASKED:
            return
        rows.append(got.rows[0])
    common = rows[0].keys() & rows[1].keys()
    found.causality.append(sum(abs(rows[0][one] - rows[1][one]) for one in common) / 2)
