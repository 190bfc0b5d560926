"""Rollouts that vLLM writes; nothing here imports vLLM."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import closing

import numpy as np

from student_trainer.rollout.base import PromptItem, Rollout
from student_trainer.rollout.engine import Ended, ResponseKey, response_keys
from student_trainer.rollout.stopping import StopStrings, pieces_of
from student_trainer.rollout.vllm.core import Core, Request, Response, died
from student_trainer.rollout.vllm.gap import check_gap
from student_trainer.rollout.vllm.hand_over import HandOver, make_hand_over
from student_trainer.rollout.vllm.sampler import Draws
from student_trainer.rollout.vllm.start import start_core
from student_trainer.rollout.vllm.student_weights import check_can_be_handed_over
from student_trainer.rollout.vllm.weights import failed
from student_trainer.settings.rollout import RolloutSettings
from student_trainer.student.model import Student, not_finite

log = logging.getLogger(__name__)


class VllmEngine:
    """vLLM draws from the same random streams as the transformers engine, and its logits round
    otherwise. A batch that is written anew is therefore another one now and then.

    Raises:
        ConfigurationError: vLLM is not there, does not take this student, or memory is short.
    """

    name = "vllm"
    replays = False

    def __init__(self, student: Student, settings: RolloutSettings, longest: int) -> None:
        """``longest``: tokens of the longest prompt with its response."""
        check_can_be_handed_over(student)
        self._student = student
        self._settings = settings
        self._asleep = False
        self._version: int | None = None
        self._core: Core = start_core(student, settings, longest)
        try:
            undrawn = student.undrawn
            ids = [] if undrawn is None else undrawn.tolist()
            facts = self._core.call("rollout_install", ids)[0]
            _check_facts(facts, student)
            self._hand_over: HandOver = make_hand_over(student, settings.vllm, self._core)
            self._rest()
        except BaseException:
            self._core.close()
            raise

    def update_weights(self, version: int) -> None:
        """Hands the student's weights over.

        Raises:
            LsmError: vLLM could not take them over, or is gone.
        """
        if self._version == version and not self._asleep:
            return
        self._version = None
        if self._asleep:
            self._core.wake_up()
            self._asleep = False
        self._hand_over(version)
        if not self._core.reset_prefix_cache():
            raise failed("it still keeps what it has read with earlier ones")
        self._check_version(version)
        self._version = version

    def generate(
        self,
        prompts: Sequence[PromptItem],
        *,
        seed: int,
        step: int,
        ended: Ended | None = None,
        mine: Sequence[int] | None = None,
    ) -> list[Rollout]:
        """See ``rollout.engine.RolloutEngine``. Every response is handed to ``ended`` by itself,
        as soon as it has ended.

        Raises:
            LsmError: no weights were handed over, vLLM is gone, a logit is not finite, or vLLM's
                log-probabilities are too far from the trainer's own.
        """
        keys = response_keys(prompts, self._settings.group_size, mine)
        return self.write(keys, seed=seed, step=step, ended=ended)

    def write(
        self, keys: Sequence[ResponseKey], *, seed: int, step: int, ended: Ended | None = None
    ) -> list[Rollout]:
        """See ``rollout.engine.RolloutEngine``; as ``generate``."""
        if self._version is None:
            raise failed("none were handed over since the last hand-over failed")
        if not keys:
            self._rest()
            return []
        self._check_version(self._version)
        rollouts: dict[int, Rollout] = {}
        requests = [self._request(key, seed, step) for key in keys]
        with closing(self._core.write(requests)) as written:
            for response in written:
                rollout = self._rollout(keys[response.place], response)
                rollouts[response.place] = rollout
                if ended is not None:
                    ended([(response.place, rollout)])
        if len(rollouts) < len(keys):
            raise died(f"has written {len(rollouts)} of {len(keys)} responses")
        found = [rollouts[place] for place in range(len(keys))]
        check_gap(self._student, self._settings, found)
        self._rest()
        return found

    def close(self) -> None:
        """Ends vLLM, where the trainer has started it."""
        self._core.close()

    def _rest(self) -> None:
        """Sleeps until the next hand-over, where the settings ask for it."""
        if self._settings.vllm.sleep and not self._asleep:
            self._core.sleep()
            self._asleep = True

    def _check_version(self, version: int) -> None:
        """Every worker says itself which weights it has."""
        for rank, answer in enumerate(self._core.call("rollout_version")):
            if answer["version"] != version:
                raise failed(f"its worker {rank} has version {answer['version']}, not {version}")

    def _request(self, key: ResponseKey, seed: int, step: int) -> Request:
        prompt, settings = key.prompt, self._settings
        strings = settings.stop_strings
        by_text = StopStrings(strings, pieces_of(self._student.tokenizer), 1) if strings else None
        return Request(
            prompt.token_ids.tolist(),
            Draws(
                seed,
                step,
                prompt.prompt_id,
                key.index,
                settings.max_new_tokens if key.limit is None else key.limit,
                settings.temperature,
                settings.top_p,
            ),
            self._student.terminators,
            by_text,
        )

    def _rollout(self, key: ResponseKey, response: Response) -> Rollout:
        prompt, index = key.prompt, key.index
        if not np.isfinite(response.log_probs).all():
            raise not_finite(f"rollout {index} of prompt {prompt.prompt_id}, written by vLLM")
        return Rollout(
            prompt,
            index,
            response.token_ids,
            response.log_probs,
            response.finished,
            nucleus_mass=response.masses,
            weights_version=self._version,
        )


def _check_facts(facts: dict[str, object], student: Student) -> None:
    """Whether vLLM has loaded a model of the student's kind."""
    dtype = str(student.dtype).removeprefix("torch.")
    for name, expected in (("vocabulary_size", student.vocabulary_size), ("dtype", dtype)):
        if facts[name] != expected:
            raise failed(f"its model has {name} {facts[name]}, and the student {expected}")
