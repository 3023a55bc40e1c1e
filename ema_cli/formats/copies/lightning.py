"""What of a checkpoint of Lightning's goes into an average that `load_from_checkpoint` takes, beside the weights."""

from __future__ import annotations

from ema_cli.checkpoint import Checkpoint
from ema_cli.dataclass import dataclass
from ema_cli.formats.copies.description import entry_bytes, foreign_names
from ema_cli.formats.torch_save.file import is_zip
from ema_cli.formats.torch_save.zip_container import read_description
from ema_cli.formats.trainers.folders import DCP_META
from ema_cli.storage.location import location
from ema_cli.storage.source import ByteSource, InputFile

STATE_DICT = "state_dict"
_FACTS = ("epoch", "global_step", "pytorch-lightning_version")
_FIRST_NUMBER = 1 << 8  # of a value that they remember; the state dict before them has those below
_HYPER_PARAMETERS = ("hparams_name", "hyper_parameters")


@dataclass(frozen=True, slots=True)
class LightningFacts:
    """Entries of a checkpoint, each value as the instructions that make it.

    Attributes:
        entries: the clocks, the version and, where they are plain, the hyper-parameters.
        foreign: what the hyper-parameters name that is not plain, so that they are left out.
    """

    entries: dict[str, bytes]
    foreign: tuple[str, ...]


def description_file(checkpoint: Checkpoint) -> InputFile | None:
    """Return the file in which Lightning describes a checkpoint, an archive of torch's; None where it wrote none."""
    if checkpoint.trainer != "Lightning":
        return None
    path = checkpoint.path
    file = location(path / DCP_META if location(path).info().is_folder else path)
    return opened if file.info().is_file and is_zip(opened := file.open()) else None


def lightning_facts(file: ByteSource) -> LightningFacts:
    """Read what an archive of torch's says beside the weights; nothing in it runs.

    Raises:
        CannotCut: where one entry shares an object with another.
        CheckpointError: where it is no archive with a description.
    """
    description = read_description(file)
    paths = [(key,) for key in (*_FACTS, *_HYPER_PARAMETERS)]
    foreign = {path: foreign_names(value) for path, value in entry_bytes(description, paths).items()}
    unfit = {path for path, names in foreign.items() if names}
    hyper_parameters = {(key,) for key in _HYPER_PARAMETERS}
    unfit |= hyper_parameters if unfit & hyper_parameters else set()
    entries = entry_bytes(description, set(paths) - unfit, _FIRST_NUMBER)
    names = dict.fromkeys(name for path in paths for name in foreign.get(path, ()))
    return LightningFacts({key: value for (key,), value in entries.items()}, tuple(names))
