"""Asks a teacher the same several times, at every address that its service's name stands for."""

from __future__ import annotations

import secrets
import socket
from collections.abc import Sequence
from dataclasses import dataclass, replace

from teacher_proto.channel import is_on_this_machine
from teacher_proto.errors import DeadlineError, LsmError, TeacherUnavailableError
from teacher_proto.types import (
    Continuation,
    ContinuationScores,
    Int32,
    Returns,
    ScoreRequest,
    Segment,
)

from student_trainer.rollout.base import PromptItem
from student_trainer.settings.teacher import TeacherSettings
from student_trainer.teacher.connection import connect
from student_trainer.teacher.left_out import is_of_a_row, left_out
from student_trainer.teacher.link import TeacherLink

MOST_ADDRESSES = 16


@dataclass(frozen=True)
class Answers:
    """What a teacher said to one question.

    Attributes:
        scores: one for each time that it was asked, at least two.
        addresses: at how many addresses of the service.
        silent: further addresses, at which nobody answered.
    """

    scores: Sequence[ContinuationScores]
    addresses: int = 1
    silent: Sequence[str] = ()


def ask_again(
    link: TeacherLink, run: str, prompt: PromptItem, response: Int32, top_k: int, temperature: float
) -> Answers:
    """Has a response scored twice over the link's connection, and once over a new one to each of
    the service's other addresses. Every request has an id of its own: a service answers one that
    it knows from what it keeps, and computes the others.

    Args:
        response: int32 [n].

    Raises:
        ContractMismatchError: an answer is of another teacher than the link's.
        LsmError: as ``TeacherClient.score``.
    """
    returns = Returns(log_tail=top_k > 0, realignment=link.realigned)
    asked = link.request(prompt, (Continuation((Segment(response),)),), top_k, temperature, returns)
    try:
        scores = [link.answer(_anew(asked)) for _ in range(2)]
    except LsmError as error:
        if not is_of_a_row(error):
            raise
        return Answers([left_out(error)] * 2)
    found, silent = addresses(link.settings), []
    for address in found if len(found) > 1 else ():
        settings = link.settings.model_copy(update={"address": address, "attempts": 1})
        try:
            with connect(settings, run) as client:
                scores.append(link.answer(_anew(asked), client))
        except (TeacherUnavailableError, DeadlineError):
            silent.append(address)
    return Answers(scores, max(len(found) - len(silent), 1), silent)


def _anew(request: ScoreRequest) -> ScoreRequest:
    return replace(request, request_id=secrets.token_hex(16))


def addresses(settings: TeacherSettings) -> list[str]:
    """The addresses, ``host:port``, that the service's name stands for; the name itself on this
    machine, and with TLS, whose certificates are of names."""
    host, _, port = settings.address.rpartition(":")
    encrypted = settings.tls or settings.ca is not None or settings.cert is not None
    if encrypted or is_on_this_machine(settings.address):
        return [settings.address]
    try:
        every = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
    except (OSError, ValueError):
        return [settings.address]
    hosts = dict.fromkeys(str(address[0]) for *_, address in every)
    shown = [f"[{one}]" if ":" in one else one for one in hosts]
    return [f"{one}:{port}" for one in shown[:MOST_ADDRESSES]]
