"""What stays that of the newest checkpoint, where an average is written over it: what is said of it, or refused."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from ema_cli.checkpoint import Checkpoint, TensorSpec
from ema_cli.errors import OutputError, option
from ema_cli.formats.before import Before
from ema_cli.formats.copies.beside import Beside, beside_by_name, beside_in_file, masters_in_file
from ema_cli.formats.copies.left_out import LeftOut
from ema_cli.formats.options import ReadOptions
from ema_cli.formats.trainers.folders import DCP_METADATA, DEEPSPEED_OPTIMIZER, DEEPSPEED_UNIVERSAL
from ema_cli.formats.trainers.names import is_weights_name
from ema_cli.planning.plan import Plan
from ema_cli.storage.location import location
from ema_cli.storage.output_stream import WRITE_ELSEWHERE
from ema_cli.storage.source import InputFile
from ema_cli.text import some
from ema_cli.writing.originals import Original
from ema_cli.writing.target import Target

if TYPE_CHECKING:
    from ema_cli.formats.dcp.content import Metadata

# Of DeepSpeed, and of accelerate's FSDP, beside the Hugging Face Trainer's model.
_WEIGHTS_AGAIN = re.compile(
    r"(?:^|/)(?:[^/]*_model_states\.pt|pytorch_model_fsdp_\d+(?:/.*)?|pytorch_model_fsdp.*\.bin)$"
)
_AGAIN = "it holds the weights once more, in {}, from which its trainer resumes"
_MODELS = ("model", "pytorch_model")  # how the Trainer calls its own
# Of stage 3, in DeepSpeed's universal format: has one rank's weights, too, which are read from the files beside it.
_UNREAD = re.compile(rf"/{DEEPSPEED_UNIVERSAL}/optimizer_state\.pt$")


def find_beside(
    newest: Checkpoint, originals: Mapping[Path, Original], copies: Iterable[InputFile], left: LeftOut, before: Before
) -> Beside:
    """Return what lies beside the weights in the files of the newest checkpoint, and stays.

    What was read of the files with weights is kept in `before`, with which the output is read back.
    """
    beside = Beside()
    for file in copies:
        if not _UNREAD.search(file.path.as_posix()):
            beside.add(masters_in_file(file))
    for path, original in originals.items():
        if path.suffix.lower() != ".safetensors" and newest.format != "DCP":
            beside.add(beside_in_file(original.file, original.replaced, before))
    described = _described(newest)
    if described is not None:
        from ema_cli.formats.copies.optimizer import is_optimizer_tensor
        from ema_cli.formats.dcp.masters import masters_that_stay

        names = [name for name in described.tensors if not (left.texts and is_optimizer_tensor(name))]
        beside.places = beside_by_name(names, newest.tensors.specs)
        replaced = {path: original.replaced for path, original in originals.items()}
        staying = masters_that_stay(described, replaced)
        beside.masters += islice((name for name in staying if not (left.texts and is_optimizer_tensor(name))), 1)
    return beside.without(left.places)


def _described(newest: Checkpoint) -> Metadata | None:
    """Return what a folder of torch.distributed.checkpoint's says of itself; None where it is none."""
    metadata = next((file for file in newest.files if file.path.name == DCP_METADATA), None)
    if metadata is None:
        return None
    from ema_cli.formats.dcp.metadata import read_metadata

    return read_metadata(metadata)


def notes_of(newest: Checkpoint, beside: Beside, classes: Sequence[str]) -> tuple[str, ...]:
    """Return what is said of an output: what stays beside the weights, and what loading it means."""
    notes = []
    if beside.places:
        places = list(dict.fromkeys(beside.places))  # the files of ranks have the same ones
        notes.append(f"beside the weights, all stays that of {newest.name}: {some(places)}")
    if classes:
        notes.append(f"loading it runs the code of {some(classes)}, as loading {newest.name} does")
    return tuple(notes)


def check_no_weights(newest: Checkpoint, copies: Iterable[str], originals: Iterable[Path]) -> None:
    """Check that no file that is copied holds the model once more, for the trainer to load it from there."""
    copies = list(copies)
    if newest.pretrained is not None and any(DEEPSPEED_OPTIMIZER.search(path.name) for path in originals):
        own = [name for name in copies if name.startswith(_MODELS) and is_weights_name(name)]
        # Of stage 3 it may be there with empty tensors, which nobody loads.
        if own and any(spec.dtype.averaged and spec.count for spec in _own_specs(newest)):
            raise refusal(newest, f"its weights lie in DeepSpeed's files, and {own[0]} has others, which would stay")
    again = next((name for name in copies if _WEIGHTS_AGAIN.search(name)), None)
    if again is not None and again.endswith("_model_states.pt"):
        raise OutputError(
            f"cannot be written over again: {_AGAIN.format(again)}",
            subject=newest.path,
            hint=f"average those that DeepSpeed keeps in float32, and replace all: {option('masters', True)}",
        )
    if again is not None:
        raise refusal(newest, _AGAIN.format(again))


def _own_specs(newest: Checkpoint) -> Collection[TensorSpec]:
    """Return the tensors of the Hugging Face Trainer's own model, beside what DeepSpeed saved."""
    from ema_cli.formats.folders import several

    return several.open_checkpoint(newest.path, ReadOptions()).tensors.specs.values()


def check_no_masters(newest: Checkpoint, beside: Beside, *, without_optimizer: bool) -> None:
    """Check that no copies of the weights stay, which a trainer that resumes puts over the average."""
    if not beside.masters:
        return
    fact = f"{some(beside.masters)}: copies of the weights, which a trainer that resumes puts over the average"
    if without_optimizer:
        raise refusal(newest, f"it would keep {fact}")
    are_read = newest.trainer == "DeepSpeed"
    if newest.format == "DCP":
        from ema_cli.formats.dcp.masters import can_be_taken

        described = _described(newest)
        are_read = described is not None and can_be_taken(described, beside.masters[0])
    raise OutputError(
        f"cannot be written over again as it is: it holds {fact}",
        subject=newest.path,
        hint=f"leave them out, with all of the optimizer's: {option('drop', 'optimizer')}"
        + (f"; or average these, and replace both: {option('masters', True)}" if are_read else ""),
    )


def check_outside(plan: Plan, target: Target) -> None:
    """Check that a file which can hold no mark goes where no later search takes it for a checkpoint of the run."""
    root, folder = location(plan.run.root).resolve(), location(target.path.absolute().parent).resolve()
    if target.is_folder or folder.is_relative_to(root):
        raise OutputError(
            f"is of torch's old format, as {plan.newest.name} is, which has no place for our mark: a later search "
            "would take it for a checkpoint of the run",
            subject=target.path,
            hint=WRITE_ELSEWHERE,
        )


def refusal(newest: Checkpoint, fact: str) -> OutputError:
    """Return the error for a checkpoint that cannot be written over again."""
    return OutputError(
        f"cannot be written over again: {fact}",
        subject=newest.path,
        hint=f"leave out {option('like_input', True)}, which writes the weights alone",
    )
