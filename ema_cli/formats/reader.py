"""What a container format provides: how its checkpoints are recognised and opened."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ema_cli.checkpoint import Checkpoint
from ema_cli.dataclass import dataclass
from ema_cli.formats.options import ReadOptions


@dataclass(frozen=True, slots=True)
class Reader:
    """The reader of one format.

    Attributes:
        matches: whether a file or folder looks like this format, from names and first bytes alone.
        open: reads the headers of a checkpoint that matches. Raises what `formats.open_checkpoint` raises.
        takes_component: whether a checkpoint may hold several models, of which `ReadOptions.component` chooses one.
            Where it does not, a component that is named is refused.
        takes_masters: the same of `ReadOptions.masters`.
        files, folders: whether it reads any; it is not asked about others.
    """

    matches: Callable[[Path], bool]
    open: Callable[[Path, ReadOptions], Checkpoint]
    takes_component: bool = False
    takes_masters: bool = False
    files: bool = True
    folders: bool = True
