"""Which datasets a configuration names, of files and of tasks alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from student_trainer.data.files.rows import is_hub_name
from student_trainer.settings.data import files
from student_trainer.settings.train import TrainConfig
from student_trainer.tasks.datasets import DatasetTask


@dataclass(frozen=True)
class NamedDataset:
    """A dataset that the configuration names.

    Attributes:
        name: a file, a folder, or a dataset on the hub.
        revision: of a dataset on the hub, where the configuration names one.
    """

    name: str
    revision: str | None = None

    @property
    def on_hub(self) -> bool:
        """Whether it is looked for on the hub."""
        return is_hub_name(self.name)


def named_datasets(
    config: TrainConfig, split: Literal["train", "held_out"]
) -> tuple[NamedDataset, ...]:
    """Those of ``data`` and of the tasks whose prompts are a dataset's, in order, each once. What a
    task of a user's own reads it says in its ``prompts`` alone, unless it is a ``DatasetTask``."""
    data = config.data
    of_files = files(data.train if split == "train" else data.held_out)
    found = [NamedDataset(one.file, data.revision) for one in of_files]
    for task in (config.tasks or {}).values():
        if isinstance(task, DatasetTask):
            name = task.train if split == "train" else task.held_out
            found += [] if name is None else [NamedDataset(name, task.revision)]
    return tuple(dict.fromkeys(found))
