"""Floats rounded without numpy, as torch rounds them."""

from __future__ import annotations

import pytest
import torch

from ema_cli.formats.rounding import round_to, steps_apart, widened

TYPES = {"BF16": torch.bfloat16, "F16": torch.float16}


def numbers() -> torch.Tensor:
    """Return numbers of all sizes, ties, and the largest and smallest."""
    random = torch.Generator().manual_seed(0)
    drawn = torch.randn(4000, generator=random) * 10.0 ** torch.randint(-9, 6, (4000,), generator=random)
    ties = torch.tensor(
        [1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-11, 1 + 3 * 2**-11, 65519.0, 65520.0, -65520.0, 3.4e38, 2**-25]
    )
    return torch.cat([drawn, ties, -ties, torch.tensor([0.0, -0.0, float("inf"), -float("inf")])])


@pytest.mark.parametrize("name", TYPES)
def test_each_is_rounded_to_nearest_and_ties_to_even(name: str) -> None:
    """Bit for bit, and widened again, infinities too."""
    exact = numbers()
    expected = exact.to(TYPES[name])
    bits = round_to(name, exact.numpy().tobytes())
    assert bits.tobytes() == expected.view(torch.int16).numpy().tobytes()
    assert widened(name, bits) == expected.float().numpy().tobytes()


@pytest.mark.parametrize("name", TYPES)
def test_steps_count_the_numbers_between(name: str) -> None:
    """Over 0, and none between what is too small, or not finite."""
    one = torch.tensor([1.0, -1.0, 1.0, 0.0, 2**-14], dtype=TYPES[name])
    other = one.clone()
    other[0], other[1] = torch.nextafter(one[0], torch.tensor(2.0, dtype=one.dtype)), 1.0
    steps = steps_apart(name, *(each.view(torch.int16).numpy().view("uint16").tolist() for each in (one, other)))
    assert steps[0] == 1
    assert steps[1] == 2 * int(torch.tensor(1.0, dtype=one.dtype).view(torch.int16))
    assert steps[2:] == [0, 0, 0]
    assert steps_apart(name, [1, 0x7FFF, 0x7C00 if name == "F16" else 0x7F80], [0x8002, 0, 0x1234]) == [0, 0, 0]
