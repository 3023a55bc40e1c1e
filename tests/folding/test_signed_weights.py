"""Weights below 0, and weights whose sum is not 1: the same rules for every kernel, and beside other averages."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from ema_cli.errors import NonFiniteError
from ema_cli.folding.fold import Average
from ema_cli.folding.fold import fold as run_fold
from ema_cli.folding.kernel import Kernel
from ema_cli.folding.kernel.choice import chosen_kernel
from ema_cli.folding.kernel.numpy_kernel import NUMPY
from tests.folding.in_memory import MemorySink, checkpoint, small

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.complex64)
AVERAGES = (
    [0.1, 0.2, 0.3, 0.4],
    [-0.5, 0.0, 0.3, 1.2],
    [0.5, -1.5, 2.0, 0.0],  # its newest is the third
    [0.25, 0.25, 0.25, 0.5],  # sums to 1.25
    [1.0, 0.0, -2.0, 0.0],  # sums to -1
    [0.0, 3.0, 0.0, 0.0],
)


def models(dtype: torch.dtype, count: int = 4) -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(5)
    return [torch.randn(333, generator=random).to(dtype) for _ in range(count)]


def folded(saved: Sequence[torch.Tensor], rows: Sequence[Sequence[float]], kernel: Kernel) -> list[bytes]:
    """Make several averages in one fold; return the bytes of each."""
    checkpoints = [checkpoint({"w": tensor}) for tensor in saved]
    spec = checkpoints[-1].tensors.specs["w"]
    written = [{"w": bytearray(spec.nbytes)} for _ in rows]
    averages = [Average(row, MemorySink(one)) for row, one in zip(rows, written, strict=True)]
    run_fold(checkpoints, averages, {"w": spec.dtype}, sizes=small(256), kernel=kernel)
    return [bytes(one["w"]) for one in written]


def values(data: bytes, dtype: torch.dtype) -> torch.Tensor:
    return torch.frombuffer(bytearray(data), dtype=dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_each_sum_is_that_of_float64_and_beside_others_to_the_byte_what_it_is_alone(dtype: torch.dtype):
    """Negative weights, and sums that are not 1, in one fold with a plain average; numpy and C give the same bytes."""
    saved = models(dtype)
    wide = torch.complex128 if dtype.is_complex else torch.float64
    together = folded(saved, AVERAGES, NUMPY)
    assert folded(saved, AVERAGES, chosen_kernel().kernel) == together
    for row, data in zip(AVERAGES, together, strict=True):
        assert folded(saved, [row], NUMPY) == [data]
        expected = sum(weight * tensor.to(wide) for weight, tensor in zip(row, saved, strict=True))
        assert isinstance(expected, torch.Tensor)
        size = sum(abs(weight) * tensor.abs() for weight, tensor in zip(row, saved, strict=True))
        unit = 2.0**-24 if dtype == torch.complex64 else torch.finfo(dtype).eps / 2
        off = (values(data, dtype).to(wide) - expected).abs()
        assert (off <= expected.abs() * unit + 1e-6 * size).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kernel", [NUMPY, chosen_kernel().kernel], ids=["numpy", "chosen"])
def test_a_lone_checkpoint_has_its_weight_too(dtype: torch.dtype, kernel: Kernel):
    """It is not copied, unless its weight is 1: powers of 2, and the sign, are exact."""
    (only,) = models(dtype, 1)
    rows = [[-1.0], [0.5], [2.0], [1.0]]
    for (weight,), data in zip(rows, folded([only], rows, kernel), strict=True):
        assert torch.equal(values(data, dtype), only * weight)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kernel", [NUMPY, chosen_kernel().kernel], ids=["numpy", "chosen"])
def test_equal_values_stay_to_the_bit_whatever_the_weights(dtype: torch.dtype, kernel: Kernel):
    """As long as weights sum to 1, frozen values stay as they are: also by 50,000 and -49,999 times the same."""
    (frozen,) = models(dtype, 1)
    rows = [[50_000.0, 0.0, -49_999.0], [-2.0, 1.5, 1.5], [1 / 3, 1 / 3, 1 / 3]]
    for data in folded([frozen] * 3, rows, kernel):
        assert torch.equal(values(data, dtype), frozen)


@pytest.mark.parametrize("kernel", [NUMPY, chosen_kernel().kernel], ids=["numpy", "chosen"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_overflow_on_the_way_is_mended_and_one_at_the_end_is_told(dtype: torch.dtype, kernel: Kernel):
    """Weights 2 and -1.5 of numbers near the largest: the sum fits. Alone, twice a large number does not."""
    large = torch.full((3,), 3e38).to(dtype)
    (data,) = folded([large, large], [[-1.5, 2.0]], kernel)
    assert torch.allclose(values(data, dtype).double(), large.double() / 2, rtol=1e-6)
    (data,) = folded([-large, -large, large], [[2.0, -1.0, 1.0]], kernel)
    assert values(data, dtype).abs().max() <= 3e38 * 1e-2
    with pytest.raises(NonFiniteError, match="too large"):
        folded([large, large], [[0.0, 2.0]], kernel)
