"""Episodes that are played together: every turn is written for all of them at once, and the
environments answer while others are still written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future

from teacher_proto.types import Int32

from student_trainer.environments.environments import Environments
from student_trainer.environments.process import Observed
from student_trainer.rollout.base import PromptItem, Rollout
from student_trainer.rollout.engine import Ended, ResponseKey
from student_trainer.rollout.turns.played import Played, text_of, thinks_after
from student_trainer.rollout.turns.template import TurnTemplate
from student_trainer.student.model import Student
from student_trainer.tasks.environment import Turn
from student_trainer.tasks.judgement import Judgement

# Writes responses; ``ended`` as for ``RolloutEngine.write``.
Write = Callable[[Sequence[ResponseKey], Ended], list[Rollout]]


class Acting:
    """What plays the episodes of a run."""

    def __init__(
        self,
        student: Student,
        environments: Environments,
        template: TurnTemplate,
        tool_format: str = "",
    ) -> None:
        """
        Args:
            tool_format: as of ``Turn``.
        """
        self._student = student
        self._environments = environments
        self._template = template
        self._tool_format = tool_format

    def acts(self, prompt: PromptItem) -> bool:
        """Whether the responses to a prompt are episodes."""
        return prompt.task in self._environments.tasks

    def play(
        self,
        keys: Sequence[ResponseKey],
        write: Write,
        limit: int,
        *,
        ended: Ended | None = None,
    ) -> list[Rollout]:
        """The episodes of these responses. An episode depends on its key and on what ``write``
        draws for it, and not on the others.

        Args:
            keys: whose prompts' tasks act.
            limit: tokens of each whole response at most.
            ended: called with the episodes that are over, after each turn.

        Raises:
            LsmError: as ``write``; or the chat template does not write an observation.
            ConfigurationError: as ``Environments.act``.
        """
        every = [
            Played(
                key,
                self._environments.tasks[key.prompt.task],
                limit,
                self._environments.begin(key.prompt),
            )
            for key in keys
        ]
        live = list(range(len(every)))
        try:
            while live:
                self._turn([every[place] for place in live], write)
                over = [place for place in live if every[place].ended is not None]
                live = [place for place in live if every[place].ended is None]
                if over and ended is not None:
                    ended([(place, every[place].rollout()) for place in over])
        finally:
            for place in live:
                self._environments.forget(every[place].playing)
        return [one.rollout() for one in every]

    def _turn(self, live: Sequence[Played], write: Write) -> None:
        """One turn of each of these episodes."""
        answers: dict[int, Future[Observed | Judgement]] = {}
        keys = [one.next_key for one in live]

        def wrote(found: list[tuple[int, Rollout]]) -> None:
            for place, turn in found:
                live[place].wrote(turn)
                if live[place].ended is None:
                    said = self._said(turn, keys[place].prompt.token_ids)
                    answers[place] = self._environments.act(live[place].playing, said)

        write(keys, wrote)
        judged: list[tuple[Played, Future[Judgement]]] = []
        for place, one in enumerate(live):
            if place in answers:
                self._answered(one, answers[place].result())
            if one.ended is not None and one.judgement is None:
                judged.append((one, self._environments.judge(one.playing)))
        for one, judgement in judged:
            one.judgement = judgement.result()

    def _answered(self, one: Played, answer: Observed | Judgement) -> None:
        """Takes what an environment has answered."""
        if isinstance(answer, Judgement):
            one.ended, one.judgement = "failed", answer
            self._environments.forget(one.playing)
            return
        one.cut += answer.cut
        if answer.observation.done:
            one.ended = "done"
        elif one.turns >= one.task.turns:
            one.ended = "turns"
        else:
            by_token = one.last.ended_by_token(self._student.terminators)
            one.observed(
                self._template.following(
                    one.key.prompt.source, answer.observation.messages, ended=by_token
                )
            )

    def _said(self, turn: Rollout, before: Int32) -> Turn:
        """What the environment gets of a turn.

        Args:
            before: int32 [n], what the student has read when it began.
        """
        ids = turn.token_ids.tolist()
        if turn.ended_by_token(self._student.terminators):
            ids = ids[:-1]
        tokenizer = self._student.tokenizer
        return Turn(
            text_of(tokenizer, ids, special=False),
            text_of(tokenizer, ids, special=True),
            self._tool_format,
            thinks_after(tokenizer, before),
        )
