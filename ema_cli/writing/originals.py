"""The files of the newest checkpoint that hold tensors, and the ranges of them that an average replaces."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import field
from pathlib import Path

from ema_cli.checkpoint import TensorSpec
from ema_cli.dataclass import dataclass
from ema_cli.formats.copies.copied_file import CopiedFile, Span
from ema_cli.formats.copies.frames import Cut, frame_of, join_spans
from ema_cli.formats.copies.stored import NotWrittenBack, StoredPiece, check_apart, stored_pieces
from ema_cli.formats.output_file import Table
from ema_cli.planning.plan import Plan
from ema_cli.runs.ties import tied_to, with_ties
from ema_cli.storage.location import location
from ema_cli.storage.source import FileRegion, InputFile


@dataclass(slots=True)
class Original:
    """One file of the newest checkpoint: the tensors that begin in it and where, and the ranges that are replaced."""

    file: InputFile
    specs: dict[str, TensorSpec] = field(default_factory=dict)
    begins: dict[str, int] = field(default_factory=dict)
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
        specs = {name: self.specs[name] for name in sorted(self.specs, key=lambda name: self.begins.get(name, 0))}
        table = Table(b"", {}, specs, sum(spec.nbytes for spec in specs.values()))
        frame = frame_of(self.file, replaced, self.archives.values(), mark, cut)
        return CopiedFile(name, table, self.file, replaced, frame)


def find_originals(plan: Plan, copied: frozenset[str]) -> tuple[dict[Path, Original], dict[str, list[StoredPiece]]]:
    """Return the files with tensors of the newest checkpoint, and where each averaged tensor lies in them.

    Raises:
        NotWrittenBack: where another tensor's bytes would be written over.
    """
    newest = plan.newest
    opened = {file.path: file for file in newest.files}
    originals: dict[Path, Original] = {}
    pieces: dict[str, list[StoredPiece]] = {}
    tied = _tied(plan, copied)
    for name, spec in newest.tensors.specs.items():
        stored = list(stored_pieces(newest.tensors, name))
        for piece in stored:
            path = piece.file.path
            if path not in originals:
                originals[path] = Original(opened.get(path) or location(path).open())
            if piece.archive is not None:
                originals[path].archives[piece.archive.start] = piece.archive
        first = originals[stored[0].file.path] if stored else next(iter(originals.values()), None)
        if first is None:
            raise NotWrittenBack(f"'{name}' is in no file of it")
        first.specs[name] = spec
        first.begins[name] = stored[0].base if stored else 0
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
    leaders = tied_to(newest.tensors, [name for name in newest.tensors.specs if name not in copied])
    for entry in plan.read if leaders else ():
        tensors = with_ties(entry.checkpoint, newest).tensors
        leaders = {one: other for one, other in leaders.items() if tensors.place(one) == tensors.place(other)}
    return leaders
