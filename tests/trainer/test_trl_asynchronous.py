"""Our losses inside TRL's asynchronous trainer: a worker that writes with the weights that the
trainer sends it, real steps, a real service."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from teacher_proto.errors import ConfigurationError
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

from tests.trainer.processes import Server
from tests.trainer.test_trl import PROMPTS, MakeConfig, own_loop

pytest.importorskip("trl", reason="trl is a development extra")
from datasets import Dataset
from trl.experimental.async_distillation import AsyncDistillationConfig
from trl.experimental.async_distillation.async_rollout_worker import RolloutSample

from student_trainer.trl import AsyncLsmDistillationTrainer


@pytest.fixture(autouse=True)
def device_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """TRL's trainer asks for the GPU's name, to count floating-point operations by it."""
    if not torch.cuda.is_available():
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "none")


class Worker:
    """Writes four samples for each version of the weights, which it is sent."""

    def __init__(self, model: Path, teachers: tuple[str, ...]) -> None:
        self.rollout_buffer: queue.Queue[RolloutSample] = queue.Queue()
        self.metrics_queue: queue.Queue[dict[str, Any]] = queue.Queue()
        self.model = AutoModelForCausalLM.from_pretrained(model)
        self.tokenizer = AutoTokenizer.from_pretrained(model)
        self.teachers = teachers
        self.sent: list[RolloutSample] = []
        self.versions: list[int] = []

    def start(self) -> None:
        # The trainer's loader takes a batch more than the step needs.
        for _ in range(2):
            self._write(self.versions[-1])

    def stop(self) -> None: ...

    def check_health(self, stale_after_s: float) -> None: ...

    def update_model_version(self, model_version: int) -> None:
        self.versions.append(model_version)
        if self.sent:
            self._write(model_version)

    # What sends the weights.
    def init_weight_transfer(self) -> None: ...

    def pause(self) -> None: ...

    def send_weights(self, iterator: Iterator[tuple[str, torch.Tensor]]) -> None:
        self.model.load_state_dict(
            {name: weight.clone() for name, weight in iterator}, strict=False
        )

    def resume(self) -> None: ...

    def destroy(self) -> None: ...

    def _write(self, version: int) -> None:
        for number, text in enumerate(PROMPTS):
            prompt = self.tokenizer(text)["input_ids"]
            ids = self.model.generate(
                torch.tensor([prompt]), do_sample=True, top_k=0, max_new_tokens=9 + number
            )[0].numpy()
            written = np.arange(len(ids)) >= len(prompt)
            sample = RolloutSample(
                prompt=[{"role": "user", "content": text}],
                completion=[{"role": "assistant", "content": ""}],
                input_ids=ids,
                completion_mask=written.astype(np.int64),
                # Nothing of a teacher: the service is asked.
                teacher_topk_ids=np.full((len(ids), 1), -1),
                teacher_topk_logprobs=np.full((len(ids), 1), -np.inf, np.float32),
                model_version=version,
                metrics={},
                teacher_id=self.teachers[number % len(self.teachers)],
                prompt_id=number,
            )
            self.sent.append(sample)
            self.rollout_buffer.put(sample)


class Gradients(TrainerCallback):
    def __init__(self) -> None:
        self.found: list[dict[str, torch.Tensor]] = []

    def on_pre_optimizer_step(self, *_: Any, model: torch.nn.Module, **__: Any) -> None:
        self.found.append({n: p.grad.clone() for n, p in model.named_parameters()})


def make(
    student: Path, output: Path, worker: Worker, teachers: Any, gradients: Gradients, **loss: Any
) -> AsyncLsmDistillationTrainer:
    names = list(teachers) if isinstance(teachers, dict) else ["default"]
    args = AsyncDistillationConfig(
        str(output),
        max_steps=2,
        per_device_train_batch_size=4,
        learning_rate=1e-3,
        max_grad_norm=1e9,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        bf16=False,
        use_cpu=True,
        gradient_checkpointing=False,
        token_budget=-1,
        teacher_server_urls=dict.fromkeys(names, "http://nowhere"),
        model_init_kwargs={"dtype": "float32", "attn_implementation": "sdpa"},
    )
    return AsyncLsmDistillationTrainer(
        str(student),
        teachers,
        {"kind": "lsm", "top_k": 16, **loss},
        args,
        train_dataset=Dataset.from_dict({"prompt": PROMPTS}),
        processing_class=AutoTokenizer.from_pretrained(student),
        rollout_worker=worker,
        weight_transfer=worker,
        callbacks=[gradients],
    )


@pytest.mark.parametrize("support", ["teacher", "union"])
def test_the_loss_is_that_of_our_own_loop_on_the_same_batch(
    run_server: Server,
    student_model_dir: Path,
    make_config: MakeConfig,
    tmp_path: Path,
    support: str,
) -> None:
    worker, gradients = Worker(student_model_dir, ("default",)), Gradients()
    trainer = make(
        student_model_dir, tmp_path, worker, run_server.address, gradients, support=support
    )
    trainer.train()
    trainer.close()
    lines = [line for line in trainer.state.log_history if "loss" in line]
    assert [line["used_share"] for line in lines] == [1, 1]
    assert worker.versions == [1, 2, 3]

    config = make_config(
        teacher={"address": run_server.address},
        loss={"kind": "lsm", "top_k": 16, "support": support},
        optimizer={"clip_norm": None},
    )
    batches = []
    for sample in worker.sent[:4]:
        ids, written = torch.tensor(sample.input_ids), torch.tensor(sample.completion_mask).bool()
        parts = {"prompt_ids": ids[~written][None], "completion_ids": ids[written][None]}
        ones = {k.replace("_ids", "_mask"): torch.ones_like(v) for k, v in parts.items()}
        batches.append(parts | ones)
    own, expected = own_loop(config, student_model_dir, batches)
    assert lines[0]["loss"] == pytest.approx(own, abs=1e-4)
    for name, gradient in expected.items():
        assert torch.allclose(gradients.found[0][name], gradient, atol=1e-5), name


def test_each_sample_has_its_teacher(
    run_server: Server, student_model_dir: Path, tmp_path: Path
) -> None:
    at = {"address": run_server.address}
    teachers = {"same": at, "twin": at | {"name": "twin"}}
    worker = Worker(student_model_dir, tuple(teachers))
    trainer = make(student_model_dir, tmp_path, worker, teachers, Gradients())
    trainer.train()
    trainer.close()
    first = next(line for line in trainer.state.log_history if "loss" in line)
    # The twin has the student's own weights.
    assert first["lsm_loss/twin"] < 1e-4 < first["lsm_loss/same"]


@pytest.mark.parametrize(
    ("teachers", "loss", "where"),
    [
        (("default", "default"), {"kind": "sampled_token"}, "loss"),
        (("default", "default"), {"mean": "sequence"}, "loss"),
        (("default", "other"), {}, "teachers['default'].prompt"),
    ],
)
def test_what_its_samples_do_not_tell_is_refused(
    run_server: Server,
    student_model_dir: Path,
    tmp_path: Path,
    teachers: tuple[str, str],
    loss: dict[str, Any],
    where: str,
) -> None:
    name, served = teachers
    with pytest.raises(ConfigurationError) as caught:
        make(
            student_model_dir,
            tmp_path,
            Worker(student_model_dir, (name,)),
            {name: {"address": run_server.address, "name": served}},
            Gradients(),
            **loss,
        )
    assert caught.value.where == where
