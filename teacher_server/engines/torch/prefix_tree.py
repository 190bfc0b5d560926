"""Prefix trees of token sequences: what several of them begin with is read once.

Pure functions over token ids. A tree is one row of a model's input: its nodes are
tokens in depth-first order, and each attends to its ancestors and itself only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Int64 = NDArray[np.int64]


@dataclass(frozen=True)
class PrefixTree:
    """N nodes in depth-first order; node 0 is a root that every sequence starts with.

    Attributes:
        ids: int64 [N].
        depth: int64 [N], steps from the root.
        end: int64 [N]: node j and its descendants are j to ``end[j] - 1``, so node i
            attends to node j where j <= i < ``end[j]``.
        paths: per sequence of n tokens int64 [n + 1], its nodes from the root on.
        added: int64, per sequence: nodes that none before it has; the first has the root.
    """

    ids: Int64
    depth: Int64
    end: Int64
    paths: tuple[Int64, ...]
    added: Int64


def common_prefixes(ordered: Sequence[bytes]) -> Int64:
    """int64 [n]: tokens (int32) that each sequence shares with the one before it; 0 first.

    In sequences sorted as bytes that is what it shares with any before it.
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
    """The tree of sequences (int32 tokens), sorted as bytes, behind the token ``root``."""
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

    The cuts are those with the fewest nodes in all, ``pass_cost`` added for each tree.
    A sequence that does not fit makes a tree of its own.

    Args:
        lengths: tokens of each sequence, without the root.
        shared: of ``common_prefixes``.
    """
    count = len(lengths)
    before = np.concatenate([[0], np.cumsum(lengths - shared)])
    # extra[i]: what the trees up to i cost beyond ``before[i]``, and the one that starts there.
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
