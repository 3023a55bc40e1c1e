"""Write averages of a live model into safetensors files, to load them or to combine them to other averages later."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ema_cli._version import __version__
from ema_cli.checkpoint import TensorSpec
from ema_cli.dtypes import TORCH_DTYPES
from ema_cli.errors import EmaError, NonFiniteError, OutputError, RunError
from ema_cli.formats.mark import METADATA_KEY
from ema_cli.formats.output_file import OutputFile
from ema_cli.formats.safetensors.writer import lay_out_file
from ema_cli.formats.trainers.names import EXTRA_STATE
from ema_cli.law.branches import lineage_at, lineage_to_list
from ema_cli.law.live import Schedule, live_law_to_dict
from ema_cli.law.time import Time, format_number
from ema_cli.online.measuring import measure
from ema_cli.online.set_aside import set_aside
from ema_cli.online.sharded import is_sharded, local, placed_like, whole
from ema_cli.online.tracked import AVERAGED_IN
from ema_cli.runs.stored_file import FIRST
from ema_cli.storage.output_stream import output_errors
from ema_cli.storage.publishing import stage_file

if TYPE_CHECKING:
    from ema_cli.online.averages import Averages
    from ema_cli.online.store import Store

_WRITTEN_AS = {
    getattr(torch, name): dtype
    for name, dtype in TORCH_DTYPES.items()
    if dtype.in_safetensors and dtype.torch_group == 1 and hasattr(torch, name)  # of this torch
}
# Name, tensor, and the dtype to write it in.
Named = Iterator[tuple[str, Tensor, torch.dtype]]


def save_average(averages: Averages, number: int, path: Path, *, force: bool, allow_non_finite: bool) -> None:
    """Write an average; for `EMA.save`, which describes the arguments and errors."""
    if path.suffix.lower() != ".safetensors":
        raise OutputError("does not end in .safetensors", subject=path, hint="save('ema.safetensors')")
    store = averages.settled_store()
    parts = _by_name(store, store.averages[number], store.copies)
    moment = {"clock": str(averages.clock), "updates": averages.updates}
    record = {"version": __version__, **_law_record(averages, number), **moment, "checkpoints": []}

    def check() -> None:
        if not allow_non_finite:
            _check_finite(averages, number, path)
        if _is_writer() and path.exists() and not force:
            raise OutputError("exists already", subject=path, hint="give another name, or force=True to replace it")

    _write(path, _state(store, parts, widened=False), record, check, force=force)


def store_averages(averages: Averages, folder: Path) -> Path:
    """Write all averages; for `EMA.store`, which describes the errors."""
    averages.number(averages.names[0])
    now = averages.clock
    assert now is not None
    if averages.mixed:
        raise RunError(
            "these averages changed their half-life, interval or start: they are not what a stored file could say",
            hint="begin new averages to store some",
        )
    store = averages.settled_store()
    sizes = measure(averages)
    inside = folder / str(now)
    moment = {
        "clock": str(now),
        "began": str(Time(averages.began or now.value, now.unit)),
        "updates": averages.updates,
        "clocks": {str(unit): format_number(value) for unit, value in sorted(averages.clocks.passed.items())},
        "branches": lineage_to_list(averages.lineage),
    }

    first = folder / f"{FIRST}.safetensors"

    def check() -> None:
        if _is_writer():
            with output_errors(inside):
                if folder.is_dir():
                    written = [inside] if averages.first is None else [inside, first]
                    set_aside(folder, written, averages.lineage, everywhere=folder not in averages.tidied)
                inside.mkdir(parents=True, exist_ok=True)
                averages.tidied.add(folder)

    if averages.first is not None:
        stored = {
            "average": FIRST,
            **_schedule(averages).to_dict(),
            **moment,
            "clock": moment["began"],
            "clocks": {},
            "updates": 0,
            "branches": lineage_to_list(lineage_at(averages.lineage, Time.parse(str(moment["began"])))),
            "types": _narrow_dtypes(store),
        }
        _write(first, _state(store, averages.first, widened=True), _stored_record(stored), check, force=True)
        averages.first = None
    for number, name in enumerate(averages.names):
        parts = _by_name(store, store.averages[number], store.copies)
        stored = {
            "average": name,
            **_law_record(averages, number),
            **moment,
            **sizes[number].to_dict(),
            "types": _narrow_dtypes(store),
        }
        _write(
            inside / f"{name}.safetensors",
            _state(store, parts, widened=True),
            _stored_record(stored),
            check,
            force=True,
        )
    return inside


def _stored_record(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the record of a stored average for its header."""
    return {"version": __version__, "stored": content, "checkpoints": []}


def _law_record(averages: Averages, number: int) -> dict[str, str]:
    """Return the law and the schedule of an average, under the names that `ema-cli average` uses."""
    return {**_schedule(averages).to_dict(), **live_law_to_dict(list(averages.tracks.laws.values())[number])}


def _schedule(averages: Averages) -> Schedule:
    """Return the schedule of updates."""
    tracks = averages.tracks
    return Schedule(tracks.interval, tracks.start if tracks.start.value else None)


def _by_name(store: Store, parts: list[Tensor], copies: list[Tensor]) -> dict[str, Tensor]:
    slots = (*store.tracked.averaged, *store.tracked.copied)
    return {slot.name: part for slot, part in zip(slots, (*parts, *copies), strict=True)}


def _state(store: Store, parts: Mapping[str, Tensor], *, widened: bool) -> Named:
    """Yield the tensors of the model's state, with averaged `parts` in place of its own.

    Frozen parameters are those of the model. Sharded tensors stay sharded.

    Args:
        store: the store of the averages.
        parts: tensor name -> this process's part of the average.
        widened: write averaged tensors in the dtype of the average, instead of the model's.
    """
    tracked = store.tracked
    slots = {id(slot.tensor): slot for slot in (*tracked.averaged, *tracked.copied, *tracked.frozen)}
    averaged = {slot.name for slot in tracked.averaged}
    for name, value in tracked.named_state():
        slot = slots.get(id(value))
        if slot is None and name.rpartition(".")[2] == EXTRA_STATE:
            yield name, value, value.dtype  # only the module's own code can read it
            continue
        if slot is None:
            raise RunError(
                f"'{name}' is no parameter or buffer of the model: its state_dict() makes it anew",
                hint="leave out the hook that does, or save state_dict()",
            )
        part = parts.get(slot.name)
        tensor = slot.tensor if part is None else placed_like(part, slot.tensor)
        dtype = AVERAGED_IN[slot.tensor.dtype] if widened and slot.name in averaged else slot.tensor.dtype
        yield name, tensor, dtype


def _narrow_dtypes(store: Store) -> dict[str, Any]:
    """Return the model's dtypes of the tensors that are stored in a wider one: `{"BF16": "all"}`, or names by dtype."""
    narrow = {slot.name: slot for slot in store.tracked.averaged if AVERAGED_IN[slot.tensor.dtype] != slot.tensor.dtype}
    types = {_WRITTEN_AS[slot.tensor.dtype].name for slot in narrow.values()}
    if len(types) == 1 and len(narrow) == len(store.tracked.averaged):
        return {next(iter(types)): "all"}
    slots = {id(slot.tensor): slot for slot in narrow.values()}
    named = [(name, slots[id(value)]) for name, value in store.tracked.named_state() if id(value) in slots]
    return {
        dtype: sorted(name for name, slot in named if _WRITTEN_AS[slot.tensor.dtype].name == dtype)
        for dtype in sorted(types)
    }


def _check_finite(averages: Averages, number: int, path: Path) -> None:
    """Check this process's part of an average for NaN and infinities.

    Infinities that the model has in the same places are allowed: masks hold them all the time.

    Raises:
        NonFiniteError: naming the first tensor with others.
    """
    store = averages.store()
    frozen = [(slot, local(slot.tensor), local(slot.tensor)) for slot in store.tracked.frozen]
    live = store.live() if averages.training is None else averages.training
    averaged = zip(store.tracked.averaged, store.averages[number], live, strict=False)
    for slot, part, value in (*averaged, *frozen):
        if slot.dtype not in AVERAGED_IN:
            continue
        written = part.to(slot.dtype)
        not_finite = ~written.isfinite()
        if bool(not_finite.any()) and bool((not_finite & (written != value.to(written.device))).any()):
            raise NonFiniteError(f"'{slot.name}' is not finite", subject=path, hint="allow_non_finite=True writes it")


def _write(path: Path, named: Named, record: Mapping[str, Any], check: Callable[[], None], *, force: bool) -> None:
    """Write tensors into one file, from the first process; each sharded tensor is gathered when its turn comes.

    Args:
        path: of the file.
        named: the tensors.
        record: the metadata, as JSON in the header.
        check: called in every process before anything is written; raises an EmaError to stop all of them.
        force: replace an existing file.
    """
    tensors = {name: (tensor, dtype) for name, tensor, dtype in named}
    specs = {}
    for name, (tensor, dtype) in tensors.items():
        if dtype not in _WRITTEN_AS:
            raise OutputError(f"'{name}' is {dtype}, which safetensors has no place for", subject=path)
        specs[name] = TensorSpec(_WRITTEN_AS[dtype], tuple(tensor.shape))
    text = json.dumps(record, separators=(",", ":"))
    file = lay_out_file(path.name, specs, {"format": "pt", METADATA_KEY: text})
    together = any(is_sharded(tensor) for tensor, _ in tensors.values())
    with _same_outcome(together):
        check()
    gathered = ((name, whole(tensors[name][0]).detach().to("cpu", tensors[name][1])) for name in file.table.begins)
    with _same_outcome(together):
        try:
            if _is_writer():
                _write_file(path, file, gathered, force=force)
        finally:
            if together:
                for _ in gathered:  # the other processes wait for this one to gather the rest, even if it cannot write
                    pass


def _write_file(path: Path, file: OutputFile, tensors: Iterable[tuple[str, Tensor]], *, force: bool) -> None:
    with stage_file(path, force=force) as stream:
        stream.write(0, file.header)
        for name, tensor in tensors:
            if tensor.numel():
                data = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data
                stream.write(file.header_size + file.table.begins[name], data)


@contextmanager
def _same_outcome(together: bool) -> Iterator[None]:
    """Raise an error of one process in all that work `together`: otherwise the others would wait for ever."""
    error: EmaError | None = None
    try:
        yield
    except EmaError as raised:
        error = raised
    errors = [error]
    if together:
        from torch import distributed

        errors = [None] * distributed.get_world_size()
        distributed.all_gather_object(errors, error)
    for raised_anywhere in (error, *errors):
        if raised_anywhere is not None:
            raise raised_anywhere


def _is_writer() -> bool:
    """Return whether this is the process that writes."""
    with suppress(ImportError):
        from torch import distributed

        if distributed.is_available() and distributed.is_initialized():
            return distributed.get_rank() == 0
    return True
