"""Every container that is read, filled by the library that it is of, with the tensors that this library reads there."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch.distributed.tensor import Shard

from tests.formats import two_ranks
from tests.formats.arrays.flax_files import packed
from tests.formats.dcp_folders import load_folder, save_folder
from tests.formats.pieces.make import halves, load_pieces, write_pieces
from tests.formats.ranks.flattened import save_flat
from tests.formats.ranks.saves import Cut, save_ranks
from tests.formats.zero.make import small

Tensors = dict[str, torch.Tensor]

# Written out here, apart from the package's own tables.
DTYPE_NAMES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.complex64: "C64", torch.bool: "BOOL",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8",
    torch.uint64: "U64", torch.uint32: "U32", torch.uint16: "U16", torch.uint8: "U8",
}  # fmt: skip


def plain_tensors() -> Tensors:
    """Return contiguous tensors, none sharing its bytes: one of each dtype, edge shapes and edge names."""
    random = torch.Generator().manual_seed(5)
    tensors: Tensors = {}
    for dtype, name in DTYPE_NAMES.items():
        if dtype.is_floating_point or dtype.is_complex:
            tensors[f"of.{name}"] = torch.randn(3, 5, generator=random).to(dtype)
        else:
            tensors[f"of.{name}"] = torch.randint(0, 100, (3, 5), generator=random).to(dtype)
    tensors["extremes"] = torch.tensor([torch.iinfo(torch.int64).min, torch.iinfo(torch.int64).max])
    tensors["not.finite"] = torch.tensor([float("nan"), float("inf"), -0.0, 1e-45])
    tensors["scalar"] = torch.tensor(2.5)
    tensors["empty"] = torch.zeros(0)
    tensors["empty.matrix"] = torch.zeros(3, 0, 2, dtype=torch.bfloat16)
    tensors["one"] = torch.ones(1, 1, 1, 1, dtype=torch.float16)
    for name in ("n" * 500, "層.重み", "été ☃ 😀", 'quo"te\\', "tab\tname", "a b", "."):
        tensors[name] = torch.randn(4, generator=random)
    return tensors


def strided_tensors() -> Tensors:
    """Return tensors as only torch stores them: aliased, out of order, lazily conjugated, with attributes."""
    random = torch.Generator().manual_seed(6)
    base = torch.randn(6, 8, generator=random)
    waves = torch.randn(4, 6, generator=random, dtype=torch.complex64)
    words = torch.randint(0, 1 << 32, (6,), generator=random).to(torch.uint32)
    tagged = torch.nn.Parameter(torch.randn(3, generator=random))
    tagged.tag = {"kind": "python attribute"}
    noted = torch.randn(3, generator=random)
    noted.note = "on a plain tensor"
    return {
        "tied.one": base,
        "tied.two": base,
        "tied.view": base.view(6, 8),
        "same.bytes.other.shape": base.view(8, 6),
        "untyped": words,
        "untyped.other.dtype": words.view(torch.uint64),
        "row": base[2],
        "transposed": base.t(),
        "sliced": base[1:6:2, ::3],
        "sliced.halves": torch.randn(9, 7, generator=random).to(torch.bfloat16)[::4, 1::2],
        "expanded": torch.randn(3, 1, generator=random).expand(2, 3, 5),
        "expanded.scalar": torch.tensor(7, dtype=torch.int16).expand(4, 4),
        "windows": torch.arange(10.0, dtype=torch.float64).unfold(0, 4, 1),
        "channels.last": torch.randn(2, 3, 4, 5, generator=random).to(memory_format=torch.channels_last),
        "permuted": torch.randn(3, 4, 5, generator=random).permute(2, 0, 1),
        "large.transposed": torch.randn(300, 250, generator=random).t(),
        "far.apart": torch.randn(4, 500, generator=random)[:, 3],
        "empty.strided": torch.zeros(4, 6)[:, ::2][2:2],
        "bools": torch.tensor([[True, False], [True, True]]).t(),
        "conj": waves.conj(),
        "conj.transposed": waves.t().conj()[1:],
        "conj.empty": torch.zeros(0, dtype=torch.complex64).conj(),
        "neg": torch.randn(4, 6, generator=random, dtype=torch.complex64).conj().imag,
        "neg.halves": torch._neg_view(torch.randn(5, generator=random).half()),
        "neg.conj": torch._neg_view(waves.conj()),
        "parameter": torch.nn.Parameter(torch.randn(2, 2, generator=random)),
        "parameter.frozen": torch.nn.Parameter(torch.ones(2), requires_grad=False),
        "parameter.attribute": tagged,
        "buffer": torch.nn.Buffer(torch.ones(3)),
        "attribute": noted,
    }


# What torch writes into the legacy container and cannot read back: dtypes without a storage class of their own.
NOT_LEGACY = ("of.U64", "of.U32", "of.U16", "untyped", "untyped.other.dtype")


def _torch_file(
    wrap: Callable[[Tensors], object], unwrap: Callable[[dict[str, object]], object], *, legacy: bool = False
) -> Callable[[Path], tuple[Path, Tensors]]:
    def write(folder: Path) -> tuple[Path, Tensors]:
        path = folder / "weights.pt"
        tensors = plain_tensors() | strided_tensors()
        if legacy:
            tensors = {name: tensor for name, tensor in tensors.items() if name not in NOT_LEGACY}
        torch.save(wrap(tensors), path, _use_new_zipfile_serialization=not legacy)
        return path, unwrap(torch.load(path, weights_only=True))

    return write


class Holder(torch.nn.Module):
    """A module that holds given tensors, each as what it is: a parameter, or a buffer."""

    def __init__(self, tensors: Tensors) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            if isinstance(tensor, torch.nn.Parameter):
                self.register_parameter(name, tensor)
            else:
                self.register_buffer(name, tensor)


def _whole_module(legacy: bool, **saved: object) -> Callable[[Path], tuple[Path, Tensors]]:
    def write(folder: Path) -> tuple[Path, Tensors]:
        path = folder / "weights.pt"
        tensors = {name.replace(".", "_"): tensor for name, tensor in (plain_tensors() | strided_tensors()).items()}
        names = [name.replace(".", "_") for name in NOT_LEGACY] if legacy else []
        inner = Holder({name: tensor for name, tensor in tensors.items() if name not in names})
        inner.register_parameter("tied", torch.nn.Parameter(tensors["tied_one"]))
        module = torch.nn.ModuleDict({"one": inner, "again": inner, "other": torch.nn.BatchNorm1d(3)})
        root = {**saved, "model": module} if saved else module
        torch.save(root, path, _use_new_zipfile_serialization=not legacy)
        loaded = torch.load(path, weights_only=False)
        return path, dict((loaded["model"] if saved else loaded).state_dict())

    return write


def _safetensors_file(folder: Path) -> tuple[Path, Tensors]:
    path = folder / "weights.safetensors"
    save_file(plain_tensors(), path, metadata={"format": "pt"})
    return path, load_file(path)


def _hf_single(folder: Path) -> tuple[Path, Tensors]:
    save_file(plain_tensors(), folder / "model.safetensors")
    return folder, load_file(folder / "model.safetensors")


def _hf_shards(folder: Path) -> tuple[Path, Tensors]:
    loaded = {}
    for shard, part in _shards(folder, plain_tensors(), "model", "safetensors"):
        save_file(part, folder / shard, metadata={"format": "pt"})
        loaded.update(load_file(folder / shard))
    return folder, loaded


def _bin_shards(folder: Path) -> tuple[Path, Tensors]:
    loaded = {}
    for shard, part in _shards(folder, plain_tensors() | strided_tensors(), "pytorch_model", "bin"):
        torch.save(part, folder / shard)
        loaded.update(torch.load(folder / shard, weights_only=True))
    return folder, loaded


def _shards(folder: Path, tensors: Tensors, base: str, suffix: str) -> list[tuple[str, Tensors]]:
    """Write an index of three shards, and return what belongs into each."""
    parts = [
        (f"{base}-{number + 1:05}-of-00003.{suffix}", dict(list(tensors.items())[number::3])) for number in (0, 1, 2)
    ]
    weight_map = {name: shard for shard, part in parts for name in part}
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / f"{base}.{suffix}.index.json").write_text(json.dumps(index))
    return parts


def _hf_pickled(folder: Path) -> tuple[Path, Tensors]:
    torch.save(strided_tensors(), folder / "pytorch_model.bin")
    return folder, torch.load(folder / "pytorch_model.bin", weights_only=True)


def _distributed(folder: Path) -> tuple[Path, Tensors]:
    tensors = plain_tensors() | strided_tensors()
    state = {"app": {"model": tensors, "optim": {"state": {"m": torch.ones(2)}}, "step": 3}}
    return folder, load_folder(save_folder(folder, state))["app"]["model"]


def _two_ranks(folder: Path) -> tuple[Path, Tensors]:
    saved = two_ranks.launch(folder)
    return saved, load_folder(saved)["model"]


def _deepspeed(folder: Path) -> tuple[Path, Tensors]:
    path = folder / "mp_rank_00_model_states.pt"
    torch.save({"module": strided_tensors(), "optimizer": None, "global_steps": 3, "ds_version": "0"}, path)
    return folder, torch.load(path, weights_only=True)["module"]


def _zero(folder: Path) -> tuple[Path, Tensors]:
    saved = small(ranks=3)
    return saved.write(folder), saved.masters


def _universal(folder: Path) -> tuple[Path, Tensors]:
    saved = small(stage=1)
    return saved.write_universal(folder), saved.masters


def _rank_shards(folder: Path) -> tuple[Path, Tensors]:
    tensors = plain_tensors()
    cut = {
        name: (tensor, halves(tensor, number % tensor.dim()) if tensor.dim() else [((), ())])
        for number, (name, tensor) in enumerate(tensors.items())
    }
    return write_pieces(folder, cut), load_pieces(folder)


def _rank_files(folder: Path) -> tuple[Path, Tensors]:
    tensors = plain_tensors()
    shared = {name: Cut(tensor, [Shard(0)]) if tensor.dim() else tensor for name, tensor in tensors.items()}
    return save_ranks(folder, shared, {"fsdp": 2}), tensors


def _flat_files(folder: Path) -> tuple[Path, Tensors]:
    rows = {
        "": {"wte.weight": torch.randn(5, 3), "norm": torch.ones(3)},
        "ff": {"weight": torch.randn(3, 7).bfloat16()},
    }
    return save_flat(folder / "step7", rows, 3), {**rows[""], "ff.weight": rows["ff"]["weight"]}


def _pipeline(folder: Path) -> tuple[Path, Tensors]:
    (folder / "unet").mkdir()
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    save_file(plain_tensors(), path)
    return folder, load_file(path)


def _adapter(folder: Path) -> tuple[Path, Tensors]:
    tensors = {f"base_model.model.{name}.lora_A.weight": tensor for name, tensor in plain_tensors().items()}
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 3}')
    return folder, load_file(folder / "adapter_model.safetensors")


def _prefixed(folder: Path) -> tuple[Path, Tensors]:
    tensors = {f"module._orig_mod.{name}": tensor for name, tensor in strided_tensors().items()}
    torch.save({"model": tensors}, folder / "weights.pt")
    loaded = torch.load(folder / "weights.pt", weights_only=True)["model"]
    return folder / "weights.pt", {name.replace("module._orig_mod.", ""): tensor for name, tensor in loaded.items()}


def _npz(save: Callable[..., None]) -> Callable[[Path], tuple[Path, Tensors]]:
    def write(folder: Path) -> tuple[Path, Tensors]:
        path = folder / "weights.npz"
        arrays = {
            name: tensor.view(torch.uint16).numpy().view("V2") if tensor.dtype == torch.bfloat16 else tensor.numpy()
            for name, tensor in plain_tensors().items()
        }
        views = {"by.columns": np.asfortranarray(np.arange(60.0).reshape(3, 4, 5)), "row": np.ones((4, 3))[1]}
        save(path, **arrays, **views)
        with np.load(path) as loaded:
            return path, {name: _tensor_of(loaded[name]) for name in loaded.files}

    return write


def _tensor_of(array: np.ndarray) -> torch.Tensor:
    """Return an array as a tensor; numpy has two bytes without a type in the place of bfloat16."""
    array = np.ascontiguousarray(array).reshape(array.shape)
    if array.dtype == "V2":
        return torch.tensor(array.view("u2")).view(torch.bfloat16)
    return torch.tensor(array) if array.size else torch.zeros(array.shape, dtype=torch.tensor(array).dtype)


def _pdparams(folder: Path) -> tuple[Path, Tensors]:
    path = folder / "weights.pdparams"
    kept = {name: tensor for name, tensor in plain_tensors().items() if tensor.dtype != torch.uint16}
    arrays = {
        name: tensor.view(torch.uint16).numpy() if tensor.dtype == torch.bfloat16 else tensor.numpy()
        for name, tensor in kept.items()
    }
    path.write_bytes(pickle.dumps({**arrays, "by.columns": np.asfortranarray(np.arange(60.0).reshape(3, 4, 5))}, 4))
    loaded = {name: _tensor_of(array) for name, array in pickle.loads(path.read_bytes()).items()}
    # So Paddle reads it, too, which has no uint16.
    return path, {name: t.view(torch.bfloat16) if t.dtype == torch.uint16 else t for name, t in loaded.items()}


def _flax(folder: Path) -> tuple[Path, Tensors]:
    path, tensors = folder / "weights.msgpack", plain_tensors()
    arrays = {
        name: tensor.view(torch.uint16).numpy().view("V2") if tensor.dtype == torch.bfloat16 else tensor.numpy()
        for name, tensor in tensors.items()
    }
    path.write_bytes(packed(arrays, chunk=40))
    return path, tensors


CONTAINERS: dict[str, Callable[[Path], tuple[Path, Tensors]]] = {
    "torch bare": _torch_file(lambda tensors: tensors, lambda root: root),
    "torch nested": _torch_file(lambda tensors: {"model": tensors, "step": 3}, lambda root: root["model"]),
    "torch legacy bare": _torch_file(lambda tensors: tensors, lambda root: root, legacy=True),
    "torch legacy nested": _torch_file(
        lambda tensors: {"state_dict": tensors, "step": 3}, lambda root: root["state_dict"], legacy=True
    ),
    "Composer": _torch_file(lambda tensors: {"state": {"model": tensors}}, lambda root: root["state"]["model"]),
    "whole module": _whole_module(legacy=False),
    "whole module nested legacy": _whole_module(legacy=True, epoch=3),
    "safetensors": _safetensors_file,
    "HF single": _hf_single,
    "HF shards": _hf_shards,
    "HF pickled": _hf_pickled,
    "HF pickled shards": _bin_shards,
    "DCP": _distributed,
    "DCP of two ranks": _two_ranks,
    "DeepSpeed": _deepspeed,
    "ZeRO": _zero,
    "ZeRO, universal": _universal,
    "shards of ranks": _rank_shards,
    "files of ranks": _rank_files,
    "files of ranks, flattened": _flat_files,
    "pipeline": _pipeline,
    "adapter": _adapter,
    "prefixes": _prefixed,
    "Flax": _flax,
    "pdparams": _pdparams,
    "npz": _npz(np.savez),
    "npz, compressed": _npz(np.savez_compressed),
}
