"""The page that shows a teacher's rows: its files, its documents, and the page as one file."""

from teacher_proto.page.document import FORMAT, check_document, make_document, sequence_of_reply
from teacher_proto.page.offline import embedded, render_offline

__all__ = [
    "FORMAT",
    "check_document",
    "embedded",
    "make_document",
    "render_offline",
    "sequence_of_reply",
]
