"""The files of torch before 1.6: one pickle after the other, then the storages. Cut or forged ones are named."""

from __future__ import annotations

import collections
import io
import pickle
import struct
from pathlib import Path
from typing import Any

import pytest
import torch

from ema_cli.errors import CheckpointError, EmaError, IncompleteCheckpoint, NoWeights
from ema_cli.formats import open_checkpoint
from ema_cli.law.time import Unit
from tests.formats.pickles.pickled import Call
from tests.formats.reading import read_all, stored_bytes
from tests.hostile import stand_ins

W = {"layer.weight": torch.arange(6.0).reshape(2, 3), "layer.bias": torch.ones(2, dtype=torch.bfloat16)}
READ_W = {name: stored_bytes(tensor) for name, tensor in W.items()}
MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
SYSTEM = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}


def save(folder: Path, saved: object, name: str = "a.pt", protocol: int = 2) -> Path:
    """Let torch save something as it did then."""
    torch.save(saved, folder / name, _use_new_zipfile_serialization=False, pickle_protocol=protocol)
    return folder / name


def refusal(path: Path) -> EmaError:
    """Return the error that opening the file gives; it must name the file once, in one printable line."""
    with pytest.raises(EmaError) as caught:
        open_checkpoint(path)
    assert str(caught.value).count(str(path)) == 1
    assert str(caught.value).isprintable()
    return caught.value


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_any_pickle_protocol(protocol: int, tmp_path: Path) -> None:
    """Every protocol that torch can write is read, and the clock with it."""
    path = save(tmp_path, {"model": W, "step": torch.tensor(70_000), "beside": [b"bytes", {1}, 2j]}, protocol=protocol)
    checkpoint = open_checkpoint(path)
    assert read_all(checkpoint.tensors) == READ_W
    assert checkpoint.format == "torch legacy"
    assert checkpoint.clock(Unit.BATCH) == 70_000


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_storages_of_other_types_between_those_that_are_read(tmp_path: Path) -> None:
    """Optimizer states, masks, quantized and half-complex tensors take their place among the storages."""
    beside = {
        "half complex": torch.zeros(3, dtype=torch.int16).repeat(2).view(torch.complex32),
        "quantized": torch.quantize_per_tensor(torch.ones(5), 0.1, 0, torch.qint8),
        "quantized wide": torch.quantize_per_tensor(torch.ones(5), 0.1, 0, torch.qint32),
        "bools": torch.tensor([True, False, True]),
        "empty": torch.zeros(0),
        "double": torch.ones(3, dtype=torch.complex128),
        "bytes": torch.ones(7, dtype=torch.uint8),
    }
    path = save(tmp_path, {"model": {"first": torch.randn(3), **W}, "beside": beside, "last": torch.ones(2)})
    assert {name: data for name, data in read_all(open_checkpoint(path).tensors).items() if name in W} == READ_W


def test_views_share_a_storage(tmp_path: Path) -> None:
    """Tied tensors and views read from the one storage that is stored, each its own part of it."""
    base = torch.arange(12.0).reshape(3, 4)
    tensors = {"a": base, "tied": base, "row": base[1], "turned": base.t(), "every": base[:, ::2]}
    weights = open_checkpoint(save(tmp_path, tensors)).tensors
    assert read_all(weights) == {name: stored_bytes(tensor) for name, tensor in tensors.items()}
    assert weights.place("a") == weights.place("tied")
    assert weights.place("a") != weights.place("turned")


def test_the_source_of_a_module_does_not_matter(tmp_path: Path) -> None:
    """torch notes beside a module's class where its source lies; the tensors are found all the same."""
    module = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    found = read_all(open_checkpoint(save(tmp_path, {"model": module, "epoch": 1})).tensors)
    assert found == {name: stored_bytes(tensor) for name, tensor in module.state_dict().items()}


def test_nothing_in_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls in the file leave the weights as they are, and no trace."""
    monkeypatch.chdir(tmp_path)
    path = save(tmp_path, {"beside": Call(stand_ins.create, "canary"), "model": W})
    assert read_all(open_checkpoint(path).tensors) == READ_W
    assert not Path("canary").exists()


def test_a_file_cut_anywhere_is_incomplete(tmp_path: Path) -> None:
    """Whatever the length it was cut to, past the first bytes, the file is said to be half-written."""
    whole = save(tmp_path, {"model": W, "step": 1}).read_bytes()
    path = tmp_path / "cut.pt"
    for length in [*range(8, len(whole), 7), len(whole) - 1]:
        path.write_bytes(whole[:length])
        assert type(refusal(path)) is IncompleteCheckpoint, length


@pytest.mark.parametrize("extra", [b"\0", b"x" * 100])
def test_bytes_after_the_end_are_an_error(extra: bytes, tmp_path: Path) -> None:
    """What follows the last storage is not torch's: the file is damaged."""
    path = save(tmp_path, W)
    path.write_bytes(path.read_bytes() + extra)
    assert f"{len(extra)} bytes follow the last storage" in str(refusal(path))


class _Storage(tuple):
    pass


class _Pickler(pickle.Pickler):
    def persistent_id(self, value: object) -> object:
        """Store storages as torch does."""
        return tuple(value) if isinstance(value, _Storage) else None


class Stored:
    """A tensor whose storage has any identifier."""

    def __init__(self, storage: tuple[Any, ...], shape: tuple[int, ...] = (2, 3)) -> None:
        self.storage, self.shape = storage, shape

    def __reduce__(self) -> tuple[Any, ...]:
        """Return torch's recipe for a tensor."""
        strides = torch.empty(self.shape, device="meta").stride()
        arguments = (_Storage(self.storage), 0, self.shape, strides, False, collections.OrderedDict())
        return torch._utils._rebuild_tensor_v2, arguments


GOOD = ("storage", torch.FloatStorage, "0", "cpu", 6, None)


def forge(folder: Path, **changes: Any) -> Path:
    """Write the parts of a legacy file of one tensor 'w' by hand, with changes."""
    parts: dict[str, Any] = {"magic": MAGIC, "protocol": PROTOCOL, "system": SYSTEM}
    parts |= {"root": {"w": Stored(GOOD)}, "keys": ["0"], "count": 6, "data": bytes(range(24))}
    parts |= changes
    file = io.BytesIO()
    for name in ("magic", "protocol", "system", "root", "keys"):
        _Pickler(file, 2).dump(parts[name])
    file.write(struct.pack("<q", parts["count"]) + parts["data"])
    (folder / "a.pt").write_bytes(file.getvalue())
    return folder / "a.pt"


def test_the_handmade_file_is_good(tmp_path: Path) -> None:
    """The file that the next tests vary is one that torch reads, and we the same."""
    path = forge(tmp_path)
    assert read_all(open_checkpoint(path).tensors) == {"w": bytes(range(24))}
    assert stored_bytes(torch.load(path, weights_only=True)["w"]) == bytes(range(24))


def tensor(*identifier: Any) -> dict[str, Any]:
    """Return the change that gives 'w' another storage."""
    return {"root": {"w": Stored(identifier)}}


TWICE = {"root": {"w": Stored(GOOD), "v": Stored(("storage", torch.IntStorage, "0", "cpu", 6, None))}}
FORGED: dict[str, tuple[dict[str, Any], type[EmaError], str]] = {
    "another pickle": ({"magic": {"w": 1}}, NoWeights, "a pickle, but not one that torch.save wrote"),
    "another protocol": ({"protocol": 7}, CheckpointError, "of an unknown protocol"),
    "big-endian": ({"system": {**SYSTEM, "little_endian": False}}, CheckpointError, "not little-endian"),
    "no system": ({"system": None}, CheckpointError, "not little-endian"),
    "keys that are no list": ({"keys": "0"}, CheckpointError, "does not fit its tensors"),
    "a key that no tensor has": ({"keys": ["0", "1"]}, CheckpointError, "does not fit its tensors"),
    "a key twice": ({"keys": ["0", "0"]}, CheckpointError, "has one twice"),
    "a key too few": ({"keys": [], "data": b""}, CheckpointError, "8 bytes follow the last storage"),
    "another count": ({"count": 5}, CheckpointError, "a storage of 6 elements is stored with 5"),
    "a negative count": ({"count": -6}, CheckpointError, "a storage of 6 elements is stored with -6"),
    "fewer bytes": ({"data": bytes(20)}, IncompleteCheckpoint, "cut short"),
    "more bytes": ({"data": bytes(28)}, CheckpointError, "4 bytes follow the last storage"),
    "one storage described in two ways": (TWICE, CheckpointError, "describes the storage '0' in two ways"),
    "a view of a storage": (
        tensor("storage", torch.FloatStorage, "0", "cpu", 6, ("1", 0, 6)),
        CheckpointError,
        "a view of another, as torch before 0.4 wrote it",
    ),
    "no storage": (tensor("anything", 1), CheckpointError, "refers to something outside"),
    "a storage of an unknown type": (
        tensor("storage", collections.OrderedDict, "0", "cpu", 6, None),
        CheckpointError,
        "a storage of an unknown type, OrderedDict",
    ),
    "a shape beyond the end": ({"root": {"w": Stored(GOOD, (2, 4))}}, CheckpointError, "'w' reaches past the end"),
}  # fmt: skip


@pytest.mark.parametrize("label", FORGED)
def test_parts_that_do_not_belong_together_are_refused(label: str, tmp_path: Path) -> None:
    """Parts that do not belong together are an error; no byte is taken for another tensor's."""
    changes, kind, message = FORGED[label]
    error = refusal(forge(tmp_path, **changes))
    assert type(error) is kind
    assert message in str(error)


def test_a_tensor_whose_storage_is_not_listed(tmp_path: Path) -> None:
    """A storage that the list of keys leaves out is missing, by the tensor's name."""
    other = Stored(("storage", torch.FloatStorage, "1", "cpu", 6, None))
    assert "'v' has its bytes in a storage that is missing" in str(
        refusal(forge(tmp_path, root={"w": Stored(GOOD), "v": other}))
    )
