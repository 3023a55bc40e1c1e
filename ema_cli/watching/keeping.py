"""Fold one checkpoint into the averages: from one moment to the next, all of it or nothing.

An average in float32 is brought up to date as `average` would make it: with the share w of the new checkpoint, it is
w x (checkpoint) + (1 - w) x (average before). So the arithmetic is that of a fold of two: `folding.kernel`. What
float32 rounds off is kept beside it: see `rest`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from ema_cli._version import __version__
from ema_cli.checkpoint import Checkpoint, TensorSpec
from ema_cli.dataclass import dataclass
from ema_cli.dtypes import DTYPES
from ema_cli.errors import OutputError
from ema_cli.folding.buffers import BufferSizes
from ema_cli.folding.fold import Average, fold
from ema_cli.folding.sink import Sink
from ema_cli.formats.mark import METADATA_KEY
from ema_cli.formats.options import ReadOptions
from ema_cli.formats.safetensors.writer import lay_out_file
from ema_cli.law.law import LiveLaw
from ema_cli.law.live import Schedule, live_law_to_dict
from ema_cli.law.time import Time
from ema_cli.planning.plan import Plan
from ema_cli.runs.stored_file import FIRST, Sizes
from ema_cli.storage.location import location
from ema_cli.storage.output_stream import output_errors, write_file
from ema_cli.watching.journal import JOURNAL, Journal
from ema_cli.watching.moments import REST, SIDE_FILES, Moment
from ema_cli.watching.past import clocks_text
from ema_cli.watching.rest import RestSink, rest_specs, wide_spec, with_rest
from ema_cli.watching.whole import bytes_of, keep
from ema_cli.writing.files import FileSink, finish_files, read_back
from ema_cli.writing.open_files import Storing
from ema_cli.writing.outputs import Output
from ema_cli.writing.side_files import SideFiles
from ema_cli.writing.target import Target

_FIRST_FILE = f"{FIRST}.safetensors"


@dataclass(frozen=True, slots=True)
class Update:
    """One checkpoint, and what its fold makes of the averages.

    Attributes:
        checkpoint: the new one.
        plans: for each average which checkpoints are in it then, the new one last.
        journal: what will have been done.
        copied: names of tensors that are copied though they could be averaged.
        whole: how the checkpoint is read, where it is kept as a whole; else None.
    """

    checkpoint: Checkpoint
    plans: Sequence[Plan]
    journal: Journal
    copied: frozenset[str]
    whole: ReadOptions | None = None

    @property
    def names(self) -> list[str]:
        """Return the names of the averages."""
        return [plan.recipe.law.name for plan in self.plans]

    @property
    def clock(self) -> Time:
        """Return the clock of the new checkpoint."""
        clock = self.checkpoint.clock(self.journal.unit)
        assert clock is not None
        return Time(clock, self.journal.unit)

    @property
    def specs(self) -> dict[str, TensorSpec]:
        """Return the specs of the averages as they are kept: in float32, or wider where the checkpoint is."""
        return {
            name: replace(spec, dtype=DTYPES["F32"]) if spec.dtype.is_narrow and name not in self.copied else spec
            for name, spec in self.checkpoint.tensors.specs.items()
        }

    @property
    def with_rest(self) -> frozenset[str]:
        """Return the names of the tensors of which a rest is kept, too."""
        return with_rest(self.specs, self.copied)

    @property
    def nbytes(self) -> int:
        """Return how many bytes are written."""
        specs, is_first = self.specs, len(self.journal.folded) == 1
        rests = 0 if is_first else sum(spec.nbytes for spec in rest_specs(specs, self.with_rest).values())
        kept = sum(spec.nbytes for spec in specs.values())
        whole = 0 if self.whole is None else bytes_of(self.checkpoint)
        return len(self.plans) * (kept + rests) + kept * is_first + whole


def update(
    folder: Path, before: Moment | None, made: Update, sizes: BufferSizes, check: Callable[[Checkpoint], object]
) -> Moment:
    """Fold a checkpoint, and return the moment that is there then. After an error the moment before is as it was.

    Args:
        folder: that of the moments.
        before: the newest moment; None where the checkpoint is the first copy.
        made: the checkpoint, and what comes of it.
        sizes: the memory.
        check: is called when all of the checkpoint was read, and raises if it is not as it was.

    Raises:
        NonFiniteError: for a NaN or infinity.
        CheckpointError: where the checkpoint cannot be read, or is not the same any more.
        OutputError: where the moment cannot be written.
    """
    path = folder / str(made.clock)
    free = location(folder).free_bytes()
    if made.nbytes > free:
        raise OutputError(f"needs {made.nbytes} bytes, but {free} are free", subject=path, hint="make room")
    with ExitStack() as stack:
        first = stack.enter_context(location(folder / _FIRST_FILE).staging()) if before is None else None
        staging = stack.enter_context(location(path).staging())
        inside = staging.make_folder(Path(path.name))
        _write_averages(inside, before, made, sizes, first=first.folder if first else None)
        _write_side_files(inside / SIDE_FILES, made.checkpoint)
        if made.whole is not None:
            keep(inside, made.checkpoint, made.whole)
        write_file(inside / JOURNAL, [made.journal.to_bytes()])
        check(made.checkpoint)
        if first is not None:
            first.publish_file(_FIRST_FILE, force=True)
        staging.publish_folder(path.name, force=False, manifest=JOURNAL)
    return Moment(path, made.journal)


def _write_averages(
    inside: Path,
    before: Moment | None,
    made: Update,
    sizes: BufferSizes,
    *,
    first: Path | None,
) -> None:
    """Write all averages into a folder, and the first copy into `first`, in one reading of the checkpoint."""
    from ema_cli.watching.sizes import measure  # which loads numpy

    specs, newest, names = made.specs, made.checkpoint, made.with_rest
    older = [] if before is None else [before.summed(name, names) for name in made.names]
    shares = [1.0 if before is None else plan.entries[-1].weight for plan in made.plans]
    sizes_after = measure(newest, older, shares, made.copied)
    outputs = [
        _lay_out(inside, name, specs, _record(made, plan, after))
        for name, plan, after in zip(made.names, made.plans, sizes_after, strict=True)
    ]
    rests: list[Output] = []
    if before is None:
        names = frozenset[str]()
        outputs += [] if first is None else [_lay_out(first, FIRST, specs, _first_record(made))]
        weights = [[1.0] for _ in outputs]
    else:
        rests = [_lay_out_rest(inside / REST, name, rest_specs(specs, names)) for name in made.names]
        weights = [
            [*((1 - share) * (number == own) for own in range(len(older))), share]
            for number, share in enumerate(shares)
        ]
    with ExitStack() as stack:
        files = [FileSink(output, output.target.path.parent, Storing(summed=False)) for output in (*outputs, *rests)]
        for file in files:
            stack.callback(file.close)
        sinks: Sequence[Sink] = files
        if rests:
            pairs = zip(files, files[len(outputs) :], strict=False)
            sinks = [RestSink(file, rest, names) for file, rest in pairs]
        fold(
            [*older, newest],
            [Average(row, sink) for row, sink in zip(weights, sinks, strict=True)],
            {name: (wide_spec(specs[name]) if name in names else specs[name]).dtype for name in outputs[0].dtypes},
            copied=made.copied,
            sizes=sizes,
        )
        streams = [stream for file in files for stream in file.streams]
        layouts = [output.files[0] for output in (*outputs, *rests)]
        finish_files(list(zip(layouts, streams, strict=True)), sizes.threads)
    for output in (*outputs, *rests):
        read_back(output.target.path, output.files[0])


def _lay_out_rest(folder: Path, name: str, specs: Mapping[str, TensorSpec]) -> Output:
    return _lay_out(folder, name, specs, {"watched": f"what was rounded off {name}"})


def _lay_out(folder: Path, name: str, specs: Mapping[str, TensorSpec], record: Mapping[str, Any]) -> Output:
    file = f"{name}.safetensors"
    text = json.dumps({"version": __version__, **record, "checkpoints": []}, separators=(",", ":"))
    return Output(
        Target(folder / file, is_folder=False), [lay_out_file(file, specs, {"format": "pt", METADATA_KEY: text})]
    )


def _record(made: Update, plan: Plan, after: Sizes) -> dict[str, Any]:
    """Return what the header of an average says; of uniform weights, which no live average has, only that it is one."""
    law, recipe = plan.recipe.law, plan.recipe
    if not isinstance(law, LiveLaw):
        return {"watched": law.name}
    began = Time(made.journal.folded[0].clocks[made.journal.unit].value, made.journal.unit)
    return {
        "stored": {
            "average": law.name,
            **Schedule(recipe.interval, recipe.start).to_dict(),
            **live_law_to_dict(law),
            "clock": str(made.clock),
            "began": str(began),
            "updates": len(made.journal.folded) - 1,
            "clocks": clocks_text(made.checkpoint.progress.clocks),
            "branches": [{"id": made.journal.branch}],
            **after.to_dict(),
            "types": _types(made),
        }
    }


def _first_record(made: Update) -> dict[str, Any]:
    recipe = made.plans[0].recipe
    return {
        "stored": {
            "average": FIRST,
            **Schedule(recipe.interval, recipe.start).to_dict(),
            "clock": str(made.clock),
            "began": str(made.clock),
            "updates": 0,
            "clocks": {},
            "branches": [{"id": made.journal.branch}],
            "types": _types(made),
        }
    }


def _types(made: Update) -> dict[str, Any]:
    """Return the dtypes of the tensors that are kept in a wider one: `{"BF16": "all"}`, or names by dtype."""
    averaged = {
        name: spec.dtype
        for name, spec in made.checkpoint.tensors.specs.items()
        if spec.dtype.averaged and name not in made.copied
    }
    narrow = {name: dtype.name for name, dtype in averaged.items() if dtype.is_narrow}
    if len(set(narrow.values())) == 1 and len(narrow) == len(averaged):
        return {next(iter(narrow.values())): "all"}
    return {dtype: sorted(name for name in narrow if narrow[name] == dtype) for dtype in sorted(set(narrow.values()))}


def _write_side_files(folder: Path, checkpoint: Checkpoint) -> None:
    """Copy what an output has beside its tensors: it must be there when the checkpoint is gone."""
    if checkpoint.pretrained is None:
        return
    side = SideFiles.of(checkpoint.pretrained)
    for name, file in side.copies.items():
        _write(folder / name, file.read(0, file.size))
        file.check_unchanged()
    for name, text in side.texts.items():
        _write(folder / name, text)


def _write(path: Path, content: bytes) -> None:
    with output_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, [content])
