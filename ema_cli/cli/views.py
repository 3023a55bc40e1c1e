"""What `inspect` shows, as data: looked up and added up once, whether people read it or a program does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from fractions import Fraction

from ema_cli.checkpoint import Checkpoint, TensorSpec
from ema_cli.dataclass import dataclass
from ema_cli.errors import EmaError, GateError
from ema_cli.law.recipe import Recipe
from ema_cli.law.time import Time
from ema_cli.planning.plan import Plan
from ema_cli.runs.run import Run
from ema_cli.runs.same_model import first_differences
from ema_cli.runs.spacing import measure_spacing
from ema_cli.runs.stored import StoredRun
from ema_cli.runs.warnings import Remarks, by_specs


@dataclass(frozen=True, slots=True)
class TensorTotals:
    """How many tensors there are, how many of floats and of packed numbers; their parameters and bytes."""

    count: int
    averaged: int
    packed: int
    parameters: int
    nbytes: int

    @classmethod
    def of(cls, specs: Mapping[str, TensorSpec]) -> TensorTotals:
        """Add up the tensors."""
        return cls(
            len(specs),
            sum(spec.dtype.averaged for spec in specs.values()),
            sum(spec.dtype.kind == "packed" for spec in specs.values()),
            sum(spec.count for spec in specs.values()),
            sum(spec.nbytes for spec in specs.values()),
        )


@dataclass(frozen=True, slots=True)
class Sizes:
    """The bytes of a checkpoint's tensors, and how many tensors have each dtype, by its name."""

    nbytes: int
    dtypes: Mapping[str, int]

    @classmethod
    def of(cls, specs: Mapping[str, TensorSpec]) -> Sizes:
        """Add up the tensors."""
        dtypes = Counter(spec.dtype.name for spec in specs.values())
        return cls(sum(spec.nbytes for spec in specs.values()), dict(sorted(dtypes.items())))


@dataclass(frozen=True, slots=True)
class NamedGap:
    """A stretch of training without a checkpoint, between two checkpoints by name."""

    after: str
    before: str
    length: Time


@dataclass(frozen=True, slots=True)
class RunSpacing:
    """The usual distance between neighbouring checkpoints, whether it is kept, and where it is much exceeded."""

    usual: Time
    regular: bool
    gaps: tuple[NamedGap, ...]

    @classmethod
    def of(cls, run: Run) -> RunSpacing | None:
        """Measure a run; None where no two clocks differ."""
        if not run.units:
            return None
        unit = run.units[0]
        spacing = measure_spacing([checkpoint.clock(unit) or Fraction(0) for checkpoint in run.checkpoints])
        if spacing is None:
            return None
        names = [checkpoint.name for checkpoint in run.checkpoints]
        gaps = (NamedGap(names[gap.older], names[gap.newer], Time(gap.length, unit)) for gap in spacing.gaps)
        return cls(Time(spacing.usual, unit), spacing.regular, tuple(gaps))


@dataclass(frozen=True, slots=True)
class RunView:
    """What is known of a run without a plan.

    Attributes:
        sizes: those of each checkpoint.
        tensors: the totals of the tensors that all checkpoints have with one spec.
        spacing: None where there is none, and for stored averages, of which several have one clock by nature.
        differences: sentences on how the models differ.
        same_clock: groups of names with one clock.
    """

    run: Run
    sizes: tuple[Sizes, ...]
    tensors: TensorTotals
    spacing: RunSpacing | None
    differences: Sequence[str]
    same_clock: tuple[tuple[str, ...], ...]

    @property
    def path(self) -> str:
        """Return the path of the only checkpoint, or of the run."""
        checkpoints = self.run.checkpoints
        return (checkpoints[0].path if len(checkpoints) == 1 else self.run.root).as_posix()

    @classmethod
    def of(cls, run: Run, *, stored: bool = False) -> RunView:
        """Look at a run, or at `stored` averages."""
        twins = [] if stored else run.twins()
        return cls(
            run,
            tuple(by_specs(run.checkpoints, Sizes.of)),
            TensorTotals.of(_common_specs(run.checkpoints)),
            None if stored else RunSpacing.of(run),
            first_differences(run.checkpoints) if run.checkpoints else (),
            tuple(tuple(checkpoint.name for checkpoint in group) for group in twins),
        )


@dataclass(frozen=True, slots=True)
class StoredView:
    """What the training stored besides its raw checkpoints, and what it would make of each recipe: a plan or an error.

    `run` is an error where what is stored cannot be read.
    """

    run: StoredRun | EmaError
    plans: tuple[tuple[Recipe, Plan | EmaError], ...] = ()


@dataclass(frozen=True, slots=True)
class Inspection:
    """What `inspect` shows: a run, or its `single` checkpoint; the plans; `failed` is the error of a gate."""

    view: RunView
    plans: tuple[Plan, ...]
    single: Checkpoint | None
    stored: StoredView | None
    remarks: Remarks
    failed: GateError | None


def _common_specs(checkpoints: Sequence[Checkpoint]) -> Mapping[str, TensorSpec]:
    """Return the tensors that all checkpoints have with one spec."""
    if not checkpoints:
        return {}
    newest = checkpoints[-1].tensors.specs
    others = [checkpoint.tensors.specs for checkpoint in checkpoints if checkpoint.tensors.specs is not newest]
    return {name: spec for name, spec in newest.items() if all(specs.get(name) == spec for specs in others)}
