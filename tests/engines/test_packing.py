"""Properties of the batch planner over arbitrary waiting sequences."""

from __future__ import annotations

from collections import Counter

from hypothesis import example, given
from hypothesis import strategies as st

from teacher_server.engines.packing import (
    MINIMUM_SAVING,
    PADDING_SHARE,
    PADDING_TOKENS,
    Batch,
    FlatBatch,
    GroupBatch,
    Item,
    Packing,
    next_batch,
)


@st.composite
def waiting(draw: st.DrawFn) -> list[Item]:
    prompts = draw(st.lists(st.integers(1, 400), min_size=1, max_size=6))
    chosen = draw(st.lists(st.integers(0, len(prompts) - 1), min_size=1, max_size=30))
    return [
        Item(key, bytes([number]), prompts[number], draw(st.integers(1, 300)))
        for key, number in enumerate(chosen)
    ]


packings = st.builds(
    Packing,
    tokens=st.sampled_from([1, 64, 500, 4096]),
    cached_tokens=st.sampled_from([1, 1000, 16384]),
    share_prompts=st.booleans(),
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


@given(waiting(), packings)
def test_alone_means_alone(items: list[Item], packing: Packing) -> None:
    if packing.alone:
        assert all(len(batch.items) == 1 for batch in batches(items, packing))


@given(st.integers(2, 16), st.integers(64, 400), st.integers(1, 64))
@example(8, 384, 128)
def test_a_group_reads_its_prompt_once(count: int, prompt: int, length: int) -> None:
    items = [Item(key, b"p", prompt, length) for key in range(count)]
    (batch,) = batches(items, Packing(tokens=4096, cached_tokens=16384))
    assert isinstance(batch, GroupBatch)
    assert batch.prompts == (b"p",)
    assert batch.passes == (tuple(items),)
