"""One stored average: what the metadata of its file say of it, checked before it is believed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from ema_cli.checkpoint import Checkpoint, Clock, Progress
from ema_cli.dataclass import dataclass
from ema_cli.dtypes import DTYPES
from ema_cli.errors import CheckpointError, EmaError
from ema_cli.formats.options import ReadOptions
from ema_cli.formats.safetensors import file as safetensors_file
from ema_cli.law.branches import UNKNOWN, Lineage, lineage_from_list
from ema_cli.law.law import LiveLaw
from ema_cli.law.live import Schedule, live_law_from_dict
from ema_cli.law.time import Time, Unit

FIRST = "first"  # the name of the first copy among stored averages
_MAX_UPDATES = 10**15


@dataclass(frozen=True, slots=True)
class Sizes:
    """The norm of an average over all averaged tensors, and of its difference from the model: its spread."""

    norm: float
    spread: float

    def to_dict(self) -> dict[str, str]:
        """Return both as a stored average has them; nothing where a number is not finite."""
        if not (math.isfinite(self.norm) and math.isfinite(self.spread)):
            return {}
        return {"norm": f"{self.norm:.6g}", "spread": f"{self.spread:.6g}"}


@dataclass(frozen=True, slots=True)
class StoredAverage:
    """One stored average.

    Attributes:
        checkpoint: its file.
        law: None for the first copy of the model.
        clock: the training time at its last update.
        began: that at the first copy.
        updates: the number of updates since.
        schedule: when it is updated.
        lineage: the start or resume of the training that stored it, after those that it goes back to.
        norm: of all its averaged tensors together; None in files of earlier versions, and of the first copy.
        spread: the norm of its difference from the model at its clock; None where `norm` is.
    """

    checkpoint: Checkpoint
    law: LiveLaw | None
    clock: Time
    began: Time
    updates: int
    schedule: Schedule
    lineage: Lineage = UNKNOWN
    norm: float | None = None
    spread: float | None = None

    @property
    def branch(self) -> str:
        """Return the identity of the start or resume that stored it."""
        return self.lineage[-1].identity


def open_stored_file(path: Path, root: Path) -> StoredAverage | None:
    """Return the stored average in a file below `root`, None if the file is something else.

    Raises:
        CheckpointError: for a file that cannot be read, or whose metadata do not describe its average.
    """
    checkpoint = safetensors_file.open_checkpoint(path, ReadOptions())
    record = checkpoint.mark.get("stored") if checkpoint.mark else None
    if not isinstance(record, Mapping):
        return None
    try:
        return _parse(checkpoint, record, root)
    except (EmaError, ArithmeticError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise CheckpointError(f"does not say rightly what is stored in it: {error}", subject=path) from error


def _parse(checkpoint: Checkpoint, record: Mapping[str, Any], root: Path) -> StoredAverage:
    clock, began, updates = Time.parse(record["clock"]), Time.parse(record["began"]), record["updates"]
    schedule = Schedule.from_dict(record)
    interval = schedule.interval
    if interval is not None and (interval.unit is not clock.unit or not 0 < interval.value < math.inf):
        raise ValueError("its update interval is none of its clock's")
    if (
        type(updates) is not int
        or not 0 <= updates < _MAX_UPDATES
        or clock.unit is not began.unit
        or not 0 < began.value <= clock.value < math.inf
    ):
        raise ValueError("its clock and its updates do not fit together")
    times = [Time.parse(f"{value}{Unit(unit)}") for unit, value in record["clocks"].items()]
    clocks = {time.unit: Clock(Fraction(time.value), "file") for time in times}
    clocks[clock.unit] = Clock(Fraction(clock.value), "file")
    opened = replace(
        checkpoint,
        name=checkpoint.path.relative_to(root).as_posix(),
        trainer="EMA.store",
        averages=None,  # it is an average, as expected here: do not flag it
        mark=None,
        progress=Progress(clocks),
        output_dtypes=_output_dtypes(record["types"], checkpoint),
    )
    law = _law(record, clock.unit)
    if law is None and (updates or clock != began):
        raise ValueError("the first copy is not where the average began")
    lineage = lineage_from_list(record["branches"], clock.unit) if "branches" in record else UNKNOWN
    norm, spread = (_size(record, name) for name in ("norm", "spread"))
    return StoredAverage(opened, law, clock, began, updates, schedule, lineage, norm, spread)


def _size(record: Mapping[str, Any], name: str) -> float | None:
    """Return a norm, None where none was written."""
    if name not in record:
        return None
    size = float(record[name])
    if not 0 <= size < math.inf:
        raise ValueError(f"its {name} is no size")
    return size


def _law(record: Mapping[str, Any], unit: Unit) -> LiveLaw | None:
    if record["average"] == FIRST:
        return None
    law = live_law_from_dict(record)
    if law.unit not in (None, unit):
        raise ValueError("its half-life is in another unit than its clock")
    return law


def _output_dtypes(record: Mapping[str, Any], checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the model's dtypes of the tensors that are stored in a wider dtype, by name."""
    specs = checkpoint.tensors.specs
    types = {}
    for dtype, names in record.items():
        if dtype not in DTYPES or not DTYPES[dtype].is_narrow:
            raise ValueError(f"{dtype} is not stored in a wider type")
        averaged = [name for name, spec in specs.items() if spec.dtype.averaged] if names == "all" else names
        types.update({name: DTYPES[dtype] for name in averaged if name in specs and specs[name].dtype.name == "F32"})
    return types
