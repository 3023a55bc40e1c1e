"""From a new checkpoint to what its fold makes of the averages: checks and numbers, no tensor."""

from __future__ import annotations

import secrets
from dataclasses import replace

from ema_cli.checkpoint import Checkpoint
from ema_cli.dataclass import dataclass
from ema_cli.errors import NothingLeft, UsageError, option
from ema_cli.folding.buffers import BufferSizes, default_bytes, divide_memory, least_bytes
from ema_cli.law.time import Unit
from ema_cli.planning.plan import Plan
from ema_cli.preparing import lay_out, refuse_averaged
from ema_cli.runs.run import Run
from ema_cli.runs.tensor_rules import copied_names
from ema_cli.system.memory import peak_bytes
from ema_cli.system.processors import default_threads
from ema_cli.text import size
from ema_cli.watching.asked import Asked
from ema_cli.watching.form import describe
from ema_cli.watching.journal import Journal
from ema_cli.watching.keeping import Update
from ema_cli.watching.moments import Moment
from ema_cli.watching.past import Past
from ema_cli.watching.publishing import plans_over, targets_of

_RESERVED_BYTES = 32 << 20


@dataclass(frozen=True, slots=True)
class Skip:
    """That a checkpoint does not enter, and why."""

    reason: str


def make_update(
    asked: Asked, moment: Moment | None, run: Run, checkpoint: Checkpoint, past: Past, unit: Unit
) -> Update | Skip:
    """Return what the fold of a checkpoint makes of the averages, or why it does not enter.

    Args:
        asked: the averages.
        moment: the newest; None before the first copy.
        run: the one that the checkpoint was found in.
        checkpoint: the new one.
        past: what will be known of it.
        unit: that of the clocks that count.

    Raises:
        RunError: where it is not of the model of those before, or holds averages already.
        CheckpointError, OutputError: where its tensors cannot be averaged, or not be written.
    """
    journal = moment.journal if moment is not None else Journal(asked.what(), unit, secrets.token_hex(4))
    before: list[Checkpoint] = []
    if moment is not None:
        form = moment.form(moment.average(asked.recipes[0].law.name))
        before = form.stand_ins(journal.folded, asked.path)
    try:
        plans = plans_over(asked, [*before, checkpoint], unit)
    except NothingLeft as problem:
        return Skip(problem.fact)
    reason = _skipped(plans[0], checkpoint)
    if reason is not None:
        return Skip(reason)
    for plan in plans:
        refuse_averaged(plan)
    lay_out(plans, targets_of(asked, plans), asked.output)  # which checks that they are of one model
    newest = describe(checkpoint, _renamed(checkpoint), before[-1] if before else None)
    journal = replace(
        journal,
        folded=(*journal.folded, past),
        epochs_from_zero=journal.epochs_from_zero or run.options.epochs_from_zero or bool(run.notes),
        newest=newest,
    )
    copied = copied_names(checkpoint.tensors.specs, asked.opened.read.copy)
    return Update(checkpoint, plans, journal, copied, asked.opened.read if asked.keeps_whole else None)


def _skipped(plan: Plan, checkpoint: Checkpoint) -> str | None:
    return next((skip.reason for skip in plan.skipped if skip.checkpoint is checkpoint), None)


def _renamed(checkpoint: Checkpoint) -> dict[str, str]:
    inner = checkpoint.pretrained.inner_files if checkpoint.pretrained is not None else None
    return {} if inner is None else {name: inner.loaded_name(name) for name in checkpoint.tensors.specs}


def sizes_for(asked: Asked, made: Update) -> BufferSizes:
    """Return the memory of the folds.

    Raises:
        UsageError: where `max_memory` is too little.
    """
    averages = len(made.plans) + 1  # and the first copy
    least = least_bytes(averages, averages)
    budget = max(default_bytes([made.checkpoint]), least)
    if asked.max_memory is not None:
        taken = peak_bytes() + _RESERVED_BYTES + len(made.specs) * 1024
        budget = min(budget, asked.max_memory - taken)
        if budget < least:
            needed = -(-(taken + least) // 10**6)
            raise UsageError(
                f"{size(asked.max_memory)} are too few; these averages need {needed} MB",
                option="max_memory",
                hint=option("max_memory", f"{needed}MB"),
            )
    return divide_memory(budget, asked.threads or default_threads(), averages, averages)
