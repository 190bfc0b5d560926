"""What runs in vLLM's workers, without vLLM: the sampler's draws, and which version there is."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from teacher_proto.errors import LsmError

from student_trainer.rollout.sampling import sample
from student_trainer.rollout.vllm.sampler import Draws, RolloutSampler, masses_of
from student_trainer.rollout.vllm.weights import write_weights
from student_trainer.rollout.vllm.worker import TakesOver

SIZE = 50


def request(draws: Draws | None, tokens: int = 0) -> SimpleNamespace:
    extra = None if draws is None else draws.to_extra_args()
    own = SimpleNamespace(extra_args=extra)
    return SimpleNamespace(sampling_params=own, output_token_ids=[0] * tokens)


class Others(torch.nn.Module):
    """vLLM's own sampler: it draws the last id."""

    scale = 7

    def forward(self, logits: torch.Tensor, metadata: Any) -> SimpleNamespace:
        rows = len(logits)
        return output(
            torch.full((rows, 1), SIZE - 1), torch.zeros(rows, 3), torch.ones(rows, dtype=torch.int)
        )


def output(tokens: torch.Tensor, log_probs: torch.Tensor, ranks: torch.Tensor) -> SimpleNamespace:
    kept = SimpleNamespace(
        logprob_token_ids=tokens.repeat(1, log_probs.shape[1]),
        logprobs=log_probs,
        selected_token_ranks=ranks,
    )
    return SimpleNamespace(sampled_token_ids=tokens, logprobs_tensors=kept)


def sampler_of(requests: dict[str, Any], undrawn: list[int] | None = None) -> RolloutSampler:
    runner = SimpleNamespace(
        sampler=Others(),
        requests=requests,
        input_batch=SimpleNamespace(req_ids=list(requests)),
    )
    ids = None if undrawn is None else torch.tensor(undrawn)
    return RolloutSampler(runner, ids, output)


def draws(index: int = 0, temperature: float = 1.0, top_p: float = 1.0) -> Draws:
    return Draws(3, 4, "prompt", index, 9, temperature, top_p)


def test_it_draws_what_the_trainer_draws() -> None:
    """Each row from its own stream, at its own place in it, whatever is beside it."""
    requests = {
        "a": request(draws(0, 0.5, 0.8), 0),
        "b": request(draws(1, 20.0, 1.0), 5),
        "c": request(draws(0, 1.0, 0.8), 8),
    }
    logits = torch.randn(3, SIZE, generator=torch.Generator().manual_seed(0))
    undrawn = [3, 4]
    found = sampler_of(requests, undrawn)(logits, None)
    for row, own in enumerate(requests.values()):
        of_it = Draws.of(own.sampling_params.extra_args)
        assert of_it is not None
        scaled = logits[row : row + 1] / of_it.temperature
        scaled[:, undrawn] = -torch.inf
        log_probs = scaled.log_softmax(-1)
        uniform = of_it.uniforms[len(own.output_token_ids)]
        token, mass = sample(log_probs, torch.tensor([uniform]), of_it.top_p)
        assert found.sampled_token_ids[row].tolist() == token.tolist()
        assert found.logprobs_tensors.logprobs[row, 0] == log_probs[0, int(token)]
        assert masses_of([int(found.logprobs_tensors.selected_token_ranks[row])]) == mass.numpy()


def test_a_request_of_somebody_else_is_drawn_as_before() -> None:
    requests = {"a": request(draws()), "other": request(None), "b": request(draws(1))}
    logits = torch.zeros(3, SIZE)
    sampler = sampler_of(requests)
    found = sampler(logits, None)
    assert found.sampled_token_ids[1].tolist() == [SIZE - 1]
    alone = sampler_of({"a": requests["a"], "b": requests["b"]})(logits[:2], None)
    assert found.sampled_token_ids[[0, 2]].tolist() == alone.sampled_token_ids.tolist()
    assert sampler_of({"other": request(None)})(logits[:1], None).sampled_token_ids[0] == SIZE - 1
    assert sampler.scale == 7, "what vLLM asks of its sampler besides is still there"


def test_what_has_ended_is_forgotten() -> None:
    requests = {name: request(draws()) for name in "abc"}
    sampler = sampler_of(requests)
    sampler(torch.zeros(3, SIZE), None)
    del requests["a"], requests["b"]
    sampler._runner.input_batch.req_ids = ["c"]
    sampler(torch.zeros(1, SIZE), None)
    assert sampler._draws.keys() == {"c"}


def test_nuclei_come_through_as_bits() -> None:
    masses = torch.tensor([1e-30, 0.1, 0.9, 1.0])
    assert masses_of(masses.view(torch.int32).tolist()).tolist() == masses.tolist()


class Worker(TakesOver):
    """A worker whose model has the parameters a and b."""

    def __init__(self) -> None:
        self.loaded: dict[str, torch.Tensor] = {}
        self.fails = False

    def _load(self, tensors: dict[str, torch.Tensor]) -> list[str]:
        if self.fails:
            raise ValueError("there is no module named c")
        self.loaded = {name: tensor.clone() for name, tensor in tensors.items()}
        return sorted({"a", "b"} - tensors.keys())


WEIGHTS = {"a": torch.ones(2), "b": torch.zeros(3)}


def test_a_version_is_there_once_all_weights_are(tmp_path: Path) -> None:
    worker, path = Worker(), tmp_path / "w"
    assert worker.rollout_version() == {"version": None}
    write_weights(path, 3, WEIGHTS)
    assert worker.rollout_take(str(path), 3) == worker.rollout_version() == {"version": 3}
    assert worker.loaded.keys() == WEIGHTS.keys()


def test_a_file_that_is_not_whole_changes_nothing_and_leaves_no_version(tmp_path: Path) -> None:
    worker, path = Worker(), tmp_path / "w"
    write_weights(path, 3, WEIGHTS)
    worker.rollout_take(str(path), 3)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(LsmError, match="bytes of"):
        worker.rollout_take(str(path), 3)
    assert worker.rollout_version() == {"version": None}
    assert worker.loaded.keys() == WEIGHTS.keys(), "as before"
    write_weights(path, 4, WEIGHTS)
    assert worker.rollout_take(str(path), 4) == {"version": 4}, "the next one counts"


@pytest.mark.parametrize("how", ["missing", "unknown", "transfer"])
def test_after_a_hand_over_that_broke_off_there_is_no_other(tmp_path: Path, how: str) -> None:
    """vLLM keeps what it was given of a layer: another hand-over would be mixed with it."""
    worker, path = Worker(), tmp_path / "w"
    write_weights(path, 3, WEIGHTS if how != "missing" else {"a": WEIGHTS["a"]})
    if how == "transfer":
        worker.rollout_begin()
    else:
        worker.fails = how == "unknown"
        with pytest.raises((LsmError, ValueError), match=r"not whole \(b|named c"):
            worker.rollout_take(str(path), 3)
        worker.fails = False
    write_weights(path, 4, WEIGHTS)
    assert worker.rollout_version() == {"version": None}
    with pytest.raises(LsmError, match="in the middle"):
        worker.rollout_take(str(path), 4)
    assert worker.rollout_version() == {"version": None}


def test_another_model_runner_is_refused() -> None:
    worker = Worker()
    worker.model_runner = SimpleNamespace(device="cpu")
    with pytest.raises(RuntimeError, match="VLLM_USE_V2_MODEL_RUNNER=0"):
        worker.rollout_install([])
    assert np.isnan(masses_of([np.float32(np.nan).view(np.int32)]))[0]
