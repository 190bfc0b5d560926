"""Which of the waiting spans run together: pure functions over token ids and lengths.

There are three kinds of batch. A *flat* batch reads the prompt and the continuation of
each item in one pass. A *group* batch reads each prompt once, then the continuations
against the kept keys and values. A *prefix-tree* batch reads one prompt once, and what
several of its continuations begin with once too. Lengths are in tokens:

    prompt_length P  tokens of the prompt
    length L         tokens of the continuation up to its last selected position,
                     which is included; that token is scored and not read

In a flat batch an item reads P + L - 1 tokens. In a group a prompt reads P - 1 tokens
and each of its continuations L: the prompt's last token and L - 1 of its own. A tree
reads the prompt's last token and each distinct beginning of its continuations' L - 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from teacher_server.engines.torch.prefix_tree import Int64, common_prefixes, cut

ID_BYTES = 4
# A batch may pad by this share of its real tokens, or by this many tokens where that is
# more: less padding would cost one more pass, which takes longer.
PADDING_SHARE = 0.125
PADDING_TOKENS = 64
# A prompt is shared when that saves at least this many tokens.
MINIMUM_SAVING = 32
# The attention of a tree grows with the square of its nodes. A tree therefore has to save
# this share of the tokens that would be read without it, and is cut into trees of at most
# TREE_TOKENS nodes, or of twice its longest continuation where that is more.
TREE_SAVING_SHARE = 0.25
TREE_TOKENS = 2048


@dataclass(frozen=True)
class Item:
    """One span that waits, as packing sees it.

    Attributes:
        key: names the span; in the order of arrival.
        prompt: the int32 ids of the prompt, as bytes.
        read: the int32 ids of the continuation that are read, as bytes.
        outside_trees: it must not be read in a tree.
    """

    key: int
    prompt: bytes
    read: bytes
    outside_trees: bool = False

    @property
    def prompt_length(self) -> int:
        return len(self.prompt) // ID_BYTES

    @property
    def length(self) -> int:
        return len(self.read) // ID_BYTES + 1

    @property
    def flat_tokens(self) -> int:
        return self.prompt_length + self.length - 1


@dataclass(frozen=True)
class FlatBatch:
    """Items that one pass reads, padded on the right."""

    items: tuple[Item, ...]


@dataclass(frozen=True)
class GroupBatch:
    """Prompts that are read once, padded on the left, then passes over their items."""

    prompts: tuple[bytes, ...]
    passes: tuple[tuple[Item, ...], ...]

    @property
    def items(self) -> tuple[Item, ...]:
        return tuple(item for batch_pass in self.passes for item in batch_pass)


@dataclass(frozen=True)
class PrefixTreeBatch:
    """Items of one prompt: it is read once, then each pass reads its items as a prefix tree.

    The items of a pass are sorted by ``read``.
    """

    passes: tuple[tuple[Item, ...], ...]

    @property
    def prompt(self) -> bytes:
        return self.passes[0][0].prompt

    @property
    def items(self) -> tuple[Item, ...]:
        return tuple(item for batch_pass in self.passes for item in batch_pass)


Batch = FlatBatch | GroupBatch | PrefixTreeBatch


def pass_tokens(batch: Batch) -> list[int]:
    """Tokens that each pass of a batch reads, without its padding."""
    if isinstance(batch, FlatBatch):
        return [sum(item.flat_tokens for item in batch.items)]
    if isinstance(batch, PrefixTreeBatch):
        prompt = batch.items[0].prompt_length - 1
        return [prompt] * (prompt > 0) + [_tree_tokens(one) for one in batch.passes]
    lengths = {item.prompt: item.prompt_length for item in batch.items}
    prompts = sum(lengths[prompt] - 1 for prompt in batch.prompts)
    return [prompts, *(sum(item.length for item in one) for one in batch.passes)]


@dataclass(frozen=True)
class Packing:
    """What a model and its settings allow.

    Attributes:
        tokens: padded tokens of one pass at most; an item above it runs alone.
        cached_tokens: padded tokens whose keys and values one pass of continuations
            holds at most, the copies of their prompts included.
        share_prompts: several continuations may read the cache of one prompt.
        prefix_trees: the model can read prefix trees; requires ``share_prompts``.
        alone: every item runs by itself with its own shape.
    """

    tokens: int
    cached_tokens: int
    share_prompts: bool = True
    prefix_trees: bool = True
    alone: bool = False


def next_batch(pending: Sequence[Item], packing: Packing) -> Batch:
    """The batch to run next; it always holds ``pending[0]``, so that nothing waits for ever.

    ``pending`` is not empty and in the order of arrival. Takes O(n log n) time.
    """
    first = pending[0]
    if packing.alone:
        return FlatBatch((first,))
    readable = packing.share_prompts and packing.prefix_trees
    trees = _tree_batches(pending, packing) if readable else {}
    if first.prompt in trees and not first.outside_trees:
        return trees[first.prompt]
    left = [item for item in pending if item.outside_trees or item.prompt not in trees]
    groups = _groups(left) if packing.share_prompts else {}
    shared = {prompt: items for prompt, items in groups.items() if _worth_sharing(items)}
    if first.prompt in shared:
        return _group_batch(first.prompt, shared, packing)
    flat = [item for item in left if item.prompt not in shared]
    return FlatBatch(neighbours(flat, packing.tokens))


def _groups(items: Sequence[Item]) -> dict[bytes, list[Item]]:
    groups: dict[bytes, list[Item]] = {}
    for item in items:
        groups.setdefault(item.prompt, []).append(item)
    return groups


def _worth_sharing(items: Sequence[Item]) -> bool:
    return (len(items) - 1) * (items[0].prompt_length - 1) >= MINIMUM_SAVING


def _tree_batches(pending: Sequence[Item], packing: Packing) -> dict[bytes, PrefixTreeBatch]:
    """Prompt -> the trees of its items, where trees save enough."""
    groups = _groups([item for item in pending if not item.outside_trees])
    found = {prompt: _trees(items, packing) for prompt, items in groups.items()}
    return {prompt: batch for prompt, batch in found.items() if batch is not None}


def _trees(items: Sequence[Item], packing: Packing) -> PrefixTreeBatch | None:
    """The items of one prompt as trees; None when trees save too little."""
    prefix = items[0].prompt_length - 1
    if _worth_sharing(items):
        otherwise = prefix + sum(item.length for item in items)
    else:
        otherwise = sum(item.flat_tokens for item in items)
    most = otherwise - max(MINIMUM_SAVING, TREE_SAVING_SHARE * otherwise)
    ordered = sorted(items, key=lambda item: (item.read, item.key))
    shared = common_prefixes([item.read for item in ordered])
    lengths: Int64 = np.array([item.length - 1 for item in ordered])
    if prefix + 1 + int((lengths - shared).sum()) > most:
        return None
    limit = max(min(packing.tokens, TREE_TOKENS), 2 * int(lengths.max()))
    limit = min(limit, packing.cached_tokens - prefix)
    cuts = cut(lengths, shared, limit, PADDING_TOKENS)
    batch = PrefixTreeBatch(tuple(tuple(ordered[start:stop]) for start, stop in cuts))
    return batch if sum(pass_tokens(batch)) <= most else None


def _tree_tokens(items: Sequence[Item]) -> int:
    shared = common_prefixes([item.read for item in items])
    return 1 + sum(item.length - 1 for item in items) - int(shared.sum())


def _fits(count: int, longest: int, real: int, budget: int) -> bool:
    """Whether ``count`` sequences padded to ``longest`` fit the budget and waste little of it."""
    padded = count * longest
    return padded <= budget and padded - real <= max(PADDING_TOKENS, PADDING_SHARE * real)


def neighbours(items: Sequence[Item], budget: int) -> tuple[Item, ...]:
    """The first item and those nearest to it in length, as many as fit one pass."""
    first = items[0]
    ordered = sorted(items, key=lambda item: (item.flat_tokens, item.key))
    low = high = ordered.index(first)
    longest = real = first.flat_tokens
    while True:
        shorter = ordered[low - 1] if low > 0 else None
        longer = ordered[high + 1] if high + 1 < len(ordered) else None
        take_longer = longer is not None and (
            shorter is None
            or longer.flat_tokens - first.flat_tokens <= first.flat_tokens - shorter.flat_tokens
        )
        candidate = longer if take_longer else shorter
        if candidate is None:
            break
        width = max(longest, candidate.flat_tokens)
        if not _fits(high - low + 2, width, real + candidate.flat_tokens, budget):
            break
        longest, real = width, real + candidate.flat_tokens
        low, high = (low, high + 1) if take_longer else (low - 1, high)
    return tuple(ordered[low : high + 1])


def _group_batch(first: bytes, shared: dict[bytes, list[Item]], packing: Packing) -> GroupBatch:
    """The first group, and those later ones whose prompts and continuations fit beside it."""
    prompts = [first]
    items = list(shared[first])
    longest = real = items[0].prompt_length - 1
    tokens = sum(item.length for item in items)
    for prompt, members in shared.items():
        if prompt == first:
            continue
        prefix = members[0].prompt_length - 1
        more = sum(item.length for item in members)
        width = max(longest, prefix)
        fits = _fits(len(prompts) + 1, width, real + prefix, packing.tokens)
        if not fits or tokens + more > packing.tokens:
            continue
        prompts.append(prompt)
        items.extend(members)
        longest, real, tokens = width, real + prefix, tokens + more
    return GroupBatch(tuple(prompts), _passes(items, longest, packing))


def _passes(items: Sequence[Item], prefix: int, packing: Packing) -> tuple[tuple[Item, ...], ...]:
    """Cuts the continuations of a batch into passes of similar lengths.

    A pass stays within both budgets of ``packing``; an item that exceeds them alone is
    a pass of its own. ``prefix``: tokens of the longest prompt in the cache.
    """
    passes: list[tuple[Item, ...]] = []
    current: list[Item] = []
    real = 0
    for item in sorted(items, key=lambda item: (-item.length, item.key)):
        longest = current[0].length if current else item.length
        count = len(current) + 1
        fits = (
            _fits(count, longest, real + item.length, packing.tokens)
            and count * (prefix + longest) <= packing.cached_tokens
        )
        if current and not fits:
            passes.append(tuple(current))
            current, real = [], 0
        current.append(item)
        real += item.length
    passes.append(tuple(current))
    return tuple(passes)
