"""The JSON of requests, replies and errors."""

from teacher_server.http.models.bodies import (
    Body,
    ContinuationBody,
    MessageBody,
    PromptBody,
    RenderBody,
    ScoreBody,
    SegmentBody,
)
from teacher_server.http.models.replies import ErrorBody, ScoreReplyBody

__all__ = [
    "Body",
    "ContinuationBody",
    "ErrorBody",
    "MessageBody",
    "PromptBody",
    "RenderBody",
    "ScoreBody",
    "ScoreReplyBody",
    "SegmentBody",
]
