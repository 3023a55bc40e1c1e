"""What lies beside a folder's own model: earlier states of it, which are checkpoints, or side files. Reads headers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from ema_cli.checkpoint import TensorSpec
from ema_cli.errors import CheckpointError, EmaError
from ema_cli.formats import open_checkpoint
from ema_cli.formats.options import ReadOptions
from ema_cli.formats.trainers.names import name_clocks
from ema_cli.storage.location import location


def kind_of(name: str) -> str:
    """Return a name without its numbers: `eval_step100.pt` and `eval_step200.pt` are of one kind."""
    return re.sub(r"[0-9]+", "#", name)


def by_kind(paths: Sequence[Path]) -> list[list[Path]]:
    """Group paths by the kind of their names, in order."""
    kinds: dict[str, list[Path]] = {}
    for path in paths:
        kinds.setdefault(kind_of(path.name), []).append(path)
    return list(kinds.values())


class Beside:
    """Tells checkpoints of a folder's model from side files that lie in the folder with it.

    A file or folder beside a model is an earlier state of it only if it holds the model's tensors. A folder whose own
    name has a clock is one state of a run, and no file beside its model is another; but if the user named it, it may
    be a run itself, with two states at least.
    """

    def __init__(self, folder: Path, options: ReadOptions, *, is_root: bool) -> None:
        self._folder = folder
        self._options = options
        self._is_root = is_root
        self._model: Mapping[str, TensorSpec] | None = None
        self._is_read = False
        self.is_one_state = bool(name_clocks(folder.absolute().name).clocks)

    def are_checkpoints(self, paths: Sequence[Path]) -> bool:
        """Return whether paths of one kind are states of the folder's model. All must look like checkpoints."""
        if self.is_one_state and (len(paths) < 2 or (not self._is_root and location(paths[0]).info().is_file)):
            return False
        if not self._is_read:
            self._is_read, self._model = True, self._specs(self._folder)
        # Usually the first that is opened can be read.
        found = next((specs for path in reversed(paths) if (specs := self._specs(path)) is not None), None)
        if self._model is None:  # damaged: what lies beside it is all there is
            return not self.is_one_state
        return found is None or holds_tensors_of(self._model, found)

    def _specs(self, path: Path) -> Mapping[str, TensorSpec] | None:
        """Return the tensors of a checkpoint; None if it is damaged, nothing if one of several models is to be chosen.

        Opening it as a checkpoint gives the reason.
        """
        try:
            return open_checkpoint(path, self._options).tensors.specs
        except CheckpointError:
            return None
        except EmaError:
            return {}


def holds_tensors_of(model: Mapping[str, TensorSpec], other: Mapping[str, TensorSpec]) -> bool:
    """Return whether more than half of a model's tensors are in the other, by shape and name.

    What stands before a name counts for nothing: a trainer may put `model.` there.
    """
    return 2 * max(_shared(model, other), _shared(other, model)) > len(model)


def _shared(inner: Mapping[str, TensorSpec], outer: Mapping[str, TensorSpec]) -> int:
    """Return how many names of `inner` are the ends of names of `outer`, with tensors of one shape."""
    ends: dict[str, set[tuple[int, ...]]] = {}
    for name, spec in outer.items():
        parts = name.split(".")
        for start in range(len(parts)):
            ends.setdefault(".".join(parts[start:]), set()).add(spec.shape)
    return sum(spec.shape in ends.get(name, ()) for name, spec in inner.items())
