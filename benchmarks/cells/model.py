"""Two small Llamas that are trained on the spot: the teacher to the end, students halfway."""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.cells.pair import Side, document, side
from benchmarks.cells.task import Problem, problems, worked
from student_trainer.quickstart.cache import cache_dir

Int64 = NDArray[np.int64]
# A student's reply is cut there; the longest solution has nine tokens with its end.
MOST_TOKENS = 11
NOT_A_TOKEN = -100


@dataclass(frozen=True)
class Recipe:
    """How a model is made, which its file is named by.

    Attributes:
        digits: digits that are one token together.
        width: hidden size.
        steps: updates of ``batch`` problems each.
        rate: the learning rate's peak; it falls to a tenth of it by cosine over ``whole``
            steps, of which a student that is left halfway makes only the first ``steps``.
    """

    digits: int
    seed: int
    steps: int
    whole: int
    width: int = 64
    layers: int = 2
    batch: int = 64
    rate: float = 3e-3

    def file(self, left_out: Sequence[Problem]) -> Path:
        facts = {**asdict(self), "held_out": [asdict(one) for one in left_out]}
        text = json.dumps([facts, document(self.digits)], sort_keys=True)
        name = hashlib.sha256(text.encode()).hexdigest()[:16]
        return cache_dir() / "cells" / f"{name}.safetensors"


def fresh(recipe: Recipe) -> LlamaForCausalLM:
    """A model that has learnt nothing. Its embedding of a number of several digits is the sum
    of vectors for its digits at their places, as those of pretrained models nearly are: else
    nothing that is learnt of one number would help with another."""
    torch.manual_seed(recipe.seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=side(recipe.digits).vocabulary.size,
            hidden_size=recipe.width,
            intermediate_size=3 * recipe.width,
            num_hidden_layers=recipe.layers,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=64,
            tie_word_embeddings=True,
            initializer_range=recipe.width**-0.5 / 2,
            attn_implementation="sdpa",
        )
    )
    if recipe.digits > 1:
        places = torch.randn(recipe.digits, 10, recipe.width) * recipe.width**-0.5 / 2
        embedding = model.model.embed_tokens.weight
        with torch.no_grad():
            for token, data in enumerate(side(recipe.digits).vocabulary.token_bytes):
                if data.isdigit():
                    digits = [int(chr(one)) for one in reversed(data)]
                    own = [places[place, digit] for place, digit in enumerate(digits)]
                    embedding[token] = torch.stack(own).sum(0)
    return model


def trained(recipe: Recipe, left_out: Sequence[Problem]) -> LlamaForCausalLM:
    """The model of a recipe: from the cache, else trained on worked solutions of other
    problems than those left out."""
    path = recipe.file(left_out)
    model = fresh(recipe)
    if not path.exists():
        _train(model, recipe, frozenset(left_out))
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        save_file(
            {
                name: value.contiguous()
                for name, value in model.state_dict().items()
                if name != "lm_head.weight"
            },
            partial,
        )
        partial.replace(path)
    model.load_state_dict(load_file(path), strict=False)
    return model.eval()


def _train(model: LlamaForCausalLM, recipe: Recipe, left_out: frozenset[Problem]) -> None:
    draw, tokenizer = random.Random(recipe.seed), side(recipe.digits)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.rate, weight_decay=0.01)
    for step in range(recipe.steps):
        chosen = [one for one in problems(draw, recipe.batch) if one not in left_out]
        inputs, labels = batch_of(tokenizer, chosen, [worked(draw, one) for one in chosen])
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate * schedule(step, recipe.whole)
        loss = model(input_ids=inputs, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()


def schedule(step: int, whole: int) -> float:
    """A rise over 50 steps, then a cosine from 1 to 0.1."""
    fall = 0.1 + 0.45 * (1 + math.cos(math.pi * min(step / whole, 1.0)))
    return min((step + 1) / 50, 1.0) * fall


def batch_of(
    tokenizer: Side, chosen: Sequence[Problem], solutions: Sequence[str]
) -> tuple[Tensor, Tensor]:
    """(inputs, labels), int64 [n, L]: prompts, solutions and ends, padded with ends; labels
    are NOT_A_TOKEN outside the solutions."""
    lines, marks = [], []
    for problem, solution in zip(chosen, solutions, strict=True):
        before = tokenizer.prompt_ids(problem.prompt)
        after = [*tokenizer.encode(solution), tokenizer.end]
        lines.append(before + after)
        marks.append([NOT_A_TOKEN] * len(before) + after)
    longest = max(map(len, lines))
    inputs = [line + [tokenizer.end] * (longest - len(line)) for line in lines]
    labels = [mark + [NOT_A_TOKEN] * (longest - len(mark)) for mark in marks]
    return torch.tensor(inputs), torch.tensor(labels)


@torch.inference_mode()
def write(
    model: LlamaForCausalLM,
    tokenizer: Side,
    asked: Sequence[Problem],
    generator: torch.Generator | None,
    most: int = MOST_TOKENS,
) -> tuple[Int64, Int64]:
    """Replies (ids int64 [n, most], lengths int64 [n]) at temperature 1; without a generator
    the most likely tokens. A reply's last token is the end, unless it is cut."""
    inputs = torch.tensor([tokenizer.prompt_ids(one.prompt) for one in asked])
    cache, written = None, []
    for _ in range(most):
        out = model(input_ids=inputs, past_key_values=cache, use_cache=True)
        logits, cache = out.logits[:, -1].float(), out.past_key_values
        logits[:, tokenizer.never] = -torch.inf
        if generator is None:
            inputs = logits.argmax(-1, keepdim=True)
        else:
            inputs = torch.multinomial(torch.softmax(logits, -1), 1, generator=generator)
        written.append(inputs)
    ids = torch.cat(written, 1).numpy()
    ended = ids == tokenizer.end
    lengths = np.where(ended.any(1), ended.argmax(1) + 1, most)
    return ids, lengths


def accuracy(
    model: LlamaForCausalLM, tokenizer: Side, asked: Sequence[Problem], most: int
) -> float:
    """The share of problems whose most likely reply is right."""
    ids, _ = write(model, tokenizer, asked, None, most)
    right = [one.solved_by(tokenizer.decode(line)) for one, line in zip(asked, ids, strict=True)]
    return float(np.mean(right))
