"""Questions that need a look-up and arithmetic, made on the spot: what things of a price list cost
together."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

COLOURS = ("red", "blue", "green", "white", "black", "grey", "brown", "yellow", "orange", "violet")
THINGS = (
    "lamp", "chair", "table", "bucket", "hammer", "ladder", "kettle", "carpet", "mirror", "clock",
    "bottle", "basket", "candle", "curtain", "pillow", "drawer", "shovel", "rope", "brush", "tray",
)  # fmt: skip
MOST = len(COLOURS) * len(THINGS)
# Of each thing in a question.
LARGEST_COUNT = 9


def price_list(seed: int, items: int) -> dict[str, str]:
    """Prices of ``items`` things, at most ``MOST``."""
    draw = random.Random(f"prices {seed}")
    names = [f"{colour} {thing}" for colour, thing in itertools.product(COLOURS, THINGS)]
    return {name: str(draw.randint(2, 99)) for name in draw.sample(names, items)}


def questions(
    seed: int, split: str, items: int, terms: int, count: int
) -> Iterator[tuple[str, str]]:
    """``count`` questions with their answers, always the same.

    Args:
        terms: different things in the longest question, at least 1.
    """
    prices = price_list(seed, items)
    draw = random.Random(f"questions {seed} {split}")
    for _ in range(count):
        chosen = draw.sample(list(prices), draw.randint(1, min(terms, items)))
        counts = [draw.randint(1, LARGEST_COUNT) for _ in chosen]
        told = " and ".join(f"{n} times {name}" for n, name in zip(counts, chosen, strict=True))
        total = sum(n * int(prices[name]) for n, name in zip(counts, chosen, strict=True))
        yield f"What do {told} cost together?", str(total)
