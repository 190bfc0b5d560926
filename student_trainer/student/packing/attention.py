"""Attention over a packed input: every segment by itself, through the model's own attention.

transformers looks up its attention and its masks by a name in the model's configuration. Inside
``segmented`` that name is one of ours, whose functions pass everything on to those of the model's
own name. Only inside ``reading`` do they differ: the mask then is a ``SegmentMask``, and attention
gives the model's own function one segment at a time, with the keys that it sees. So there is no
mask and no score between two sequences, and what the model computes beside the scores (a softcap,
sinks, a scale) is its own.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from student_trainer.student.packing.layout import Segment

OURS = "segments_"
# Entries of a mask at most: a long segment after a prompt is read in blocks of its tokens.
MASK_CELLS = 2**22

_segments: ContextVar[Reading | None] = ContextVar("packed_segments", default=None)


class NotPackableError(Exception):
    """The model's attention cannot be computed by segments."""


class SegmentMask:
    """Who attends to whom in a packed input. It takes the place of a mask on its way through the
    model, and makes the masks of segments that need one, each once.

    Args:
        window: a token sees so many, itself included; None for all of its sequence before it.
    """

    def __init__(self, segments: Sequence[Segment], window: int | None) -> None:
        self.segments = segments
        self.lengths = [segment.length for segment in segments]
        self._window = window
        self._kept: dict[tuple[Any, ...], Tensor] = {}

    def before(self, segment: Segment) -> int:
        """Tokens of the beginning that it follows."""
        return 0 if segment.beginning is None else self.segments[segment.beginning].length

    def is_plain(self, segment: Segment) -> bool:
        """Whether its tokens see exactly those before them in the segment."""
        before = self.before(segment)
        return not before and (self._window is None or self._window >= segment.length)

    def blocks(self, segment: Segment) -> list[Block]:
        """Its tokens, cut where their masks would be large or would hide most keys."""
        before, length = self.before(segment), segment.length
        step = length
        if not self.is_plain(segment):
            step = max(self._window or 0, MASK_CELLS // (before + length), 1)
        found = []
        for start in range(0, length, step):
            stop = min(start + step, length)
            first = 0 if self._window is None else max(before + start + 1 - self._window, 0)
            found.append(Block(start, stop, first, before + stop))
        return found

    def added(self, segment: Segment, block: Block, like: Tensor) -> Tensor:
        """[1, 1, tokens, keys] of a block, in the dtype of ``like``: 0 where a token sees a key,
        and -inf where it does not. Every token sees itself."""
        before = self.before(segment)
        key = (before + block.start, block.tokens, block.first, like.dtype, like.device)
        if key not in self._kept:
            start = before + block.start
            token = torch.arange(start, start + block.tokens, device=like.device)[:, None]
            seen = torch.arange(block.first, block.last, device=like.device)[None]
            hidden = seen > token
            if self._window is not None:
                hidden |= seen <= token - self._window
            added = torch.zeros(hidden.shape, dtype=like.dtype, device=like.device)
            self._kept[key] = added.masked_fill_(hidden, -math.inf)[None, None]
        return self._kept[key]


class Block(NamedTuple):
    """Tokens [start, stop) of a segment, which see some of the keys [first, last) of the segment
    with its beginning."""

    start: int
    stop: int
    first: int
    last: int

    @property
    def tokens(self) -> int:
        return self.stop - self.start


class Reading:
    """One pass over a packed input.

    Attributes:
        masks: those that the model has asked for, by their window.
        calls: how often a layer's attention was computed by segments.
    """

    def __init__(self, segments: Sequence[Segment]) -> None:
        self.segments = segments
        self.masks: dict[int | None, SegmentMask] = {}
        self.calls = 0

    def mask(self, window: int | None) -> SegmentMask:
        return self.masks.setdefault(window, SegmentMask(self.segments, window))


@contextmanager
def segmented(decoder: nn.Module) -> Iterator[None]:
    """Inside, ``reading`` can be used, and backward passes over what was read. Everything else is
    computed as outside.

    Raises:
        NotPackableError: the model's configuration names no attention that we know.
    """
    configs = _configs(decoder)
    before = [config._attn_implementation for config in configs]
    try:
        for config, name in zip(configs, before, strict=True):
            if not str(name).startswith(OURS):
                config._attn_implementation_internal = _registered(str(name))
        yield
    finally:
        for config, name in zip(configs, before, strict=True):
            config._attn_implementation_internal = name


@contextmanager
def reading(segments: Sequence[Segment]) -> Iterator[None]:
    """Inside, the model reads one row of tokens that these segments cut up.

    Raises:
        NotPackableError: after it, when the model did not compute attention by them.
    """
    found = Reading(segments)
    token = _segments.set(found)
    try:
        yield
    finally:
        _segments.reset(token)
    if not found.calls:
        raise NotPackableError("its attention is not that of transformers' interface")


def _configs(decoder: nn.Module) -> list[Any]:
    found = {
        id(config): config
        for module in decoder.modules()
        if hasattr(config := getattr(module, "config", None), "_attn_implementation_internal")
    }
    return list(found.values())


def _registered(name: str) -> str:
    """Our name for the model's own, whose functions are registered."""
    ours = OURS + name
    known = name == "eager" or name == "sdpa" or name.startswith("flash_attention")
    if not known or name not in AttentionMaskInterface():
        raise NotPackableError(f"its attention is computed by {name}")
    if ours not in AttentionMaskInterface():
        AttentionInterface.register(ours, partial(_attention, name))
        AttentionMaskInterface.register(ours, partial(_mask, name))
    return ours


def _mask(name: str, *args: Any, **kwargs: Any) -> Any:
    """The mask that a model asks for; its own where nothing packed is read."""
    found = _segments.get()
    if found is None:
        return AttentionMaskInterface()[name](*args, **kwargs)
    if kwargs.get("use_vmap"):
        raise NotPackableError("its mask has a rule of its own")
    window = kwargs.get("local_size")
    if window is not None and window == getattr(kwargs["config"], "attention_chunk_size", None):
        raise NotPackableError("its attention is cut into chunks")
    return found.mask(window)


def _attention(
    name: str,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    **kwargs: Any,
) -> tuple[Tensor, Any]:
    """[1, N, heads, D], as transformers' attention functions give it.

    Args:
        query, key, value: [1, heads, N, D]; keys and values may have fewer heads.
    """
    own = _own(name, module)
    if not isinstance(attention_mask, SegmentMask):
        return own(module, query, key, value, attention_mask, **kwargs)  # type: ignore[no-any-return]
    found = _segments.get()
    if found is not None:  # None in a backward pass that computes its layers again
        found.calls += 1
    kwargs.pop("position_ids", None)
    if name.startswith("flash"):
        return _varlen(own, name, module, query, key, value, attention_mask, **kwargs), None
    lengths = attention_mask.lengths
    # One split, whose backward pass is one concatenation.
    queries, keys, values = (torch.split(x, lengths, dim=2) for x in (query, key, value))
    parts = []
    for index, segment in enumerate(attention_mask.segments):
        k, v = keys[index], values[index]
        if segment.beginning is not None:
            k = torch.cat([keys[segment.beginning], k], dim=2)
            v = torch.cat([values[segment.beginning], v], dim=2)
        for block in attention_mask.blocks(segment):
            added = None
            if name == "eager" or not attention_mask.is_plain(segment):
                added = attention_mask.added(segment, block, query)
            q = queries[index][:, :, block.start : block.stop]
            seen = slice(block.first, block.last)
            part, _ = own(module, q, k[:, :, seen], v[:, :, seen], added, **kwargs)
            parts.append(part)
    return torch.cat(parts, dim=1), None


def _varlen(
    own: Callable[..., Any],
    name: str,
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: SegmentMask,
    **kwargs: Any,
) -> Tensor:
    """Flash attention of all segments in one call, which takes the windows from its arguments."""
    device, bounds = query.device, [(s.start, s.stop) for s in mask.segments]
    order: list[Tensor] = []
    for segment in mask.segments:
        if segment.beginning is not None:
            order.append(torch.arange(*bounds[segment.beginning]))
        order.append(torch.arange(segment.start, segment.stop))
    seen = torch.cat(order).to(device)
    read = [segment.length + mask.before(segment) for segment in mask.segments]

    def ends(lengths: list[int]) -> Tensor:
        return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device)

    ours, module.config._attn_implementation_internal = module.config._attn_implementation, name
    try:
        found, _ = own(
            module,
            query,
            key.index_select(2, seen),
            value.index_select(2, seen),
            None,
            cu_seq_lens_q=ends(mask.lengths),
            cu_seq_lens_k=ends(read),
            max_length_q=max(mask.lengths),
            max_length_k=max(read),
            **kwargs,
        )
    finally:
        module.config._attn_implementation_internal = ours
    return found  # type: ignore[no-any-return]


def _own(name: str, module: nn.Module) -> Callable[..., Any]:
    """The model's own attention function of this name."""
    home = sys.modules[type(module).__module__]
    if name == "eager":
        if not hasattr(home, "eager_attention_forward"):
            raise NotPackableError("its eager attention is no function")
        return home.eager_attention_forward  # type: ignore[no-any-return]
    interface = getattr(home, "ALL_ATTENTION_FUNCTIONS", None) or AttentionInterface()
    return interface[name]  # type: ignore[no-any-return]
