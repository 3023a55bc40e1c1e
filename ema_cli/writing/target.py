"""The names of outputs: one file or a folder, for one average or for several."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ema_cli.errors import UsageError, option
from ema_cli.law.laws import HalfLife
from ema_cli.planning.plan import Plan
from ema_cli.storage.location import check_no_address

_SUFFIX = re.compile(r"\.[A-Za-z][A-Za-z0-9_]*$")
_TORCH_SUFFIXES = (".pt", ".pth")
_HALF_LIFE = "{half_life}"
_PATTERN_HINT = f"as {option('o', f'averages/ema-{_HALF_LIFE}.safetensors')}, or {option('o', 'averages')}"


@dataclass(frozen=True, slots=True)
class Target:
    """The path of an output, and whether it is a folder or one file. `{half_life}` in its name is to be filled in."""

    path: Path
    is_folder: bool

    @property
    def is_torch(self) -> bool:
        """Return whether it is a file as `torch.save` writes it."""
        return not self.is_folder and self.path.suffix.lower() in _TORCH_SUFFIXES


def parse_target(path: str | Path) -> Target:
    """Return what `-o` names: one file if it ends in .safetensors, .pt or .pth, a folder if it has no suffix.

    Raises:
        UsageError: for any other suffix, an address, and placeholders that are unknown or not in the last part.
    """
    path = Path(path)
    check_no_address(path)
    if path.name in ("", "..", "-"):  # nothing goes to standard output but the name
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
            f"'{path}' ends in {suffix[0]}, which is not written", option="output", hint=_instead(path, suffix[0])
        )
    return Target(path, is_folder=False)


def _instead(path: Path, suffix: str) -> str:
    """Return the names under which an average can be written instead, ready to copy."""
    stem = path.name
    while (last := _SUFFIX.search(stem)) is not None and last.start():
        stem = stem[: last.start()]
    safe, torch, folder = (path.with_name(stem + end).as_posix() for end in (".safetensors", ".pt", ""))
    ways = f"{option('o', safe)} or {option('o', torch)} for one file, {option('o', folder)} for a folder"
    if suffix.lower() != ".ckpt":
        return ways
    load = f"module.load_state_dict(torch.load('{torch}'))"
    return f"{ways}; {torch} is a state dict, for {load}: no trainer resumes from it"


def default_target(plans: Sequence[Plan]) -> Target:
    """Return the output where the user names none.

    A folder for several averages, and for one that `from_pretrained` can load from a folder; else one file.
    Hugging Face's checkpoints load from a folder, and so do Composer's that hold a configuration for it. Those of any
    other model, and with --keep-prefix all, are averaged to one file with the names that they have.
    """
    name = "-".join(["ema", *(plan.recipe.law.name for plan in plans)])
    if len(plans) > 1 or plans[0].newest.pretrained is not None:
        return Target(Path(name), is_folder=True)
    return Target(Path(f"{name}.safetensors"), is_folder=False)


def assign_targets(target: Target, plans: Sequence[Plan]) -> list[Target]:
    """Return the output of each plan: `target` for one plan; for several, one in the folder that `target` names.

    For example `averages/ema-{half_life}.safetensors` gives `averages/ema-50ba.safetensors` and
    `averages/ema-100ba.safetensors`.

    Raises:
        UsageError: where two averages would get one name, or several no folder of their own.
    """
    path = target.path
    if _HALF_LIFE in path.name:
        if len(plans) > 1 and path.parent.name in ("", ".."):
            raise UsageError(f"'{path}' names no new folder for the averages", option="output", hint=_PATTERN_HINT)
        if not all(isinstance(plan.recipe.law, HalfLife) for plan in plans):
            raise UsageError(f"'{path}': there is no half-life to fill in", option="output")
        names = [path.name.replace(_HALF_LIFE, plan.recipe.law.name) for plan in plans]
        targets = [Target(path.with_name(name), target.is_folder) for name in names]
    elif len(plans) == 1:
        targets = [target]
    elif target.is_folder:
        inside = [default_target([plan]) for plan in plans]
        targets = [Target(path / default.path, default.is_folder) for default in inside]
    else:
        raise UsageError(f"'{path}' is one file, for {len(plans)} averages", option="output", hint=_PATTERN_HINT)
    if len({target.path for target in targets}) < len(targets):
        raise UsageError("two of the averages would have one name", hint="average them one by one")
    return targets


def published_target(targets: Sequence[Target]) -> Target:
    """Return the file or folder that one rename publishes: the only output, or the folder around all of them."""
    if len(targets) == 1:
        return targets[0]
    return Target(Path(os.path.commonpath([target.path.parent for target in targets])), is_folder=True)
