"""The model from which a training began, which some laws need beside its checkpoints."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

from ema_cli.checkpoint import Checkpoint, Clock, Progress
from ema_cli.errors import NonFiniteError, RunError, option
from ema_cli.law.time import Unit
from ema_cli.runs.entering import files_of
from ema_cli.runs.opening import open_named, open_searched, search_folder
from ema_cli.runs.options import OpenOptions
from ema_cli.runs.paths import check_paths
from ema_cli.storage.names import plain

SOURCE = "base"  # of its clock


def open_base(path: Path, options: OpenOptions) -> Checkpoint:
    """Open the model at `path`.

    Raises:
        RunError: where there are several.
        EmaError: where it cannot be read.
    """
    check_paths([path])
    alone = OpenOptions(options.read)
    search = search_folder([path], options.read)
    if search is None or search.paths == [search.root]:
        _, opened, _ = open_named([path], alone)
    else:
        opened, _ = open_searched(search, alone)
    if len(opened) != 1:
        raise RunError(f"holds {len(opened)} models", subject=path, hint=f"name one: {option('base', 'MODEL')}")
    return opened[0]


def place_base(base: Checkpoint, checkpoints: Sequence[Checkpoint], units: Sequence[Unit]) -> Checkpoint:
    """Return the model with a name that no checkpoint has, at clock 0; or, where it is one of these, as that is."""
    files = files_of(base)
    same = next((checkpoint for checkpoint in checkpoints if files_of(checkpoint) == files), None)
    if same is not None:
        return same
    path = base.path.absolute()
    return replace(at_beginning(base, units), name=_free_name(path, {each.name for each in checkpoints}))


@contextmanager
def blamed(base: Checkpoint | None) -> Iterator[None]:
    """Say what helps where a NaN or infinity is one of the base, which no option leaves out."""
    try:
        yield
    except NonFiniteError as error:
        if base is None or error.subject != base.path:
            raise
        hint = f"begin with another model, {option('base', 'MODEL')}, or let it pass with "
        raise NonFiniteError(
            error.fact, subject=error.subject, hint=f"{hint}{option('allow_non_finite', True)}"
        ) from error


def at_beginning(base: Checkpoint, units: Sequence[Unit]) -> Checkpoint:
    """Return the model at clock 0. That it may be an average does not matter: the training went on from it."""
    clocks = {unit: Clock(Fraction(0), SOURCE) for unit in units}
    return replace(base, progress=Progress(clocks), averages=None, mark=None)


def _free_name(path: Path, taken: set[str]) -> str:
    """Return as many of the last parts of a path as it takes to be no other's name."""
    parts = plain(path).parts[1:]
    names = ("/".join(parts[-count:]) for count in range(1, len(parts) + 1))
    return next(name for name in names if name not in taken)
