"""The state dict of a whole pickled `nn.Module`, taken from its placeholder. No class is called.

A module keeps its tensors in dicts of its state: `_parameters`, `_buffers`, and `_modules` with the modules inside it.
`state_dict()` walks them, and so does this module, with the same names. Only a module's own code knows what that code
adds to its state dict: a module with hooks that could do so is refused.
"""

from __future__ import annotations

from typing import Any

from ema_cli.checkpoint import MAX_TENSORS
from ema_cli.errors import CheckpointError
from ema_cli.formats.pickles.values import Inert

_MAX_DEPTH = 200
_MAX_TEXT = 1 << 28  # characters in all names; a small file can repeat a module with long ones, or with nothing in it
_ENTRY_TEXT = 100  # minimum cost charged per entry, in characters
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
    tensors: dict[str, object] = {}
    todo: list[tuple[str, Any]] = [("", module)]
    visited = text = 0
    while todo:
        prefix, child = todo.pop()
        where = f"'{prefix.removesuffix('.')[:200]}'" if prefix else "at the top"
        if not is_module(child):
            raise CheckpointError(f"its module {where} is of no kind we know", hint=_SAVE_INSTEAD)
        visited += 1
        text += _text_in(child, prefix)
        # A module that contains itself, or modules nested so that there are paths without end.
        endless = visited > MAX_TENSORS or len(tensors) > MAX_TENSORS or text > _MAX_TEXT
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
            if prefix + name in tensors:
                raise CheckpointError(f"its module has two tensors of the name '{prefix}{name}'")
            tensors[prefix + name] = value
        todo += reversed([(f"{prefix}{name}.", value) for name, value in _entries(child, "_modules", where)])
    return tensors


def _text_in(module: Inert, prefix: str) -> int:
    """Return the cost of the module's own entries: the characters of their names, and a minimum for each."""
    lists = [entries for key in _LISTS if isinstance(entries := module.state.get(key), dict | list)]
    return sum(_ENTRY_TEXT + len(prefix) + len(name) for names in lists for name in names if isinstance(name, str))


def _entries(module: Inert, key: str, where: str) -> list[tuple[str, object]]:
    """Return the entries of one of the module's dicts, without those that are None."""
    entries = module.state.get(key)
    if not isinstance(entries, dict) or not all(isinstance(name, str) for name in entries):
        raise CheckpointError(f"its module {where} has no names in '{key}'", hint=_SAVE_INSTEAD)
    return [(name, value) for name, value in entries.items() if value is not None]
