"""Stored numbers as floats and back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ema_cli.dtypes import DTYPES, DType
from ema_cli.folding.kernel import overflow_limit
from ema_cli.folding.kernel.floats import (
    decode,
    decode_pairs,
    encode,
    is_stored_as,
    sum_dtype,
    unpaired,
)

WIDE = np.dtype(np.float32)


def encoded(dtype: DType, values: np.ndarray, **options: bool) -> memoryview:
    """Run `encode` on a copy."""
    return encode(dtype, values.copy(), np.empty_like(values), **options)


def test_every_16_bit_pattern_survives_decoding_and_encoding():
    """BF16 and F16 decode exactly and encode back to the same bits, signalling NaNs aside."""
    patterns = np.arange(1 << 16, dtype=np.uint16)
    for name, torch_dtype in (("BF16", torch.bfloat16), ("F16", torch.float16)):
        values = np.empty(1 << 16, dtype=np.float32)
        decode(DTYPES[name], patterns.view(np.uint8), values)
        expected = torch.from_numpy(patterns.view(np.int16)).view(torch_dtype).float().numpy()
        np.testing.assert_array_equal(values, expected)
        back = np.frombuffer(encoded(DTYPES[name], values), dtype=np.uint16)
        numbers = ~np.isnan(values)
        np.testing.assert_array_equal(back[numbers], patterns[numbers])


TORCH = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "C64": torch.complex64, "C128": torch.complex128,
}  # fmt: skip
NARROW = ("F32", "F16", "BF16", "C64")  # accumulated in float32 where nothing wider is among them


@pytest.mark.parametrize(
    ("name", "work"),
    [(name, work) for name in TORCH for work in (np.float32, np.float64) if work is np.float64 or name in NARROW],
)
def test_every_type_decodes_as_torch_converts_it(name: str, work: type):
    """Whatever the type that is accumulated in, stored numbers become those that torch makes of them."""
    values = torch.tensor([0.0, -0.0, 1 / 3, -65504.0, 2.0**-24, 3e38 if name != "F16" else 6e4, torch.inf, -1e-5])
    stored = (torch.complex(values, values.flip(0)) if name[0] == "C" else values).to(TORCH[name])
    parts = torch.view_as_real(stored).reshape(-1) if stored.is_complex() else stored
    out = np.empty(len(values) * DTYPES[name].components, dtype=work)
    decode(DTYPES[name], stored.view(torch.uint8).numpy(), out)
    np.testing.assert_array_equal(out.astype(np.float64).view(np.int64), parts.double().numpy().view(np.int64))
    assert bytes(encoded(DTYPES[name], out)) == stored.view(torch.uint8).numpy().tobytes()


def test_one_wide_type_makes_the_sum_wide():
    """One float64 or complex128 among the types makes the sum wide; all others are added in float32."""
    assert sum_dtype([DTYPES["BF16"], DTYPES["F16"], DTYPES["F32"], DTYPES["C64"]]) == np.float32
    for wide in ("F64", "C128"):
        assert sum_dtype([DTYPES["BF16"], DTYPES[wide], DTYPES["F32"]]) == np.float64
    as_they_lie = {
        (name, work.name) for name in TORCH for work in (WIDE, np.dtype(np.float64)) if is_stored_as(DTYPES[name], work)
    }
    assert as_they_lie == {("F32", "float32"), ("C64", "float32"), ("F64", "float64"), ("C128", "float64")}


@given(st.floats(2.0**-100, 2.0**100), st.booleans())
def test_float64_rounds_to_the_nearest_bf16(number: float, negative: bool):
    """No bf16 lies nearer to a float64 than the one it is rounded to, and of two as near the even one is taken."""
    value = -number if negative else number
    (found,) = np.frombuffer(encoded(DTYPES["BF16"], np.array([value])), dtype=np.uint16)
    neighbours = np.arange(found - 1, found + 2, dtype=np.uint32)
    distances = np.abs((neighbours << 16).astype(np.uint32).view(np.float32).astype(np.float64) - value)
    assert distances[1] == distances.min()
    assert found % 2 == 0 or (distances[1] < distances[[0, 2]]).all()


@given(st.lists(st.floats(width=32), min_size=1, max_size=50))
def test_float32_rounds_to_bf16_as_torch_does(numbers: list[float]):
    """Rounding is to nearest, ties to even, with NaN kept a NaN."""
    values = np.array(numbers, dtype=np.float32)
    found = torch.frombuffer(bytearray(encoded(DTYPES["BF16"], values)), dtype=torch.bfloat16)
    expected = torch.from_numpy(values).to(torch.bfloat16)
    assert torch.equal(found.isnan(), expected.isnan())
    assert torch.equal(found[~found.isnan()].view(torch.int16), expected[~expected.isnan()].view(torch.int16))


def test_float64_rounds_to_bf16_once():
    """A float64 just above a tie of bf16 goes up, although float32 would make it the tie, which goes down."""
    tie = 1 + 2.0**-8
    values = np.array([tie + 2.0**-40, tie, tie - 2.0**-40, -tie - 2.0**-40])
    found = torch.frombuffer(bytearray(encoded(DTYPES["BF16"], values)), dtype=torch.bfloat16)
    assert found.tolist() == [1 + 2.0**-7, 1.0, 1.0, -1 - 2.0**-7]


@pytest.mark.parametrize("name", ["F16", "BF16", "F32"])
def test_the_overflow_limit_is_the_first_number_that_becomes_infinite(name: str):
    """Below the limit rounding stays finite, at the limit it does not: from float64."""
    limit = overflow_limit(DTYPES[name], [DTYPES["F64"]])
    torch_dtype = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}[name]
    with np.errstate(over="ignore"):
        at = torch.frombuffer(bytearray(encoded(DTYPES[name], np.array([limit]))), dtype=torch_dtype)
        below = torch.frombuffer(
            bytearray(encoded(DTYPES[name], np.array([np.nextafter(limit, 0)]))), dtype=torch_dtype
        )
    assert at.isinf().all()
    assert below.isfinite().all()


def test_pairs_decode_to_even_and_odd_elements():
    """Rows of bfloat16 become floats, even elements first; what is at an index is told, and encoding puts them back."""
    patterns = np.arange(1 << 16, dtype=np.uint16).reshape(4, -1)
    rows = np.empty(patterns.shape, dtype=np.float32)
    decode_pairs(patterns.view(np.uint8), rows)
    expected = (patterns.astype(np.uint32) << 16).view(np.float32)
    order = unpaired(np.arange(rows.shape[1]), rows.shape[1])
    np.testing.assert_array_equal(rows.view(np.uint32), expected[:, order].view(np.uint32))
    for row, stored in zip(rows, patterns, strict=True):
        numbers = ~np.isnan((stored.astype(np.uint32) << 16).view(np.float32))
        back = np.frombuffer(encoded(DTYPES["BF16"], row, paired=True), dtype=np.uint16)
        np.testing.assert_array_equal(back[numbers], stored[numbers])
        wide = np.frombuffer(encoded(DTYPES["F32"], row, paired=True), dtype=np.float32)
        np.testing.assert_array_equal(wide, (stored.astype(np.uint32) << 16).view(np.float32))
