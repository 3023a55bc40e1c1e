"""The checks of a published average: each takes a snapshot of it and yields its problems, in words."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ema_cli.errors import EmaError, Unreadable, at_terminal
from ema_cli.formats.copies.classes import classes_in
from ema_cli.formats.copies.frames import can_be_marked
from ema_cli.formats.folders.processors import processor_states
from ema_cli.formats.options import ReadOptions
from ema_cli.formats.output_file import whole_name
from ema_cli.formats.safetensors import file as safetensors_file
from ema_cli.formats.shards import open_index
from ema_cli.formats.trainers.folders import SHARD
from ema_cli.release.frames import dcp_differences, torch_differences
from ema_cli.release.mark import mark_differences
from ema_cli.release.snapshot import Snapshot
from ema_cli.release.tensor_files import SAFETENSORS
from ema_cli.text import some

_INDEX = ".safetensors.index.json"  # after the base of the names of the shards

Check = Callable[[Snapshot], Iterator[str]]


def all_problems(snapshot: Snapshot) -> list[str]:
    """Return all problems of an average, those met while reading included.

    A manifest or checksums of another file come first, because they explain the rest.
    """
    problems = [problem for check in CHECKS for problem in check(snapshot)]
    return [*name_stale(snapshot), *snapshot.problems, *problems]


def compare_names(snapshot: Snapshot) -> Iterator[str]:
    """Compare the file names in the manifest, the checksums and the folder."""
    own, sums_name = snapshot.published.manifest.name, snapshot.published.sums.name
    outputs = snapshot.outputs
    listed = snapshot.sums.keys() | outputs.keys()
    for name in sorted(listed | snapshot.present | {own}):
        if name not in snapshot.present:
            if name != own:  # a missing manifest is a problem already
                yield snapshot.problem(name, f"is missing, but {sums_name if name in snapshot.sums else own} lists it")
        elif name not in listed and name != own:
            fact = "is an empty folder, which nothing lists" if name.endswith("/") else f"is not listed in {sums_name}"
            yield snapshot.problem(name, fact)
        else:
            if snapshot.sums and name not in snapshot.sums:
                yield snapshot.problem(name, f"is not listed in {sums_name}")
            if name == own or snapshot.manifest is None:
                continue
            if name not in outputs:
                yield snapshot.problem(name, f"is not listed in {own}")
            elif snapshot.sums.get(name, outputs[name][1]) != outputs[name][1]:
                yield snapshot.problem(name, f"has other sums in {sums_name} and in {own}")


def compare_rows(snapshot: Snapshot) -> Iterator[str]:
    """Check that the manifest lists each input, output and tensor once; of a file that was watched each version."""
    manifest = snapshot.manifest
    if manifest is None:
        return
    listed = {
        "inputs": [
            f"{row['name']} {row['clock']}" if "watch" in manifest else row["name"] for row in manifest["inputs"]
        ],
        "outputs": [row["name"] for row in manifest["outputs"]],
        "tensors": [row["name"] for row in manifest["tensors"]],
    }
    for kind, names in listed.items():
        if len(set(names)) < len(names):
            yield snapshot.problem(snapshot.published.manifest.name, f"lists one of its {kind} twice")


def compare_sums(snapshot: Snapshot) -> Iterator[str]:
    """Compare the sizes and checksums of the files with the listed ones."""
    sums_name, own = snapshot.published.sums.name, snapshot.published.manifest.name
    outputs = snapshot.outputs
    for name, reading in snapshot.readings.items():
        if name in snapshot.edited:
            continue
        size, in_manifest = outputs.get(name, (None, None))
        if size is not None and size != snapshot.files[name].size:
            yield snapshot.problem(name, f"holds {snapshot.files[name].size} bytes, but {size} in {own}")
        wrong: dict[str, list[str]] = {}  # a listed sum that is not the file's -> who lists it
        for listed, where in ((snapshot.sums.get(name), sums_name), (in_manifest, own)):
            if listed is not None and listed != reading.sha256:
                wrong.setdefault(listed, []).append(where)
        for listed, wheres in wrong.items():
            fact = f"its sha256 is {reading.sha256[:12]}..., but {listed[:12]}... in {' and '.join(wheres)}"
            yield snapshot.problem(name, fact)


def compare_tensors(snapshot: Snapshot) -> Iterator[str]:
    """Compare the names, dtypes, shapes and sizes of all tensors with the manifest."""
    if snapshot.manifest is None:
        return
    rows, own = {row["name"]: row for row in snapshot.manifest["tensors"]}, snapshot.published.manifest.name
    holders: dict[str, str] = {}
    for name, checkpoint in snapshot.opened.items():
        for inner, spec in checkpoint.tensors.specs.items():
            tensor = whole_name(name, inner)
            if tensor in holders:
                yield snapshot.problem(name, f"'{tensor}' is in {holders[tensor]}, too")
            holders[tensor] = name
            row = rows.get(tensor)
            if row is None:
                yield snapshot.problem(name, f"'{tensor}' is not listed in {own}")
                continue
            listed = f"{row['dtype']} [{', '.join(map(str, row['shape']))}]"
            if listed != str(spec):
                yield snapshot.problem(name, f"'{tensor}' is {spec}, but {listed} in {own}")
            elif row["bytes"] != spec.nbytes:
                yield snapshot.problem(name, f"'{tensor}' takes {spec.nbytes} bytes, but {row['bytes']} in {own}")
    if snapshot.complete:
        for tensor in sorted(rows.keys() - holders.keys()):
            yield snapshot.problem(own, f"lists '{tensor}', which is in no file")


def compare_marks(snapshot: Snapshot) -> Iterator[str]:
    """Compare the metadata in the files of tensors with the manifest."""
    if snapshot.manifest is None:
        return
    manifest_name = snapshot.published.manifest.name
    copied_files = processor_states(snapshot.published.folder, snapshot.files)
    for name, checkpoint in snapshot.opened.items():
        if snapshot.like_input and name and not can_be_marked(snapshot.files[name]):
            continue
        for fact in mark_differences(checkpoint.mark, snapshot.manifest, manifest_name, copied_files):
            yield snapshot.problem(name, fact)


def compare_frames(snapshot: Snapshot) -> Iterator[str]:
    """Check that files of torch's hold nothing around their tensors but what ema-cli writes there.

    What is in the form of its input holds what its newest checkpoint does. It names no classes, unless the user lets
    it; then it is compared with that checkpoint.
    """
    if snapshot.may_name_classes and not snapshot.like_input and snapshot.manifest is not None:
        yield snapshot.problem(snapshot.published.manifest.name, "does not say that it is in the form of its input")
    if snapshot.like_input:
        if not snapshot.may_name_classes:
            yield from _named_classes(snapshot)
        return
    for name, checkpoint in snapshot.opened.items():
        if snapshot.format == "dcp":
            for file, fact in dcp_differences(snapshot.files, checkpoint):
                yield snapshot.problem(file, fact)
        elif not name.lower().endswith(SAFETENSORS):
            is_lightning = snapshot.format == "ckpt"
            for fact in torch_differences(snapshot.files[name], checkpoint, is_lightning=is_lightning):
                yield snapshot.problem(name, fact)


def _named_classes(snapshot: Snapshot) -> Iterator[str]:
    """Yield a problem for each file that names classes or functions which ema-cli does not write."""
    for name, file in snapshot.files.items():
        classes = classes_in([file])
        if classes:
            yield snapshot.problem(
                name,
                f"names {some(classes)}, whose code runs where it is loaded: compare it with the checkpoints, with "
                f"{at_terminal('like_input', 'True')} and --against CKPTS",
            )


def compare_values(snapshot: Snapshot) -> Iterator[str]:
    """Check that averaged tensors hold neither NaN nor infinity, unless the manifest says so."""
    if snapshot.manifest is None:
        return
    finite = {row["name"] for row in snapshot.manifest["tensors"] if row["averaged"] and not row["non_finite"]}
    for name, reading in snapshot.readings.items():
        for inner, elements in sorted(reading.not_finite.items()):
            tensor = whole_name(name, inner)
            if tensor in finite:
                more = f" and {elements.count - 1:,} more" if elements.count > 1 else ""
                yield snapshot.problem(name, f"'{tensor}' is not finite at element {elements.first}{more}")


def compare_index(snapshot: Snapshot) -> Iterator[str]:
    """Check that the index of a sharded folder names the right shard for each tensor.

    Raises:
        CheckpointError: if this process cannot read the index.
    """
    if not snapshot.published.is_folder or not snapshot.complete:
        return
    indexes = [name for name in snapshot.files if name.endswith(_INDEX)]
    numbered: dict[str, set[str]] = {}  # the shards of each model, by the name of its index
    for name in snapshot.opened:
        if SHARD.search(name):
            numbered.setdefault(f"{SHARD.sub('', name)}{_INDEX}", set()).add(name)
    for name in sorted(numbered.keys() - {*indexes}):
        yield snapshot.problem("", f"holds {len(numbered[name])} shards, but no {name}")
    for name in indexes:
        path = snapshot.published.path / name
        try:
            _, shards = open_index(path, lambda shard: safetensors_file.open_checkpoint(shard, ReadOptions()))
        except Unreadable:
            raise
        except EmaError as error:
            yield snapshot.problem(name, error.message(at_terminal, known=path))
            continue
        known = {whole_name(name, shard.path.name) for shard in shards}
        for missing in sorted(numbered.get(name, set()) - known):
            yield snapshot.problem(name, f"does not name {missing}")


CHECKS: tuple[Check, ...] = (
    compare_rows,
    compare_names,
    compare_sums,
    compare_tensors,
    compare_marks,
    compare_frames,
    compare_values,
    compare_index,
)


def name_stale(snapshot: Snapshot) -> Iterator[str]:
    """Yield a problem if the manifest or the checksums next to a single file belong to another file.

    This happens when a killed run leaves new ones next to the old file, or when a file is replaced by hand. If the
    tensors or the metadata of the file differ from the manifest, both may be stale. Otherwise one is stale only if the
    other one fits: if neither fits, the file itself may be damaged.
    """
    published = snapshot.published
    name, outputs = published.path.name, snapshot.outputs
    if published.is_folder or snapshot.manifest is None or name not in snapshot.readings:
        return
    if name not in snapshot.sums or name not in outputs:
        return
    sha256 = snapshot.readings[name].sha256
    unlike = {published.manifest.name: outputs[name][1] != sha256, published.sums.name: snapshot.sums[name] != sha256}
    if not any(unlike.values()):
        return  # as nearly always: the tensors need not be compared once more
    is_other = any(compare_tensors(snapshot)) or any(compare_marks(snapshot))
    stale = [sidecar for sidecar, differs in unlike.items() if differs and (is_other or not all(unlike.values()))]
    if stale:
        fact = f"{' and '.join(stale)} {'is' if len(stale) == 1 else 'are'} of another {name}"
        yield f"{published.path}: {fact}; write it again with --force"
