"""Where an average goes, and whether it may: nothing of the user's is overwritten, and never an input."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ema_cli.errors import CheckpointError, OutputError, UsageError
from ema_cli.formats import hf_directory
from ema_cli.formats.options import ReadOptions
from ema_cli.input_file import InputFile
from ema_cli.plan import Plan

_SUFFIX = re.compile(r"\.[A-Za-z][A-Za-z0-9_]*$")


@dataclass(frozen=True, slots=True)
class Target:
    """A path, and whether it becomes a folder or one file."""

    path: Path
    is_folder: bool


def default_target(plan: Plan) -> Target:
    """Return where the average goes if nobody says: a folder for Hugging Face checkpoints, else one file."""
    recipe = plan.recipe
    name = f"ema-{recipe.half_life}" if recipe.half_life else f"ema-smoothing-{recipe.smoothing!r}"
    if plan.newest.base is not None:
        return Target(Path(name), is_folder=True)
    return Target(Path(f"{name}.safetensors"), is_folder=False)


def parse_target(path: Path) -> Target:
    """Return what `-o` names: one file if it ends in .safetensors, a folder if it has no suffix.

    Raises:
        UsageError: for any other suffix.
    """
    if path.name in ("", ".."):
        raise UsageError(f"--output: '{path}' is no name for something new", hint="as -o release.safetensors")
    suffix = _SUFFIX.search(path.name)
    if suffix is None:
        return Target(path, is_folder=True)
    if suffix[0].lower() != ".safetensors":
        raise UsageError(
            f"--output: '{path}' ends in {suffix[0]}, which is not written",
            hint="NAME.safetensors for one file, a name without a suffix for a folder",
        )
    return Target(path, is_folder=False)


def check_target(target: Target, inputs: Sequence[InputFile], *, force: bool) -> None:
    """Raise an OutputError unless the target is free, or may be replaced.

    With `force` a regular file may be, and a folder if it holds nothing but what ema-cli wrote into it.
    """
    path = target.path
    parent = path.absolute().parent
    if not parent.is_dir():
        raise OutputError(f"{path}: the folder {parent} does not exist", hint=f"make it first: mkdir -p {parent}")
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        # Not os.path.lexists: to it a target that a failing disk hides is free.
        raise OutputError(f"{path}: cannot be looked at: {error.strerror}", hint="write elsewhere with -o") from error
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise OutputError(f"{path}: is neither a regular file nor a folder", hint="write elsewhere with -o")
    if not force:
        raise OutputError(f"{path}: exists already", hint="replace it with --force, or write elsewhere with -o")
    if stat.S_ISDIR(mode) != target.is_folder:
        found, wanted = ("a folder", "a file") if stat.S_ISDIR(mode) else ("a file", "a folder")
        raise OutputError(f"{path}: is {found}, and {wanted} would replace it", hint="write elsewhere with -o")
    real = path.resolve()
    for file in inputs:
        if file.path.resolve() == real or real in file.path.resolve().parents:
            raise OutputError(f"{path}: holds an input, {file.path.name}", hint="write elsewhere with -o")
    if target.is_folder:
        _check_own(path)


def _check_own(folder: Path) -> None:
    """Check that the folder holds only what the metadata of the weights in it lists."""

    def fail(error: OSError) -> None:
        raise OutputError(f"{folder}: '{error.filename}' cannot be looked into: {error.strerror}") from error

    present: set[str] = set()
    for where, folders, names in os.walk(folder, onerror=fail):
        present.update((Path(where) / name).relative_to(folder).as_posix() for name in [*folders, *names])
    if not present:
        return
    own = _own_files(folder)
    own |= {parent.as_posix() for name in own for parent in Path(name).parents}
    foreign = sorted(present - own)
    if foreign:
        raise OutputError(
            f"{folder}: holds '{foreign[0]}', which ema-cli did not write there",
            hint="write elsewhere with -o, or move away what is yours",
        )


def _own_files(folder: Path) -> set[str]:
    try:
        checkpoint = hf_directory.open_checkpoint(folder, ReadOptions())
    except CheckpointError as error:
        if isinstance(error.__cause__, OSError):  # nobody knows what is in it
            raise OutputError(f"{folder}: cannot be looked into: {error}", hint="write elsewhere with -o") from error
        return set()
    if not checkpoint.recipe:
        return set()
    listed = checkpoint.recipe.get("files")
    names = {name for name in listed if isinstance(name, str)} if isinstance(listed, list) else set()
    return names | {file.path.name for file in checkpoint.files}
