"""A student that reads prompts into slots, and goes on with a token of each."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from teacher_proto.types import Int32
from torch import Tensor
from transformers import cache_utils
from transformers.cache_utils import (
    Cache,
    DynamicCache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionLayer,
)

from student_trainer.rollout.slots.layers import FullLayer, SlidingLayer, StateLayer
from student_trainer.student.model import Student

# A layer that keeps nothing; older versions of transformers have no such class.
NOTHING: type | None = getattr(cache_utils, "DummyLayer", None)


class NotSupportedError(Exception):
    """A layer keeps what sequences cannot enter and leave; its text says what."""


@dataclass(frozen=True)
class Read:
    """Prompts that were read, to enter slots.

    Attributes:
        cache: what every layer keeps of them; a prompt has the last columns.
        lengths: tokens of each.
        logits: [prompts, V], after the last token of each.
    """

    cache: Cache
    lengths: tuple[int, ...]
    logits: Tensor

    def last(self) -> Read:
        """The last of the prompts alone."""
        if len(self.lengths) == 1:
            return self
        only = torch.tensor([len(self.lengths) - 1], device=self.logits.device)
        self.cache.reorder_cache(only)
        return Read(self.cache, self.lengths[-1:], self.logits[-1:])


class Slots:
    """The sequences that a student goes on with, each in a slot.

    Attributes:
        lengths: tokens of each sequence.
    """

    def __init__(self, student: Student, room: int) -> None:
        """``room``: how many slots may be taken together."""
        self._student = student
        self._model = student.causal_model
        self._room = room
        self._takes = inspect.signature(self._model.forward).parameters.keys()
        self._cache: Cache | None = None
        self._layers: list[Any] = []
        self.lengths: list[int] = []

    @property
    def taken(self) -> int:
        return len(self.lengths)

    def read(self, prompts: Sequence[Int32]) -> Read:
        """Reads prompts together, the shorter ones padded on their left."""
        lengths = tuple(map(len, prompts))
        width = max(lengths)
        ids = torch.full((len(prompts), width), self._student.padding_id, dtype=torch.int64)
        for nth, prompt in enumerate(prompts):
            ids[nth, width - len(prompt) :] = torch.from_numpy(prompt.astype(np.int64))
        cache = DynamicCache(config=self._model.config)
        before = torch.tensor([width - length for length in lengths])
        positions = (torch.arange(width) - before[:, None]).clamp(min=0)
        return Read(cache, lengths, self._forward(ids, before, positions, cache))

    def enter(self, read: Read, prompt: int, slots: int, *, room: int) -> None:
        """Takes more slots, each for one of the prompts that were read.

        Args:
            room: how many slots may be taken together from now on; never becomes more.

        Raises:
            NotSupportedError: a layer keeps what sequences cannot enter and leave.
        """
        if self._cache is None:
            self._begin(read.cache)
        length = read.lengths[prompt]
        self._room = room
        self._fit(max([*self.lengths, length]))
        for layer, its in zip(self._layers, read.cache.layers, strict=True):
            if layer is not None:
                layer.enter(its, prompt, slots, length)
        self.lengths += [length] * slots

    def leave(self, slots: Sequence[int], *, room: int) -> list[int]:
        """Frees slots. Returns where each of the other sequences was, in their new order."""
        gone, kept = set(slots), self.taken - len(set(slots))
        order = list(range(kept))
        movers = [slot for slot in range(kept, self.taken) if slot not in gone]
        moved = list(zip(movers, [slot for slot in order if slot in gone], strict=True))
        for source, target in moved:
            order[target] = source
        for layer in self._layers:
            if layer is not None:
                layer.leave(moved, kept)
        self.lengths = [self.lengths[slot] for slot in order]
        self._room = room
        if self.lengths:
            self._fit(max(self.lengths))
        return order

    def step(self, tokens: Tensor) -> Tensor:
        """Goes on with a token of each sequence, int64 [slots].

        Returns:
            [slots, V], the logits after it.
        """
        width = max(self.lengths)
        lengths = torch.tensor(self.lengths)
        logits = self._forward(tokens[:, None], width - lengths, lengths[:, None], self._cache)
        self.lengths = [length + 1 for length in self.lengths]
        return logits

    def _forward(self, ids: Tensor, before: Tensor, positions: Tensor, cache: Any) -> Tensor:
        """float [slots, V]: the logits after the last of ``ids`` [slots, n], of each.

        Args:
            before: int64 [slots], columns before the tokens of each.
            positions: int64 [slots, n], of ``ids``.
        """
        device = self._student.device
        columns = int((before + positions[:, -1]).max()) + 1
        mask = (torch.arange(columns) >= before[:, None]).long()
        named: dict[str, Any] = {"position_ids": positions.to(device), "logits_to_keep": 1}
        output = self._model(
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            past_key_values=cache,
            use_cache=True,
            return_dict=True,
            **{name: value for name, value in named.items() if name in self._takes},
        )
        logits: Tensor = output.logits[:, -1]
        return logits

    def _fit(self, width: int) -> None:
        for layer in self._layers:
            if layer is not None:
                layer.fit(width, self._room)

    def _begin(self, read: Cache) -> None:
        self._cache = DynamicCache(config=self._model.config)
        self._layers = [_layer(its) for its in read.layers]
        for layer, its in zip(self._layers, read.layers, strict=True):
            if layer is not None:
                layer.begin(its, self._room)
        self._cache.layers = [
            its if layer is None else layer
            for layer, its in zip(self._layers, read.layers, strict=True)
        ]


def _layer(read: Any) -> Any:
    """The layer whose sequences enter and leave, for one that has read prompts; None for one that
    keeps nothing."""
    if type(read) is DynamicLayer:
        return FullLayer()
    if type(read) is DynamicSlidingWindowLayer:
        return SlidingLayer(read.sliding_window)
    if type(read) is LinearAttentionLayer:
        return StateLayer(number_of_states=len(read.conv_states))
    if type(read) is NOTHING:
        return None
    raise NotSupportedError(f"a layer of it keeps its past in a {type(read).__name__}")
