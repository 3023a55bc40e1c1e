"""A model that ranks cut between them (tensor parallel), whole in DeepSpeed's universal format: who has which part.

Each rank's model states have its parts once more, in the model's type. What does not train lies nowhere else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field
from math import prod
from typing import Any

from ema_cli.checkpoint import TensorSpec
from ema_cli.dataclass import dataclass
from ema_cli.errors import OTHER_SAVES, CheckpointError
from ema_cli.formats.boxes import CoverCheck, Damaged
from ema_cli.formats.cut import CutTensors, Part
from ema_cli.formats.pickles.values import TensorRef
from ema_cli.formats.pieces.copies import CopyCheck
from ema_cli.formats.rounding import ROUNDED, round_to, widened
from ema_cli.formats.torch_save.content import TorchFile
from ema_cli.formats.torch_save.tensors import TorchTensors
from ema_cli.formats.trainers.nested import dig
from ema_cli.formats.zero.assembly import Assembly
from ema_cli.formats.zero.saved import RankFile
from ema_cli.formats.zero.tables import ModelTables, Shape, vectors_at
from ema_cli.formats.zero.tensor_ranks import Unknown, map_of, parts_by_record, parts_in_map, whole_parts, whole_shape

_FRAGMENTS = "frozen_param_fragments"
_SAMPLE = 1024  # numbers


@dataclass(slots=True)
class CutModel:
    """The parts that ranks have of a model.

    Attributes:
        assembly: the model; the model states of all ranks are the first of its files, in their order.
        models: the model states of all ranks.
    """

    assembly: Assembly
    models: Sequence[RankFile]
    _ranks: list[Mapping[str, Any]] = field(default_factory=list)  # what each has of the model
    _parts: dict[str, list[Part]] = field(default_factory=dict)
    _shapes: dict[str, Shape] = field(default_factory=dict)
    _check: CopyCheck | None = None
    _cover: CoverCheck = field(default_factory=CoverCheck)

    def __post_init__(self) -> None:
        modules = [dig(model.content.root, "module") for model in self.models]
        self._ranks = [module if isinstance(module, dict) else {} for module in modules]

    @property
    def root(self) -> Mapping[str, Any]:
        """Return what the model states of the first rank hold."""
        root: Mapping[str, Any] = self.models[0].content.root
        return root

    def slices(self, name: str) -> list[Shape]:
        """Return the shapes of what each rank has under a name.

        Raises:
            CheckpointError: where one has no such tensor.
        """
        for model, rank in zip(self.models, self._ranks, strict=True):
            if not isinstance(rank.get(name), TensorRef):
                raise CheckpointError(f"holds no tensor '{name}'", subject=model.file.path, hint=OTHER_SAVES)
        return [rank[name].shape for rank in self._ranks]

    def note_trained(self, name: str, file: TorchFile, record: Mapping[str, Any], ref: TensorRef) -> None:
        """Note where the parts of a parameter lie of which a file has the float32 weights, whole.

        Raises:
            CheckpointError: where the file has the part of one rank alone.
        """
        slices, found, shape = self.slices(name), map_of(self.root, name), ref.shape
        try:
            if found is not None:
                is_part = shape == slices[0] != whole_shape(found)
                parts = [] if is_part else parts_in_map(found, shape, slices)
            else:
                told = parts_by_record(record, self.root, shape, slices)
                parts = whole_parts(shape, slices) if told is None else told
                is_part = told is None and not self._are_alike(name) and self._is_first_s(name, file, ref)
            self._parts[name] = parts
        except Unknown as error:
            self.assembly.why_not = self.assembly.why_not or f"how ranks cut '{name}' is not known: {error}"
            return
        if is_part:  # which the converter takes for the whole
            raise CheckpointError(
                f"'{name}' is what the first rank has of it, alone: its gradient was never computed",
                subject=file.source.path,
                hint="let it train, or leave it out of the optimizer, before the checkpoint is converted",
            )

    def add_frozen(self, name: str, file: TorchFile, ref: TensorRef) -> None:
        """Add a parameter that does not train, of which each rank has its part, and the file the first rank's.

        Raises:
            CheckpointError: where nothing says how the ranks cut it.
        """
        slices, found = self.slices(name), map_of(self.root, name)
        try:
            shape = slices[0] if found is None else whole_shape(found)
            parts = whole_parts(shape, slices) if found is None else parts_in_map(found, shape, slices)
            if found is None and not self._are_alike(name):
                raise Unknown("each has other values of it")
            placed: dict[tuple[Shape, Shape], list[Part]] = {}
            for part in parts:
                placed.setdefault((part.box.offsets, part.box.shape), []).append(part)
            first = [alike[0] for alike in placed.values()]
            self._cover.check(shape, [part.box for part in first])
        except (Unknown, Damaged) as error:
            raise CheckpointError(
                f"'{name}' does not train, and how the ranks cut it is not known: {error}", subject=self.assembly.folder
            ) from error
        vectors = [vectors_at(model.content, {name: rank[name]})[name] for model, rank in self._both()]
        if len({vector.dtype for vector in vectors}) > 1:
            raise CheckpointError(f"'{name}' is of several types", subject=self.assembly.folder, hint=OTHER_SAVES)
        dtype = vectors[0].dtype
        start = {id(part): vectors[part.rank].start + dtype.nbytes(part.start) for part in parts}
        self.assembly.add_boxes(name, shape, dtype, [(part.rank, start[id(part)], part.box) for part in first])
        self.assembly.repeated += [
            (name, dtype.nbytes(prod(box)), [(part.rank, start[id(part)]) for part in alike])
            for (_, box), alike in placed.items()
            if len(alike) > 1
        ]
        held = {id(part) for part in first}
        self._parts[name] = [part for part in parts if id(part) not in held]
        if ref.shape == slices[0]:
            self._add_first_s(name, shape, parts, file, ref)
        fragments = [dig(model.content.root, _FRAGMENTS) for model in self.models]
        if all(isinstance(each, dict) and isinstance(each.get(name), TensorRef) for each in fragments):
            ranks = [
                model.content.tensors({name: each[name]}) for model, each in zip(self.models, fragments, strict=True)
            ]
            if [rank.specs[name].shape for rank in ranks] == slices:
                self.assembly.copies.append(_cut({name: shape}, ranks, {name: parts}))

    def finish(self, tables: ModelTables) -> None:
        """Give the assembly the parts of all ranks, as copies of what is whole elsewhere."""
        stored = self.assembly.stored
        self._shapes = shapes = {name: stored[name].spec.shape for name in self._parts if self._parts[name]}
        for name, kept in tables.shared.items():  # tied ones, which each rank may have twice
            if kept in shapes and name in self._ranks[0] and self.slices(name) == self.slices(kept):
                shapes[name], self._parts[name] = shapes[kept], self._parts[kept]
        ranks = [model.content.tensors({name: rank[name] for name in shapes}) for model, rank in self._both()]
        parts = {name: self._parts[name] for name in shapes}
        self.assembly.copies.append(_cut(shapes, ranks, parts))

    def add_first_s(self, name: str, file: TorchFile, ref: TensorRef) -> None:
        """Note that a file has the first rank's part of a tied tensor once more, as the converter writes it."""
        kept = self._parts.get(name)
        if kept:
            self._add_first_s(name, self._shapes[name], kept, file, ref)

    def _add_first_s(self, name: str, shape: Shape, parts: Sequence[Part], file: TorchFile, ref: TensorRef) -> None:
        own = [part for part in parts if part.rank == 0]
        self.assembly.copies.append(_cut({name: shape}, [file.tensors({name: ref})], {name: own}))

    def _both(self) -> list[tuple[RankFile, Mapping[str, Any]]]:
        return list(zip(self.models, self._ranks, strict=True))

    def _is_first_s(self, name: str, file: TorchFile, ref: TensorRef) -> bool:
        """Return whether a file has the very numbers of a tensor that the first rank has, widened."""
        own = vectors_at(self.models[0].content, {name: self._ranks[0][name]})[name]
        wide = vectors_at(file, {name: ref})[name]
        count = min(own.count, wide.count, _SAMPLE)
        if own.dtype.name not in ROUNDED or wide.dtype.name != "F32":
            return False
        data = file.source.read(wide.start, wide.dtype.nbytes(count))
        stored = self.models[0].file.read(own.start, own.dtype.nbytes(count))
        rounded = round_to(own.dtype.name, data)
        return rounded.tobytes() == stored and widened(own.dtype.name, rounded) == data

    def _are_alike(self, name: str) -> bool:
        """Return whether all ranks have the same of a tensor, as far as checksums or samples show it."""
        vectors = [vectors_at(model.content, {name: rank[name]})[name] for model, rank in self._both()]
        self._check = self._check or CopyCheck([model.file for model in self.models])
        size = vectors[0].dtype.nbytes(vectors[0].count)
        places = [(number, vector.start) for number, vector in enumerate(vectors)]
        return all(self._check.alike(size, places[0], place) for place in places[1:])


def _cut(shapes: Mapping[str, Shape], ranks: Sequence[TorchTensors], parts: Mapping[str, Sequence[Part]]) -> CutTensors:
    specs = {name: TensorSpec(ranks[0].specs[name].dtype, shape) for name, shape in shapes.items()}
    return CutTensors(specs, ranks, parts)
