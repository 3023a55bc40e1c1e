"""Checkpoints that are folders of several models, as Diffusers writes: unet/, transformer/, unet_ema/. One is read."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from ema_cli.checkpoint import Averages, Checkpoint
from ema_cli.errors import RunError, UsageError, option
from ema_cli.formats.folders import huggingface
from ema_cli.formats.options import ReadOptions, several_models_error
from ema_cli.formats.reader import Reader
from ema_cli.formats.trainers.choice import AVERAGED_AGAIN
from ema_cli.formats.trainers.folders import COMPONENTS
from ema_cli.storage.location import location

_EMA = "_ema"


def matches(path: Path) -> bool:
    """Return whether the folder holds models under the names of a pipeline's components."""
    return bool(_components(path))


def open_checkpoint(path: Path, options: ReadOptions) -> Checkpoint:
    """Read the headers of the component that the user names, or of the only one.

    Raises:
        UsageError: where there are several, or none of that name.
        RunError: where the averages, or the raw weights, that the user asks for are not there.
    """
    component = _choose_component(path, options)
    raw, ema = path / component, path / f"{component}{_EMA}"
    has_raw, has_averages = huggingface.matches(raw), huggingface.matches(ema)
    if options.weights == "ema" and not has_averages:
        raise RunError(
            f"holds no averages of '{component}'", subject=path, hint=f"leave out {option('weights', 'ema')}"
        )
    if options.weights == "raw" and not has_raw:
        raise RunError(
            f"holds only averages of '{component}'", subject=path, hint=f"leave out {option('weights', 'raw')}"
        )
    names_averages = options.component is not None and options.component.endswith(_EMA)
    take_averages = options.weights == "ema" or (names_averages and options.weights is None) or not has_raw
    inner = dataclasses.replace(options, weights=None, component=None)
    checkpoint = huggingface.open_checkpoint(ema if take_averages else raw, inner)
    notes, averages = list(checkpoint.notes), checkpoint.averages
    if options.weights == "ema":
        averages = None
        notes.append(AVERAGED_AGAIN)
    elif take_averages:
        averages = averages or Averages(f"'{ema.name}' holds averages, by its name")
    elif has_averages and options.weights is None:
        notes.append(f"raw weights taken; averages lie beside them, in '{ema.name}' (--weights ema)")
    return dataclasses.replace(
        checkpoint, name=path.name, path=path, trainer="diffusers", notes=tuple(notes), averages=averages
    )


def _choose_component(path: Path, options: ReadOptions) -> str:
    """Return the component that the user names, by its own name or that of its averages, or the only one."""
    components = _components(path)
    if not options.component and len(components) > 1:
        raise several_models_error(path, components, components[0])
    component = options.component.removesuffix(_EMA) if options.component else components[0]
    if component not in components:
        raise UsageError(f"has no component '{component}'", subject=path, hint=f"it has {', '.join(components)}")
    return component


def _components(path: Path) -> list[str]:
    """Return the names of the models in the folder, without those of their averages."""
    if not location(path).info().is_folder:
        return []
    return [
        name for name in COMPONENTS if huggingface.matches(path / name) or huggingface.matches(path / f"{name}{_EMA}")
    ]


READER = Reader(matches, open_checkpoint, takes_component=True)
