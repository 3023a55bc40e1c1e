"""Tensors of small models, always the same, and files of torch's of which equal tensors give equal bytes."""

from __future__ import annotations

import json
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

Tensors = dict[str, torch.Tensor]

DTYPES = (
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64, torch.bool,
    torch.int64, torch.int32, torch.int16, torch.int8, torch.uint64, torch.uint32, torch.uint16, torch.uint8,
)  # fmt: skip


def model(step: int) -> Tensors:
    """Return a model after so many steps: two layers, a counter that is copied, a mask that never changes."""
    start, noise = torch.Generator().manual_seed(0), torch.Generator().manual_seed(1 + step)
    shapes = {"embed.weight": (11, 4)}
    for layer in (0, 1):
        shapes |= {f"layers.{layer}.attention.weight": (4, 4), f"layers.{layer}.attention.bias": (4,)}
        shapes |= {f"layers.{layer}.norm.weight": (4,)}
    tensors = {
        name: torch.randn(shape, generator=start) + 0.3 * torch.randn(shape, generator=noise)
        for name, shape in {**shapes, "head.weight": (11, 4)}.items()
    }
    counted = {"norm.num_batches_tracked": torch.tensor(step), "mask": torch.tensor([True, False, True])}
    return {**tensors, **counted}


def converted(tensors: Tensors, dtype: torch.dtype) -> Tensors:
    """Return the tensors with all floats in one type."""
    return {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}


def every_dtype(step: int) -> Tensors:
    """Return a tensor of each type, edge shapes, edge values and edge names; none shares its bytes."""
    random = torch.Generator().manual_seed(step)
    tensors: Tensors = {}
    for dtype in DTYPES:
        name = f"of.{str(dtype).removeprefix('torch.')}"
        if dtype.is_floating_point or dtype.is_complex:
            tensors[name] = torch.randn(3, 5, generator=random).to(dtype)
        else:
            tensors[name] = torch.randint(0, 100, (3, 5), generator=random).to(dtype)
    tensors["extremes"] = torch.tensor([torch.iinfo(torch.int64).min, torch.iinfo(torch.int64).max])
    tensors["edges"] = torch.tensor([0.0, -0.0, 1e-45, 3.4e38, -1e-38])
    tensors["scalar"] = torch.tensor(2.5 * step)
    tensors["empty"] = torch.zeros(0)
    tensors["empty.matrix"] = torch.zeros(3, 0, 2, dtype=torch.bfloat16)
    tensors["one"] = torch.ones(1, 1, 1, 1, dtype=torch.float16)
    for name in ("n" * 300, "\u5c64.\u91cd\u307f", 'quo"te\\', "tab\tname", "a b", "."):
        tensors[name] = torch.randn(4, generator=random)
    return tensors


def strided(step: int) -> Tensors:
    """Return tensors as only torch stores them: tied, transposed, sliced, lazily conjugated, with attributes."""
    random = torch.Generator().manual_seed(100 + step)
    base = torch.randn(6, 8, generator=random)
    waves = torch.randn(4, 6, generator=random, dtype=torch.complex64)
    tagged = torch.nn.Parameter(torch.randn(3, generator=random))
    tagged.tag = {"kind": "python attribute"}  # type: ignore[attr-defined]
    return {
        "tied.one": base,
        "tied.two": base,
        "same.bytes.other.shape": base.view(8, 6),
        "row": base[2],
        "transposed": base.t(),
        "sliced": base[1:6:2, ::3],
        "sliced.halves": torch.randn(9, 7, generator=random).to(torch.bfloat16)[::4, 1::2],
        "expanded": torch.randn(3, 1, generator=random).expand(2, 3, 5),
        "windows": (torch.arange(10.0, dtype=torch.float64) * step).unfold(0, 4, 1),
        "channels.last": torch.randn(2, 3, 4, 5, generator=random).to(memory_format=torch.channels_last),
        "permuted": torch.randn(3, 4, 5, generator=random).permute(2, 0, 1),
        "large.transposed": torch.randn(300, 250, generator=random).t(),
        "empty.strided": torch.zeros(4, 6)[:, ::2][2:2],
        "bools": torch.tensor([[True, False], [True, True]]).t(),
        "conj": waves.conj(),
        "conj.transposed": waves.t().conj()[1:],
        "neg": torch.randn(4, 6, generator=random, dtype=torch.complex64).conj().imag,
        "neg.halves": torch._neg_view(torch.randn(5, generator=random).half()),
        "parameter": torch.nn.Parameter(torch.randn(2, 2, generator=random)),
        "parameter.frozen": torch.nn.Parameter(torch.ones(2), requires_grad=False),
        "parameter.attribute": tagged,
    }


class Net(torch.nn.Sequential):
    """A module to be pickled whole: parameters, a persistent and a transient buffer, a counter, tied layers."""

    def __init__(self, step: int) -> None:
        torch.manual_seed(step)
        inner = torch.nn.Linear(3, 3)
        super().__init__(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3), inner, inner)
        self.register_buffer("transient", torch.ones(2), persistent=False)


def save(path: Path, value: object) -> Path:
    """Save with torch, making the folder first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(value, path)
    return path


def save_tensors(path: Path, tensors: Tensors, **metadata: str) -> Path:
    """Save as safetensors, making the folder first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, metadata=metadata or None)
    return path


def save_text(path: Path, content: Any) -> Path:
    """Write a text, or any other value as JSON, making the folder first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content, indent=2) + "\n")
    return path


def save_legacy(path: Path, value: object) -> Path:
    """Save as torch did before 1.6; its own writer calls storages by their addresses, and sorts by these."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sizes = {"short": 2, "int": 4, "long": 4}
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": sizes}
    with path.open("wb") as file:
        for head in (0x1950A86A20F9469CFC6C, 1001, system):
            pickle.dump(head, file, protocol=2)
        pickler = _LegacyPickler(file, protocol=2)
        pickler.dump(value)
        pickle.dump(list(pickler.keys.values()), file, protocol=2)
        file.flush()
        for storage, itemsize in pickler.storages:
            storage._write_file(file, True, True, itemsize)
    return path


class _LegacyPickler(pickle.Pickler):
    """Calls storages by their order."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.keys: dict[int, str] = OrderedDict()
        self.storages: list[tuple[Any, int]] = []

    def persistent_id(self, value: object) -> object:
        """Return what stands for a storage."""
        if not isinstance(value, torch.storage.TypedStorage):
            return None
        storage = value._untyped_storage
        if storage._cdata not in self.keys:
            self.keys[storage._cdata] = str(10_000 + len(self.keys))
            self.storages.append((storage, value.dtype.itemsize))
        kind = getattr(torch, value._pickle_storage_type())
        return "storage", kind, self.keys[storage._cdata], "cpu", value._size(), None
