"""Prompts as the teacher reads them: ids of its own vocabulary."""

from __future__ import annotations

from teacher_proto.types import ChatPrompt, Int32, Prompt, ScoreRequest, TextPrompt, TokenPrompt

from teacher_server.tokenizer import TeacherTokenizer


def teacher_prompt(request: ScoreRequest) -> tuple[Prompt, str]:
    """(prompt, field): the prompt that stands before the continuations on the teacher's side."""
    if request.teacher_prompt is not None:
        return request.teacher_prompt, "teacher_prompt"
    return request.prompt, "prompt"


def prompt_ids(prompt: Prompt, tokenizer: TeacherTokenizer, where: str) -> Int32:
    """int32 [P]: token ids as they are, text encoded, conversations rendered and encoded.

    Raises:
        InvalidRequestError: the conversation cannot be rendered.
    """
    match prompt:
        case TokenPrompt(token_ids):
            return token_ids
        case TextPrompt(text):
            return tokenizer.encode(text)
        case ChatPrompt(messages, add_generation_prompt, template_arguments):
            return tokenizer.encode(
                tokenizer.render(
                    messages,
                    add_generation_prompt=add_generation_prompt,
                    template_arguments=template_arguments,
                    where=f"{where}.chat",
                )
            )
