"""The files of one average, before anything is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field, replace
from typing import TYPE_CHECKING

from ema_cli.checkpoint import Checkpoint, TensorSpec
from ema_cli.dataclass import dataclass
from ema_cli.dtypes import DType
from ema_cli.formats.adapters.pairs import Pair
from ema_cli.formats.output_file import OutputFile, whole_name
from ema_cli.storage.source import InputFile
from ema_cli.writing.target import Target

if TYPE_CHECKING:
    from ema_cli.writing.like_input import Likeness

_SMALL_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Output:
    """The files of one average, before anything is written.

    Attributes:
        target: the file or folder that they make up.
        files: the files of tensors.
        texts: small files by name, with their whole content.
        copies: side files of the newest checkpoint that are copied, by name.
        sources: the files from which `texts` and `copies` are made; they must not change meanwhile.
        originals: the name in the checkpoint of each tensor that is written under another name.
        likeness: how it takes over the newest checkpoint, None where it is of a form of our own.
        notes: what to know of loading it, in words.
        pairs: A and B of an adapter that are written as factors of the averaged products.
    """

    target: Target
    files: Sequence[OutputFile]
    texts: Mapping[str, bytes] = field(default_factory=dict)
    copies: Mapping[str, InputFile] = field(default_factory=dict)
    sources: Sequence[InputFile] = ()
    originals: Mapping[str, str] = field(default_factory=dict)
    likeness: Likeness | None = None
    notes: Sequence[str] = ()
    pairs: Sequence[Pair] = ()

    @property
    def nbytes(self) -> int:
        """Return the size of all files in bytes."""
        copied = sum(file.size for file in self.copies.values())
        return sum(file.size for file in self.files) + sum(map(len, self.texts.values())) + copied

    @property
    def large_copies(self) -> list[InputFile]:
        """Return the side files that are sent to a store as files of tensors are, without a copy on the disk."""
        return [file for file in self.copies.values() if is_large(file)]

    @property
    def sizes_sent(self) -> list[int]:
        """Return the size of each file that is sent to a store, if the output goes to one."""
        return [file.size for file in self.files] + [file.size for file in self.large_copies]

    @property
    def files_at_once(self) -> int:
        """Return how many files are written at the same time, in order; 0 where one is not written in its order."""
        if self.likeness is not None:
            return self.likeness.at_once
        return 0 if self.pairs else 1

    @property
    def dtypes(self) -> dict[str, DType]:
        """Return the dtype of each tensor by its name in the checkpoint, in the order in which the files hold them."""
        specs = ((self.original(file, name), spec) for file in self.files for name, spec in file.table.specs.items())
        return {name: spec.dtype for name, spec in specs}

    def original(self, file: OutputFile, name: str) -> str:
        """Return the name in the checkpoint of the tensor that is written into `file` under `name`."""
        whole = self.whole(file, name)
        return self.originals.get(whole, whole)

    def whole(self, file: OutputFile, name: str) -> str:
        """Return the name in the whole output of the tensor that `file` has under `name`."""
        return name if self.likeness is not None else whole_name(file.name, name)


def is_large(file: InputFile) -> bool:
    """Return whether a side file is too large to be made on the disk before it is sent."""
    return file.size > _SMALL_BYTES


def output_specs(checkpoint: Checkpoint, dtype: DType | None, copied: frozenset[str]) -> dict[str, TensorSpec]:
    """Return the specs of the tensors as they are written.

    Args:
        checkpoint: the newest.
        dtype: that of floating tensors which are not `copied`; None: as the model has it.
        copied: names of tensors that are copied because the user wants it.
    """
    specs, dtypes = checkpoint.tensors.specs, checkpoint.output_dtypes
    if dtype is None:
        return {
            name: replace(spec, dtype=dtypes[name]) if name in dtypes and name not in copied else spec
            for name, spec in specs.items()
        }
    return {
        name: replace(spec, dtype=dtype) if spec.dtype.kind == "float" and name not in copied else spec
        for name, spec in specs.items()
    }
