"""A trainer of TRL that records its steps; run as a program by ``accelerate launch``, it writes
what its process saw."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from safetensors.torch import save_file
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import DistillationConfig

from student_trainer.trl import LsmDistillationTrainer

PROMPTS = ["What is the capital of France?", "The teacher reads", "A short answer", "user asks"]


@dataclass
class Seen:
    """What a step gave the loss, what the loss was, and the gradients that it left."""

    inputs: list[Mapping[str, Any]]
    losses: list[float]
    gradients: dict[str, torch.Tensor]


def make(
    address: str, student: Path, output: Path, seen: Seen | None = None, **changes: Any
) -> LsmDistillationTrainer:
    """A trainer of small steps; ``seen`` records them."""

    class Recording(LsmDistillationTrainer):
        def compute_loss(self, model: nn.Module, inputs: Any, *more: Any, **named: Any) -> Any:
            loss = super().compute_loss(model, inputs, *more, **named)
            if seen is not None:
                seen.inputs.append({k: v.clone() for k, v in inputs.items()})
                seen.losses.append(float(loss.detach()))
            return loss

    class Gradients(TrainerCallback):
        def on_pre_optimizer_step(self, *_: Any, model: nn.Module, **__: Any) -> None:
            if seen is not None and not seen.gradients:
                seen.gradients.update(
                    {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
                )

    settings: dict[str, Any] = {
        "output_dir": str(output),
        "max_steps": 1,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-3,
        "max_completion_length": 12,
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": 0,
        "max_grad_norm": 1e9,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "bf16": False,
        "use_cpu": True,
        "gradient_checkpointing": False,
        **changes.pop("args", {}),
    }
    rows = changes.pop("rows", {"prompt": PROMPTS})
    return Recording(
        AutoModelForCausalLM.from_pretrained(student),
        changes.pop("teachers", address),
        changes.pop("loss", "lsm"),
        DistillationConfig(**settings),
        Dataset.from_dict(rows),
        processing_class=AutoTokenizer.from_pretrained(student),
        callbacks=[Gradients()],
        **changes,
    )


def main(address: str, student: str, folder: str, *losses: str) -> None:
    """One step with each loss; its process's part is written to ``FOLDER/LOSS-RANK``."""
    for number, loss in enumerate(losses):
        seen = Seen([], [], {})
        trainer = make(
            address,
            Path(student),
            Path(folder) / "out",
            seen,
            loss=json.loads(loss),
            args={"per_device_train_batch_size": 2},
        )
        trainer.train()
        trainer.close()
        assert trainer.accelerator.num_processes == 2
        (inputs,), (found,) = seen.inputs, seen.losses
        tensors = {f"in.{name}": value for name, value in inputs.items()}
        for name, value in seen.gradients.items():
            tensors[f"gradient.{name.removeprefix('module.')}"] = value
        tensors["loss"] = torch.tensor(found)
        save_file(
            {name: value.clone().contiguous() for name, value in tensors.items()},
            Path(folder) / f"{number}-{trainer.accelerator.process_index}.safetensors",
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
