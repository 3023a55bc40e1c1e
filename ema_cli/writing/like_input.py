"""Lay out an average in the form of its input: the files of the newest checkpoint, with averages for their weights.

A tensor that is copied, and all that is no tensor of the model, stays what it is in the newest checkpoint.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import field
from pathlib import Path

from ema_cli.checkpoint import Checkpoint, TensorSpec
from ema_cli.dataclass import dataclass
from ema_cli.errors import OutputError, option
from ema_cli.formats.arrays.reader import READ_ONLY
from ema_cli.formats.copies.beside import Beside, beside_by_name, beside_in_file, masters_in_file
from ema_cli.formats.copies.classes import classes_in
from ema_cli.formats.copies.copied_file import CopiedFile, Span
from ema_cli.formats.copies.frames import Cut, can_be_marked, frame_of, join_spans
from ema_cli.formats.copies.left_out import LeftOut
from ema_cli.formats.copies.stored import NotWrittenBack, StoredPiece, check_apart, stored_pieces
from ema_cli.formats.mark import RECORD
from ema_cli.formats.output_file import Table
from ema_cli.formats.torch_save.file import open_torch
from ema_cli.formats.trainers.folders import DCP_METADATA, DEEPSPEED_OPTIMIZER, DEEPSPEED_UNIVERSAL
from ema_cli.manifest.signature import SIGNATURE_NAME
from ema_cli.manifest.sums import FOLDER_NAME, SUMS_NAME
from ema_cli.planning.plan import Plan
from ema_cli.runs.ties import with_ties
from ema_cli.storage.location import location, walk
from ema_cli.storage.output_stream import WRITE_ELSEWHERE
from ema_cli.storage.source import ByteSource, FileRegion, HeldBytes, InputFile
from ema_cli.text import some
from ema_cli.writing.card import CARD_NAME, model_card
from ema_cli.writing.side_files import check_links
from ema_cli.writing.target import Target

# Of DeepSpeed, and of accelerate's FSDP, beside the Hugging Face Trainer's model.
_WEIGHTS_AGAIN = re.compile(
    r"(?:^|/)(?:[^/]*_model_states\.pt|pytorch_model_fsdp_\d+(?:/.*)?|pytorch_model_fsdp.*\.bin)$"
)
# Of stage 3, in DeepSpeed's universal format: has one rank's weights, too, which are read from the files beside it.
_UNREAD = re.compile(rf"/{DEEPSPEED_UNIVERSAL}/optimizer_state\.pt$")
_NO_PART = (".git", FOLDER_NAME, SUMS_NAME, SIGNATURE_NAME)  # of a checkpoint's folder


@dataclass(frozen=True, slots=True)
class Likeness:
    """How an output takes over the newest checkpoint.

    Attributes:
        files: the copies of its files with tensors.
        pieces: where each averaged tensor goes, by its name; of tied ones the first alone.
        classes: the classes and functions that loading the output imports and calls.
        notes: what stays that of the newest checkpoint, and what loading means, in words.
    """

    files: Sequence[CopiedFile]
    pieces: Mapping[str, Sequence[StoredPiece]]
    classes: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(slots=True)
class _Original:
    """One file of the newest checkpoint: the tensors that begin in it, and the ranges that are replaced."""

    file: InputFile
    specs: dict[str, TensorSpec] = field(default_factory=dict)
    spans: list[tuple[int, int, str]] = field(default_factory=list)
    archives: dict[int, FileRegion] = field(default_factory=dict)

    @property
    def replaced(self) -> list[Span]:
        """Return the ranges that are replaced, in order."""
        return join_spans((begin, end) for begin, end, _ in self.spans)

    def take(self, name: str, piece: StoredPiece) -> None:
        """Add the ranges of a piece of a tensor."""
        self.spans += [(begin, end, name) for begin, end in piece.spans()]

    def forget(self, names: Collection[str]) -> None:
        """Leave the ranges of these tensors as they are, which had only to be apart from the others."""
        self.spans = [span for span in self.spans if span[2] not in names]

    def copy(self, name: str, mark: bytes, cut: Cut | None) -> CopiedFile:
        """Return the file to be written, under that name and with that mark; `cut`: what stays of it, None for all."""
        replaced = self.replaced
        table = Table(b"", {}, self.specs, sum(spec.nbytes for spec in self.specs.values()))
        frame = frame_of(self.file, replaced, self.archives.values(), mark, cut)
        return CopiedFile(name, table, self.file, replaced, frame)


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
        raise _refusal(newest, "is no checkpoint of a trainer's")
    if newest.format in READ_ONLY:
        raise _refusal(newest, f"{newest.format} is read only")
    try:
        originals, pieces = _originals(plan, copied)
        names = {path: _name(path, newest, target) for path in originals}
        copies = _copies(newest.path, set(names.values())) if target.is_folder else {}
        files = [original.file for original in originals.values()]
        left = _without_optimizer(files, copies) if without_optimizer else LeftOut()
    except NotWrittenBack as error:
        raise _refusal(newest, f"{error}") from error
    sources = [*_descriptions(originals, left), *(file for name, file in copies.items() if name not in left.files)]
    own = {file.path for file in newest.files}
    _check_no_weights(newest, [name for name, file in copies.items() if file.path not in own], originals)
    classes = tuple(classes_in(sources))
    for path in [path for path in left.cuts if path not in originals]:
        originals[path] = _Original(location(path).open())
        names[path] = _name(path, newest, target)
    gone = {*left.files, *left.texts, *names.values()}
    copies = {name: file for name, file in copies.items() if name not in gone}
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
        _check_outside(plan, target)
    copied_files = [original.copy(names[path], mark, left.cuts.get(path)) for path, original in originals.items()]
    beside = _beside(newest, originals, copies.values(), left)
    _check_no_masters(newest, beside, without_optimizer=without_optimizer)
    notes = _notes(newest, beside, classes)
    if without_optimizer:
        notes = (f"left out: {some(left.places)}" if left.places else "of an optimizer nothing is left out", *notes)
    return LikeFiles(texts, copies, Likeness(copied_files, pieces, classes, notes))


def _originals(plan: Plan, copied: frozenset[str]) -> tuple[dict[Path, _Original], dict[str, list[StoredPiece]]]:
    """Return the files with tensors of the newest checkpoint, and where each averaged tensor lies in them.

    Raises:
        NotWrittenBack: where another tensor's bytes would be written over.
    """
    newest = plan.newest
    opened = {file.path: file for file in newest.files}
    originals: dict[Path, _Original] = {}
    pieces: dict[str, list[StoredPiece]] = {}
    tied = _tied(plan, copied)
    for name, spec in newest.tensors.specs.items():
        stored = list(stored_pieces(newest.tensors, name))
        for piece in stored:
            path = piece.file.path
            if path not in originals:
                originals[path] = _Original(opened.get(path) or location(path).open())
            if piece.archive is not None:
                originals[path].archives[piece.archive.start] = piece.archive
        first = originals[stored[0].file.path] if stored else next(iter(originals.values()), None)
        if first is None:
            raise NotWrittenBack(f"'{name}' is in no file of it")
        first.specs[name] = spec
        if not spec.dtype.averaged:
            continue
        if name in tied:  # its weights are its leader's; copies of them may lie apart
            filled = {piece.place for piece in stored_pieces(newest.tensors, tied[name])}
            stored = [piece for piece in stored if piece.place not in filled]
        for piece in stored:
            originals[piece.file.path].take(name, piece)
        if name not in copied and (stored or name not in tied):
            pieces[name] = stored
    for original in originals.values():
        check_apart(original.spans)
        original.forget(copied)
    return originals, pieces


def _tied(plan: Plan, copied: frozenset[str]) -> dict[str, str]:
    """Return the names of tensors that have their bytes from others before them, in every checkpoint that enters.

    Each with the name of that other.

    Where they have not, their averages may differ, and one place cannot take both.
    """
    newest = plan.newest
    first: dict[object, str] = {}
    leaders: dict[str, str] = {}
    for name in [name for name in newest.tensors.specs if name not in copied]:
        leader = first.setdefault((newest.tensors.place(name), str(newest.tensors.specs[name])), name)
        if leader is not name:
            leaders[name] = leader
    for entry in plan.read if leaders else ():
        tensors = with_ties(entry.checkpoint, newest).tensors
        leaders = {one: other for one, other in leaders.items() if tensors.place(one) == tensors.place(other)}
    return leaders


def _name(path: Path, newest: Checkpoint, target: Target) -> str:
    """Return the name in the output of a file of the newest checkpoint."""
    if not target.is_folder and path == newest.path:
        return target.path.name
    if target.is_folder and path.is_relative_to(newest.path):
        return path.relative_to(newest.path).as_posix()
    raise _refusal(newest, f"has weights in {path}, outside of it")


def _copies(folder: Path, written: Collection[str]) -> dict[str, InputFile]:
    """Return the other files of a checkpoint that is a folder, by name."""
    paths = [entry.path.relative_to(folder) for entry in walk(folder) if entry.is_file]
    names = sorted(path.as_posix() for path in paths if path.parts[0] not in _NO_PART)
    check_links(folder, names)
    return {name: location(folder / name).open() for name in names if name not in written}


def _check_outside(plan: Plan, target: Target) -> None:
    """Check that a file which can hold no mark goes where no later search takes it for a checkpoint of the run."""
    root, folder = location(plan.run.root).resolve(), location(target.path.absolute().parent).resolve()
    if target.is_folder or folder.is_relative_to(root):
        raise OutputError(
            f"is of torch's old format, as {plan.newest.name} is, which has no place for our mark: a later search "
            "would take it for a checkpoint of the run",
            subject=target.path,
            hint=WRITE_ELSEWHERE,
        )


def _without_optimizer(originals: Collection[InputFile], copies: Mapping[str, InputFile]) -> LeftOut:
    from ema_cli.formats.copies.optimizer import leave_out_optimizer  # which few ask for

    return leave_out_optimizer(originals, copies)


def _descriptions(originals: Mapping[Path, _Original], left: LeftOut) -> Iterator[ByteSource]:
    """Yield the files with tensors; where something is left out of one, the description that stays."""
    for path, original in originals.items():
        description = left.cuts[path].description if path in left.cuts else None
        yield original.file if description is None else HeldBytes(path, description)


def _beside(
    newest: Checkpoint, originals: Mapping[Path, _Original], copies: Iterable[InputFile], left: LeftOut
) -> Beside:
    """Return what lies beside the weights in the files of the newest checkpoint, and stays."""
    beside = Beside()
    for file in copies:
        if not _UNREAD.search(file.path.as_posix()):
            beside.masters += masters_in_file(file)
    for path, original in originals.items():
        if path.suffix.lower() != ".safetensors" and newest.format != "DCP":
            one = beside_in_file(open_torch(original.file), original.replaced)
            beside.places += one.places
            beside.masters += one.masters
    metadata = next((file for file in newest.files if file.path.name == DCP_METADATA), None)
    if metadata is not None:
        from ema_cli.formats.copies.optimizer import is_optimizer_tensor
        from ema_cli.formats.dcp.metadata import read_metadata

        names = [name for name in read_metadata(metadata).tensors if not (left.texts and is_optimizer_tensor(name))]
        beside = beside_by_name(names, newest.tensors.specs)
    return beside.without(left.places)


def _notes(newest: Checkpoint, beside: Beside, classes: Sequence[str]) -> tuple[str, ...]:
    notes = []
    if beside.places:
        notes.append(f"beside the weights, all stays that of {newest.name}: {some(beside.places)}")
    if classes:
        notes.append(f"loading it runs the code of {some(classes)}, as loading {newest.name} does")
    return tuple(notes)


def _check_no_weights(newest: Checkpoint, copies: Iterable[str], originals: Iterable[Path]) -> None:
    """Check that no file that is copied holds the model once more, for the trainer to load it from there."""
    if newest.pretrained is not None and any(DEEPSPEED_OPTIMIZER.search(path.name) for path in originals):
        raise _refusal(newest, "its weights lie in DeepSpeed's files, and its own file of them would stay")
    again = next((name for name in copies if _WEIGHTS_AGAIN.search(name)), None)
    if again is not None:
        raise _refusal(newest, f"it holds the weights once more, in {again}, from which its trainer resumes")


def _check_no_masters(newest: Checkpoint, beside: Beside, *, without_optimizer: bool) -> None:
    """Check that no copies of the weights stay, which a trainer that resumes puts over the average."""
    if not beside.masters:
        return
    fact = f"{some(beside.masters)}: copies of the weights, which a trainer that resumes puts over the average"
    if without_optimizer:
        raise _refusal(newest, f"it would keep {fact}")
    raise OutputError(
        f"cannot be written over again as it is: it holds {fact}",
        subject=newest.path,
        hint=f"leave them out, with all of the optimizer's: {option('drop', 'optimizer')}"
        + (f"; or average these, and replace both: {option('masters', True)}" if newest.trainer == "DeepSpeed" else ""),
    )


def _refusal(newest: Checkpoint, fact: str) -> OutputError:
    return OutputError(
        f"cannot be written over again: {fact}",
        subject=newest.path,
        hint=f"leave out {option('like_input', True)}, which writes the weights alone",
    )
