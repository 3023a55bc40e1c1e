"""Lay out an average in the form of its input: the files of the newest checkpoint, with averages for their weights.

A tensor that is copied, and all that is no tensor of the model, stays what it is in the newest checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path

from ema_cli.checkpoint import Checkpoint
from ema_cli.dataclass import dataclass
from ema_cli.formats.arrays.reader import READ_ONLY
from ema_cli.formats.copies.classes import classes_in
from ema_cli.formats.copies.copied_file import CopiedFile
from ema_cli.formats.copies.frames import can_be_marked
from ema_cli.formats.copies.left_out import LeftOut
from ema_cli.formats.copies.order import files_at_once
from ema_cli.formats.copies.stored import NotWrittenBack, StoredPiece
from ema_cli.formats.mark import FOLDER_NAME, RECORD, SIGNATURE_NAME, SUMS_NAME
from ema_cli.planning.plan import Plan
from ema_cli.storage.location import location, walk
from ema_cli.storage.source import ByteSource, HeldBytes, InputFile
from ema_cli.text import some
from ema_cli.writing.card import CARD_NAME, model_card
from ema_cli.writing.originals import Original, find_originals
from ema_cli.writing.side_files import check_links
from ema_cli.writing.staying import (
    check_no_masters,
    check_no_weights,
    check_outside,
    find_beside,
    notes_of,
    refusal,
)
from ema_cli.writing.target import Target

_NO_PART = (".git", FOLDER_NAME, SUMS_NAME, SIGNATURE_NAME)  # of a checkpoint's folder


@dataclass(frozen=True, slots=True)
class Likeness:
    """How an output takes over the newest checkpoint.

    Attributes:
        files: the copies of its files with tensors.
        pieces: where each averaged tensor goes, by its name; of tied ones the first alone.
        classes: the classes and functions that loading the output imports and calls.
        notes: what stays that of the newest checkpoint, and what loading means, in words.
        at_once: how many of the files are written at the same time, in the order of the fold; 0 where the bytes of
            one are not written in their own order.
    """

    files: Sequence[CopiedFile]
    pieces: Mapping[str, Sequence[StoredPiece]]
    classes: tuple[str, ...]
    notes: tuple[str, ...]
    at_once: int


@dataclass(frozen=True, slots=True)
class LikeFiles:
    """The files of an output in the form of its input; see `writing.outputs.Output`."""

    texts: dict[str, bytes]
    copies: dict[str, InputFile]
    likeness: Likeness


def lay_out_like(
    plan: Plan,
    target: Target,
    copied: frozenset[str],
    mark_of: Callable[[Sequence[str]], str],
    *,
    without_optimizer: bool,
    manifest: bool,
) -> LikeFiles:
    """Return the files of an average in the form of its newest checkpoint.

    Args:
        plan: says which checkpoints enter.
        target: the file or folder to write, as the newest checkpoint is one.
        copied: names of tensors that are copied because the user wants it.
        mark_of: returns our mark, given the names of all files in a folder.
        without_optimizer: whether the state of the optimizer is left out.
        manifest: whether a manifest is written, too.

    Raises:
        OutputError: for what cannot be written over again.
    """
    newest = plan.newest
    if newest.mark is not None or plan.approximation is not None:
        raise refusal(newest, "is no checkpoint of a trainer's")
    if newest.format in READ_ONLY:
        raise refusal(newest, f"{newest.format} is read only")
    try:
        originals, pieces = find_originals(plan, copied)
        names = {path: _name(path, newest, target) for path in originals}
        copies = parts_of(newest.path, set(names.values())) if target.is_folder else {}
        files = [original.file for original in originals.values()]
        left = _without_optimizer(files, copies) if without_optimizer else LeftOut()
    except NotWrittenBack as error:
        raise refusal(newest, f"{error}") from error
    sources = [*_descriptions(originals, left), *(file for name, file in copies.items() if name not in left.files)]
    own = {file.path for file in newest.files}
    check_no_weights(newest, [name for name, file in copies.items() if file.path not in own], originals)
    for path in [path for path in left.cuts if path not in originals]:
        originals[path] = Original(location(path).open())
        names[path] = _name(path, newest, target)
    gone = {*left.files, *left.texts, *names.values()}
    copies = {name: file for name, file in copies.items() if name not in gone}
    beside = find_beside(newest, originals, copies.values(), left, plan.run.options.read.before)
    # Of a file of which only a part stays, the description of the part counts.
    described = {path: names for path, names in beside.named.items() if path not in left.cuts}
    classes = tuple(classes_in(sources, described))
    texts = dict(left.texts)
    if target.is_folder and newest.pretrained is not None and CARD_NAME not in copies:
        card = model_card(plan, {}, manifest=FOLDER_NAME if manifest else None, classes=classes)
        texts[CARD_NAME] = card.encode()
    unmarked = newest.format == "DCP" or not any(
        can_be_marked(original.file) and not original.archives for original in originals.values()
    )
    listed = [*names.values(), *copies, *texts, *([RECORD] if unmarked else [])] if target.is_folder else []
    mark = mark_of(sorted(listed)).encode()
    if unmarked and newest.format == "DCP":
        texts[RECORD] = mark
    elif unmarked:
        check_outside(plan, target)
    copied_files = [original.copy(names[path], mark, left.cuts.get(path)) for path, original in originals.items()]
    check_no_masters(newest, beside, without_optimizer=without_optimizer)
    notes = notes_of(newest, beside, classes)
    if without_optimizer:
        notes = (f"left out: {some(left.places)}" if left.places else "of an optimizer nothing is left out", *notes)
    at_once = files_at_once(copied_files, pieces)
    return LikeFiles(texts, copies, Likeness(copied_files, pieces, classes, notes, at_once))


def _name(path: Path, newest: Checkpoint, target: Target) -> str:
    """Return the name in the output of a file of the newest checkpoint."""
    if not target.is_folder and path == newest.path:
        return target.path.name
    if target.is_folder and path.is_relative_to(newest.path):
        return path.relative_to(newest.path).as_posix()
    raise refusal(newest, f"has weights in {path}, outside of it")


def parts_of(folder: Path, without: Collection[str] = ()) -> dict[str, InputFile]:
    """Return the files of a checkpoint that is a folder, by name.

    Raises:
        CheckpointError: where one cannot be opened, or is a link that leads out of the folder.
    """
    paths = [entry.path.relative_to(folder) for entry in walk(folder) if entry.is_file]
    names = sorted(path.as_posix() for path in paths if path.parts[0] not in _NO_PART)
    check_links(folder, names)
    return {name: location(folder / name).open() for name in names if name not in without}


def _without_optimizer(originals: Collection[InputFile], copies: Mapping[str, InputFile]) -> LeftOut:
    from ema_cli.formats.copies.optimizer import leave_out_optimizer  # which few ask for

    return leave_out_optimizer(originals, copies)


def _descriptions(originals: Mapping[Path, Original], left: LeftOut) -> Iterator[ByteSource]:
    """Yield the files with tensors; where something is left out of one, the description that stays."""
    for path, original in originals.items():
        description = left.cuts[path].description if path in left.cuts else None
        yield original.file if description is None else HeldBytes(path, description)
