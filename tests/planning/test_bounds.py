"""What --start and --stop leave out of what cannot be read: it needs nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from ema_cli import averaging
from ema_cli.law.recipe import Recipe
from ema_cli.law.time import Time
from ema_cli.planning.plan import make_plan
from ema_cli.runs.run import open_run
from tests.conftest import Cli, write_torch_run

LAW = ("--half-life", "100ba")
OUTSIDE = [
    ("step-{}.pt", (), ("--start", "250ba")),
    ("step-{}.pt", (), ("--stop", "150ba")),
    ("model_{}.pt", ("--name-clock", "ba"), ("--start", "250ba")),
    ("{}.pt", ("--name-clock", "ba"), ("--stop", "199ba")),
]


@pytest.mark.parametrize("harm", ["cut short", "empty", "text"])
@pytest.mark.parametrize(("name", "clocks", "bound"), OUTSIDE)
def test_damage_outside_is_passed_over_without_a_word(
    cli: Cli, tmp_path: Path, harm: str, name: str, clocks: tuple[str, ...], bound: tuple[str, str]
) -> None:
    """The average is strict and says nothing of it; `inspect` lists the bound that leaves it out."""
    write_torch_run(tmp_path / "run", [100, 200, 300], name)
    path = tmp_path / "run" / name.format(200)
    path.write_bytes({"cut short": path.read_bytes()[:-100], "empty": b"", "text": b"x" * 50}[harm])
    done = cli("average", "run", *LAW, *clocks, *bound, "--bias-correction", "-o", "out.pt")
    assert (done.code, "--skip-damaged" in done.err, path.name in done.err) == (0, False, False), done
    warnings = json.loads((tmp_path / "out.pt.manifest.json").read_text())["warnings"]
    assert not any(path.name in warning for warning in warnings)
    seen = cli("inspect", "run", *LAW, *clocks, *bound)
    when = "before" if bound[0] == "--start" else "after"
    assert f"{path.name}: {when} {bound[0]} {bound[1]}" in seen.out
    assert cli("average", "run", *LAW, *clocks).code == 3


@pytest.mark.parametrize(
    ("bound", "code"),
    [(("--start", "4ep"), 0), (("--start", "3ep"), 3), (("--stop", "1ep"), 0), (("--stop", "2ep"), 3)],
)
def test_an_epoch_in_a_name_may_be_counted_from_0(cli: Cli, tmp_path: Path, bound: tuple[str, str], code: int) -> None:
    """epoch_2 has completed two or three: only what is left out either way needs nothing."""
    for epoch in (1, 2, 3, 4):
        torch.save({"model": {"w": torch.ones(3)}}, tmp_path / f"epoch_{epoch}.pt")
    (tmp_path / "epoch_2.pt").write_bytes(b"")
    assert cli("average", ".", "--half-life", "1ep", *bound, "-o", "out.pt").code == code


def test_several_averages_leave_out_the_same(cli: Cli, tmp_path: Path) -> None:
    """Plans of one run are of one run, whatever each leaves out of it."""
    write_torch_run(tmp_path / "run", [100, 200, 300, 400])
    (tmp_path / "run" / "step-100.pt").write_bytes(b"")
    law = ("--half-life", "100ba", "--half-life", "200ba", "--start", "200ba", "--bias-correction")
    assert cli("average", "run", *law, "-o", "out").code == 0
    run = open_run(tmp_path / "run")
    half_lives = (Time.parse("100ba"), Time.parse("200ba"))
    plans = [make_plan(run, Recipe(half_life=half_life, start=Time.parse("200ba"))) for half_life in half_lives]
    averaging.average(plans, tmp_path / "api")
    assert len(list((tmp_path / "api").glob("*.safetensors"))) == 2
