"""Raw weights or averages: which are taken, by what is there and by `ReadOptions.weights`, and a note of that."""

from __future__ import annotations

from dataclasses import replace

from ema_cli.checkpoint import Averages, Checkpoint
from ema_cli.errors import RunError, option
from ema_cli.formats.options import ReadOptions
from ema_cli.formats.trainers.layout import Selection, StateDict

AVERAGED_AGAIN = "these are averages, which are averaged again"
AVERAGED_MODEL = "an AveragedModel: 'n_averaged' stands beside its weights"


def choose(
    selection: Selection,
    *,
    raw: StateDict,
    averages: StateDict,
    options: ReadOptions,
    why: str | None = None,
    where: str = "",
) -> None:
    """Take the raw weights, or the averages where the user asked for them; note it where there is a choice.

    Args:
        selection: what is taken so far; changed in place.
        raw: the raw weights.
        averages: the averages.
        options: `weights` says what the user asked for.
        why: how it is known that averages are in the place of the model; None where they lie beside the raw weights.
        where: the place of the averages beside the raw weights.
    """
    if options.weights == "ema":
        selection.tensors = averages
        selection.notes.append(AVERAGED_AGAIN)
    elif options.weights == "raw":
        selection.tensors = raw
        if why:
            selection.notes.append("raw weights taken from beside the averages")
    elif why:
        selection.averages = Averages(why, has_raw=True)
    else:
        selection.notes.append(f"raw weights taken; averages lie beside them, in '{where}' (--weights ema)")


def choose_single(selection: Selection, options: ReadOptions) -> None:
    """Apply `options.weights` where there is one set of weights: averages only if torch's AveragedModel saved them."""
    if "n_averaged" in selection.tensors:
        choose_averages(selection, AVERAGED_MODEL, options)
    elif options.weights == "ema":
        raise RunError("holds no averages", hint=f"leave out {option('weights', 'ema')}")


def choose_averages(selection: Selection, why: str, options: ReadOptions) -> None:
    """Apply `options.weights` where there is nothing but averages; `why` says how that is known."""
    if options.weights == "raw":
        raise RunError(f"holds no raw weights: {why}", hint=f"leave out {option('weights', 'raw')}")
    if options.weights == "ema":
        selection.notes.append(AVERAGED_AGAIN)
    else:
        selection.averages = Averages(why)


def settle_averages(checkpoint: Checkpoint, options: ReadOptions) -> Checkpoint:
    """Apply `options.weights` to a checkpoint that holds one set of weights: averages if `averages` is set.

    Averages that ema-cli made are not refused here: a search passes them over first.

    Raises:
        RunError: where the other set is asked for.
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
