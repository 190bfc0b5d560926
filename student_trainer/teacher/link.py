"""The trainer's link to its teacher, which keeps one identity from the first reply to the
last.

A request holds a prompt once and its responses. Its id is a digest of its content, so
that a repeated request has the same id.

When the teacher has another tokenizer, the student's is registered at the start. Prompts
are then sent as messages or text, which the teacher renders itself, and rows come back
realigned (docs/realignment.md). With one tokenizer the teacher reads the student's tokens, or
what its own chat template prints (``teacher.prompt``).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace

import numpy as np
from teacher_proto.client import AsyncTeacherClient, TeacherClient
from teacher_proto.errors import ConfigurationError, ContractMismatchError, LsmError
from teacher_proto.rows import required
from teacher_proto.tokenizer_hash import other_version
from teacher_proto.types import (
    Continuation,
    ContinuationScores,
    Int32,
    Level,
    Prompt,
    Returns,
    ScoreReply,
    ScoreRequest,
    Segment,
    ServerLimits,
    TeacherInfo,
    TokenizerLevels,
    TokenizerUpload,
    TokenPrompt,
)

from student_trainer.rollout.base import PromptItem, Rollout
from student_trainer.settings.teacher import TeacherSettings
from student_trainer.student.model import Student
from student_trainer.teacher.connection import connect, find_teacher
from student_trainer.teacher.left_out import is_of_a_row, left_out
from student_trainer.teacher.own_rows import continuation_of, whole_rows
from student_trainer.teacher.own_tokenizer import register, registration_of
from student_trainer.teacher.reading import TeacherReading
from student_trainer.teacher.requests import (
    LARGEST_K,
    MESSAGE_BYTES,
    concatenate,
    limits_needed,
    request_digest,
    row_bytes,
    split_group,
)


class TeacherLink:
    """Requests scores from one teacher; a context manager.

    Attributes:
        key: of the section of its settings, for errors.
        client: the synchronous client.
        info: the teacher as it was when the link was made.
        limits: of its server.
        level: how the student's tokenizer relates to the teacher's.
        difference: which of their parts differ, as the server found; empty where none does.
        realigned: whether the teacher has another tokenizer, so that rows are realigned.
        registration: what the service is told of the student's tokenizer; None with one tokenizer.
        reading: what the teacher reads of prompts.
        renders: whether it renders conversations itself.
        id_limit: only ids below it are in the student's own support.
    """

    client: TeacherClient
    info: TeacherInfo
    limits: ServerLimits
    level: Level
    difference: str
    realigned: bool
    registration: TokenizerUpload | None
    reading: TeacherReading
    renders: bool
    id_limit: int

    def __init__(
        self, settings: TeacherSettings, student: Student, *, run: str, key: str = "teacher"
    ) -> None:
        """Connects, finds the teacher and compares the tokenizers.

        Args:
            key: of the section of the settings, for errors.

        Raises:
            TeacherUnavailableError, DeadlineError: nothing answers at the
                address within ``connect_timeout_seconds``.
            UnauthenticatedError, ForbiddenError: the credentials are refused, in general
                or for this run.
            ConfigurationError: the server has no teacher of this name, or one with another
                tokenizer is to read the student's tokens.
            ContractMismatchError: its tokenizer is not the student's, and the service
                cannot realign to the student's; or the two programs fingerprint tokenizers
                by different versions.
        """
        self.settings = settings
        self.key = key
        self._run = run
        self._tokenizer_hash = student.tokenizer_hash
        # Ids of the head beyond the last token would take up places in the teacher's top K.
        self._vocabulary_size = student.drawn_below
        # First come, first served.
        self._turns = asyncio.Semaphore(settings.max_in_flight)
        self.client = connect(settings, run)
        try:
            server = self.client.get_teacher(timeout=settings.connect_timeout_seconds)
            self.limits = server.limits
            self.info = find_teacher(server.teachers, settings, key=key)
            self._check_version()
            self.realigned = self.info.identity.tokenizer_hash != student.tokenizer_hash
            self.reading = TeacherReading(
                self.client, self.info, settings, student, realigned=self.realigned, key=key
            )
            self.renders = self.reading.renders
            self.id_limit = self._vocabulary_size
            if not self.realigned:
                self.id_limit = min(self.id_limit, self.info.vocabulary_size)
            self.level, self.difference = Level.SAME, ""
            self.registration = registration_of(student, run) if self.realigned else None
            if self.registration is not None:
                levels = self.register(self.client, timeout=settings.timeout_seconds)
                self.level = levels[self.info.name]
                self.difference = levels.differences.get(self.info.name, "")
        except BaseException:
            self.client.close()
            raise

    def __enter__(self) -> TeacherLink:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        self.client.close()

    @property
    def called(self) -> str:
        """The teacher in a sentence, by its name where a run can have several."""
        _, several, name = self.key.partition("teachers.")
        return f"teacher {name}" if several else "the teacher"

    def register(self, client: TeacherClient, *, timeout: float) -> TokenizerLevels:
        """Registers the student's tokenizer, which is not the teacher's, over a connection to
        the service.

        Raises:
            LsmError: as ``own_tokenizer.register``.
        """
        upload = required(self.registration, "registration")
        return register(client, self.info, self.limits, upload, timeout=timeout)

    def wire_prompt(self, prompt: PromptItem) -> Prompt:
        """What the teacher reads of a prompt, as a request has it."""
        return self.reading.wire_prompt(prompt)

    def check_fits(
        self,
        *,
        top_k: int,
        longest_prompt: int,
        longest_response: int,
        explicit: int = 0,
        own_top_k: bool = False,
    ) -> None:
        """Refuses, before any work, requests that the server would refuse later.

        Args:
            explicit: ids scored for each row besides the top K.
            own_top_k: whether K is a setting of this teacher's own section.

        Raises:
            ConfigurationError: K, a sequence, a request or a reply would exceed a limit.
        """
        needs = limits_needed(
            self.info, self.limits, top_k, explicit, longest_prompt, longest_response
        )
        for key, needed, limit, what in needs:
            if needed > limit:
                raise ConfigurationError(
                    f"{needed} is more than {self.called} takes ({what}: {limit})",
                    where=f"{self.key}.top_k" if what == LARGEST_K and own_top_k else key,
                    fix="lower the setting, or raise the server's limit",
                )

    def submit_rollouts(
        self,
        group: Sequence[Rollout],
        top_k: int,
        temperature: float,
        *,
        log_tail: bool = False,
        coarse: bool = False,
    ) -> Future[list[ContinuationScores]]:
        """Requests the scores of one prompt's responses.

        Rollouts with ``support_ids`` are also scored at these ids. At most
        ``max_in_flight`` requests are sent at a time; the others wait for their turn, in
        order.

        Args:
            log_tail: also the mass outside each row's support.
            coarse: also rows of class COARSE in place of masked ones, of a teacher with another
                tokenizer.

        Returns:
            A future of the scores in the order of the responses; those that the teacher
            refuses by themselves are ``left_out``. It raises
            ContractMismatchError when a reply is of another teacher than ``info``, and
            the errors of ``TeacherClient.score``.

        Raises:
            TeacherUnavailableError: the link is closed.
        """
        assert len({rollout.prompt.prompt_id for rollout in group}) == 1
        prompt = group[0].prompt
        asked = {0 if r.support_ids is None else r.support_ids.shape[1] for r in group}
        sent = self.wire_prompt(prompt)
        # What it renders itself is about as long in the student's tokens.
        read = sent if isinstance(sent, TokenPrompt) else prompt.read_by_teacher
        pieces = split_group(
            len(read.token_ids),
            [len(r.token_ids) for r in group],
            top_k,
            self.limits,
            max(asked),
        )
        returns = Returns(log_tail=log_tail, realignment=self.realigned, coarse=coarse)
        requests = [
            self.request(
                prompt,
                tuple(continuation_of(r, whole=self.realigned) for r in group[piece]),
                top_k,
                temperature,
                returns,
            )
            for piece in pieces
        ]
        return self.client.start(lambda client: self._score_all(client, requests, group))

    async def _score_all(
        self,
        client: AsyncTeacherClient,
        requests: Sequence[ScoreRequest],
        group: Sequence[Rollout],
    ) -> list[ContinuationScores]:
        """As ``_score``, with a row for every token of each response."""
        scores = await self._score(client, requests)
        if self.realigned:
            return scores
        return [whole_rows(one, r.own) for one, r in zip(scores, group, strict=True)]

    async def _score(
        self, client: AsyncTeacherClient, requests: Sequence[ScoreRequest]
    ) -> list[ContinuationScores]:
        """The scores of the requests in order, or the first error that one of them raises.

        What the teacher refuses of a request is asked for again response by response, and
        those that it refuses by themselves are ``left_out``.
        """

        async def ask(request: ScoreRequest) -> Sequence[ContinuationScores]:
            async with self._turns:
                reply = await client.score(request, timeout=self.settings.timeout_seconds)
            self.check_identity(reply)
            return reply.results

        async def score(request: ScoreRequest) -> Sequence[ContinuationScores]:
            try:
                return await ask(request)
            except LsmError as error:
                if not is_of_a_row(error):
                    raise
                if len(request.continuations) == 1:
                    return [left_out(error)]
            parts = [_alone(request, index) for index in range(len(request.continuations))]
            return [found for part in parts for found in await score(part)]

        found = await asyncio.gather(*(score(request) for request in requests))
        return [scores for scored in found for scores in scored]

    def score_rows(
        self, prompt: PromptItem, response: Int32, rows: Int32, top_k: int, temperature: float
    ) -> ContinuationScores:
        """Scores some rows of one response and waits for them.

        Args:
            response: int32 [n].
            rows: int32 [R], strictly increasing, in [0, n).
            top_k: K, up to the whole vocabulary.

        Returns:
            Supports and log-probabilities of the sampled tokens of the R rows; ``left_out``
            where the teacher refuses the response.

        Raises:
            ContractMismatchError: a reply is of another teacher than ``info``.
            LsmError: as ``TeacherClient.score``, of what is not of this response alone.
        """
        most = max((self.limits.max_reply_bytes - MESSAGE_BYTES) // row_bytes(top_k), 1)
        parts = []
        for start in range(0, len(rows), most):
            chosen = rows[start : start + most].astype(np.int32)
            continuation = Continuation((Segment(response),), rows=chosen)
            returns = Returns(realignment=self.realigned)
            request = self.request(prompt, (continuation,), top_k, temperature, returns)
            try:
                parts.append(self.answer(request))
            except LsmError as error:
                if not is_of_a_row(error):
                    raise
                return left_out(error)
        return concatenate(parts)

    def describe_tokenizers(self) -> str:
        """One sentence on how the student's tokenizer relates to the teacher's."""
        own, theirs = self._tokenizer_hash[:16], self.info.identity.tokenizer_hash[:16]
        if not self.realigned:
            return f"one tokenizer, {own}"
        return (
            f"the student's tokenizer ({own}) is not the teacher's ({theirs}): level "
            f"{self.level.name}, its rows are realigned"
            + (
                f"; {self.difference} (the student's, then the teacher's)"
                if self.difference
                else ""
            )
        )

    def _check_version(self) -> None:
        theirs = self.info.identity.tokenizer_hash
        outdated = other_version(theirs, here="the trainer", there="the server")
        if outdated is not None:
            raise ContractMismatchError(
                outdated[0],
                where=f"{self.key}.address",
                fix=outdated[1],
                reason="TOKENIZER_HASH_VERSION",
            )

    def answer(
        self, request: ScoreRequest, client: TeacherClient | None = None
    ) -> ContinuationScores:
        """The scores of the only continuation of a request, once they are there.

        Args:
            client: of another address of the service; None: the link's own.

        Raises:
            ContractMismatchError: the reply is of another teacher than ``info``.
            LsmError: as ``TeacherClient.score``.
        """
        seconds = self.settings.timeout_seconds
        if client is not None:
            seconds = min(seconds, self.settings.connect_timeout_seconds)
            client.get_teacher(timeout=seconds)
            if self.realigned:  # what was registered elsewhere is not known there
                self.register(client, timeout=seconds)
        reply = (client or self.client).score(request, timeout=seconds)
        self.check_identity(reply)
        return reply.results[0]

    def check_identity(self, reply: ScoreReply) -> None:
        """Raises ContractMismatchError when a reply is of another teacher than ``info``."""
        if reply.identity != self.info.identity:
            raise ContractMismatchError(
                f"a reply is of teacher {reply.identity.digest}, the run started with "
                f"{self.info.identity.digest}",
                where=f"{self.key}.name",
                fix="serve the same teacher again and resume, or start another run",
                reason="IDENTITY_CHANGED",
            )

    def request(
        self,
        prompt: PromptItem,
        continuations: tuple[Continuation, ...],
        top_k: int,
        temperature: float,
        returns: Returns,
    ) -> ScoreRequest:
        """The request that asks this teacher for the scores of continuations of a prompt."""
        read = self.wire_prompt(prompt)
        alone = prompt.for_teacher is not None
        request = ScoreRequest(
            request_id="",
            run=self._run,
            teacher=self.info.name,
            tokenizer_hash=self._tokenizer_hash,
            prompt=TokenPrompt(prompt.token_ids) if alone else read,
            teacher_prompt=read if alone else None,
            continuations=continuations,
            top_k=top_k,
            temperature=temperature,
            returns=returns,
            student_vocabulary_size=self._vocabulary_size,
            expected_identity=self.info.identity.digest,
        )
        return replace(request, request_id=request_digest(request))


def _alone(request: ScoreRequest, index: int) -> ScoreRequest:
    """The request for one of the continuations."""
    part = replace(request, continuations=(request.continuations[index],))
    return replace(part, request_id=request_digest(part))
