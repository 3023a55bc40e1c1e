"""The arithmetic of one range against float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ema_cli.dtypes import DTYPES, DType
from ema_cli.folding.kernel import numpy_kernel
from ema_cli.folding.kernel.numpy_kernel import (
    components,
    decode,
    decode_pairs,
    encode,
    is_stored_as,
    is_within,
    keep_zeros,
    overflow_limit,
    settle_non_finite,
    sum_products,
    unpaired,
    work_dtype,
)

WIDE = np.dtype(np.float32)


def encoded(dtype: DType, values: np.ndarray, **options: bool) -> memoryview:
    """Run `encode` on a copy."""
    return encode(dtype, values.copy(), np.empty_like(values), **options)


def average_of(rows: list[np.ndarray], weights: list[float]) -> np.ndarray:
    """Return the average as the fold makes it: the newest and the weighted differences to it, the newest first."""
    newest = rows[-1]
    total = np.empty_like(newest)
    with np.errstate(all="ignore"):
        differences = np.array([row - newest for row in reversed(rows)])
        sum_products(np.array(weights[::-1], dtype=newest.dtype), differences, total)
        total += newest
        keep_zeros(total, newest)
    return total


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
    out = np.empty(len(values) * components(DTYPES[name]), dtype=work)
    decode(DTYPES[name], stored.view(torch.uint8).numpy(), out)
    np.testing.assert_array_equal(out.astype(np.float64).view(np.int64), parts.double().numpy().view(np.int64))
    assert bytes(encoded(DTYPES[name], out)) == stored.view(torch.uint8).numpy().tobytes()


def test_what_is_accumulated_in_float64():
    """One float64 or complex128 among the types makes the sum wide; all others are added in float32."""
    assert work_dtype([DTYPES["BF16"], DTYPES["F16"], DTYPES["F32"], DTYPES["C64"]]) == np.float32
    for wide in ("F64", "C128"):
        assert work_dtype([DTYPES["BF16"], DTYPES[wide], DTYPES["F32"]]) == np.float64
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
    limit = overflow_limit(DTYPES[name], np.dtype(np.float64))
    torch_dtype = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}[name]
    with np.errstate(over="ignore"):
        at = torch.frombuffer(bytearray(encoded(DTYPES[name], np.array([limit]))), dtype=torch_dtype)
        below = torch.frombuffer(
            bytearray(encoded(DTYPES[name], np.array([np.nextafter(limit, 0)]))), dtype=torch_dtype
        )
    assert at.isinf().all()
    assert below.isfinite().all()


def test_equal_values_come_out_bit_equal():
    """Frozen values do not drift, negative zero and denormals included, whatever the weights."""
    frozen = np.array([0.1, -0.0, 1e-45, -3e38, 1 / 3], dtype=np.float32)
    weights = [0.1, 0.2, 0.3, 0.15, 0.25]
    average = average_of([frozen] * 5, weights)
    np.testing.assert_array_equal(average.view(np.uint32), frozen.view(np.uint32))


@given(st.data())
def test_the_average_is_near_float64(data: st.DataObject):
    """Float32 accumulation stays within a few rounding errors of the largest input."""
    count = data.draw(st.integers(2, 12))
    raw = data.draw(st.lists(st.floats(0.01, 1), min_size=count, max_size=count))
    weights = [each / sum(raw) for each in raw]
    seed = data.draw(st.integers(0, 2**32 - 1))
    rows = list(np.random.default_rng(seed).standard_normal((count, 64)).astype(np.float32))
    expected = np.average(np.array(rows, dtype=np.float64), axis=0, weights=weights)
    scale = np.abs(rows).max(axis=0)
    assert np.all(np.abs(average_of(rows, weights) - expected) <= 2.0**-22 * scale * count)


def test_within_refuses_nan_infinity_and_what_is_too_large():
    """One look at the extremes finds every value that is not fit to be written."""
    assert is_within(np.array([], dtype=np.float32), 1.0)
    assert is_within(np.array([-0.5, 0.5], dtype=np.float32), 1.0)
    for bad in (np.nan, np.inf, -np.inf, 1.0, -1.0):
        assert not is_within(np.array([0.0, bad, 0.5], dtype=np.float32), 1.0)


def settle(rows: list[list[float]], weights: list[float], limit: float = np.inf) -> tuple[np.ndarray, object]:
    """Average, then settle what is not finite."""
    arrays = [np.array(row, dtype=np.float32) for row in rows]
    average = average_of(arrays, weights)
    with np.errstate(all="ignore"):
        indices, numbers = settle_non_finite(lambda number: arrays[number], weights, average, limit)
    return average, (int(numbers[0]), int(indices[0])) if len(indices) else None


def test_an_infinity_that_is_equal_everywhere_passes():
    """An attention mask's -inf is kept, and its neighbours are what they are without it."""
    average, found = settle([[-np.inf, 1.0], [-np.inf, 3.0]], [0.5, 0.5])
    assert found is None
    assert average.tolist() == [-np.inf, 2.0]


def test_a_difference_that_overflows_does_not_spoil_the_average():
    """3e38 and -3e38 average to 0 although their difference is beyond float32."""
    average, found = settle([[3e38, 1.0], [-3e38, 2.0]], [0.5, 0.5])
    assert found is None
    assert average[0] == pytest.approx(0, abs=1e31)
    assert average[1] == 1.5


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([[1, np.nan], [1, 1], [1, 1]], (0, 1)),
        ([[1, 1], [np.inf, 1], [1, 1]], (1, 0)),
        ([[np.inf, 1], [np.inf, 1], [-np.inf, 1]], (0, 0)),
        ([[np.nan, 1], [np.nan, 1], [np.nan, 1]], (0, 0)),
    ],
)
def test_what_is_not_finite_is_found(rows: list[list[float]], expected: tuple[int, int]):
    """The first checkpoint and element that hold NaN, or an infinity the others do not share, are named."""
    assert settle(rows, [0.25, 0.25, 0.5])[1] == expected


def test_an_average_too_large_for_its_dtype_is_nobody_s_fault():
    """Where every input is finite and only the cast overflows, no checkpoint is blamed."""
    limit = overflow_limit(DTYPES["F16"], WIDE)
    assert settle([[1.0, 70000.0], [1.0, 70000.0]], [0.5, 0.5], limit)[1] == (-1, 1)
    assert settle([[1.0, 60000.0], [1.0, 80000.0]], [0.5, 0.5], limit)[1] == (-1, 1)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("plain", [True, False])
def test_products_are_summed_one_after_another_each_rounded(
    dtype: type[np.floating], plain: bool, monkeypatch: pytest.MonkeyPatch
):
    """Multiply and add are rounded each, row after row, for every width: einsum's sum is that of two plain loops."""
    monkeypatch.setattr(numpy_kernel, "_EINSUM_IS_PLAIN", plain)
    random = np.random.default_rng(0)
    for count in (1, 2, 3, 8, 9, 17):
        for width in (*range(2, 40), 257, 4096, 100_003):
            rows = random.standard_normal((count, width)).astype(dtype)
            factors = random.standard_normal(count).astype(dtype)
            expected = np.zeros(width, dtype=dtype)
            for factor, row in zip(factors, rows, strict=True):
                product = row * factor
                expected = expected + product
            found = np.full(width, np.nan, dtype=dtype)
            sum_products(factors, rows, found)
            np.testing.assert_array_equal(found, expected)


def test_einsum_is_found_out_if_it_fuses_or_reorders(monkeypatch: pytest.MonkeyPatch):
    """A build of numpy that multiplies and adds in one step, or adds in another order, is not taken for a plain one."""
    assert numpy_kernel._is_einsum_plain()

    def fused(_: str, factors: np.ndarray, rows: np.ndarray, out: np.ndarray) -> None:
        wide = np.longdouble if out.dtype == np.float64 else np.float64
        total = np.zeros_like(out)
        for factor, row in zip(factors, rows, strict=True):
            total = (total.astype(wide) + factor.astype(wide) * row.astype(wide)).astype(out.dtype)
        out[:] = total

    def backwards(_: str, factors: np.ndarray, rows: np.ndarray, out: np.ndarray) -> None:
        out.fill(0)
        for factor, row in zip(factors[::-1], rows[::-1], strict=True):
            out += factor * row

    for other in (fused, backwards):
        monkeypatch.setattr(np, "einsum", other)
        assert not numpy_kernel._is_einsum_plain()


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
