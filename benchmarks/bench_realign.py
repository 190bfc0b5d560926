"""Realignment against enumeration, per pair and text: `make bench-realign`.

An n-gram model over the teacher's real tokens stands in for a teacher and gives the rows;
enumeration over its prefix-only encodings gives the truth (``realign_reference``). Exact
string matching, which looks a teacher token's bytes up in the student's vocabulary, is
measured as well.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cache

import numpy as np
from numpy.typing import NDArray
from teacher_proto.types import Int32, PositionClass

from benchmarks.harness import write_result
from benchmarks.realign_model import measure_real_model
from benchmarks.realign_reference import LEAST, Float64, NgramTeacher, enumerate_paths, rows_apart
from benchmarks.realign_texts import Text, texts
from teacher_server.realign.pair.layout import Layout
from teacher_server.realign.pair.vocabulary import Vocabulary
from teacher_server.realign.realigner import RealignedRows, Realigner
from teacher_server.realign.walk.context_free import ContextFreeRows
from teacher_server.realign.walk.rows import TeacherRows, teacher_rows, with_extra_rows
from teacher_server.realign.walk.walker import unsettled_paths
from tests.realign.real_tokenizers import pair, vocabulary

PAIRS = [
    ("llama3", "qwen3"),
    ("qwen3", "llama3"),
    ("llama3", "gpt4o"),
    ("gpt4o", "qwen3"),
    ("mistral_nemo", "qwen3"),
    ("llama3", "gemma3"),
]
# Pairs whose results are reported; the others are in the details.
MAIN = {"llama3", "qwen3", "gpt4o"}
# Texts in which several spaces stand before numbers.
SPACES = ("json", "table", "aligned", "layout")
TOP_K = 64
# Characters of other text that a pair has realigned before unseen text is timed.
WARM_UP = 16_000
# Ids of a row that are read: 2K.
BEST = 128
# Below it the reference itself is not resolved.
LEAST_SAMPLED = 1e-4
# Total variation from which a row counts as wrong.
OFF = 0.01
# Extra forwards for each position that has something open.
EXTRA = 4


@dataclass
class Measured:
    pair: str
    text: str
    positions: int = 0
    masked: float = 0.0
    covered: float = 0.0
    covered_of_all: float = 0.0
    covered_with_extra: float = 0.0
    masked_with_extra: float = 0.0
    microseconds_per_token: float = 0.0
    microseconds_per_unseen_token: float = 0.0
    context_free_rows: int = 0
    tv: list[float] = field(default_factory=list)
    tv_exact_match: list[float] = field(default_factory=list)
    sampled: list[float] = field(default_factory=list)
    causality: list[float] = field(default_factory=list)
    possible: list[float] = field(default_factory=list)
    not_enumerated: int = 0


def rows_for(teacher: NgramTeacher, before: Sequence[int], layout: Layout) -> TeacherRows:
    ids = layout.teacher_ids.tolist()
    tokens = [*before, *ids]
    contexts = [tokens[: at + len(before)] for at in range(len(ids))]
    own = [teacher.probability(*pair) for pair in zip(contexts, ids, strict=True)]
    best = [top(teacher, context) for context in contexts]
    top_ids, values = (np.stack(part) for part in zip(*best, strict=True))
    return teacher_rows(layout.teacher_ids, top_ids, values, np.log(np.maximum(own, LEAST)))


def top(teacher: NgramTeacher, before: Sequence[int]) -> tuple[Int32, Float64]:
    """[BEST] ids, -1 where there is none, and log-probabilities."""
    ids, values = teacher.support(before)
    space = (0, BEST - min(len(ids), BEST))
    return (
        np.pad(ids[:BEST], space, constant_values=-1).astype(np.int32),
        np.log(np.pad(values[:BEST], space, constant_values=1.0)),
    )


class ServedPair:
    """A pair and its teacher, as a server has them: each context-free row is asked for once."""

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


def _unseen(
    served: ServedPair, student: Vocabulary, text: Text, layout: Layout, rows: TeacherRows
) -> float:
    """Microseconds a token of the held-out text when only other text has been realigned."""
    model, teacher = served.model, served.realigner.tables.teacher
    before = teacher.encoder.encode(text.learnt[:200].encode()).ids.tolist()
    for start in range(0, WARM_UP, 1600):
        piece = text.learnt[start : start + 1600].encode()
        other = served.realigner.lay_out(student.encoder.encode(piece).ids)
        served.realign(other, np.arange(len(other.student_ids)), rows_for(model, before, other))
    positions = np.arange(len(layout.student_ids))
    started = time.perf_counter()
    served.realigner.realign(layout, positions, rows, top_k=TOP_K, context_free=served.context_free)
    return (time.perf_counter() - started) / len(positions) * 1e6


def measure(student: str, teacher: str, text: Text, samples: int) -> Measured:
    tables = pair(student, teacher)
    realigner = Realigner(tables)
    learnt = tables.teacher.encoder.encode(text.learnt.encode()).ids.tolist()
    model = NgramTeacher(learnt, tables.teacher)
    ids = tables.student.encoder.encode(text.held_out.encode()).ids
    layout = realigner.lay_out(ids)
    rows = rows_for(model, learnt[-3:], layout)
    positions = np.arange(len(ids))
    served = ServedPair(realigner, model)
    unseen = _unseen(served, tables.student, text, layout, rows)
    got = served.realign(layout, positions, rows)
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        served.realign(layout, positions, rows)
        seconds.append(time.perf_counter() - started)
    kept = got.position_class != PositionClass.MASKED
    more = rows
    for _ in range(EXTRA):
        paths = unsettled_paths(got.walked, 0.0)
        if not paths:
            break
        more = with_extra_rows(more, paths, *_rows_after(model, learnt[-3:], layout, more, paths))
        got = served.realign(layout, positions, more)
    kept_more = got.position_class != PositionClass.MASKED
    covered_more = float(got.certified.coverage[kept_more].mean())
    got = served.realign(layout, positions, rows)
    found = Measured(
        pair=f"{student} <- {teacher}",
        text=text.name,
        positions=len(ids),
        masked=float(1 - kept.mean()),
        covered=float(got.certified.coverage[kept].mean()),
        covered_of_all=float(np.where(kept, got.certified.coverage, 0.0).mean()),
        covered_with_extra=covered_more,
        masked_with_extra=float(1 - kept_more.mean()),
        microseconds_per_token=sorted(seconds)[2] / len(ids) * 1e6,
        microseconds_per_unseen_token=unseen,
        context_free_rows=int(served.context_free.known.sum()),
    )
    draw = random.Random(3)
    for position in draw.sample(np.flatnonzero(kept).tolist(), min(samples, int(kept.sum()))):
        _against_enumeration(found, model, learnt[-3:], layout, got, position, realigner)
        _causality(found, model, learnt[-3:], ids, position, served, draw)
    return found


def _rows_after(
    model: NgramTeacher,
    before: Sequence[int],
    layout: Layout,
    rows: TeacherRows,
    paths: Sequence[tuple[int, int]],
) -> tuple[Int32, np.ndarray]:
    """[p, BEST] ids and log-probabilities after each path."""
    best = []
    for row, token in paths:
        known, tokens = rows.path(row)
        context = [*before, *layout.teacher_ids[:known].tolist(), *tokens, token]
        best.append(top(model, context))
    ids, values = (np.stack(part) for part in zip(*best, strict=True))
    return ids, values


def _against_enumeration(
    found: Measured,
    model: NgramTeacher,
    before: list[int],
    layout: Layout,
    got: RealignedRows,
    position: int,
    realigner: Realigner,
) -> None:
    student, teacher = realigner.tables.student, realigner.tables.teacher
    sync = int(layout.sync[position])
    offset, here = int(layout.teacher_offsets[sync]), int(layout.student_offsets[position])
    first = int(np.searchsorted(layout.student_offsets, offset))
    truth = enumerate_paths(
        model,
        [*before, *layout.teacher_ids[:sync].tolist()],
        layout.data[offset:here],
        layout.student_ids[first:position].tolist(),
        student,
        teacher,
        open_share=0.0005,
        most=3_000,
        enough=0.02,
    )
    if truth is None:
        found.not_enumerated += 1
        return
    count = int(got.certified.counts[position])
    ids = got.certified.ids[position, :count].tolist()
    values = np.exp(got.certified.log_probs[position, :count].astype(np.float64))
    wanted = np.array([truth.mass.get(token, 0.0) for token in ids])
    found.tv.append(float(np.abs(values - wanted).sum() / 2))
    found.possible.append(sum(sorted(truth.mass.values())[-TOP_K:]))
    own = truth.mass.get(int(layout.student_ids[position]), 0.0)
    sampled = float(got.certified.sampled[position])
    if own > LEAST_SAMPLED and np.isfinite(sampled):
        found.sampled.append(abs(sampled - float(np.log(own))))
    at = int(np.searchsorted(layout.teacher_offsets, here))
    if layout.teacher_offsets[at] == here:
        row = model.support([*before, *layout.teacher_ids[:at].tolist()])
        matched: dict[int, float] = {}
        for token, mass in zip(*(part.tolist() for part in row), strict=True):
            same = _by_bytes(found.pair.split(" ")[0]).get(teacher.token_bytes[token])
            if same is not None and mass > 0:
                matched[same] = matched.get(same, 0.0) + mass
        found.tv_exact_match.append(
            sum(abs(matched.get(t, 0.0) - truth.mass.get(t, 0.0)) for t in matched) / 2
        )


@cache
def _by_bytes(name: str) -> dict[bytes, int]:
    table = vocabulary(name).token_bytes
    return {data: token for token, data in enumerate(table) if data}


def _causality(
    found: Measured,
    model: NgramTeacher,
    before: list[int],
    ids: Int32,
    position: int,
    served: ServedPair,
    draw: random.Random,
) -> None:
    """Total variation between a row and itself before another continuation, where neither
    is masked."""
    start = max(0, position - 40)
    tail = served.realigner.tables.student.encoder.encode(
        draw.choice(["able to", "'s", " x", "\n\n", "7", "de la", "()", "  y"]).encode()
    ).ids
    both = []
    for rollout in (ids[start : position + 4], np.concatenate([ids[start:position], tail])):
        layout = served.realigner.lay_out(rollout)
        rows = rows_for(model, before, layout)
        both.append(served.realign(layout, np.array([position - start]), rows))
    apart = rows_apart(*both)
    if apart is not None:
        found.causality.append(apart)


def results(measured: Sequence[Measured]) -> dict[str, float]:
    main = [m for m in measured if set(m.pair.split(" <- ")) <= MAIN]
    both = [m for m in main if set(m.pair.split(" <- ")) == {"llama3", "qwen3"}]
    digits = [m for m in main if m.text == "digits"]
    spaces = [m for m in measured if m.text in SPACES]

    def worst(values: Sequence[Sequence[float]]) -> float:
        return max((float(np.mean(v)) for v in values if v), default=float("nan"))

    return {
        "tv_certified_worst": worst([m.tv for m in main]),
        "sampled_dlogp_worst": worst([m.sampled for m in main]),
        "causality_tv_unmasked": worst([m.causality for m in main]),
        "tv_certified_spaces_worst": worst([m.tv for m in spaces]),
        "causality_tv_spaces_worst": worst([m.causality for m in spaces]),
        "rows_off_by_001_spaces_worst": worst([[tv > OFF for tv in m.tv] for m in spaces]),
        "masked_share_spaces": max(m.masked for m in spaces if m in main),
        "masked_share_english": max(m.masked for m in both if m.text in ("prose", "code")),
        "masked_share_chinese": max(m.masked for m in both if m.text == "chinese"),
        "covered_0_prose": min(m.covered for m in main if m.text == "prose"),
        "covered_4_prose": min(m.covered_with_extra for m in main if m.text == "prose"),
        # The mass of the K most likely ids: no row can cover more.
        "covered_possible_prose": min(
            float(np.mean(m.possible)) for m in main if m.text == "prose" and m.possible
        ),
        "covered_4_digits": min(m.covered_with_extra for m in digits),
        "masked_4_english": max(m.masked_with_extra for m in both if m.text in ("prose", "code")),
        "masked_4_chinese": max(m.masked_with_extra for m in both if m.text == "chinese"),
        "covered_0_digits": min(m.covered for m in digits),
        "masked_share_digits": max(m.masked for m in digits),
        "tv_exact_match_digits": worst([m.tv_exact_match for m in digits]),
        "realign_us_per_token": max(m.microseconds_per_token for m in main),
        "realign_us_per_unseen_token": max(m.microseconds_per_unseen_token for m in main),
        "tv_certified_tekken_gemma": worst([m.tv for m in measured if m not in main]),
        "covered_of_all_0_prose": min(m.covered_of_all for m in main if m.text == "prose"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=48, help="positions enumerated per text")
    parser.add_argument("--characters", type=int, default=1600, help="held-out text per kind")
    parser.add_argument("--tuning", action="store_true", help="the other set of texts")
    arguments = parser.parse_args()
    measured = []
    for student, teacher in PAIRS:
        for text in texts(arguments.characters, tuning=arguments.tuning):
            cell = measure(student, teacher, text, arguments.samples)
            measured.append(cell)
            print(
                f"{cell.pair:24} {text.name:8} masked {cell.masked:.3f} covered "
                f"{cell.covered:.3f} (4: {cell.masked_with_extra:.3f} "
                f"{cell.covered_with_extra:.3f}) tv {_mean(cell.tv):.4f} exact match "
                f"{_mean(cell.tv_exact_match):.4f} dlogp {_mean(cell.sampled):.4f} causality "
                f"{_mean(cell.causality):.4f} {cell.microseconds_per_token:.0f} us "
                f"(unseen {cell.microseconds_per_unseen_token:.0f}, "
                f"context-free {cell.context_free_rows}) "
                f"({len(cell.tv)} enumerated, {cell.not_enumerated} not)",
                flush=True,
            )
    details = [
        asdict(m)
        | {
            name: _mean(values) if (values := getattr(m, name)) else None
            for name in ("tv", "tv_exact_match", "sampled", "causality", "possible")
        }
        | {"enumerated": len(m.tv)}
        for m in measured
    ]
    real = measure_real_model(vocabulary("qwen3"))
    print(real, flush=True)
    found = results(measured) | {"overhead": real.overhead}
    if arguments.tuning:
        print(found)
        return
    write_result("realign", found, {"per_pair": details, "smollm2": asdict(real)})


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else float("nan")


if __name__ == "__main__":
    main()
