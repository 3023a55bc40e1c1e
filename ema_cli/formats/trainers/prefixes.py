"""Remove the prefixes of wrappers (torch.compile, FSDP, DDP) from names: all runs of a model have equal names then."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from ema_cli.checkpoint import Checkpoint, Run, StoredRecord, Tensors, TensorSpec, check_tensor_name, shared
from ema_cli.dataclass import dataclass
from ema_cli.errors import CheckpointError, option
from ema_cli.formats.trainers.names import AVERAGED_COUNT
from ema_cli.storage.source import ByteSource

# What wrappers put into names: torch.compile, FSDP and activation checkpointing anywhere; DDP around the whole model.
PREFIXES = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
OUTER_PREFIXES = ("module.",)
_ANYWHERE = re.compile(rf"(?:^|(?<=\.))(?:{'|'.join(map(re.escape, PREFIXES))})")


@dataclass(slots=True)
class Renamed:
    """Tensors under other names; `stored` has the name of each in `tensors`."""

    specs: Mapping[str, TensorSpec]
    stored: Mapping[str, str]
    tensors: Tensors

    def share(self, other: Tensors) -> None:
        """Use the other's tables where they are equal."""
        self.specs = shared(self.specs, other.specs)
        if isinstance(other, Renamed) and self.stored == other.stored:
            self.stored = other.stored
            self.tensors.share(other.tensors)

    def place(self, name: str) -> Hashable:
        """Return where the bytes lie."""
        return self.tensors.place(self.stored[name])

    def locate(self, name: str) -> tuple[ByteSource, int] | None:
        """Return the file and the byte in it where tensor `name` begins."""
        return self.tensors.locate(self.stored[name])

    def runs(self, name: str, start: int, size: int) -> Sequence[Run] | None:
        """Return where bytes of tensor `name` lie."""
        return self.tensors.runs(self.stored[name], start, size)

    def offset(self, name: str, start: int) -> int:
        """Return where in its file byte `start` of tensor `name` lies."""
        return self.tensors.offset(self.stored[name], start)

    def shard(self, name: str) -> str:
        """Return the name of the file that holds tensor `name`."""
        return self.tensors.shard(self.stored[name])

    def stored_records(self) -> Iterator[StoredRecord]:
        """Yield the stored records of the tensors."""
        return self.tensors.stored_records()

    def read_into(self, name: str, start: int, out: memoryview) -> None:
        """Fill `out` from byte `start` of tensor `name`."""
        self.tensors.read_into(self.stored[name], start, out)


def strip_prefixes(checkpoint: Checkpoint) -> Checkpoint:
    """Return the checkpoint under the names that the bare model has, with a note where that changes any.

    Of torch's AveragedModel its count is left out, too.

    Raises:
        CheckpointError: where two names become one, or one that no output can hold.
    """
    tensors = checkpoint.tensors
    is_counted = AVERAGED_COUNT in tensors.specs and len(tensors.specs) > 1
    if not _may_have_prefix(tensors.specs) and not is_counted:
        return checkpoint
    stored: dict[str, str] = {}
    removed: dict[str, None] = {}
    names = [name for name in tensors.specs if not (is_counted and name == AVERAGED_COUNT)]
    for name, bare in zip(names, _bare_names(names, removed), strict=True):
        if bare in stored:
            raise CheckpointError(
                f"'{name}' and '{stored[bare]}' are one name without their prefixes",
                subject=checkpoint.path,
                hint=f"keep the names as they are: {option('keep_prefix', True)}",
            )
        stored[bare] = name
        check_tensor_name(bare, checkpoint.path)
    if not removed and not is_counted:
        return checkpoint
    renamed = Renamed({name: tensors.specs[old] for name, old in stored.items()}, stored, tensors)
    dtypes = {name: checkpoint.output_dtypes[old] for name, old in stored.items() if old in checkpoint.output_dtypes}
    checkpoint = replace(checkpoint, tensors=renamed, output_dtypes=dtypes)
    if not removed:
        return checkpoint
    note = f"prefixes removed from names: {', '.join(removed)} (--keep-prefix keeps them)"
    return replace(checkpoint, notes=(*checkpoint.notes, note))


def _may_have_prefix(names: Iterable[str]) -> bool:
    """Return whether any name may have a prefix. Fast, as most models have none."""
    text = "\n".join(names)
    return text.startswith(OUTER_PREFIXES) or any(prefix in text for prefix in PREFIXES)


def _bare_names(names: Iterable[str], removed: dict[str, None]) -> list[str]:
    """Return the names without prefixes; add each prefix that was there to `removed`."""

    def note(match: re.Match[str]) -> str:
        removed[match[0]] = None
        return ""

    bare = [_ANYWHERE.sub(note, name) for name in names]
    for prefix in OUTER_PREFIXES:
        # A model may have a part of this name. It is a wrapper's only where all tensors are in there.
        while bare and all(name.startswith(prefix) and name != prefix for name in bare):
            bare = [name.removeprefix(prefix) for name in bare]
            removed[prefix] = None
    return bare


def bare_names(names: Sequence[str]) -> Sequence[str]:
    """Return the names that `strip_prefixes` gives tensors of these names."""
    return _bare_names(names, {}) if _may_have_prefix(names) else names


def bare_name(name: str) -> str:
    """Return a tensor's name without the prefixes that wrappers put in any place of it."""
    return _ANYWHERE.sub("", name)
