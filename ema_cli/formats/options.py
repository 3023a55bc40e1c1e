"""How checkpoints are read, where a user has a choice."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import field
from pathlib import Path
from typing import Literal

from ema_cli.dataclass import dataclass
from ema_cli.errors import NoSuchWeights, UsageError, option
from ema_cli.formats.before import Before
from ema_cli.law.time import UNIT_NAMES, Unit

_MOST_PATTERNS = 256  # each is compared with the name of each tensor
_MOST_OFFERED = 4  # models, in one hint
Choice = Literal["raw", "ema"] | None
MASTERS_TAKEN = "the optimizer's float32 weights are taken, and not the model's"
MASTERS_THERE = "the weights are in half precision; the optimizer has them in float32, too (--masters takes those)"


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """How checkpoints are read.

    Attributes:
        key: where in a file, not of safetensors, the weights are; dots descend.
        weights: raw weights or averages, where a checkpoint holds both.
        component: the name of one model, where a checkpoint holds several.
        keep_prefix: whether names stay as wrappers made them.
        copy: patterns of the names of tensors that are copied from the newest checkpoint instead of averaged.
        clock_key: places of counters in a file, not of safetensors, each with its unit: `trainer.step=ba`.
        masters: take the float32 weights that an optimizer keeps of a model in half precision.
        before: what the files of the run were that were read before; no choice of the user's.

    Raises:
        UsageError: for `weights` that are neither, for too many patterns, and for a counter without a place or a unit.
    """

    key: str | None = None
    weights: Choice = None
    component: str | None = None
    keep_prefix: bool = False
    copy: tuple[str, ...] = ()
    clock_key: tuple[str, ...] = ()
    masters: bool = False
    before: Before = field(default_factory=Before, compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.weights not in (None, "raw", "ema"):
            raise UsageError(f"'{self.weights}' is neither raw nor ema", option="weights")
        if len(self.copy) > _MOST_PATTERNS:
            raise UsageError(
                f"{len(self.copy)} patterns are too many; at most {_MOST_PATTERNS} are compared with each name",
                option="copy",
                hint="say with * and ? what the names have in common",
            )
        for text in self.clock_key:
            place, _, unit = text.rpartition("=")
            if not place or unit.lower() not in UNIT_NAMES:
                raise UsageError(
                    f"'{text}' is no place with a unit",
                    option="clock_key",
                    hint="the place of a number in the file, =, and what it counts "
                    f"({', '.join(Unit)}): {option('clock_key', 'trainer.step=ba')}",
                )

    @property
    def clock_places(self) -> tuple[tuple[str, Unit], ...]:
        """Return the places of counters, each with its unit."""
        split = (text.rpartition("=") for text in self.clock_key)
        return tuple((place, UNIT_NAMES[unit.lower()]) for place, _, unit in split)

    def copies(self, name: str) -> bool:
        """Return whether tensor `name` is to be copied."""
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in self.copy)


def one_model_error(path: Path) -> UsageError:
    """Return the error for a component that is named where there is one model."""
    return UsageError(
        f"holds one model, and {option('component')} chooses of several",
        subject=path,
        hint=f"leave out {option('component')}",
    )


def no_masters_error(path: Path) -> NoSuchWeights:
    """Return the error for float32 weights of an optimizer that are asked for and not there."""
    return NoSuchWeights(
        "holds no float32 weights of an optimizer, as DeepSpeed's ZeRO and Megatron keep them by their names",
        subject=path,
        hint=f"leave out {option('masters', True)}",
    )


def several_models_error(path: Path, names: Sequence[str], first: str) -> UsageError:
    """Return the error for a checkpoint of several models where none of the `names` is chosen; `first` is offered."""
    ordered = sorted(names, key=lambda name: name != first)
    return UsageError(f"holds several models: {', '.join(names)}", subject=path, hint=_offer(ordered))


def no_component_error(path: Path, component: str, names: Sequence[str]) -> UsageError:
    """Return the error for a component that is none of the `names`."""
    return UsageError(f"has no component '{component}'", subject=path, hint=_offer(names))


def _offer(names: Sequence[str]) -> str:
    more = f"; there are {len(names)}" if len(names) > _MOST_OFFERED else ""
    return f"say which: {', or '.join(option('component', name) for name in names[:_MOST_OFFERED])}{more}"
