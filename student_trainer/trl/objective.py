"""The loss of responses that TRL wrote: scores of the service, and a loss of ours on them.

T rows of a micro-batch, one for each token of its responses, one response after the other.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from teacher_proto.errors import LsmError
from teacher_proto.types import Bool, ContinuationScores, Int32
from torch import Tensor

from student_trainer.losses.parts.base import Head, LossBatch, LossResult
from student_trainer.losses.parts.loss import Loss, checked
from student_trainer.losses.parts.normaliser import token_log_probs, top_ids
from student_trainer.rollout.base import Rollout
from student_trainer.student.masking import token_mask
from student_trainer.student.model import Student
from student_trainer.teacher.left_out import is_left_out
from student_trainer.teacher.link import TeacherLink
from student_trainer.trl.links import Links
from student_trainer.trl.prompts import AskedPrompt
from student_trainer.update.batching import sequence_weights
from student_trainer.update.realigned import refuse_not_realigned, usable_rows


@dataclass(frozen=True)
class Request:
    """A response on its way to its teacher.

    Attributes:
        support_ids: int32 [n, K], the student's own ids that it is scored at; None without.
    """

    scores: Future[list[ContinuationScores]]
    support_ids: Int32 | None


@dataclass(frozen=True)
class Response:
    """A response that TRL wrote.

    Attributes:
        token_ids: int32 [n].
        kept: bool [n], False at tokens that are not to be learnt from.
    """

    asked: AskedPrompt
    token_ids: Int32
    kept: Bool


@dataclass
class LossSums:
    """A micro-batch's losses as sums.

    Attributes:
        total: scalar with gradient: the sum of the rows' losses, or of the responses' mean ones
            with ``loss.mean = "sequence"``.
        count: what the mean divides ``total`` by: its used rows, or responses.
        of: what there are in all: rows, or responses.
        metrics: sums and counts by name.
    """

    total: Tensor
    count: int = 0
    of: int = 0
    metrics: dict[str, tuple[float, float]] = field(
        default_factory=lambda: defaultdict(lambda: (0.0, 0.0))
    )

    def add(self, name: str, value: float, count: float) -> None:
        before, counted = self.metrics[name]
        self.metrics[name] = before + value, counted + count


def needs_old(loss: Loss) -> bool:
    """Whether a loss reads the student's log-probabilities of the tokens that it drew."""
    return loss.at_sampled_token or loss.own_ratio or loss.rollout_temperature


class Measures:
    """What the losses have measured since it was last taken: sums and counts by name."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[float, float]] = {}

    def add(self, sums: LossSums) -> None:
        for name, (value, count) in sums.metrics.items():
            before, counted = self._found.get(name, (0.0, 0.0))
            self._found[name] = before + value, counted + count

    def take(self, prefix: str = "") -> dict[str, float]:
        """The means by name, which are forgotten."""
        found, self._found = self._found, {}
        return {f"{prefix}{n}": value / count for n, (value, count) in found.items() if count}


class ServiceLoss:
    """One of our losses, on the scores of the teachers.

    Args:
        temperature: of the rollout.
    """

    def __init__(self, loss: Loss, links: Links, student: Student, temperature: float) -> None:
        self.loss = loss
        self.links = links
        self._temperature = temperature
        self._mask = token_mask(loss.mask, student.tokenizer, student.vocabulary_size)
        removed = torch.from_numpy(self._mask.support_ids.astype(np.int64)).to(student.device)
        if student.undrawn is not None:
            removed = torch.cat([removed, student.undrawn])
        self._removed = removed
        for link in links.values():
            if link.realigned:
                loss.check_realigned()

    def request(
        self, responses: Sequence[Response], hidden: Tensor | None = None, head: Head | None = None
    ) -> list[Request]:
        """Asks for the scores of each response.

        Args:
            hidden, head: [T, H] of the responses, and the student's projection, for losses on
                the student's own ids.
        """
        found = []
        start = 0
        for response in responses:
            link, count = self.links[response.asked.teacher], len(response.token_ids)
            support = None
            if self.loss.student_top_k:
                assert hidden is not None
                assert head is not None
                states = hidden[start : start + count].detach().to(head.weight.dtype)
                own = (self.loss.student_top_k, self.loss.chunk_rows, link.id_limit)
                support = top_ids(states, head, *own).cpu().numpy().astype(np.int32)
            unknown = np.full(count, np.nan, np.float32)
            rollout = Rollout(
                response.asked.item, 0, response.token_ids, unknown, True, support_ids=support
            )
            asked = self.links.rows_asked(response.asked.teacher, self.loss)
            scores = link.submit_rollouts(
                [rollout],
                asked.top_k,
                self.loss.temperature,
                log_tail=asked.log_tail,
                coarse=asked.coarse,
            )
            found.append(Request(scores, support))
            start += count
        return found

    def __call__(
        self, responses: Sequence[Response], asked: Sequence[Request], hidden: Tensor, head: Head
    ) -> LossSums:
        """The loss of the responses, with gradients in ``hidden`` and the head; in the head's
        dtype, also where the model computes in another.

        Args:
            asked: of ``request``.

        Raises:
            LsmError: as ``TeacherLink.submit_rollouts``; or too many rows are not finite.
        """
        with torch.autocast(hidden.device.type, enabled=False):
            return self._sums(responses, asked, hidden, head)

    def _sums(
        self, responses: Sequence[Response], asked: Sequence[Request], hidden: Tensor, head: Head
    ) -> LossSums:
        start = time.perf_counter()
        scores = [request.scores.result()[0] for request in asked]
        # Of no row: it holds the graph together, and is 0 whatever the rows are.
        sums = LossSums(total=hidden[:0].sum())
        sums.add("teacher_wait_seconds", time.perf_counter() - start, 1)
        counts = [len(response.token_ids) for response in responses]
        states = torch.split(hidden.to(head.weight.dtype), counts)
        for name, link in self.links.items():
            places = [i for i, r in enumerate(responses) if r.asked.teacher == name]
            if places:
                self._add_teacher(
                    sums,
                    name,
                    link,
                    [responses[i] for i in places],
                    [scores[i] for i in places],
                    [asked[i].support_ids for i in places],
                    torch.cat([states[i] for i in places]),
                    head,
                )
        return sums

    def _add_teacher(
        self,
        sums: LossSums,
        name: str,
        link: TeacherLink,
        responses: Sequence[Response],
        scores: Sequence[ContinuationScores],
        supports: Sequence[Int32 | None],
        hidden: Tensor,
        head: Head,
    ) -> None:
        """Adds the losses of the responses that one teacher scored."""
        loss = self.loss
        kept = [self._kept(link, r, s) for r, s in zip(responses, scores, strict=True)]
        ids = [response.token_ids for response in responses]
        weights = torch.from_numpy(np.concatenate(kept).astype(np.float32)).to(hidden.device)
        batch = LossBatch.from_scores(
            hidden,
            ids,
            scores,
            explicit_ids=[s for s in supports if s is not None] or None,
            old_log_probs=self._old(hidden, head, ids) if needs_old(loss) else None,
            weights=weights.cpu(),
        )
        rows = loss.rows(batch, removed=self._removed, realigned=link.realigned)
        assert rows.responses is not None
        result = self._mean(rows, head, len(responses))
        used = result.used
        self._refuse_not_finite(name, result, int((weights > 0).sum()))
        sums.total = sums.total + self.links.settings[name].weight * result.total
        by_response = loss.mean == "sequence"
        sums.of += len(responses) if by_response else len(weights)
        sums.count += len(torch.unique(rows.responses[used])) if by_response else int(used.sum())
        several = f"/{name}" if len(self.links) > 1 else ""
        sums.add(f"lsm_loss{several}", float(result.per_row[used].sum()), float(used.sum()))
        sums.add(f"used_share{several}", float(used.sum()), len(weights))
        full = float((used & ~rows.coarse_rows).sum())
        for metric, value in result.metrics.items():
            sums.add(f"{metric}{several}", value, full)
        refused = sum(map(is_left_out, scores))
        sums.add(f"refused_share{several}", refused, len(responses))

    def _mean(self, rows: LossBatch, head: Head, members: int) -> LossResult:
        """The loss at the weights of ``loss.mean``."""
        owners = rows.responses

        def loss(given: LossBatch, head: Head) -> LossResult:
            result = self.loss(given, head)
            return checked(result, given, self.loss.kind) if torch.is_grad_enabled() else result

        if self.loss.mean == "token":
            return loss(rows, head)
        assert owners is not None
        result = loss(
            replace(rows, weights=sequence_weights(rows.weights > 0, owners, members)), head
        )
        if bool(result.used[rows.weights > 0].all()):
            return result
        # Only the loss knows which rows it uses: where it drops some, it is computed again.
        return loss(replace(rows, weights=sequence_weights(result.used, owners, members)), head)

    def _kept(self, link: TeacherLink, response: Response, scores: ContinuationScores) -> Bool:
        """bool [n]: the rows that are learnt from."""
        kept = response.kept & ~self._mask.masked(response.token_ids)
        if not link.realigned:
            if is_left_out(scores):
                return np.zeros_like(kept)
            refuse_not_realigned(scores)
            return kept
        usable = usable_rows(scores, len(kept), sampled=self.loss.at_sampled_token)
        found: Bool = kept & usable
        return found

    @torch.no_grad()
    def _old(self, hidden: Tensor, head: Head, ids: Sequence[Int32]) -> list[Tensor]:
        """The student's log-probabilities of its tokens; it drew them with these weights."""
        sampled = torch.from_numpy(np.concatenate(ids).astype(np.int64)).to(hidden.device)
        found = token_log_probs(
            hidden.detach(), head, sampled, self._temperature, self.loss.chunk_rows
        )
        return list(torch.split(found.float(), [len(one) for one in ids]))

    def _refuse_not_finite(self, name: str, result: LossResult, rows: int) -> None:
        if result.dropped_non_finite > self.loss.max_non_finite_share * rows:
            raise LsmError(
                f"{result.dropped_non_finite} of {rows} rows are not finite: the step is refused",
                where=f"teachers[{name!r}]",
                fix="lower the learning rate or the teacher's top_k, or raise "
                "loss.max_non_finite_share if it is the teacher that has none for them",
                reason="NON_FINITE",
            )
