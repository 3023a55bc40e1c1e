"""Raw weights or averages: which are taken, by what is there and by `ReadOptions.weights`, and what is said of that."""

from __future__ import annotations

from dataclasses import replace

from ema_cli.checkpoint import Averages, Checkpoint, Tensors
from ema_cli.errors import NoSuchWeights, option
from ema_cli.formats.options import ReadOptions
from ema_cli.formats.trainers.layout import Selection, Sets
from ema_cli.formats.trainers.names import AVERAGED_COUNT, AVERAGES_KEY, FOLLOWER_KEY

AVERAGED_AGAIN = "these are averages, which are averaged again"
AVERAGED_MODEL = "an AveragedModel: 'n_averaged' stands beside its weights"
WITHOUT_EMA = f"leave out {option('weights', 'ema')}"
AVERAGE_AGAIN = f"average the averages once more: {option('weights', 'ema')}"
_TAKE_RAW = f"take the raw weights: {option('weights', 'raw')}"
NOT_BEGUN = "holds no averages yet: they have not been updated once"
MODEL_ITSELF = "what it holds is the model as it was when its averages were set up: average the model's own checkpoints"


def choose(selection: Selection, sets: Sets, options: ReadOptions) -> None:
    """Take one set of weights: the raw ones, or what the user asked for; say so where there is a choice.

    Args:
        selection: what is taken so far; changed in place.
        sets: what is there.
        options: `weights` says what the user asked for.

    Raises:
        NoSuchWeights: where that is not there.
    """
    selection.holds_both = sets.raw is not None and sets.averages is not None
    if sets.warning:
        selection.warnings.append(sets.warning)
    if options.weights == "ema":
        if sets.averages is None:
            raise NoSuchWeights("holds no averages", hint=WITHOUT_EMA)
        if not sets.begun:
            raise NoSuchWeights(NOT_BEGUN, hint=MODEL_ITSELF if sets.raw is None else _TAKE_RAW)
        selection.tensors = sets.averages
        selection.warnings.append(AVERAGED_AGAIN)
    elif options.weights == "raw":
        _take_raw(selection, sets)
    elif sets.why and sets.averages is not None:
        selection.tensors = sets.averages
        selection.averages = Averages(sets.why, sets.raw is not None, sets.sure, sets.equal, sets.begun)
    elif sets.raw is not None:
        selection.tensors = sets.raw
        if sets.averages is not None and sets.begun:
            may_be = FOLLOWER_KEY.search(sets.where) and not AVERAGES_KEY.search(sets.where)
            what = "what may be their averages lies" if may_be else "averages lie"
            selection.notes.append(f"raw weights taken; {what} beside them, in '{sets.where}' (--weights ema)")


def _take_raw(selection: Selection, sets: Sets) -> None:
    """Take the raw weights, or those of which only the user knows that they are."""
    if sets.raw is not None:
        selection.tensors = sets.raw
        if sets.why:
            selection.notes.append("raw weights taken from beside the averages")
    elif sets.sure or sets.averages is None:
        raise NoSuchWeights(f"holds no raw weights: {sets.why}", hint=AVERAGE_AGAIN if sets.begun else MODEL_ITSELF)
    else:
        selection.tensors = sets.averages
        selection.warnings.append(_believed(sets.why))


def settle_averages(checkpoint: Checkpoint, options: ReadOptions) -> Checkpoint:
    """Apply `options.weights` to a checkpoint that holds one set of weights: averages if `averages` is set.

    Averages that ema-cli made are not refused here: a search passes them over first.

    Raises:
        NoSuchWeights: where the other set is asked for.
    """
    averages = checkpoint.averages
    if averages is None:
        if options.weights == "ema":
            raise NoSuchWeights("holds no averages", subject=checkpoint.path, hint=WITHOUT_EMA)
    elif options.weights == "raw" and checkpoint.mark is None:
        if averages.sure:
            hint = AVERAGE_AGAIN if averages.begun else MODEL_ITSELF
            raise NoSuchWeights(f"holds no raw weights: {averages.reason}", subject=checkpoint.path, hint=hint)
        return replace(checkpoint, averages=None, warnings=(*checkpoint.warnings, _believed(averages.reason)))
    elif options.weights == "ema":
        if not averages.begun:
            raise NoSuchWeights(NOT_BEGUN, subject=checkpoint.path, hint=MODEL_ITSELF)
        return replace(checkpoint, averages=None, warnings=(*checkpoint.warnings, AVERAGED_AGAIN))
    return checkpoint


def averaged_model(tensors: Tensors) -> Averages | None:
    """Return the averages that the state dict of an AveragedModel is, None for any other."""
    spec = tensors.specs.get(AVERAGED_COUNT)
    if spec is None:
        return None
    if spec.count != 1 or spec.dtype.kind != "integer":
        return Averages(AVERAGED_MODEL)
    stored = bytearray(spec.nbytes)
    tensors.read_into(AVERAGED_COUNT, 0, memoryview(stored))
    return Averages(AVERAGED_MODEL, begun=any(stored))


def _believed(why: str | None) -> str:
    return f"taken for raw weights, as --weights raw says, although {why}"
