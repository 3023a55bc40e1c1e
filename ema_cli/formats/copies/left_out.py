"""What is left out of a checkpoint that is written over again."""

from __future__ import annotations

from dataclasses import field
from pathlib import Path

from ema_cli.dataclass import dataclass
from ema_cli.formats.copies.frames import Cut


@dataclass(slots=True)
class LeftOut:
    """What is left out of the files of a checkpoint.

    Attributes:
        cuts: what stays of files of which a part is left out, by the path of the original.
        texts: small files that are written anew, by name.
        files: the names of files that are left out whole.
        places: what is left out, in words.
    """

    cuts: dict[Path, Cut] = field(default_factory=dict)
    texts: dict[str, bytes] = field(default_factory=dict)
    files: list[str] = field(default_factory=list)
    places: list[str] = field(default_factory=list)
