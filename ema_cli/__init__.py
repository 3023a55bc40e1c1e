"""Averaged weights from the checkpoints of a training run, with Composer's half-life law.

    from ema_cli import Recipe, average, make_plan, open_run

    plan = make_plan(open_run("ckpts"), Recipe(half_life="50ba"))
    print(plan.weights)  # before a single tensor is read
    average(plan, "release.safetensors", dtype="bfloat16")

A list of plans of one run is averaged in one pass, into one folder: `average(plans, "sweep/ema-{half_life}")`;
`make_series` gives those at each clock.
Names are resolved when they are first used: importing ema_cli loads neither torch nor numpy.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ema_cli._version import __version__

if TYPE_CHECKING:  # the same names, for type checkers
    from ema_cli.averaging import average as average
    from ema_cli.errors import EmaError as EmaError
    from ema_cli.law.recipe import Recipe as Recipe
    from ema_cli.law.time import Time as Time
    from ema_cli.law.time import Unit as Unit
    from ema_cli.online.batch_norm import update_bn as update_bn
    from ema_cli.online.ema import EMA as EMA
    from ema_cli.online.functional import compute_ema as compute_ema
    from ema_cli.planning.plan import Plan as Plan
    from ema_cli.planning.plan import make_plan as make_plan
    from ema_cli.planning.series import make_series as make_series
    from ema_cli.runs.run import Run as Run
    from ema_cli.runs.run import open_run as open_run
    from ema_cli.tuning.tune import tune as tune
    from ema_cli.watching.watch import watch as watch
    from ema_cli.writing.target import parse_target as parse_target

_MODULES = {
    "EMA": "online.ema",
    "EmaError": "errors",
    "Plan": "planning.plan",
    "Recipe": "law.recipe",
    "Run": "runs.run",
    "Time": "law.time",
    "Unit": "law.time",
    "average": "averaging",
    "compute_ema": "online.functional",
    "make_plan": "planning.plan",
    "make_series": "planning.series",
    "open_run": "runs.run",
    "parse_target": "writing.target",
    "tune": "tuning.tune",
    "update_bn": "online.batch_norm",
    "watch": "watching.watch",
}

__all__ = ["__version__", *_MODULES]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        try:
            return getattr(import_module(f"ema_cli.{_MODULES[name]}"), name)
        except ModuleNotFoundError as error:
            if error.name != "torch":
                raise
            raise ImportError(f"{name} needs torch: pip install 'ema-cli[torch]'", name="torch") from None
    raise AttributeError(f"module 'ema_cli' has no attribute '{name}'")
