"""Orbax's folders: the tree of arrays, its items, its clock, and when all of it is written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from ema_cli.errors import CheckpointError, EmaError, IncompleteCheckpoint, UsageError
from ema_cli.formats import is_checkpoint_folder, open_checkpoint
from ema_cli.formats.arrays import zarr
from ema_cli.formats.options import ReadOptions
from ema_cli.law.time import Unit
from tests.conftest import Cli
from tests.formats.arrays.orbax_files import ts, write_item, write_step
from tests.formats.reading import read_all, read_range

RANDOM = np.random.default_rng(5)
KERNEL = RANDOM.normal(size=(30, 40)).astype("f4")
MODEL: dict[tuple[str, ...], Any] = {
    ("params", "Dense_0", "kernel"): KERNEL,
    ("params", "Dense_0", "bias"): np.frombuffer(RANDOM.bytes(12), "V2"),
    ("params", "layers", "0", "count"): np.array(3),
    ("params", "layers", "0", "cube"): RANDOM.normal(size=(3, 4, 5)),
    ("params", "flags"): np.array([True, False]),
}
NAMES = {".".join(keys[1:]): np.ascontiguousarray(array).tobytes() for keys, array in MODEL.items()}
BESIDE: dict[tuple[str, ...], Any] = {
    ("step",): 7, ("opt_state", "0", "mu", "Dense_0", "kernel"): KERNEL, ("note",): "text", ("empty",): None,
    ("batch_stats", "norm", "mean"): np.ones(3, "f4"),
}  # fmt: skip


@pytest.mark.parametrize(
    "form",
    [
        {},
        {"use_ocdbt": False},
        {"use_zarr3": True},
        {"chunks": (7, 9)},
        {"store_array_data_equal_to_fill_value": False},
    ],
    ids=["OCDBT", "folders", "zarr3", "blocks", "nothing stored of zeros"],
)
def test_every_range_of_every_form_is_read(form: dict[str, Any], tmp_path: Path) -> None:
    """Whole arrays, and ranges that begin and end anywhere, are the bytes that were saved."""
    zeros = {("params", "zeros"): np.zeros((4, 3), "f4")}
    path = write_item(tmp_path / "a", {**MODEL, **zeros}, **form)
    checkpoint = open_checkpoint(path)
    expected = {**NAMES, "zeros": bytes(48)}
    assert dict(sorted(read_all(checkpoint.tensors).items())) == dict(sorted(expected.items()))
    for name, item in (("Dense_0.kernel", 4), ("layers.0.cube", 8)):
        whole = expected[name]
        for first, last in RANDOM.integers(0, len(whole) // item + 1, (40, 2)):
            low, high = sorted((int(first), int(last)))
            assert read_range(checkpoint.tensors, name, low * item, high * item) == whole[low * item : high * item]
    assert (checkpoint.format, checkpoint.name) == ("Orbax", "a")


def test_a_train_state_gives_its_model_and_its_clock(tmp_path: Path) -> None:
    """`params`, and `batch_stats` under its name; arrays of an optimizer are not opened; the step is in the tree."""
    path = write_step(tmp_path / "10", {**MODEL, **BESIDE})
    store = ts.KvStore.open({"driver": "ocdbt", "base": f"file://{path}/default/"}).result()
    store.delete_range(ts.KvStore.KeyRange("opt_state", "opt_state~")).result()
    checkpoint = open_checkpoint(path)
    assert set(checkpoint.tensors.specs) == {*NAMES, "batch_stats.norm.mean"}
    assert (checkpoint.clock(Unit.BATCH), checkpoint.resumable, checkpoint.warnings) == (7, True, ())
    assert {file.path.name for file in checkpoint.files} >= {"_METADATA", "manifest.ocdbt"}


def test_the_folder_s_number_is_the_clock_without_another(tmp_path: Path) -> None:
    """CheckpointManager calls each folder by its step."""
    assert open_checkpoint(write_step(tmp_path / "120", MODEL)).clock(Unit.BATCH) == 120
    assert open_checkpoint(write_item(tmp_path / "final", MODEL)).clock(Unit.BATCH) is None


def test_of_several_items_one_is_named(tmp_path: Path) -> None:
    """An optimizer by itself is no model."""
    for item in ("encoder", "decoder", "optimizer"):
        write_item(tmp_path / "5" / item, {("w",): np.ones(3, "f4")})
    (tmp_path / "5" / "_CHECKPOINT_METADATA").write_text("{}")
    with pytest.raises(UsageError, match="decoder, encoder") as caught:
        open_checkpoint(tmp_path / "5")
    assert "optimizer" not in str(caught.value)
    assert list(open_checkpoint(tmp_path / "5", ReadOptions(component="encoder")).tensors.specs) == ["w"]
    with pytest.raises(UsageError, match="has no component 'none'"):
        open_checkpoint(tmp_path / "5", ReadOptions(component="none"))
    shutil.rmtree(tmp_path / "5" / "decoder")
    assert open_checkpoint(tmp_path / "5").clock(Unit.BATCH) == 5


def refusal(path: Path) -> EmaError:
    """Return the error that opening and reading it gives."""
    with pytest.raises(EmaError) as caught:
        read_all(open_checkpoint(path).tensors)
    assert str(path) in str(caught.value)
    return caught.value


def test_what_is_not_whole_is_incomplete(tmp_path: Path) -> None:
    """What says that all is written, the manifest, the tree, and the bytes of an array."""
    assert isinstance(refusal(write_step(tmp_path / "1", MODEL, committed=False)), IncompleteCheckpoint)
    for number, name in enumerate(("manifest.ocdbt", "_METADATA"), 2):
        path = write_step(tmp_path / f"{number}", MODEL)
        (path / "default" / name).unlink()
        assert is_checkpoint_folder(path)
        assert isinstance(refusal(path), IncompleteCheckpoint)
    path = write_step(tmp_path / "5", MODEL)
    shutil.rmtree(path / "default" / "d")
    assert isinstance(refusal(path), CheckpointError)
    path = write_item(tmp_path / "6", MODEL, use_ocdbt=False)
    (path / "params.Dense_0.kernel" / "0.0").unlink()
    assert "'params.Dense_0.kernel' cannot be read" in str(refusal(path))
    path = write_item(tmp_path / "7", MODEL, use_ocdbt=False)
    (path / "params.Dense_0.kernel" / "0.0").write_bytes(b"no block")
    assert "'params.Dense_0.kernel' cannot be read" in str(refusal(path))


def keyed(*keys: object) -> dict[str, Any]:
    """Return an entry of a tree."""
    return {"key_metadata": [{"key": key} for key in keys], "value_metadata": {"value_type": "jax.Array"}}


TREES: dict[str, tuple[object, str]] = {
    "no object": ([], "has no tree of arrays"),
    "no tree": ({"tree_metadata": []}, "has no tree of arrays"),
    "no keys": ({"tree_metadata": {"a": keyed()}}, "the tree of its arrays is damaged"),
    "other keys": ({"tree_metadata": {"a": keyed("a", None)}}, "the tree of its arrays is damaged"),
    "no entry": ({"tree_metadata": {"a": 3}}, "the tree of its arrays is damaged"),
    "nested without end": ({"tree_metadata": {"a": keyed(*"a" * 70)}}, "the tree of its arrays is damaged"),
    "one place twice": ({"tree_metadata": {"a": keyed("w"), "b": keyed("w")}}, "'w' is twice in it"),
    "an array below an array": ({"tree_metadata": {"a": keyed("w"), "b": keyed("w", "v")}}, "the place 'w'"),
    "an array above an array": ({"tree_metadata": {"a": keyed("w", "v"), "b": keyed("w")}}, "'w' is twice in it"),
    "no such array": ({"tree_metadata": {"a": keyed("nowhere")}}, "'nowhere' cannot be read"),
    "a place outside": ({"tree_metadata": {"a": keyed("../../x")}, "use_ocdbt": False}, "or is no name"),
    "a place outside of OCDBT": ({"tree_metadata": {"a": keyed("../../x")}}, "cannot be read"),
    "no kind": (
        {"tree_metadata": {"a": keyed("w"), "b": {"key_metadata": [{"key": "v"}], "value_metadata": {}}}},
        "'v' is of no kind that Orbax has",
    ),
    "another kind": (
        {"tree_metadata": {"a": keyed("w"), "b": keyed("v") | {"value_metadata": {"value_type": "jax.Brray"}}}},
        "'v' is of no kind that Orbax has: jax.Brray",
    ),
    "other numbers": ({"tree_metadata": {}}, "no tensors"),
}


@pytest.mark.parametrize("kind", TREES)
def test_a_tree_that_lies_is_one_error(kind: str, tmp_path: Path) -> None:
    """It names the folder, and nothing outside of it is looked at."""
    tree, says = TREES[kind]
    path = write_item(tmp_path / "a", {("w",): np.ones(3, "f4")})
    (path / "_METADATA").write_text(json.dumps(tree))
    assert says in str(refusal(path))


def test_arrays_that_lie_are_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shapes of more than was stored, blocks of more than the memory, types that no tensor has."""
    path = write_item(tmp_path / "a", {("w",): np.ones((3, 3), "f4")}, use_ocdbt=False)
    header = path / "w" / ".zarray"
    about = json.loads(header.read_text())

    def forged(**changes: object) -> str:
        header.write_text(json.dumps({**about, **changes}))
        return str(refusal(path))

    assert "become 4000000000000, more than numbers" in forged(shape=[1_000_000_000_000, 1])
    assert "a shape that no tensor has" in forged(shape=[1 << 50, 1 << 13])
    assert "cannot be read" in forged(shape=[-1, 3])
    assert "cannot be read" in forged(dtype="|O")
    assert "cannot be read" in forged(compressor={"id": "none such"})
    assert "cannot be read" in forged(chunks=[1 << 40, 1 << 40])
    header.write_text(json.dumps(about))
    monkeypatch.setattr(zarr, "memory_bytes", lambda: 256)
    refused = refusal(path)
    assert "'w' is compressed in blocks of which 36 B are needed at once, and 32 B are read at most" in str(refused)
    assert "chunk_byte_size" in (refused.hint or "")


def test_a_run_is_averaged_and_checked(cli: Cli, tmp_path: Path) -> None:
    """As CheckpointManager leaves it, with one that is being written; `verify --against` makes the average anew."""
    for step in (10, 20, 30):
        write_step(tmp_path / "run" / f"{step}", {("params", "w"): KERNEL * step, ("step",): step})
    (tmp_path / "run" / "40.orbax-checkpoint-tmp-1").mkdir()
    assert cli("average", "run", "--half-life", "10ba", "-o", "out.safetensors").code == 0
    np.testing.assert_allclose(load_file(tmp_path / "out.safetensors")["w"], 22.5 * KERNEL, rtol=1e-6)
    assert cli("verify", "out.safetensors", "--against", "run").code == 0
    refused = cli("average", "run", "--half-life", "10ba", "-o", "like", "--like-input")
    assert (refused.code, "Orbax is read only" in refused.err) == (5, True), refused


def test_without_tensorstore_the_error_has_the_line_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is an extra."""
    path = write_step(tmp_path / "10", MODEL)
    monkeypatch.setattr(zarr, "import_module", lambda name: (_ for _ in ()).throw(ImportError(name)))
    with pytest.raises(UsageError, match="tensorstore") as caught:
        open_checkpoint(path)
    assert "pip install 'ema-cli[jax]'" in (caught.value.hint or "")


def test_large_blocks_are_said_and_counted_in_the_memory(cli: Cli, tmp_path: Path) -> None:
    """Too little memory is refused with what is needed, which is enough; more gives the same bytes."""
    values = np.arange(600_000, dtype="f4").reshape(600, -1)
    for step in (1, 2):
        write_item(tmp_path / "run" / f"{step}", {("params", "w"): values * step})
    law = ("average", "run", "--half-life", "1ba", "-o")
    done = cli(*law, "a.safetensors")
    assert (done.code, "compressed in blocks of up to 2.4 MB" in done.err) == (0, True), done
    refused = cli(*law, "b.safetensors", "--max-memory", "20MB")
    assert refused.code == 2, refused
    needed = (refused.err.partition("hint:  --max-memory ")[2]).split()[0]
    for name, memory in (("b", needed), ("c", "8GB")):
        assert cli(*law, f"{name}.safetensors", "--max-memory", memory).code == 0
        assert (tmp_path / f"{name}.safetensors").read_bytes() == (tmp_path / "a.safetensors").read_bytes()
