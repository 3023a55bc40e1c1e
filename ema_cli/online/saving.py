"""Write averages of a live model into safetensors files: to load, or to make other averages of afterwards."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ema_cli._version import __version__
from ema_cli.checkpoint import DTYPES, TensorSpec
from ema_cli.errors import NonFiniteError, OutputError, RunError
from ema_cli.events import HalfLife, Law, Power, Smoothing
from ema_cli.formats.safetensors_file import METADATA_KEY
from ema_cli.layout import lay_out_file
from ema_cli.online.tracked import AVERAGED_IN, placed_like, whole
from ema_cli.staging import OutputStream, Staging, output_errors
from ema_cli.units import Time, format_number

if TYPE_CHECKING:
    from ema_cli.online.ema import EMA
    from ema_cli.online.store import Store

_TYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.complex64: "C64", torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8",
    torch.uint64: "U64", torch.uint32: "U32", torch.uint16: "U16", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
FIRST = "first"  # the name of the first copy among stored averages
# A tensor by name, and the type in which it is written.
Named = Iterator[tuple[str, Tensor, torch.dtype]]


def save_average(ema: EMA, track: int, path: Path, *, force: bool, allow_non_finite: bool) -> None:
    """Write an average as `EMA.save` says."""
    if path.suffix.lower() != ".safetensors":
        raise OutputError(f"{path}: does not end in .safetensors", hint="save('ema.safetensors')")
    store = ema._ready_store()
    store.settle()
    parts = _by_name(store, store.averages[track], store.copies)
    record = {"version": __version__, **_law(ema, track), "checkpoints": []}
    named = ((name, tensor, dtype) for name, tensor, dtype in _state(store, parts, widened=False))
    _write(path, named, record, force=force, finite=not allow_non_finite)


def store_averages(ema: EMA, folder: Path) -> Path:
    """Write all averages as `EMA.store` says."""
    ema._track(ema.names[0])
    assert ema.clock is not None
    store = ema._ready_store()
    store.settle()
    inside = folder / str(ema.clock)
    told = {
        "clock": str(ema.clock),
        "began": str(Time(ema.began or ema.clock.value, ema.clock.unit)),
        "updates": ema.updates,
        "clocks": {str(unit): format_number(value) for unit, value in sorted(ema.clocks.passed.items())},
    }
    if _is_writer():
        with output_errors(inside):
            inside.mkdir(parents=True, exist_ok=True)
    if ema.first is not None:
        parts = dict(ema.first)
        stored = {
            "average": FIRST,
            **_events(ema),
            **told,
            "clock": told["began"],
            "updates": 0,
            "types": _types(store),
        }
        record = {"version": __version__, "stored": stored, "checkpoints": []}
        _write(folder / f"{FIRST}.safetensors", _state(store, parts, widened=True), record, force=True, finite=False)
        ema.first = None
    for track, name in enumerate(ema.names):
        parts = _by_name(store, store.averages[track], store.copies)
        stored = {"average": name, **_law(ema, track), **told, "types": _types(store)}
        record = {"version": __version__, "stored": stored, "checkpoints": []}
        _write(inside / f"{name}.safetensors", _state(store, parts, widened=True), record, force=True, finite=False)
    return inside


def _law(ema: EMA, track: int) -> dict[str, Any]:
    """Return how an average was made, under the names that `ema-cli average` uses."""
    law: Law = list(ema.tracks.laws.values())[track]
    told = _events(ema)
    match law:
        case HalfLife(value):
            told["half_life"] = str(Time(value, ema.tracks.unit))
        case Smoothing(value):
            told["smoothing"] = repr(value)
        case Power(value):
            told["sigma_rel"] = repr(value)
    return told


def _events(ema: EMA) -> dict[str, Any]:
    """Return which updates counted."""
    interval = ema.tracks.interval
    told: dict[str, Any] = {"update_interval": "every" if interval is None else str(interval)}
    if ema.tracks.start.value:
        told["start"] = str(ema.tracks.start)
    return told


def _by_name(store: Store, averages: list[Tensor], copies: list[Tensor]) -> dict[str, Tensor]:
    slots = (*store.tracked.averaged, *store.tracked.copied)
    return {slot.name: part for slot, part in zip(slots, (*averages, *copies), strict=True)}


def _state(store: Store, parts: Mapping[str, Tensor], *, widened: bool) -> Named:
    """Yield what the model's state holds with `parts` in it, put together from all processes.

    In the model's types or, `widened`, in those in which averages are kept. Frozen parameters are the model's.
    """
    tracked = store.tracked
    slots = {id(slot.tensor): slot for slot in (*tracked.averaged, *tracked.copied, *tracked.frozen)}
    averaged = {slot.name for slot in tracked.averaged}
    for name, value in tracked.named_state():
        slot = slots.get(id(value))
        if slot is None:
            raise RunError(
                f"'{name}' is no parameter or buffer of the model: its state_dict() makes it anew",
                hint="leave out the hook that does, or save state_dict()",
            )
        part = parts.get(slot.name)
        tensor = slot.tensor if part is None else placed_like(part, slot.tensor)
        dtype = AVERAGED_IN[slot.tensor.dtype] if widened and slot.name in averaged else slot.tensor.dtype
        yield name, tensor, dtype


def _types(store: Store) -> dict[str, Any]:
    """Return the model's types of those tensors that are stored in a wider one: of all, or by name."""
    narrow = {slot.name: slot for slot in store.tracked.averaged if AVERAGED_IN[slot.tensor.dtype] != slot.tensor.dtype}
    types = {_TYPES[slot.tensor.dtype] for slot in narrow.values()}
    if len(types) == 1 and len(narrow) == len(store.tracked.averaged):
        return {next(iter(types)): "all"}
    slots = {id(slot.tensor): slot for slot in narrow.values()}
    named = [(name, slots[id(value)]) for name, value in store.tracked.named_state() if id(value) in slots]
    return {each: sorted(name for name, slot in named if _TYPES[slot.tensor.dtype] == each) for each in sorted(types)}


def _write(path: Path, named: Named, record: Mapping[str, Any], *, force: bool, finite: bool) -> None:
    """Write tensors into one file, each put together when its turn comes, in the process that writes."""
    tensors = {name: (tensor, dtype) for name, tensor, dtype in named}
    specs = {}
    for name, (tensor, dtype) in tensors.items():
        if dtype not in _TYPES:
            raise OutputError(f"{path}: '{name}' is {dtype}, which safetensors has no place for")
        specs[name] = TensorSpec(DTYPES[_TYPES[dtype]], tuple(tensor.shape))
    text = json.dumps(record, separators=(",", ":"))
    file = lay_out_file(path.name, specs, {"format": "pt", METADATA_KEY: text})
    if not _is_writer():
        for name in file.table.begins:
            whole(tensors[name][0])
        return
    if path.exists() and not force:
        raise OutputError(f"{path}: exists already", hint="give another name, or force=True to replace it")
    with Staging(path) as staging:
        stream = OutputStream(staging.folder / path.name)
        try:
            stream.write(0, file.header)
            for name, begin in file.table.begins.items():
                tensor, dtype = tensors[name]
                written = whole(tensor).detach().to("cpu", dtype).contiguous()
                if finite and dtype in AVERAGED_IN and bool(torch.isnan(written).any()):
                    raise NonFiniteError(f"{path}: '{name}' is not finite", hint="allow_non_finite=True writes it")
                if written.numel():
                    stream.write(file.header_size + begin, written.reshape(-1).view(torch.uint8).numpy().data)
            stream.sync()
        finally:
            stream.close()
        staging.publish_file(path.name, force=force)


def _is_writer() -> bool:
    """Return whether this is the process that writes."""
    with suppress(ImportError):
        from torch import distributed

        if distributed.is_available() and distributed.is_initialized():
            return distributed.get_rank() == 0
    return True
