"""Raw weights or averages: which of them are taken, by what is there and by --weights, and what is said of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from ema_cli.checkpoint import Averages, Checkpoint, Progress
from ema_cli.errors import RunError, option
from ema_cli.formats.options import ReadOptions

AVERAGED_AGAIN = "these are averages, which are averaged again"
AVERAGED_MODEL = "an AveragedModel: 'n_averaged' stands beside its weights"

Tensors = Mapping[str, object]


@dataclass(slots=True)
class Found:
    """What is known of one saved object: its weights by name, its clocks, what it averaged already."""

    trainer: str | None
    tensors: Tensors
    progress: Progress
    averages: Averages | None = None
    notes: list[str] = field(default_factory=list)
    left_out: tuple[str, ...] = ()


def choose(
    found: Found, *, raw: Tensors, averages: Tensors, options: ReadOptions, why: str | None = None, where: str = ""
) -> None:
    """Take the raw weights, or the averages where the user asked for them; say so where there is a choice.

    `why` says why averages are in the usual place, if they are; else they lie beside the raw weights, in `where`.
    """
    if options.weights == "ema":
        found.tensors = averages
        found.notes.append(AVERAGED_AGAIN)
    elif options.weights == "raw":
        found.tensors = raw
        if why:
            found.notes.append("raw weights taken from beside the averages")
    elif why:
        found.averages = Averages(why, has_raw=True)
    else:
        found.notes.append(f"raw weights taken; averages lie beside them, in '{where}' (--weights ema)")


def choose_bare(found: Found, options: ReadOptions) -> None:
    """Settle what the user asks for where there is no choice: one set of weights, averages only as it says itself."""
    if "n_averaged" not in found.tensors:
        if options.weights == "ema":
            raise RunError("holds no averages", hint=f"leave out {option('weights', 'ema')}")
    else:
        refuse_raw(found, AVERAGED_MODEL, options)


def refuse_raw(found: Found, why: str, options: ReadOptions) -> None:
    """Settle what the user asks for where there are averages, `why` says so, and no raw weights."""
    if options.weights == "raw":
        raise RunError(f"holds no raw weights: {why}", hint=f"leave out {option('weights', 'raw')}")
    if options.weights == "ema":
        found.notes.append(AVERAGED_AGAIN)
    else:
        found.averages = Averages(why)


def settle_averages(checkpoint: Checkpoint, options: ReadOptions) -> Checkpoint:
    """Apply the user's --weights to a checkpoint that holds one set of weights, averages if `averaged` says so.

    Raises:
        RunError: where the other set is asked for. What ema-cli made is refused later, as it is passed over first.
    """
    if checkpoint.averages is None:
        if options.weights == "ema":
            raise RunError("holds no averages", subject=checkpoint.path, hint=f"leave out {option('weights', 'ema')}")
    elif options.weights == "raw" and checkpoint.mark is None:
        raise RunError(
            f"holds no raw weights: {checkpoint.averages.reason}",
            subject=checkpoint.path,
            hint=f"leave out {option('weights', 'raw')}",
        )
    elif options.weights == "ema":
        return replace(checkpoint, averages=None, notes=(*checkpoint.notes, AVERAGED_AGAIN))
    return checkpoint
