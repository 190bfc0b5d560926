"""Real LoRA adapters of tiny models, and the models they make when merged."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def make_adapter(
    directory: Path,
    base: Path | Any,
    *,
    seed: int = 1,
    rank: int = 4,
    target_modules: Sequence[str] = LINEAR,
    **config: Any,
) -> Path:
    """An adapter as training leaves it: no half of a pair is zero."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        settings = LoraConfig(
            r=rank,
            target_modules=list(target_modules),
            task_type="CAUSAL_LM",
            **({"lora_alpha": 3 * rank} | config),
        )
        model = get_peft_model(_loaded(base), settings)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.05)
    model.save_pretrained(directory)
    return directory


def merged(base: Path | Any, adapter: Path) -> Any:
    """The base in float32 with the adapter added into its weights by PEFT."""
    return PeftModel.from_pretrained(_loaded(base), str(adapter)).merge_and_unload()


def _loaded(base: Path | Any) -> Any:
    """The model of a folder in float32; a loaded one as it is."""
    if not isinstance(base, Path):
        return base
    return AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
