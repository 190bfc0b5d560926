"""What went wrong in a child process, as a message and as an error of the server."""

from __future__ import annotations

from teacher_proto.errors import ContractMismatchError, InvalidRequestError, LsmError

from teacher_server.failures import is_ending
from teacher_server.frames import Frame, FrameError

# Characters of a message of an error: it may quote what a file holds.
LONGEST = 4000
KINDS: dict[str, type[LsmError]] = {
    "InvalidRequestError": InvalidRequestError,
    "ContractMismatchError": ContractMismatchError,
}
# In place of an error's class: the process ran into its bound of memory.
MEMORY = "memory"


class WorkerError(Exception):
    """A child process failed at a step.

    Attributes:
        what: as a sentence about the tokenizer goes on.
        own: whether the tokenizer, or the request of this step, is what made it fail.
        limit: whether it took more time or memory than it may.
    """

    def __init__(self, what: str, *, own: bool, limit: bool = False) -> None:
        super().__init__(what)
        self.what = what
        self.own = own
        self.limit = limit


def error_frame(error: BaseException) -> Frame:
    """The message about a failure in a child; of one that is not the project's, no contents.

    Raises:
        BaseException: the error itself, where it ends the process.
    """
    if is_ending(error):
        raise error
    if isinstance(error, MemoryError):
        return Frame("error", {"class": MEMORY})
    if isinstance(error, LsmError):
        fields = {name: getattr(error, name)[:LONGEST] for name in ("what", "where", "fix")}
        own = type(error).__name__ if type(error).__name__ in KINDS else "InvalidRequestError"
        return Frame("error", {"class": own, "reason": error.reason, **fields})
    what = f"it makes the server's code fail with {type(error).__name__}"
    if type(error).__name__ == "PanicException":
        what = "it makes the tokenizers library fail"
    return Frame(
        "error",
        {
            "class": "InvalidRequestError",
            "what": f"the tokenizer cannot be used: {what}",
            "where": "tokenizer.json",
            "fix": "give the file as the tokenizers library itself writes it",
            "reason": "TOKENIZER_REFUSED",
        },
    )


def read_error(frame: Frame) -> LsmError:
    """The error of an ``error_frame``.

    Raises:
        FrameError: it is none.
        WorkerError: the process has run into its bound of memory.
    """
    name = frame.text("class")
    if name == MEMORY:
        raise WorkerError("took more memory than it may", own=True, limit=True)
    if name not in KINDS:
        raise FrameError("an error of an unknown class")
    what, where, fix = (frame.text(field, LONGEST) for field in ("what", "where", "fix"))
    return KINDS[name](what, where=where, fix=fix, reason=frame.text("reason", 100))
