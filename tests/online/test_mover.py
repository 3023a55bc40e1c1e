"""The arithmetic of an update, against float64; and that a step takes no memory."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from ema_cli import EMA
from ema_cli.online import mover
from ema_cli.online.mover import Mover

SHAPES = [(), (0,), (3,), (5, 7), (40, 30), (5003,)]
TYPES = [
    (torch.float32, torch.float32),
    (torch.bfloat16, torch.float32),
    (torch.float16, torch.float32),
    (torch.float64, torch.float64),
    (torch.complex64, torch.complex64),
]


def made(seed: int) -> tuple[list[Tensor], list[Tensor]]:
    random = torch.Generator().manual_seed(seed)
    values, averages = [], []
    for (narrow, wide), shape in itertools.product(TYPES, SHAPES):
        values.append(torch.randn(shape, generator=random, dtype=wide).to(narrow))
        averages.append(torch.randn(shape, generator=random, dtype=wide))
    return values, averages


@pytest.mark.parametrize("share", [0.0, 1e-7, 0.001, 0.3, 0.5, 0.9, 1.0])
def test_averages_move_by_their_share(share: float, monkeypatch: pytest.MonkeyPatch):
    """average + share * (value - average), each in its own type, for several shares in one pass."""
    monkeypatch.setattr(mover, "_BATCH", 1000)
    values, averages = made(1)
    others = [average.clone() for average in averages]
    expected = [
        (1 - share) * average.to(wide(average)) + share * value.to(wide(average))
        for average, value in zip(averages, values, strict=True)
    ]
    Mover(values, [averages, others], set()).move([share, 0.25])
    for found, wanted in zip(averages, expected, strict=True):
        rounding = 2**-52 if found.dtype == torch.float64 else 2**-22
        torch.testing.assert_close(found.to(wanted.dtype), wanted, rtol=0, atol=rounding * 8)
    if share == 1:
        assert all(torch.equal(found, value.to(found.dtype)) for found, value in zip(averages, values, strict=True))


def wide(tensor: Tensor) -> torch.dtype:
    return torch.complex128 if tensor.is_complex() else torch.float64


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 7, 1000, 1 << 16])
def test_the_size_of_a_batch_does_not_show(batch: int, monkeypatch: pytest.MonkeyPatch):
    """Cut into parts of any size, or put together, tensors of any strides come to the same bits."""
    values, averages = made(3)
    flat = [number for number, value in enumerate(values) if value.dim() == 2]
    values += [values[number].T for number in flat]
    averages += [averages[number].T.contiguous() if number % 2 else averages[number].clone().T for number in flat]
    expected = [average.clone() for average in averages]
    Mover(values, [expected], set()).move([0.3])
    monkeypatch.setattr(mover, "_BATCH", batch)
    kept = [value[:64].clone() if value.dim() == 1 else value for value in values]  # batches of 1 take their time
    found = [average[:64].clone() if average.dim() == 1 else average for average in averages]
    Mover(kept, [found], set()).move([0.3])
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other[:64] if one.dim() == 1 else other)


@pytest.mark.slow
@given(share=st.floats(0, 1), seed=st.integers(0, 50))
def test_an_average_that_is_bit_equal_to_the_model_keeps_its_bits(share: float, seed: int):
    """Where model and average are bit-equal, the average keeps its bits, at any share: frozen layers do not drift."""
    random = torch.Generator().manual_seed(seed)
    values = [torch.randn(9, generator=random) * 10**seed for seed in range(-3, 3)]
    values.append(torch.randn(1 << 16, generator=random).bfloat16())
    averages = [value.float().clone() for value in values]
    Mover(values, [averages], set()).move([share])
    assert all(torch.equal(average, value.float()) for average, value in zip(averages, values, strict=True))


@pytest.mark.parametrize("share", [0.0, 0.3, 0.8, 1.0])
def test_equal_infinities_stay(share: float):
    """The infinities of a mask stay what they are, and what is finite beside them moves."""
    mask = torch.tensor([0.0, float("-inf"), float("inf"), 2.0])
    average = torch.tensor([1.0, float("-inf"), float("inf"), 4.0])
    Mover([mask], [[average]], {0}).move([share])
    expected = torch.tensor([1 - share, float("-inf"), float("inf"), 4 - 2 * share])
    torch.testing.assert_close(average, expected)


def test_the_first_stays_beside_an_infinity():
    """A share of 0 changes nothing, whatever the model has come to hold."""
    average = torch.tensor([1.0, float("-inf")])
    value = torch.tensor([float("nan"), 0.0])
    Mover([value], [[average]], {0}).move([0.0])
    assert torch.equal(average, torch.tensor([1.0, float("-inf")]))


def test_a_full_share_copies():
    """A share of 1 is a copy: no difference overflows on the way."""
    largest = torch.finfo(torch.float32).max
    for count in (1, 1 << 16):
        value, average = torch.full((count,), largest), torch.full((count,), -largest)
        Mover([value], [[average]], set()).move([1.0])
        assert torch.equal(average, value)


def memory_taken(model: nn.Module, ema: EMA, updates: int) -> int:
    """Return the most bytes that a step takes above what it began with, as torch's own profiler counts them."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        for _ in range(updates):
            ema.update()
    return max((event.cpu_memory_usage for event in profile.events()), default=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_step_takes_no_memory(dtype: torch.dtype):
    """After the second update, which makes the scratch, no update allocates anything, and nothing moves."""
    model = nn.Sequential(nn.Linear(600, 600), nn.BatchNorm1d(600), nn.Conv2d(32, 64, 5)).to(dtype)
    model[2].to(memory_format=torch.channels_last)
    ema = EMA(model, ("3ba", "9ba"))
    for _ in range(2):
        ema.update()
    places = [tensor.data_ptr() for name in ema.names for tensor in ema.state_dict()["averages"][name].values()]
    assert memory_taken(model, ema, 5) == 0
    assert places == [t.data_ptr() for name in ema.names for t in ema.state_dict()["averages"][name].values()]


@pytest.mark.parametrize("narrow", [torch.float32, torch.bfloat16])
def test_averages_that_lie_side_by_side_move_as_one(narrow: torch.dtype):
    """What is gathered and moved in one call has the bits of what is moved apart, for several averages at once."""
    shapes = [(3,), (5, 7), (), (2, 2, 2), (1,)]
    values = [torch.randn(shape).to(narrow) for shape in shapes]
    apart = [[torch.randn(shape) for shape in shapes] for _ in range(2)]
    beside = []
    for averages in apart:
        memory, start = torch.cat([average.reshape(-1) for average in averages]), 0
        beside.append([])
        for average in averages:
            beside[-1].append(memory[start : start + average.numel()].view(average.shape))
            start += average.numel()
    one, other = Mover(values, beside, set()), Mover(values, apart, set())
    assert one._batches[0].gathered is not None
    assert other._batches[0].gathered is None
    for shares in ([0.3, 0.7], [1.0, 0.0]):
        one.move(shares)
        other.move(shares)
    for found, expected in zip(beside, apart, strict=True):
        assert all(map(torch.equal, found, expected))


def test_values_that_lie_elsewhere_are_taken():
    """New tensors in place of equal ones are moved toward, unless they are laid out otherwise, which is said."""
    values, averages = [torch.zeros(4), torch.zeros(6, 5)], [torch.zeros(4), torch.zeros(6, 5)]
    found = Mover(values, [averages], set())
    assert found.take([torch.ones(4), torch.ones(6, 5)])
    found.move([0.5])
    assert all(bool((average == 0.5).all()) for average in averages)
    assert not found.take([torch.ones(4), torch.ones(5, 6).T])
