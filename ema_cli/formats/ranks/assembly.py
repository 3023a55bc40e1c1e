"""Put a model together from the shares of all ranks: boxes of tensors, and tensors that each rank has whole."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping
from dataclasses import field
from math import prod

from ema_cli.checkpoint import MAX_TENSORS, Progress, TensorSpec
from ema_cli.dataclass import dataclass
from ema_cli.errors import OTHER_SAVES, CheckpointError, IncompleteCheckpoint
from ema_cli.formats.boxes import Box, CoverCheck, Damaged, Shape
from ema_cli.formats.options import ReadOptions
from ema_cli.formats.pickles.distributed import Share, is_cut, share_of
from ema_cli.formats.pickles.values import TensorRef, Wrapped
from ema_cli.formats.pieces.copies import CopyCheck
from ema_cli.formats.pieces.tensors import PiecedTensors, PieceTable
from ema_cli.formats.placements import boxes_of
from ema_cli.formats.ranks.stored import Stored
from ema_cli.formats.ranks.table import Part, RankTable
from ema_cli.formats.spec_table import SpecTable
from ema_cli.formats.torch_save.archive import Span
from ema_cli.formats.torch_save.content import TorchFile
from ema_cli.storage.replicas import Replicas, differs, replica_in
from ema_cli.storage.source import InputFile
from ema_cli.text import first_few, plural

_GATHERED = "save it with torch.distributed.checkpoint, or whole: tensor.full_tensor()"
_MAX_WORK = 1 << 23  # blocks and boxes, of all tensors at all ranks
_FLAT = ("_flat_param", "flat_param")  # of FSDP's LOCAL_STATE_DICT


@dataclass(slots=True)
class Assembly:
    """Collects what each rank has, and makes tensors of it.

    Attributes:
        files: the files of the ranks, by their numbers in order.
        ranks: how many ranks there are, as far as the files say it.
    """

    files: dict[int, InputFile] = field(default_factory=dict)
    ranks: int = 0
    _named: dict[str, None] = field(default_factory=dict)
    _stored: dict[str, Stored] = field(default_factory=dict)
    _shapes: dict[str, Shape] = field(default_factory=dict)
    _specs: SpecTable = field(default_factory=SpecTable)
    _work: int = 0

    def read(self, file: InputFile, opened: TorchFile, values: Mapping[str, object], progress: Progress) -> RankTable:
        """Return what a rank's file has under the names of the model's tensors.

        Args:
            file: the file.
            opened: its content.
            values: what it has, by name.
            progress: its clocks.

        Raises:
            CheckpointError: for what cannot be read.
        """
        flat = next((name for name in values if name.rpartition(".")[2] in _FLAT), None)
        if flat is not None:
            raise CheckpointError(
                f"'{flat}' is several parameters in a row, and the file does not say which",
                subject=file.path,
                hint="save with FSDP's SHARDED_STATE_DICT or FULL_STATE_DICT",
            )
        shares = {
            name: share_of_rank(name, value, file)
            for name, value in values.items()
            if isinstance(value, TensorRef) or is_cut(value)
        }
        if len(shares) < len(values):  # in the file's own words
            opened.tensors({name: value for name, value in values.items() if name not in shares})
        self._count(sum(share.work for share in shares.values()), file)
        described = {
            name if part == 0 else f"{name} (shard {part})": (name, ref, spans)
            for name, share in shares.items()
            for part, (ref, spans) in enumerate(share.parts)
        }
        tensors = opened.tensors({key: ref for key, (_, ref, _) in described.items()})
        storages = opened.locate({ref.storage.key: None for _, ref, _ in described.values()})
        parts = []
        for key, (name, ref, spans) in described.items():
            spec, (first, stored) = tensors.specs[key], storages[ref.storage.key]
            if spec.shape != ref.shape or ref.conjugate or ref.negative:
                raise CheckpointError(f"'{name}' is {spec} in a form that is not put together", subject=file.path)
            start, boxes = tensors.offset(key, 0) - first, array("q")
            try:
                for begin, offsets, lengths in boxes_of(spans, ref.strides):
                    boxes.extend((start + spec.dtype.nbytes(begin), *offsets, *lengths))
                    self._count(1, file)
            except Damaged as error:
                raise CheckpointError(f"'{name}': {error}", subject=file.path) from None
            whole = self._specs.spec(spec.dtype, shares[name].shape)
            parts.append(Part(name, whole, is_cut(values[name]), ref.storage.key, stored, boxes))
        ranks = max((share.ranks for share in shares.values()), default=0)
        return RankTable(tuple(values), tuple(parts), ranks, progress)

    def add(self, rank: int, file: InputFile, table: RankTable, spans: Mapping[str, Span]) -> None:
        """Add the file of a rank.

        Args:
            rank: its number.
            file: the file.
            table: what it says.
            spans: where its storages lie.

        Raises:
            CheckpointError: for what does not fit what the ranks before have.
        """
        number = len(self.files)
        self.files[rank] = file
        self.ranks = max(self.ranks, table.ranks)
        for part in table.parts:
            stored = self._tensor(part, file)
            start, size = spans[part.key][0], 1 + 2 * len(part.spec.shape)
            for at in range(0, len(part.boxes), size):
                begin, *sides = part.boxes[at : at + size]
                stored.numbers.extend((number, start + begin, *sides))
        for name, shape in table.shapes.items():
            if self._shapes.setdefault(name, shape) != shape:
                fact = f"'{name}' is {list(shape)} here, and {list(self._shapes[name])} at the ranks before"
                raise CheckpointError(fact, subject=file.path, hint=OTHER_SAVES)
        self._named.update(dict.fromkeys(table.names))
        if len(self._named) > MAX_TENSORS:
            raise CheckpointError(
                f"holds {len(self._named)} tensors; at most {MAX_TENSORS} are read", subject=file.path
            )

    def _count(self, work: int, file: InputFile) -> None:
        """Count blocks and boxes, of which a small file can describe any number."""
        self._work += work
        if self._work > _MAX_WORK:
            raise CheckpointError("it is cut into too many parts to be read", subject=file.path)

    def _tensor(self, part: Part, file: InputFile) -> Stored:
        """Return the tensor of a name, which all ranks must describe alike."""
        stored = self._stored.get(part.name)
        if stored is None:
            stored = self._stored[part.name] = Stored(part.spec, part.is_cut)
        same = stored.spec is part.spec or stored.spec == part.spec
        if not same or stored.is_cut != part.is_cut:
            raise CheckpointError(
                f"'{part.name}' is {part.spec} here, and {stored.spec} at the ranks before",
                subject=file.path,
                hint=OTHER_SAVES,
            )
        return stored

    def finish(self, options: ReadOptions) -> tuple[PiecedTensors, list[str]]:
        """Return the tensors, and what a user should be warned of.

        Raises:
            IncompleteCheckpoint: where the files of ranks are missing.
            CheckpointError: where the shares do not make up the tensors, or parameters differ between ranks.
        """
        files = list(self.files.values())
        table, cover, copies = PieceTable(), CoverCheck(), CopyCheck(files)
        numbers: dict[tuple[TensorSpec, bytes], int] = {}
        tensor_of: dict[str, int] = {}
        differing: list[str] = []
        cutting = self._cutting()
        for name in self._named:
            stored = self._stored.get(name)
            if stored is None:
                raise self._not_covered(f"'{name}': no rank has a part of it")
            key = stored.spec, stored.numbers.tobytes()  # equal for tied tensors
            if key not in numbers:
                kept, other = stored.once(copies)
                self._check_cover(name, stored.spec, [box for _, _, box in kept], cover)
                if other is not None and stored.is_refused(name, cutting, options):
                    raise self._differs(name, stored, kept[0][0], other)
                differing += [name] if other is not None and not options.copies(name) else []
                numbers[key] = table.add_boxes(stored.spec, kept)
            tensor_of[name] = numbers[key]
        warnings = [_warning(differing, min(self.files))] if differing else []
        specs = {name: self._spec(name) for name in self._named}
        return PiecedTensors(specs, tensor_of, table, files, files[0].path.name), warnings

    def _spec(self, name: str) -> TensorSpec:
        spec = self._stored[name].spec
        return self._specs.spec(spec.dtype, self._shapes.get(name, spec.shape))

    def replicas(self, options: ReadOptions) -> Iterator[Replicas]:
        """Yield what several ranks have, unless it was said of it already that they differ, or that they may."""
        files = list(self.files.values())
        copies, seen, cutting = CopyCheck(files), set[tuple[TensorSpec, bytes]](), self._cutting()
        for name, stored in self._stored.items():
            key = stored.spec, stored.numbers.tobytes()  # equal for tied tensors
            refused = stored.is_refused(name, cutting, options)
            if key in seen or (not refused and options.copies(name)):
                continue
            seen.add(key)
            if not refused and stored.once(copies)[1] is not None:
                continue
            for size, placed in stored.repeated():
                if len(placed) > 1 and size:
                    each = [replica_in(files[number], start) for number, start, _ in placed]
                    yield Replicas(name, size, each, stored.hint(name) if refused else None)

    def _check_cover(self, name: str, spec: TensorSpec, boxes: list[Box], cover: CoverCheck) -> None:
        try:
            cover.check(spec.shape, [box for box in boxes if prod(box.shape)])
        except Damaged as error:
            raise self._not_covered(f"'{name}': {error}") from None

    def _not_covered(self, fact: str) -> CheckpointError:
        missing = [rank for rank in range(self.ranks) if rank not in self.files]
        folder = next(iter(self.files.values())).path.parent
        if missing:
            return missing_ranks(missing, self.ranks).about(folder)
        return CheckpointError(fact, subject=folder, hint=OTHER_SAVES)

    def _cutting(self) -> set[str]:
        """Return the modules that have parameters that are cut."""
        return {name.rpartition(".")[0] for name, stored in self._stored.items() if stored.is_cut}

    def _differs(self, name: str, stored: Stored, first: int, other: int) -> CheckpointError:
        paths = [file.path for file in self.files.values()]
        return differs(name, paths[first], paths[other], stored.hint(name))


def share_of_rank(name: str, value: TensorRef | Wrapped, file: InputFile) -> Share:
    """Return what the rank has of a tensor, which may be the whole.

    Raises:
        CheckpointError: where its description does not say it.
    """
    if isinstance(value, TensorRef):
        return Share(value.shape, ((value, [[(0, length)] for length in value.shape]),), 0)
    try:
        return share_of(value)
    except Damaged as error:
        raise CheckpointError(f"'{name}': {error}", subject=file.path, hint=_GATHERED) from None


def missing_ranks(missing: list[int], ranks: int) -> IncompleteCheckpoint:
    """Return the error for ranks whose files are not there, by their numbers."""
    shown = first_few([str(rank) for rank in missing])
    return IncompleteCheckpoint(f"the files of {plural(len(missing), 'rank')} of {ranks} are missing: {shown}")


def _warning(names: list[str], rank: int) -> str:
    return f"buffers that differ between ranks are those of rank {rank}: {first_few(names)}"
