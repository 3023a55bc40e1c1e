"""torch's zip files: whatever stands beside the weights, they are read truly; what cannot be is refused by name."""

from __future__ import annotations

import argparse
import collections
import datetime
import os
import pathlib
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ema_cli.errors import CheckpointError, EmaError, IncompleteCheckpoint, NoWeights
from ema_cli.formats import open_checkpoint
from tests.formats.pickles.pickled import Call, Color, Config, some_function
from tests.formats.reading import read_all, stored_bytes
from tests.hostile import stand_ins

W = {"layer.weight": torch.arange(6.0).reshape(2, 3), "layer.bias": torch.ones(2, dtype=torch.bfloat16)}
READ_W = {name: stored_bytes(tensor) for name, tensor in W.items()}


def save(folder: Path, saved: object, name: str = "a.pt", **options: Any) -> Path:
    """Let torch save something."""
    torch.save(saved, folder / name, **options)
    return folder / name


def refusal(path: Path) -> EmaError:
    """Return the error that opening the file gives; it must name the file once, in one printable line."""
    with pytest.raises(EmaError) as caught:
        open_checkpoint(path)
    assert str(caught.value).count(str(path)) == 1
    assert str(caught.value).isprintable()
    return caught.value


@pytest.mark.parametrize("name", ["a.pt", "a.pth", "a.bin", "a.ckpt", "a.tar", "a.pth.tar", "a.whatever", "a"])
def test_any_suffix(name: str, tmp_path: Path) -> None:
    """A torch file is known by its first bytes, not by its name."""
    checkpoint = open_checkpoint(save(tmp_path, {"model": W}, name))
    assert read_all(checkpoint.tensors) == READ_W
    assert (checkpoint.name, checkpoint.format) == (name, "torch zip")


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_any_pickle_protocol(protocol: int, tmp_path: Path) -> None:
    """Every protocol that torch can write is read, for dtypes with and without a storage class of their own."""
    tensors = {**W, "short": torch.ones(3, dtype=torch.uint16), "n" * 300: torch.zeros(1, 2).t()}
    path = save(tmp_path, {"model": tensors, "step": 70_000, "beside": [b"bytes", {1}, 2j]}, pickle_protocol=protocol)
    assert read_all(open_checkpoint(path).tensors) == {name: stored_bytes(t) for name, t in tensors.items()}


BESIDE: dict[str, Callable[[], object]] = {
    "argparse.Namespace": lambda: argparse.Namespace(lr=0.1, nested=argparse.Namespace(x=1)),
    "dataclass": lambda: Config(3, [torch.ones(2)]),
    "datetime": lambda: [datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC), datetime.timedelta(1)],
    "numpy": lambda: {"array": np.arange(5), "scalar": np.float32(2), "random": np.random.default_rng(1)},
    "enum": lambda: [Color.RED, {Color.RED: 1}],
    "pathlib": lambda: pathlib.Path("/a/b"),
    "names": lambda: [some_function, len, Config, torch.float32, torch.device("cpu")],
    "defaultdict": lambda: collections.defaultdict(list, a=[1]),
    "sets": lambda: [{1, 2}, frozenset("ab"), {(1, 2)}],
    "keys that are sets or nested": lambda: {frozenset({1}): 1, ((1, 2), 3): 2, (torch.float32, "x"): 3},
    "complex": lambda: [1 + 2j, torch.complex(torch.ones(1), torch.ones(1))],
    "huge numbers": lambda: {10**5000: 10**5000},
    "optimizer state": lambda: {
        "state": {0: {"step": torch.tensor(1.0), "exp_avg": torch.ones(2), "exp_avg_sq": torch.ones(2)}},
        "param_groups": [{"lr": 1e-3, "betas": (0.9, 0.999), "foreach": None, "params": [0]}],
    },
    "module": lambda: torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2)),
    "tensors without bytes": lambda: [torch.eye(3).to_sparse(), torch.ones(3, device="meta")],
    "other dtypes": lambda: [torch.ones(3).to(torch.float8_e4m3fn), torch.ones(3, dtype=torch.complex128)],
    "storage": lambda: torch.ones(3).untyped_storage(),
    "calls": lambda: [Call(stand_ins.create, "canary"), Call(stand_ins.Creates, "canary"), Call(open, "canary", "w")],
    "a call as key": lambda: {Call(stand_ins.create, "canary"): Call(open, "canary", "w")},
    "list that holds itself": lambda: (lambda cycle: cycle.append(cycle) or cycle)([]),
}


@pytest.mark.slow
@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("label", BESIDE)
def test_objects_beside_the_weights_are_not_in_the_way(
    label: str, protocol: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any object elsewhere in the file leaves the weights as they are; none of it runs, not even where it could."""
    monkeypatch.chdir(tmp_path)
    beside = BESIDE[label]()
    path = save(tmp_path, {"beside": beside, "model": W, "step": beside}, pickle_protocol=protocol)
    assert read_all(open_checkpoint(path).tensors) == READ_W
    assert not Path("canary").exists()


class Plain(torch.Tensor):
    """A subclass without data of its own."""


class Wrapper(torch.Tensor):
    """A subclass that wraps other tensors, and has no data itself."""

    def __new__(cls) -> Wrapper:
        return torch.Tensor._make_wrapper_subclass(cls, (2,))

    __torch_dispatch__ = classmethod(lambda *_: NotImplemented)


REFUSED_TENSORS: dict[str, tuple[Callable[[], object], str]] = {
    "sparse": (lambda: torch.eye(3).to_sparse(), "(sparse tensor)"),
    "sparse rows": (lambda: torch.eye(3).to_sparse_csr(), "(sparse tensor)"),
    "quantized": (lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8), "(qtensor)"),
    "nested": (lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]), "(nested tensor)"),
    "wrapper": (Wrapper, f"tensor subclass {__name__}.Wrapper"),
    "subclass": (lambda: torch.ones(2).as_subclass(Plain), f"tensor subclass {__name__}.Plain"),
    "meta": (lambda: torch.ones(2, device="meta"), "(meta tensor no storage)"),
    "list": (lambda: [torch.ones(2)], "it is not a tensor but a list"),
    "call": (lambda: Call(stand_ins.create, "canary"), "it is not a tensor but a tests.hostile.stand_ins.create"),
    "object": (lambda: Color.RED, "it is not a tensor but a tests.formats.pickles.pickled.Color"),
}


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("kind", REFUSED_TENSORS)
def test_a_tensor_that_cannot_be_read_truly_is_refused(kind: str, tmp_path: Path) -> None:
    """A tensor of a kind we do not know, among the weights, is an error that names it and the kind."""
    make, message = REFUSED_TENSORS[kind]
    error = refusal(save(tmp_path, {"model": {**W, "head.weight": make()}}))
    assert type(error) is CheckpointError
    assert "'head.weight' cannot be averaged: it is" in str(error)
    assert message in str(error)
    beside = save(tmp_path, {"model": W, "beside": {"head.weight": make()}}, "b.pt")
    assert read_all(open_checkpoint(beside).tensors) == READ_W


def test_a_dtype_that_has_no_name_in_safetensors_is_refused(tmp_path: Path) -> None:
    """The error names tensor and dtype, and says what to average instead."""
    tensor = torch.zeros(2, dtype=torch.int16).view(torch.complex32)
    error = refusal(save(tmp_path, {"model": {**W, "head.weight": tensor}}))
    assert "'head.weight' has dtype complex32, which cannot be averaged" in str(error)
    assert error.hint == "average the run's full-precision checkpoints and convert the result"


@pytest.mark.parametrize("name", ["\ud800", "a\udfffb"])
def test_a_name_that_is_not_text_is_refused(name: str, tmp_path: Path) -> None:
    """A tensor's name that UTF-8 cannot hold could not be written again: it is refused, escaped."""
    error = refusal(save(tmp_path, {"model": {**W, name: torch.ones(1)}}))
    assert type(error) is CheckpointError
    assert name.encode("unicode_escape", "surrogatepass").decode() in str(error)


@pytest.mark.parametrize("name", [3, None, (1, 2), pytest.param(10**5000, id="huge")])
def test_a_name_that_is_no_text_is_refused(name: object, tmp_path: Path) -> None:
    """A tensor under a key that is no text has no name: an error. Other values under such keys are left out."""
    error = refusal(save(tmp_path, {"model": {**W, name: torch.ones(1)}}))
    assert "which is not a name" in str(error)
    beside = save(tmp_path, {"model": {**W, name: "no tensor"}}, "b.pt")
    assert read_all(open_checkpoint(beside).tensors) == READ_W


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_torchscript_archive_is_refused(tmp_path: Path) -> None:
    """A TorchScript archive is a program, and refused as one."""
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), str(tmp_path / "a.pt"))
    error = refusal(tmp_path / "a.pt")
    assert "a TorchScript archive, which is a program" in str(error)
    assert error.hint == "save the model's state_dict() and average those files"


@pytest.mark.parametrize(
    "saved", [{}, [1], 3, {"a": 1, "b": {"c": 2}}, {"model": {}}, torch.ones(2), pytest.param({10**5000: 1}, id="huge")]
)
def test_a_file_without_weights_holds_no_weights(saved: object, tmp_path: Path) -> None:
    """What holds no tensors in a place we know is passed over in a search, whatever its keys."""
    assert type(refusal(save(tmp_path, saved))) is NoWeights


@pytest.mark.parametrize("tenth", range(10))
def test_a_file_cut_short_is_incomplete(tenth: int, tmp_path: Path) -> None:
    """A file cut at any tenth of its length is still being written, as far as we can tell."""
    path = save(tmp_path, {"model": {"w": torch.ones(5000)}, "step": 1})
    os.truncate(path, path.stat().st_size * tenth // 10)
    assert type(refusal(path)) is IncompleteCheckpoint


class Stored:
    """A tensor with any description, for a file made by hand."""

    def __init__(self, **changes: Any) -> None:
        self.parts = {"kind": torch.FloatStorage, "count": 6, "offset": 0, "shape": (2, 3), "strides": (3, 1)} | changes

    def __reduce__(self) -> tuple[Any, ...]:
        """Return torch's recipe for a tensor."""
        part = self.parts
        storage = _Storage(("storage", part["kind"], part.get("key", "0"), "cpu", part["count"]))
        arguments = (storage, part["offset"], part["shape"], part["strides"], False, collections.OrderedDict())
        return torch._utils._rebuild_tensor_v2, (*arguments, *part.get("rest", ()))


class _Storage(tuple):
    pass


class _Pickler(pickle.Pickler):
    def persistent_id(self, value: object) -> object:
        """Store storages as torch does."""
        return tuple(value) if isinstance(value, _Storage) else None


def forge(folder: Path, tensor: Stored, size: int = 24, byteorder: bytes | None = b"little", name: str = "w") -> Path:
    """Write a file as torch does, of one tensor and one storage of `size` bytes: 0, 1, 2, ..."""
    path = folder / "a.pt"
    with zipfile.ZipFile(path, "w") as archive:
        with archive.open("a/data.pkl", "w") as file:
            _Pickler(file, 2).dump({name: tensor})
        archive.writestr("a/version", b"3\n")
        if byteorder is not None:
            archive.writestr("a/byteorder", byteorder)
        archive.writestr("a/data/0", np.arange(size, dtype=np.uint8).tobytes())
    return path


@pytest.mark.parametrize("byteorder", [b"little", None])
def test_the_handmade_file_is_good(byteorder: bytes | None, tmp_path: Path) -> None:
    """The file that the next tests vary is one that torch reads, and we the same; old files state no byte order."""
    path = forge(tmp_path, Stored(), byteorder=byteorder)
    assert read_all(open_checkpoint(path).tensors) == {"w": bytes(range(24))}
    if byteorder:
        assert stored_bytes(torch.load(path, weights_only=True)["w"]) == bytes(range(24))


FORGED: dict[str, tuple[dict[str, Any], str]] = {
    "a storage too large for its entry": ({"count": 7}, "'w' has a storage of 28 bytes, but 24 are in the file"),
    "a storage too small for its entry": ({"count": 5}, "'w' has a storage of 20 bytes, but 24 are in the file"),
    "a storage that is missing": ({"key": "1"}, "'w' has its bytes in a storage that is missing"),
    "a storage that is another entry": ({"key": "../version"}, "'w' has its bytes in a storage that is missing"),
    "a shape beyond the end": ({"shape": (2, 4)}, "'w' reaches past the end of its storage"),
    "strides beyond the end": ({"strides": (4, 1)}, "'w' reaches past the end of its storage"),
    "an offset beyond the end": ({"offset": 1}, "'w' reaches past the end of its storage"),
    "strides of 63 bits": ({"strides": ((1 << 63) - 1, 1)}, "'w' reaches past the end of its storage"),
    "a stride of 64 bits": ({"strides": (1 << 63, 1)}, "not counts"),
    "a negative stride": ({"offset": 5, "strides": (-3, -1)}, "not counts"),
    "a negative offset": ({"offset": -1}, "not counts"),
    "fewer strides than sizes": ({"strides": (1,)}, "do not belong together"),
    "65 dimensions": ({"shape": (1,) * 65, "strides": (1,) * 65}, "do not belong together"),
    "expanded to terabytes": ({"shape": (1 << 40,), "strides": (0,)}, "'w' is expanded to 1099511627776 elements"),
    "a conjugate bit on floats": ({"rest": ({"conj": True},)}, "'w' is F32 with a bit that only others have"),
    "a negative bit on integers": (
        {"kind": torch.IntStorage, "rest": ({"neg": True},)},
        "'w' is I32 with a bit that only others have",
    ),
}  # fmt: skip


@pytest.mark.parametrize("label", FORGED)
def test_a_tensor_that_does_not_fit_its_storage_is_refused(label: str, tmp_path: Path) -> None:
    """A description that leads outside the tensor's own bytes is an error; no other byte of the file is read."""
    changes, message = FORGED[label]
    error = refusal(forge(tmp_path, Stored(**changes)))
    assert type(error) is CheckpointError
    assert message in str(error)


def test_a_clock_without_its_bytes_is_named(tmp_path: Path) -> None:
    """A clock that is a tensor whose bytes are not there is an error under the clock's own name."""
    error = refusal(forge(tmp_path, Stored(kind=torch.LongStorage, count=9, shape=(), strides=()), name="step"))
    assert "'step' has a storage of 72 bytes, but 24 are in the file" in str(error)


@pytest.mark.parametrize("order", [b"big", b"", b"middle"])
def test_another_byte_order_is_refused(order: bytes, tmp_path: Path) -> None:
    """A file whose bytes are not in little-endian order says so."""
    error = refusal(forge(tmp_path, Stored(), byteorder=order))
    assert f"its bytes are in {order!r} order; only little-endian is read" in str(error)
