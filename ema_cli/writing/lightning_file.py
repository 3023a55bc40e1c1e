"""Lay out an average as a checkpoint of Lightning's, which loads a module: weights, clocks, hyper-parameters."""

from __future__ import annotations

from collections.abc import Mapping

from ema_cli.checkpoint import Checkpoint, TensorSpec
from ema_cli.errors import OutputError, option
from ema_cli.formats.copies.description import CannotCut
from ema_cli.formats.copies.lightning import STATE_DICT, description_file, lightning_facts
from ema_cli.formats.torch_save.writer import TorchOutput, lay_out_checkpoint
from ema_cli.formats.trainers.prefixes import Renamed
from ema_cli.text import some
from ema_cli.writing.target import Target, not_lightning


def lay_out_lightning(
    newest: Checkpoint, target: Target, specs: Mapping[str, TensorSpec], mark: str
) -> tuple[TorchOutput, dict[str, str], list[str]]:
    """Return the file, the name in the checkpoint of each tensor that has another in the file, and what to know.

    The names are the module's own, with the prefixes of wrappers within it.

    Args:
        newest: the newest checkpoint.
        target: the file.
        specs: its tensors, by their names in the checkpoint.
        mark: the content of our record.

    Raises:
        UsageError: where Lightning did not write the newest checkpoint.
        OutputError: where what it says cannot be taken over.
    """
    described = description_file(newest)
    if described is None:
        raise not_lightning(target, newest)
    try:
        facts = lightning_facts(described)
    except CannotCut as error:
        raise OutputError(
            f"cannot take over what {newest.name} says beside its weights: {error}",
            subject=target.path,
            hint=f"write it over again: {option('like_input', True)}",
        ) from error
    tensors = newest.tensors
    stored = tensors.stored if isinstance(tensors, Renamed) else {name: name for name in specs}
    originals = {stored[name]: name for name in specs}
    own = {written: specs[name] for written, name in originals.items()}
    file = lay_out_checkpoint(target.path.name, own, mark, STATE_DICT, facts.entries)
    notes = []
    if facts.foreign:
        notes.append(
            f"{target.path.name} has no hyper-parameters, as those of {newest.name} name {some(facts.foreign)}: give "
            "them to load_from_checkpoint; --like-input keeps them, and its loading runs their code"
        )
    return file, originals, notes
