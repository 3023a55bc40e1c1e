"""Open the checkpoints of one training, drop duplicates, settle their clocks and order them. Reads no tensors."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Sequence
from dataclasses import field, replace
from pathlib import Path
from typing import Literal

from ema_cli.checkpoint import Checkpoint
from ema_cli.dataclass import dataclass
from ema_cli.errors import UsageError, at_terminal
from ema_cli.formats.options import ReadOptions
from ema_cli.kinds import as_list, as_texts, check_flags, check_path_kinds, check_texts
from ema_cli.law.time import Time, Unit, as_time
from ema_cli.runs.base import open_base, place_base
from ema_cli.runs.clocks import overruled_warnings, settle_clocks
from ema_cli.runs.entering import drop_aliases, drop_unclocked, preference
from ema_cli.runs.even_spacing import space
from ema_cli.runs.members import training_warnings
from ema_cli.runs.name_numbers import advise_name_clock
from ema_cli.runs.opening import open_named, open_searched, search_folder
from ema_cli.runs.options import OpenOptions
from ema_cli.runs.order import order_checkpoints
from ema_cli.runs.passed_over import PassedOver
from ema_cli.runs.paths import check_paths
from ema_cli.runs.schedule_free import settle_schedule_free
from ema_cli.runs.siblings import called_folder_warnings, sibling_warnings
from ema_cli.runs.unread import Damaged
from ema_cli.storage.names import anonymously, as_path
from ema_cli.storage.store.header_cache import opening
from ema_cli.text import plural


@dataclass(frozen=True, slots=True)
class Run:
    """The checkpoints of one training, oldest first.

    Attributes:
        root: the folder that their names are relative to.
        checkpoints: the checkpoints, oldest first.
        units: the units in which every checkpoint has a clock, first the one that the order is by; empty if only the
            names give an order.
        passed_over: the paths that do not enter, with the reasons.
        warnings: why an average of it may not be what its user wants.
        notes: what was inferred, where nothing is wrong.
        options: how it was opened.
        damaged: checkpoints that cannot be read, though they should enter: an average stops at the first.
        uncompared: checkpoints of the same model without a clock, which are passed over as copies: an average stops
            at the first that may be newer than all others.
        final_models: folders of models beside their own checkpoints, which do not enter.
        base: the model from which the training began, which is the first of the checkpoints then.
    """

    root: Path
    checkpoints: tuple[Checkpoint, ...]
    units: tuple[Unit, ...]
    passed_over: tuple[PassedOver, ...] = ()
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    options: OpenOptions = field(default_factory=OpenOptions)
    damaged: tuple[Damaged, ...] = ()
    uncompared: tuple[Checkpoint, ...] = ()
    final_models: tuple[Path, ...] = ()
    base: Checkpoint | None = None

    def __repr__(self) -> str:
        """Return the run in one line: how many checkpoints, from which clock to which."""
        ends = [self.checkpoints[0], self.checkpoints[-1]] if self.checkpoints and self.units else []
        clocks = ", " + " to ".join(str(Time(end.progress.clocks[self.units[0]].value, self.units[0])) for end in ends)
        return f"<Run {self.root}: {plural(len(self.checkpoints), 'checkpoint')}{clocks if ends else ''}>"

    def twins(
        self, unit: Unit | None = None, among: Sequence[Checkpoint] | None = None
    ) -> list[tuple[Checkpoint, ...]]:
        """Return the groups of checkpoints with the same clock in `unit`, in each group the one to keep first.

        Without `among`, all checkpoints are looked at. Checkpoints of one epoch may be of different batches, so clocks
        in batches must agree too, if there are any.
        """
        units = {unit or self.units[0], *(unit for unit in self.units if unit is Unit.BATCH)} if self.units else set()
        groups: dict[tuple[object, ...], list[Checkpoint]] = {}
        for checkpoint in (self.checkpoints if among is None else among) if units else ():
            key = tuple(checkpoint.clock(unit) for unit in units)
            groups.setdefault(key, []).append(checkpoint)
        return [tuple(sorted(group, key=preference)) for group in groups.values() if len(group) > 1]


def open_run(
    paths: str | Path | Sequence[str | Path],
    *,
    key: str | None = None,
    weights: Literal["raw", "ema"] | None = None,
    component: str | None = None,
    keep_prefix: bool = False,
    copy: str | Sequence[str] = (),
    epoch_length: str | Time | None = None,
    spacing: str | Time | None = None,
    name_clock: str | None = None,
    clock_key: str | Sequence[str] = (),
    masters: bool = False,
    ignore_clocks: bool = False,
    exclude: str | Sequence[str] = (),
    skip_damaged: bool = False,
    merge_into: str | Path | None = None,
    base: str | Path | None = None,
    anonymous: bool = False,
) -> Run:
    """Read the headers of one run.

    Args:
        paths: the folder of the run, or its checkpoints in any order.
        key: where in a file, not of safetensors, the model is, as "state.model".
        weights: "raw" or "ema", where checkpoints hold averages, too.
        component: which model, in checkpoints that hold several.
        keep_prefix: leave the prefixes of wrappers in the names of tensors.
        copy: patterns of names; tensors that match one are copied from the newest checkpoint, not averaged.
        epoch_length: the batches of an epoch, as "1000ba", to convert between epochs and batches.
        spacing: the distance between checkpoints that record no clock, as "100ba": in natural order of the names, the
            k-th gets the clock k x `spacing`.
        name_clock: what the number in the names of the checkpoints counts: "ba", "ep", "sp" or "tok"; or a pattern of
            the names, as "run7-{ep}-{ba}.pt". It takes the place of recorded clocks in that unit.
        clock_key: where in a file, not of safetensors, a counter is, with its unit, as "trainer.step=ba".
        masters: take the float32 weights that DeepSpeed's or Megatron's optimizer keeps of a model in half precision.
        ignore_clocks: let `spacing` take the place of recorded clocks.
        exclude: patterns of the names of checkpoints; what matches one does not enter.
        skip_damaged: pass over damaged checkpoints, with a warning, instead of refusing the run.
        merge_into: the base model of an adapter: each checkpoint is the whole model, with the adapter merged into it.
        base: the model from which the training began, for the profile "bema": a file or a folder, at clock 0; or a
            checkpoint of the run, at its own. With `merge_into` it is that model, or an adapter.
        anonymous: read from a bucket without credentials, as it is public.

    Raises:
        UsageError: for a value that is unknown, or a path at which there is nothing.
        CheckpointError: for a checkpoint that cannot be read, or if none is complete.
        RunError: for several runs in one folder, and for clocks that contradict each other.
    """
    check_texts(key=key, weights=weights, component=component, name_clock=name_clock)
    check_flags(keep_prefix=keep_prefix, masters=masters, ignore_clocks=ignore_clocks, skip_damaged=skip_damaged)
    check_flags(anonymous=anonymous)
    named: Callable[[str | Path], Path] = lambda path: anonymously(as_path(path)) if anonymous else as_path(path)  # noqa: E731
    check_path_kinds(merge_into=merge_into, base=base)
    several = as_list(paths)
    if not several:
        raise UsageError("which checkpoints?", hint="name the folder of the run")
    for path in several:
        check_path_kinds(paths=path)
    options = OpenOptions(
        ReadOptions(
            key, weights, component, keep_prefix, as_texts(copy, "copy"), as_texts(clock_key, "clock_key"), masters
        ),
        None if epoch_length is None else as_time(epoch_length, "epoch_length"),
        None if spacing is None else as_time(spacing, "spacing"),
        name_clock,
        ignore_clocks,
        as_texts(exclude, "exclude"),
        skip_damaged,
        None if merge_into is None else named(merge_into),
        None if base is None else named(base),
    )
    return read_run(list(map(named, several)), options)


@opening()
def read_run(paths: Sequence[Path], options: OpenOptions | None = None) -> Run:
    """Do what `open_run` does, with its arguments as data.

    Raises:
        UsageError, CheckpointError, RunError: as `open_run`.
    """
    options = options or OpenOptions()
    read = options.read
    check_paths(paths)
    search = search_folder(paths, read)
    # A folder that is itself its only checkpoint counts as named by the user.
    named = search is None or search.paths == [search.root]
    if search is not None and not named:
        root = search.root
        opened, rest = open_searched(search, options)
    else:
        root, opened, rest = open_named(paths, options)
        rest.passed_over += [passed for passed in search.passed_over if passed.warn or passed.note] if search else []
    read.before.clear()  # all of them are open
    opened, aliases = drop_aliases(opened)
    checkpoints, notes = settle_clocks(opened, options)
    warnings = overruled_warnings(opened, checkpoints, options)
    checkpoints, unclocked = drop_unclocked(checkpoints, named=named, spaced=options.spacing is not None)
    if options.spacing is not None:
        checkpoints, uneven = space(checkpoints, options.spacing, opened, rest.absent)
        warnings += uneven
    warnings += sibling_warnings(opened, read) if search is None else []
    warnings += called_folder_warnings(opened)
    warnings += training_warnings(opened)
    warnings += _unmatched_exclusions(options, rest.passed_over)
    ordered, units, falls = order_checkpoints(checkpoints)
    ordered = settle_schedule_free(ordered, read)
    all_passed_over = (*rest.passed_over, *aliases, *(dropped.passed_over for dropped in unclocked))
    uncompared = tuple(dropped.checkpoint for dropped in unclocked if dropped.checkpoint is not None)
    warnings += falls
    run = Run(root, ordered, units, all_passed_over, (), tuple(notes), options, tuple(rest.damaged), uncompared)
    final_models = () if search is None else tuple(search.final_models)
    run = replace(run, warnings=(*warnings, *_twin_warnings(run)), final_models=final_models)
    if options.base is not None:
        run = with_base(run, open_base(options.base, options))
    if options.merge_into is not None:
        run = merged_run(run, options.merge_into)
    return replace(run, warnings=(*run.warnings, *_unmatched_patterns(run.checkpoints, read)))


def merged_run(run: Run, model: Path) -> Run:
    """Return a run of adapters, and its base if it has one, as one of whole models; see `runs.merging`."""
    from ema_cli.runs.merging import merge_all  # which few runs need

    checkpoints = merge_all(run.checkpoints, model, run.base)
    return replace(run, checkpoints=checkpoints, base=None if run.base is None else checkpoints[0])


def with_base(run: Run, base: Checkpoint) -> Run:
    """Return a run with the model from which it began as its first checkpoint."""
    base = place_base(base, run.checkpoints, run.units)
    others = (checkpoint for checkpoint in run.checkpoints if checkpoint.path.absolute() != base.path.absolute())
    return replace(run, checkpoints=(base, *others), base=base)


def _at_terminal(name: str, value: str) -> str:
    return at_terminal(name, repr(value))


def twin_advice(run: Run) -> tuple[tuple[Checkpoint, ...], str] | None:
    """Return the first checkpoints that record one clock while the numbers in their names differ, and what to do."""
    for group in run.twins():
        advice = advise_name_clock(run.checkpoints, run.units[0], _at_terminal, apart=(group[0], group[1]))
        if advice is not None:
            return group, advice
    return None


def _twin_warnings(run: Run) -> list[str]:
    advised = twin_advice(run)
    if advised is None:
        return []
    group, advice = advised
    return [f"same clock: {', '.join(checkpoint.name for checkpoint in group)}; {advice}"]


def _unmatched_patterns(checkpoints: Sequence[Checkpoint], options: ReadOptions) -> list[str]:
    """Return a warning for each pattern of tensors to copy that matches no name: probably a mistake."""
    names = (
        {name for checkpoint in checkpoints for name in (*checkpoint.tensors.specs, *checkpoint.left_out)}
        if options.copy
        else set()
    )
    return [f"--copy '{pattern}' matches no tensor" for pattern in _unmatched(options.copy, names)]


def _unmatched_exclusions(options: OpenOptions, passed_over: Sequence[PassedOver]) -> list[str]:
    """Return a warning for each pattern of checkpoints to leave out that matches none: probably a mistake."""
    names = [passed.name for passed in passed_over if passed.excluded]
    return [f"--exclude '{pattern}' matches no checkpoint" for pattern in _unmatched(options.exclude, names)]


def _unmatched(patterns: Sequence[str], names: Iterable[str]) -> list[str]:
    return [pattern for pattern in patterns if not fnmatch.filter(names, pattern)]
