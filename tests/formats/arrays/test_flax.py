"""Flax's msgpack: arrays are read where they lie, in chunks or whole; the model is told from what stands beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from ema_cli.errors import CheckpointError, EmaError, IncompleteCheckpoint
from ema_cli.formats import open_checkpoint
from ema_cli.formats.options import ReadOptions
from ema_cli.law.time import Unit
from tests.conftest import Cli
from tests.formats.arrays.flax_files import extension, packed
from tests.formats.reading import read_all, read_range

RANDOM = np.random.default_rng(4)
PARAMS = {
    "Dense_0": {"kernel": RANDOM.normal(size=(40, 30)).astype("f4"), "bias": RANDOM.normal(size=30).astype("f2")},
    "layers": {"0": {"scale": np.frombuffer(RANDOM.bytes(12), "V2")}, "1": {"count": np.array(3)}},
}
NAMES = ["Dense_0.kernel", "Dense_0.bias", "layers.0.scale", "layers.1.count"]


def leaves(tree: dict[str, Any], prefix: str = "") -> dict[str, np.ndarray]:
    """Return the arrays of a tree by the places in it."""
    found = {}
    for key, value in tree.items():
        found.update(leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value})
    return found


def write(path: Path, tree: object, **more: int) -> Path:
    """Write what Flax makes of a tree."""
    path.write_bytes(packed(tree, **more))
    return path


@pytest.mark.parametrize("chunk", [1 << 30, 100, 8])
def test_arrays_are_read_where_they_lie(chunk: int, tmp_path: Path) -> None:
    """Whole, or in chunks one after the other: by any range."""
    checkpoint = open_checkpoint(write(tmp_path / "a.msgpack", PARAMS, chunk=chunk))
    expected = {name: array.tobytes() for name, array in leaves(PARAMS).items()}
    assert read_all(checkpoint.tensors) == expected
    data = expected["Dense_0.kernel"]
    assert read_range(checkpoint.tensors, "Dense_0.kernel", 400, 3000) == data[400:3000]
    assert [spec.dtype.name for spec in checkpoint.tensors.specs.values()] == ["F32", "F16", "BF16", "I64"]
    assert (checkpoint.format, checkpoint.notes, checkpoint.warnings) == ("Flax msgpack", (), ())


STATE = {"opt_state": {"0": {"mu": PARAMS, "count": np.array(9)}, "1": {}}, "rng": np.zeros(2, "u4")}
STATISTICS = {"BatchNorm_0": {"mean": np.ones(3, "f4")}}


def test_a_train_state_gives_its_model_and_its_clock(tmp_path: Path) -> None:
    """`params`, and `batch_stats` under its name; the optimizer is left alone, averages beside are said."""
    state = {"step": 7, "params": PARAMS, "batch_stats": STATISTICS, "ema_params": PARAMS, **STATE}
    for root in (state, {"state": state, "epoch": 2}):
        path = write(tmp_path / "a.msgpack", root)
        checkpoint = open_checkpoint(path)
        assert list(checkpoint.tensors.specs) == [*leaves(PARAMS), "batch_stats.BatchNorm_0.mean"]
        assert checkpoint.clock(Unit.BATCH) == 7
        assert checkpoint.warnings == ()
        assert [note for note in checkpoint.notes if "'ema_params' (--weights ema)" in note] != []
        averages = open_checkpoint(path, ReadOptions(weights="ema"))
        assert set(leaves(PARAMS)) <= set(averages.tensors.specs)


def test_a_model_that_is_called_so_is_read(tmp_path: Path) -> None:
    """Under `model` beside an optimizer, or at the top beside one."""
    for root in ({"model": PARAMS, "optimizer": STATE, "step": np.array(5)}, {**PARAMS, "opt_state": STATE, "step": 5}):
        checkpoint = open_checkpoint(write(tmp_path / "a.msgpack", root))
        assert list(checkpoint.tensors.specs)[:4] == NAMES
        assert checkpoint.clock(Unit.BATCH) == 5
        assert not any("mu" in name for name in checkpoint.tensors.specs)


ARRAY = packed(np.ones(2, "f4"))
REFUSED = {
    "text": (b"text", "bytes follow the tree"),
    "an unknown code": (b"\xc1", "no value begins with 0xc1"),
    "a map of billions": (b"\xdf\xff\xff\xff\xff", "cut short"),
    "a list of billions": (b"\x81\xa1w\xdd\xff\xff\xff\xff", "cut short"),
    "an array longer than the file": (b"\x81\xa1w\xc9\xff\xff\xff\xff\x01", "cut short"),
    "bytes longer than the file": (b"\x81\xa1w\xc6\xff\xff\xff\xff", "cut short"),
    "a text of gigabytes": (b"\xdb\x7f\xff\xff\xff", "has a text of 2147483647 bytes"),
    "lists in lists": (b"\x91" * 10_000 + b"\xc0", "without end"),
    "a key twice": (b"\x82\xa1w" + ARRAY + b"\xa1w" + ARRAY, "the key 'w' twice"),
    "a list as a key": (b"\x81\x90\xc0", "a key that is no text"),
    "a key that is no text": (b"\x81\xa1\xff\xc0", "damaged"),
    "no shape": (b"\x81\xa1w" + extension(packed(("a", "float32", bytes(8)))), "not stored as Flax stores it"),
    "a shape of texts": (b"\x81\xa1w" + extension(packed((["a"], "float32", bytes(8)))), "a shape that is none"),
    "a negative shape": (b"\x81\xa1w" + extension(packed(([-2], "float32", bytes(8)))), "which no tensor has"),
    "a shape beyond all": (
        b"\x81\xa1w" + extension(packed(([1 << 40, 1 << 40], "float32", bytes(8)))), "which no tensor has"),
    "more elements than bytes": (
        b"\x81\xa1w" + extension(packed(([3], "float32", bytes(8)))), "a storage of 12 bytes, but 8 are"),
    "more than an array": (
        b"\x81\xa1w" + extension(packed(([2], "float32", bytes(8))) + b"\xc0"), "longer or shorter than it says"),
    "another extension": (b"\x81\xa1w" + extension(packed(([2], "float32", bytes(8))), 0), "has an extension 0, which"),
    "an array that is marked as a complex number": (
        b"\x81\xa1w" + extension(packed(([2], "float32", bytes(8))), 2), "a complex number in it is not stored"),
    "numbers of four bits": (b"\x81\xa1w" + extension(packed(([2], "int4", bytes(2)))), "numpy's type 'int4'"),
    "chunks that are none": (
        packed({"w": {"__msgpack_chunked_array__": True, "shape": {"0": 2}, "chunks": {"0": 1}}}), "array in chunks"),
    "chunks of several types": (
        packed({"w": {"__msgpack_chunked_array__": True, "shape": {"0": 4},
                      "chunks": {"0": np.ones(2, "f4"), "1": np.ones(2, "f2")}}}), "array in chunks"),
    "fewer chunks than elements": (
        packed({"w": {"__msgpack_chunked_array__": True, "shape": {"0": 8},
                      "chunks": {"0": np.ones(2, "f4"), "1": np.ones(2, "f4")}}}), "32 bytes, but 16 are"),
    "a name twice": (packed({"a.b": np.ones(1), "a": {"b": np.ones(1)}}), "the place 'a.b'"),
    "no arrays": (packed({"a": 1}), "no tensors"),
}  # fmt: skip


def test_a_complex_number_of_python_s_is_no_tensor(tmp_path: Path) -> None:
    """Flax has an extension for it; what lies beside it is read."""
    (tmp_path / "a.msgpack").write_bytes(b"\x82\xa1w" + ARRAY + b"\xa1z" + extension(packed((1.0, 2.0)), 2))
    assert list(open_checkpoint(tmp_path / "a.msgpack").tensors.specs) == ["w"]


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_tree_of_arrays_is_refused(kind: str, tmp_path: Path) -> None:
    """One error that names the file."""
    data, says = REFUSED[kind]
    (tmp_path / "a.msgpack").write_bytes(data + b" " * (8 - len(data)) if kind == "text" else data)
    with pytest.raises(EmaError) as caught:
        open_checkpoint(tmp_path / "a.msgpack")
    assert str(caught.value).startswith(f"{tmp_path}/a.msgpack: ")
    assert says in str(caught.value)
    assert isinstance(caught.value, CheckpointError)


def test_a_file_that_is_cut_short_is_incomplete(tmp_path: Path) -> None:
    """Wherever it ends."""
    whole = packed(PARAMS)
    for size in range(0, len(whole), 97):
        (tmp_path / "a.msgpack").write_bytes(whole[:size])
        with pytest.raises(IncompleteCheckpoint):
            open_checkpoint(tmp_path / "a.msgpack")


def test_a_run_is_averaged_and_checked(cli: Cli, tmp_path: Path) -> None:
    """In folders of steps, as transformers leaves a Flax model; `verify --against` makes the average anew."""
    for step in (1, 2, 3):
        (tmp_path / f"step-{step}").mkdir()
        write(tmp_path / f"step-{step}" / "flax_model.msgpack", {"a": {"b": np.full(300, step, "f4")}}, chunk=256)
    assert cli("average", ".", "--half-life", "1ba", "-o", "out.safetensors").code == 0
    np.testing.assert_allclose(load_file(tmp_path / "out.safetensors")["a.b"], np.full(300, 2.25), rtol=1e-6)
    assert cli("verify", "out.safetensors", "--against", ".").code == 0
    refused = cli("average", ".", "--half-life", "1ba", "-o", "like.msgpack", "--like-input")
    assert (refused.code, "Flax msgpack is read only" in refused.err) == (5, True), refused


def test_what_stands_beside_the_way_to_the_params_is_said(tmp_path: Path) -> None:
    """A head that lies beside `encoder` is not left out without a word; nor are averages there."""
    value = np.arange(60, dtype="f4")
    write(tmp_path / "a.msgpack", {"encoder": {"params": {"w": value}}, "head": {"dense": {"w": value}}})
    checkpoint = open_checkpoint(tmp_path / "a.msgpack")
    assert list(checkpoint.tensors.specs) == ["w"]
    assert [w for w in checkpoint.warnings if "tensors beside the model, at 'head', are not taken" in w]
    write(tmp_path / "b.msgpack", {"state": {"params": {"w": value}}, "ema": {"w": value * 0.9}, "rng": {"a": value}})
    assert open_checkpoint(tmp_path / "b.msgpack").warnings == ()
    averages = open_checkpoint(tmp_path / "b.msgpack", ReadOptions(weights="ema"))
    assert read_all(averages.tensors) == {"w": (value * np.float32(0.9)).tobytes()}
