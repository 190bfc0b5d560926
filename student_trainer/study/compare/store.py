"""The folder of a comparison: its settings, a record for each run, and the chosen rates.

compare.json        settings and their digest, with the commit that began it
runs/NAME.json      the record of a finished run
runs/NAME.failed    what a run that failed said; it is made again
chosen.json         the learning rate of each arm
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from teacher_proto.errors import ConfigurationError
from teacher_proto.program.files import write_text

from student_trainer.study.compare.plan import Planned, grid_runs, same_run, teacher_run
from student_trainer.study.compare.settings import CompareSettings


@dataclass(frozen=True)
class Store:
    """The files below ``path``."""

    path: Path

    @property
    def work(self) -> Path:
        """Where runs work; nothing of it is needed once they have ended."""
        return self.path / "work"

    def begin(self, settings: CompareSettings, origin: Mapping[str, Any]) -> None:
        """Notes which comparison the folder has. As long as no counted run is finished, the
        settings may change: runs that the change does not concern are kept, the others are
        forgotten, and so are the rates that were chosen.

        Raises:
            ConfigurationError: the settings changed after a counted run.
        """
        file = self.path / "compare.json"
        earlier: list[str] = []
        if file.is_file():
            known = json.loads(file.read_text(encoding="utf-8"))
            if known["digest"] == settings.digest:
                return
            if list(self.path.glob("runs/counted-*.json")):
                self.check(settings)
            self._forget_changed(CompareSettings.model_validate(known["settings"]), settings)
            earlier = [*known.get("earlier", []), known["digest"]]
        document = {"digest": settings.digest, "earlier": earlier, "settings": _plain(settings)}
        write_json(file, {**origin, **document})

    def _forget_changed(self, before: CompareSettings, after: CompareSettings) -> None:
        """Removes what the change of the settings concerns."""
        (self.path / "chosen.json").unlink(missing_ok=True)
        for folder in self.path.glob("before/counted-*"):
            shutil.rmtree(folder)
        for failure in self.path.glob("runs/counted-*.failed"):
            failure.unlink()
        planned = [teacher_run(after), *grid_runs(after)]
        for one in (teacher_run(before), *grid_runs(before)):
            if one not in planned or not same_run(before, after, one):
                self._run(one.name).unlink(missing_ok=True)
                self._failed(one.name).unlink(missing_ok=True)
                shutil.rmtree(self.before_of(one), ignore_errors=True)

    def check(self, settings: CompareSettings) -> None:
        """Raises ConfigurationError where the folder has no comparison, or another one."""
        file = self.path / "compare.json"
        if not file.is_file():
            raise ConfigurationError(
                f"{self.path} has no comparison", where="--out", fix="give the folder of its runs"
            )
        known = json.loads(file.read_text(encoding="utf-8"))
        if known["digest"] != settings.digest:
            raise ConfigurationError(
                f"{self.path} has runs of other settings (digest {known['digest'][:12]}, and those "
                f"given have {settings.digest[:12]}): results of both must not be mixed",
                where="--out",
                fix="give another folder, or the settings that these runs were begun with",
            )

    def origin(self) -> dict[str, Any]:
        """Where the comparison was begun from."""
        known: dict[str, Any] = json.loads((self.path / "compare.json").read_text("utf-8"))
        return {key: value for key, value in known.items() if key not in ("digest", "settings")}

    def before_of(self, planned: Planned) -> Path:
        """Where the evaluation of the untrained student is that a run shares with others of its
        phase and seed."""
        return self.path / "before" / f"{planned.phase}-seed-{planned.seed}"

    def write(self, record: Mapping[str, Any]) -> None:
        """Keeps the record of a finished run."""
        name = record["run"]["name"]
        write_json(self._run(name), record)
        self._failed(name).unlink(missing_ok=True)

    def write_failure(self, planned: Planned, words: str, reason: str = "") -> None:
        """Notes that a run has failed.

        Args:
            reason: of the error, where the run raised one of this project's.
        """
        write_json(self._failed(planned.name), {"reason": reason, "words": words})

    def forget_failure(self, planned: Planned) -> None:
        """Removes what an earlier attempt at a run said."""
        self._failed(planned.name).unlink(missing_ok=True)

    def has_failed(self, planned: Planned) -> bool:
        """Whether the last attempt at a run has left what it said."""
        return self._failed(planned.name).is_file()

    def has(self, planned: Planned) -> bool:
        """Whether a run is finished."""
        return self._run(planned.name).is_file()

    def records(self, planned: Sequence[Planned]) -> list[dict[str, Any]]:
        """The records of those runs that are finished; of one that has failed its description,
        ``failed``, which is what it said, and ``reason``."""
        found = []
        for one in planned:
            if self.has(one):
                found.append(json.loads(self._run(one.name).read_text(encoding="utf-8")))
            elif self._failed(one.name).is_file():
                said = self._failed(one.name).read_text(encoding="utf-8")
                found.append({"run": one.described(), **_told(said)})
        return found

    def chosen(self) -> dict[str, dict[str, Any]]:
        """The chosen learning rates; empty before they are."""
        file = self.path / "chosen.json"
        found: dict[str, dict[str, Any]] = {}
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else found

    def write_chosen(self, chosen: Mapping[str, Any]) -> None:
        write_json(self.path / "chosen.json", chosen)

    def _run(self, name: str) -> Path:
        return self.path / "runs" / f"{name}.json"

    def _failed(self, name: str) -> Path:
        return self.path / "runs" / f"{name}.failed"


def _told(said: str) -> dict[str, str]:
    """``failed`` and ``reason`` of a failure; one that is not JSON is words alone, as it was
    written before there were reasons."""
    try:
        known = json.loads(said)
        return {"failed": known["words"], "reason": known["reason"]}
    except ValueError:
        return {"failed": said, "reason": ""}


def write_json(file: Path, document: Mapping[str, Any]) -> None:
    """Writes a file whole. Raises ValueError for a number that is not finite."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, json.dumps(document, indent=1, allow_nan=False) + "\n")


def _plain(settings: CompareSettings) -> dict[str, Any]:
    return settings.model_dump(mode="json")
