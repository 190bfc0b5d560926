"""``POST /v1/render``: prompts as they come, and as the teacher reads them."""

from __future__ import annotations

from functools import partial
from typing import Any

from teacher_proto.types import Prompt, RenderedPrompt, RenderRequest

from teacher_server.http.body import check_counts, parse_body, validated
from teacher_server.http.convert import read_prompt
from teacher_server.http.models import PromptBody, RenderBody
from teacher_server.http.replies import numbers_json, to_json
from teacher_server.scoring.context import Bytes
from teacher_server.scoring.render import RawPrompt


def parse_render_body(body: Bytes) -> RenderBody:
    """Raises InvalidRequestError naming the first field that is wrong, prompts aside."""
    check_counts(body)
    return validated(RenderBody, parse_body(body))


def render_request(body: RenderBody, teacher: str, default_run: str) -> RenderRequest:
    run = default_run if body.run is None else body.run
    return RenderRequest(run, teacher, body.text, body.token_ids, body.max_reply_bytes)


def raw_prompts(body: RenderBody, size: int) -> tuple[RawPrompt, ...]:
    """``size``: bytes of the body."""
    share = size // max(1, len(body.prompts))
    return tuple(RawPrompt(share, partial(_decode, one)) for one in body.prompts)


def _decode(document: Any) -> Prompt:
    return read_prompt(validated(PromptBody, document, "prompt"), "prompt")


def rendered_json(prompt: RenderedPrompt) -> bytes:
    """In the form of ``models.RenderedReply``, with what it holds only."""
    found: dict[str, Any] = {"token_count": prompt.token_count}
    if prompt.text is not None:
        found["text"] = prompt.text
    if prompt.refusal is not None:
        found["refusal"] = vars(prompt.refusal)
    written = to_json(found)
    if prompt.token_ids is None:
        return written
    return b'%b,"token_ids":%b}' % (written[:-1], numbers_json(prompt.token_ids))
