"""Tensors described by a pickle: dtypes, places and clocks; what does not lie in its storage is refused by name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ema_cli.checkpoint import MAX_TENSORS
from ema_cli.dtypes import TORCH_DTYPES
from ema_cli.errors import CheckpointError
from ema_cli.formats.before import Before
from ema_cli.formats.pickles.values import Inert, Refused, Storage, TensorRef
from ema_cli.formats.torch_save import content
from ema_cli.formats.torch_save.content import TorchFile
from ema_cli.formats.torch_save.file import open_torch
from ema_cli.formats.torch_save.tensors import TorchTensors
from ema_cli.storage.location import location
from tests.formats.pickles.pickled import Memory
from tests.formats.reading import read_all, read_range, stored_bytes

DATA = bytes(range(240))


def opened(folder: Path, saved: object, name: str = "a.pt", *, legacy: bool = False) -> TorchFile:
    """Save something with torch and open it."""
    torch.save(saved, folder / name, _use_new_zipfile_serialization=not legacy)
    return open_torch(location(folder / name).open())


def file_of(**sizes: int) -> TorchFile:
    """Return a file in memory with storages of these sizes, one after the other."""
    spans, at = {}, 0
    for key, size in sizes.items():
        spans[key] = (at, size)
        at += size
    return TorchFile(Memory(DATA), None, lambda keys: {key: spans[key] for key in keys if key in spans})


def ref(dtype: str, shape: tuple[int, ...], strides: tuple[int, ...], **changes: object) -> TensorRef:
    """Return the description of a tensor in a storage of 24 bytes."""
    fields = {"key": "a", "count": 24, "offset": 0, "kind": None, "conjugate": False, "negative": False} | changes
    storage = Storage(fields["kind"], fields["key"], fields["count"])
    return TensorRef(storage, dtype, fields["offset"], shape, strides, fields["conjugate"], fields["negative"])


@pytest.mark.parametrize(("shape", "strides"), [((4, 6), (1, 4)), ((), ())])
def test_four_bit_floats_out_of_order_are_refused(shape: tuple[int, ...], strides: tuple[int, ...]) -> None:
    """A transposed F4 would tear pairs apart, and a scalar is half of one."""
    with pytest.raises(CheckpointError, match="'w' is F4 that does not lie in order"):
        file_of(a=24).tensors({"w": ref("float4_e2m1fn_x2", shape, strides)})


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    "tensor",
    [
        torch.tensor(7),
        torch.tensor([300], dtype=torch.int16),
        torch.tensor([[-3]]),
        torch.tensor(200, dtype=torch.uint8),
        torch.tensor(7.0),
        torch.tensor([0.5], dtype=torch.float64),
    ],
)
def test_scalars_are_read(tensor: torch.Tensor, legacy: bool, tmp_path: Path) -> None:
    """A tensor of one number is read as its value, whatever its shape and width."""
    file = opened(tmp_path, {"before": torch.ones(5), "step": tensor}, legacy=legacy)
    assert file.scalar("step", file.root["step"]) == tensor.item()


@pytest.mark.parametrize(
    "tensor", [torch.tensor(7.0).half(), torch.tensor(True), torch.tensor([1, 2]), torch.zeros(0, dtype=torch.int64)]
)
def test_a_scalar_is_one_integer_or_wide_float(tensor: torch.Tensor, tmp_path: Path) -> None:
    """Half-precision floats, which cannot count far, booleans, and none or several elements are no counters."""
    file = opened(tmp_path, {"step": tensor})
    assert file.scalar("step", file.root["step"]) is None


def test_a_view_of_a_counter_is_its_own_element(tmp_path: Path) -> None:
    """One element of a longer tensor is read where it lies."""
    counters = torch.tensor([10, 20, 30])
    file = opened(tmp_path, {"step": counters[1], "all": counters})
    assert file.scalar("step", file.root["step"]) == 20


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (ref("float32", (6,), (1,), key="b"), "'w' has its bytes in a storage that is missing"),
        (ref("float32", (6,), (1,), count=25), "'w' has a storage of 25 bytes, but 24 are in the file"),
        (ref("float32", (7,), (1,)), "'w' reaches past the end of its storage"),
        (ref("float32", (6,), (1,), offset=1), "'w' reaches past the end of its storage"),
        (ref("float32", (2, 2), (4, 2)), "'w' reaches past the end of its storage"),
        (ref("float32", (1 << 30,), (0,)), "'w' is expanded to 1073741824 elements from a few bytes"),
        (ref("float32", (6,), (1,), conjugate=True), "'w' is F32 with a bit that only others have"),
        (ref("int32", (6,), (1,), negative=True), "'w' is I32 with a bit that only others have"),
        (ref("complex32", (6,), (1,)), "'w' has dtype complex32, which cannot be averaged"),
        (Refused("it is sparse"), "'w' cannot be averaged: it is sparse"),
        (Inert("some.Class"), "'w' cannot be averaged: it is not a tensor but a some.Class"),
        ([1], "'w' cannot be averaged: it is not a tensor but a list"),
    ],
)
def test_a_tensor_outside_its_storage_is_refused(tensor: object, message: str) -> None:
    """A tensor that does not lie in its storage, or is none, is an error with its name; never other bytes."""
    with pytest.raises(CheckpointError) as caught:
        file_of(a=24).tensors({"w": tensor})
    assert str(caught.value).startswith("memory: ")
    assert message in str(caught.value)


def test_a_tensor_without_elements_may_lie_anywhere() -> None:
    """Nothing is read of it, wherever it is said to begin."""
    weights = file_of(a=24).tensors({"w": ref("float32", (0, 3), (9, 9), offset=1000)})
    assert (weights.specs["w"].nbytes, read_range(weights, "w", 0, 0)) == (0, b"")


def test_too_many_tensors_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond a number that no model has, nothing is taken in."""
    assert MAX_TENSORS > 100_000
    monkeypatch.setattr(content, "MAX_TENSORS", 2)
    with pytest.raises(CheckpointError, match="holds 3 tensors; at most 2 are read"):
        file_of(a=24).tensors(dict.fromkeys("abc", ref("float32", (6,), (1,))))


def test_names_that_torch_gives_dtypes() -> None:
    """Every dtype of torch is known, or refused by name: none is taken for another of the same size."""
    known = {
        name: TORCH_DTYPES.get(str(dtype).removeprefix("torch."))
        for name, dtype in vars(torch).items()
        if isinstance(dtype, torch.dtype)
    }
    read = {str(getattr(torch, name)) for name, dtype in known.items() if dtype is not None}
    for name, dtype in known.items():
        if dtype is not None and dtype.name != "F4":
            assert dtype.itemsize == getattr(torch, name).itemsize
    assert not any(kind in name for name in read for kind in ("qint", "quint", "complex32", "bits"))
    assert {"torch.float32", "torch.bfloat16", "torch.complex128", "torch.uint16", "torch.bool"} <= read


def test_checkpoints_of_a_run_are_described_alike_and_read_each_from_its_own_file(tmp_path: Path) -> None:
    """What the first was helps to read the second, whose numbers and places are its own; one of other shapes too."""
    before = Before()
    for step in (9, 10, 500, 70_000):  # in names and clocks of several lengths
        turned = torch.randn(4, 3).t()
        saved = {"step": step, "model": {f"w{number:03}": torch.randn(3, 5) for number in range(100)}, "t": turned}
        if step == 500:
            saved["model"]["w007"] = torch.randn(3, 6)
        opened(tmp_path, saved, f"step-{step}.pt")
        file = open_torch(location(tmp_path / f"step-{step}.pt").open(), before)
        assert file.root["step"] == step
        weights = file.tensors(file.root["model"] | {"t": file.root["t"]})
        for name, tensor in (saved["model"] | {"t": turned}).items():
            assert weights.specs[name].shape == tuple(tensor.shape)
            assert read_all(weights)[name] == stored_bytes(tensor)


def test_a_description_as_before_does_not_hide_a_storage_that_is_missing_or_of_another_size() -> None:
    """Where the bytes of the second file are others, it is refused as it would have been without the first."""
    refs, before = {"w": ref("float32", (6,), (1,)), "v": ref("float32", (3,), (2,))}, Before()

    def tensors(refs: dict[str, TensorRef], **sizes: int) -> TorchTensors:
        return replace(file_of(**sizes), before=before).tensors(refs)

    assert tensors(refs, a=24).specs["w"].shape == (6,)
    assert list(tensors(refs, x=8, a=24).offsets) == [8, 8]
    assert list(tensors(dict(reversed(refs.items())), a=24).specs) == ["v", "w"]
    tensors(refs, a=24)
    for wrong, fact in (({"b": 24}, "'w' has its bytes in a storage that is missing"),
                        ({"a": 20}, "'w' has a storage of 24 bytes, but 20 are in the file")):  # fmt: skip
        with pytest.raises(CheckpointError) as caught:
            tensors(refs, **wrong)
        assert caught.value.fact == fact
