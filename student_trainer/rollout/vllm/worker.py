"""What the trainer asks of vLLM's workers: to take over weights, and to draw as it does. Nothing
here imports vLLM.

A worker has a version of weights, or none. It has none from the moment in which it begins to
take over others until it has them all, and whoever asks for rollouts asks for the version first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from student_trainer.rollout.vllm.sampler import RolloutSampler
from student_trainer.rollout.vllm.weights import failed, read_weights

V1 = "VLLM_USE_V2_MODEL_RUNNER"


class TakesOver:
    """Weights and sampler of a worker; the base of what ``worker_extension_cls`` adds to it.

    All methods answer with dicts, which cross vLLM's HTTP as they are.
    """

    model_runner: Any
    _version: int | None = None
    _torn: bool = False

    def rollout_install(self, undrawn: Sequence[int]) -> dict[str, Any]:
        """Puts the trainer's sampler into the model runner; a second time replaces the ids.

        Args:
            undrawn: ids that the student never draws.

        Returns:
            The size of the vocabulary and the dtype of the model that is loaded.
        """
        runner = self.model_runner
        if not (hasattr(runner, "sampler") and hasattr(runner, "input_batch")):
            raise RuntimeError(
                f"rollouts are drawn in vLLM's V1 model runner: start vLLM with {V1}=0"
            )
        ids = torch.tensor(list(undrawn), dtype=torch.int64, device=runner.device)
        if isinstance(runner.sampler, RolloutSampler):
            runner.sampler = runner.sampler.replaced
        runner.sampler = RolloutSampler(runner, ids if len(ids) else None, self._make_output())
        config = runner.model_config
        dtype = str(config.dtype).removeprefix("torch.")
        return {"vocabulary_size": int(config.get_vocab_size()), "dtype": dtype}

    def rollout_take(self, path: str, version: int) -> dict[str, Any]:
        """Takes over the weights of a file (``weights.write_weights``).

        Raises:
            LsmError: the file is not whole or not of this version, and nothing was changed; or
                the weights do not fit the model, which then can take over no others.
        """
        self._drop()
        tensors = read_weights(Path(path), version)
        self.rollout_begin()
        missing = self._load(tensors)
        if missing:
            raise failed(
                f"{len(missing)} of its parameters are missing or not whole ({missing[0]})"
            )
        return self.rollout_commit(version)

    def rollout_begin(self) -> dict[str, Any]:
        """Weights come: until ``rollout_commit`` they are of no version.

        Raises:
            LsmError: an earlier hand-over has failed in the middle. vLLM keeps what it got of it,
                and would mix it into this one.
        """
        self._drop()
        self._torn = True
        return {"version": None}

    def _drop(self) -> None:
        self._version = None
        if self._torn:
            raise failed(
                "an earlier hand-over has failed in the middle, and vLLM has a part of it",
                "vLLM",
                "start a vLLM server anew; one of the trainer's own ends with it",
            )

    def rollout_commit(self, version: int) -> dict[str, Any]:
        """Says which version the weights are, once they are there."""
        self._torn = False
        self._version = version
        return {"version": version}

    def rollout_version(self) -> dict[str, Any]:
        """The version of the weights, None where there is none."""
        return {"version": self._version}

    def _make_output(self) -> Callable[..., Any]:
        raise NotImplementedError

    def _load(self, tensors: dict[str, torch.Tensor]) -> list[str]:
        """Loads tensors into the model; returns the parameters that none of them was for."""
        raise NotImplementedError
