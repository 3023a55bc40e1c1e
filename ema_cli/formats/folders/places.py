"""Where a checkpoint of several models has them: the folders that its own files name, or that trainers always use."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path, PurePosixPath

from ema_cli.dataclass import dataclass
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
    WEIGHTLESS,
)
from ema_cli.formats.trainers.names import is_weights_name
from ema_cli.storage.location import location, names_in

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
        without_weights: folders that the checkpoint's own files name, and in which weights are missing.
    """

    models: tuple[str, ...] = ()
    has_own_model: bool = False
    is_named: bool = False
    may_have_averages: bool = False
    trainer: str | None = None
    without_weights: tuple[str, ...] = ()


def find_places(path: Path) -> Places:
    """Return where the checkpoint in a folder has models besides its own; no `models` where there is at most that."""
    names = names_in(path)
    if MODULES in names:
        parts = named_parts(path, names)
        modules = [place for place in parts if place != "." and huggingface.matches(path / place)]
        return Places(
            tuple(modules), huggingface.is_model(names), is_named=True, without_weights=_without_weights(path, parts)
        )
    known = dict.fromkeys(name for name in COMPONENTS if name in names or f"{name}{AVERAGES_BESIDE}" in names)
    parts = named_parts(path, names)
    known.update(dict.fromkeys(place for place in parts if place in names))
    if known and not huggingface.is_model(names):
        models = [name for name in known if _has_model(path / name)]
        return Places(
            tuple(models),
            is_named=PIPELINE in names,
            may_have_averages=True,
            trainer="diffusers",
            without_weights=_without_weights(path, parts),
        )
    if names & ADAPTER_FILES or (TRAINER_STATE in names and not huggingface.is_model(names)):
        return Places(tuple(_adapters(path)), bool(names & ADAPTER_FILES))
    return Places()


def named_folders(path: Path) -> list[str]:
    """Return the folders below a checkpoint's own that its modules.json, model_index.json or a router's file names."""
    names = names_in(path)
    parts = named_parts(path, names)
    return [place for place in parts if place != "." and (MODULES in names or place in names)]


def named_parts(path: Path, names: Collection[str]) -> dict[str, str]:
    """Return the folders that a checkpoint's own files name, there or not, each with the class of what it holds.

    Args:
        path: the checkpoint's own folder, which is "." in the result.
        names: what is in it.

    Raises:
        CheckpointError: for a file that is no JSON, or names endlessly many.
    """
    found: dict[str, str] = {}
    if MODULES in names:
        modules = read_json(location(path / MODULES).open(), _MAX_CONFIG_BYTES)
        for entry in modules if isinstance(modules, list) else ():
            place = entry.get("path") if isinstance(entry, dict) else None
            if isinstance(place, str) and all(map(is_plain_name, place.split("/") if place else ())):
                for named, kind in _with_routes(path, PurePosixPath(place), entry.get("type")):
                    found[named] = kind
                    if len(found) > _MAX_PLACES:  # as links that lead back can make them
                        raise CheckpointError(f"names more than {_MAX_PLACES} folders", subject=path / MODULES)
    if PIPELINE in names:
        pipeline = read_json(location(path / PIPELINE).open(), _MAX_CONFIG_BYTES)
        for name, kind in pipeline.items() if isinstance(pipeline, dict) else ():
            if isinstance(kind, list) and is_plain_name(name) and any(kind):  # [null, null] is left out on purpose
                found[name] = kind[-1] if isinstance(kind[-1], str) else ""
    return found


def _with_routes(path: Path, place: PurePosixPath, kind: object, depth: int = 0) -> Iterator[tuple[str, str]]:
    """Yield a module's folder and class and, where it is a router, those of the modules that it leads to."""
    yield place.as_posix(), kind if isinstance(kind, str) else ""
    config = path / place / ROUTER
    if depth < _MAX_DEPTH and location(config).info().is_file:
        router = read_json(location(config).open(), _MAX_CONFIG_BYTES)
        types = router.get("types") if isinstance(router, dict) else None
        for name, inner in types.items() if isinstance(types, dict) else ():
            if is_plain_name(name):
                yield from _with_routes(path, place / name, inner, depth + 1)


def _without_weights(path: Path, parts: Mapping[str, str]) -> tuple[str, ...]:
    """Return the folders that should hold weights, by their classes, and hold none."""
    return tuple(
        place
        for place, kind in parts.items()
        if not WEIGHTLESS.search(kind or place)
        and not any(is_weights_name(name) for folder in _raw_or_averages(path / place) for name in names_in(folder))
    )


def _raw_or_averages(folder: Path) -> tuple[Path, Path]:
    return folder, folder.with_name(f"{folder.name}{AVERAGES_BESIDE}")


def _has_model(folder: Path) -> bool:
    return any(map(huggingface.matches, _raw_or_averages(folder)))


def _adapters(path: Path) -> list[str]:
    """Return the folders of the adapters that PEFT keeps beside the first, or without one."""
    folders = sorted(entry.name for entry in location(path).entries() if entry.is_folder and entry.name[0] != ".")
    inside = {name: names_in(path / name) for name in folders}
    return [name for name, names in inside.items() if ADAPTER_CONFIG in names and names & ADAPTER_FILES]
