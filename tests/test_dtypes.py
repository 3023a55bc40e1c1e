"""The one table of element types, checked against safetensors, torch and numpy."""

from __future__ import annotations

import copy
import pickle
from math import isinf

import numpy as np
import pytest
import torch

from ema_cli.dtypes import DTYPES, OUTPUT_DTYPES, TORCH_DTYPES, output_dtype

AVERAGED = [dtype for dtype in DTYPES.values() if dtype.averaged]


@pytest.mark.parametrize("name", TORCH_DTYPES)
def test_sizes_and_kinds_are_those_of_torch(name: str) -> None:
    """A row has the size of torch's type, and is averaged where torch's type is a float of 16 bits or more."""
    row, theirs = TORCH_DTYPES[name], getattr(torch, name)
    assert row.itemsize == theirs.itemsize
    assert row.averaged == ((theirs.is_floating_point or theirs.is_complex) and theirs.itemsize > 1)
    assert (row.kind == "complex") == theirs.is_complex


@pytest.mark.parametrize("row", AVERAGED, ids=lambda row: row.name)
def test_the_exponent_mask_marks_what_is_not_finite(row) -> None:
    """Infinity and NaN have all bits of the mask, the largest number does not."""
    theirs = getattr(torch, row.torch)
    part = theirs.to_real() if row.kind == "complex" else theirs
    bits = {16: torch.int16, 32: torch.int32, 64: torch.int64}[row.component_bits]
    numbers = torch.tensor([float("inf"), float("-inf"), float("nan"), torch.finfo(part).max], dtype=part)
    mask = row.exponent_mask
    assert [number & mask == mask for number in numbers.view(bits).tolist()] == [True, True, True, False]


@pytest.mark.parametrize("row", AVERAGED, ids=lambda row: row.name)
def test_overflow_is_half_a_step_above_the_largest_number(row) -> None:
    """Rounding gives infinity from that magnitude on, and a number just below."""
    theirs = getattr(torch, row.torch)
    part = theirs.to_real() if row.kind == "complex" else theirs
    if part is torch.float64:
        assert isinf(row.overflow)
    else:
        wide = np.float32 if row.is_narrow else np.float64  # torch rounds float64 to 16 bits in two steps
        limit = wide(row.overflow)
        around = torch.from_numpy(np.array([limit, np.nextafter(limit, wide(0))])).to(part)
        assert around.isinf().tolist() == [True, False]


@pytest.mark.parametrize("row", AVERAGED, ids=lambda row: row.name)
def test_numpy_stores_components_of_that_size(row) -> None:
    """Each averaged type has numpy's name of what is stored, bfloat16 apart."""
    assert (row.numpy is None) == (row.name == "BF16")
    assert row.numpy is None or np.dtype(row.numpy).itemsize * 8 == row.component_bits


def test_a_row_stays_the_same_object_when_it_is_pickled_or_copied() -> None:
    """Rows are compared by identity, so that a spec sent to another process equals one that was read there."""
    for row in DTYPES.values():
        assert pickle.loads(pickle.dumps(row)) is row
        assert copy.deepcopy(row) is row


def test_an_output_can_be_converted_to_three_floats() -> None:
    """They are offered by torch's names, in this order."""
    assert {name: dtype.name for name, dtype in OUTPUT_DTYPES.items()} == {
        "float32": "F32", "bfloat16": "BF16", "float16": "F16"
    }  # fmt: skip


@pytest.mark.parametrize(("short", "full"), [("bf16", "BF16"), ("fp16", "F16"), ("fp32", "F32"), ("BFloat16", "BF16")])
def test_short_names_of_dtypes_are_known(short: str, full: str):
    """People write bf16; torch's own name is not the only one."""
    assert output_dtype(short) is DTYPES[full]
