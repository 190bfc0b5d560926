"""The loop of a student's process: a message in, its answer out, one after the other.

The messages of a request that is realigned hold its number, ``session``: ``start`` begins it,
``drop`` ends it, and everything between is said to what ``realign.requests.serve`` yields.
"""

from __future__ import annotations

import socket
from collections.abc import Generator, Mapping

from teacher_server.frames import Frame, FrameError, receive, send
from teacher_server.realign.requests.serve import serve
from teacher_server.workers.inside.errors import error_frame
from teacher_server.workers.inside.student import Student, TeacherSide

# Requests that are realigned at once.
MAX_SESSIONS = 1024


def run(parent: socket.socket, teachers: Mapping[str, TeacherSide]) -> None:
    """Answers until the server closes the connection."""
    student = Student(teachers)
    sessions: dict[int, Generator[Frame, Frame, None]] = {}
    while (frame := receive(parent)) is not None:
        try:
            answer = _answer(frame, student, sessions)
        except BaseException as error:
            answer = error_frame(error)
        del frame
        send(parent, answer)
        del answer


def _answer(
    frame: Frame, student: Student, sessions: dict[int, Generator[Frame, Frame, None]]
) -> Frame:
    if "session" not in frame.header:
        return student.answer(frame)
    number = frame.integer("session")
    if frame.kind == "drop":
        sessions.pop(number, None)
        return Frame("drop")
    if frame.kind == "start":
        if len(sessions) >= MAX_SESSIONS:
            raise FrameError(f"{MAX_SESSIONS} requests are realigned already")
        session = serve(student.pair(frame.text("teacher")), frame)
        answer = next(session)
        sessions[number] = session
        return answer
    session = sessions.pop(number)
    answer = session.send(frame)
    if answer.kind != "done":
        sessions[number] = session
    return answer
