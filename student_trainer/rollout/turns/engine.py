"""An engine that plays the episodes of tasks that act, and leaves other responses to the engine
that it writes with."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from student_trainer.rollout.base import PromptItem, Rollout
from student_trainer.rollout.engine import Ended, ResponseKey, RolloutEngine, response_keys
from student_trainer.rollout.generate import write as write_with
from student_trainer.rollout.turns.acting import Acting, Write
from student_trainer.settings.rollout import RolloutSettings
from student_trainer.student.model import Student


class TurnsEngine:
    """Every turn is written by the engine; see ``rollout.engine.RolloutEngine``."""

    def __init__(self, engine: RolloutEngine, acting: Acting, settings: RolloutSettings) -> None:
        self._engine = engine
        self._acting = acting
        self._settings = settings
        self._version: int | None = None

    @property
    def name(self) -> str:
        return self._engine.name

    @property
    def replays(self) -> bool:
        return self._engine.replays

    def update_weights(self, version: int) -> None:
        self._engine.update_weights(version)
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
        keys = response_keys(prompts, self._settings.group_size, mine)
        return self.write(keys, seed=seed, step=step, ended=ended)

    def write(
        self, keys: Sequence[ResponseKey], *, seed: int, step: int, ended: Ended | None = None
    ) -> list[Rollout]:
        def written(some: Sequence[ResponseKey], ended: Ended) -> list[Rollout]:
            assert self._version is not None, "it is told the version of its weights first"
            # An engine that rests between its calls is to wake up.
            self._engine.update_weights(self._version)
            return self._engine.write(some, seed=seed, step=step, ended=ended)

        return write_all(self._acting, keys, written, self._settings.max_new_tokens, ended=ended)

    def close(self) -> None:
        self._engine.close()


def write_all(
    acting: Acting,
    keys: Sequence[ResponseKey],
    write: Write,
    limit: int,
    *,
    ended: Ended | None = None,
) -> list[Rollout]:
    """Writes responses of which some may be episodes; arguments as of ``Acting.play``."""
    found: dict[int, Rollout] = {}

    def take(places: Sequence[int], some: list[tuple[int, Rollout]]) -> None:
        of_all = [(places[nth], one) for nth, one in some]
        found.update(of_all)
        if ended is not None:
            ended(of_all)

    single = [place for place, key in enumerate(keys) if not acting.acts(key.prompt)]
    if single or not keys:
        write([keys[place] for place in single], partial(take, single))
    played = [place for place, key in enumerate(keys) if acting.acts(key.prompt)]
    acting.play(
        [keys[place] for place in played],
        write,
        limit,
        ended=partial(take, played),
    )
    return [found[place] for place in range(len(keys))]


def respond(
    student: Student,
    prompts: Sequence[PromptItem],
    settings: RolloutSettings,
    acting: Acting | None,
    *,
    seed: int,
    step: int,
) -> list[Rollout]:
    """``generate`` with the model itself, outside of a step: with episodes for the prompts of
    tasks that act.

    Args:
        acting: None where no task acts.

    Raises:
        LsmError: as ``generate`` and ``Acting.play``.
    """
    write = partial(write_with, student, settings=settings, seed=seed, step=step)
    keys = response_keys(prompts, settings.group_size)
    if acting is None:
        return write(keys)
    return write_all(
        acting,
        keys,
        lambda some, ended: write(some, ended=ended),
        settings.max_new_tokens,
    )
