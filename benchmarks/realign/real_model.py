"""Realignment with the rows of SmolLM2-135M, on a rollout that it wrote.

The student has another tokenizer. Some of its tokens are split in two, as may happen when a
student samples and as its tokenizer itself would not do.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from teacher_proto.types import Int32, PositionClass
from transformers import AutoModelForCausalLM

from benchmarks.realign.compared import rows_apart
from student_trainer.quickstart.prepare import smollm2_dir
from teacher_server.realign.pair.layout import Layout
from teacher_server.realign.pair.static_tables import build_static
from teacher_server.realign.pair.tables import PairTables
from teacher_server.realign.pair.vocabulary import Vocabulary, read_vocabulary
from teacher_server.realign.realigner import RealignedRows, Realigner
from teacher_server.realign.walk.context_free import ContextFreeRows
from teacher_server.realign.walk.rows import TeacherRows, teacher_rows

Int64 = NDArray[np.int64]
BEST = 128
TOP_K = 64
# Tokens that SmolLM2 writes; every SPLIT-th token of the student is split where possible.
WRITTEN = 384
SPLIT = 30
BEGIN = 1
PROMPT = b"The history of the city begins"
TAILS = [b"able to", b"'s", b" x", b"\n\n", b"7", b"()", b"  y", b"ing"]


@dataclass(frozen=True)
class RealModel:
    """What the rollout gave; shares and masses are means over its rows.

    Attributes:
        overhead: time of realignment over that of the same-tokenizer path (forward, rows,
            best K).
        never_written: mass of the rows on tokens that the tokenizer never writes there.
    """

    overhead: float
    realign_us_per_token: float
    same_us_per_token: float
    masked: float
    not_the_tokenizers: float
    covered: float
    context_free_rows: int
    causality_tv: float
    causality_rows: int
    never_written: float


class SmolLM2:
    def __init__(self) -> None:
        folder = smollm2_dir()
        self.vocabulary = read_vocabulary((folder / "tokenizer.json").read_bytes())
        self._model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    @torch.inference_mode()
    def write(self, prompt: Int32, count: int) -> list[int]:
        torch.manual_seed(0)
        ids = torch.tensor([[BEGIN, *prompt.tolist()]])
        banned = [list(self.vocabulary.specials)]
        made = self._model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=True,
            top_k=0,
            temperature=1.0,
            min_new_tokens=count,
            max_new_tokens=count,
            suppress_tokens=banned[0],
        )
        tokens: list[int] = made[0, 1:].tolist()
        return tokens

    @torch.inference_mode()
    def best(self, ids: Int32, size: int) -> tuple[Int32, np.ndarray, np.ndarray]:
        """[m, size] ids and log-probabilities, and [m] those of the tokens themselves."""
        tokens = torch.tensor(ids.astype(np.int64))
        inputs = torch.cat([torch.tensor([BEGIN]), tokens[:-1]])[None]
        rows = torch.log_softmax(self._model(inputs).logits[0].float(), -1)
        values, top = rows.topk(size)
        own = rows.gather(1, tokens[:, None])[:, 0]
        return top.numpy().astype(np.int32), values.numpy(), own.numpy()

    def context_free(self, tokens: Int64) -> tuple[Int32, np.ndarray]:
        """[n, BEST] ids and log-probabilities after a beginning of text and each token."""
        inputs = torch.tensor(tokens)[:, None]
        inputs = torch.cat([torch.full_like(inputs, BEGIN), inputs], 1)
        found = []
        with torch.inference_mode():
            for some in inputs.split(64):
                logits = self._model(some).logits[:, -1]
                found.append(torch.log_softmax(logits.float(), -1).topk(BEST))
        ids = np.concatenate([best.indices.numpy() for best in found]).astype(np.int32)
        return ids, np.concatenate([best.values.double().numpy() for best in found])

    def rows(self, ids: Int32) -> TeacherRows:
        return teacher_rows(ids, *self.best(ids, BEST))


def split_some(ids: Int32, vocabulary: Vocabulary, every: int = SPLIT) -> Int32:
    """The same ids with some tokens written as two others of the same bytes."""
    known = {data: token for token, data in enumerate(vocabulary.token_bytes) if data}
    out: list[int] = []
    for place, token in enumerate(ids.tolist()):
        data = vocabulary.token_bytes[token]
        cuts = [at for at in range(2, len(data) - 1) if {data[:at], data[at:]} <= known.keys()]
        if place % every == every - 1 and cuts:
            out += [known[data[: cuts[0]]], known[data[cuts[0] :]]]
        else:
            out.append(token)
    return np.array(out, np.int32)


def measure_real_model(student: Vocabulary) -> RealModel:
    model = SmolLM2()
    teacher = model.vocabulary
    realigner = Realigner(PairTables(student, teacher, build_static(student, teacher)))
    written = model.write(teacher.encoder.encode(PROMPT).ids, WRITTEN)
    ids = split_some(student.encoder.encode(teacher.encoder.decode(written)).ids, student)
    positions = np.arange(len(ids))
    layout = realigner.lay_out(ids)
    rows = model.rows(layout.teacher_ids)
    context_free = ContextFreeRows(realigner.tables)
    got = _realign(model, realigner, layout, positions, rows, context_free)
    same: list[float] = []
    cross: list[float] = []
    for _ in range(5):
        started = time.perf_counter()
        model.best(layout.teacher_ids, TOP_K)
        middle = time.perf_counter()
        realigner.realign(
            realigner.lay_out(ids), positions, rows, top_k=TOP_K, context_free=context_free
        )
        same.append(middle - started)
        cross.append(time.perf_counter() - middle)
    kept = got.position_class != PositionClass.MASKED
    apart = _causality(model, realigner, ids, context_free)
    return RealModel(
        overhead=sorted(cross)[2] / sorted(same)[2],
        realign_us_per_token=sorted(cross)[2] / len(ids) * 1e6,
        same_us_per_token=sorted(same)[2] / len(layout.teacher_ids) * 1e6,
        masked=float(1 - kept.mean()),
        not_the_tokenizers=float((~layout.canonical).mean()),
        context_free_rows=int(context_free.known.sum()),
        covered=float(got.certified.coverage[kept].mean()),
        causality_tv=float(np.mean(apart)) if apart else float("nan"),
        causality_rows=len(apart),
        never_written=_never_written(layout.teacher_ids, rows, teacher),
    )


def _realign(
    model: SmolLM2,
    realigner: Realigner,
    layout: Layout,
    positions: Int64,
    rows: TeacherRows,
    context_free: ContextFreeRows,
) -> RealignedRows:
    while True:
        got = realigner.realign(layout, positions, rows, top_k=TOP_K, context_free=context_free)
        if not len(got.walked.wanted):
            return got
        realigner.learn(context_free, got.walked.wanted, *model.context_free(got.walked.wanted))


def _causality(
    model: SmolLM2, realigner: Realigner, ids: Int32, context_free: ContextFreeRows
) -> list[float]:
    draw = random.Random(3)
    apart = []
    for _ in range(24):
        at = draw.randrange(8, min(96, len(ids) - 6))
        tail = realigner.tables.student.encoder.encode(draw.choice(TAILS)).ids
        both = []
        for rollout in (ids[: at + 5], np.concatenate([ids[:at], tail])):
            layout = realigner.lay_out(rollout)
            rows = model.rows(layout.teacher_ids)
            both.append(_realign(model, realigner, layout, np.array([at]), rows, context_free))
        found = rows_apart(*both)
        if found is not None:
            apart.append(found)
    return apart


def _never_written(ids: Int32, rows: TeacherRows, vocabulary: Vocabulary) -> float:
    """Mean mass of listed tokens that, after the token before, would be encoded in another
    way."""
    total = 0.0
    places = range(1, min(len(ids), 200))
    table = vocabulary.token_bytes
    for place in places:
        before = int(ids[place - 1])
        listed = [t for t in rows.ids[place, :BEST].tolist() if table[t]]
        encoded = vocabulary.encoder.encode_each([table[before] + table[t] for t in listed])
        refused = {t for t, path in zip(listed, encoded, strict=True) if path != [before, t]}
        chosen = np.isin(rows.ids[place, :BEST], list(refused))
        total += float(np.exp(rows.log_probs[place, :BEST][chosen]).sum())
    return total / len(places)
