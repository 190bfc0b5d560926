"""The study of cells: its masses against enumeration, and its losses in float64."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.cells.cells import REST, Cells, cells_of, groups_by_level, label_of, merged
from benchmarks.cells.distil import Outcome
from benchmarks.cells.gate import wins
from benchmarks.cells.losses import coarse_kl, log_mass_ratio_of_sampled, path_kl
from benchmarks.cells.pair import pair, side
from student_trainer.losses import Head, LossBatch, LossSettings, chunk_policy, lsm
from teacher_server.realign.certify import certify
from teacher_server.realign.realigner import Realigner
from teacher_server.realign.walk.context_free import ContextFreeRows
from teacher_server.realign.walk.rows import teacher_rows

Float64 = NDArray[np.float64]
# What the toy teacher writes, and a reply of the student.
ALPHABET = "123+="
REPLY = "12+321=2+3333="
# Tokens of a toy student, whose numbers have up to three digits of two kinds.
TOKENS = ["+", *("".join(p) for n in (1, 2, 3) for p in itertools.product("12", repeat=n))]


def toy_rows() -> dict[str, Float64]:
    """After each character, and after nothing: probabilities of ALPHABET."""
    rng = np.random.default_rng(5)
    return {before: rng.dirichlet(np.full(len(ALPHABET), 0.7)) for before in ["", *ALPHABET]}


def enumerated(rows: dict[str, Float64], ids: list[int], index: int) -> Float64:
    """[V_S]: the student's token at ``index``, over everything the teacher may write there."""
    student = side(3)
    said = "".join(student.vocabulary.token_bytes[one].decode() for one in ids[:index])
    result = np.zeros(student.vocabulary.size)
    # Four characters decide the token: a number has three, and the one after them ends it.
    for more in itertools.product(ALPHABET, repeat=4):
        mass, before = 1.0, said[-1:]
        for one in more:
            mass *= rows[before][ALPHABET.index(one)]
            before = one
        written = student.encode(said + "".join(more))
        if written[:index] == ids[:index]:
            result[written[index]] += mass
    return result / result.sum()


def test_masses_of_cells_are_those_of_an_enumeration() -> None:
    rows, tables = toy_rows(), pair()
    teacher, student = tables.teacher, tables.student
    own = [teacher.by_bytes[one.encode()] for one in ALPHABET]
    ids = side(3).encode(REPLY)
    realigner, context_free = Realigner(tables), ContextFreeRows(tables)
    layout = realigner.lay_out(np.array(ids, np.int32))
    ranked = {before: np.argsort(-row) for before, row in rows.items()}
    top = {before: [own[one] for one in order] for before, order in ranked.items()}
    values = {before: np.log(rows[before][order]) for before, order in ranked.items()}
    realigner.learn(
        context_free,
        np.array(own),
        np.array([top[one] for one in ALPHABET], np.int32),
        np.array([values[one] for one in ALPHABET]),
    )
    befores = ["", *REPLY[:-1]]
    found = teacher_rows(
        layout.teacher_ids,
        np.array([top[one] for one in befores], np.int32),
        np.array([values[one] for one in befores]),
        np.array([np.log(rows[b][ALPHABET.index(c)]) for b, c in zip(befores, REPLY, strict=True)]),
    )
    positions = np.arange(len(ids))
    realigned = realigner.realign(layout, positions, found, top_k=32, context_free=context_free)
    certified = certify(realigned.walked, np.array(ids), 32, student.size, tables)
    several = 0
    for index in positions.tolist():
        cells = cells_of(realigned.walked, certified, index, student)
        truth = enumerated(rows, ids, index)
        by_cell = np.bincount(cells.cell_of, truth, len(cells.mass))
        # Log-probabilities of certified tokens are float32.
        np.testing.assert_allclose(cells.mass, by_cell, rtol=1e-6, atol=1e-9)
        several += int((np.bincount(cells.cell_of)[1:] > 1).sum())
    assert several > 5, "no cell has several tokens: nothing was tested"


def finest(drawn: str, q: Float64) -> Cells:
    """What rows along the drawn token tell of TOKENS: whatever shares a prefix with it, and
    groups of the rest."""
    names: list[str] = []
    for token in TOKENS:
        length = next(
            (n for n in range(1, len(token)) if not drawn.startswith(token[:n])), len(token)
        )
        # A path that leaves the drawn token, or ends where it goes on.
        names.append(token[:length])
    labels = [b"", *dict.fromkeys(name.encode() for name in names)]
    cell_of = np.array([labels.index(name.encode()) for name in names])
    return Cells(cell_of, np.bincount(cell_of, q, len(labels)), tuple(labels))


def sides(seed: int) -> tuple[torch.Tensor, Float64]:
    """The student's logits [V] and the teacher's probabilities [V] of TOKENS."""
    rng = np.random.default_rng(seed)
    logits = torch.tensor(rng.normal(0, 1.5, len(TOKENS)), dtype=torch.float64)
    return logits, rng.dirichlet(np.ones(len(TOKENS)))


def full_kl(logits: torch.Tensor, q: Float64) -> torch.Tensor:
    log_p = torch.log_softmax(logits, -1)
    return (log_p.exp() * (log_p - torch.from_numpy(q).log())).sum()


def gradient(loss: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    return torch.autograd.grad(loss, logits)[0]


def residual_loss(logits: torch.Tensor, cells: Cells, drawn: int, q: Float64) -> torch.Tensor:
    """Coarse KL over first characters, and the rest of the drawn token's advantage."""
    log_p = torch.log_softmax(logits, -1)
    groups = groups_by_level(cells, TOKENS[drawn].encode())
    first = merged(cells, groups[0])
    sampled = torch.tensor([drawn])
    own = log_p.detach()[drawn]
    advantage = float(np.log(q[drawn])) - own
    advantage = advantage - log_mass_ratio_of_sampled(log_p.detach()[None], [first], sampled)[0]
    batch = LossBatch(logits[None], sampled, torch.ones(1), old_log_probs=own[None])
    head = Head(torch.eye(len(TOKENS), dtype=torch.float64))
    policy = chunk_policy(batch, advantage[None], head, LossSettings())
    return coarse_kl(log_p[None], [first])[0] + policy.total


def path_loss(logits: torch.Tensor, cells: Cells, drawn: int) -> torch.Tensor:
    levels = groups_by_level(cells, TOKENS[drawn].encode())
    return path_kl(torch.log_softmax(logits, -1)[None], [cells], [levels])[0]


def test_the_coarse_kl_is_a_lower_bound() -> None:
    for seed in range(20):
        logits, q = sides(seed)
        log_p = torch.log_softmax(logits, -1)[None]
        whole = float(full_kl(logits, q))
        for drawn in TOKENS:
            assert float(coarse_kl(log_p, [finest(drawn, q)])[0]) < whole
        alone = Cells(
            np.arange(1, len(TOKENS) + 1),
            np.concatenate([[0.0], q]),
            (b"", *(one.encode() for one in TOKENS)),
        )
        np.testing.assert_allclose(float(coarse_kl(log_p, [alone])[0]), whole, rtol=1e-12)


def test_mean_gradients_over_drawn_tokens() -> None:
    """Of the residual and of the path form they are the gradient of the KL over tokens; of the
    coarse KL alone they are not."""
    logits, q = sides(3)
    logits.requires_grad_()
    p = torch.softmax(logits.detach(), -1)
    truth = gradient(full_kl(logits, q), logits)
    means = dict.fromkeys(("residual", "path", "alone"), torch.zeros_like(truth))
    for drawn, token in enumerate(TOKENS):
        cells = finest(token, q)
        log_p = torch.log_softmax(logits, -1)[None]
        for name, loss in (
            ("residual", residual_loss(logits, cells, drawn, q)),
            ("path", path_loss(logits, cells, drawn)),
            ("alone", coarse_kl(log_p, [cells])[0]),
        ):
            means[name] = means[name] + p[drawn] * gradient(loss, logits)
    torch.testing.assert_close(means["residual"], truth, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(means["path"], truth, rtol=1e-9, atol=1e-12)
    assert (means["alone"] - truth).abs().max() > 0.01


def test_gradients_vanish_where_student_and_teacher_are_equal() -> None:
    logits, _ = sides(4)
    logits.requires_grad_()
    q = torch.softmax(logits.detach(), -1).numpy()
    for drawn, token in enumerate(TOKENS):
        cells = finest(token, q)
        log_p = torch.log_softmax(logits, -1)[None]
        for loss in (
            residual_loss(logits, cells, drawn, q),
            path_loss(logits, cells, drawn),
            coarse_kl(log_p, [cells])[0],
        ):
            assert gradient(loss, logits).abs().max() < 1e-6


def test_where_only_cells_match_the_coarse_kl_has_no_gradient() -> None:
    logits, q = sides(6)
    cells = finest("+", q)
    p = torch.softmax(logits, -1).numpy()
    of_cells = np.bincount(cells.cell_of, p, len(cells.mass))
    scaled = p * (cells.mass / np.maximum(of_cells, 1e-300))[cells.cell_of]
    matched = torch.from_numpy(np.log(scaled)).requires_grad_()
    loss = coarse_kl(torch.log_softmax(matched, -1)[None], [cells])[0]
    assert gradient(loss, matched).abs().max() < 1e-12
    assert gradient(full_kl(matched, q), matched).abs().max() > 0.01


def test_singles_and_a_rest_are_the_products_bucket() -> None:
    logits, q = sides(7)
    logits.requires_grad_()
    ids = torch.tensor([[3, 5, 1]])
    cell_of = np.full(len(TOKENS), REST)
    cell_of[ids[0].numpy()] = [1, 2, 3]
    mass = np.bincount(cell_of, q)
    cells = Cells(cell_of, mass, (b"",) * 4)
    batch = LossBatch(
        hidden=logits[None],
        sampled_ids=torch.tensor([0]),
        weights=torch.ones(1),
        support_ids=ids,
        support_log_probs=torch.from_numpy(np.log(mass[1:]))[None],
        support_valid=torch.ones_like(ids, dtype=torch.bool),
        teacher_log_tail=torch.from_numpy(np.log(mass[:1])),
        teacher_tail_valid=torch.tensor([True]),
    )
    head = Head(torch.eye(len(TOKENS), dtype=torch.float64))
    product = lsm(batch, head, LossSettings(tail="bucket")).total
    own = coarse_kl(torch.log_softmax(logits, -1)[None], [cells])[0]
    torch.testing.assert_close(own, product.double(), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(
        gradient(own, logits), gradient(product, logits).double(), rtol=1e-5, atol=1e-6
    )


def test_the_label_of_a_special_token_is_no_text() -> None:
    student = side(3).vocabulary
    assert label_of(side(3).end, student).startswith(b"\xff")
    assert label_of(side(3).encode("12")[0], student) == b"12"


def outcomes(accuracies: list[float], bits: list[float]) -> list[Outcome]:
    pairs = zip(accuracies, bits, strict=True)
    return [Outcome("", seed, accuracy=a, bits_per_byte=b) for seed, (a, b) in enumerate(pairs)]


def test_the_gate_opens_for_what_is_better_beyond_the_spread_alone() -> None:
    rival = outcomes([0.30, 0.50, 0.20], [0.5, 0.4, 0.6])
    better = [0.41, 0.62, 0.30]
    assert wins(outcomes(better, [0.5, 0.41, 0.6]), rival)
    # Better on average, and not by more than the seeds differ in it.
    assert not wins(outcomes([0.31, 0.50, 0.50], [0.5, 0.4, 0.6]), rival)
    # Bought with bits.
    assert not wins(outcomes(better, [0.55, 0.46, 0.65]), rival)
    assert not wins(rival, outcomes(better, [0.5, 0.4, 0.6]))
