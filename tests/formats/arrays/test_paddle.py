"""Paddle's pickles of arrays: their bytes are read where they lie, and nothing in the pickle is called."""

from __future__ import annotations

import collections
import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ema_cli.errors import CheckpointError, EmaError, IncompleteCheckpoint
from ema_cli.formats import open_checkpoint
from ema_cli.law.time import Unit
from tests.conftest import Cli
from tests.formats.reading import read_all

RANDOM = np.random.default_rng(3)
STATE = {
    "0.weight": RANDOM.normal(size=(70, 90)).astype("f4"),
    "0.bias": RANDOM.normal(size=3).astype("f2"),
    "turned": np.asfortranarray(RANDOM.normal(size=(4, 5))),
    "count": np.array(7),
    "empty": np.zeros((0, 3), "f4"),
    "flags": np.array([True, False]),
    "half": RANDOM.integers(0, 1 << 16, (3, 2)).astype("u2"),
}


class Nested:
    """What is pickled as Paddle pickles a tensor below the top: a call of `tuple` with its name and its array."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def __reduce__(self) -> tuple[Any, ...]:
        return tuple, (("linear_0.w_0", self.array),)


def dumped(value: object, protocol: int = 4) -> bytes:
    """Return a pickle as Paddle writes it."""
    out = io.BytesIO()
    pickle._Pickler(out, protocol).dump(value)  # Paddle's is Python's own, not the one in C
    return out.getvalue()


def write(path: Path, value: object = STATE, protocol: int = 4) -> Path:
    """Write what paddle.save writes."""
    path.write_bytes(dumped(value, protocol))
    return path


@pytest.mark.parametrize("protocol", [3, 4])
def test_arrays_are_read_where_they_lie(protocol: int, tmp_path: Path) -> None:
    """Every byte, in C order; two bytes without a sign are bfloat16, a type that Paddle has and numpy has not."""
    names = {"StructuredToParameterName@@": {"0.weight": "linear_0.w_0"}}
    checkpoint = open_checkpoint(write(tmp_path / "a.pdparams", {**STATE, **names}, protocol))
    assert read_all(checkpoint.tensors) == {name: np.ascontiguousarray(a).tobytes() for name, a in STATE.items()}
    dtypes = {name: spec.dtype.name for name, spec in checkpoint.tensors.specs.items()}
    assert dtypes == {
        "0.weight": "F32", "0.bias": "F16", "turned": "F64", "count": "I64", "empty": "F32", "flags": "BOOL",
        "half": "BF16",
    }  # fmt: skip
    assert (checkpoint.format, checkpoint.notes) == ("pdparams", ())


def test_a_model_below_the_top_is_read_with_its_clock(tmp_path: Path) -> None:
    """Each tensor is a tuple with its name there; what stands beside it is left alone."""
    state = {name: Nested(array) for name, array in STATE.items()}
    root = {"model": collections.OrderedDict(state), "optimizer": {"m": Nested(np.ones(2))}, "global_step": 5}
    checkpoint = open_checkpoint(write(tmp_path / "a.pdparams", root))
    assert read_all(checkpoint.tensors).keys() == STATE.keys()
    assert (checkpoint.clock(Unit.BATCH), checkpoint.resumable) == (5, True)


def test_no_bytes_of_arrays_are_read_with_the_headers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of gigabytes only the little around them: a pickle may be larger than what is read of one that describes."""
    monkeypatch.setattr("ema_cli.formats.pickles.machine.MAX_PICKLE_BYTES", 1 << 16)
    large = {f"layer.{number}": np.full(1 << 16, number, "f4") for number in range(8)}
    path = write(tmp_path / "a.pdparams", large)
    read: list[int] = []
    monkeypatch.setattr(
        "ema_cli.storage.local_file.LocalFile.read",
        lambda self, offset, size: read.append(size) or path.read_bytes()[offset : offset + size],
    )
    checkpoint = open_checkpoint(path)
    assert sum(read) < 1 << 17
    assert read_all(checkpoint.tensors) == {name: array.tobytes() for name, array in large.items()}


class Call:
    """What would run a program, if it were unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return eval, ("1/0",)


def state_of(**changes: Any) -> bytes:
    """Return the pickle of an array with another state."""

    class Forged:
        def __reduce__(self) -> tuple[Any, ...]:
            function, args, state = np.ones(2, "f4").__reduce__()
            version, shape, dtype, by_columns, data = state
            state = (version, changes.get("shape", shape), changes.get("dtype", dtype), by_columns, data)
            return function, args, state[: changes.get("length", 5)]

    return dumped({"w": Forged()})


REFUSED = {
    "a call": (dumped({"w": Call(), "v": np.ones(2)}), "'w' cannot be averaged: it is not a tensor but a built"),
    "an array of objects": (dumped({"w": np.array([None, "a"], object)}), "'w' holds Python objects"),
    "a shape that the bytes do not fill": (state_of(shape=(3,)), "'w' has a storage of 12 bytes, but 8 are"),
    "a shape of less than the bytes": (state_of(shape=(1,)), "'w' has a storage of 4 bytes, but 8 are in the file"),
    "a negative shape": (state_of(shape=(-2,)), "which no tensor has"),
    "a shape beyond all": (state_of(shape=(1 << 40, 1 << 40)), "which no tensor has"),
    "a shape that is no shape": (state_of(shape=("a",)), "'w' is no array of numbers"),
    "a state that is no state": (state_of(length=3), "'w' is no array of numbers"),
    "a type that is no type": (state_of(dtype="f4"), "numpy's type '?'"),
    "big-endian": (dumped({"w": np.ones(2, ">f4")}), "'w' has its bytes in big-endian order"),
    "old protocols": (dumped({"w": np.ones(2, "f4")}, protocol=2), "'w' is not stored as bytes"),
    "arrays in slices": (dumped({"w": np.ones(2, "f4"), "UnpackBigParamInfor@@": {}}), "large arrays in slices"),
    "bytes of more than the file": (b"\x80\x04}X\1\0\0\0w\x8e" + b"\xff" * 7 + b"\x7f" + b"s.", "cut short"),
    "text": (b"text" * 99, "cannot be read"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_array_of_numbers_is_refused(kind: str, tmp_path: Path) -> None:
    """One error, and nothing is called."""
    data, says = REFUSED[kind]
    (tmp_path / "a.pdparams").write_bytes(data)
    with pytest.raises(EmaError) as caught:
        open_checkpoint(tmp_path / "a.pdparams")
    assert str(caught.value).startswith(f"{tmp_path}/a.pdparams: ")
    assert says in str(caught.value)
    assert isinstance(caught.value, CheckpointError)


def test_a_dict_in_itself_ends(tmp_path: Path) -> None:
    """And one that holds another many times over."""
    state: dict[str, Any] = {"w": np.ones(2, "f4")}
    state["again"] = state
    with pytest.raises(EmaError):
        open_checkpoint(write(tmp_path / "a.pdparams", state))
    level: dict[str, Any] = {}
    for _ in range(30):
        level = {"a": level, "b": level}
    write(tmp_path / "b.pdparams", {"w": np.ones(2, "f4"), "args": level})
    assert list(open_checkpoint(tmp_path / "b.pdparams").tensors.specs) == ["w"]


@pytest.mark.parametrize("size", [0, 1, 9, 300, 20_000])
def test_a_file_that_is_cut_short_is_incomplete(size: int, tmp_path: Path) -> None:
    """It ends before the pickle does."""
    whole = dumped(STATE)
    assert len(whole) > 20_000
    (tmp_path / "a.pdparams").write_bytes(whole[:size])
    with pytest.raises(IncompleteCheckpoint):
        open_checkpoint(tmp_path / "a.pdparams")


def test_a_run_is_averaged_and_checked(cli: Cli, tmp_path: Path) -> None:
    """In folders of steps, as PaddleNLP leaves them; `verify --against` makes the average anew."""
    for step in (1, 2, 3):
        (tmp_path / f"checkpoint-{step}").mkdir()
        state = {name: array * step if array.dtype.kind == "f" else array for name, array in STATE.items()}
        write(tmp_path / f"checkpoint-{step}" / "model_state.pdparams", state)
    assert cli("average", ".", "--half-life", "1ba", "-o", "out.safetensors").code == 0
    assert cli("verify", "out.safetensors", "--against", ".").code == 0
    refused = cli("average", ".", "--half-life", "1ba", "-o", "like.pdparams", "--like-input")
    assert (refused.code, "pdparams is read only" in refused.err) == (5, True), refused
