"""Properties of the batch planner over arbitrary waiting sequences."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from teacher_server.engines.torch.packing import (
    MINIMUM_SAVING,
    PADDING_SHARE,
    PADDING_TOKENS,
    TREE_SAVING_SHARE,
    TREE_TOKENS,
    Batch,
    FlatBatch,
    GroupBatch,
    Item,
    Packing,
    PrefixTreeBatch,
    next_batch,
    pass_tokens,
)


def ints(*values: int) -> bytes:
    return np.array(values, np.int32).tobytes()


@st.composite
def waiting(draw: st.DrawFn) -> list[Item]:
    """Items of a few prompts; some read one stem of 300 tokens and leave it somewhere."""
    prompts = draw(st.lists(st.integers(1, 400), min_size=1, max_size=6))
    chosen = draw(st.lists(st.integers(0, len(prompts) - 1), min_size=1, max_size=30))
    items = []
    for key, number in enumerate(chosen):
        length = draw(st.integers(0, 299))
        kept = draw(st.sampled_from([0, length // 2, length]))
        read = [*range(kept), *[1000 + draw(st.integers(0, 30))] * (length - kept)]
        prompt = ints(number, *[7] * (prompts[number] - 1))
        items.append(Item(key, prompt, ints(*read), outside_trees=draw(st.integers(0, 9)) == 0))
    return items


packings = st.builds(
    Packing,
    tokens=st.sampled_from([1, 64, 500, 4096]),
    cached_tokens=st.sampled_from([1, 1000, 16384]),
    share_prompts=st.booleans(),
    prefix_trees=st.booleans(),
    alone=st.booleans(),
)


def batches(items: list[Item], packing: Packing) -> list[Batch]:
    left, made = list(items), []
    while left:
        batch = next_batch(left, packing)
        assert left[0] in batch.items, "the oldest item is always in the next batch"
        done = {item.key for item in batch.items}
        left = [item for item in left if item.key not in done]
        made.append(batch)
    return made


def assert_pass_fits(lengths: list[int], budget: int) -> None:
    padded, real = len(lengths) * max(lengths), sum(lengths)
    if len(lengths) > 1:
        assert padded <= budget
        assert padded - real <= max(PADDING_TOKENS, PADDING_SHARE * real)


@given(waiting(), packings)
def test_every_item_runs_exactly_once(items: list[Item], packing: Packing) -> None:
    made = batches(items, packing)
    assert Counter(item for batch in made for item in batch.items) == Counter(items)


@given(waiting(), packings)
def test_passes_stay_in_budget_and_waste_little(items: list[Item], packing: Packing) -> None:
    for batch in batches(items, packing):
        if isinstance(batch, FlatBatch):
            assert_pass_fits([item.flat_tokens for item in batch.items], packing.tokens)
            continue
        if isinstance(batch, PrefixTreeBatch):
            prompt = batch.items[0].prompt_length
            longest = max(item.length for item in batch.items)
            for members in batch.passes:
                nodes = beginnings(members)
                assert nodes <= max(min(packing.tokens, TREE_TOKENS), 2 * longest)
                assert len(members) == 1 or prompt - 1 + nodes <= packing.cached_tokens
            continue
        prefixes = {item.prompt: item.prompt_length - 1 for item in batch.items}
        assert set(batch.prompts) == set(prefixes)
        assert_pass_fits(list(prefixes.values()), packing.tokens)
        for members in batch.passes:
            assert_pass_fits([item.length for item in members], packing.tokens)
            cached = len(members) * (max(prefixes.values()) + max(i.length for i in members))
            assert len(members) == 1 or cached <= packing.cached_tokens


@given(waiting(), packings)
def test_a_prompt_is_shared_when_that_pays(items: list[Item], packing: Packing) -> None:
    for batch in batches(items, packing):
        shares = isinstance(batch, GroupBatch)
        assert not (shares and (packing.alone or not packing.share_prompts))
        if shares:
            counts = Counter(item.prompt for item in batch.items)
            lengths = {item.prompt: item.prompt_length for item in batch.items}
            for prompt, count in counts.items():
                assert (count - 1) * (lengths[prompt] - 1) >= MINIMUM_SAVING


def beginnings(items: Sequence[Item]) -> int:
    """Distinct beginnings of the items' tokens, the empty one too: the nodes of their tree."""
    return len({item.read[:stop] for item in items for stop in range(0, len(item.read) + 1, 4)})


@given(waiting(), packings)
def test_trees_are_read_when_that_pays(items: list[Item], packing: Packing) -> None:
    for batch in batches(items, packing):
        if not isinstance(batch, PrefixTreeBatch):
            continue
        assert packing.prefix_trees
        assert packing.share_prompts
        assert not packing.alone
        assert not any(item.outside_trees for item in batch.items)
        assert {item.prompt for item in batch.items} == {batch.prompt}
        prompt = batch.items[0].prompt_length - 1
        read = [prompt] * (prompt > 0) + [beginnings(members) for members in batch.passes]
        assert pass_tokens(batch) == read
        flat = sum(item.flat_tokens for item in batch.items)
        assert flat - sum(read) >= max(MINIMUM_SAVING, TREE_SAVING_SHARE * sum(read))


def test_sequences_that_leave_a_stem_are_one_tree_and_rollouts_are_not() -> None:
    stem = list(range(300))
    leaving = [Item(k, ints(1, 2), ints(*stem[: 4 * k], 900, 901)) for k in range(64)]
    rollouts = [Item(k, ints(*range(50)), ints(k, *stem)) for k in range(8)]
    packing = Packing(tokens=1024, cached_tokens=16384)
    (tree,) = batches(leaving, packing)
    assert isinstance(tree, PrefixTreeBatch)
    assert pass_tokens(tree) == [1, 1 + 4 * 63 + 2 * 64]
    assert isinstance(next_batch(rollouts, packing), GroupBatch)
    assert not isinstance(
        next_batch(leaving, replace(packing, prefix_trees=False)), PrefixTreeBatch
    )


@given(waiting(), packings)
def test_alone_means_alone(items: list[Item], packing: Packing) -> None:
    if packing.alone:
        assert all(len(batch.items) == 1 for batch in batches(items, packing))


@given(st.integers(2, 16), st.integers(64, 400), st.integers(1, 64))
@example(8, 384, 128)
def test_a_group_reads_its_prompt_once(count: int, prompt: int, length: int) -> None:
    ids = ints(*range(prompt))
    items = [Item(key, ids, ints(*[key] * (length - 1))) for key in range(count)]
    packing = Packing(tokens=4096, cached_tokens=16384, prefix_trees=False)
    (batch,) = batches(items, packing)
    assert isinstance(batch, GroupBatch)
    assert batch.prompts == (ids,)
    assert batch.passes == (tuple(items),)
