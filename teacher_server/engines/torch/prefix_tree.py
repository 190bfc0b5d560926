"""Prefix trees of token sequences: what several sequences begin with is read once.

Pure functions over token ids. A tree is one sequence of a model's input: its nodes are
tokens in depth-first order, and each attends only to its ancestors and to itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Int64 = NDArray[np.int64]


@dataclass(frozen=True)
class PrefixTree:
    """N nodes in depth-first order; node 0 is the root, with which every sequence begins.

    Attributes:
        ids: int64 [N].
        depth: int64 [N], steps from the root.
        end: int64 [N]: node j and its descendants are the nodes j to ``end[j] - 1``, so
            node i attends to node j where j <= i < ``end[j]``.
        paths: for each sequence of n tokens its nodes from the root on, int64 [n + 1].
        added: int64, for each sequence the nodes that it has and none before it; the
            root counts for the first.
    """

    ids: Int64
    depth: Int64
    end: Int64
    paths: tuple[Int64, ...]
    added: Int64


def common_prefixes(ordered: Sequence[bytes]) -> Int64:
    """How many tokens each sequence shares with the one before it, int64 [n]; 0 for the first.

    Where the sequences, int32 tokens, are sorted as bytes, none before that one shares more.
    """
    shared = np.zeros(len(ordered), np.int64)
    tokens = [np.frombuffer(one, np.int32) for one in ordered]
    for index in range(1, len(tokens)):
        before, here = tokens[index - 1], tokens[index]
        length = min(len(before), len(here))
        apart = before[:length] != here[:length]
        at = int(apart.argmax()) if length else 0
        shared[index] = at if length and apart[at] else length
    return shared


def prefix_tree(root: int, ordered: Sequence[bytes]) -> PrefixTree:
    """The tree of sequences that follow the token ``root``; int32 tokens, sorted as bytes."""
    tokens = [np.frombuffer(one, np.int32) for one in ordered]
    shared = common_prefixes(ordered)
    added = np.array([len(one) for one in tokens]) - shared
    added[0] += 1
    count = int(added.sum())
    ids, depth = np.full(count, root, np.int64), np.zeros(count, np.int64)
    end = np.full(count, count, np.int64)
    paths: list[Int64] = []
    path, filled = np.zeros(1, np.int64), 1
    for sequence, common in zip(tokens, shared.tolist(), strict=True):
        end[path[common + 1 :]] = filled
        stop = filled + len(sequence) - common
        ids[filled:stop] = sequence[common:]
        depth[filled:stop] = np.arange(common + 1, len(sequence) + 1)
        path = np.concatenate([path[: common + 1], np.arange(filled, stop)])
        filled = stop
        paths.append(path)
    return PrefixTree(ids, depth, end, tuple(paths), added)


def cut(lengths: Int64, shared: Int64, limit: int, pass_cost: int) -> list[tuple[int, int]]:
    """Cuts sorted sequences into trees [start, stop) of at most ``limit`` nodes each.

    The cuts have the fewest nodes in all, with ``pass_cost`` nodes added for each tree.
    A sequence that is longer than ``limit`` is a tree of its own.

    Args:
        lengths: int64 [n], tokens of each sequence without the root.
        shared: int64 [n], what ``common_prefixes`` returns.
    """
    count = len(lengths)
    before = np.concatenate([[0], np.cumsum(lengths - shared)])
    # extra[i]: cost of the trees before i, beyond ``before[i]``, and of starting a tree at i.
    extra = np.zeros(count, np.int64)
    starts = np.zeros(count + 1, np.int64)
    first, cost = 0, 0
    for stop in range(1, count + 1):
        extra[stop - 1] = cost + shared[stop - 1] + 1 + pass_cost
        while first < stop - 1 and 1 + shared[first] + before[stop] - before[first] > limit:
            first += 1
        starts[stop] = first + int(extra[first:stop].argmin())
        cost = int(extra[starts[stop]])
    found: list[tuple[int, int]] = []
    stop = count
    while stop:
        found.append((int(starts[stop]), stop))
        stop = int(starts[stop])
    return found[::-1]
