"""Prefix trees against brute force."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from teacher_server.engines.torch.prefix_tree import common_prefixes, cut, prefix_tree

# Few ids, so that much is shared; one above 255, for the order is that of bytes.
sequences = st.lists(st.lists(st.sampled_from([0, 1, 256, 513]), max_size=7), min_size=1).map(
    lambda lists: sorted(np.array(one, np.int32).tobytes() for one in lists)
)
ROOT = 99


def beginnings(ordered: list[bytes]) -> set[bytes]:
    return {one[:stop] for one in ordered for stop in range(0, len(one) + 1, 4)}


@given(sequences)
def test_each_node_sees_its_own_sequence_and_nothing_else(ordered: list[bytes]) -> None:
    tree = prefix_tree(ROOT, ordered)
    count = len(tree.ids)
    assert count == len(beginnings(ordered))
    index = np.arange(count)
    seen = (index <= index[:, None]) & (index[:, None] < tree.end)
    for one, path in zip(ordered, tree.paths, strict=True):
        tokens = [ROOT, *np.frombuffer(one, np.int32).tolist()]
        assert len(path) == len(tokens)
        for depth, node in enumerate(path):
            assert np.flatnonzero(seen[node]).tolist() == path[: depth + 1].tolist()
            assert tree.ids[path[: depth + 1]].tolist() == tokens[: depth + 1]
            assert tree.depth[node] == depth


@given(sequences)
def test_each_sequence_pays_for_the_nodes_that_none_before_it_has(ordered: list[bytes]) -> None:
    tree = prefix_tree(ROOT, ordered)
    known: set[bytes] = set()
    for index, added in enumerate(tree.added):
        more = beginnings(ordered[: index + 1])
        assert added == len(more - known)
        known = more


@given(sequences, st.integers(1, 30), st.integers(0, 5))
def test_cuts_are_the_cheapest_that_fit(ordered: list[bytes], limit: int, cost: int) -> None:
    ordered = ordered[:9]
    lengths = np.array([len(one) // 4 for one in ordered])
    cuts = cut(lengths, common_prefixes(ordered), limit, cost)

    def price(places: list[tuple[int, int]]) -> int:
        return sum(len(beginnings(ordered[start:stop])) + cost for start, stop in places)

    def fits(places: list[tuple[int, int]]) -> bool:
        return all(
            stop - start == 1 or len(beginnings(ordered[start:stop])) <= limit
            for start, stop in places
        )

    count = len(ordered)
    every = [
        list(pairwise([0, *(at for at in range(1, count) if chosen >> at & 1), count]))
        for chosen in range(0, 2**count, 2)
    ]
    assert fits(cuts)
    assert [start for start, _ in cuts] == [0, *(stop for _, stop in cuts[:-1])]
    assert cuts[-1][1] == count
    assert price(cuts) == min(price(each) for each in every if fits(each))
