"""Archives of numpy's: read by range as numpy reads them, and refused where reading them would run something."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.lib import format as npy
from safetensors.numpy import load_file

from ema_cli.errors import CheckpointError, EmaError
from ema_cli.formats import open_checkpoint
from ema_cli.formats.arrays import npz
from ema_cli.law.time import Unit
from tests.conftest import Cli
from tests.formats.reading import read_all, read_range


def entry(content: bytes, name: str = "w.npy", method: int = zipfile.ZIP_STORED) -> bytes:
    """Return an archive with one entry."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        archive.writestr(name, content)
    return out.getvalue()


def array(descr: str = "'<f4'", shape: str = "(2,)", data: bytes = bytes(8)) -> bytes:
    """Return what stands in an entry, with a header as numpy writes it."""
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\0" + len(header).to_bytes(2, "little") + header + data


def zeros(size: int) -> bytes:
    """Return an archive of so many bytes of zeros, which takes a thousandth of that."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("w.npy", "w") as file:
        file.write(array(shape=f"({size // 4},)", data=b""))
        for _ in range(size >> 20):
            file.write(bytes(1 << 20))
    return out.getvalue()


# What is wrong with each, and what the error says.
REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    "objects": (lambda: entry(array("'|O'")), "'w' holds Python objects"),
    "fields": (lambda: entry(array("[('a', '<f4')]")), "none that numpy writes for plain numbers"),
    "big-endian": (lambda: entry(array("'>f4'")), "'w' has its bytes in big-endian order"),
    "a type of one byte without a name": (lambda: entry(array("'|V1'")), "numpy's type '|V1'"),
    "long doubles": (lambda: entry(array("'<f16'")), "numpy's type '<f16'"),
    "more elements than bytes": (lambda: entry(array(shape="(3,)")), "'w' is [3], for which it has 8 bytes"),
    "fewer elements than bytes": (lambda: entry(array(shape="(1,)")), "'w' is [1], for which it has 8 bytes"),
    "a shape beyond all": (lambda: entry(array(shape=f"({10**18}, {10**18})")), "which no tensor has"),
    "a negative shape": (lambda: entry(array(shape="(-2,)")), "none that numpy writes"),
    "a hundred dimensions": (lambda: entry(array(shape=f"({'1, ' * 99}1)")), "which no tensor has"),
    "a header to evaluate": (lambda: entry(array(shape="(2**9,)")), "none that numpy writes"),
    "a header that is nested": (lambda: entry(array(shape="(" * 9000)), "none that numpy writes"),
    "a header of digits": (lambda: entry(array(shape=f"({'1' * 60000})")), "none that numpy writes"),
    "a header longer than the entry": (lambda: entry(b"\x93NUMPY\x01\0\xff\xff" + bytes(9)), "which it cannot have"),
    "another version": (lambda: entry(b"\x93NUMPY\x09\0" + bytes(99)), "does not begin as an array"),
    "no array": (lambda: entry(b"text"), "does not begin as an array"),
    "another file": (lambda: entry(b"text", "../../x.txt"), "holds '../../x.txt', which is no array"),
    "another compression": (
        lambda: entry(array(), method=zipfile.ZIP_LZMA),
        "compressed in a way that numpy never uses",
    ),
    "a bomb": (lambda: zeros(4 << 20), "more than numbers of a model do"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_plain_array_is_refused(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One error, which names the file and what is wrong with it."""
    monkeypatch.setattr(npz, "_MAX_INFLATED", 1 << 20)
    make, says = REFUSED[kind]
    path = tmp_path / "a.npz"
    path.write_bytes(make())
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert says in str(caught.value)


def test_compressed_arrays_that_end_early_are_an_error(tmp_path: Path) -> None:
    """The directory may say more than there is: that is seen while it is read."""
    whole = entry(array(shape="(1000,)", data=bytes(4000)), method=zipfile.ZIP_DEFLATED)
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        size = archive.infolist()[0].file_size
    forged = whole.replace(size.to_bytes(4, "little"), (size + 4000).to_bytes(4, "little"))
    (tmp_path / "a.npz").write_bytes(forged.replace(b"(1000,)", b"(2000,)"))
    with pytest.raises(CheckpointError, match=r"damaged|ends too early|does not begin|for which"):
        read_all(open_checkpoint(tmp_path / "a.npz").tensors)


def test_compressed_arrays_are_read_in_any_order(tmp_path: Path) -> None:
    """Backwards and at random, each range is what numpy reads."""
    random = np.random.default_rng(1)
    arrays = {"a": random.normal(size=(300, 200)), "b": random.normal(size=5000).astype("f4")}
    np.savez_compressed(tmp_path / "a.npz", **arrays)
    tensors = open_checkpoint(tmp_path / "a.npz").tensors
    for name, values in arrays.items():
        data, size = values.tobytes(), values.itemsize
        for first in [*range(values.size, 0, -997), *random.integers(0, values.size, 30)]:
            assert read_range(tensors, name, first * size, len(data)) == data[first * size :]


def test_a_counter_among_the_arrays_is_a_clock(tmp_path: Path) -> None:
    """`step` is one, and stays a tensor; texts are left out, and what is an optimizer's."""
    np.savez(tmp_path / "a.npz", **{"step": 7, "params/w": np.ones(3), "opt/0/mu": np.ones(3), "name": "text"})
    checkpoint = open_checkpoint(tmp_path / "a.npz")
    assert checkpoint.clock(Unit.BATCH) == 7
    assert list(checkpoint.tensors.specs) == ["step", "params/w"]
    assert (checkpoint.left_out, checkpoint.resumable) == (("name",), True)


def test_a_version_of_the_format_for_long_headers_is_read(tmp_path: Path) -> None:
    """Versions 2 and 3 have more bytes for the length of the header."""
    for version in ((2, 0), (3, 0)):
        out = io.BytesIO()
        npy.write_array(out, np.arange(3.0), version=version)
        (tmp_path / "a.npz").write_bytes(entry(out.getvalue()))
        tensors = open_checkpoint(tmp_path / "a.npz").tensors
        assert read_all(tensors) == {"w": np.arange(3.0).tobytes()}


@pytest.mark.parametrize(
    ("descr", "shape", "data"),
    [
        ("<f4", "(2, )", np.ones(2, "<f4").tobytes()),
        ("<f4", "(2, 3)", np.arange(6, dtype="<f4").tobytes()),
        ("<f4", "()", np.ones(1, "<f4").tobytes()),
        ("<V2", "(2, )", b"\x80\x3f\x80\x3f"),
    ],
)
def test_headers_as_mlx_writes_them_are_read(descr: str, shape: str, data: bytes, tmp_path: Path) -> None:
    """Without a comma behind the shape, and with a blank in a shape of one number: numpy reads them, too."""
    header = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}}}    \n".encode()
    whole = b"\x93NUMPY\x01\0" + len(header).to_bytes(2, "little") + header + data
    assert np.load(io.BytesIO(whole)).tobytes() == data
    (tmp_path / "a.npz").write_bytes(entry(whole))
    checkpoint = open_checkpoint(tmp_path / "a.npz")
    assert read_all(checkpoint.tensors) == {"w": data}
    assert checkpoint.tensors.specs["w"].shape == np.load(io.BytesIO(whole)).shape


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_run_of_archives_is_averaged_checked_and_made_again(
    save: Callable[..., None], cli: Cli, tmp_path: Path
) -> None:
    """The average is that of float64 arithmetic, `verify --against` recomputes it, and a recipe repeats it."""
    random = np.random.default_rng(2)
    weights = [random.normal(size=(50, 70)).astype("f4") for _ in range(3)]
    for number, value in enumerate(weights, 1):
        save(tmp_path / f"step-{number}.npz", **{"layer/w": value, "layer/count": np.array(number)})
    done = cli("average", ".", "--half-life", "1ba", "-o", "out.safetensors")
    assert done.code == 0, done
    found = load_file(tmp_path / "out.safetensors")
    expected = 0.25 * weights[0].astype("f8") + 0.25 * weights[1].astype("f8") + 0.5 * weights[2].astype("f8")
    np.testing.assert_allclose(found["layer/w"], expected, rtol=1e-6, atol=1e-7)
    assert found["layer/count"] == 3
    assert cli("verify", "out.safetensors", "--against", ".").code == 0
    assert cli("average", ".", "--half-life", "1ba", "-o", "out.pt").code == 0
    for name in ("like.npz", "like"):
        refused = cli("average", ".", "--half-life", "1ba", "-o", name, "--like-input")
        assert (refused.code, "npz is read only" in refused.err) == (5, True)
        assert "leave out --like-input" in refused.err


def test_an_archive_that_is_cut_short_is_incomplete(tmp_path: Path) -> None:
    """Its directory is written last."""
    np.savez(tmp_path / "whole.npz", w=np.ones(300))
    whole = (tmp_path / "whole.npz").read_bytes()
    for size in (0, 5, 500, len(whole) - 30):
        (tmp_path / "a.npz").write_bytes(whole[:size])
        with pytest.raises(EmaError) as caught:
            open_checkpoint(tmp_path / "a.npz")
        assert caught.value.exit_code == 3


@pytest.mark.parametrize(
    ("raw", "averages"),
    [("params/", "ema_params/"), ("params.", "params_ema."), ("", "ema/"), ("model/", "swa_model/")],
)
def test_averages_are_told_by_their_first_key(raw: str, averages: str, cli: Cli, tmp_path: Path) -> None:
    """They are not taken for parts of the model, nor for what mmcv's hooks swap with it."""
    base = np.random.default_rng(4).normal(size=400).astype("f4")
    for step in (1, 2, 3):
        own = {f"{raw}a": base * np.float32(step), f"{raw}b": base[:3]}
        follow = {f"{averages}a": base * np.float32(step - 0.1), f"{averages}b": base[:3]}
        np.savez(tmp_path / f"step-{step}.npz", **own, **follow)
    for weights, factor in ((), 2.25), (("--weights", "raw"), 2.25), (("--weights", "ema"), 2.15):
        done = cli("average", ".", "--half-life", "1ba", *weights, "--force", "-o", "out.safetensors")
        assert done.code == 0, done
        found = load_file(tmp_path / "out.safetensors")
        assert {name.rpartition("/")[2].rpartition(".")[2] for name in found} == {"a", "b"}
        value = next(array for name, array in found.items() if name.endswith("a"))
        np.testing.assert_allclose(value, base.astype("f8") * factor, rtol=1e-5)


def test_a_part_of_the_model_may_be_called_averages(tmp_path: Path) -> None:
    """Where it has names of its own: a codebook that follows by averages."""
    names = ("params/a", "ema_vq/embed", "ema_vq/size")
    np.savez(tmp_path / "a.npz", **{name: np.ones(3, "f4") for name in names})
    assert set(open_checkpoint(tmp_path / "a.npz").tensors.specs) == set(names)


@pytest.mark.parametrize(
    ("variable", "slot"),
    [
        ("dense/w:0", "dense/w/Adam_1:0"),
        ("dense/w", "dense/w/Momentum"),
        ("w/.ATTRIBUTES/VARIABLE_VALUE", "w/.OPTIMIZER_SLOT/optimizer/m/.ATTRIBUTES/VARIABLE_VALUE"),
    ],
)
def test_slots_of_tensorflow_s_optimizers_are_not_the_model_s(variable: str, slot: str, tmp_path: Path) -> None:
    """What an optimizer keeps of a variable lies below that one's name."""
    np.savez(tmp_path / "a.npz", **{variable: np.ones(3, "f4"), slot: np.ones(3, "f4")})
    assert set(open_checkpoint(tmp_path / "a.npz").tensors.specs) == {variable}
