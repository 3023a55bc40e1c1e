"""The data sets: what each has in it, at full size and at about a sixteenth, and how it comes to lie on the disk."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from . import writers
from .values import Model, llama, many_tensors, one_tensor

INTERVAL = 100  # batches between checkpoints
SCALES = ("full", "small", "micro")
_MARK = "made.json"
_WRITERS: dict[str, Callable[[Path, Model, int, int], None]] = {
    "file": writers.write_file,
    "pt": writers.write_torch,
    "shards": writers.write_shards,
    "pieces": writers.write_pieces,
    "zero": writers.write_zero,
}


@dataclass(frozen=True)
class Data:
    """Checkpoints of one model in one format; `name` is the folder's."""

    name: str
    model: Model
    count: int
    format: str = "file"  # or a key of _FORMS; stored: averages of two half-lives that a training stored

    @property
    def nbytes(self) -> int:
        """Return the size of all values in it."""
        return self.model.nbytes * self.count

    @property
    def steps(self) -> list[int]:
        """Return the checkpoints' clocks, in batches."""
        return [INTERVAL * number for number in range(1, self.count + 1)]

    @property
    def half_life(self) -> str:
        """Return a half-life at which every checkpoint counts, as a time."""
        return f"{max(1, INTERVAL * self.count // 4)}ba"

    @property
    def stored_half_lives(self) -> list[str]:
        """Return the half-lives of the averages that are stored, one below and one above; none where none are."""
        if self.format != "stored":
            return []
        middle = INTERVAL * self.count // 4
        return [f"{middle // 2}ba", f"{middle * 2}ba"]

    def describe(self) -> str:
        """Return count, size, dtype and format."""
        form = _FORMS[self.format]
        tensors = f"{len(self.model.tensors):,} tensor{'s' * (len(self.model.tensors) > 1)}"
        dtype = {"BF16": "bf16", "F16": "fp16", "F32": "fp32"}[self.model.dtype]
        return f"{self.count:,} x {size(self.model.nbytes)} {dtype}, {tensors}, {form}"


def sets_at(scale: str) -> dict[str, Data]:
    """Return the data of each set at a scale, by the set's letter."""
    a, b, d, f, many_files = {
        "full": (
            llama("BF16", 1024, 2816, 12, 30_000),
            llama("F32", 1024, 2816, 12, 30_000),
            llama("F32", 256, 704, 4, 2000),
            llama("BF16", 2560, 6912, 27, 32_000),
            llama("F32", 128, 352, 4, 1750),
        ),
        "small": (
            llama("BF16", 384, 1024, 6, 4000),
            llama("F32", 384, 1024, 6, 4000),
            llama("F32", 96, 256, 2, 256),
            llama("BF16", 1024, 2816, 6, 16_000),
            llama("F32", 64, 176, 1, 200),
        ),
        "micro": (
            llama("BF16", 64, 176, 2, 250),
            llama("F32", 64, 176, 2, 250),
            llama("F32", 64, 64, 1, 16),
            llama("BF16", 64, 176, 4, 250),
            llama("F32", 64, 64, 1, 16),
        ),
    }[scale]
    half = Model("F16", a.tensors, a.layers, a.hidden, a.feed_forward, a.vocabulary)
    counts = {"full": (16, 8, 50, 6, 1000), "small": (16, 8, 50, 6, 1000), "micro": (4, 4, 5, 3, 6)}[scale]
    torch_files, names = {"full": (200, 2000), "small": (50, 500), "micro": (4, 20)}[scale]
    tensors, values = {"full": (100_000, 1_500_000_000), "small": (6250, 94_000_000), "micro": (50, 200_000)}[scale]
    return {
        "A": Data("A", a, counts[0]),
        "A16": Data("A16", half, counts[0]),
        "B": Data("B", b, counts[1]),
        "C": Data("C", a, counts[0], "pt"),
        "D": Data("D", d, counts[2]),
        "E": Data("E", a, counts[0], "shards"),
        "F": Data("F", f, counts[3]),
        "G1": Data("G1", many_files, counts[4]),
        "G1-half": Data("G1-half", many_files, counts[4] // 2),
        "G2": Data("G2", many_tensors(tensors), 4),
        "G2-half": Data("G2-half", many_tensors(tensors // 2), 4),
        "G3": Data("G3", one_tensor(values), 2),
        "I": Data("I", a, counts[0], "dcp"),
        "J": Data("J", a, counts[0], "pieces"),
        "K": Data("K", a, counts[0], "ranks"),
        "P": Data("P", many_tensors(names), torch_files, "pt"),
        "S": Data("S", b, counts[1], "stored"),
        "Z": Data("Z", b, counts[1], "zero"),
    }


def make(data: Data, folder: Path, seed: int = 0) -> Path:
    """Write the checkpoints into `folder/NAME/run`, unless they lie there already; return that.

    Raises:
        OSError: where the disk has no room for it, which is looked at before anything is written.
    """
    place = folder / data.name
    run, mark = place / "run", place / _MARK
    told = json.dumps([data.describe(), data.model.nbytes, [t.name for t in data.model.tensors[:3]], seed])
    if mark.is_file() and mark.read_text() == told:
        return run
    remove(data, folder)
    need_room(folder, data.nbytes, f"set {data.name}")
    run.mkdir(parents=True)
    if data.format in ("dcp", "ranks"):
        writers.write_distributed(run, data.model, seed, data.steps, by_rank=data.format == "ranks")
    elif data.format == "stored":
        writers.write_stored(run, data.model, seed, data.steps[1::2], data.stored_half_lives)
    else:
        for step in data.steps:
            _WRITERS[data.format](run, data.model, seed, step)
    # So that writing back what was just made does not fall into what is measured.
    os.sync()
    mark.write_text(told)
    return run


def remove(data: Data, folder: Path) -> None:
    """Delete the checkpoints, if they are there."""
    shutil.rmtree(folder / data.name, ignore_errors=True)


def checkpoints(data: Data, run: Path) -> list[Path]:
    """Return the checkpoints, oldest first: files or folders."""
    if data.format == "stored":
        return writers.stored_files(run, data.steps[1::2], data.stored_half_lives)
    return [run / _NAMES[data.format].format(step) for step in data.steps]


def input_files(paths: Sequence[Path]) -> list[Path]:
    """Return the files that hold weights in these checkpoints."""
    found: list[Path] = []
    for path in paths:
        if path.is_file():
            found.append(path)
        else:
            found += sorted(each for each in path.iterdir() if each.suffix in (".safetensors", ".distcp", ".pt"))
    return found


def need_room(folder: Path, nbytes: int, what: str) -> None:
    """Raise an OSError unless the disk has room for so many bytes, and some to spare."""
    folder.mkdir(parents=True, exist_ok=True)
    space = os.statvfs(folder)
    free, needed = space.f_bavail * space.f_frsize, nbytes + nbytes // 50 + (16 << 20)
    if free < needed:
        raise OSError(f"{what} needs {size(needed)} in {folder}, and {size(free)} are free (--data names another disk)")


def size(nbytes: float) -> str:
    """Return a size as people write it."""
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if nbytes >= unit:
            value = nbytes / unit
            return (
                f"{value:.2f} {name}" if value < 10 else f"{value:.1f} {name}" if value < 100 else f"{value:.0f} {name}"
            )
    return f"{nbytes:.0f} B"


_FORMS = {
    "file": "one file each",
    "pt": ".pt",
    "shards": "4 shards each",
    "pieces": "pieces in 4 files each",
    "dcp": "DCP, 4 processes",
    "ranks": "FSDP, 4 ranks' files each",
    "zero": "ZeRO-3, 4 ranks' files each",
    "stored": "averages that the run stored",
}
_NAMES = {
    "file": "step-{}.safetensors",
    "pt": "step-{}.pt",
    "shards": "checkpoint-{}",
    "pieces": "step-{}",
    "dcp": "step-{}",
    "ranks": "step-{}",
    "zero": "step-{}",
}
