"""Small models, their training, and averages of them worked out in float64."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from ema_cli import EMA

Tensors = dict[str, Tensor]


def small_model(seed: int = 0) -> nn.Sequential:
    """Return a network with BatchNorm: parameters, averaged buffers, and a counter."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4))


def train(model: nn.Module, steps: int, seed: int = 1) -> Iterator[int]:
    """Train `model` by gradient descent; yield after each step, counted from 1."""
    random = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(1, steps + 1):
        inputs = torch.randn(32, 8, generator=random)
        optimizer.zero_grad()
        (model(inputs) - inputs[:, :4].cumsum(1)).square().mean().backward()
        optimizer.step()
        yield step


def taken(model: nn.Module) -> Tensors:
    """Return copies of what the model's state holds."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def walk(model: nn.Module, seed: int = 3) -> Callable[[], None]:
    """Return a function that moves all parameters, and buffers of numbers, at random; counters go up by one."""
    random = torch.Generator().manual_seed(seed)

    def move() -> None:
        with torch.no_grad():
            for tensor in (*model.parameters(), *model.buffers()):
                if tensor.is_complex():
                    tensor += torch.randn(tensor.shape, generator=random, dtype=tensor.dtype)
                elif tensor.is_floating_point():
                    tensor += torch.randn(tensor.shape, generator=random).to(tensor.dtype)
                elif tensor.dtype is not torch.bool:
                    tensor += 1

    return move


def dense(models: Sequence[Mapping[str, Tensor]], half_life: float) -> Tensors:
    """Return Composer's recurrence over models one batch apart, in float64, integers as in the newest."""
    kept = math.exp(-math.log(2) / half_life)
    average: Tensors = {}
    for model in models:
        for name, tensor in model.items():
            if not (tensor.is_floating_point() or tensor.is_complex()):
                average[name] = tensor
            else:
                wide = tensor.to(torch.complex128 if tensor.is_complex() else torch.float64)
                average[name] = kept * average[name] + (1 - kept) * wide if name in average else wide
    return average


def held(ema: EMA, average: str | None = None) -> Tensors:
    """Return what an average holds, as its state has it."""
    state = ema.state_dict()
    return {**state["averages"][average or ema.names[0]], **state["copied"]}


def assert_near(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], updates: int = 60) -> None:
    """Compare the floating tensors to float32 rounding, and others bit for bit; all of them, none more."""
    assert set(found) == set(expected)
    for name, tensor in found.items():
        if not (tensor.is_floating_point() or tensor.is_complex()):
            assert torch.equal(tensor, expected[name]), name
            continue
        wanted = expected[name].to(torch.complex128 if tensor.is_complex() else torch.float64)
        largest = max(1.0, float(wanted.abs().max())) if wanted.numel() else 1.0
        # Each update rounds twice, and what it rounds fades.
        atol = 2 * updates * 2**-24 * largest
        torch.testing.assert_close(tensor.to(wanted.dtype), wanted, rtol=0, atol=atol, msg=name)


def assert_same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Compare bit for bit."""
    assert set(found) == set(expected)
    for name, tensor in found.items():
        assert tensor.dtype == expected[name].dtype, name
        assert torch.equal(tensor, expected[name]), name


def bits(model: nn.Module) -> Tensors:
    """Return the bytes of all that a model holds, so that NaN and -0 count."""
    named = (*model.named_parameters(), *model.named_buffers())
    return {name: tensor.detach().clone().reshape(-1).view(torch.uint8) for name, tensor in named if tensor.numel()}


def resumed(ema: EMA, model: nn.Module, make: Callable[[nn.Module], EMA], path: str) -> tuple[nn.Module, EMA]:
    """Return a copy of the model and of its averages, by way of a file that `weights_only` reads."""
    torch.save(ema.state_dict(), path)
    again = copy.deepcopy(model)
    new = make(again)
    new.load_state_dict(torch.load(path, weights_only=True))
    return again, new


def averaged_model(steps: int = 5, **asked: Any) -> tuple[nn.Sequential, EMA]:
    """Return a model that has trained, and its averages: of half-life 3ba, or as asked."""
    model = small_model()
    ema = EMA(model, **(asked or {"half_life": "3ba"}))
    for _ in train(model, steps):
        ema.update()
    return model, ema


def power_profile(clocks: Sequence[Fraction], gamma: float) -> list[float]:
    """Return the shares of models that are each held since the clock before, by integrating clock ** gamma.

    By Simpson's rule over the cube root of the clock, in which the integrand is smooth at 0.
    """
    edges = [0.0, *(float(clock / clocks[-1]) ** (1 / 3) for clock in clocks)]
    shares, pieces = [], 2000
    for left, right in pairwise(edges):
        width = (right - left) / pieces
        points = [left + half * width / 2 for half in range(2 * pieces + 1)]
        heights = [(gamma + 1) * root ** (3 * gamma) * 3 * root**2 for root in points]
        factors = [1, *([4, 2] * pieces)[:-1], 1]
        shares.append(math.fsum(f * h for f, h in zip(factors, heights, strict=True)) * width / 6)
    return shares


class EveryKind(nn.Module):
    """A model with every kind of tensor."""

    mask: Tensor
    steps: Tensor
    cache: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(6, 4)
        self.head = nn.Linear(4, 6, bias=False)
        self.head.weight = self.embed.weight
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.empty = nn.Parameter(torch.zeros(0, 3))
        self.wide = nn.Parameter(torch.ones(3, dtype=torch.float64))
        self.wave = nn.Parameter(torch.ones(2, dtype=torch.complex64))
        self.narrow = nn.Parameter(torch.ones(5, dtype=torch.float16))
        self.brain = nn.Parameter(torch.ones(5, dtype=torch.bfloat16))
        self.turned = nn.Parameter(torch.randn(3, 4).t())
        self.conv = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
        self.register_buffer("mask", torch.full((3, 3), float("-inf")).triu(1))
        self.register_buffer("steps", torch.tensor(0))
        self.register_buffer("flags", torch.tensor([True, False]))
        self.register_buffer("cache", torch.zeros(4), persistent=False)
        self.register_buffer("shown", torch.ones(1).expand(5))
        self.register_parameter("absent", None)
        self.register_buffer("nothing", None)
