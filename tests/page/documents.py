"""Documents of rows for the tests of the page."""

from __future__ import annotations

import math
import random
from typing import Any

HOSTILE = (
    "</script><script>document.title='run'</script><img src=x onerror=\"document.title='run'\">"
)
TEXTS = (
    " the",
    "\n",
    " a",
    "\t",
    "<|im_end|>",
    "\u202eabc",
    "\ufffd",
    "漢",
    "&amp;",
    HOSTILE,
    "\ud800",
)


def sequence(name: str, length: int, *, k: int = 8, seed: int = 0) -> dict[str, Any]:
    """Random tokens with everything that a token can have."""
    drawn = random.Random(seed)
    tokens = []
    for at in range(length):
        masses = sorted((drawn.random() ** 4 + 1e-6 for _ in range(k)), reverse=True)
        total = sum(masses) * 1.05
        top = [
            [100 + i, f"{drawn.choice(TEXTS)}{i}", math.log(mass / total)]
            for i, mass in enumerate(masses)
        ]
        own = drawn.choice(top)
        tokens.append(
            {
                "id": own[0],
                "text": own[1],
                "log_prob": own[2],
                "student": min(0.0, own[2] + drawn.gauss(0, 1)),
                "loss": drawn.gauss(0, 0.1),
                "log_tail": math.log(0.05 / 1.05),
                "top": top,
                "student_top": [[i, text, value - 0.1] for i, text, value in top[:6]],
                "class": ("ALIGNED", "MID", "MASKED", "COARSE")[at % 4],
                "reason": (None, None, "LONG_CHUNK", "DOUBTFUL")[at % 4],
                "chunk": at // 3,
                "coverage": 0.9,
                "open_mass": 0.01,
                "lost_mass": 0.0,
            }
        )
    return {"name": name, "prompt": f"user: {HOSTILE}", "tokens": tokens, "facts": {"step": 12}}
