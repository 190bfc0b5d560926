"""What extra rows give, by pair and text: `python -m benchmarks.bench_extra_rows`.

Each text is one request, realigned as the service realigns it, once without extra rows and once
with each budget. A line has the rows that were asked for beyond the rollout's, for each of the
teacher's tokens; the parts of the student's rows that are masked and coarse; and the ratio of
nats: those that all rows of the student tell (of each row its ids and one event for the rest) to
those of the teacher's own rows along the rollout. It is no share, and may exceed 1: where the
student's tokens are longer its right rows differ from the teacher's. See ``bench_realign`` for
what is told of the right rows.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from teacher_proto.rows import Rows, Support, Values, required
from teacher_proto.types import Int32, PositionClass

from benchmarks.realign.ngram import NgramTeacher
from benchmarks.realign.real_model import BEGIN, PROMPT, WRITTEN, SmolLM2
from benchmarks.realign.reference.pasts import LEAST
from benchmarks.realign.served import top
from benchmarks.realign.texts import texts
from teacher_server.config import TokenizerSettings
from teacher_server.realign.pair.static_tables import build_static
from teacher_server.realign.pair.tables import PairTables
from teacher_server.realign.paired import Pair
from teacher_server.realign.requests.messages import (
    Answer,
    Asked,
    AskedContextFree,
    AskedContinuation,
    AskedPaths,
    AskedRollouts,
    Realigned,
    RealignRequest,
)
from teacher_server.realign.requests.request import best_of, realigned
from teacher_server.refusals.sizes import session_memory
from teacher_server.scoring.realigned_path import EXTRA_ROUNDS
from tests.realign.real_tokenizers import pair, raw_tokenizer, vocabulary

# Of the table in docs/realignment.md; any others can be asked for.
PAIRS = ("llama3<qwen3", "qwen3<llama3")
TEXTS = ("prose", "digits", "json")
REAL = "smollm2"
TOP_K = 64
Found = tuple[Int32, np.ndarray[Any, Any], float]


class Teacher(Protocol):
    def row(self, before: Sequence[int], own: int, best: int) -> Found:
        """The row after ``before``: the best ids and their log-probabilities [best], and the
        log-probability of ``own``."""
        ...


@dataclass(frozen=True)
class Ngrams:
    """An n-gram model as a teacher, after ``begun``."""

    model: NgramTeacher
    begun: Sequence[int]

    def row(self, before: Sequence[int], own: int, best: int) -> Found:
        context = [*self.begun, *before]
        ids, values = top(self.model, context, best)
        return ids, values, float(np.log(max(self.model.probability(context, own), LEAST)))


class Model:
    """SmolLM2 as a teacher. What it has read of a rollout is read once."""

    def __init__(self, model: SmolLM2) -> None:
        self._model = model._model
        self._read: list[int] = []
        self._cache: Any = None
        self._logits = torch.zeros(0)

    def read(self, ids: Sequence[int]) -> None:
        """Reads a rollout."""
        self._read = [BEGIN, *ids]
        with torch.inference_mode():
            done = self._model(torch.tensor([self._read]), use_cache=True)
        self._cache, self._logits = done.past_key_values, done.logits[0]

    def row(self, before: Sequence[int], own: int, best: int) -> Found:
        tokens = [BEGIN, *before]
        pairs = zip(tokens, self._read, strict=False)
        shared = next((i for i, (a, b) in enumerate(pairs) if a != b), len(tokens))
        logits = self._logits[shared - 1]
        if shared < len(tokens):
            cache = copy.deepcopy(self._cache)
            if shared < len(self._read):
                cache.crop(shared - len(self._read))
            with torch.inference_mode():
                rest = torch.tensor([tokens[shared:]])
                logits = self._model(rest, past_key_values=cache, use_cache=True).logits[0, -1]
        values = torch.log_softmax(logits.float(), -1)
        found = values.topk(best)
        return (
            found.indices.numpy().astype(np.int32),
            found.values.double().numpy(),
            float(values[own]),
        )


@dataclass
class Measured:
    """See this module's text; ``rounds`` that asked for rows."""

    rows: float = 0.0
    rounds: int = 0
    masked: float = 0.0
    coarse: float = 0.0
    nats: float = 0.0


def measure(work: Pair, teacher: Teacher, ids: Int32, *, rounds: int, budget: float) -> Measured:
    """One request for all rows of ``ids`` with at most ``budget`` extra rows a token."""
    settings = TokenizerSettings()
    positions = np.arange(len(ids), dtype=np.int32)
    request = RealignRequest(
        teacher="",
        continuations=(AskedContinuation(ids, positions),),
        top_k=TOP_K,
        temperature=1.0,
        student_vocabulary_size=None,
        sampled=True,
        log_tail=True,
        coarse=True,
        vocabulary_size=work.tables.teacher.size,
        prompt_tokens=1,
        max_length=1 << 20,
        context_free_rows=True,
        extra_rounds=rounds,
        extra_rows_per_token=budget,
        extra_rows=settings.extra_rows,
        extra_least_open=settings.extra_least_open,
        memory_bytes=session_memory(settings.worker_memory_bytes),
    )
    found, asked, own = Measured(), realigned(request, work), 0.0
    answer: Answer | None = None
    tokens = 0
    while True:
        try:
            step = asked.send(answer)
        except StopIteration as end:
            result: Realigned = end.value
            break
        answer = None
        if isinstance(step, AskedRollouts):
            (span,) = step.spans
            tokens = len(span.positions)
            if isinstance(teacher, Model):
                teacher.read(span.token_ids.tolist())
        if isinstance(step, AskedPaths):
            found.rounds += 1
            found.rows += len(step.sequences) / tokens
        if isinstance(step, AskedRollouts | AskedPaths | AskedContextFree):
            answer = answered(step, teacher, best_of(request, request.vocabulary_size))
        if isinstance(step, AskedRollouts):
            own = nats(required(answer, "answer"))
    (scores,) = result.scores
    classes = required(scores.realignment, "realignment").position_class
    found.masked = float((classes == PositionClass.MASKED).mean())
    found.coarse = float((classes == PositionClass.COARSE).mean())
    found.nats = nats([scores.rows]) / own
    return found


def answered(asked: Asked, teacher: Teacher, best: int) -> Answer:
    match asked:
        case AskedRollouts():
            (span,) = asked.spans
            ids = span.token_ids.tolist()
            return (stacked([teacher.row(ids[:at], ids[at], best) for at in span.positions]),)
        case AskedContextFree():
            alone = teacher
            if isinstance(teacher, Ngrams):
                alone = Ngrams(teacher.model, [])
            spans = [[token] for token in asked.tokens.tolist()]
            return tuple(stacked([alone.row(ids, ids[-1], best)]) for ids in spans)
        case AskedPaths():
            spans = [ids.tolist() for ids in asked.sequences]
            return tuple(stacked([teacher.row(ids[:-1], ids[-1], best)]) for ids in spans)


def stacked(found: Sequence[Found]) -> Rows:
    ids, values, own = (np.stack(part) for part in zip(*found, strict=True))
    support = Support(ids, values.astype(np.float32), (ids >= 0).sum(1, dtype=np.int32))
    return Rows(support, sampled=Values(own.astype(np.float32), np.ones(len(own), np.bool_)))


def nats(parts: Iterable[Rows | None]) -> float:
    """What rows tell: the entropy of their ids and one event for the rest."""
    total = 0.0
    for rows in parts:
        support = required(required(rows, "rows").support, "support")
        values = support.log_probs.astype(np.float64)
        mass = np.where(support.valid, np.exp(values), 0.0)
        rest = np.clip(1 - mass.sum(1), 1e-300, 1.0)
        told = -(mass * values).sum(1) - rest * np.log(rest)
        total += float(told[support.counts > 0].sum())
    return total


def cells(pairs: Sequence[str], names: Sequence[str], size: int, tuning: bool) -> Iterable[Any]:
    """(name, pair's tables, teacher, the rollout's student ids)."""
    for name in pairs:
        student, teacher = name.split("<")
        made = [text for text in texts(size, tuning=tuning) if text.name in names]
        if teacher == REAL:
            model = SmolLM2()
            own = vocabulary(student)
            tables = PairTables(own, model.vocabulary, build_static(own, model.vocabulary))
            written = model.write(model.vocabulary.encoder.encode(PROMPT).ids, WRITTEN)
            found = [("its own", model.vocabulary.encoder.decode(written))]
            for kind, data in [*found, *((text.name, text.held_out.encode()) for text in made)]:
                yield f"{name} {kind}", tables, Model(model), own.encoder.encode(data).ids
            continue
        tables = pair(student, teacher)
        for text in made:
            learnt = tables.teacher.encoder.encode(text.learnt.encode()).ids.tolist()
            ngrams = Ngrams(NgramTeacher(learnt, raw_tokenizer(teacher)), learnt[-3:])
            ids = tables.student.encoder.encode(text.held_out.encode()).ids
            yield f"{name} {text.name}", tables, ngrams, ids


def main() -> None:
    settings = TokenizerSettings()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", nargs="+", default=PAIRS, metavar="STUDENT<TEACHER")
    parser.add_argument("--texts", nargs="+", default=TEXTS)
    parser.add_argument("--characters", type=int, default=1600, help="of each text")
    parser.add_argument("--tuning", action="store_true", help="the other set of texts")
    parser.add_argument("--rounds", type=int, default=EXTRA_ROUNDS)
    parser.add_argument(
        "--budgets", nargs="+", type=float, default=[0.0, settings.extra_rows_per_token]
    )
    arguments = parser.parse_args()
    made = cells(arguments.pairs, arguments.texts, arguments.characters, arguments.tuning)
    for name, tables, teacher, ids in made:
        work = Pair(tables)
        for budget in arguments.budgets:
            found = measure(work, teacher, ids, rounds=arguments.rounds, budget=budget)
            print(
                f"{name:24} budget {budget:.2f}: rows a token {found.rows:.3f} in "
                f"{found.rounds} rounds, masked {found.masked:.3f}, coarse {found.coarse:.3f}, "
                f"nats {found.nats:.3f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
