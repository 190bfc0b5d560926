"""The teachers of a run by their names: what scores a rollout, and what is asked of it.

A run with the section [teacher] has one, named ``ONLY_TEACHER``. With [teachers.NAME] each has
a link of its own, so that one that is away keeps nobody from asking the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack

from teacher_proto.types import ContinuationScores, TeacherIdentity

from student_trainer.rollout.base import PromptItem, Rollout
from student_trainer.settings.train import TrainConfig, section_of
from student_trainer.student.model import Student
from student_trainer.teacher.link import TeacherLink


class Teachers(Mapping[str, TeacherLink]):
    """The links to a run's teachers by name, in the order of the settings; a context manager
    that closes them."""

    def __init__(self, config: TrainConfig, links: Mapping[str, TeacherLink]) -> None:
        """
        Args:
            links: one for each of ``config.named_teachers``.
        """
        assert list(links) == list(config.named_teachers)
        self._config = config
        self._links = dict(links)

    @classmethod
    def connect(cls, config: TrainConfig, student: Student) -> Teachers:
        """Connects to every teacher of the settings.

        Raises:
            LsmError: as ``TeacherLink``, of the first that cannot be used; those before it are
                closed.
        """
        with ExitStack() as opened:
            links = {
                name: opened.enter_context(
                    TeacherLink(
                        settings, student, run=config.run.name, key=section_of(config, name)
                    )
                )
                for name, settings in config.named_teachers.items()
            }
            opened.pop_all()
        return cls(config, links)

    def __getitem__(self, name: str) -> TeacherLink:
        return self._links[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._links)

    def __len__(self) -> int:
        return len(self._links)

    def __enter__(self) -> Teachers:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        with ExitStack() as closing:
            for link in self._links.values():
                closing.callback(link.close)

    @property
    def several(self) -> bool:
        return len(self._links) > 1

    @property
    def realigned(self) -> frozenset[str]:
        """Names of the teachers that have another tokenizer than the student."""
        return frozenset(name for name, link in self._links.items() if link.realigned)

    @property
    def identities(self) -> dict[str, TeacherIdentity]:
        return {name: link.info.identity for name, link in self._links.items()}

    def of(self, prompt: PromptItem) -> TeacherLink:
        """The teacher that scores the responses to a prompt."""
        return self._links[prompt.teacher]

    def submit_rollouts(self, group: Sequence[Rollout]) -> Future[list[ContinuationScores]]:
        """Requests the scores that the loss needs of one prompt's responses, from its teacher.

        Returns:
            As ``TeacherLink.submit_rollouts``.
        """
        link, loss = self.of(group[0].prompt), self._config.loss
        asked = self._config.rows_asked(group[0].prompt.teacher, realigned=link.realigned)
        return link.submit_rollouts(
            group,
            asked.top_k,
            loss.temperature,
            log_tail=asked.log_tail,
            coarse=asked.coarse,
        )
