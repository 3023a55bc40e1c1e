"""Runs of three checkpoints in every container that is read, with every type and every layout of tensors in it."""

from __future__ import annotations

import argparse
import json
import struct
from collections.abc import Callable
from pathlib import Path

import torch

from .distributed import Pieces, save_folder
from .tensors import Net, Tensors, every_dtype, save, save_legacy, save_tensors, save_text, strided

STEPS = (1, 2, 4)
NOT_LEGACY = ("of.uint64", "of.uint32", "of.uint16")  # which the old container has no storages for


def everything(step: int) -> Tensors:
    """Return all tensors that a file of torch's can hold."""
    return every_dtype(step) | strided(step)


def for_legacy(step: int) -> Tensors:
    """Return those of them that the old container holds."""
    return {name: tensor for name, tensor in everything(step).items() if name not in NOT_LEGACY}


def _files(write: Callable[[Path, int], object], name: str) -> Callable[[Path], None]:
    """Return a maker of a run of files, or folders, under `name`, in which {} is the step."""

    def make(folder: Path) -> None:
        for step in STEPS:
            path = folder / name.format(step)
            path.parent.mkdir(parents=True, exist_ok=True)
            write(path, step)

    return make


def _module(step: int) -> torch.nn.Module:
    """Return a module that holds all tensors as what they are: parameters, or buffers."""
    module = torch.nn.Module()
    for name, tensor in everything(step).items():
        plain = name.replace(".", "_")
        if isinstance(tensor, torch.nn.Parameter):
            module.register_parameter(plain, tensor)
        else:
            module.register_buffer(plain, tensor)
    return torch.nn.ModuleDict({"one": module, "again": module, "net": Net(step)})


def write_shards(folder: Path, tensors: Tensors, base: str, suffix: str, count: int = 3) -> None:
    """Write an index, and the shards that it names."""
    weight_map: dict[str, str] = {}
    for number in range(count):
        part = dict(list(tensors.items())[number::count])
        shard = f"{base}-{number + 1:05}-of-{count:05}.{suffix}"
        if suffix == "safetensors":
            save_tensors(folder / shard, part, format="pt")
        else:
            save(folder / shard, part)
        weight_map |= dict.fromkeys(part, shard)
    index = {"metadata": {"total_size": 1}, "weight_map": dict(sorted(weight_map.items()))}
    save_text(folder / f"{base}.{suffix}.index.json", index)


def _cut(folder: Path, step: int) -> None:
    """Write tensors that several processes have cut along each dimension, and along two."""
    pieces = Pieces(folder)
    random = torch.Generator().manual_seed(step)
    rows, columns = torch.randn(7, 3, generator=random), torch.randn(4, 5, generator=random).bfloat16()
    both, waves = torch.randn(5, 7, generator=random), torch.randn(2, 3, 5, generator=random, dtype=torch.complex64)
    pieces.add("model.rows", rows, [((0, 0), (4, 3)), ((4, 0), (3, 3))])
    pieces.add("model.columns", columns, [((0, 0), (4, 3)), ((0, 3), (4, 2))])
    pieces.add("model.both", both, [((0, 0), (2, 3)), ((0, 3), (2, 4)), ((2, 0), (3, 3)), ((2, 3), (3, 4))])
    pieces.add("model.last", waves, [((0, 0, 0), (2, 3, 3)), ((0, 0, 3), (2, 3, 2))])
    pieces.add("model.whole", torch.full((3,), float(step)))
    pieces.add("model.scalar", torch.tensor(step))
    pieces.add("model.empty", torch.zeros(0, 3))
    pieces.add("optim.rows", rows)
    pieces.add_item("step", step)
    pieces.write()


def _float8(path: Path, step: int) -> None:
    """Write types of few bits, which are copied on request alone, by a header of our own."""
    content = struct.pack("<4f", *(step * 0.5 for _ in range(4)))
    small = {"F8_E4M3": (8, 8), "F8_E5M2": (8, 8), "F8_E8M0": (4, 4), "F4": (16, 8)}
    header = {"norm.weight": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}
    for dtype, (count, nbytes) in small.items():
        offsets = [len(content), len(content) + nbytes]
        header[f"q.{dtype.lower()}"] = {"dtype": dtype, "shape": [count], "data_offsets": offsets}
        content += bytes(range(step, step + nbytes))
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content)


def _adapter(folder: Path, step: int) -> None:
    tensors = {f"base_model.model.{name}.lora_A.weight": tensor for name, tensor in every_dtype(step).items()}
    save_tensors(folder / "adapter_model.safetensors", tensors)
    save_text(folder / "adapter_config.json", {"peft_type": "LORA", "r": 3})


def _prefixed(path: Path, step: int) -> None:
    save(path, {"model": {f"module._orig_mod.{name}": tensor for name, tensor in strided(step).items()}, "step": step})


def _wide(path: Path, step: int) -> None:
    random = torch.Generator().manual_seed(step)
    wave = torch.randn(3, 2, generator=random, dtype=torch.complex128)
    save(path, {"wave": wave, "bias": torch.full((2,), 1.0 * step)})


def _save_as(path: Path, step: int, protocol: int) -> None:
    """Save with another protocol of pickle, and values of all kinds beside the tensors."""
    odd = {
        "bytes": b"\x00\xff",
        "set": frozenset({1}),
        "long": 1 << 70,
        "text": "\u00e9" * 300,
        "floats": [0.1, -1e300],
    }
    more = {"path": Path("a/b"), "args": argparse.Namespace(lr=0.1), "none": None, "dtype": torch.bfloat16}
    torch.save({"model": everything(step), "step": step, "odd": {**odd, **more}}, path, pickle_protocol=protocol)


MAKERS: dict[str, Callable[[Path], object]] = {
    "torch-bare": _files(lambda path, step: save(path, everything(step)), "step-{}.pt"),
    "torch-nested": _files(lambda path, step: save(path, {"model": everything(step), "step": step}), "step-{}.pth"),
    "torch-protocol-4": _files(lambda path, step: _save_as(path, step, 4), "step-{}.pt"),
    "torch-protocol-5": _files(lambda path, step: _save_as(path, step, 5), "step-{}.pt"),
    "legacy-bare": _files(lambda path, step: save_legacy(path, for_legacy(step)), "step-{}.bin"),
    "legacy-nested": _files(
        lambda path, step: save_legacy(path, {"state_dict": for_legacy(step), "step": step}), "a{}.ckpt"
    ),
    "module": _files(lambda path, step: save(path, _module(step)), "step-{}.pt"),
    "module-nested": _files(
        lambda path, step: save(path, {"model": torch.nn.DataParallel(Net(step)), "epoch": step}), "{}.tar"
    ),
    "safetensors": _files(lambda path, step: save_tensors(path, every_dtype(step), format="pt"), "step-{}.safetensors"),
    "few-bits": _files(_float8, "step-{}.safetensors"),
    "complex128": _files(_wide, "step-{}.pt"),
    "hf-single": _files(
        lambda folder, step: save_tensors(folder / "model.safetensors", every_dtype(step)), "checkpoint-{}"
    ),
    "hf-shards": _files(
        lambda folder, step: write_shards(folder, every_dtype(step), "model", "safetensors"), "checkpoint-{}"
    ),
    "hf-pickled": _files(lambda folder, step: save(folder / "pytorch_model.bin", strided(step)), "checkpoint-{}"),
    "hf-pickled-shards": _files(
        lambda folder, step: write_shards(folder, everything(step), "pytorch_model", "bin"), "checkpoint-{}"
    ),
    "dcp": _files(lambda folder, step: save_folder(folder, {"app": {"model": everything(step), "step": step}}), "s{}"),
    "dcp-cut": _files(_cut, "step-{}"),
    "deepspeed": _files(
        lambda folder, step: save(
            folder / "mp_rank_00_model_states.pt", {"module": strided(step), "global_steps": step, "ds_version": "0"}
        ),
        "global_step{}",
    ),
    "pipeline": _files(
        lambda folder, step: save_tensors(folder / "unet/diffusion_pytorch_model.safetensors", every_dtype(step)),
        "checkpoint-{}",
    ),
    "adapter": _files(_adapter, "checkpoint-{}"),
    "prefixes": _files(_prefixed, "step-{}.pt"),
}
