"""A model beside its own checkpoints: a copy of one of them as a rule, or a newer state that nobody would miss."""

from __future__ import annotations

from collections.abc import Sequence

from ema_cli.errors import EmaError
from ema_cli.formats import open_checkpoint
from ema_cli.formats.samples import begin_alike
from ema_cli.planning.plan import Plan
from ema_cli.text import plural


def final_model_notes(plans: Sequence[Plan]) -> list[str]:
    """Return a note for a model, passed over beside its checkpoints, that is none of them as far as samples show.

    A plan that stops earlier does not miss it.
    """
    run, notes = plans[0].run, []
    for path in run.final_models if all(plan.recipe.stop is None for plan in plans) else ():
        try:
            model = open_checkpoint(path, run.options.read)
        except EmaError:
            continue  # it does not enter: whatever is wrong with it
        specs = model.tensors.specs
        if model.mark is None and specs == run.checkpoints[-1].tensors.specs:
            is_copy = any(
                all(begin_alike(checkpoint.tensors, model.tensors, name) for name in specs)
                for checkpoint in reversed(run.checkpoints)
            )
            if not is_copy:
                count = plural(len(run.checkpoints), "checkpoint")
                notes.append(f"the model in {path} is none of its {count}: it may be newer, and is not in the average")
    return notes
