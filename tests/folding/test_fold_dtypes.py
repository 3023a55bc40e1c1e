"""The fold over every kind of number: complex ones, several float types in one run, packed bits; and over ties."""

from __future__ import annotations

import random
from collections.abc import Hashable, Mapping
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ema_cli.checkpoint import Checkpoint, TensorSpec
from ema_cli.dtypes import DTYPES
from ema_cli.errors import NonFiniteError
from ema_cli.folding.blocks import Group, make_groups
from ema_cli.folding.fold import Average
from ema_cli.folding.fold import fold as run_fold
from tests.folding.in_memory import WEIGHTS, MemorySink, checkpoint, fold, small

FLOATS = (torch.bfloat16, torch.float32, torch.float64, torch.float16)


def exact(tensors: list[torch.Tensor], weights: list[float]) -> torch.Tensor:
    """Return the average in float64, or complex128, as one dot product."""
    wide = torch.complex128 if tensors[0].is_complex() else torch.float64
    stacked = torch.stack([tensor.to(wide) for tensor in tensors])
    return torch.tensordot(torch.tensor(weights, dtype=torch.float64).to(wide), stacked, dims=1)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
@pytest.mark.parametrize("row_bytes", [64, 1 << 19])
def test_complex_numbers_are_averaged_part_by_part(dtype: torch.dtype, row_bytes: int):
    """Real and imaginary parts are averaged each, in float32 or float64; what is equal stays as it is, -0 included."""
    shapes = {"w": (13, 5), "scalar": (), "empty": (0, 4)}
    saved = [{name: torch.randn(shape, dtype=dtype) for name, shape in shapes.items()} for _ in WEIGHTS]
    for tensors in saved:
        tensors["w"][0, 0] = complex(-0.0, 1 / 3)
    found, done = fold([checkpoint(each) for each in saved], WEIGHTS, sizes=small(row_bytes, 3))
    for name in ("w", "scalar"):
        expected = exact([tensors[name] for tensors in saved], WEIGHTS)
        slack = 1e-15 if dtype is torch.complex128 else 5e-7
        torch.testing.assert_close(found[name].to(torch.complex128), expected, rtol=0, atol=slack)
        assert found[name].dtype is dtype
    assert torch.equal(torch.view_as_real(found["w"][0, 0]), torch.view_as_real(saved[0]["w"][0, 0]))
    assert torch.signbit(torch.view_as_real(found["w"][0, 0])[0])
    assert done.bytes_read == sum(tensor.nbytes for tensors in saved for tensor in tensors.values())


def test_a_nan_in_complex128_is_named_by_its_element():
    """Elements are counted as the tensor has them, over several ranges."""
    bad = torch.ones(20, dtype=torch.complex128)
    bad[17] = complex(1, torch.nan)
    both = [checkpoint({"w": torch.ones(20, dtype=torch.complex128)}, "a"), checkpoint({"w": bad}, "b")]
    with pytest.raises(NonFiniteError, match=r"^b: 'w' is not finite at element 17$"):
        fold(both, [0.5, 0.5], sizes=small(64))


@pytest.mark.slow
@pytest.mark.parametrize("target", ["F32", "BF16", "F16", "F64"])
@pytest.mark.parametrize("order", list(permutations(range(4)))[::5])
def test_float_types_may_differ_between_checkpoints(target: str, order: tuple[int, ...]):
    """bfloat16, float16, float32 and float64 in one run, in any order: the exact average, rounded once."""
    generator = torch.Generator().manual_seed(1)
    dtypes = [FLOATS[number] for number in order]
    values = [torch.randn(1000, generator=generator, dtype=torch.float64) for _ in dtypes]
    saved = [value.to(dtype) for value, dtype in zip(values, dtypes, strict=True)]
    tensors = [{"w": tensor, "scalar": tensor[0].clone(), "n": torch.tensor([7])} for tensor in saved]
    found, done = fold([checkpoint(each) for each in tensors], WEIGHTS, dtype=target, sizes=small(256))
    expected = exact(saved, WEIGHTS)
    torch_dtype = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "F64": torch.float64}[target]
    assert found["w"].dtype is torch_dtype
    # float64 is among them, so that the sum is in float64: half a unit in the last place of the target, and its own.
    slack = torch.finfo(torch_dtype).eps / 2 if target != "F64" else 4e-16
    # Near zero float16 has steps of 6e-8.
    torch.testing.assert_close(
        found["w"].double(), expected, rtol=slack * 1.001, atol=4e-8 if target == "F16" else 1e-15
    )
    assert found["scalar"] == found["w"][0]
    assert done.bytes_read == sum(tensor.nbytes + tensor.element_size() for tensor in saved) + 8


@given(st.lists(st.sampled_from(FLOATS), min_size=2, max_size=6), st.integers(0, 1 << 30))
def test_equal_values_are_bit_equal_whatever_their_types(dtypes: list[torch.dtype], seed: int):
    """A frozen value that every type holds exactly comes out as it is, the sign of zero and denormals included."""
    frozen = torch.tensor([0.0, -0.0, 1.0, -1.5, 0.125, 2.0**-14, -(2.0**-9), 240.0])
    weights = np.random.default_rng(seed).dirichlet(np.ones(len(dtypes))).tolist()
    found, _ = fold([checkpoint({"w": frozen.to(dtype)}) for dtype in dtypes], weights, dtype="F32")
    assert torch.equal(found["w"].view(torch.int32), frozen.view(torch.int32))


class RawTensors:
    """Tensors of any dtype that safetensors knows, as bytes in memory."""

    def __init__(self, tensors: Mapping[str, tuple[str, tuple[int, ...], bytes]]) -> None:
        self.specs = {name: TensorSpec(DTYPES[dtype], shape) for name, (dtype, shape, _) in tensors.items()}
        self.bytes = {name: data for name, (_, _, data) in tensors.items()}

    def place(self, name: str) -> Hashable:
        return name

    def offset(self, name: str, start: int) -> int:
        """Return 0: there is no file."""
        return 0

    def runs(self, name: str, start: int, size: int) -> None:
        return None

    def locate(self, name: str) -> None:
        return None

    def read_into(self, name: str, start: int, out: memoryview) -> None:
        out[:] = self.bytes[name][start : start + len(out)]


def raw(tensors: Mapping[str, tuple[str, tuple[int, ...], bytes]]) -> Checkpoint:
    return Checkpoint("step-1", Path("step-1"), RawTensors(tensors), (), "memory")  # type: ignore[arg-type]


def fold_raw(newest: Checkpoint, older: Checkpoint, row_bytes: int) -> dict[str, bytes]:
    """Fold two checkpoints, the older with weight 1/4, and return the bytes of each tensor."""
    specs = newest.tensors.specs
    written = {name: bytearray(b"\xa5" * spec.nbytes) for name, spec in specs.items()}
    targets = {name: spec.dtype for name, spec in specs.items()}
    run_fold([older, newest], [Average([0.25, 0.75], MemorySink(written))], targets, sizes=small(row_bytes))
    return {name: bytes(data) for name, data in written.items()}


PACKED = ["F4", "F6_E2M3", "F6_E3M2", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"]


@pytest.mark.parametrize("dtype", PACKED)
@pytest.mark.parametrize("row_bytes", [64, 192, 448, 4096, 1 << 18])
def test_packed_numbers_are_copied_bit_by_bit(dtype: str, row_bytes: int):
    """Numbers of 4, 6 and 8 bits are the newest checkpoint's, to the bit, however a tensor is cut into ranges.

    Seventeen threads made ranges that ended within a byte, and left holes in what was copied.
    """
    count = 250_000 if row_bytes > 1000 else 200
    source = random.Random(3)
    data = [source.randbytes(count * DTYPES[dtype].bits // 8) for _ in range(2)]
    older, newest = (raw({"w": (dtype, (count // 4, 4), each), "e": (dtype, (0, 4), b"")}) for each in data)
    assert fold_raw(newest, older, row_bytes) == {"w": data[1], "e": b""}


def test_copied_names_come_from_the_newest_alone():
    """A float tensor that is copied keeps the newest's bits, NaN included; older checkpoints need not even have it."""
    newest = {"w": torch.tensor([4.0]), "keep": torch.tensor([torch.nan, 1.0]), "only": torch.tensor([3.0])}
    older = {"w": torch.tensor([0.0]), "keep": torch.zeros(5)}
    found, done = fold([checkpoint(older), checkpoint(newest)], [0.25, 0.75], copied=frozenset({"keep", "only"}))
    assert found["w"].item() == 3.0
    assert torch.equal(found["keep"].view(torch.int32), newest["keep"].view(torch.int32))
    assert found["only"].item() == 3.0
    assert done.bytes_read == 4 + 4 + 8 + 4
    assert done.non_finite[0].let_through == set()


def test_a_copied_name_is_not_tied_to_one_that_is_averaged():
    """Of two names with the same bytes one may be copied and the other averaged: each as it was asked for."""
    ties = {"a": "a", "b": "a"}
    saved = [{"a": torch.tensor([value]), "b": torch.tensor([value])} for value in (0.0, 4.0)]
    found, _ = fold([checkpoint(each, ties=ties) for each in saved], [0.5, 0.5], copied=frozenset({"a"}))
    assert (found["a"].item(), found["b"].item()) == (4.0, 2.0)


def groups(checkpoints: list[Checkpoint]) -> list[Group]:
    """Return the groups in which all tensors of the checkpoints are folded."""
    targets = {name: spec.dtype for name, spec in checkpoints[-1].tensors.specs.items()}
    return list(make_groups(checkpoints, targets, frozenset()))


def test_names_tied_in_some_checkpoints_only_are_folded_each():
    """Of four names, those that share their bytes in every checkpoint are read once; the others each with its own."""
    values = [{"a": 1.0, "b": 1.0, "c": 1.0, "d": 1.0}, {"a": 3.0, "b": 3.0, "c": 5.0, "d": 5.0}]
    ties = [dict.fromkeys("abcd", "all"), {"a": "one", "b": "one", "c": "two", "d": "two"}]
    saved = [{name: torch.tensor([value]) for name, value in each.items()} for each in values]
    for order in (0, 1), (1, 0):
        checkpoints = [checkpoint(saved[number], ties=ties[number]) for number in order]
        found, done = fold(checkpoints, [0.5, 0.5])
        assert {name: tensor.item() for name, tensor in found.items()} == {"a": 2.0, "b": 2.0, "c": 3.0, "d": 3.0}
        assert [group.names for group in groups(checkpoints)] == [("a", "b"), ("c", "d")]
        assert done.bytes_read == 16


def test_empty_and_scalar_tensors_of_every_type():
    """Tensors of no element come out as such, those of one as any other, for each type that can be averaged."""
    for dtype in (*FLOATS, torch.complex64, torch.complex128):
        saved = [{"s": torch.tensor(value, dtype=dtype), "e": torch.zeros(2, 0, dtype=dtype)} for value in (1.0, 3.0)]
        found, done = fold([checkpoint(each) for each in saved], [0.5, 0.5])
        assert found["s"].item() == 2.0
        assert found["s"].shape == ()
        assert done.bytes_read == 2 * saved[0]["s"].element_size()
