"""The tensors of a whole pickled `nn.Module`, found in the placeholder that stands for it. No class is called.

A module keeps its tensors in three dicts of its state, `_parameters`, `_buffers` and `_modules`; `state_dict()` walks
them, and so do we, with the same names. What a module's own code adds to its state dict, only that code knows: where
hooks are registered to do so, the module is refused.
"""

from __future__ import annotations

from typing import Any

from ema_cli.checkpoint import MAX_TENSORS
from ema_cli.errors import CheckpointError
from ema_cli.formats.pickles.values import Inert

_MAX_DEPTH = 200
_MAX_TEXT = 1 << 28  # characters in all names; a small file can repeat a module with long ones, or with nothing in it
_ENTRY_TEXT = 100  # for which an entry counts at least
_LISTS = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set")
_HOOKS = ("_state_dict_hooks", "_state_dict_pre_hooks")
_SAVE_INSTEAD = "save model.state_dict() and average those files"


def is_module(value: object) -> bool:
    """Return whether `value` stands for an object with the state of an `nn.Module`."""
    return isinstance(value, Inert) and isinstance(value.state, dict) and isinstance(value.state.get("_modules"), dict)


def module_tensors(module: Inert) -> dict[str, object]:
    """Return the entries of the module's `state_dict()`: parameters and persistent buffers, by their names there.

    Raises:
        CheckpointError: for a module with hooks that change its state dict, or one that is endless.
    """
    found: dict[str, object] = {}
    todo: list[tuple[str, Any]] = [("", module)]
    visited = text = 0
    while todo:
        prefix, child = todo.pop()
        where = f"'{prefix.removesuffix('.')[:200]}'" if prefix else "at the top"
        if not is_module(child):
            raise CheckpointError(f"its module {where} is of no kind we know", hint=_SAVE_INSTEAD)
        visited += 1
        text += _text_in(child, prefix)
        # One that contains itself, or a few nested so that there are paths without end.
        endless = visited > MAX_TENSORS or len(found) > MAX_TENSORS or text > _MAX_TEXT
        if endless or prefix.count(".") > _MAX_DEPTH:
            raise CheckpointError(f"its module {where} is nested without end", hint=_SAVE_INSTEAD)
        if any(child.state.get(hooks) for hooks in _HOOKS):
            raise CheckpointError(
                f"its module {where} ({child.kind}) has hooks that change its state dict", hint=_SAVE_INSTEAD
            )
        transient = child.state.get("_non_persistent_buffers_set", [])
        if not isinstance(transient, list) or not all(isinstance(name, str) for name in transient):
            raise CheckpointError(f"its module {where} does not list its buffers by name", hint=_SAVE_INSTEAD)
        left_out = set(transient)
        buffers = [(name, value) for name, value in _entries(child, "_buffers", where) if name not in left_out]
        for name, value in [*_entries(child, "_parameters", where), *buffers]:
            if prefix + name in found:
                raise CheckpointError(f"its module has two tensors of the name '{prefix}{name}'")
            found[prefix + name] = value
        todo += reversed([(f"{prefix}{name}.", value) for name, value in _entries(child, "_modules", where)])
    return found


def _text_in(module: Inert, prefix: str) -> int:
    """Return how many characters of names the module's own entries take, or would."""
    lists = [entries for key in _LISTS if isinstance(entries := module.state.get(key), dict | list)]
    return sum(_ENTRY_TEXT + len(prefix) + len(name) for names in lists for name in names if isinstance(name, str))


def _entries(module: Inert, key: str, where: str) -> list[tuple[str, object]]:
    entries = module.state.get(key)
    if not isinstance(entries, dict) or not all(isinstance(name, str) for name in entries):
        raise CheckpointError(f"its module {where} has no names in '{key}'", hint=_SAVE_INSTEAD)
    return [(name, value) for name, value in entries.items() if value is not None]
