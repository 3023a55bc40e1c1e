"""What was done up to a moment of a watch, as JSON beside its averages."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import Any

from ema_cli.dataclass import dataclass
from ema_cli.errors import CheckpointError
from ema_cli.law.time import Unit
from ema_cli.storage.small_file import read_small_file
from ema_cli.watching.past import Past

JOURNAL = "watch.json"
_VERSION = 1
_MOST_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class Journal:
    """What was done up to a moment.

    Attributes:
        what: what decides the averages, as `Asked.what` returns it.
        unit: that of the clocks that count.
        branch: 8 hexadecimal digits that no other watch has.
        folded: the checkpoints that entered, oldest first.
        skipped: those that did not, with the reason.
        given_up: the clocks of those that nobody waited for any longer.
        gaps: what was missed, in words.
        epochs_from_zero: whether epochs are counted from 0 in the checkpoints.
        kept: whether the moment stays when a newer one is there.
        newest: what else the newest checkpoint says of the output; see `describe`.
    """

    what: Mapping[str, Any]
    unit: Unit
    branch: str
    folded: tuple[Past, ...] = ()
    skipped: tuple[Past, ...] = ()
    given_up: tuple[str, ...] = ()
    gaps: tuple[str, ...] = ()
    epochs_from_zero: bool = False
    kept: bool = False
    newest: Mapping[str, Any] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """Return the journal as JSON."""
        content = {
            "watch": _VERSION,
            "what": self.what,
            "unit": str(self.unit),
            "branch": self.branch,
            "folded": [past.to_dict() for past in self.folded],
            "skipped": [past.to_dict() for past in self.skipped],
            "given_up": list(self.given_up),
            "gaps": list(self.gaps),
            "epochs_from_zero": self.epochs_from_zero,
            "kept": self.kept,
            "newest": self.newest,
        }
        return json.dumps(content, separators=(",", ":")).encode() + b"\n"

    @classmethod
    def read(cls, path: Path) -> Journal:
        """Read the journal of a moment.

        Raises:
            CheckpointError: where it is none, or cannot be read.
        """
        text = read_small_file(path, _MOST_BYTES)
        try:
            content = json.loads(text)
            if content["watch"] != _VERSION:
                raise ValueError("another version of ema-cli wrote it")
            return cls(
                content["what"],
                Unit(content["unit"]),
                str(content["branch"]),
                tuple(map(Past.from_dict, content["folded"])),
                tuple(map(Past.from_dict, content["skipped"])),
                tuple(map(str, content["given_up"])),
                tuple(map(str, content["gaps"])),
                bool(content["epochs_from_zero"]),
                bool(content["kept"]),
                content["newest"],
            )
        except (ArithmeticError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise CheckpointError(
                f"is no record of a watch: {error}",
                subject=path,
                hint=way_back(path.parent),
            ) from error


def way_back(moment: Path) -> str:
    """Return what to do about a moment that is damaged, by its folder."""
    return f"move {moment} away to go on from an older moment, or from the beginning"
