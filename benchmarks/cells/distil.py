"""One run: a student is distilled on its own replies until the teacher has read so much."""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import LlamaForCausalLM

from benchmarks.cells.arms import Arm, Drawn, arm_loss, log_softmax
from benchmarks.cells.exact import exact_rows
from benchmarks.cells.model import MOST_TOKENS, accuracy, write
from benchmarks.cells.pair import side
from benchmarks.cells.rows import Scorer
from benchmarks.cells.task import Problem, problems, worked
from student_trainer.losses import Head

Int64 = NDArray[np.int64]
# Updates in which the learning rate rises.
WARM_UP = 5


@dataclass(frozen=True)
class Plan:
    """What every arm gets.

    Attributes:
        teacher_tokens: that the teacher reads in a run, at most an update more.
        replies: of an update.
        rate: the learning rate.
        held_out: problems that a run does not learn from.
        judged: how many replies to held-out problems the exact KL is a mean over.
        every: updates between two measurements of the accuracy.
    """

    teacher_tokens: int
    replies: int
    rate: float
    held_out: Sequence[Problem]
    judged: int = 48
    every: int = 10


@dataclass
class Outcome:
    """accuracy: greedy, of held-out problems; bits_per_byte: of their worked solutions;
    exact_kl: nats a token, student to teacher, on the student's own replies. The rest are
    means over updates: shares of rows and the accuracies on the way."""

    arm: str
    seed: int
    accuracy: float = 0.0
    bits_per_byte: float = 0.0
    exact_kl: float = 0.0
    teacher_tokens: int = 0
    updates: int = 0
    curve: list[float] = field(default_factory=list)
    shares: dict[str, float] = field(default_factory=dict)


def distil(start: LlamaForCausalLM, scorer: Scorer, arm: Arm, seed: int, plan: Plan) -> Outcome:
    """Runs one arm from a student, which is left as it is."""
    student, tokenizer, outcome = copy.deepcopy(start), side(3), Outcome(arm.name, seed)
    draw, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    left_out = frozenset(plan.held_out)
    optimizer = torch.optim.AdamW(student.parameters(), lr=plan.rate, weight_decay=0.0)
    shares: list[dict[str, float]] = []
    while outcome.teacher_tokens < plan.teacher_tokens:
        asked = [one for one in problems(draw, plan.replies) if one not in left_out]
        ids, lengths = write(student, tokenizer, asked, generator)
        replies = [line[:length] for line, length in zip(ids, lengths, strict=True)]
        scored = scorer.score(asked, replies, arm.extra_rounds)
        exact = np.concatenate(exact_rows(scorer, asked, replies)) if arm.exact else None
        hidden = _hidden(student, asked, replies)
        loss, seen = arm_loss(arm, Drawn(scored, exact), hidden, head_of(student))
        for group in optimizer.param_groups:
            group["lr"] = plan.rate * min((outcome.updates + 1) / WARM_UP, 1.0)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        shares.append(seen)
        outcome.teacher_tokens += scored.teacher_tokens
        outcome.updates += 1
        if outcome.updates % plan.every == 0:
            outcome.curve.append(accuracy(student, tokenizer, plan.held_out, MOST_TOKENS))
    outcome.shares = {name: float(np.mean([one[name] for one in shares])) for name in shares[0]}
    return judged(student, scorer, outcome, plan)


def judged(student: LlamaForCausalLM, scorer: Scorer, outcome: Outcome, plan: Plan) -> Outcome:
    """Fills in what is measured at the end."""
    outcome.accuracy = accuracy(student, side(3), plan.held_out, MOST_TOKENS)
    outcome.bits_per_byte = bits_per_byte(student, plan.held_out)
    outcome.exact_kl = exact_kl(student, scorer, plan.held_out[: plan.judged])
    return outcome


@torch.inference_mode()
def bits_per_byte(student: LlamaForCausalLM, held_out: Sequence[Problem]) -> float:
    """Of worked solutions with their ends, an end being one byte."""
    draw = random.Random(7)
    solutions = [worked(draw, one) for one in held_out]
    replies = [np.array([*side(3).encode(one), side(3).end]) for one in solutions]
    log_p = log_softmax(_hidden(student, held_out, replies), head_of(student))
    own = log_p.gather(1, torch.from_numpy(np.concatenate(replies))[:, None])
    return -float(own.sum()) / np.log(2) / sum(len(one) + 1 for one in solutions)


@torch.inference_mode()
def exact_kl(student: LlamaForCausalLM, scorer: Scorer, asked: Sequence[Problem]) -> float:
    """Mean KL of the student to the teacher over the tokens of replies that it draws."""
    ids, lengths = write(student, side(3), asked, torch.Generator().manual_seed(11))
    replies = [line[:length] for line, length in zip(ids, lengths, strict=True)]
    truth = torch.from_numpy(np.concatenate(exact_rows(scorer, asked, replies)))
    log_p = log_softmax(_hidden(student, asked, replies), head_of(student))
    # What the teacher never writes has the probability of a rounding error.
    ratio = log_p - truth.clamp_min(1e-9).log()
    return float((log_p.exp() * ratio).sum(-1).mean())


def head_of(student: LlamaForCausalLM) -> Head:
    return Head(student.lm_head.weight, undrawn=torch.tensor(side(3).never))


def _hidden(
    student: LlamaForCausalLM, asked: Sequence[Problem], replies: Sequence[Int64]
) -> Tensor:
    """[T, H]: the states that each reply's tokens are drawn from, one reply after the other."""
    before = [side(3).prompt_ids(one.prompt) for one in asked]
    longest = max(map(len, replies))
    ids = torch.full((len(replies), len(before[0]) + longest), side(3).end)
    for index, (prompt, reply) in enumerate(zip(before, replies, strict=True)):
        ids[index, : len(prompt) + len(reply)] = torch.tensor([*prompt, *reply.tolist()])
    states = student.model(input_ids=ids).last_hidden_state
    first = len(before[0]) - 1
    return torch.cat(
        [states[index, first : first + len(reply)] for index, reply in enumerate(replies)]
    )
