"""The parts of both programs' ``doctor``: named checks, their findings and the verdict.

A check returns what it found, in words, or raises the LsmError that the program
itself would end with; the error's fix is the finding's fix. A check that builds on
one that is not ok is skipped.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, Protocol

from teacher_proto.errors import EXIT_OK, ConfigurationError, LsmError

FAILED: Literal["failed"] = "failed"
MIB = 1 << 20


@dataclass(frozen=True)
class Finding:
    """The outcome of one check; after a failure ``exit_code`` is that of its error."""

    check: str
    status: Literal["ok", "failed", "skipped"]
    detail: str
    fix: str = ""
    exit_code: int = EXIT_OK


class Checks:
    """Findings in the order of their checks."""

    def __init__(self) -> None:
        self.findings: list[Finding] = []

    def run(self, name: str, check: Callable[[], str], needs: tuple[str, ...] = ()) -> None:
        """Runs one check and keeps its finding.

        Args:
            name: unique, in words.
            check: returns what it found; raises LsmError when something is wrong.
            needs: earlier checks it builds on; unless all are ok it is skipped.
        """
        status = {finding.check: finding.status for finding in self.findings}
        missing = [need for need in needs if status[need] != "ok"]
        if missing:
            self.findings.append(Finding(name, "skipped", f"needs {', '.join(missing)}"))
            return
        try:
            self.findings.append(Finding(name, "ok", check()))
        except LsmError as error:
            what = " ".join(f"{error.where}: {error.what}".lstrip(": ").split())
            fix = error.fix or "see docs/errors.md"
            self.findings.append(Finding(name, FAILED, what, fix, error.exit_code))

    @property
    def exit_code(self) -> int:
        """That of the first failure; 0 when there is none."""
        return next((f.exit_code for f in self.findings if f.status == FAILED), EXIT_OK)

    def render(self, *, as_json: bool) -> str:
        """A table for people, or one JSON object; ends with a newline."""
        if as_json:
            document = {
                "healthy": self.exit_code == EXIT_OK,
                "exit_code": self.exit_code,
                "checks": [asdict(finding) for finding in self.findings],
            }
            return json.dumps(document, indent=2, ensure_ascii=False) + "\n"
        width = max(len(finding.check) for finding in self.findings)
        lines = []
        for finding in self.findings:
            lines.append(f"{finding.status:<8}{finding.check:<{width}}  {finding.detail}")
            if finding.fix:
                lines.append(f"{'':<8}{'':<{width}}  fix: {finding.fix}")
        failures = sum(finding.status == FAILED for finding in self.findings)
        verdict = "nothing is wrong" if failures == 0 else f"{failures} of them failed"
        lines.append(f"{len(self.findings)} checks, {verdict}")
        return "\n".join(lines) + "\n"


def check_folder(folder: Path, needed_bytes: int, where: str) -> str:
    """That ``folder``, or the nearest one above it that exists, is writable and has room.

    Raises:
        ConfigurationError: it is not, or has less than ``needed_bytes``.
    """
    ground = folder.absolute()
    while not os.path.exists(ground):  # False, too, for what cannot be a name
        ground = ground.parent
    if not ground.is_dir() or not os.access(ground, os.W_OK | os.X_OK):
        raise ConfigurationError(
            f"{ground} is not a folder this user may write to",
            where=where,
            fix=f"choose another folder, or give this user (id {os.getuid()}) the right to write",
        )
    free = shutil.disk_usage(ground).free
    if free < needed_bytes:
        raise ConfigurationError(
            f"{ground} has {free // MIB} MiB free, about {needed_bytes // MIB} are needed",
            where=where,
            fix="free some space, or choose a folder on another disk",
        )
    return f"{free // MIB} MiB free at {ground}, about {needed_bytes // MIB} needed"


class Cuda(Protocol):
    """The part of ``torch.cuda`` that a check of a device needs."""

    def is_available(self) -> bool: ...
    def device_count(self) -> int: ...
    def get_device_name(self, device: int, /) -> str: ...
    def mem_get_info(self, device: int, /) -> tuple[int, int]: ...


def check_device(device: str, where: str, cuda: Cuda, threads: int) -> str:
    """That torch can use a device setting: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

    ``threads`` is how many a computation on the CPU uses.

    Raises:
        ConfigurationError: it asks for a GPU that torch does not see.
    """
    if device == "cpu":
        return f"the CPU is used, {threads} threads"
    if device == "auto" and not cuda.is_available():
        return f"the CPU is used, {threads} threads; torch sees no GPU"
    number = re.fullmatch(r"auto|cuda(?::([0-9]+))?", device)
    try:
        if number is None:
            raise RuntimeError("it is none of auto, cpu, cuda and cuda:N")
        index = int(number[1] or 0)
        if not cuda.is_available() or index >= cuda.device_count():
            raise RuntimeError(f"torch sees {cuda.device_count()} GPUs")
        free, total = cuda.mem_get_info(index)
    except RuntimeError as error:
        raise ConfigurationError(
            f"{device!r} cannot be used: {error}",
            where=where,
            fix="check the driver with nvidia-smi, that torch is a CUDA build and that "
            "CUDA_VISIBLE_DEVICES names a GPU; or use cpu",
        ) from error
    return f"{cuda.get_device_name(index)}, {free // MIB} of {total // MIB} MiB free"
