"""TRL's DistillationTrainer with the teacher service in the place of a local teacher.

What is overridden is public: ``training_step``, ``prediction_step``, ``compute_loss`` and
``log`` of transformers' Trainer. Completions, optimizer, checkpoints and trackers are TRL's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from teacher_proto.errors import ConfigurationError
from teacher_proto.types import Int32
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase
from trl import DistillationConfig, DistillationTrainer
from trl.data_utils import is_conversational

from student_trainer.losses.parts.loss import Loss
from student_trainer.settings.kinds import DEFAULT_LOSS
from student_trainer.student.head import read_head
from student_trainer.trl.checks import check_loss, check_parallel
from student_trainer.trl.hidden import last_hidden_states
from student_trainer.trl.links import Links, TeacherChoice, loss_of, named_settings, student_of_trl
from student_trainer.trl.objective import LossSums, Measures, Response, ServiceLoss
from student_trainer.trl.prompts import PROMPT, Prompts


class LsmDistillationTrainer(DistillationTrainer):  # type: ignore[misc]
    """On-policy distillation from the teacher service, with any loss of ours.

        trainer = LsmDistillationTrainer(
            "Qwen/Qwen2.5-0.5B-Instruct", teachers="127.0.0.1:50051", train_dataset=dataset
        )
        trainer.train()

    Several teachers are a mapping of names to addresses or settings; a column of the dataset
    names each row's.

    Args:
        model: as TRL's.
        teachers: the service's address, a ``TeacherSettings`` or its keys as a dict; or a mapping
            of names to these.
        loss: a loss, the keys of a section ``[loss]`` as a dict, or its kind.
        args: as TRL's. ``beta`` is not used; ``temperature`` and ``top_p`` are the rollout's.
        train_dataset, eval_dataset: with a column ``prompt``, a text or messages.
        teacher_column: the column that names a row's teacher, where there are several.
        default_teacher: the teacher of rows that name none.
        others: as TRL's, except ``teacher_model`` and ``tools``, which it does not take.

    Raises:
        ConfigurationError: settings that contradict each other, an unknown teacher in the
            dataset (with its row), a model whose head the losses cannot read, or a way of
            cutting the model over processes that they cannot work with.
        LsmError: a teacher cannot be used (docs/errors.md).
    """

    def __init__(
        self,
        model: Any,
        teachers: TeacherChoice | Mapping[str, TeacherChoice],
        loss: Loss | Mapping[str, Any] | str = DEFAULT_LOSS,
        args: DistillationConfig | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        callbacks: Any = None,
        optimizers: tuple[Any, Any] = (None, None),
        quantization_config: Any = None,
        peft_config: Any = None,
        *,
        teacher_column: str = "teacher",
        default_teacher: str | None = None,
    ) -> None:
        settings, chosen = named_settings(teachers), loss_of(loss)
        if args is None:
            name = model if isinstance(model, str) else model.config._name_or_path
            args = DistillationConfig(f"{Path(name).name}-lsm")
        check_loss(chosen, args, settings)
        # The columns of a row reach the step, the teacher's name among them.
        args.remove_unused_columns = False
        super().__init__(
            model=model,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            callbacks=callbacks,
            optimizers=optimizers,
            quantization_config=quantization_config,
            peft_config=peft_config,
        )
        check_parallel(self)
        if not isinstance(self.processing_class, PreTrainedTokenizerBase):
            raise ConfigurationError(
                f"a {type(self.processing_class).__name__} is no tokenizer: teachers score text",
                where="processing_class",
                fix="give the tokenizer, for a student of text",
            )
        arguments = self.chat_template_kwargs
        self._prompts = Prompts(
            list(settings), teacher_column, default_teacher, self._prompt_ids, arguments
        )
        for where, dataset in (("train_dataset", train_dataset), ("eval_dataset", eval_dataset)):
            if isinstance(dataset, Dataset):
                kept = {PROMPT, teacher_column} & set(dataset.column_names)
                self._prompts.check(dataset.select_columns(sorted(kept)), where)
        student = student_of_trl(self.model, self.processing_class, arguments)
        run = args.run_name or Path(args.output_dir).name
        self.links = Links(settings, student, run)
        try:
            for name, link in self.links.items():
                link.check_fits(
                    top_k=self.links.rows_asked(name, chosen).top_k,
                    explicit=chosen.student_top_k,
                    longest_prompt=1,
                    longest_response=self.max_completion_length,
                )
            self._objective = ServiceLoss(chosen, self.links, student, self.temperature)
        except BaseException:
            self.links.close()
            raise
        self._undrawn = student.undrawn
        # By whether the model is in training.
        self._measures = {True: Measures(), False: Measures()}

    def close(self) -> None:
        """Closes the connections to the teachers."""
        self.links.close()

    def training_step(
        self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None
    ) -> Tensor:
        """TRL's step, on rows whose prompts and teachers are kept for the loss."""
        self._prompts.take(inputs)
        step: Tensor = super().training_step(model, inputs, num_items_in_batch)
        return step

    def prediction_step(
        self, model: nn.Module, inputs: Any, prediction_loss_only: bool, ignore_keys: Any = None
    ) -> Any:
        """TRL's step of an evaluation; as ``training_step``."""
        self._prompts.take(inputs)
        return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Mapping[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """The mean loss of a micro-batch's responses, in nats, as a part of its step's.

        The mean is over the rows that the loss uses on all processes. With several micro-batches
        to a step, each counts by its tokens in all of them (or its responses, with
        ``loss.mean = "sequence"``).
        """
        causal: Any = self.accelerator.unwrap_model(model)
        base = causal.get_base_model() if hasattr(causal, "get_base_model") else causal
        head = replace(read_head(base), undrawn=self._undrawn)
        responses = self._responses(inputs)
        early = self._objective.loss.student_top_k == 0
        asked = self._objective.request(responses) if early else None
        mask = inputs["completion_mask"].bool()
        real = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
        # Prompts are padded on their left; a token's place is counted from the first real one.
        places = {"position_ids": (real.cumsum(1) - 1).clamp_min(0)}
        states = last_hidden_states(
            model,
            base.get_output_embeddings(),
            input_ids=torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1),
            attention_mask=real,
            **(places if "position_ids" in self.model_kwarg_keys else {}),
        )
        # The state at a position predicts the token after it.
        width = mask.shape[1]
        hidden = states[:, -width - 1 : -1][mask]
        if asked is None:
            asked = self._objective.request(responses, hidden, head)
        sums = self._objective(responses, asked, hidden, head)
        loss = self._share(sums, inputs)
        self._measures[self.model.training].add(sums)
        return (loss, None) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """TRL's log, with the means of what the loss measured since the last one."""
        training = self.model.training
        logs.update(self._measures[training].take("" if training else "eval_"))
        super().log(logs, start_time)

    def _prompt_ids(self, prompts: Sequence[Any]) -> Sequence[Sequence[int]]:
        """The ids that TRL gives prompts of this tokenizer."""
        tokenizer: Any = self.processing_class
        found = []
        for prompt in prompts:
            if is_conversational({PROMPT: prompt}):
                rendered = tokenizer.apply_chat_template(
                    conversation=prompt,
                    chat_template=self.chat_template,
                    add_generation_prompt=True,
                    tokenize=True,
                    return_dict=True,
                    **self.chat_template_kwargs,
                )
                found.append(rendered["input_ids"])
            else:
                found.append(tokenizer(text=prompt)["input_ids"])
        return found

    def _responses(self, inputs: Mapping[str, Any]) -> list[Response]:
        """The responses of a micro-batch, with their prompts."""
        found = []
        for prompt, completion in zip(
            _unpadded(inputs["prompt_ids"], inputs["prompt_mask"]),
            _unpadded(inputs["completion_ids"], inputs["completion_mask"]),
            strict=True,
        ):
            kept = np.ones(len(completion), np.bool_)
            found.append(Response(self._prompts.of(prompt), completion, kept))
        return found

    def _share(self, sums: LossSums, inputs: Mapping[str, Any]) -> Tensor:
        """The micro-batch's part of the step's mean loss, scaled for gradients that are
        averaged over processes."""
        accelerator = self.accelerator
        found = torch.tensor([[sums.count, sums.of]], dtype=torch.float64)
        count, of = accelerator.gather(found.to(accelerator.device)).sum(0).tolist()
        of_step = of
        if self.model.training and self._objective.loss.mean == "token":
            of_step = float(inputs["num_items_in_batch"])  # TRL's count of the step's tokens
        elif self.model.training:
            of_step = of * self.args.gradient_accumulation_steps
        share: Tensor = sums.total * (of / max(count, 1) * accelerator.num_processes / of_step)
        return share


def _unpadded(ids: Tensor, mask: Tensor) -> list[Int32]:
    """The ids of each row that are no padding."""
    rows = zip(ids.cpu().numpy(), mask.bool().cpu().numpy(), strict=True)
    return [row[keep].astype(np.int32) for row, keep in rows]
