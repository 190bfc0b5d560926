"""What ``doctor`` of both programs is made of: named checks, their findings, the verdict.

A check returns what it found, in words, or raises the LsmError that the program
itself would end with; the error's fix is the finding's fix. A check whose ground
failed is skipped.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from teacher_proto.errors import EXIT_OK, ConfigurationError, LsmError

FAILED: Literal["failed"] = "failed"
MIB = 1 << 20


@dataclass(frozen=True)
class Finding:
    """The outcome of one check; ``exit_code`` is that of the error behind a failure."""

    check: str
    status: Literal["ok", "failed", "skipped"]
    detail: str
    fix: str = ""
    exit_code: int = EXIT_OK


class Examination:
    """Findings in the order of their checks."""

    def __init__(self) -> None:
        self.findings: list[Finding] = []

    def check(self, name: str, examine: Callable[[], str], needs: tuple[str, ...] = ()) -> None:
        """Runs one check.

        Args:
            needs: earlier checks it builds on; unless all are ok it is skipped.
        """
        status = {finding.check: finding.status for finding in self.findings}
        missing = [need for need in needs if status[need] != "ok"]
        if missing:
            self.findings.append(Finding(name, "skipped", f"needs {', '.join(missing)}"))
            return
        try:
            self.findings.append(Finding(name, "ok", examine()))
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
    while not ground.exists():
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


def check_device(device: str, where: str) -> str:
    """That torch can use a device setting.

    Raises:
        ConfigurationError: it asks for a GPU that torch does not see.
    """
    import torch

    if device == "cpu" or (device == "auto" and not torch.cuda.is_available()):
        return f"the CPU is used, {torch.get_num_threads()} threads" + (
            "" if device == "cpu" else "; torch sees no GPU"
        )
    try:
        index = torch.device("cuda" if device == "auto" else device).index or 0
        if not torch.cuda.is_available() or index >= torch.cuda.device_count():
            raise RuntimeError(f"torch sees {torch.cuda.device_count()} GPUs")
        free, total = torch.cuda.mem_get_info(index)
    except RuntimeError as error:
        raise ConfigurationError(
            f"{device!r} cannot be used: {error}",
            where=where,
            fix="check the driver with nvidia-smi, that torch is a CUDA build and that "
            "CUDA_VISIBLE_DEVICES names a GPU; or use cpu",
        ) from error
    name = torch.cuda.get_device_name(index)
    return f"{name}, {free // MIB} of {total // MIB} MiB free"
