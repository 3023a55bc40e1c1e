"""The pipeline after a plan: check, lay out the output, fold, read back, publish. No torch here."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from safetensors import SafetensorError, safe_open

from ema_cli._version import __version__
from ema_cli.blocks import joined
from ema_cli.buffers import DEFAULT_BYTES, divide_memory
from ema_cli.checkpoint import Checkpoint, DType, TensorSpec
from ema_cli.compare import check_alphas, check_twins
from ema_cli.errors import OutputError, VerificationError
from ema_cli.fold import Average, Fold
from ema_cli.formats.safetensors_file import METADATA_KEY
from ema_cli.input_file import InputFile
from ema_cli.layout import OutputFile, lay_out_file, lay_out_shards
from ema_cli.plan import Plan
from ema_cli.run import averaged_error, check_same_model
from ema_cli.side_files import find_side_files, set_config_dtype
from ema_cli.staging import OutputStream, Staging, output_errors
from ema_cli.target import Target, check_target
from ema_cli.tensor_rules import check_averageable, copied_names

Report = Callable[[int, int], None]
_MANY_THREADS = 16
_SHARD_NUMBER = re.compile(r"-\d{5,}-of-\d{5,}(?=\.)")


@dataclass(frozen=True, slots=True)
class Result:
    """What an average came to. Sizes in bytes."""

    target: Target
    tensors_averaged: int
    tensors_copied: int
    bytes_read: int
    bytes_written: int
    seconds: float
    non_finite: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Output:
    """What will be written: weights by range, small files whole, copies of side files."""

    files: Sequence[OutputFile]
    texts: Mapping[str, bytes]
    copies: Mapping[str, InputFile]
    copied: frozenset[str]  # names of tensors that are not averaged because the user said so
    sources: Sequence[InputFile] = ()  # of texts and copies

    @property
    def nbytes(self) -> int:
        """Return the size of everything."""
        copied = sum(file.size for file in self.copies.values())
        return sum(file.size for file in self.files) + sum(map(len, self.texts.values())) + copied


def average(
    plan: Plan,
    target: Target,
    *,
    dtype: DType | None = None,
    copy: Sequence[str] = (),
    threads: int | None = None,
    force: bool = False,
    allow_non_finite: bool = False,
    report: Report = lambda done, total: None,
) -> Result:
    """Write the weighted average of the plan's checkpoints to `target`, all of it or nothing.

    `dtype` replaces that of floating tensors, which may then differ between checkpoints. Tensors whose names match a
    pattern in `copy` are copied from the newest. `report(done, total)` is told the bytes read, now and then.

    Raises:
        RunError: where the checkpoints are not of one model, are averages already, or contradict each other.
        NonFiniteError: for a NaN or infinity, unless `allow_non_finite`.
        CheckpointError: where one cannot be read, or changes meanwhile.
        OutputError: where the target exists without `force`, or cannot be written.
    """
    began = time.monotonic()
    output = prepare(plan, target, dtype=dtype, copy=copy, force=force)
    check_twins(plan)
    check_alphas(plan)
    checkpoints = [entry.checkpoint for entry in plan.read]
    with Staging(target.path) as staging:
        name = target.path.name
        folder = staging.folder / name if target.is_folder else staging.folder
        if target.is_folder:
            with output_errors(target.path):
                folder.mkdir()
        fold = _write_weights(plan, output, folder, threads or default_threads(), allow_non_finite, report)
        _write_texts(output, folder)
        for file in output.files:
            _read_back(folder / file.name, file)
        for source in (*(file for each in checkpoints for file in each.files), *output.sources):
            source.check_unchanged()
        # Once more: what somebody put there meanwhile must not be replaced.
        _check_target(plan, target, force=force)
        publish = staging.publish_folder if target.is_folder else staging.publish_file
        publish(name, force=force)
    specs = plan.newest.weights.specs
    averaged = sum(spec.dtype.averaged and name not in output.copied for name, spec in specs.items())
    return Result(
        target,
        averaged,
        len(specs) - averaged,
        fold.bytes_read,
        output.nbytes,
        time.monotonic() - began,
        tuple(sorted(fold.non_finite)),
    )


def prepare(plan: Plan, target: Target, *, dtype: DType | None, copy: Sequence[str] = (), force: bool) -> Output:
    """Check everything that headers can tell, and return what would be written.

    Raises:
        CheckpointError, RunError, OutputError: as `average`.
    """
    refuse_averaged(plan)
    checkpoints = [entry.checkpoint for entry in plan.entries]
    copied = copied_names(plan.newest.weights.specs, copy)
    # What is copied may be missing in the newest, or have another shape in others.
    unlike = copied.union(*(copied_names(each.weights.specs, copy) for each in checkpoints)) if copy else copied
    check_same_model(checkpoints, mixed_floats=dtype is not None, copied=unlike)
    check_averageable(plan.newest, copied)
    _check_target(plan, target, force=force)
    output = _lay_out(plan, target, dtype, copied)
    with output_errors(target.path):
        space = os.statvfs(target.path.absolute().parent)
    if output.nbytes > space.f_bavail * space.f_frsize:
        raise OutputError(
            f"{target.path}: needs {output.nbytes} bytes, but {space.f_bavail * space.f_frsize} are free",
            hint="make room, or write elsewhere with -o",
        )
    return output


def _check_target(plan: Plan, target: Target, *, force: bool) -> None:
    run = [*(each.checkpoint for each in plan.entries), *(each.checkpoint for each in plan.skipped)]
    with output_errors(target.path):
        check_target(target, [file for each in run for file in each.files], force=force)


def refuse_averaged(plan: Plan) -> None:
    """Raise a RunError if a checkpoint of the plan holds averages already: a second average smooths twice."""
    for entry in plan.entries:
        if entry.checkpoint.averaged:
            raise averaged_error(entry.checkpoint)


def _output_specs(
    specs: Mapping[str, TensorSpec], dtype: DType | None, copied: frozenset[str]
) -> dict[str, TensorSpec]:
    """Return the specs that are written: averaged floating tensors in `dtype`, all others as they are."""
    if dtype is None:
        return dict(specs)
    return {
        name: replace(spec, dtype=dtype) if spec.dtype.kind == "float" and name not in copied else spec
        for name, spec in specs.items()
    }


def _lay_out(plan: Plan, target: Target, dtype: DType | None, copied: frozenset[str]) -> Output:
    newest = plan.newest
    specs = _output_specs(newest.weights.specs, dtype, copied)
    wide = next((name for name, spec in specs.items() if spec.dtype.name == "C128"), None)
    if wide is not None:
        raise OutputError(f"{target.path}: '{wide}' is complex128, which safetensors has no place for")
    if not target.is_folder:
        return Output([lay_out_file(target.path.name, specs, _metadata(plan, dtype, copied, []))], {}, {}, copied)
    side_files = find_side_files(newest.folder) if newest.folder is not None else []
    copies = {file.path.relative_to(newest.folder or newest.path).as_posix(): file for file in side_files}
    texts = {}
    config = copies.get("config.json")
    if config is not None:
        floating = {spec.dtype.name for spec in specs.values() if spec.dtype.kind == "float"}
        text = config.read(0, config.size)
        changed = set_config_dtype(text, floating, converted=dtype is not None)
        if changed != text:
            texts["config.json"] = changed
            del copies["config.json"]
    metadata = _metadata(plan, dtype, copied, sorted({*copies, *texts}))
    base = newest.base or "model"
    shards = _shards(newest, base)
    if len(set(shards.values())) > 1:
        files, index = lay_out_shards(specs, shards, metadata)
        return Output(files, {**texts, f"{base}.safetensors.index.json": index}, copies, copied, side_files)
    return Output([lay_out_file(f"{base}.safetensors", specs, metadata)], texts, copies, copied, side_files)


def _shards(checkpoint: Checkpoint, base: str) -> dict[str, str]:
    """Return the file in which each tensor is written: as in the newest checkpoint, under the names for safetensors."""
    if checkpoint.base is None:
        return {}
    weights = checkpoint.weights
    # pytorch_model-00001-of-00002.bin becomes model-00001-of-00002.safetensors.
    shards = {name: weights.shard(name) for name in weights.specs}
    names = {shard: _shard_name(shard, base) for shard in set(shards.values())}
    return {name: names[shard] for name, shard in shards.items()}


def _shard_name(shard: str, base: str) -> str:
    number = _SHARD_NUMBER.search(shard)
    return f"{base}{number[0]}.safetensors" if number else f"{Path(shard).stem}.safetensors"


def _metadata(plan: Plan, dtype: DType | None, copied: frozenset[str], side_files: Sequence[str]) -> dict[str, str]:
    """Say compactly how the file was averaged: no times, hosts or absolute paths, so that equal runs are equal."""
    recipe = plan.recipe
    asked = {
        "half_life": recipe.half_life,
        "smoothing": None if recipe.smoothing is None else repr(recipe.smoothing),
        "update_interval": recipe.interval or "every",
        "start": recipe.start,
        "stop": recipe.stop,
        "last": recipe.last,
        "bias_correction": recipe.bias_correction or None,
        "dtype": dtype.name if dtype else None,
    }
    record: dict[str, object] = {"version": __version__}
    record.update((name, str(value)) for name, value in asked.items() if value is not None)
    record["checkpoints"] = [[each.checkpoint.name, str(each.clock), each.weight] for each in plan.read]
    if copied:
        record["copied"] = sorted(copied)
    if side_files:
        record["files"] = list(side_files)
    return {"format": "pt", **plan.newest.header, METADATA_KEY: json.dumps(record, separators=(",", ":"))}


def _write_weights(
    plan: Plan,
    output: Output,
    folder: Path,
    threads: int,
    allow_non_finite: bool,
    report: Report,
) -> Fold:
    with ExitStack() as stack:
        opened: list[OutputStream] = []
        streams: dict[str, tuple[OutputStream, int]] = {}
        for file in output.files:
            stream = OutputStream(folder / file.name)
            stack.callback(stream.close)
            opened.append(stream)
            stream.write(0, file.header)
            streams.update((tensor, (stream, offset)) for tensor, offset in file.offsets.items())

        def write(parts: Sequence[tuple[str, int, int]], data: memoryview) -> None:
            places = ((streams[tensor], start, size) for tensor, start, size in parts)
            stretches = joined((stream, offset + start, size) for (stream, offset), start, size in places)
            position = 0
            for stream, offset, size in stretches:
                stream.write(offset, data[position : position + size])
                position += size

        fold = Fold(
            [entry.checkpoint for entry in plan.read],
            [Average([entry.weight for entry in plan.read], write)],
            {name: spec.dtype for file in output.files for name, spec in file.specs.items()},
            divide_memory(DEFAULT_BYTES, threads),
            allow_non_finite=allow_non_finite,
            copied=output.copied,
        )
        total = fold.bytes_total
        fold.run(lambda done: report(done, total))
        for stream in opened:
            stream.sync()
    return fold


def _write_texts(output: Output, folder: Path) -> None:
    for name, text in output.texts.items():
        _write_small(folder / name, [text])
    for name, source in output.copies.items():
        with output_errors(folder / name):
            (folder / name).parent.mkdir(exist_ok=True)
        step = 1 << 20
        blocks = (source.read(at, min(step, source.size - at)) for at in range(0, source.size, step))
        _write_small(folder / name, blocks)


def _write_small(path: Path, blocks: Iterable[bytes]) -> None:
    stream = OutputStream(path)
    try:
        position = 0
        for block in blocks:
            stream.write(position, block)
            position += len(block)
        stream.sync()
    finally:
        stream.close()


def _read_back(path: Path, file: OutputFile) -> None:
    """Check that the official reader finds in the file what was meant."""
    try:
        with safe_open(path, framework="np") as reader:
            names = set(reader.keys())
            found = ((name, reader.get_slice(name)) for name in names & file.specs.keys())
            same = all(
                (each.get_dtype(), tuple(each.get_shape())) == (file.specs[name].dtype.name, file.specs[name].shape)
                for name, each in found
            )
    except SafetensorError as error:
        raise VerificationError(f"{path.name}: does not read back: {error}") from error
    except OSError as error:
        raise OutputError(f"{path.name}: cannot be read back: {error.strerror or error}") from error
    if not same or names != file.specs.keys():
        raise VerificationError(f"{path.name}: reads back with other tensors than were written")


def default_threads() -> int:
    """Return the number of processors that this process may use, up to where more threads gain nothing."""
    found = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(found, _MANY_THREADS)
