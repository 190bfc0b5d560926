"""What each loss's gradient is an unbiased estimate of, by enumeration.

A student and a teacher over five ids write responses of two tokens, in float64. The mean
gradient of a loss is the sum over all responses of the probability that the sampler writes
them (temperature, top-p), computed here token by token. The objectives are written out
below and differentiated by autograd.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from student_trainer.losses import (
    Head,
    LossBatch,
    LossSettings,
    choose_support,
    chunk_policy,
)
from tests.support.loss_reference import FUNCTIONS

V = 5
# The first token's state, and one after each first token.
STATES = 1 + V
HIDDEN = torch.eye(STATES, dtype=torch.float64)
TOP = 3  # size of the support


def table(seed: int) -> Tensor:
    """Logits of each state, [STATES, V]."""
    generator = torch.Generator().manual_seed(seed)
    return 1.6 * torch.randn(STATES, V, generator=generator, dtype=torch.float64)


STUDENT, TEACHER = table(3), table(4)


def log_student(logits: Tensor, temperature: float = 1.0) -> Tensor:
    return (logits / temperature).log_softmax(-1)


def log_teacher(temperature: float = 1.0) -> Tensor:
    return (TEACHER / temperature).log_softmax(-1)


@dataclass(frozen=True)
class Sampler:
    """Draws from the student at this temperature, out of the smallest set that reaches top_p."""

    temperature: float = 1.0
    top_p: float = 1.0

    def inside(self) -> Tensor:
        """bool [STATES, V]: the nucleus of each state."""
        found = torch.zeros(STATES, V, dtype=torch.bool)
        for state, row in enumerate(log_student(STUDENT, self.temperature).exp().tolist()):
            mass = 0.0
            for token in sorted(range(V), key=lambda v: -row[v]):
                if mass < self.top_p:
                    found[state, token] = True
                    mass += row[token]
        return found

    def masses(self) -> Tensor:
        """float64 [STATES]: the student's probability of each nucleus."""
        return (log_student(STUDENT, self.temperature).exp() * self.inside()).sum(-1)

    def drawn(self) -> Tensor:
        """float64 [STATES, V]: the probability of each draw."""
        kept = log_student(STUDENT, self.temperature).exp() * self.inside()
        return kept / kept.sum(-1, keepdim=True)

    def visits(self) -> Tensor:
        """float64 [STATES]: how often each state is visited."""
        return torch.cat([torch.ones(1, dtype=torch.float64), self.drawn()[0]])


RESPONSES = torch.tensor(list(itertools.product(range(V), repeat=2)))


@dataclass(frozen=True)
class Written:
    """Every response that a sampler can write, row after row.

    Attributes:
        states, tokens: int64 [T], where each row is, and what is drawn there.
        share: float64 [T], how often the row's response is written.
        response: int64 [T], which response a row belongs to.
    """

    states: Tensor
    tokens: Tensor
    share: Tensor
    response: Tensor

    @classmethod
    def by(cls, sampler: Sampler) -> Written:
        first = RESPONSES[:, 0]
        states = torch.stack([torch.zeros_like(first), 1 + first], -1)
        share = sampler.drawn()[states, RESPONSES].prod(-1)
        found = share > 0
        return cls(
            states[found].flatten(),
            RESPONSES[found].flatten(),
            share[found].repeat_interleave(2),
            torch.arange(int(found.sum())).repeat_interleave(2),
        )

    def batch(self, temperature: float, weights: Tensor | float = 1.0) -> LossBatch:
        """The rows with everything that a loss may need, each weighed by its response's share
        and by ``weights``."""
        at, log_q = self.states, log_teacher(temperature)
        best = log_q[at].topk(TOP, -1)
        return LossBatch(
            hidden=HIDDEN[at],
            sampled_ids=self.tokens,
            weights=self.share * weights,
            support_ids=best.indices,
            support_log_probs=best.values,
            support_valid=torch.ones(len(at), TOP, dtype=torch.bool),
            teacher_log_tail=(1 - best.values.exp().sum(-1)).log(),
            teacher_tail_valid=torch.ones(len(at), dtype=torch.bool),
            teacher_sampled=log_q[at, self.tokens],
            old_log_probs=log_student(STUDENT, temperature)[at, self.tokens],
            responses=self.response,
            steps=torch.arange(len(at)) % 2,
            teacher_logits=TEACHER[at],
        )


def mean_gradient(total: Callable[[Head], Tensor], logits: Tensor = STUDENT) -> Tensor:
    """[STATES, V]: the gradient at the student's logits."""
    weight = logits.T.clone().requires_grad_()
    total(Head(weight)).backward()
    assert weight.grad is not None
    return weight.grad.T


def gradient(objective: Callable[[Tensor], Tensor], at: Tensor = STUDENT) -> Tensor:
    """[STATES, V]: of a function of the student's logits."""
    logits = at.clone().requires_grad_()
    (found,) = torch.autograd.grad(objective(logits), logits)
    return found


def same(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one, other, rtol=1e-9, atol=1e-12)


# The objectives: rows weighed by how often the sampler visits them, as constants.


def reverse_kl(logits: Tensor, temperature: float) -> Tensor:
    """[STATES]."""
    log_p = log_student(logits, temperature)
    return (log_p.exp() * (log_p - log_teacher(temperature))).sum(-1)


def mean_divergence(logits: Tensor, temperature: float) -> Tensor:
    """[STATES]: Jensen-Shannon."""
    p, q = log_student(logits, temperature).exp(), log_teacher(temperature).exp()
    half = 0.5 * (p + q)
    return 0.5 * (p * (p / half).log() + q * (q / half).log()).sum(-1)


def on_the_nucleus(logits: Tensor, sampler: Sampler) -> Tensor:
    """[STATES]: sum over the nucleus of p log (p / q) - p + q."""
    log_p, log_q = log_student(logits, sampler.temperature), log_teacher(sampler.temperature)
    terms = log_p.exp() * (log_p - log_q) - log_p.exp() + log_q.exp()
    return (terms * sampler.inside()).sum(-1)


def on_the_support(logits: Tensor, name: str, tail: str, temperature: float) -> Tensor:
    """[STATES]: the divergence on the teacher's most likely ids."""
    q = log_teacher(temperature).exp()
    rows = []
    for state in range(STATES):
        chosen = sorted(range(V), key=lambda v: -float(q[state, v]))[:TOP]
        p = log_student(logits, temperature)[state].exp()
        ps, qs = p[chosen], q[state, chosen]
        if tail == "bucket":
            ps = torch.cat([ps, 1 - ps.sum(0, keepdim=True)])
            qs = torch.cat([qs, 1 - qs.sum(0, keepdim=True)])
        else:
            ps, qs = ps / ps.sum(), qs / qs.sum()
        half = 0.5 * (ps + qs)
        rows.append(
            {
                "lsm": (ps * (ps / qs).log()).sum(),
                "topk_forward_kl": (qs * (qs / ps).log()).sum(),
                "topk_jsd": 0.5 * (ps * (ps / half).log()).sum()
                + 0.5 * (qs * (qs / half).log()).sum(),
            }[name]
        )
    return torch.stack(rows)


SAMPLERS = [Sampler(), Sampler(top_p=0.8), Sampler(0.7), Sampler(1.3, 0.7)]


@pytest.mark.parametrize("sampler", SAMPLERS, ids=str)
@pytest.mark.parametrize("tail", ["none", "bucket"])
@pytest.mark.parametrize("name", ["lsm", "topk_forward_kl", "topk_jsd"])
def test_losses_on_a_support_are_exact_whatever_the_sampler(
    name: str, tail: str, sampler: Sampler
) -> None:
    settings = LossSettings(temperature=sampler.temperature, tail=tail)
    rows, visits = Written.by(sampler).batch(sampler.temperature), sampler.visits()
    found = mean_gradient(lambda head: FUNCTIONS[name](rows, head, settings).total)
    expected = gradient(
        lambda logits: (visits * on_the_support(logits, name, tail, sampler.temperature)).sum()
    )
    assert same(found, expected)


@pytest.mark.parametrize("sampler", SAMPLERS, ids=str)
def test_with_the_sampled_token_it_is_the_mean_over_the_supports(sampler: Sampler) -> None:
    settings = LossSettings(temperature=sampler.temperature)
    rows = Written.by(sampler).batch(sampler.temperature)
    chosen = choose_support(rows, "teacher+sampled")
    found = mean_gradient(lambda head: FUNCTIONS["lsm"](chosen, head, settings).total)
    draws = sampler.visits()[:, None] * sampler.drawn()
    q = log_teacher(sampler.temperature).exp()

    def objective(logits: Tensor) -> Tensor:
        p, total = log_student(logits, sampler.temperature).exp(), torch.zeros(())
        for state, token in itertools.product(range(STATES), range(V)):
            ids = sorted({token, *sorted(range(V), key=lambda v: -float(q[state, v]))[:TOP]})
            ps, qs = p[state, ids] / p[state, ids].sum(), q[state, ids] / q[state, ids].sum()
            total = total + draws[state, token] * (ps * (ps / qs).log()).sum()
        return total

    assert same(found, gradient(objective))


@pytest.mark.parametrize("sampler", SAMPLERS, ids=str)
@pytest.mark.parametrize("name", ["full_reverse_kl", "full_jsd"])
def test_a_loss_over_the_vocabulary_is_exact_whatever_the_sampler(
    name: str, sampler: Sampler
) -> None:
    settings = LossSettings(temperature=sampler.temperature)
    rows, visits = Written.by(sampler).batch(sampler.temperature), sampler.visits()
    found = mean_gradient(lambda head: FUNCTIONS[name](rows, head, settings).total)
    divergence = reverse_kl if name == "full_reverse_kl" else mean_divergence
    expected = gradient(lambda logits: (visits * divergence(logits, sampler.temperature)).sum())
    assert same(found, expected)


def sampled_gradient(sampler: Sampler, weighed: bool, gamma: float = 0.0) -> Tensor:
    settings = LossSettings(temperature=sampler.temperature, gamma=gamma)
    written = Written.by(sampler)
    weights = sampler.masses()[written.states] if weighed else 1.0
    rows = written.batch(sampler.temperature, weights)
    return mean_gradient(lambda head: FUNCTIONS["sampled_token"](rows, head, settings).total)


@pytest.mark.parametrize("temperature", [1.0, 0.7, 1.3])
def test_the_sampled_token_is_exact_at_top_p_1(temperature: float) -> None:
    sampler = Sampler(temperature)
    visits = sampler.visits()
    assert same(
        sampled_gradient(sampler, weighed=False),
        gradient(lambda logits: (visits * reverse_kl(logits, temperature)).sum()),
    )


NUCLEI = [Sampler(top_p=0.9), Sampler(top_p=0.6), Sampler(0.7, 0.8), Sampler(1.3, 0.8)]


@pytest.mark.parametrize("sampler", NUCLEI, ids=str)
def test_the_weighed_sampled_token_is_exact_on_the_nucleus(sampler: Sampler) -> None:
    visits = sampler.visits()
    found = sampled_gradient(sampler, weighed=True)
    assert same(found, gradient(lambda logits: (visits * on_the_nucleus(logits, sampler)).sum()))


@pytest.mark.parametrize("sampler", NUCLEI, ids=str)
def test_what_the_nucleus_leaves_out_is_bounded(sampler: Sampler) -> None:
    """Of each row's gradient at the logits no more, in the sum of absolute values, than twice
    sum over the ids outside of p |log p - log q|, over the temperature."""
    visits = sampler.visits()
    whole = gradient(lambda logits: (visits * reverse_kl(logits, sampler.temperature)).sum())
    left_out = (sampled_gradient(sampler, weighed=True) - whole).abs().sum(-1)
    log_p, log_q = log_student(STUDENT, sampler.temperature), log_teacher(sampler.temperature)
    outside = (log_p.exp() * (log_p - log_q).abs() * ~sampler.inside()).sum(-1)
    bound = visits * 2 * outside / sampler.temperature
    assert bool((left_out <= bound + 1e-12).all())
    assert bool((outside <= (1 - sampler.top_p) * (log_p - log_q).abs().amax(-1)).all())
    assert float(left_out.sum()) > 1e-3, "a sampler that leaves nothing out shows nothing"


@pytest.mark.parametrize("sampler", NUCLEI, ids=str)
def test_without_weights_a_row_counts_the_more_the_smaller_its_nucleus(sampler: Sampler) -> None:
    scaled = sampler.visits() / sampler.masses()
    found = sampled_gradient(sampler, weighed=False)
    assert same(found, gradient(lambda logits: (scaled * on_the_nucleus(logits, sampler)).sum()))
    assert not same(found, sampled_gradient(sampler, weighed=True))


def sequence_kl(logits: Tensor, temperature: float) -> Tensor:
    """KL over whole responses."""
    log_p, log_q = log_student(logits, temperature), log_teacher(temperature)
    whole_p = log_p[0][:, None] + log_p[1:]
    whole_q = log_q[0][:, None] + log_q[1:]
    return (whole_p.exp() * (whole_p - whole_q)).sum()


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_with_all_later_rewards_the_sampled_token_is_exact_on_responses(temperature: float) -> None:
    sampler = Sampler(temperature)
    assert same(
        sampled_gradient(sampler, weighed=False, gamma=1.0),
        gradient(lambda logits: sequence_kl(logits, temperature)),
    )


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("sampler", [Sampler(), *NUCLEI], ids=str)
def test_returns_add_what_the_sampler_goes_on_to_write(sampler: Sampler, gamma: float) -> None:
    """Each token of the nucleus, by the student's probability, with its own log-ratio and
    gamma times the mean log-ratio of what the sampler draws after it."""
    visits, inside, drawn = sampler.visits(), sampler.inside(), sampler.drawn()
    fixed = log_student(STUDENT, sampler.temperature)
    ratio = fixed - log_teacher(sampler.temperature)
    cost = ratio.clone()
    cost[0] += gamma * (drawn[1:] * ratio[1:]).sum(-1)

    def objective(logits: Tensor) -> Tensor:
        log_p = log_student(logits, sampler.temperature)
        return (visits[:, None] * inside * fixed.exp() * cost * log_p).sum()

    assert same(sampled_gradient(sampler, weighed=True, gamma=gamma), gradient(objective))


# Chunks: a response of two tokens is one chunk whose likelihood the teacher knows.

CHUNKS = torch.randn(V, V, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
LOG_CHUNKS = CHUNKS.flatten().log_softmax(0).view(V, V)


def chunk_gradient(sampler: Sampler, weighed: bool, rows: tuple[int, ...] = (0, 1)) -> Tensor:
    """``rows``: which rows of the chunk learn."""
    settings = LossSettings(temperature=sampler.temperature)
    written = Written.by(sampler)
    masses = sampler.masses()[written.states].view(-1, 2).prod(-1).repeat_interleave(2)
    every = written.batch(sampler.temperature, masses if weighed else 1.0)
    assert every.old_log_probs is not None
    own = every.old_log_probs.view(-1, 2).sum(-1)
    advantages = LOG_CHUNKS[tuple(written.tokens.view(-1, 2).T)] - own
    chosen = torch.isin(torch.arange(len(written.tokens)) % 2, torch.tensor(rows))
    some = LossBatch(
        hidden=every.hidden[chosen],
        sampled_ids=every.sampled_ids[chosen],
        weights=every.weights[chosen],
        old_log_probs=every.old_log_probs[chosen],
    )
    of_rows = advantages.repeat_interleave(2)[chosen]
    return mean_gradient(lambda head: chunk_policy(some, of_rows, head, settings).total)


def chunk_divergence(logits: Tensor, sampler: Sampler) -> Tensor:
    """sum of p log (p / q) - p + q over the chunks that the sampler can write."""
    log_p = log_student(logits, sampler.temperature)
    whole = log_p[0][:, None] + log_p[1:]
    inside = sampler.inside()
    possible = inside[0][:, None] & inside[1:]
    terms = whole.exp() * (whole - LOG_CHUNKS) - whole.exp() + LOG_CHUNKS.exp()
    return (terms * possible).sum()


@pytest.mark.parametrize("sampler", [Sampler(), Sampler(0.7), *NUCLEI], ids=str)
def test_the_weighed_chunk_is_exact_on_what_the_sampler_can_write(sampler: Sampler) -> None:
    exact = gradient(lambda logits: chunk_divergence(logits, sampler))
    assert same(chunk_gradient(sampler, weighed=True), exact)
    # Each row of the chunk has its own part of it.
    assert same(chunk_gradient(sampler, weighed=True, rows=(0,))[0], exact[0])
    assert same(chunk_gradient(sampler, weighed=True, rows=(1,))[1:], exact[1:])
    assert same(chunk_gradient(sampler, weighed=False), exact) == (sampler.top_p == 1)


# Rows that an older student wrote.

NEWER = STUDENT + 0.3 * table(5)


@pytest.mark.parametrize(("top_p", "cap"), [(1.0, 1e9), (1.0, 1.1), (0.8, 1e9)])
def test_a_stale_rows_weight_has_mean_1_at_top_p_1_and_without_a_cap(
    top_p: float, cap: float
) -> None:
    """It leaves a row's mean gradient as it is at top_p = 1, and scales it otherwise; how
    often the older student came to the row is not corrected."""
    sampler = Sampler(top_p=top_p)
    now, old = log_student(NEWER), log_student(STUDENT)
    written = Written.by(sampler)
    ratios = (now - old).exp().clamp(max=cap)
    rows = written.batch(1.0, ratios[written.states, written.tokens])
    found = mean_gradient(lambda head: FUNCTIONS["lsm"](rows, head, LossSettings()).total, NEWER)
    mean = (sampler.drawn() * ratios).sum(-1)
    assert bool(torch.allclose(mean, torch.ones_like(mean))) == (top_p == 1 and cap > 2)
    visits = sampler.visits() * mean
    expected = gradient(
        lambda logits: (visits * on_the_support(logits, "lsm", "none", 1.0)).sum(), NEWER
    )
    assert same(found, expected)
