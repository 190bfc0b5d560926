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
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from teacher_proto.rows import Rows, required
from teacher_proto.types import Int32

from benchmarks.realign.ngram import NgramTeacher
from benchmarks.realign.real_model import BEGIN, PROMPT, WRITTEN, SmolLM2
from benchmarks.realign.served import ServedPair
from benchmarks.realign.texts import texts
from teacher_server.realign.pair.static_tables import build_static
from teacher_server.realign.pair.tables import PairTables
from teacher_server.realign.paired import Pair
from teacher_server.scoring.realigned_path import EXTRA_ROUNDS
from teacher_server.settings.tokenizers import TokenizerSettings
from tests.realign.real_tokenizers import pair, raw_tokenizer, vocabulary

# Of the table in docs/realignment.md; any others can be asked for.
PAIRS = ("llama3<qwen3", "qwen3<llama3")
TEXTS = ("prose", "digits", "json")
REAL = "smollm2"


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

    def scored(
        self, before: Sequence[int], own: int, best: int
    ) -> tuple[Int32, NDArray[np.float64], float]:
        """As ``served.Teacher`` has it."""
        values = self._values(before)
        found = values.topk(best)
        return (
            found.indices.numpy().astype(np.int32),
            found.values.double().numpy(),
            float(values[own]),
        )

    def probability(self, before: Sequence[int], token: int) -> float:
        """As ``served.Teacher`` has it."""
        return float(self._values(before)[token].exp())

    def _values(self, before: Sequence[int]) -> torch.Tensor:
        """float32 [V]: the log-probabilities after ``before``."""
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
        return torch.log_softmax(logits.float(), -1)


@dataclass(frozen=True)
class Measured:
    """See this module's text; ``rounds`` that asked for rows."""

    rows: float
    rounds: int
    masked: float
    coarse: float
    nats: float


def measure(
    work: Pair, teacher: Model | NgramTeacher, ids: Int32, begun: Sequence[int], **settings: float
) -> Measured:
    """One request for all rows of ``ids``, which follow the teacher's tokens ``begun``.

    Args:
        settings: as in ``TokenizerSettings``, where they are not the default.
    """
    read = work.realigner.lay_out(ids).teacher_ids.tolist()
    if isinstance(teacher, Model):
        teacher.read(read)
    served = ServedPair(work, teacher, **settings)
    got = served.score(ids, np.arange(len(ids), dtype=np.int32), begun)
    return Measured(
        rows=got.extra_rows / len(read),
        rounds=got.rounds,
        masked=float(got.masked.mean()),
        coarse=float(got.coarse.mean()),
        nats=nats(got.told) / nats(got.own),
    )


def nats(rows: Rows) -> float:
    """What rows tell: the entropy of their ids and one event for the rest."""
    support = required(rows.support, "support")
    values = support.log_probs.astype(np.float64)
    mass = np.where(support.valid, np.exp(values), 0.0)
    rest = np.clip(1 - mass.sum(1), 1e-300, 1.0)
    told = -(mass * values).sum(1) - rest * np.log(rest)
    return float(told[support.counts > 0].sum())


def cells(pairs: Sequence[str], names: Sequence[str], size: int, tuning: bool) -> Iterable[Any]:
    """(name, pair's tables, teacher, what it has read before, the rollout's student ids)."""
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
                yield f"{name} {kind}", tables, Model(model), (), own.encoder.encode(data).ids
            continue
        tables = pair(student, teacher)
        for text in made:
            learnt = tables.teacher.encoder.encode(text.learnt.encode()).ids.tolist()
            ngrams = NgramTeacher(learnt, raw_tokenizer(teacher))
            ids = tables.student.encoder.encode(text.held_out.encode()).ids
            yield f"{name} {text.name}", tables, ngrams, learnt[-3:], ids


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
    for name, tables, teacher, begun, ids in made:
        work = Pair(tables)
        for budget in arguments.budgets:
            rounds = {"extra_rounds": arguments.rounds, "extra_rows_per_token": budget}
            found = measure(work, teacher, ids, begun, **rounds)
            print(
                f"{name:24} budget {budget:.2f}: rows a token {found.rows:.3f} in "
                f"{found.rounds} rounds, masked {found.masked:.3f}, coarse {found.coarse:.3f}, "
                f"nats {found.nats:.3f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
