"""Where averages go, and whether they may: nothing of the user's is overwritten, and never an input."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ema_cli.errors import EmaError, OutputError, Unreadable, UsageError, mentioned, option
from ema_cli.formats.folders import huggingface as hf_directory
from ema_cli.formats.options import ReadOptions
from ema_cli.formats.safetensors import file as safetensors_file
from ema_cli.formats.torch_save import file as torch_file
from ema_cli.law.laws import HalfLife
from ema_cli.manifest.sums import FOLDER_NAME, SUMS_NAME, is_own_sidecar, sidecars
from ema_cli.planning.plan import Plan
from ema_cli.storage.output_stream import WRITE_ELSEWHERE
from ema_cli.storage.source import InputFile

_SUFFIX = re.compile(r"\.[A-Za-z][A-Za-z0-9_]*$")
_TORCH_SUFFIXES = (".pt", ".pth")
_HALF_LIFE = "{half_life}"
_PATTERN_HINT = f"as -o averages/ema-{_HALF_LIFE}.safetensors, or -o averages"


@dataclass(frozen=True, slots=True)
class Target:
    """A path, and whether it becomes a folder or one file. Its name may hold `{half_life}`, to be filled in."""

    path: Path
    is_folder: bool

    @property
    def is_torch(self) -> bool:
        """Return whether it becomes a file as `torch.save` writes it."""
        return not self.is_folder and self.path.suffix.lower() in _TORCH_SUFFIXES


def parse_target(path: Path) -> Target:
    """Return what `-o` names: one file if it ends in .safetensors, .pt or .pth, a folder if it has no suffix.

    Raises:
        UsageError: for any other suffix, and for placeholders that are unknown or not in the last part.
    """
    if path.name in ("", ".."):
        raise UsageError(
            f"'{path}' is no name for something new",
            option="output",
            hint=f"as {option('o', 'release.safetensors')}",
        )
    unknown = re.search(r"\{[^{}]*\}", path.name.replace(_HALF_LIFE, ""))
    if unknown or _HALF_LIFE in str(path.parent):
        fact = f"{unknown[0]} is no placeholder" if unknown else f"{_HALF_LIFE} is not in the last part"
        raise UsageError(f"'{path}': {fact}", option="output", hint=_PATTERN_HINT)
    suffix = _SUFFIX.search(path.name)
    if suffix is None:
        return Target(path, is_folder=True)
    if suffix[0].lower() not in (".safetensors", *_TORCH_SUFFIXES):
        raise UsageError(
            f"'{path}' ends in {suffix[0]}, which is not written",
            option="output",
            hint="NAME.safetensors or NAME.pt for one file, a name without a suffix for a folder",
        )
    return Target(path, is_folder=False)


def default_target(plans: Sequence[Plan]) -> Target:
    """Return where averages go if nobody says: a folder for several and for what loads from one, else one file.

    Hugging Face's checkpoints load from a folder, and so do Composer's that hold a configuration for it. Those of any
    other model, and with --keep-prefix all, are averaged to one file with the names that they have.
    """
    name = "-".join(["ema", *(plan.recipe.law.name for plan in plans)])
    if len(plans) > 1 or plans[0].newest.pretrained is not None:
        return Target(Path(name), is_folder=True)
    return Target(Path(f"{name}.safetensors"), is_folder=False)


def place(target: Target, plans: Sequence[Plan]) -> list[Target]:
    """Return where the average of each plan goes: one to `target`; several into one folder, by its pattern.

    Raises:
        UsageError: where several would get one name, or no folder of their own.
    """
    path = target.path
    if _HALF_LIFE in path.name:
        if len(plans) > 1 and path.parent.name in ("", ".."):
            raise UsageError(f"'{path}' names no new folder for the averages", option="output", hint=_PATTERN_HINT)
        if not all(isinstance(plan.recipe.law, HalfLife) for plan in plans):
            raise UsageError(f"'{path}': there is no half-life to fill in", option="output")
        names = [path.name.replace(_HALF_LIFE, plan.recipe.law.name) for plan in plans]
        placed = [Target(path.with_name(name), target.is_folder) for name in names]
    elif len(plans) == 1:
        placed = [target]
    elif target.is_folder:
        inside = [default_target([plan]) for plan in plans]
        placed = [Target(path / each.path, each.is_folder) for each in inside]
    else:
        raise UsageError(f"'{path}' is one file, for {len(plans)} averages", option="output", hint=_PATTERN_HINT)
    if len({each.path for each in placed}) < len(placed):
        raise UsageError("two of the averages would have one name", hint="average them one by one")
    return placed


def published(placed: Sequence[Target]) -> Target:
    """Return what one rename puts into place: the only target, or the folder that holds all of them."""
    return placed[0] if len(placed) == 1 else Target(placed[0].path.parent, is_folder=True)


def check_target(target: Target, inputs: Sequence[InputFile], *, force: bool) -> None:
    """Raise an OutputError unless the target is free, or may be replaced.

    With `force` a regular file may be, and a folder if it holds nothing but what ema-cli wrote into it. A manifest or
    sums beside a file are replaced if they are ema-cli's: with it, or where a run that was killed left them alone.
    """
    path = target.path
    parent = path.absolute().parent
    if not parent.is_dir():
        raise OutputError(f"the folder {parent} does not exist", subject=path, hint=f"make it first: mkdir -p {parent}")
    for beside in () if target.is_folder else sidecars(path):
        if _mode(beside) is not None and not _is_own(beside, path.name):
            raise OutputError(
                "exists already, and is not ema-cli's", subject=beside, hint="move it away, or write elsewhere"
            )
    mode = _mode(path)
    if mode is None:
        return
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise OutputError("is neither a regular file nor a folder", subject=path, hint=WRITE_ELSEWHERE)
    if not force:
        raise OutputError(
            "exists already",
            subject=path,
            hint=f"replace it with {option('force', True)}, or write elsewhere with {option('o')}",
        )
    if stat.S_ISDIR(mode) != target.is_folder:
        found, wanted = ("a folder", "a file") if stat.S_ISDIR(mode) else ("a file", "a folder")
        raise OutputError(f"is {found}, and {wanted} would replace it", subject=path, hint=WRITE_ELSEWHERE)
    real = path.resolve()
    for file in inputs:
        if file.path.resolve() == real or real in file.path.resolve().parents:
            raise OutputError(f"holds an input, {file.path.name}", subject=path, hint=WRITE_ELSEWHERE)
    if target.is_folder:
        _check_own(path)


def _mode(path: Path) -> int | None:
    """Return what is at `path`, None if nothing. To os.path.lexists a target that a failing disk hides is free."""
    try:
        return path.lstat().st_mode
    except FileNotFoundError:
        return None
    except OSError as error:
        raise OutputError(f"cannot be looked at: {error.strerror}", subject=path, hint=WRITE_ELSEWHERE) from error


def _is_own(beside: Path, name: str) -> bool:
    """Return whether a manifest or sums beside a file called `name` are ema-cli's."""
    try:
        return is_own_sidecar(beside, name)
    except EmaError as error:
        raise OutputError(
            f"cannot be looked into: {error.message(mentioned)}", subject=beside, hint=WRITE_ELSEWHERE
        ) from error


def _check_own(folder: Path) -> None:
    """Check that the folder holds only what the metadata of the weights in it, or one level below, list."""

    def fail(error: OSError) -> None:
        raise OutputError(f"'{error.filename}' cannot be looked into: {error.strerror}", subject=folder) from error

    present: set[str] = set()
    for where, folders, names in os.walk(folder, onerror=fail):
        present.update((Path(where) / name).relative_to(folder).as_posix() for name in [*folders, *names])
    if not present:
        return
    own = _listed(folder) or _listed_inside(folder)
    own |= {parent.as_posix() for name in own for parent in Path(name).parents}
    foreign = sorted(present - own)
    if foreign:
        raise OutputError(
            f"holds '{foreign[0]}', which ema-cli did not write there",
            subject=folder,
            hint="write elsewhere with -o, or move away what is yours",
        )


def _listed_inside(folder: Path) -> set[str]:
    """Return the files of ours in a folder of several averages, each of them one file or a folder."""
    found: set[str] = set()
    for child in folder.iterdir():
        if not child.is_symlink():
            listed = _listed(child)
            found.update((Path(child.name) / name).as_posix() for name in listed)
            if listed and child.is_file():
                found.update(each.name for each in sidecars(child) if _is_own(each, child.name))
    return found


def _listed(path: Path) -> set[str]:
    """Return the files that the metadata of an average list, relative to it: of a folder, or of one file."""
    readers = (hf_directory,) if path.is_dir() else (safetensors_file, torch_file)
    reader = next((reader for reader in readers if reader.matches(path)), None)
    if reader is None:
        return set()
    try:
        checkpoint = reader.open_checkpoint(path, ReadOptions())
    except Unreadable as error:  # nobody knows what is in it
        raise OutputError(
            f"cannot be looked into: {error.message(mentioned)}", subject=path, hint=WRITE_ELSEWHERE
        ) from error
    except EmaError:
        return set()
    if not checkpoint.mark:
        return set()
    if reader is not hf_directory:
        return {""}
    listed = checkpoint.mark.get("files")
    names = {name for name in listed if isinstance(name, str)} if isinstance(listed, list) else set()
    return names | {file.path.name for file in checkpoint.files} | {FOLDER_NAME, SUMS_NAME}
