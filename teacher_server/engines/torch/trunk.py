"""Forward passes of a model below its LM head: token ids in, hidden states of chosen rows out.

Padding on the right needs no mask: attention is causal, and no row of the padding is
taken. The prompts of a group are padded on the left instead, so that a distance in
columns is a distance in positions and sliding windows stay right. Padding repeats a
token of the same sequence, so that values that are not finite stay within their
sequence. In a prefix tree they do not: a masked column is multiplied by 0, and 0 times
NaN is NaN.

Long inputs are read in blocks of columns, each against the keys and values of those
before it, so that no mask and no score matrix grows with the square of the length.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from teacher_proto.types import Int32
from torch import Tensor
from transformers import DynamicCache

from teacher_server.engines.torch.prefix_tree import PrefixTree

# (start, stop) -> the mask of columns [start, stop) over all columns up to ``stop``: what
# their attention may see.
Mask = Callable[[int, int], Tensor]

# Entries of one attention mask or, where the attention builds them, of the score
# matrices of all heads: 2**25 float32 are 128 MiB.
MAXIMUM_CELLS = 2**25
MINIMUM_BLOCK = 16


@dataclass(frozen=True)
class CachedPrompts:
    """Keys and values of B prompts, each without its last token, padded on the left.

    Attributes:
        lengths: int64 [B], tokens of each prompt in the cache.
        mask: bool [B, max(lengths)], False on the padding; None where there is none.
    """

    cache: Any
    lengths: NDArray[np.int64]
    mask: Tensor | None


class Trunk:
    """A transformer without its LM head.

    Args:
        module: takes ids; its output holds the hidden states after the final norm.
        config: the configuration of the text model.
        block_tokens: tokens of one forward; longer inputs are read in blocks.
        cacheable: its attention is plain, so that an input can be cut into blocks.
    """

    def __init__(self, module: Any, config: Any, block_tokens: int, cacheable: bool) -> None:
        self.module = module
        self.config = config
        self.block_tokens = block_tokens
        self.cacheable = cacheable
        weight = next(module.parameters())
        self.device: torch.device = weight.device
        self.dtype: torch.dtype = weight.dtype
        eager = getattr(config, "_attn_implementation", None) == "eager"
        self._score_heads = int(getattr(config, "num_attention_heads", 1)) if eager else 0
        self._eager = eager
        # What is called between the layers of the forward that runs.
        self._check: Callable[[], None] = _nothing
        for layer in _layers(module, config):
            layer.register_forward_pre_hook(lambda *_: self._check())

    def flat(
        self,
        sequences: Sequence[Int32],
        rows: Sequence[NDArray[np.int64]],
        check: Callable[[], None],
    ) -> Tensor:
        """Hidden states of whole sequences, [rows in all, H].

        Args:
            sequences: int32 [L] each, padded to one shape.
            rows: for each sequence the indices whose hidden states are taken.
            check: called before every forward; what it raises ends the work.
        """
        ids = self._padded(sequences, left=False)
        batch, length = ids.shape
        if self.cacheable and self._step(batch, length, masked=False) < length:
            return self._run(DynamicCache(config=self.config), ids, None, None, rows, check)
        output = self._forward(check, input_ids=ids, use_cache=False)
        return _take(output.last_hidden_state, 0, rows, self.device)[0]

    def prompts(self, prompts: Sequence[Int32], check: Callable[[], None]) -> CachedPrompts:
        """Reads each prompt up to its last token, which is left for the continuations.

        Every prompt has at least two tokens; ``check`` as in ``flat``.
        """
        read = [prompt[:-1] for prompt in prompts]
        ids = self._padded(read, left=True)
        lengths = np.array([len(one) for one in read])
        width = ids.shape[1]
        mask = positions = None
        if lengths.min() < width:
            offsets = torch.from_numpy(width - lengths).to(self.device).unsqueeze(-1)
            columns = torch.arange(width, device=self.device)
            mask = columns >= offsets
            positions = (columns - offsets).clamp(min=0)
        cache = DynamicCache(config=self.config)
        nothing = [np.zeros(0, np.int64)] * len(read)
        self._run(cache, ids, _padding_mask(mask, 0), positions, nothing, check)
        return CachedPrompts(cache, lengths, mask)

    def continuations(
        self,
        prompts: CachedPrompts,
        index: Sequence[int],
        sequences: Sequence[Int32],
        rows: Sequence[NDArray[np.int64]],
        check: Callable[[], None],
    ) -> Tensor:
        """Hidden states of continuations after their prompts, [rows in all, H].

        Args:
            index: for each continuation, which of the prompts it follows.
            sequences: the continuations, each after the last token of its prompt.
            rows: for each the indices into its sequence.
            check: as in ``flat``.
        """
        chosen = torch.tensor(index, device=self.device)
        cache = _copied(prompts.cache)
        cache.batch_select_indices(chosen)
        ids = self._padded(sequences, left=False)
        mask = positions = None
        if prompts.mask is not None:
            before = prompts.mask[chosen]
            mask = torch.cat([before, torch.ones_like(ids, dtype=torch.bool)], dim=-1)
            starts = prompts.lengths[list(index)]
            last = max(int(s) + len(q) - 1 for s, q in zip(starts, sequences, strict=True))
            columns = torch.arange(ids.shape[1], device=self.device)
            first = torch.from_numpy(starts).to(self.device).unsqueeze(-1)
            positions = (first + columns).clamp(max=last)
        past = prompts.cache.get_seq_length()
        return self._run(cache, ids, _padding_mask(mask, past), positions, rows, check)

    def prefix_tree(
        self,
        prompt: CachedPrompts | None,
        tree: PrefixTree,
        rows: NDArray[np.int64],
        check: Callable[[], None],
    ) -> Tensor:
        """Hidden states of the nodes ``rows`` of a tree after its prompt, [rows, H].

        Works only where every layer attends to everything before a token, since the
        mask of the tree takes the place of the model's own masks.

        Args:
            prompt: one prompt; None for a prompt of one token, which is the tree's root.
            tree: its root is the last token of the prompt.
            check: as in ``flat``.
        """
        past = 0 if prompt is None else int(prompt.lengths[0])
        cache = DynamicCache(config=self.config) if prompt is None else _copied(prompt.cache)
        end = torch.from_numpy(tree.end).to(self.device)
        nodes = torch.arange(len(end), device=self.device)

        def mask(start: int, stop: int) -> Tensor:
            reading, read = nodes[start:stop, None], nodes[:stop]
            seen = (read <= reading) & (reading < end[:stop])
            seen = torch.nn.functional.pad(seen, (past, 0), value=True)[None, None]
            if not self._eager:
                return seen
            # Eager attention adds the mask to its scores.
            added = torch.zeros(seen.shape, dtype=self.dtype, device=self.device)
            return added.masked_fill_(~seen, torch.finfo(self.dtype).min)

        ids = torch.from_numpy(tree.ids).to(self.device).unsqueeze(0)
        positions = torch.from_numpy(past + tree.depth).to(self.device).unsqueeze(0)
        return self._run(cache, ids, mask, positions, [rows], check)

    def _run(
        self,
        cache: Any,
        ids: Tensor,
        mask: Mask | None,
        positions: Tensor | None,
        rows: Sequence[NDArray[np.int64]],
        check: Callable[[], None],
    ) -> Tensor:
        """Reads ``ids`` [B, L] after the columns of ``cache``, in blocks of columns.

        ``mask`` covers the cached columns too; ``positions`` [B, L] goes with it.
        """
        batch, length = ids.shape
        past = int(cache.get_seq_length())
        step = self._step(batch, past + length, masked=True)
        taken: list[Tensor] = []
        sources: list[NDArray[np.int64]] = []
        for start in range(0, length, step):
            stop = min(start + step, length)
            extra: dict[str, Tensor] = {}
            if mask is not None and positions is not None:
                extra["attention_mask"] = mask(start, stop)
                extra["position_ids"] = positions[:, start:stop]
            inputs = {"input_ids": ids[:, start:stop], "past_key_values": cache}
            output = self._forward(check, **inputs, use_cache=True, **extra)
            hidden, source = _take(output.last_hidden_state, start, rows, self.device)
            taken.append(hidden)
            sources.append(source)
        if len(taken) == 1:
            return taken[0]
        order = np.argsort(np.concatenate(sources), kind="stable")
        return torch.cat(taken)[torch.from_numpy(order).to(self.device)]

    def _forward(self, check: Callable[[], None], **inputs: Any) -> Any:
        """One forward; ``check`` is called before it and between its layers, and may run another
        forward meanwhile."""
        check()
        before, self._check = self._check, check
        try:
            return self.module(**inputs)
        finally:
            self._check = before

    def _step(self, batch: int, total: int, masked: bool) -> int:
        """Columns of one forward over ``batch`` sequences that see ``total`` columns."""
        step = self.block_tokens // batch
        heads = max(self._score_heads, 1 if masked else 0)
        if heads:
            step = min(step, MAXIMUM_CELLS // (batch * total * heads))
        return max(step, MINIMUM_BLOCK)

    def _padded(self, sequences: Sequence[Int32], left: bool) -> Tensor:
        """int64 [B, longest] on the device."""
        width = max(len(sequence) for sequence in sequences)
        ids = np.empty((len(sequences), width), np.int64)
        for row, sequence in zip(ids, sequences, strict=True):
            cut = width - len(sequence) if left else len(sequence)
            row[cut:], row[:cut] = (sequence, sequence[0]) if left else (sequence[-1], sequence)
        return torch.from_numpy(ids).to(self.device)


def _layers(module: Any, config: Any) -> torch.nn.ModuleList:
    """The decoder's layers: of the lists with one module for each, the one with the most
    parameters. Empty where the model keeps them otherwise, and then nothing is called between
    them."""
    count = getattr(config, "num_hidden_layers", None)
    lists = [one for one in module.modules() if isinstance(one, torch.nn.ModuleList)]
    found = [one for one in lists if len(one) == count]
    if not found:
        return torch.nn.ModuleList()
    return max(found, key=lambda one: sum(p.numel() for p in one.parameters()))


def _copied(cache: Any) -> Any:
    """A cache that grows on its own and shares the keys and values that are there."""
    copied = copy.copy(cache)
    copied.layers = [copy.copy(layer) for layer in cache.layers]
    return copied


def _padding_mask(mask: Tensor | None, past: int) -> Mask | None:
    """From bool [B, past + L], False on the padding."""
    return None if mask is None else lambda start, stop: mask[:, : past + stop]


def _take(
    hidden: Tensor, start: int, rows: Sequence[NDArray[np.int64]], device: torch.device
) -> tuple[Tensor, NDArray[np.int64]]:
    """Those of ``rows`` that lie in the columns [start, start + L) of ``hidden`` [B, L, H].

    Returns their hidden states [n, H], and the place of each in the concatenation of
    ``rows``, int64 [n].
    """
    length = hidden.shape[1]
    flat: list[NDArray[np.int64]] = []
    places: list[NDArray[np.int64]] = []
    offset = 0
    for number, wanted in enumerate(rows):
        inside = np.flatnonzero((wanted >= start) & (wanted < start + length))
        flat.append(number * length + wanted[inside] - start)
        places.append(offset + inside)
        offset += len(wanted)
    index = torch.from_numpy(np.concatenate(flat)).to(device)
    return hidden.flatten(0, 1)[index], np.concatenate(places)


def _nothing() -> None:
    """There is nothing to look at between the layers."""
