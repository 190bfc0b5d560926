"""TRL's experimental AsyncDistillationTrainer with the teacher service as its teacher.

Its public seams are ``rollout_worker``, which writes responses while the trainer updates,
``weight_transfer``, which takes the weights to where they are written, and ``compute_loss``. The
last is overridden: what the worker says of a teacher is not read, and the service is asked when a
response is learnt from.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from teacher_proto.errors import ConfigurationError
from teacher_proto.types import Int32, TokenPrompt
from torch import Tensor, nn
from trl.experimental.async_distillation import (
    AsyncDistillationConfig,
    AsyncDistillationTrainer,
)

from student_trainer.losses.parts.loss import Loss
from student_trainer.rollout.base import PromptItem
from student_trainer.settings.kinds import DEFAULT_LOSS
from student_trainer.student.head import read_head
from student_trainer.trl.checks import check_loss, check_parallel
from student_trainer.trl.hidden import last_hidden_states
from student_trainer.trl.links import Links, TeacherChoice, loss_of, named_settings, student_of_trl
from student_trainer.trl.objective import Measures, Response, ServiceLoss, needs_old
from student_trainer.trl.prompts import AskedPrompt


class AsyncLsmDistillationTrainer(AsyncDistillationTrainer):  # type: ignore[misc]
    """On-policy distillation from the teacher service while TRL's worker writes responses.

    Teachers read the student's tokens, because TRL's samples are token ids: each needs the
    student's tokenizer. A sample's ``teacher_id`` names its teacher; with several, ``args.
    teacher_server_urls`` has the same names, by which TRL tells them apart.

    Args:
        model: a name or a folder, as TRL's.
        teachers, loss: as ``LsmDistillationTrainer``'s. A loss that needs the log-probabilities
            of the draw is refused: samples do not have them, and are stale.
        others: as TRL's.

    Raises:
        ConfigurationError, LsmError: as ``LsmDistillationTrainer``.
    """

    def __init__(
        self,
        model: str,
        teachers: TeacherChoice | Mapping[str, TeacherChoice],
        loss: Loss | Mapping[str, Any] | str = DEFAULT_LOSS,
        args: AsyncDistillationConfig | None = None,
        **others: Any,
    ) -> None:
        args = args or AsyncDistillationConfig(f"{Path(model).name}-lsm")
        settings, chosen = named_settings(teachers), loss_of(loss)
        check_loss(chosen, args, settings)
        if needs_old(chosen) or chosen.mean != "token":
            raise ConfigurationError(
                f'{chosen.kind} with mean = "{chosen.mean}" cannot be computed of TRL\'s samples: '
                "they have no log-probabilities of the draw, and are packed by tokens",
                where="loss",
                fix='take a loss on a support, with mean = "token"',
            )
        if len(settings) > 1 and set(settings) != set(args.teacher_server_urls):
            raise ConfigurationError(
                f"the teachers are {', '.join(settings)}, and TRL knows "
                f"{', '.join(args.teacher_server_urls)}",
                where="teacher_server_urls",
                fix="give it the teachers' names: TRL marks a sample's teacher by their order",
            )
        super().__init__(model, args, **others)
        check_parallel(self)
        student = student_of_trl(self.model, self.processing_class, {})
        self._names = list(args.teacher_server_urls) if len(settings) > 1 else list(settings)
        readers = {n: one.model_copy(update={"prompt": "student"}) for n, one in settings.items()}
        self.links = Links(readers, student, args.run_name or Path(args.output_dir).name)
        try:
            self._objective = ServiceLoss(chosen, self.links, student, args.temperature)
        except BaseException:
            self.links.close()
            raise
        self._undrawn = student.undrawn
        self._measures = Measures()

    def close(self) -> None:
        """Closes the connections to the teachers."""
        self.links.close()

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Mapping[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """The mean loss of a micro-batch of packed samples, in nats, as a part of its step's."""
        real = inputs["attention_mask"].bool()
        ids, places = inputs["input_ids"][real], inputs["position_ids"][real]
        completion = inputs["completion_mask"][real].bool()
        which = inputs["teacher_id_idx"][real] if "teacher_id_idx" in inputs else ids * 0
        responses = self._responses(ids, places, completion, which)
        causal: Any = self.accelerator.unwrap_model(model)
        base = causal.get_base_model() if hasattr(causal, "get_base_model") else causal
        head = replace(read_head(base), undrawn=self._undrawn)
        asked = None
        if self._objective.loss.student_top_k == 0:
            asked = self._objective.request(responses)
        states = last_hidden_states(
            model,
            base.get_output_embeddings(),
            input_ids=ids[None],
            position_ids=places[None],
        )[0]
        # The state at a position predicts the token after it.
        hidden = states[:-1][completion[1:]]
        if asked is None:
            asked = self._objective.request(responses, hidden, head)
        sums = self._objective(responses, asked, hidden, head)
        self._measures.add(sums)
        found = torch.tensor([sums.count], device=ids.device)
        count = int(self.accelerator.gather(found).sum())
        processes, steps = self.accelerator.num_processes, self.current_gradient_accumulation_steps
        loss: Tensor = sums.total * (processes / max(count, 1) / steps)
        return (loss, None) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """TRL's log, with the means of what the loss measured since the last one."""
        logs.update(self._measures.take())
        super().log(logs, start_time)

    def _responses(
        self, ids: Tensor, places: Tensor, completion: Tensor, which: Tensor
    ) -> list[Response]:
        """The packed samples of a row, each of which begins at place 0."""
        starts = torch.nonzero(places == 0).flatten().tolist()
        found = []
        for start, end in zip(starts, [*starts[1:], len(ids)], strict=True):
            tokens: Int32 = ids[start:end].cpu().numpy().astype(np.int32)
            written = completion[start:end].cpu().numpy()
            first = int(np.argmax(written))
            if not written.any() or not written[first:].all():
                raise ConfigurationError(
                    "a sample's response is not one stretch of tokens at its end",
                    where="rollout_worker",
                    fix="use a worker that writes one turn to a sample",
                )
            prompt = tokens[:first]
            item = PromptItem(
                hashlib.sha256(prompt.tobytes()).hexdigest()[:32], prompt, TokenPrompt(prompt)
            )
            name = self._names[int(which[start])]
            kept = np.ones(len(tokens) - first, np.bool_)
            found.append(Response(AskedPrompt(item, name), tokens[first:], kept))
        return found
