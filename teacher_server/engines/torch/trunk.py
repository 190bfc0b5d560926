"""Forward passes of a model's body: token ids in, hidden states of chosen rows out.

Right padding needs no mask: attention is causal, and rows of padding are never
taken. Prompts of a group are padded on the left, so that distance by index
equals distance by position and sliding windows stay right. Padding repeats a
token of its own sequence, so that a sequence's non-finite values stay its own.
In a prefix tree they do not: masked columns are multiplied by 0, which NaN survives.

Long inputs run in chunks of columns against kept keys and values, so that no
mask or score matrix grows with the square of the length.
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

# Of the columns [start, stop): all that the attention may see of those so far.
Mask = Callable[[int, int], Tensor]

# Entries of one attention mask, or of one head-wise score matrix where the
# attention builds it: 2**25 float32 are 128 MiB.
MAXIMUM_CELLS = 2**25
MINIMUM_BLOCK = 16


@dataclass(frozen=True)
class CachedPrompts:
    """Keys and values of B prompts without their last tokens, and how they are padded.

    Attributes:
        lengths: int64 [B], tokens in the cache per prompt.
        mask: bool [B, max(lengths)], False on the left padding; None without any.
    """

    cache: Any
    lengths: NDArray[np.int64]
    mask: Tensor | None


class Trunk:
    """The transformer below the LM head.

    Args:
        module: takes ids and returns the hidden states after the final norm.
        config: of the text model.
        block_tokens: tokens of one forward; longer inputs run in chunks.
        cacheable: the cache is plain attention, so inputs can be cut.
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

    def flat(
        self,
        sequences: Sequence[Int32],
        rows: Sequence[NDArray[np.int64]],
        check: Callable[[], None],
    ) -> Tensor:
        """Hidden states [sum of rows, H]: for each sequence, of its indices ``rows``."""
        ids = self._padded(sequences, left=False)
        batch, length = ids.shape
        if self.cacheable and self._step(batch, length, masked=False) < length:
            return self._run(DynamicCache(config=self.config), ids, None, None, rows, check)
        check()
        output = self.module(input_ids=ids, use_cache=False)
        return _take(output.last_hidden_state, 0, rows, self.device)[0]

    def prompts(self, prompts: Sequence[Int32], check: Callable[[], None]) -> CachedPrompts:
        """Runs each prompt but for its last token; every prompt has two tokens or more."""
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
        """Hidden states of continuations, each behind the prompt of its ``index``.

        ``sequences`` start with the last token of their prompt; ``rows`` index them.
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
        """Hidden states of a tree's nodes ``rows``.

        The tree's root is the last token of the prompt; ``prompt`` is None for one of
        a single token. Only for layers that attend to everything before a token: a
        mask that is given whole replaces the model's own.
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
            # Eager attention adds its mask to the scores.
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
        """Runs ``ids`` [B, L] behind ``cache`` in chunks of columns.

        ``mask`` gives a chunk's mask, of the cached columns too; ``positions`` [B, L].
        """
        batch, length = ids.shape
        past = int(cache.get_seq_length())
        step = self._step(batch, past + length, masked=True)
        taken: list[Tensor] = []
        sources: list[NDArray[np.int64]] = []
        for start in range(0, length, step):
            check()
            stop = min(start + step, length)
            extra: dict[str, Tensor] = {}
            if mask is not None and positions is not None:
                extra["attention_mask"] = mask(start, stop)
                extra["position_ids"] = positions[:, start:stop]
            output = self.module(
                input_ids=ids[:, start:stop], past_key_values=cache, use_cache=True, **extra
            )
            hidden, source = _take(output.last_hidden_state, start, rows, self.device)
            taken.append(hidden)
            sources.append(source)
        if len(taken) == 1:
            return taken[0]
        order = np.argsort(np.concatenate(sources), kind="stable")
        return torch.cat(taken)[torch.from_numpy(order).to(self.device)]

    def _step(self, batch: int, total: int, masked: bool) -> int:
        """Columns of one forward over ``batch`` rows that see ``total`` columns."""
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


def _copied(cache: Any) -> Any:
    """A cache that grows by itself; the keys and values so far are not copied."""
    copied = copy.copy(cache)
    copied.layers = [copy.copy(layer) for layer in cache.layers]
    return copied


def _padding_mask(mask: Tensor | None, past: int) -> Mask | None:
    """Of a mask [B, past + L] of what is not padding."""
    return None if mask is None else lambda start, stop: mask[:, : past + stop]


def _take(
    hidden: Tensor, start: int, rows: Sequence[NDArray[np.int64]], device: torch.device
) -> tuple[Tensor, NDArray[np.int64]]:
    """The wanted rows of columns [start, start + L) of ``hidden`` [B, L, H].

    Also the place of each in the concatenation of ``rows``.
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
