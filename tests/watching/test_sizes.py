"""The sizes that are kept beside watched averages, and what `--from stored` makes of them."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ema_cli import EMA, Recipe, average, make_plan, open_run, watch
from ema_cli.formats import open_checkpoint
from ema_cli.formats.options import ReadOptions
from ema_cli.planning.stored_plan import make_stored_plan
from ema_cli.runs.options import OpenOptions
from ema_cli.runs.stored import open_stored
from ema_cli.runs.stored_file import Sizes
from ema_cli.watching import sizes
from ema_cli.watching.watch import WaitingKeywords

ONCE: WaitingKeywords = {"once": True, "settle": 0.0}


def near(found: Sizes, norm: float, spread: float, rel: float) -> bool:
    """Return whether both sizes are these."""
    return (found.norm, found.spread) == pytest.approx((norm, spread), rel=rel)


def as_sizes(folder: Path) -> dict[str, Sizes]:
    """Return the sizes of the newest stored averages, by name."""
    stored = open_stored([folder]).averages
    newest = [one for one in stored if one.clock == stored[-1].clock and one.law is not None]
    assert all(one.norm is not None and one.spread is not None for one in newest)
    return {one.checkpoint.path.stem: Sizes(one.norm or 0.0, one.spread or 0.0) for one in newest}


def test_they_are_those_that_a_training_stores(tmp_path: Path):
    """The same updates, of the live model and of its checkpoints, give the same norm and spread."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(30, 40), torch.nn.BatchNorm1d(40))
    ema = EMA(model, ("3ba", "9ba"))
    (tmp_path / "run").mkdir()
    for step in range(1, 8):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        ema.update()
        save_file(model.state_dict(), tmp_path / "run" / f"step-{step}.safetensors")
        ema.store(tmp_path / "live")
        recipes = [Recipe(half_life="3ba"), Recipe(half_life="9ba")]
        watch(tmp_path / "run", tmp_path / "averages", recipes, waiting=ONCE)
        live, watched = as_sizes(tmp_path / "live"), as_sizes(tmp_path / "averages.watch")
        assert live.keys() == watched.keys()
        for name, expected in live.items():
            assert near(watched[name], expected.norm, expected.spread, 1e-4), (step, name)
    assert 0 < watched["3ba"].spread < watched["9ba"].spread < watched["9ba"].norm


def test_of_large_and_of_many_tensors_a_sample_is_enough(tmp_path: Path):
    """A million values in one tensor, and a thousand tensors of one shape, beside a few that are much larger."""
    random = torch.Generator().manual_seed(1)
    before = {"matrix": 0.02 * torch.randn(1000, 1000, generator=random), "gains": 1 + torch.rand(3000)}
    before.update({f"norm.{number}": 1 + 0.1 * torch.randn(64, generator=random) for number in range(1000)})
    newest = {name: value + 0.01 * torch.randn(value.shape, generator=random) for name, value in before.items()}
    paths = [tmp_path / "before.safetensors", tmp_path / "newest.safetensors"]
    for path, tensors in zip(paths, (before, newest), strict=True):
        save_file(tensors, path)
    old, new = (open_checkpoint(path, ReadOptions()) for path in paths)
    shares = [0.25, 1.0]
    found = sizes.measure(new, [old, old], shares, frozenset())
    for share, measured in zip(shares, found, strict=True):
        moved = [(newest[name].double() - value.double()) for name, value in before.items()]
        now = [value.double() + share * move for value, move in zip(before.values(), moved, strict=True)]
        norm = math.sqrt(sum(float(value.square().sum()) for value in now))
        spread = (1 - share) * math.sqrt(sum(float(move.square().sum()) for move in moved))
        assert near(measured, norm, spread, 0.03)


def test_what_is_not_averaged_or_not_finite_does_not_count(tmp_path: Path):
    """Counters, copied tensors, and the infinities of a mask; complex numbers count with both parts."""
    (tmp_path / "run").mkdir()
    for step, value in ((1, 3.0), (2, 5.0)):
        tensors = {
            "a": torch.tensor([value, 4.0]),
            "mask": torch.tensor([0.0, float("-inf")]),
            "count": torch.tensor([100 * step]),
            "rope": torch.full((9,), 1000.0 * step),
            "turned": torch.tensor([complex(0.0, value)]),
        }
        torch.save({"model": tensors, "step": step}, tmp_path / "run" / f"step-{step}.pt")
    options = OpenOptions(ReadOptions(copy=("rope",)))
    recipe = Recipe(smoothing=0.75, update_interval="every")
    watch(tmp_path / "run", tmp_path / "out", recipe, waiting=ONCE, options=options)
    (found,) = as_sizes(tmp_path / "out.watch").values()
    assert near(found, math.sqrt(3.5**2 + 4.0**2 + 3.5**2), math.sqrt(2 * 1.5**2), 1e-5)


def test_a_half_life_between_two_watched_ones_is_made_of_what_is_kept(tmp_path: Path):
    """Its rounding is known and small, and it is what `average` gives of all checkpoints, which are gone."""
    random = torch.Generator().manual_seed(2)
    value = torch.randn(3000, generator=random)
    (tmp_path / "run").mkdir()
    for step in range(100, 4100, 100):
        value = value + 0.02 * torch.randn(3000, generator=random)
        save_file({"w": value}, tmp_path / "run" / f"step-{step}.safetensors")
    recipes = [Recipe(half_life="500ba"), Recipe(half_life="2000ba")]
    watch(tmp_path / "run", tmp_path / "averages", recipes, waiting=ONCE, store_every="500ba")
    asked = Recipe(half_life="1000ba")
    average(make_plan(open_run(tmp_path / "run"), asked), tmp_path / "truth.safetensors")
    for path in (tmp_path / "run").iterdir():
        path.unlink()
    plan = make_stored_plan(open_stored([tmp_path / "averages.watch"]), asked, allow_approximate=False)
    assert plan.approximation is not None
    assert plan.approximation.rounding is not None
    assert plan.approximation.rounding < 1e-3
    assert plan.approximation.error < 0.01
    average(plan, tmp_path / "made.safetensors")
    made, truth = (load_file(tmp_path / f"{name}.safetensors")["w"].double() for name in ("made", "truth"))
    spread = (truth - value.double()).norm()
    assert (made - truth).norm() < 0.02 * spread
