"""How a file is loaded that a trainer's own loader takes for one of its own, and cannot read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ema_cli.planning.plan import Plan
from ema_cli.writing.outputs import Output

# By the name of the trainer: the object that takes the state dict, and what does not.
_LOADERS: Mapping[str, tuple[str, str]] = {
    "Lightning": ("module", "load_from_checkpoint, which takes {stem}.ckpt"),
}


def loading_notes(plans: Sequence[Plan], outputs: Sequence[Output]) -> list[str]:
    """Return a note for the first file in torch's format that looks like a checkpoint of its trainer's, or is one."""
    if len({tuple(output.notes) for output in outputs}) > 1:  # as those of a series, each in the form of its own newest
        return [f"{outputs[-1].target.path.name}: {note}" for note in outputs[-1].notes]
    for plan, output in zip(plans, outputs, strict=True):
        if output.notes:
            return list(output.notes)
        loader = _LOADERS.get(plan.newest.trainer or "")
        if output.target.is_torch and output.likeness is None and loader is not None:
            who, other = loader
            path, other = output.target.path.as_posix(), other.format(stem=output.target.path.stem)
            return [f"{path} holds a state dict: {who}.load_state_dict(torch.load('{path}')); not for {other}"]
    return []
