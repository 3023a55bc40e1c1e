"""The names of outputs: one file or a folder, for one average or for several."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ema_cli.checkpoint import Checkpoint
from ema_cli.dataclass import dataclass
from ema_cli.errors import UsageError, option
from ema_cli.formats.arrays.reader import READ_ONLY
from ema_cli.kinds import check_flags, check_path_kinds
from ema_cli.planning.plan import Plan
from ema_cli.planning.series import is_series
from ema_cli.storage.location import location
from ema_cli.storage.names import HUB, WEB, StorePath, as_path, check_no_address, common_folder

_DCP = "dcp:"  # before the name of a folder
_SUFFIX = re.compile(r"\.[A-Za-z][A-Za-z0-9_]*$")
_TORCH_SUFFIXES = (".pt", ".pth")
_LIGHTNING_SUFFIX = ".ckpt"
_FILES = (".safetensors", ".bin", _LIGHTNING_SUFFIX, *_TORCH_SUFFIXES)
_HALF_LIFE, _WINDOW, _CLOCK = PLACEHOLDERS = ("{half_life}", "{window}", "{clock}")
_PATTERN_HINT = f"as {option('o', f'averages/ema-{_HALF_LIFE}.safetensors')}, or {option('o', 'averages')}"


@dataclass(frozen=True, slots=True)
class Target:
    """The path of an output, and whether it is a folder or one file. `PLACEHOLDERS` in its name are to be filled in.

    Attributes:
        is_dcp: whether it is a folder as torch.distributed.checkpoint writes it.
    """

    path: Path
    is_folder: bool
    is_dcp: bool = False

    @property
    def is_torch(self) -> bool:
        """Return whether it is a file as `torch.save` writes it."""
        return not self.is_folder and self.path.suffix.lower() in _TORCH_SUFFIXES

    @property
    def format(self) -> str:
        """Return the format of its tensors, as a manifest has it."""
        return "dcp" if self.is_dcp else "pt" if self.is_torch else "ckpt" if self.is_lightning else "safetensors"

    @property
    def is_lightning(self) -> bool:
        """Return whether it is a file as Lightning writes it."""
        return not self.is_folder and self.path.suffix.lower() == _LIGHTNING_SUFFIX


def parse_target(path: str | Path, *, like_input: bool = False) -> Target:
    """Return what `-o` names: one file if it ends in .safetensors, .pt, .pth or .ckpt, a folder if it has no suffix.

    With `dcp:` before it, the folder is one of torch.distributed.checkpoint's.
    With `like_input` it has the suffix of the newest checkpoint, whatever that is; see `assign_targets`.

    Raises:
        UsageError: for any other suffix, an address, and placeholders that are unknown or not in the last part.
    """
    check_path_kinds(output=path)
    check_flags(like_input=like_input)
    is_dcp = str(path).startswith(_DCP)
    path = as_path((str(path).removeprefix(_DCP) if is_dcp else path) or ".")
    check_no_address(path)
    if isinstance(path, StorePath) and path.scheme == HUB:
        raise UsageError(
            "is on the Hugging Face Hub, from which is read only",
            subject=path,
            hint=f"write a folder, {option('o', 'release')}, and put it there: hf upload org/model release",
        )
    if isinstance(path, StorePath) and path.scheme in WEB:
        raise UsageError(
            "is on a web server, from which is read only", subject=path, hint="write to a disk or a bucket"
        )
    is_bucket = isinstance(path, StorePath) and not path.key
    if is_bucket or path.name in ("", "..", "-"):  # nothing goes to standard output but the name
        example = str(path / "release") if is_bucket else "release.safetensors"
        raise UsageError(f"'{path}' is no name for something new", option="output", hint=f"as {option('o', example)}")
    if path.name != path.name.strip():  # of a variable in a script, as a rule: `x.safetensors ` would be a folder
        raise UsageError(f"'{path}' begins or ends with a space", option="output", hint="leave the space out")
    unknown = re.search(r"\{[^{}]*\}", _filled(path.name, dict.fromkeys(PLACEHOLDERS, "")))
    misplaced = next((placeholder for placeholder in PLACEHOLDERS if placeholder in str(path.parent)), None)
    if unknown or misplaced:
        fact = f"{unknown[0]} is no placeholder" if unknown else f"{misplaced} is not in the last part"
        raise UsageError(f"'{path}': {fact}", option="output", hint=_PATTERN_HINT)
    suffix = _SUFFIX.search(path.name)
    if suffix is not None and suffix.start() == 0 and path.name.lower() not in _FILES and not like_input:
        suffix = None  # a hidden folder
    if suffix is None:
        return Target(path, is_folder=True, is_dcp=is_dcp)
    if is_dcp:
        raise UsageError(
            f"'{path}' is a name for a file, and torch.distributed.checkpoint writes folders",
            option="output",
            hint=option("o", f"{_DCP}{_stem(path).as_posix()}"),
        )
    if suffix[0].lower() not in (".safetensors", _LIGHTNING_SUFFIX, *_TORCH_SUFFIXES) and not like_input:
        raise UsageError(f"'{path}' ends in {suffix[0]}, which is not written", option="output", hint=_instead(path))
    return Target(path, is_folder=False)


def _stem(path: Path) -> Path:
    """Return the path without any suffix."""
    stem = path.name
    while (last := _SUFFIX.search(stem)) is not None and last.start():
        stem = stem[: last.start()]
    return path.with_name(stem)


def _instead(path: Path) -> str:
    """Return the names under which an average can be written instead, ready to copy."""
    stem = _stem(path).name
    safe, torch, folder = (path.with_name(stem + end).as_posix() for end in (".safetensors", ".pt", ""))
    return f"{option('o', safe)} or {option('o', torch)} for one file, {option('o', folder)} for a folder"


def not_lightning(target: Target, newest: Checkpoint) -> UsageError:
    """Return the error for a file of Lightning's that is asked for, of what Lightning did not write."""
    torch = _stem(target.path).with_suffix(".pt").as_posix()
    return UsageError(
        f"'{target.path}' is a name for a checkpoint of Lightning's, and {newest.name} is none",
        option="output",
        hint=f"{_instead(target.path)}; {torch} is a state dict, for module.load_state_dict(torch.load('{torch}')). "
        f"A checkpoint that its trainer loads: add {option('like_input', True)}",
    )


def default_target(plans: Sequence[Plan], *, like_input: bool = False) -> Target:
    """Return the output where the user names none.

    A folder for several averages, and for one that `from_pretrained` can load from a folder; else one file.
    Hugging Face's checkpoints load from a folder, and so do Composer's that hold a configuration for it. Those of any
    other model, and with --keep-prefix all, are averaged to one file with the names that they have. With `like_input`
    one average is what the newest checkpoint is.
    """
    name = "-".join(["ema", *dict.fromkeys(plan.recipe.law.name for plan in plans)])
    if is_series(plans):
        return Target(Path(f"{name}-series"), is_folder=True)
    if like_input and len(plans) == 1:
        return _like_newest(Path(name + _suffix(plans[0].newest)), plans[0].newest)
    if len(plans) > 1 or plans[0].newest.pretrained is not None:
        return Target(Path(name), is_folder=True)
    return Target(Path(f"{name}.safetensors"), is_folder=False)


def assign_targets(target: Target, plans: Sequence[Plan], *, like_input: bool = False) -> list[Target]:
    """Return the output of each plan: `target` for one plan; for several, one in the folder that `target` names.

    For example `averages/ema-{half_life}.safetensors` gives `averages/ema-50ba.safetensors` and
    `averages/ema-100ba.safetensors`; `{window}` is that of a profile, `{clock}` that of the newest checkpoint. Without
    a pattern, the averages of a series are `ema-50ba-at-1000ba` and so on. With `like_input` each is a file or a folder
    as the newest checkpoint is.

    Raises:
        UsageError: where two averages would get one name, or several no folder of their own.
    """
    path = target.path
    if target.is_dcp and like_input:
        raise UsageError(
            f"writes the form of the input, and {_DCP}{path} asks for one", option="like_input", hint="leave out one"
        )
    if any(placeholder in path.name for placeholder in PLACEHOLDERS):
        if len(plans) > 1 and path.parent.name in ("", ".."):
            raise UsageError(f"'{path}' names no new folder for the averages", option="output", hint=_PATTERN_HINT)
        targets = [replace(target, path=path.with_name(_filled(path.name, _values(path, plan)))) for plan in plans]
    elif len(plans) == 1:
        targets = [target]
    elif target.is_folder:
        targets = [_inside(target, plan, series=is_series(plans), like_input=like_input) for plan in plans]
    else:
        raise UsageError(f"'{path}' is one file, for {len(plans)} averages", option="output", hint=_PATTERN_HINT)
    if len({target.path for target in targets}) < len(targets):
        raise UsageError("two of the averages would have one name", hint=_telling_apart(path, plans))
    if like_input:
        return [_like_newest(target.path, plan.newest) for target, plan in zip(targets, plans, strict=True)]
    return targets


def _telling_apart(path: Path, plans: Sequence[Plan]) -> str:
    """Return the hint at a pattern with all placeholders in which the averages differ."""
    needed = {
        _CLOCK: is_series(plans),
        _HALF_LIFE: len({plan.recipe.law.name for plan in plans if "half_life" in plan.recipe.law.to_dict()}) > 1,
        _WINDOW: len({plan.recipe.law.window for plan in plans}) > 1,
    }
    if all(placeholder in path.name for placeholder, is_needed in needed.items() if is_needed):
        return "average them one by one"
    suffix = _SUFFIX.search(path.name)
    pattern = "-".join(placeholder for placeholder, is_needed in needed.items() if is_needed)
    named = path.with_name(pattern + (suffix[0] if suffix else ""))
    return f"say which is which: {option('o', named.as_posix())}"


def _inside(folder: Target, plan: Plan, *, series: bool, like_input: bool) -> Target:
    """Return one of several averages in a folder, under its own name."""
    default = default_target([plan], like_input=like_input)
    name = f"ema-{plan.recipe.law.name}"
    suffix = "" if folder.is_dcp else default.path.name.removeprefix(name)
    path = folder.path / (name + (f"-at-{plan.entries[-1].clock}" if series else "") + suffix)
    return Target(path, default.is_folder or folder.is_dcp, folder.is_dcp)


def _values(path: Path, plan: Plan) -> dict[str, str]:
    """Return what stands for each placeholder in the name of an average.

    Raises:
        UsageError: where the path has one that the plan has no value for.
    """
    law = plan.recipe.law
    asked, values = law.to_dict(), {_CLOCK: str(plan.entries[-1].clock)}
    if "half_life" in asked:
        values[_HALF_LIFE] = law.name
    if "window" in asked:
        values[_WINDOW] = asked["window"]
    lacking = next((word for word in PLACEHOLDERS if word in path.name and word not in values), None)
    if lacking is not None:
        raise UsageError(
            f"'{path}': there is no {'half-life' if lacking == _HALF_LIFE else 'window'} to fill in",
            option="output",
            hint=f"a name without it; of several averages that of a folder: {option('o', 'averages')}",
        )
    return values


def _filled(name: str, values: Mapping[str, str]) -> str:
    for placeholder, value in values.items():
        name = name.replace(placeholder, value)
    return name


def _like_newest(path: Path, newest: Checkpoint) -> Target:
    """Return a file or a folder as the newest checkpoint is.

    Raises:
        UsageError: where the name is one of something else: loaders go by suffixes.
    """
    suffix, own, safe = _suffix(newest), _SUFFIX.search(path.name), ".safetensors"
    name = own[0].lower() if own else ""
    if location(newest.path).info().is_folder:
        as_newest = _SUFFIX.search(newest.path.name)  # Lightning's folders of shards end in .ckpt
        if name in _FILES and name != (as_newest[0].lower() if as_newest else ""):
            raise UsageError(
                f"'{path}' is a name for a file, and {newest.name} is a folder",
                option="output",
                hint=option("o", path.with_name(path.name.removesuffix(own[0] if own else "")).as_posix()),
            )
        return Target(path, is_folder=True)
    if newest.format in READ_ONLY:
        return Target(path, is_folder=False)  # which is refused, whatever its name
    if bool(name) < bool(suffix) or (name == safe) != (suffix == safe):
        stem = path.name.removesuffix(own[0] if own else "")
        raise UsageError(
            f"'{path}' is no name for what is written like {newest.name}",
            option="output",
            hint=option("o", path.with_name(stem + suffix).as_posix()),
        )
    return Target(path, is_folder=False)


def _suffix(newest: Checkpoint) -> str:
    """Return the suffix of a checkpoint that is a file; the number at the end of `epoch=1-loss=0.25` is none."""
    match = _SUFFIX.search(newest.path.name)
    return "" if match is None or location(newest.path).info().is_folder else match[0].lower()


def published_target(targets: Sequence[Target]) -> Target:
    """Return the file or folder that one rename publishes: the only output, or the folder around all of them."""
    if len(targets) == 1:
        return targets[0]
    return Target(common_folder(target.path.parent for target in targets), is_folder=True)
