"""Where a checkpoint of several models has them: the folders that its own files name, or that trainers always use."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ema_cli.errors import CheckpointError
from ema_cli.formats.folders import huggingface
from ema_cli.formats.json_text import read_json
from ema_cli.formats.shards import is_plain_name
from ema_cli.formats.trainers.folders import (
    ADAPTER_CONFIG,
    ADAPTER_FILES,
    AVERAGES_BESIDE,
    COMPONENTS,
    MODULES,
    PIPELINE,
    ROUTER,
    TRAINER_STATE,
)
from ema_cli.formats.trainers.names import names_in
from ema_cli.storage.location import location

_MAX_CONFIG_BYTES = 128 << 20
_MAX_DEPTH = 4  # of a router in a router
_MAX_PLACES = 1000


@dataclass(frozen=True, slots=True)
class Places:
    """The folders of a checkpoint of several models.

    Attributes:
        models: those with a model, relative to the checkpoint's own.
        has_own_model: whether the checkpoint's own folder has one, too.
        is_named: whether the checkpoint's own files name the folders, so that it loads as a whole.
        may_have_averages: whether a folder may have one of averages beside it, `unet_ema` beside `unet`.
        trainer: who writes so, None where the model in the checkpoint's own folder says that.
    """

    models: tuple[str, ...] = ()
    has_own_model: bool = False
    is_named: bool = False
    may_have_averages: bool = False
    trainer: str | None = None


def find_places(path: Path) -> Places:
    """Return where the checkpoint in a folder has models besides its own; no `models` where there is at most that."""
    names = names_in(path)
    if MODULES in names:
        modules = [place for place in named_folders(path) if huggingface.matches(path / place)]
        return Places(tuple(modules), huggingface.is_model(names), is_named=True)
    known = dict.fromkeys(name for name in COMPONENTS if name in names or f"{name}{AVERAGES_BESIDE}" in names)
    if PIPELINE in names:
        known.update(dict.fromkeys(named_folders(path)))
    if known and not huggingface.is_model(names):
        models = [name for name in known if _has_model(path / name)]
        return Places(tuple(models), is_named=PIPELINE in names, may_have_averages=True, trainer="diffusers")
    if names & ADAPTER_FILES or (TRAINER_STATE in names and not huggingface.is_model(names)):
        return Places(tuple(_adapters(path)), bool(names & ADAPTER_FILES))
    return Places()


def named_folders(path: Path) -> list[str]:
    """Return the folders below a checkpoint's own that its modules.json, model_index.json or a router's file names."""
    names = names_in(path)
    found: dict[str, None] = {}
    if MODULES in names:
        modules = read_json(location(path / MODULES).open(), _MAX_CONFIG_BYTES)
        entries = [entry for entry in modules if isinstance(entry, dict)] if isinstance(modules, list) else []
        for place in (entry.get("path") for entry in entries):
            if isinstance(place, str) and all(map(is_plain_name, place.split("/") if place else ())):
                for named in _with_routes(path, PurePosixPath(place)):
                    found[named] = None
                    if len(found) > _MAX_PLACES:  # as links that lead back can make them
                        raise CheckpointError(f"names more than {_MAX_PLACES} folders", subject=path / MODULES)
    if PIPELINE in names:
        pipeline = read_json(location(path / PIPELINE).open(), _MAX_CONFIG_BYTES)
        for name, kind in pipeline.items() if isinstance(pipeline, dict) else ():
            if isinstance(kind, list) and is_plain_name(name) and name in names:
                found[name] = None
    return [place for place in found if place != "."]


def _with_routes(path: Path, place: PurePosixPath, depth: int = 0) -> Iterator[str]:
    """Yield a module's folder and, where it is a router, those of the modules that it leads to."""
    yield place.as_posix()
    config = path / place / ROUTER
    if depth < _MAX_DEPTH and location(config).info().is_file:
        router = read_json(location(config).open(), _MAX_CONFIG_BYTES)
        types = router.get("types") if isinstance(router, dict) else None
        for name in types if isinstance(types, dict) else ():
            if is_plain_name(name):
                yield from _with_routes(path, place / name, depth + 1)


def _has_model(folder: Path) -> bool:
    return huggingface.matches(folder) or huggingface.matches(folder.with_name(f"{folder.name}{AVERAGES_BESIDE}"))


def _adapters(path: Path) -> list[str]:
    """Return the folders of the adapters that PEFT keeps beside the first, or without one."""
    folders = sorted(entry.name for entry in location(path).entries() if entry.is_folder and entry.name[0] != ".")
    inside = {name: names_in(path / name) for name in folders}
    return [name for name, names in inside.items() if ADAPTER_CONFIG in names and names & ADAPTER_FILES]
