"""What each layer of a model keeps of the sequences in its slots, in buffers that a sequence enters
and leaves without a copy of the others.

All sequences end at the same column, that of their newest token: one of n tokens has the last n
columns, and what is before them is masked. A new one is written into the last columns; where one
leaves, that of the last slot takes its place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers.cache_utils import (
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionLayer,
)

# A buffer that is full grows by this share of what it has to hold, and by so many columns at
# least: then what is copied for a token stays a small part of what is read for it.
GROWTH, LEAST = 1 / 8, 16


class Layer(Protocol):
    """A layer of a transformers cache whose sequences enter and leave."""

    def enter(self, read: Any, prompt: int, slots: int, length: int) -> None:
        """Takes ``slots`` more slots, each for what ``read``, the same layer after it read prompts,
        keeps of one of them, ``length`` tokens."""

    def leave(self, moved: Sequence[tuple[int, int]], slots: int) -> None:
        """Moves sequences, (from slot, to slot), and keeps the first ``slots``."""

    def fit(self, width: int, room: int) -> None:
        """Has the columns of the longest sequence, ``width`` tokens, in use. Buffers that are made
        from now on have ``room`` slots, which never becomes more."""


class _Columns:
    """Keys and values [room, heads, columns, size] of a layer, of which the first slots and the
    columns from ``first`` to ``end`` are in use."""

    # A sliding window reads so many columns before its token; None for all.
    reach: int | None = None
    keys: Tensor
    values: Tensor

    def begin(self, read: Any, room: int) -> None:
        self.dtype, self.device = read.keys.dtype, read.keys.device
        self._room, self._slots, self._first, self._end = room, 0, 0, 0
        shapes = [
            (room, states.shape[1], 0, states.shape[3]) for states in (read.keys, read.values)
        ]
        self._buffers = [torch.zeros(s, dtype=self.dtype, device=self.device) for s in shapes]
        self.is_initialized = True
        self._show()

    def enter(self, read: Any, prompt: int, slots: int, length: int) -> None:
        kept = min(length, read.keys.shape[-2], self._end - self._first)
        to = (
            slice(self._slots, self._slots + slots),
            slice(None),
            slice(self._end - kept, self._end),
        )
        for buffer, states in zip(self._buffers, (read.keys, read.values), strict=True):
            buffer[to] = states[prompt, :, states.shape[-2] - kept :]
        self._slots += slots
        self._show()

    def leave(self, moved: Sequence[tuple[int, int]], slots: int) -> None:
        live = slice(self._first, self._end)
        for source, target in moved:
            for buffer in self._buffers:
                buffer[target, :, live] = buffer[source, :, live]
        self._slots = slots
        self._show()

    def fit(self, width: int, room: int) -> None:
        self._room = room
        kept = width if self.reach is None else min(width, self.reach)
        if self._end < kept:
            self._grow(kept)
        self._first = self._end - kept
        self._show()

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> Any:
        """Keeps a token of each sequence; returns keys and values of the columns that it sees."""
        if self.reach is not None:
            self._first = max(self._first, self._end - self.reach)
        if self._end == self._buffers[0].shape[-2]:
            self._grow(self._end - self._first)
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[: self._slots, :, self._end : self._end + 1] = states
        self._end += 1
        self._show()
        return self.keys, self.values

    def _grow(self, kept: int) -> None:
        """Moves the live columns to the front of new buffers, which end a while after ``kept``
        columns. Columns that no sequence has are zero: masked, they still have to be finite."""
        live = slice(max(self._end - kept, self._first, 0), self._end)
        found = live.stop - live.start
        columns = kept + max(int(kept * GROWTH), LEAST)
        for n, buffer in enumerate(self._buffers):
            shape = (self._room, buffer.shape[1], columns, buffer.shape[3])
            grown = buffer.new_zeros(shape)
            grown[: self._slots, :, kept - found : kept] = buffer[: self._slots, :, live]
            self._buffers[n] = grown
        self._first, self._end = 0, kept

    def _show(self) -> None:
        self.keys, self.values = (
            b[: self._slots, :, self._first : self._end] for b in self._buffers
        )


class FullLayer(_Columns, DynamicLayer):  # type: ignore[misc]
    """Of a layer whose tokens see all tokens before them."""


class SlidingLayer(_Columns, DynamicSlidingWindowLayer):  # type: ignore[misc]
    """Of a layer whose tokens see a window. ``cumulative_length`` counts all columns."""

    def __init__(self, sliding_window: int) -> None:
        super().__init__(sliding_window=sliding_window)
        self.reach = sliding_window - 1

    def fit(self, width: int, room: int) -> None:
        super().fit(width, room)
        self.cumulative_length = width

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> Any:
        self.cumulative_length += 1
        return super().update(key_states, value_states)


class StateLayer(LinearAttentionLayer):  # type: ignore[misc]
    """Of a layer that keeps states of a fixed size in place of the tokens."""

    def begin(self, read: Any, room: int) -> None:
        self._slots = 0
        self._states: list[tuple[dict[int, Tensor], int, Tensor]] = []
        for name in ("conv_states", "recurrent_states"):
            shown = getattr(self, name)
            for index, state in getattr(read, name).items():
                if state is not None:
                    self._states.append((shown, index, state.new_zeros(room, *state.shape[1:])))
        for name in (
            "is_conv_states_initialized",
            "is_recurrent_states_initialized",
            "has_previous_state",
            "conv_kernel_size",
        ):
            setattr(self, name, dict(getattr(read, name)))
        self.dtype, self.device = read.dtype, read.device
        self._show()

    def enter(self, read: Any, prompt: int, slots: int, length: int) -> None:
        for shown, index, buffer in self._states:
            source = read.conv_states if shown is self.conv_states else read.recurrent_states
            buffer[self._slots : self._slots + slots] = source[index][prompt]
        self._slots += slots
        self._show()

    def leave(self, moved: Sequence[tuple[int, int]], slots: int) -> None:
        for source, target in moved:
            for _, _, buffer in self._states:
                buffer[target] = buffer[source]
        self._slots = slots
        self._show()

    def fit(self, width: int, room: int) -> None:
        """States have no columns."""

    def _show(self) -> None:
        for shown, index, buffer in self._states:
            shown[index] = buffer[: self._slots]
