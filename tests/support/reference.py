"""The plain forward that engines are compared with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM


def plain_logits(
    source: Path | Any, *, read_last: bool = True
) -> Callable[[NDArray[np.int32]], NDArray[np.float64]]:
    """float64 [L, V] logits of one sequence, from a float32 forward without a cache.

    With ``read_last`` False the last token is not read and its row is NaN.
    """
    model = source
    if isinstance(source, Path):
        model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    model.eval()

    def logits(ids: NDArray[np.int32]) -> NDArray[np.float64]:
        tokens = torch.from_numpy(ids.astype(np.int64)).unsqueeze(0)
        with torch.inference_mode():
            if read_last:
                return model(input_ids=tokens, use_cache=False).logits[0].double().numpy()
            read = model(input_ids=tokens[:, :-1], use_cache=False).logits[0].double()
            return torch.nn.functional.pad(read, (0, 0, 0, 1), value=float("nan")).numpy()

    return logits
