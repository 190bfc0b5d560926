"""What the engine needs of vLLM, wherever it runs. Nothing here imports vLLM."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from teacher_proto.errors import LsmError
from teacher_proto.types import Float32, Int32

from student_trainer.rollout.stopping import StopStrings
from student_trainer.rollout.vllm.sampler import Draws, masses_of

DIED = "ROLLOUT_ENGINE_DIED"


@dataclass(frozen=True)
class Request:
    """One response that is to be written.

    Attributes:
        prompt_ids: P tokens.
        draws: how its tokens are drawn.
        stop_ids: ids that end it.
        stop_strings: the texts that end it, of this response alone; None where there are none.
    """

    prompt_ids: Sequence[int]
    draws: Draws
    stop_ids: Sequence[int]
    stop_strings: StopStrings | None = None

    def ended_by(self, token: int) -> bool:
        """Whether a text ends the response with this token, its next."""
        strings = self.stop_strings
        return strings is not None and bool(strings.completed([0], [token]))


@dataclass(frozen=True)
class Response:
    """One response that was written.

    Attributes:
        place: of its request.
        token_ids: int32 [n], n >= 1.
        log_probs: float32 [n], of each token at the temperature, before top-p.
        masses: float32 [n], probabilities of the nuclei that they were drawn from.
        finished: False when the length limit cut it.
    """

    place: int
    token_ids: Int32
    log_probs: Float32
    masses: Float32
    finished: bool


class Core(Protocol):
    """vLLM, running."""

    @property
    def workers(self) -> int:
        """How many processes have a part of the weights."""
        ...

    def call(self, method: str, *arguments: Any) -> list[Any]:
        """Calls a method of every worker; returns what they answer, the first rank's first.

        Raises:
            LsmError: a worker has raised, does not answer, or is gone.
        """
        ...

    def write(self, requests: Sequence[Request]) -> Generator[Response]:
        """Writes responses and yields each as soon as it has ended. What is not written when the
        iterator is closed is given up.

        Raises:
            LsmError: vLLM died, or says nothing any more.
        """
        ...

    def reset_prefix_cache(self) -> bool:
        """Forgets the keys and values of earlier weights; False where it could not."""
        ...

    def sleep(self) -> None:
        """Gives memory back: weights and keys and values are gone until ``wake_up``."""
        ...

    def wake_up(self) -> None: ...

    def close(self) -> None: ...


class Writing:
    """A response on its way."""

    def __init__(self, place: int, request: Request) -> None:
        self._place = place
        self._request = request
        self._tokens: list[int] = []
        self._log_probs: list[float] = []
        self._ranks: list[int] = []

    def add(self, token: int, log_prob: float, rank: int) -> bool:
        """Adds its next token; returns whether a text ends it with this one."""
        self._tokens.append(token)
        self._log_probs.append(log_prob)
        self._ranks.append(rank)
        return self._request.ended_by(token)

    def response(self, *, finished: bool) -> Response:
        return Response(
            self._place,
            np.array(self._tokens, np.int32),
            np.array(self._log_probs, np.float32),
            masses_of(self._ranks),
            finished,
        )


class TransferCalls:
    """What vLLM's transfer calls on the workers' side, by the names of their methods."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self._core.call("init_weight_transfer_engine", init_info)

    def start_weight_update(self) -> None:
        self._core.call("start_weight_update")

    def update_weights(self, update_info: Any) -> None:
        self._core.call("update_weights", update_info)

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self._core.call("finish_weight_update")


def died(why: str, where: str = "rollout.vllm") -> LsmError:
    """The error of a vLLM that is gone or says nothing."""
    return LsmError(
        f"vLLM {why}",
        where=where,
        fix="look at what it has logged, free memory if that is what it lacked, and start again: "
        "the run resumes after its last complete step",
        reason=DIED,
    )
