"""What a run will take of memory: measured on a small piece, and estimated from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from student_trainer.commands.largest_update import Sequences, largest_update
from student_trainer.settings.train import TrainConfig
from student_trainer.startup.start import Start
from student_trainer.student.memory import free_memory, update_bytes, weight_bytes
from student_trainer.student.model import Student, read_layout, set_training
from student_trainer.student.packing.layout import Layout

MIB = 1 << 20
# Layers that compute their tokens in chunks compute whole ones; theirs are not longer.
MEASURED_TOKENS = 64
# A layer's attribute: whether it computes its activations again in the backward pass.
CHECKPOINTS = "gradient_checkpointing"
# Float32 arrays as large as a block of logits that a loss over the vocabulary holds at once.
LOGITS_COPIES = 4


@dataclass(frozen=True)
class Memory:
    """Bytes on the student's device, estimated for the largest micro-batch and the longest
    responses.

    Attributes:
        weights: parameters and buffers.
        optimizer: gradients, moments and, for bfloat16, masters; gradients twice where each
            teacher has a mean of its own.
        activations: what autograd keeps of the largest micro-batch, and what one layer computes
            again.
        logits: of a block of rows over the vocabulary.
        cache: keys, values and states while responses are written.
    """

    weights: int
    optimizer: int
    activations: int
    logits: int
    cache: int

    @property
    def update(self) -> int:
        return self.weights + self.optimizer + self.activations + self.logits

    @property
    def rollout(self) -> int:
        return self.weights + self.optimizer + self.cache

    @property
    def peak(self) -> int:
        return max(self.update, self.rollout)


def estimated_memory(config: TrainConfig, student: Student) -> Memory:
    """Weights and optimizer are counted. Activations and cache are measured on sequences of
    ``MEASURED_TOKENS`` and twice as many tokens, and continued to the settings' sizes."""
    longest = config.data.max_prompt_tokens + config.rollout.max_new_tokens
    update = largest_update(config, student)
    trained = sum(p.numel() for p in student.module.parameters() if p.requires_grad)
    aside = 4 * trained if config.balances_teachers else 0
    return Memory(
        weights=weight_bytes(student),
        optimizer=update_bytes(student) + aside,
        activations=int(update.in_micro_batch * activations(student, update.sequences)),
        logits=config.loss.chunk_rows * student.vocabulary_size * 4 * LOGITS_COPIES,
        cache=int(config.rollout.batch_size * keys_and_values(student, longest)),
    )


def measured_length(student: Student) -> int:
    """Tokens of the short sequences that are measured; of the others twice as many."""
    return min(MEASURED_TOKENS, student.max_length // 2)


def activations(student: Student, sequences: Sequences) -> float:
    """Bytes that autograd keeps of sequences that are read at once, from those of short ones that
    are divided into prompt and responses alike."""
    short = sequences.shortened(measured_length(student))
    once = activation_bytes(student, short.layout(student))
    twice = activation_bytes(student, short.doubled().layout(student))
    found = continued(short.longest, once, twice, sequences.longest)
    # Whole tokens are not divided quite alike.
    return found * (sequences.tokens / sequences.longest) / (short.tokens / short.longest)


def keys_and_values(student: Student, tokens: int) -> float:
    """Bytes of the keys and values of a sequence of ``tokens``, and of states that are as large at
    any length, from those of short ones."""
    n = measured_length(student)
    once, twice = cache_bytes(student, n), cache_bytes(student, 2 * n)
    return twice + (twice - once) * (tokens / n - 2)


def continued(n: int, once: int, twice: int, tokens: int) -> float:
    """The value at ``tokens`` of a n + b n² that is ``once`` at n and ``twice`` at 2 n."""
    square = max((twice - 2 * once) / (2 * n * n), 0.0)
    linear = (once - square * n * n) / n
    return linear * tokens + square * tokens * tokens


def activation_bytes(student: Student, layout: Layout) -> int:
    """Bytes that autograd keeps of what is read at once, parameters not counted. Where layers
    compute theirs again in the backward pass, those of one layer are among them, as their mean."""
    kept = _kept_bytes(student, layout)
    computed_again = [m for m in student.module.modules() if getattr(m, CHECKPOINTS, False)]
    if not computed_again:
        return kept
    try:
        for module in computed_again:
            setattr(module, CHECKPOINTS, False)
        whole = _kept_bytes(student, layout)
    finally:
        for module in computed_again:
            setattr(module, CHECKPOINTS, True)
    layers = int(student.causal_model.config.get_text_config().num_hidden_layers)
    return kept + (whole - kept) // layers


def _kept_bytes(student: Student, layout: Layout) -> int:
    """Bytes that autograd keeps after a forward pass, parameters not counted."""
    own = {p.untyped_storage().data_ptr() for p in student.module.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        # Held until all are counted, so that no two have one address.
        kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    set_training(student)
    try:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            states = read_layout(student, layout)
    finally:
        student.module.eval()
    count = sum(t.untyped_storage().nbytes() for at, t in kept.items() if at not in own)
    return count + states.numel() * states.element_size()


@torch.no_grad()
def cache_bytes(student: Student, tokens: int) -> int:
    """Bytes of the keys, values and states of one sequence."""
    ids = torch.from_numpy(_some_ids(student, tokens).astype(np.int64))[None].to(student.device)
    model: Any = student.causal_model
    cache = model(input_ids=ids, use_cache=True).past_key_values
    tensors = _tensors(cache)
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def _tensors(value: Any, depth: int = 4) -> dict[int, Tensor]:
    """The tensors that a cache of transformers holds, whatever its kind."""
    if isinstance(value, Tensor):
        return {id(value): value}
    if depth == 0 or value is None or isinstance(value, str | int | float | type):
        return {}
    named = value if isinstance(value, dict) else getattr(value, "__dict__", {})
    parts = value if isinstance(value, list | tuple) else named.values()
    return {key: tensor for part in parts for key, tensor in _tensors(part, depth - 1).items()}


def _some_ids(student: Student, count: int) -> Any:
    """int32 [count]: ids that are spread over those that the student can write."""
    step = max(student.drawn_below // count, 1)
    return (np.arange(count) * step % student.drawn_below).astype(np.int32)


def available_bytes(student: Student, weights: int) -> int:
    """Memory of the student's device that is free, or that the student itself holds.

    Args:
        weights: bytes of the student, which is loaded.
    """
    if student.device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(student.device)
        return int(free + torch.cuda.memory_reserved(student.device))
    return free_memory() + weights


def memory(start: Start) -> str:
    """Estimates the memory of the student's device; warns when it will hardly do."""
    found = estimated_memory(start.config, start.student)
    available = available_bytes(start.student, found.weights)
    if found.peak > available:
        start.warn(
            f"{available // MIB} MiB are available: lower optimizer.micro_batch_tokens or "
            "rollout.batch_size, set student.gradient_checkpointing = true, or train adapters "
            "(student.lora)"
        )
    parts = (
        f"weights {found.weights // MIB}, gradients and optimizer {found.optimizer // MIB} "
        f"(both counted), activations of a micro-batch {found.activations // MIB} "
        f"({largest_update(start.config, start.student)}), keys and values "
        f"of a batch of rollouts {found.cache // MIB} (both continued from {MEASURED_TOKENS} and "
        f"{2 * MEASURED_TOKENS} tokens), logits {found.logits // MIB} (estimated)"
    )
    return (
        f"about {found.peak // MIB} MiB of {start.student.device}, more with what torch keeps for "
        f"itself; in MiB: {parts}"
    )
