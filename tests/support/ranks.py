"""The ranks of one run as processes forked from a zygote, in place of torchrun.

The ranks meet at a store of this process, as torchrun's ranks do at that of torchrun, so that no
port has to be known before. Nothing ends or restarts a rank when another one has ended.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch.distributed import TCPStore

from tests.support.faults import Fault
from tests.support.programs import Child, Zygote


@dataclass
class Ranks:
    """Attributes: folders: of each rank, with its files output and errors."""

    children: list[Child]
    folders: list[Path]
    store: TCPStore

    def wait(self) -> list[int]:
        """The exit codes of all ranks, in their order; negative for a signal."""
        return [child.wait() for child in self.children]

    def errors(self, rank: int) -> str:
        return (self.folders[rank] / "errors").read_text()

    def output(self, rank: int) -> str:
        return (self.folders[rank] / "output").read_text()


def start_ranks(
    zygote: Zygote,
    argv: Sequence[str],
    folder: Path,
    *,
    size: int = 2,
    faults: Mapping[int, Sequence[Fault]] | None = None,
    environment: Mapping[int, Mapping[str, str]] | None = None,
    inside: Mapping[int, Path] | None = None,
) -> Ranks:
    """Starts every rank of a run.

    Args:
        folder: holds a folder ``rank-R`` for the output of each rank, which starts anew.
        faults, environment, inside: of single ranks, by their number.
    """
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    children, folders = [], []
    for rank in range(size):
        own = folder / f"rank-{rank}"
        for name in ("output", "errors"):
            (own / name).unlink(missing_ok=True)
        variables = {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(size),
            "LOCAL_WORLD_SIZE": str(size),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(store.port),
            "TORCHELASTIC_USE_AGENT_STORE": "True",
            "TORCHELASTIC_RESTART_COUNT": "0",
            **(environment or {}).get(rank, {}),
        }
        child = zygote.start(
            argv, own, (faults or {}).get(rank, ()), variables, (inside or {}).get(rank)
        )
        children.append(child)
        folders.append(own)
    return Ranks(children, folders, store)
