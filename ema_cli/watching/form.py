"""What the newest checkpoint says of the output: written down, as it may be gone when that is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ema_cli.checkpoint import AdapterSettings, Checkpoint, Pretrained, Progress, TensorSpec
from ema_cli.dataclass import dataclass
from ema_cli.dtypes import DTYPES
from ema_cli.runs.specs_only import SpecsOnly
from ema_cli.runs.ties import tied_to
from ema_cli.storage.location import location, walk
from ema_cli.storage.small_file import read_small_file
from ema_cli.watching.past import Past

_MOST_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class Form:
    """What the newest checkpoint says of the output: the same for all that were folded before.

    Attributes:
        specs: of its tensors.
        shards: the file that holds each tensor, where there are several.
        pretrained: set where a folder is written that `from_pretrained` loads; its side files are kept.
        adapter: settings of an adapter.
        ties: names that had their bytes from another one in all checkpoints, each with that.
    """

    specs: Mapping[str, TensorSpec]
    shards: Mapping[str, str]
    pretrained: Pretrained | None
    adapter: AdapterSettings
    ties: Mapping[str, str]

    def stand_ins(self, past: Sequence[Past], root: Path) -> list[Checkpoint]:
        """Return a stand-in for each checkpoint that was folded: its clocks, with the specs of the newest."""
        tensors = SpecsOnly(self.specs, self.shards, self.ties)
        return [
            Checkpoint(
                one.name,
                root / one.name,
                tensors,
                (),
                one.format,
                one.trainer,
                Progress(one.clocks),
                pretrained=self.pretrained,
                adapter=self.adapter,
            )
            for one in past
        ]


def describe(checkpoint: Checkpoint, renamed: Mapping[str, str], before: Checkpoint | None) -> dict[str, Any]:
    """Return what a checkpoint says of the output, besides the specs of its tensors, as JSON has it.

    Args:
        checkpoint: the one that is folded.
        renamed: of a model inside a file, whose configuration is in it: the names that load, by those in the file.
        before: the stand-in for one that was folded before; None for the first.
    """
    specs, pretrained = checkpoint.tensors.specs, checkpoint.pretrained
    narrow: dict[str, list[str]] = {}
    for name, spec in specs.items():
        if spec.dtype.is_narrow:
            narrow.setdefault(spec.dtype.name, []).append(name)
    shards = {name: checkpoint.tensors.shard(name) for name in specs} if pretrained is not None else {}
    return {
        "order": list(specs),
        "types": narrow,
        "shards": shards if len(set(shards.values())) > 1 else next(iter(shards.values()), ""),
        "pretrained": None
        if pretrained is None
        else {
            "base": pretrained.base,
            "bases": dict(pretrained.bases),
            "inside": dict(renamed) if pretrained.inner_files is not None else None,
        },
        "adapter": {
            "values": dict(checkpoint.adapter.values),
            "headers": {folder: dict(header) for folder, header in checkpoint.adapter.headers.items()},
        },
        "ties": {
            name: other
            for name, other in tied_to(checkpoint.tensors, specs).items()
            if before is None or before.tensors.place(name) == before.tensors.place(other)
        },
    }


@dataclass(frozen=True, slots=True)
class _KeptFiles:
    """Configuration and tokenizer that lay inside a checkpoint, and are kept; `InnerFiles`."""

    folder: Path
    names: Mapping[str, str]

    def read(self) -> Mapping[str, bytes]:
        """Return the content of the files, by name."""
        files = sorted(entry.path for entry in walk(self.folder) if entry.is_file)
        return {path.relative_to(self.folder).as_posix(): read_small_file(path, _MOST_BYTES) for path in files}

    def loaded_name(self, name: str) -> str:
        """Return the name that a tensor has in a folder that loads."""
        return self.names.get(name, name)


def form_of(newest: Mapping[str, Any], average: Checkpoint, side_files: Path) -> Form:
    """Return what `describe` has written down, by an average of the moment.

    Raises:
        ValueError, LookupError, TypeError, AttributeError: where it is nothing of the kind.
    """
    there = average.tensors.specs
    types = {name: DTYPES[dtype] for dtype, names in newest["types"].items() for name in names}
    specs = {name: TensorSpec(types.get(name, there[name].dtype), there[name].shape) for name in newest["order"]}
    shards, described = newest["shards"], newest["pretrained"]
    pretrained = None
    if described is not None:
        inside = described["inside"]
        pretrained = Pretrained(
            str(described["base"]),
            side_files if inside is None and location(side_files).info().is_folder else None,
            None if inside is None else _KeptFiles(side_files, inside),
            described["bases"],
        )
    adapter = newest["adapter"]
    return Form(
        specs,
        shards if isinstance(shards, dict) else dict.fromkeys(specs, str(shards)),
        pretrained,
        AdapterSettings(adapter["values"], adapter["headers"]),
        dict(newest.get("ties", {})),
    )
