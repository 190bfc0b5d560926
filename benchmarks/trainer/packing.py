"""Forward and backward passes over packed micro-batches against padded ones.

Figures:
    packing_efficiency        speedup over padded micro-batches in the order of the prompts, over
                              padded / real tokens: 1 where every token costs the same on both sides
    packing_speedup           that speedup
    packing_speedup_sorted    speedup over padded micro-batches sorted by length, which a student
                              that cannot be packed has
    packing_efficiency_shared speedup of a shared prompt over a prompt for each of its responses,
                              both packed, over the tokens of the two

All sides read the same 32 responses in micro-batches of the same budget. Their lengths are
lognormal, longest / mean 3.8; no prompt is shared but for the last figure.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from teacher_proto.types import Int32, TextPrompt

from benchmarks.harness import alternate, median_ratio
from student_trainer.rollout.base import PromptItem, Rollout
from student_trainer.settings.student import StudentSettings
from student_trainer.student.model import Student, load_student, packing_for, read_layout
from student_trainer.student.packing.layout import Layout, pack, pad
from student_trainer.update.batching import micro_batches, student_input

RESPONSES, GROUP = 32, 4
PROMPT, LONGEST, MEAN = 24, 228, 60
BUDGET = 1024
SHARED_PROMPT = 160
# The quickstart's student without most of its layers: every layer costs the same.
LAYERS = 6


@dataclass(frozen=True)
class Side:
    """Attributes: layouts: what each pass reads. real: tokens of them, padding not counted."""

    layouts: list[Layout]

    @property
    def real(self) -> int:
        return sum(layout.tokens for layout in self.layouts)

    @property
    def computed(self) -> int:
        return sum(layout.ids.size for layout in self.layouts)


def lengths(count: int, longest: int, mean: int) -> list[int]:
    """``count`` lengths of a lognormal distribution with this longest and mean."""
    normal = np.random.default_rng(7).standard_normal(count)
    low, high = 0.01, 3.0
    for _ in range(60):
        width = (low + high) / 2
        drawn = np.exp(width * normal)
        low, high = (width, high) if drawn.max() / drawn.mean() < longest / mean else (low, width)
    return [max(int(n), 1) for n in np.round(drawn / drawn.max() * longest)]


def responses(prompts: Sequence[Int32], counts: Sequence[int], ids: int) -> list[Rollout]:
    """A response of random tokens for each count, to the prompts in turn."""
    rng = np.random.default_rng(5)
    found = []
    for at, count in enumerate(counts):
        prompt = prompts[at * len(prompts) // len(counts)]
        item = PromptItem(str(at), prompt, TextPrompt(""))
        drawn = rng.integers(3, ids, count).astype(np.int32)
        found.append(Rollout(item, at, drawn, np.zeros(count, np.float32), True))
    return found


def packed(rollouts: Sequence[Rollout], *, share: bool = True) -> Side:
    """Packed micro-batches; with ``share`` off, every response has its prompt to itself."""
    found = []
    for members in micro_batches(rollouts, BUDGET, packs=True):
        chosen = [rollouts[member] for member in members]
        sequences = [student_input(one) for one in chosen]
        if share:
            found.append(pack(sequences, [len(one.prompt.token_ids) for one in chosen]))
        else:
            found.append(pack(sequences, [len(sequence) for sequence in sequences]))
    return Side(found)


def padded(rollouts: Sequence[Rollout], *, ordered: bool) -> Side:
    """Padded micro-batches: of neighbours as they come, or of similar lengths."""
    if ordered:
        cut = micro_batches(rollouts, BUDGET, packs=False)
    else:
        longest = max(len(student_input(one)) for one in rollouts)
        step = max(BUDGET // longest, 1)
        every = range(len(rollouts))
        cut = [tuple(every[at : at + step]) for at in every[::step]]
    return Side([pad([student_input(rollouts[i]) for i in members], 0) for members in cut])


def passes(student: Student, side: Side) -> Callable[[int], None]:
    """Forward and backward passes over a side, of states that a response's loss would read."""

    def run(_: int) -> None:
        student.module.zero_grad(set_to_none=False)
        for layout in side.layouts:
            with packing_for(student):
                states = read_layout(student, layout)[np.concatenate(layout.places)]
                states.square().mean().backward()  # type: ignore[no-untyped-call]

    return run


def measure(quick: bool) -> dict[str, Any]:
    """``figures`` and ``details``."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        student = load_student(StudentSettings(model=str(small(Path(folder))), device="cpu"))
    assert student.packs, "a Llama can be packed"
    ids, rng = student.drawn_below, np.random.default_rng(3)

    def prompts(count: int, tokens: int) -> list[Int32]:
        return [rng.integers(3, ids, tokens).astype(np.int32) for _ in range(count)]

    counts = lengths(RESPONSES, LONGEST, MEAN)
    alone = responses(prompts(RESPONSES, PROMPT), counts, ids)
    groups = responses(prompts(RESPONSES // GROUP, SHARED_PROMPT), counts, ids)
    sides = {
        "packed": packed(alone),
        "padded": padded(alone, ordered=False),
        "sorted": padded(alone, ordered=True),
        "shared": packed(groups),
        "apart": packed(groups, share=False),
    }
    seconds = alternate(
        {name: passes(student, side) for name, side in sides.items()}, 1 if quick else 5
    )
    speedup = median_ratio(seconds["padded"], seconds["packed"])
    shared = median_ratio(seconds["apart"], seconds["shared"])
    ratio = sides["padded"].computed / sides["packed"].computed
    figures = {
        "packing_efficiency": speedup / ratio,
        "packing_speedup": speedup,
        "packing_speedup_sorted": median_ratio(seconds["sorted"], seconds["packed"]),
        "packing_efficiency_shared": shared / (sides["apart"].real / sides["shared"].real),
    }
    details = {
        "longest_over_mean": max(counts) / statistics.mean(counts),
        "tokens": {name: {"real": s.real, "computed": s.computed} for name, s in sides.items()},
        "seconds": {name: statistics.median(times) for name, times in seconds.items()},
    }
    return {"figures": figures, "details": details}


def small(folder: Path) -> Path:
    """A random Llama of SmolLM2-135M's width, with few layers and the tokens of bytes."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from tests.support.models import ENGLISH, save_model, train_tokenizer

    config = LlamaConfig(
        vocab_size=320,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=LAYERS,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=None,
    )
    torch.manual_seed(0)
    return save_model(LlamaForCausalLM(config), folder, train_tokenizer(ENGLISH, 320))
